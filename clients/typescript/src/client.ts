/** Talks to one model over gRPC. */

import { credentials, Metadata, type ServiceError } from "@grpc/grpc-js";

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

const ROUND_ROBIN = JSON.stringify({ loadBalancingConfig: [{ round_robin: {} }] });

export interface ClientOptions {
  /** host:port of the server's gRPC endpoint; dns:///host:port takes turns between all addresses of the name. */
  url?: string;
  /** The model's name. */
  model?: string;
  /** Use TLS, for example with a proxy. */
  tls?: boolean;
}

export interface CallOptions {
  /** Cancels the request at the server. */
  signal?: AbortSignal;
  /** Milliseconds after which the client gives up. */
  timeoutMs?: number;
}

/** Carries any number of requests at once over one connection. */
export class Client {
  readonly #url: string;
  readonly #model: string;
  readonly #stub: GRPCInferenceServiceClient;

  constructor({ url = "localhost:8001", model = "emoji", tls = false }: ClientOptions = {}) {
    this.#url = url;
    this.#model = model;
    this.#stub = new GRPCInferenceServiceClient(url, tls ? credentials.createSsl() : credentials.createInsecure(), {
      "grpc.max_receive_message_length": -1, // a picture may have more than gRPC's 4 MiB
      // Without it, all calls go over one connection, to one of several servers.
      ...(/^(dns|ipv4|ipv6):/.test(url) && { "grpc.service_config": ROUND_ROBIN }),
    });
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
    const request = requestOf(this.#model, fields);
    if (options.signal?.aborted) throw new GenerationError("CANCELLED", "cancelled before it was sent");
    const deadline = options.timeoutMs === undefined ? {} : { deadline: Date.now() + options.timeoutMs };
    const call = this.#stub.modelStreamInfer(new Metadata(), deadline);
    const cancel = () => call.cancel();
    options.signal?.addEventListener("abort", cancel, { once: true });
    call.on("error", () => {}); // the loop throws it; after the loop it is our own cancellation
    let last: ModelInferResponse | undefined;
    let ended = false;
    try {
      call.write(request);
      call.end();
      for await (const { errorMessage, inferResponse } of call) {
        if (errorMessage) throw errorOf("INTERNAL", errorMessage);
        if (!inferResponse?.outputs.length) continue; // the final flag comes in a response without outputs
        // Result and error are handed on only once the stream has ended: one that is cancelled at this moment stays
        // open in Triton 24.10, which then waits for it when it stops.
        if (isLast(inferResponse)) last = inferResponse;
        else yield updateOf(inferResponse);
      }
      ended = true;
      if (!last) throw new GenerationError("INTERNAL", `${this.#model}_stream ended without a picture`);
      yield updateOf(last);
    } catch (error) {
      throw error instanceof GenerationError ? error : errorOfCall(error as ServiceError, this.#url);
    } finally {
      options.signal?.removeEventListener("abort", cancel);
      if (!ended) call.cancel();
    }
  }
}
