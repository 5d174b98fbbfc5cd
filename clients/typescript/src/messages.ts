/** Fields, results and errors, and their encoding in Triton's messages. */

import { writeFile } from "node:fs/promises";
import { inspect } from "node:util";

import { status } from "@grpc/grpc-js";

import {
  InferTensorContents,
  ModelInferRequest,
  ModelInferRequest_InferInputTensor,
  ModelInferResponse,
} from "./generated/grpc_service.js";

/** The inputs of a served model and their Triton types; each has shape [1], but for input_image: [n]. */
export const FIELDS = {
  prompt: "BYTES",
  negative_prompt: "BYTES",
  class_label: "INT64",
  seed: "INT64",
  num_inference_steps: "INT32",
  guidance_scale: "FP32",
  height: "INT32",
  width: "INT32",
  num_frames: "INT32",
  input_image: "BYTES",
  mask_image: "BYTES",
  strength: "FP32",
  cache_preset: "BYTES",
  cache_interval: "INT32",
  cache_order: "INT32",
  cache_warmup_steps: "INT32",
  cache_cooldown_steps: "INT32",
  cache_predictor: "BYTES",
  cache_schedule: "BYTES",
  cache_coordinate: "BYTES",
  cache_max_error: "FP32",
  cache_min_interval: "INT32",
  cache_max_full_steps: "INT32",
  deadline_ms: "INT32",
  priority: "INT32",
  preview: "BOOL",
} as const;

interface Values {
  BYTES: string;
  INT64: number | bigint;
  INT32: number;
  FP32: number;
  BOOL: boolean;
}

/** The fields that take picture files, each as its bytes: PNG, JPEG or WebP. */
interface Pictures {
  input_image: Uint8Array | readonly Uint8Array[];
  mask_image: Uint8Array;
}

export type FieldName = keyof typeof FIELDS;

/** A request; fields that are left out get the model's defaults. docs/reference.md has their ranges. */
export type Fields = {
  [name in FieldName]?: name extends keyof Pictures ? Pictures[name] : Values[(typeof FIELDS)[name]];
};

/** RGB, row by row: `height * width * 3` bytes. */
export interface Pixels {
  height: number;
  width: number;
  data: Uint8Array;
}

/**
 * `step` of `numSteps` steps are done; `preview` is set if one was asked for and is due. `queuePosition` is the request's place in the server's
 * queue, 1 for the next one; 0 if it is not queued.
 */
export interface Progress {
  kind: "progress";
  step: number;
  numSteps: number;
  queuePosition: number;
  preview?: Pixels;
}

/** What the server reports about a request; docs/reference.md lists all fields. */
export interface Report {
  num_steps: number;
  full_steps: number[];
  engine_calls: number;
  cache_bytes: number;
  queue_s: number;
  denoise_s: number;
  total_s: number;
  seed: number; // exact up to 2^53; Generation.seed always is
  engine: string;
  num_frames: number;
  warnings: string[];
  [more: string]: unknown;
}

/** A result: `file` is a PNG, or an MP4 of several frames. */
export class Generation {
  readonly kind = "generation";

  constructor(
    readonly file: Uint8Array,
    readonly report: Report,
    /** The seed of the noise, exact also where `report.seed` is not. */
    readonly seed: bigint = BigInt(report.seed),
  ) {}

  /** The suffix of `file`'s format. */
  get suffix(): ".png" | ".mp4" {
    return this.report.num_frames > 1 ? ".mp4" : ".png";
  }

  /** Writes the file. Throws a RangeError if the path's suffix stands for another format. */
  async save(path: string): Promise<void> {
    if (!path.toLowerCase().endsWith(this.suffix)) {
      throw new RangeError(`path is ${path}, must end in ${this.suffix}: the result has ${frames(this.report)}`);
    }
    await writeFile(path, this.file);
  }
}

const frames = ({ num_frames }: Report) => `${num_frames} frame${num_frames === 1 ? "" : "s"}`;

