// The page: sends requests to /v1/images/generations as streams, shows their progress, and compares pictures.

const form = document.querySelector("#form");
const runs = document.querySelector("#runs");
const problem = document.querySelector("#problem");
const server = document.querySelector("#server");
const unlock = document.querySelector("#unlock");
const news = document.querySelector("#news");
const models = new Map();
const NUMBERS = new Set(["num_inference_steps", "guidance_scale", "width", "height", "num_frames", "class_label",
  "cache_interval", "cache_order", "cache_warmup_steps", "cache_max_error", "deadline_ms"]);
const CACHE_OFF = { cache_interval: 1 };
const MAX_SEED = 2n ** 63n - 1n; // above 2^53 a number of JavaScript would be another seed

// HTTP

class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

async function call(path, options = {}) {
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

/** The events of a stream: server-sent events in the body of a POST, which EventSource cannot read. */
async function* events(response) {
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

// Models

async function findModels() {
  unlock.hidden = true;
  try {
    const { data } = await (await call("/v1/models")).json();
    models.clear();
    for (const { id, parameters } of data) models.set(id, parameters);
    form.model.replaceChildren(...data.map(({ id }) => new Option(id)));
    server.textContent = data.length ? `${data.length === 1 ? "1 model is" : `${data.length} models are`} ready` : "No model is ready.";
    showModel();
  } catch (error) {
    unlock.hidden = error.status !== 401;
    server.textContent = error instanceof Refused ? error.message : "The server cannot be reached.";
  }
}

function showModel() {
  const parameters = models.get(form.model.value);
  if (!parameters) return;
  const defaults = { num_inference_steps: "50", guidance_scale: "3.5", width: "1024", height: "1024", num_frames: "1" };
  for (const [name, fallback] of Object.entries(defaults)) form[name].placeholder = parameters[name] ?? fallback;
  const size = { min: parameters.min_size ?? 16, max: parameters.max_size ?? 2048, step: parameters.size_multiple ?? 16 };
  const bounds = {
    width: size,
    height: size,
    num_inference_steps: { max: parameters.max_steps ?? 1000 },
    num_frames: { max: parameters.max_frames ?? 1, step: parameters.frames_multiple ?? 4 },
    class_label: { max: (parameters.num_classes ?? 1000) - 1 },
    prompt: { maxLength: parameters.max_prompt_bytes ?? 8192 },
    negative_prompt: { maxLength: parameters.max_prompt_bytes ?? 8192 },
  };
  for (const [name, limits] of Object.entries(bounds)) Object.assign(form[name], limits);
  show("prompt", parameters.takes_prompt !== "false");
  show("class_label", parameters.takes_prompt === "false");
  show("num_frames", Number(parameters.max_frames ?? 1) > 1);
  const presets = Object.keys(parameters).filter((name) => name.startsWith("cache_preset_")).map((name) => name.slice(13));
  const chosen = parameters.cache_preset ? [parameters.cache_preset] : [];
  const names = [...new Set(["default", "paper", ...presets, ...chosen])];
  document.querySelector("#presets").replaceChildren(...names.map((name) => new Option(name)));
}

function show(field, visible) {
  form.querySelector(`[data-for=${field}]`).hidden = !visible;
  form[field].disabled = !visible; // what is not seen is not sent, and keeps nobody from sending
}

// Pictures

function request() {
  const fields = {};
  for (const [name, text] of new FormData(form)) {
    if (text === "" || name === "compare") continue;
    fields[name] = NUMBERS.has(name) ? Number(text) : text;
  }
  fields.seed = BigInt(fields.seed ?? Math.floor(Math.random() * 1e9)); // the same for both pictures of a pair
  const size = { width: Number(form.width.placeholder), height: Number(form.height.placeholder), ...fields };
  delete fields.width;
  delete fields.height;
  return { ...fields, size: `${size.width}x${size.height}` };
}

/** The JSON of a request: its seed is exact, which JSON.stringify cannot write. */
function bodyOf({ seed, ...fields }) {
  return JSON.stringify(fields).replace("{", `{"seed":${seed},`);
}

let turn = Promise.resolve(); // pictures are made one after the other: side by side they would share the time that is compared

function inTurn(work) {
  const mine = turn.then(work);
  turn = mine.catch(() => {});
  return mine;
}

async function start(fields, compare) {
  const article = document.querySelector("#run").content.firstElementChild.cloneNode(true);
  const heading = article.querySelector("h2");
  const details = document.createElement("small");
  details.textContent = ` ${fields.size}, seed ${fields.seed}`;
  heading.append(subjectOf(fields), details);
  const pair = article.querySelector(".pair");
  runs.prepend(article);
  document.querySelector("#empty").hidden = true;
  // With a schedule of its own an interval of 1 would not turn the cache off.
  const uncached = { ...withoutCache(fields), ...CACHE_OFF };
  const kinds = compare ? [["cache off", uncached], ["cache on", fields]] : [["", fields]];
  const [off, on] = await Promise.all(kinds.map(([name, settings]) => run(pair, name, settings)));
  if (!on || !off || on.video) return;
  const distance = psnr(on.image, off.image);
  const faster = off.report.denoise_s / on.report.denoise_s;
  on.state.textContent += Number.isFinite(distance)
    ? `; PSNR ${distance.toFixed(1)} dB to the uncached picture, denoised ${faster.toFixed(1)} times as fast`
    : "; identical to the uncached picture";
  on.tell(`done, ${on.state.textContent}`);
}

function subjectOf(fields) {
  return fields.prompt ?? `class ${fields.class_label}`;
}

function withoutCache(fields) {
  return Object.fromEntries(Object.entries(fields).filter(([name]) => !name.startsWith("cache_")));
}

async function run(pair, name, fields) {
  const figure = document.querySelector("#picture").content.firstElementChild.cloneNode(true);
  const [image, video, bar, state] = ["img", "video", "progress", ".state"].map((part) => figure.querySelector(part));
  const [width, height] = fields.size.split("x").map(Number);
  figure.style.setProperty("--ratio", `${width} / ${height}`);
  figure.style.setProperty("--width", `${width}px`);
  figure.querySelector("strong").textContent = name;
  image.classList.toggle("small", Math.max(width, height) <= 128);
  pair.append(figure);
  const stopping = new AbortController();
  const cancel = figure.querySelector(".cancel");
  const title = [subjectOf(fields), name].filter(Boolean).join(", ");
  const tell = announcer(title);
  image.alt = title;
  for (const [part, verb] of [[bar, ""], [cancel, "Cancel "], [figure.querySelector(".save"), "Save "]]) {
    part.setAttribute("aria-label", `${verb}${title}`);
  }
  cancel.addEventListener("click", () => stopping.abort());
  const show = (b64, type) => {
    const target = type === "video/mp4" ? video : image;
    target.src = `data:${type};base64,${b64}`;
    target.hidden = false;
  };
  const made = async () => {
    stopping.signal.throwIfAborted(); // while it waited for its turn
    state.textContent = "waiting";
    tell("started");
    const response = await call("/v1/images/generations", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: bodyOf({ ...fields, stream: true, progress: true, partial_images: 3 }),
      signal: stopping.signal,
    });
    for await (const event of events(response)) {
      stopping.signal.throwIfAborted(); // what is on its way no longer counts
      if (event.error) throw new Refused(event.error.message);
      if (event.type === "image_generation.progress") {
        bar.value = event.step / event.num_steps;
        state.textContent = `step ${event.step} of ${event.num_steps}`;
        tell.step(event.step, event.num_steps);
      } else if (event.type === "image_generation.partial_image") {
        image.classList.add("unfinished");
        show(event.b64_json, "image/png");
      } else if (event.type === "image_generation.completed") {
        const moving = event.output_format === "mp4";
        image.classList.remove("unfinished");
        image.hidden = moving;
        const type = moving ? "video/mp4" : `image/${event.output_format}`;
        show(event.b64_json, type);
        if (!moving) await image.decode();
        stopping.signal.throwIfAborted();
        finish(figure, event, type, [subjectOf(fields).slice(0, 40), name, fields.seed]);
        tell(`done, ${state.textContent}`);
        return { report: event.report, image, state, tell, video: moving };
      }
    }
    throw new Refused("The connection ended before the picture was done.");
  };
  const given_up = new Promise((_, reject) => {
    stopping.signal.addEventListener("abort", () => reject(stopping.signal.reason), { once: true });
  });
  try {
    return await Promise.race([inTurn(made), given_up]);
  } catch (error) {
    const cancelled = error.name === "AbortError";
    state.textContent = cancelled ? "cancelled" : error instanceof Refused ? error.message : "The server cannot be reached.";
    tell(state.textContent);
    figure.classList.toggle("failed", !cancelled);
    figure.classList.toggle("cancelled", cancelled);
    bar.hidden = true;
    return null;
  } finally {
    putAway(cancel, figure);
  }
}

/** Hides a button that has done its work, and hands the focus on if it had it. */
function putAway(button, figure) {
  const focused = document.activeElement === button;
  button.hidden = true;
  if (!focused) return;
  const next = figure.querySelector(".save:not([hidden])") ?? figure.closest("article").querySelector(".cancel:not([hidden])");
  (next ?? form.querySelector("[type=submit]")).focus();
}

/** Tells listeners of a picture's start, quarters and end; its steps would talk without end. */
function announcer(title) {
  let quarter = 0;
  const tell = (what) => { news.textContent = `${title}: ${what}`; };
  tell.step = (step, steps) => {
    const now = Math.floor((4 * step) / steps);
    if (now > quarter && now < 4) tell(`${25 * now} %`);
    quarter = Math.max(quarter, now);
  };
  return tell;
}

function finish(figure, event, type, name) {
  const { report } = event;
  figure.classList.add("done");
  figure.querySelector("progress").hidden = true;
  const full = report.full_steps.length;
  figure.querySelector(".state").textContent = [
    `${report.total_s.toFixed(2)} s, ${full} of ${report.num_steps} steps full`, ...(report.warnings ?? []),
  ].join("; ");
  const save = figure.querySelector(".save");
  save.href = `data:${type};base64,${event.b64_json}`;
  save.download = `${name.join("-").replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-/, "")}.${event.output_format}`;
  save.hidden = false;
}

/** Peak signal-to-noise ratio of two pictures of one size, in dB; infinite if they are equal. */
function psnr(one, other) {
  const [a, b] = [pixels(one), pixels(other)];
  let sum = 0;
  for (let i = 0; i < a.length; i += 4) {
    for (let channel = 0; channel < 3; channel++) sum += (a[i + channel] - b[i + channel]) ** 2;
  }
  return 10 * Math.log10(255 ** 2 / (sum / (0.75 * a.length)));
}

function pixels(image) {
  const canvas = document.createElement("canvas");
  canvas.width = image.naturalWidth;
  canvas.height = image.naturalHeight;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  return context.getImageData(0, 0, canvas.width, canvas.height).data;
}

function say(message) {
  problem.textContent = message;
  problem.hidden = !message;
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  say("");
  await found;
  if (!models.size) await (found = findModels()); // perhaps it has them now, or a key
  if (!models.size) return void say(server.textContent);
  const fields = request();
  const needed = form.prompt.disabled ? "class_label" : "prompt";
  if (fields[needed] === undefined) return void say(needed === "prompt" ? "Enter a prompt." : "Enter a class label.");
  if (fields.seed > MAX_SEED) return void say(`Seed must be at most ${MAX_SEED}.`);
  start(fields, form.compare.checked);
});
// A field that keeps the form from being sent must be seen.
form.addEventListener("invalid", ({ target }) => target.closest("details")?.setAttribute("open", ""), true);
form.model.addEventListener("change", showModel);
unlock.addEventListener("click", () => { found = findModels(); });
let found = findModels();
