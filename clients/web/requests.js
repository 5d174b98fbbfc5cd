// One request: how it is sent, and the events that come back.

import { call, events, Refused } from "./http.js";

const LOST = "The connection ended before the picture was done.";

/**
 * The events of one picture on its way, the completed one last.
 *
 * job: { fields, pictures, mask }, fields as of the API without a stream's, mask a File or null.
 * Throws Refused with the server's sentence, an AbortError once the signal is aborted, or another error if no server answers.
 */
export async function* made(job, signal) {
  const [path, options] = requestOf(job);
  const response = await call(path, { method: "POST", ...options, signal });
  try {
    for await (const event of events(response)) {
      signal.throwIfAborted(); // what is on its way no longer counts
      if (event.error) throw new Refused(event.error.message);
      yield event;
      if (event.type.endsWith(".completed")) return;
    }
  } catch (error) {
    signal.throwIfAborted();
    throw error instanceof Refused ? error : new Refused(LOST);
  }
  throw new Refused(LOST);
}

function requestOf({ fields, pictures, mask }) {
  const all = { ...fields, stream: true, progress: true, partial_images: 3 };
  return pictures.length ? ["/v1/images/edits", formOf(all, pictures, mask)] : ["/v1/images/generations", jsonOf(all)];
}

/** A request with JSON: its seed is exact, which JSON.stringify cannot write. */
function jsonOf({ seed, ...fields }) {
  const body = JSON.stringify(fields).replace("{", `{"seed":${seed},`);
  return { headers: { "Content-Type": "application/json" }, body };
}

/** A request with files. The browser's own FormData would send another prompt: each new line as two characters. */
function formOf(fields, pictures, mask) {
  const boundary = Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16)).join("-");
  const parts = [];
  const add = (name, value, about) => {
    parts.push(`--${boundary}\r\nContent-Disposition: form-data; name="${name}"${about}\r\n\r\n`, value, "\r\n");
  };
  const addFile = (name, file) => add(name, file, `; filename="${quoted(file.name)}"\r\nContent-Type: ${file.type}`);
  for (const { file } of pictures) addFile(pictures.length > 1 ? "image[]" : "image", file);
  if (mask) addFile("mask", mask);
  for (const [name, value] of Object.entries(fields)) add(name, String(value), "");
  parts.push(`--${boundary}--\r\n`);
  return { headers: { "Content-Type": `multipart/form-data; boundary=${boundary}` }, body: new Blob(parts) };
}

function quoted(name) {
  return name.replace(/[\r\n"]/g, (letter) => encodeURIComponent(letter));
}