export type ErrorCode =
  | "INVALID_ARGUMENT"
  | "UNAVAILABLE"
  | "UNKNOWN_MODEL"
  | "CANCELLED"
  | "DEADLINE_EXCEEDED"
  | "INTERNAL";

/** A request that made no picture; `message` is the server's. */
export class GenerationError extends Error {
  override readonly name = "GenerationError";

  constructor(
    readonly code: ErrorCode,
    message: string,
  ) {
    super(message);
  }
}

// Asks for an error as a report that holds its code: Triton 24.10 keeps the code only with a header that can make it
// crash.
const ERROR_REPORT_PARAMETER = "taylorseer_error_report";
// Asks for a sign of life: the request's step at once, and again at least every 5 s.
const HEARTBEAT_PARAMETER = "taylorseer_heartbeat";

/** The message for a request to `model`'s stream. Throws a GenerationError if a value cannot be sent. */
export function requestOf(model: string, fields: Fields): ModelInferRequest {
  const inputs = Object.entries(fields)
    .filter(([, value]) => value !== undefined)
    .map(([name, value]) => tensorOf(name, value));
  inputs.push(tensor("response_format", "BYTES", { bytesContents: [Buffer.from("b64_json")] }));
  return ModelInferRequest.fromPartial({
    modelName: `${model}_stream`,
    inputs,
    parameters: { [ERROR_REPORT_PARAMETER]: { boolParam: true }, [HEARTBEAT_PARAMETER]: { boolParam: true } },
  });
}

function tensor(name: string, datatype: string, contents: Partial<InferTensorContents>, length = 1) {
  return ModelInferRequest_InferInputTensor.fromPartial({ name, datatype, shape: [BigInt(length)], contents });
}

function tensorOf(name: string, value: unknown): ModelInferRequest_InferInputTensor {
  if (!Object.hasOwn(FIELDS, name)) {
    throw invalid(`'${name}' is not a field, must be one of: ${Object.keys(FIELDS).join(", ")}`);
  }
  const type = FIELDS[name as FieldName];
  if (name === "input_image" || name === "mask_image") {
    const files = filesOf(name, value);
    return tensor(name, type, { bytesContents: files }, files.length);
  }
  switch (type) {
    case "BYTES":
      if (typeof value !== "string") throw invalid(`${name} is ${value}, must be text`);
      return tensor(name, type, { bytesContents: [Buffer.from(value)] });
    case "INT64":
      return tensor(name, type, { int64Contents: [integer(name, value, 64)] });
    case "INT32":
      return tensor(name, type, { intContents: [Number(integer(name, value, 32))] });
    case "FP32":
      if (typeof value !== "number") throw invalid(`${name} is ${value}, must be a number`);
      if (Number.isFinite(value) && (!Number.isFinite(Math.fround(value)) || (value !== 0 && Math.fround(value) === 0))) {
        throw invalid(`${name} is ${value}, must be a number that 32 bits hold`);
      }
      return tensor(name, type, { fp32Contents: [value] });
    case "BOOL":
      if (typeof value !== "boolean") throw invalid(`${name} is ${value}, must be true or false`);
      return tensor(name, type, { boolContents: [value] });
  }
}

function filesOf(name: keyof Pictures, value: unknown): Buffer[] {
  const files: unknown[] = name === "input_image" && Array.isArray(value) ? value : [value];
  const wanted = `the bytes of a picture file${name === "input_image" ? ", or an array of them" : ""}`;
  if (files.length === 0) throw invalid(`${name} is empty, must be ${wanted}`);
  return files.map((file) => {
    if (file instanceof Uint8Array) return Buffer.from(file.buffer, file.byteOffset, file.byteLength);
    throw invalid(`${name} is ${inspect(file, BRIEF)}, must be ${wanted}`);
  });
}

const BRIEF = { depth: 0, maxArrayLength: 3, maxStringLength: 60, breakLength: Infinity };

