// Requests to the server, with the key that it may ask for, and the events of its streams.

/** The server's own sentence about what it does not do. */
export class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
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
    throw new Refused(answer?.error?.message ?? `The server answered ${response.status}.`, response.status);
  }
}

/** The events of a stream: server-sent events in the body of a POST, which EventSource cannot read. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const data = block.split("\n").filter((line) => line.startsWith("data: ")).map((line) => line.slice(6)).join("\n");
      if (data) yield JSON.parse(data);
    }
  }
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
