/** Talks to one model over gRPC. */

import { credentials, Metadata, type ServiceError } from "@grpc/grpc-js";

import { channelOptions, endpointOf } from "./endpoint.js";
import { GRPCInferenceServiceClient, type ModelInferResponse } from "./generated/grpc_service.js";
import {
  errorOf,
  errorOfCall,
  type Fields,
  Generation,
  GenerationError,
  isLast,
  type Progress,
  requestOf,
  updateOf,
} from "./messages.js";

export * from "./messages.js";

const IDLE_TIMEOUT_MS = 30_000;
const TRANSFER_PATIENCE = 10; // a request or a video may have many megabytes, and nothing else arrives while they travel

export interface ClientOptions {
  /**
   * host:port of the server's gRPC endpoint, perhaps with grpc:// or http:// before it, or with grpcs:// or https://
   * for TLS; dns:///host:port takes turns between all addresses of the name.
   */
  url?: string;
  /** The model's name. */
  model?: string;
  /** Use TLS, for example with a proxy. */
  tls?: boolean;
  /** Certificates, in PEM, of the authorities that are trusted in place of gRPC's own. */
  rootCertificates?: Buffer;
}

export interface CallOptions {
  /** Cancels the request at the server. */
  signal?: AbortSignal;
  /** Milliseconds after which the client gives up. */
  timeoutMs?: number;
  /**
   * Milliseconds of silence after which a stream ends, 30 s by default; Infinity for never. The server sends a sign of
   * life every 5 s. Request and result may take ten times as long to travel.
   */
  idleTimeoutMs?: number;
  /** Names the request in Triton's traces, its verbose log and its own errors. */
  requestId?: string;
}

/** Carries any number of requests at once over one connection. */
export class Client {
  readonly #url: string;
  readonly #model: string;
  readonly #stub: GRPCInferenceServiceClient;

  /** Throws a TypeError if the URL is none. */
  constructor({ url = "localhost:8001", model = "emoji", tls = false, rootCertificates }: ClientOptions = {}) {
    const endpoint = endpointOf(url, tls || rootCertificates !== undefined);
    this.#url = url;
    this.#model = model;
    this.#stub = new GRPCInferenceServiceClient(
      endpoint.target,
      endpoint.tls ? credentials.createSsl(rootCertificates) : credentials.createInsecure(),
      channelOptions(endpoint.target),
    );
  }

  /** Closes the connection. */
  close(): void {
    this.#stub.close();
  }

  /** Makes a picture or a video. Throws a GenerationError. */
  async generate(fields: Fields, options: CallOptions = {}): Promise<Generation> {
    for await (const update of this.stream(fields, options)) {
      if (update instanceof Generation) return update;
    }
    throw new Error("a stream ends with a Generation or throws");
  }

  /**
   * Makes a picture or a video and reports its progress: any number of Progress, then one Generation.
   *
   * Leaving the loop early cancels the request at the server, and so does the signal. Throws a GenerationError.
   */
  async *stream(fields: Fields, options: CallOptions = {}): AsyncGenerator<Progress | Generation, void, undefined> {
    const request = { ...requestOf(this.#model, fields), id: options.requestId ?? "" };
    if (options.signal?.aborted) throw new GenerationError("CANCELLED", "cancelled before it was sent");
    const deadline = options.timeoutMs === undefined ? {} : { deadline: Date.now() + options.timeoutMs };
    const call = this.#stub.modelStreamInfer(new Metadata(), deadline);
    const cancel = () => call.cancel();
    options.signal?.addEventListener("abort", cancel, { once: true });
    call.on("error", () => {}); // the loop throws it; after the loop it is our own cancellation
    const silence = new Silence(options.idleTimeoutMs ?? IDLE_TIMEOUT_MS, cancel);
    let last: ModelInferResponse | undefined;
    let ended = false;
    try {
      call.write(request);
      call.end();
      for await (const { errorMessage, inferResponse } of silence.watched(call)) {
        if (errorMessage) throw errorOf("INTERNAL", errorMessage);
        if (!inferResponse?.outputs.length) continue; // the final flag comes in a response without outputs
        // Result and error are handed on only once the stream has ended: one that is cancelled at this moment stays
        // open in Triton 24.10, which then waits for it when it stops.
        if (isLast(inferResponse)) {
          last = inferResponse;
          continue;
        }
        const update = updateOf(inferResponse) as Progress;
        if (silence.isNews(update)) yield update;
      }
      ended = true;
      if (!last) throw new GenerationError("INTERNAL", `${this.#model}_stream ended without a picture`);
      yield updateOf(last);
    } catch (error) {
      if (silence.broken && last) return yield updateOf(last); // all that was missing is the end
      if (silence.broken) throw silence.error(this.#model);
      throw error instanceof GenerationError ? error : errorOfCall(error as ServiceError, this.#url);
    } finally {
      options.signal?.removeEventListener("abort", cancel);
      if (!ended) call.cancel();
    }
  }
}

/** Ends a stream that falls silent. */
class Silence {
  broken = false;
  readonly #idleMs: number;
  readonly #end: () => void;
  #limitMs: number;
  #step = 0;
  #queuePosition = 0;

  constructor(idleMs: number, end: () => void) {
    this.#idleMs = idleMs;
    this.#limitMs = idleMs * TRANSFER_PATIENCE;
    this.#end = end;
  }

  /** The same updates; the time that their reader takes does not count. */
  async *watched<T>(updates: AsyncIterable<T>): AsyncGenerator<T, void, undefined> {
    let timer = this.#started();
    try {
      for await (const update of updates) {
        clearTimeout(timer);
        yield update;
        timer = this.#started();
      }
    } finally {
      clearTimeout(timer);
    }
  }

  /** Whether progress differs from what was heard before: a sign of life alone is none. */
  isNews({ step, numSteps, preview, queuePosition }: Progress): boolean {
    const isNews = step !== this.#step || queuePosition !== this.#queuePosition || preview !== undefined;
    this.#step = step;
    this.#queuePosition = queuePosition;
    this.#limitMs = this.#idleMs * (step >= numSteps && numSteps > 0 ? TRANSFER_PATIENCE : 1);
    return isNews;
  }

  error(model: string): GenerationError {
    const silent = `${model}_stream has not been heard from for ${this.#limitMs / 1000} s`;
    return new GenerationError("UNAVAILABLE", `${silent}, its process may have ended: try again`);
  }

  #started(): NodeJS.Timeout | undefined {
    if (!(this.#limitMs < 2 ** 31)) return undefined; // what Node can wait for, 25 days
    return setTimeout(() => {
      this.broken = true;
      this.#end();
    }, this.#limitMs);
  }
}