function integer(name: string, value: unknown, bits: number): bigint {
  const exact = typeof value === "bigint" || Number.isSafeInteger(value) ? BigInt(value as bigint | number) : undefined;
  if (exact === undefined || exact !== BigInt.asIntN(bits, exact)) {
    throw invalid(`${name} is ${value}, must be an integer of ${bits} bits, as a bigint if a number is not exact`);
  }
  return exact;
}

const invalid = (message: string) => new GenerationError("INVALID_ARGUMENT", message);

const outputsOf = (response: ModelInferResponse) =>
  new Map(
    response.outputs.map(({ name, shape }, index) => [name, { shape, raw: response.rawOutputContents[index]! }]),
  );

function rawOf(response: ModelInferResponse, name: string): Buffer {
  const output = outputsOf(response).get(name);
  if (output) return output.raw;
  throw new GenerationError(
    "INTERNAL",
    `the answer has no output ${name}, must be of a model that triton-taylorseer serves`,
  );
}

/** Whether a response of a stream has its result or its error: no other has a report. */
export const isLast = (response: ModelInferResponse) => rawOf(response, "report").length > 4;

/** The progress or the result in a response of a stream. Throws the GenerationError that it carries. */
export function updateOf(response: ModelInferResponse): Progress | Generation {
  const text = (name: string) => rawOf(response, name).subarray(4); // one string after its length
  const number = (name: string) => rawOf(response, name).readInt32LE();
  if (!isLast(response)) {
    const preview = outputsOf(response).get("preview");
    const position = outputsOf(response).get("queue_position"); // older servers do not tell it
    const [height = 0, width = 0] = (preview?.shape ?? []).map(Number);
    return {
      kind: "progress",
      step: number("step"),
      numSteps: number("num_steps"),
      queuePosition: position?.raw.readInt32LE() ?? 0,
      ...(preview && height > 0 && { preview: { height, width, data: preview.raw } }),
    };
  }
  const written = text("report").toString();
  const report = JSON.parse(written) as Report & { error?: { code: string; message: string } };
  if (report.error) throw errorOf(report.error.code, report.error.message);
  return new Generation(Buffer.from(text("b64_json").toString("latin1"), "base64"), report, seedOf(written));
}

/** The seed in a report's JSON, all digits of it; in a text within the report the quotes would be escaped. */
function seedOf(report: string): bigint | undefined {
  const digits = /(?<!\\)"seed":\s*(\d+)/.exec(report)?.[1];
  return digits === undefined ? undefined : BigInt(digits);
}

/** The error for a message and a code, Triton's or gRPC's. */
export function errorOf(code: string, message: string): GenerationError {
  if (message.startsWith("DEADLINE")) return new GenerationError("DEADLINE_EXCEEDED", message);
  if (/unknown model/i.test(message)) return new GenerationError("UNKNOWN_MODEL", message);
  const name = code === "INVALID_ARG" ? "INVALID_ARGUMENT" : code;
  const known: ErrorCode[] = ["INVALID_ARGUMENT", "UNAVAILABLE", "CANCELLED", "DEADLINE_EXCEEDED"];
  return new GenerationError(known.find((each) => each === name) ?? "INTERNAL", message);
}

/** The error of a call that gRPC has ended. */
export function errorOfCall(error: { code?: number; details?: string; message: string }, url: string): GenerationError {
  const message = error.details ?? error.message;
  if (error.code === status.CANCELLED) return new GenerationError("CANCELLED", "cancelled by the client");
  if (error.code === status.DEADLINE_EXCEEDED) {
    return new GenerationError("DEADLINE_EXCEEDED", `${url} gave no picture within the client's time limit`);
  }
  if (/No connection established.*(Protocol error|Parse Error)/.test(message)) {
    return new GenerationError(
      "UNAVAILABLE",
      `what listens at ${url} does not speak gRPC: name the server's gRPC port, by default 8001`,
    );
  }
  if (/no connection established|name resolution failed|failed to connect/i.test(message)) {
    return new GenerationError(
      "UNAVAILABLE",
      `no server answers at ${url}: start one with \`triton-taylorseer serve\``,
    );
  }
  return errorOf(status[error.code ?? status.UNKNOWN] ?? "", message);
}
