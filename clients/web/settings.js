// The settings of the form: how the model bounds them, their sliders and shapes, and the fields that are sent.

import { chosenModel } from "./models.js";
import { boundsOf, sizesOf } from "./sizes.js";

const form = document.querySelector("#form");
const shapes = document.querySelector("#shapes");
const examples = document.querySelector("#examples");

const NUMBERS = ["num_inference_steps", "guidance_scale", "width", "height", "num_frames", "class_label", "strength", "cache_interval",
  "cache_order", "cache_warmup_steps", "cache_max_error", "deadline_ms"];
const TEXTS = ["prompt", "negative_prompt", "model", "seed", "cache_preset", "cache_predictor", "cache_schedule"];
const DEFAULTS = { num_inference_steps: "50", guidance_scale: "3.5", num_frames: "1" };
const MOST_EXAMPLES = 12;

/** Shows what a model takes, and what it makes of what is left out. */
export function showModelsSettings({ parameters, presets }) {
  for (const [name, fallback] of Object.entries(DEFAULTS)) form[name].placeholder = parameters[name] ?? fallback;
  showBounds(parameters);
  show("prompt", parameters.takes_prompt !== "false");
  show("negative_prompt", parameters.takes_prompt !== "false");
  show("class_label", parameters.takes_prompt === "false");
  show("num_frames", Number(parameters.max_frames ?? 1) > 1);
  document.querySelector("#presets").replaceChildren(...presets.map((name) => new Option(name)));
  showExamples(parameters);
  boundSliders(parameters);
}

function showBounds(parameters) {
  const { min, max, step } = boundsOf(parameters);
  const bounds = {
    width: { min, max, step },
    height: { min, max, step },
    num_inference_steps: { max: parameters.max_steps ?? 1000 },
    num_frames: { max: parameters.max_frames ?? 1, step: parameters.frames_multiple ?? 4 },
    class_label: { max: (parameters.num_classes ?? 1000) - 1 },
    prompt: { maxLength: parameters.max_prompt_bytes ?? 8192 },
    negative_prompt: { maxLength: parameters.max_prompt_bytes ?? 8192 },
  };
  for (const [name, limits] of Object.entries(bounds)) Object.assign(form[name], limits);
}

/** Shows a field, or hides it. */
export function show(field, visible) {
  form.querySelector(`[data-for=${field}]`).hidden = !visible;
  form[field].disabled = !visible; // what is not seen is not sent, and keeps nobody from sending
}

function showExamples(parameters) {
  const prompts = new Set((parameters.examples ?? "").split("\n").map((each) => each.trim()).filter(Boolean));
  examples.replaceChildren(...[...prompts].slice(0, MOST_EXAMPLES).map((prompt) => {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: prompt });
    button.addEventListener("click", () => {
      form.prompt.value = prompt;
      fitTexts();
      form.prompt.focus();
    });
    return button;
  }));
  examples.hidden = !prompts.size;
}

// Texts that grow

/** Gives texts their height, where the browser does not do so itself. */
export function fitTexts() {
  if (CSS.supports("field-sizing", "content")) return;
  for (const text of form.querySelectorAll("textarea")) {
    text.style.height = "auto";
    text.style.height = `${text.scrollHeight + 2}px`;
  }
}

// Sliders beside numbers

function boundSliders(parameters) {
  const most = Number(parameters.max_steps ?? 1000);
  const steps = Number(form.num_inference_steps.placeholder);
  sliderOf("num_inference_steps").max = Math.min(most, Math.max(10, 2 * steps)); // near the default a slider is exact
  sliderOf("guidance_scale").max = Math.max(10, 2 * Number(form.guidance_scale.placeholder));
  showSliders();
}

function sliderOf(name) {
  return form.querySelector(`[data-slides=${name}]`);
}

function showSliders() {
  for (const slider of form.querySelectorAll("[data-slides]")) {
    const { value, placeholder } = form[slider.dataset.slides];
    slider.value = value || placeholder;
    slider.setAttribute("aria-valuetext", value || `${placeholder}, the model's`);
  }
}

// Shapes

/** Shows the sizes by their shapes; `first` is the picture that an edit begins with, if any. */
export function showShapes(first) {
  const { parameters } = chosenModel();
  const sizes = sizesOf(parameters);
  const own = { name: first ? "as the picture" : "default", width: "", height: "" };
  const ratio = first ? first.width / first.height : (parameters.width ?? 1024) / (parameters.height ?? 1024);
  const options = [[own, ratio], ...sizes.map((size) => [size, size.width / size.height])];
  shapes.querySelector("div").replaceChildren(...options.map(([size, shape]) => shapeOf(size, shape)));
  shapes.hidden = sizes.length < 2;
  form.width.placeholder = first?.width ?? parameters.width ?? "1024";
  form.height.placeholder = first?.height ?? parameters.height ?? "1024";
  markShape();
}

function shapeOf({ name, width, height }, ratio) {
  const label = Object.assign(document.createElement("label"), { className: "shape" });
  const input = Object.assign(document.createElement("input"), { type: "radio", name: "shape", value: `${width}x${height}` });
  const icon = document.createElement("span");
  icon.style.setProperty("--ratio", ratio);
  input.addEventListener("change", () => {
    [form.width.value, form.height.value] = [width, height];
  });
  if (width) label.title = `${width} x ${height} pixels`;
  label.append(input, icon, name);
  return label;
}

/** Checks the shape whose size is entered, or none. */
function markShape() {
  const entered = `${form.width.value}x${form.height.value}`;
  for (const input of shapes.querySelectorAll("input")) input.checked = input.value === entered;
}

// Fields

/** What is entered, name -> value, as the API has it but for `size`; a strength that was not set is left out. */
export function entered() {
  const fields = {};
  const values = new FormData(form);
  for (const name of [...NUMBERS, ...TEXTS]) {
    const text = (values.get(name) ?? "").replaceAll("\r\n", "\n"); // as browsers before 2022 have it
    if (text === "" || (name === "strength" && !isSet(form.strength))) continue;
    fields[name] = NUMBERS.includes(name) ? Number(text) : text;
  }
  return fields;
}

/** Whether a slider was moved. Until then the model's own value holds, which may lie between two of the slider's. */
export function isSet(slider) {
  return slider.dataset.set !== undefined;
}

/** Enters fields in place of all that the form has but its model. */
export function enter(fields) {
  const [width, height] = fields.size?.split("x") ?? [fields.width, fields.height];
  const values = { ...fields, width, height };
  for (const name of [...NUMBERS, ...TEXTS]) {
    if (name === "model" || (name === "class_label" && values[name] === undefined)) continue;
    form[name].value = values[name] ?? "";
    if (form[name].selectedIndex === -1) form[name].value = ""; // a choice that there is not
  }
  if (fields.strength === undefined) delete form.strength.dataset.set;
  else form.strength.dataset.set = "";
  fitTexts();
  showSliders();
  markShape();
}

/** What the model makes of what fields leave out, as far as it matters to who looks at the picture. */
export function defaultsOf({ parameters: { num_inference_steps, guidance_scale, cache_preset } }) {
  return { num_inference_steps, guidance_scale, cache_preset };
}

form.addEventListener("input", ({ target }) => {
  if (target.dataset.slides) form[target.dataset.slides].value = target.value;
  showSliders();
  if (target === form.width || target === form.height) markShape();
  if (target.matches("textarea")) fitTexts();
});
