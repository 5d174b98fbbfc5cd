/** The command line: npm start -- "red apple, 3d" -o apple.png */

import { readFileSync } from "node:fs";
import { parseArgs } from "node:util";

import { Client, FIELDS, type FieldName, type Fields, Generation, GenerationError } from "./client.js";

const USAGE = `npm start -- PROMPT [-o FILE] [--url HOST:PORT] [--model NAME] [--FIELD VALUE]…

Makes a picture (or, with a model of videos, an MP4) and shows its progress; Ctrl-C cancels it.
FIELD is any input of the model, as --seed 7 or --cache-interval 1: ${Object.keys(FIELDS).join(", ")}.
Pictures are files, as --input-image apple.png, which can be repeated.`;

const fieldOptions = Object.fromEntries(
  Object.keys(FIELDS).map((name) => [
    name.replaceAll("_", "-"),
    { type: "string" as const, multiple: name === "input_image" },
  ]),
);

function readArguments(given: string[]) {
  const { values, positionals } = parseArgs({
    args: given,
    allowPositionals: true,
    options: {
      ...fieldOptions,
      output: { type: "string", short: "o", default: "picture.png" },
      url: { type: "string", default: "localhost:8001" },
      model: { type: "string", default: "emoji" },
      help: { type: "boolean", short: "h", default: false },
    },
  });
  if (positionals.length > 1) throw new TypeError(`one prompt is wanted, ${positionals.length} were given: quote it`);
  const fields = Object.keys(FIELDS).flatMap((name) => {
    const given = (values as Record<string, unknown>)[name.replaceAll("_", "-")] as string | string[] | undefined;
    return given === undefined ? [] : [[name, fieldOf(name as FieldName, given)] as const];
  });
  const prompt = positionals.map((text) => ["prompt", text] as const);
  return { ...values, fields: Object.fromEntries([...prompt, ...fields]) as Fields };
}

function fieldOf(name: FieldName, given: string | string[]): unknown {
  if (Array.isArray(given)) return given.map((path) => fileOf(name, path));
  return name === "mask_image" ? fileOf(name, given) : valueOf(name, given);
}

function fileOf(name: FieldName, path: string): Uint8Array {
  try {
    return readFileSync(path);
  } catch (error) {
    throw new TypeError(`${name} is '${path}', must be a file that can be read (${(error as { code?: string }).code})`);
  }
}

function valueOf(name: FieldName, text: string): string | number | bigint | boolean {
  const readable = {
    BYTES: /^/,
    INT64: /^[+-]?\d+$/,
    INT32: /^[+-]?\d+$/,
    FP32: /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i,
    BOOL: /^(true|false)$/,
  }[FIELDS[name]];
  const wanted = { BYTES: "text", INT64: "an integer", INT32: "an integer", FP32: "a number", BOOL: "true or false" };
  if (!readable.test(text)) throw new TypeError(`${name} is '${text}', must be ${wanted[FIELDS[name]]}`);
  switch (FIELDS[name]) {
    case "BYTES":
      return text;
    case "INT64":
      return BigInt(text.replace("+", ""));
    case "BOOL":
      return text === "true";
    default:
      return Number(text);
  }
}

async function main(): Promise<void> {
  const { fields, output, url, model, help } = readArguments(process.argv.slice(2));
  if (help) return console.log(USAGE);
  const interrupt = new AbortController();
  process.once("SIGINT", () => interrupt.abort());
  const show = (text: string) => process.stderr.isTTY && process.stderr.write(`\r\x1b[K${text}`);
  const client = new Client({ url, model });
  try {
    for await (const update of client.stream(fields, { signal: interrupt.signal })) {
      if (update instanceof Generation) {
        await update.save(output);
        const { full_steps, num_steps, total_s } = update.report;
        show("");
        console.log(`${output}: ${full_steps.length} of ${num_steps} steps full, ${total_s.toFixed(2)} s, seed ${update.seed}`);
      } else {
        show(update.queuePosition ? `number ${update.queuePosition} in the queue` : `step ${update.step} of ${update.numSteps}`);
      }
    }
  } finally {
    show("");
    client.close();
  }
}

main().catch((error: Error) => {
  console.error(error.message);
  process.exitCode = error instanceof GenerationError && error.code === "CANCELLED" ? 130 : 1;
});
