/** Where a server is: what people write as its URL, and what gRPC takes. */

const GRPCS_OWN = /^(dns|ipv4|ipv6|unix|unix-abstract|xds):/i; // names that gRPC resolves itself stay as they are
const TLS_OF: Record<string, boolean> = { http: false, https: true, grpc: false, grpcs: true };

export interface Endpoint {
  /** host:port, or a name of gRPC's own as dns:///host:port. */
  target: string;
  tls: boolean;
}

/**
 * Reads host:port, perhaps with http://, https://, grpc:// or grpcs:// before it, or a name of gRPC's own.
 *
 * Throws a TypeError for anything else. https:// and grpcs:// stand for TLS.
 */
export function endpointOf(url: string, tls: boolean): Endpoint {
  const text = url.trim();
  if (GRPCS_OWN.test(text)) return { target: text, tls };
  const [, scheme = "grpc", rest = ""] = /^(?:([^:/]*):\/\/)?(.*?)\/?$/.exec(text) ?? [];
  const [, host, digits] = /^(\[[^[\]]+\]|[^[\]:/@]+)(?::(\d{1,5}))?$/.exec(rest) ?? [];
  const secure = tls || TLS_OF[scheme.toLowerCase()];
  const port = Number(digits ?? (secure ? 443 : 0));
  if (secure === undefined || host === undefined || port < 1 || port > 65535) {
    throw new TypeError(`url is '${url}', must be HOST:PORT of the server's gRPC, for example localhost:8001`);
  }
  return { target: `${host}:${port}`, tls: secure };
}

/** gRPC's settings for a target. */
export function channelOptions(target: string): Record<string, string | number> {
  return {
    "grpc.max_receive_message_length": -1, // a picture may have more than gRPC's 4 MiB
    // Without it, all calls go over one connection, to one of several servers.
    ...(/^(dns|ipv4|ipv6):/.test(target) && { "grpc.service_config": ROUND_ROBIN }),
    ...(isLocal(target) && { "grpc.enable_http_proxy": 0 }),
  };
}

const ROUND_ROBIN = JSON.stringify({ loadBalancingConfig: [{ round_robin: {} }] });

/** Whether a target is on this machine; a proxy of the environment is for others. */
function isLocal(target: string): boolean {
  if (/^unix/i.test(target)) return true;
  const hosts = target.replace(/^(dns|ipv4|ipv6):(\/\/[^/]*\/)?/i, "").split(",");
  return hosts.every((each) => /^(localhost|127(\.\d+){3}|\[::1\])(:\d+)?$/i.test(each));
}
