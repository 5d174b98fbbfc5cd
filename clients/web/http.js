// Requests to the server, with the key that it may ask for, and the events of its streams.

const SILENT_MS = 60_000; // a stream sends something at least every 15 seconds; in silence its connection is gone

/** The server's own sentence about what it does not do; `retryMs` says after how long it may, if that was told. */
export class Refused extends Error {
  constructor(message, { status, retryMs } = {}) {
    super(message);
    Object.assign(this, { status, retryMs });
  }
}

export async function call(path, options = {}) {
  for (;;) {
    const key = sessionStorage.getItem("key");
    const headers = { ...(options.headers ?? {}), ...(key ? { Authorization: `Bearer ${key}` } : {}) };
    const response = await fetch(path, { ...options, headers });
    if (response.ok) return response;
    if (response.status === 401) {
      if (sessionStorage.getItem("key") !== key) continue; // another call has asked for it meanwhile
      sessionStorage.removeItem("key");
      if (await askForKey(key ? "The server does not accept this key." : "")) continue;
    }
    const answer = await response.json().catch(() => null);
    const told = { status: response.status, retryMs: retryMsOf(response.headers) };
    throw new Refused(answer?.error?.message ?? `The server answered ${response.status}.`, told);
  }
}

function retryMsOf(headers) {
  const [ms, seconds] = ["retry-after-ms", "retry-after"].map((name) => Number.parseFloat(headers.get(name)));
  return [ms, 1000 * seconds].find((time) => time > 0);
}

/** The events of a stream: server-sent events in the body of a POST, which EventSource cannot read. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await unlessSilent(reader.read());
      if (done) return;
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        const data = block.split("\n").filter((line) => line.startsWith("data: ")).map((line) => line.slice(6)).join("\n");
        if (data) yield JSON.parse(data);
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // so that the server hears of it
  }
}

async function unlessSilent(reading) {
  let timer;
  const silence = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error("silence")), SILENT_MS);
  });
  return Promise.race([reading, silence]).finally(() => clearTimeout(timer));
}

let asking = null; // one dialog for all calls that wait for the key

/** Whether a key was entered; Esc enters none. */
function askForKey(wrong) {
  asking ??= new Promise((resolve) => {
    const dialog = document.querySelector("#key");
    const [input, alert] = [dialog.querySelector("input"), dialog.querySelector("[role=alert]")];
    input.value = dialog.returnValue = "";
    dialog.addEventListener("close", () => {
      const key = dialog.returnValue === "entered" ? input.value.trim() : "";
      if (key) sessionStorage.setItem("key", key);
      input.value = alert.textContent = "";
      asking = null;
      resolve(key !== "");
    }, { once: true });
    dialog.showModal();
    input.setAttribute("aria-invalid", wrong !== "");
    alert.textContent = wrong; // once it is shown, so that it is announced
  });
  return asking;
}
