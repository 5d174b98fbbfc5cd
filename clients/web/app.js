// The page's form: what the models take, and what is sent. The other files hold what it is made of.

import { call, Refused } from "./http.js";
import { isMasked, maskFile, offerMask, whenMaskChanged } from "./mask.js";
import { add, pictures, takeAtMost, whenChanged } from "./pictures.js";
import { start } from "./runs.js";
import { mostPictures, taskFor, whyNot } from "./tasks.js";
import { say } from "./telling.js";

const form = document.querySelector("#form");
const runs = document.querySelector("#runs");
const server = document.querySelector("#server");
const unlock = document.querySelector("#unlock");
const inputs = document.querySelector("#inputs");
const models = new Map(); // name -> { parameters, tasks }
const NUMBERS = new Set(["num_inference_steps", "guidance_scale", "width", "height", "num_frames", "class_label", "strength",
  "cache_interval", "cache_order", "cache_warmup_steps", "cache_max_error", "deadline_ms"]);
const MAX_SEED = 2n ** 63n - 1n; // above 2^53 a number of JavaScript would be another seed

// Models

async function findModels() {
  unlock.hidden = true;
  try {
    const { data } = await (await call("/v1/models")).json();
    models.clear();
    for (const { id, parameters, tasks } of data) models.set(id, { parameters, tasks: tasks ?? [] });
    form.model.replaceChildren(...data.map(({ id }) => new Option(id)));
    server.textContent = data.length ? `${data.length === 1 ? "1 model is" : `${data.length} models are`} ready` : "No model is ready.";
    showModel();
  } catch (error) {
    unlock.hidden = error.status !== 401;
    server.textContent = error instanceof Refused ? error.message : "The server cannot be reached.";
  }
}

function showModel() {
  if (!models.has(form.model.value)) return;
  const { parameters, tasks } = chosenModel();
  const defaults = { num_inference_steps: "50", guidance_scale: "3.5", num_frames: "1" };
  for (const [name, fallback] of Object.entries(defaults)) form[name].placeholder = parameters[name] ?? fallback;
  showBounds(parameters);
  show("prompt", parameters.takes_prompt !== "false");
  show("class_label", parameters.takes_prompt === "false");
  show("num_frames", Number(parameters.max_frames ?? 1) > 1);
  showPresets(parameters);
  const most = mostPictures(tasks);
  takeAtMost(most);
  inputs.hidden = inputs.disabled = most === 0;
  runs.classList.toggle("ends", most === 0); // no result can be used as an input
  showPictures();
}

function chosenModel() {
  return models.get(form.model.value) ?? { parameters: {}, tasks: [] };
}

function showBounds(parameters) {
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
}

function showPresets(parameters) {
  const presets = Object.keys(parameters).filter((name) => name.startsWith("cache_preset_")).map((name) => name.slice(13));
  const chosen = parameters.cache_preset ? [parameters.cache_preset] : [];
  const names = [...new Set(["default", "paper", ...presets, ...chosen])];
  document.querySelector("#presets").replaceChildren(...names.map((name) => new Option(name)));
}

function show(field, visible) {
  form.querySelector(`[data-for=${field}]`).hidden = !visible;
  form[field].disabled = !visible; // what is not seen is not sent, and keeps nobody from sending
}

// What follows from the pictures in the form

let given = []; // the pictures that are in it

function showPictures() {
  const { parameters, tasks } = chosenModel();
  const used = inputs.hidden ? [] : given;
  offerMask(used.length && taskFor(tasks, used.length, true) ? used[0] : null);
  form.width.placeholder = used[0]?.width ?? parameters.width ?? "1024";
  form.height.placeholder = used[0]?.height ?? parameters.height ?? "1024";
  showStrength();
}

function showStrength() {
  const { parameters, tasks } = chosenModel();
  const strength = taskFor(tasks, given.length, isMasked())?.strength ?? null;
  show("strength", given.length > 0 && strength !== null);
  if (!isSet(form.strength) && strength !== null) form.strength.value = parameters.strength ?? strength;
  document.querySelector("#strength-number").textContent = Number(form.strength.value).toFixed(2);
}

/** Whether a slider was moved. Until then the model's own value holds, which may lie between two of the slider's. */
function isSet(slider) {
  return slider.dataset.set !== undefined;
}

// Requests

function fieldsOf(used) {
  const fields = {};
  for (const [name, text] of new FormData(form)) {
    if (text === "" || name === "compare" || (name === "strength" && !isSet(form.strength))) continue;
    fields[name] = NUMBERS.has(name) ? Number(text) : text;
  }
  fields.seed = BigInt(fields.seed ?? Math.floor(Math.random() * 1e9)); // the same for both pictures of a pair
  return used.length ? sizedLike(fields) : sized(fields);
}

function sized(fields) {
  const { width = Number(form.width.placeholder), height = Number(form.height.placeholder), ...others } = fields;
  return { ...others, size: `${width}x${height}` };
}

/** A size that is not entered follows from the picture, and a side that is not entered from the other. */
function sizedLike(fields) {
  return fields.width && fields.height ? sized(fields) : fields;
}

/** What is wrong with the form, as a sentence; empty if nothing is. */
function problemOf(fields, used) {
  const needed = form.prompt.disabled ? "class_label" : "prompt";
  const { tasks } = chosenModel();
  if (fields[needed] === undefined) return needed === "prompt" ? "Enter a prompt." : "Enter a class label.";
  if (fields.seed > MAX_SEED) return `Seed must be at most ${MAX_SEED}.`;
  if (tasks.length && !taskFor(tasks, used.length, isMasked())) return whyNot(tasks, used.length, isMasked());
  return "";
}

async function send() {
  const used = inputs.hidden ? [] : await pictures();
  const fields = fieldsOf(used);
  const problem = problemOf(fields, used);
  if (problem) return say(problem);
  try {
    start({ fields, pictures: used, mask: maskFile() }, form.compare.checked, useAsInput);
  } catch (error) {
    say(error.message);
  }
}

async function useAsInput(file) {
  await add([file]);
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  form.scrollIntoView({ behavior: still ? "instant" : "smooth" });
  form.querySelector("[data-for]:not([hidden]) input").focus({ preventScroll: true });
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  say("");
  await found;
  if (!models.size) await (found = findModels()); // perhaps it has them now, or a key
  if (!models.size) return void say(server.textContent);
  await send();
});
// A field that keeps the form from being sent must be seen.
form.addEventListener("invalid", ({ target }) => target.closest("details")?.setAttribute("open", ""), true);
form.model.addEventListener("change", showModel);
form.strength.addEventListener("input", () => {
  form.strength.dataset.set = "";
  showStrength();
});
whenMaskChanged(showStrength);
whenChanged((pictures) => {
  given = pictures;
  showPictures();
});
unlock.addEventListener("click", () => { found = findModels(); });
let found = findModels();
