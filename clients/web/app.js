// The page: sends requests to /v1/images/generations as streams, shows their progress, and compares pictures.

const form = document.querySelector("#form");
const runs = document.querySelector("#runs");
const problem = document.querySelector("#problem");
const server = document.querySelector("#server");
const models = new Map();
const NUMBERS = new Set(["seed", "num_inference_steps", "guidance_scale", "width", "height", "num_frames", "class_label",
  "cache_interval", "cache_order", "cache_warmup_steps", "cache_max_error", "deadline_ms"]);
const CACHE_OFF = { cache_interval: 1 };

// HTTP

class Refused extends Error {}

async function call(path, options = {}) {
  for (;;) {
    const key = sessionStorage.getItem("key");
    const headers = { ...(options.headers ?? {}), ...(key ? { Authorization: `Bearer ${key}` } : {}) };
    const response = await fetch(path, { ...options, headers });
    if (response.ok) return response;
    if (response.status === 401 && await askForKey()) continue;
    const answer = await response.json().catch(() => null);
    throw new Refused(answer?.error?.message ?? `The server answered ${response.status}.`);
  }
}

let asking = null; // one dialog for all calls that wait for the key

function askForKey() {
  asking ??= new Promise((resolve) => {
    const dialog = document.querySelector("#key");
    dialog.addEventListener("close", () => {
      const key = dialog.querySelector("input").value.trim();
      dialog.querySelector("input").value = "";
      if (key) sessionStorage.setItem("key", key);
      asking = null;
      resolve(key !== "");
    }, { once: true });
    dialog.showModal();
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
  const { data } = await (await call("/v1/models")).json();
  models.clear();
  for (const { id, parameters } of data) models.set(id, parameters);
  form.model.replaceChildren(...data.map(({ id }) => new Option(id)));
  server.textContent = data.length ? `${data.length === 1 ? "1 model is" : `${data.length} models are`} ready` : "No model is ready.";
  showModel();
}

function showModel() {
  const parameters = models.get(form.model.value);
  if (!parameters) return;
  const defaults = { num_inference_steps: "50", guidance_scale: "3.5", width: "1024", height: "1024", num_frames: "1" };
  for (const [name, fallback] of Object.entries(defaults)) form[name].placeholder = parameters[name] ?? fallback;
  for (const name of ["width", "height"]) {
    form[name].min = parameters.min_size ?? 16;
    form[name].max = parameters.max_size ?? 2048;
    form[name].step = parameters.size_multiple ?? 16;
  }
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
}

// Pictures

function request() {
  const fields = {};
  for (const [name, text] of new FormData(form)) {
    const label = form.elements[name].closest("[data-for]");
    if (text === "" || name === "compare" || label?.hidden) continue;
    fields[name] = NUMBERS.has(name) ? Number(text) : text;
  }
  fields.seed ??= Math.floor(Math.random() * 1e9); // the same for both pictures of a pair
  const size = { width: Number(form.width.placeholder), height: Number(form.height.placeholder), ...fields };
  delete fields.width;
  delete fields.height;
  return { ...fields, size: `${size.width}x${size.height}` };
}

function start(fields, compare) {
  const article = document.querySelector("#run").content.firstElementChild.cloneNode(true);
  const heading = article.querySelector("h2");
  const details = document.createElement("small");
  details.textContent = ` ${fields.size}, seed ${fields.seed}`;
  heading.append(fields.prompt ?? `class ${fields.class_label}`, details);
  const pair = article.querySelector(".pair");
  runs.prepend(article);
  document.querySelector("#empty").hidden = true;
  const kinds = compare ? [["cache on", {}], ["cache off", CACHE_OFF]] : [["", {}]];
  const pictures = kinds.map(([name, settings]) => {
    // With a schedule of its own an interval of 1 would not turn the cache off.
    const settled = settings === CACHE_OFF ? { ...withoutCache(fields), ...settings } : fields;
    return run(pair, name, settled);
  });
  if (compare) {
    Promise.all(pictures).then(([on, off]) => {
      if (!on || !off || on.video) return;
      const distance = psnr(on.image, off.image);
      const faster = off.report.denoise_s / on.report.denoise_s;
      on.state.textContent += Number.isFinite(distance)
        ? `; PSNR ${distance.toFixed(1)} dB to the uncached picture, denoised ${faster.toFixed(1)} times as fast`
        : "; identical to the uncached picture";
    });
  }
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
  image.alt = `${fields.prompt ?? fields.class_label} ${name}`.trim();
  image.classList.toggle("small", Math.max(width, height) <= 128);
  pair.append(figure);
  const stopping = new AbortController();
  const cancel = figure.querySelector(".cancel");
  cancel.addEventListener("click", () => stopping.abort());
  const show = (b64, type) => {
    const target = type === "video/mp4" ? video : image;
    target.src = `data:${type};base64,${b64}`;
    target.hidden = false;
  };
  try {
    const response = await call("/v1/images/generations", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ ...fields, stream: true, progress: true, partial_images: 3 }),
      signal: stopping.signal,
    });
    for await (const event of events(response)) {
      if (event.error) throw new Refused(event.error.message);
      if (event.type === "image_generation.progress") {
        bar.value = event.step / event.num_steps;
        state.textContent = `step ${event.step} of ${event.num_steps}`;
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
        finish(figure, event, type);
        return { report: event.report, image, state, video: moving };
      }
    }
    throw new Refused("The connection ended before the picture was done.");
  } catch (error) {
    const cancelled = error.name === "AbortError";
    state.textContent = cancelled ? "cancelled" : error instanceof Refused ? error.message : "The server cannot be reached.";
    figure.classList.toggle("failed", !cancelled);
    figure.classList.toggle("cancelled", cancelled);
    bar.hidden = true;
    return null;
  } finally {
    cancel.hidden = true;
  }
}

function finish(figure, event, type) {
  const { report } = event;
  figure.classList.add("done");
  figure.querySelector("progress").hidden = true;
  const full = report.full_steps.length;
  figure.querySelector(".state").textContent = [
    `${report.total_s.toFixed(2)} s, ${full} of ${report.num_steps} steps full`, ...(report.warnings ?? []),
  ].join("; ");
  const save = figure.querySelector(".save");
  save.href = `data:${type};base64,${event.b64_json}`;
  save.download = `${(form.prompt.value || "picture").replace(/\W+/g, "-").slice(0, 40)}-${report.seed}.${event.output_format}`;
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
  if (!models.size) return void say("No model is ready.");
  const fields = request();
  const needed = form.querySelector("[data-for=prompt]").hidden ? "class_label" : "prompt";
  if (fields[needed] === undefined) return void say(needed === "prompt" ? "Enter a prompt." : "Enter a class label.");
  start(fields, form.compare.checked);
});
form.model.addEventListener("change", showModel);
const found = findModels().catch((error) => {
  server.textContent = error instanceof Refused ? error.message : "The server cannot be reached.";
});
