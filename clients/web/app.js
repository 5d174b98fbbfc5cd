// The page's form: what is sent, and what comes back into it. The other files hold what it is made of.

import { isMasked, maskFile, offerMask, takeMask, whenMaskChanged } from "./mask.js";
import { chooseModel, chosenModel, findModels, whenModelChanged, whyNoModel } from "./models.js";
import { whenDecided } from "./offers.js";
import { add, pictures, replace, takeAtMost, whenChanged } from "./pictures.js";
import { begin, randomSeed, start } from "./runs.js";
import { defaultsOf, enter, entered, isSet, show, showModelsSettings, showShapes } from "./settings.js";
import { mostPictures, taskFor, whyNot } from "./tasks.js";
import { say, tell } from "./telling.js";

const MAX_SEED = 2n ** 63n - 1n; // above 2^53 a number of JavaScript would be another seed
const WIDE = "(min-width: 60em)";

const form = document.querySelector("#form");
const runs = document.querySelector("#runs");
const inputs = document.querySelector("#inputs");

// What the model takes

function showModel() {
  const { tasks } = chosenModel();
  const most = mostPictures(tasks);
  showModelsSettings(chosenModel());
  takeAtMost(most);
  inputs.hidden = inputs.disabled = most === 0;
  runs.classList.toggle("ends", most === 0); // no result can be used as an input
  showPictures();
}

let given = []; // the pictures that are in the form

function showPictures() {
  const used = inputs.hidden ? [] : given;
  offerMask(used.length && taskFor(chosenModel().tasks, used.length, true) ? used[0] : null);
  showShapes(used[0]);
  showStrength();
}

function showStrength() {
  const { parameters, tasks } = chosenModel();
  const strength = taskFor(tasks, given.length, isMasked())?.strength ?? null;
  show("strength", given.length > 0 && strength !== null);
  if (!isSet(form.strength) && strength !== null) form.strength.value = parameters.strength ?? strength;
  document.querySelector("#strength-number").textContent = Number(form.strength.value).toFixed(2);
}

// What is sent

async function send() {
  const used = inputs.hidden ? [] : await pictures();
  const fields = fieldsOf(used);
  const problem = problemOf(fields, used);
  if (problem) return say(problem);
  try {
    const job = { pictures: used, mask: maskFile(), defaults: defaultsOf(chosenModel()) };
    const seeds = Array.from({ length: Number(form.count.value) }, (_, i) => fields.seed + BigInt(i));
    start(seeds.map((seed) => ({ ...job, fields: { ...fields, seed } })), form.compare.checked);
    if (!matchMedia(WIDE).matches) bring(runs); // where the form is above the pictures
  } catch (error) {
    say(error.message);
  }
}

function fieldsOf(used) {
  const { seed, ...fields } = entered();
  fields.seed = seed === undefined ? randomSeed() : BigInt(seed); // the same for both pictures of a comparison
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
  const most = MAX_SEED - BigInt(form.count.value) + 1n;
  if (fields[needed] === undefined) return needed === "prompt" ? "Enter a prompt." : "Enter a class label.";
  if (fields.seed > most) return `Seed must be at most ${most}.`;
  if (tasks.length && !taskFor(tasks, used.length, isMasked())) return whyNot(tasks, used.length, isMasked());
  return "";
}

// What comes back

/** Puts the settings of a picture into the form, with the pictures and the mask that it was made from. */
async function reuse({ fields, pictures: before, mask, sources }) {
  say("");
  await enterSettings(fields.model, fields, sources, before);
  if (mask && before.length) await takeMask(mask);
  showStrength();
  toForm();
}

async function enterSettings(model, fields, sources, before) {
  const isReady = chooseModel(model);
  enter(fields);
  await replace(before);
  showPictures();
  if (!isReady && model) say(`${model} is not ready here: its settings are in the form of another model.`);
  else if (sources.length > before.length) say(`It was made from ${sources.join(", ")}: choose that again.`);
  tell("The settings are in the form");
}

async function useAsInput(file) {
  await add([file], false);
  toForm();
}

function bring(element) {
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  element.scrollIntoView({ behavior: still ? "instant" : "smooth" });
}

function toForm() {
  bring(form);
  form.querySelector("[data-for]:not([hidden]) :is(input, textarea)").focus({ preventScroll: true });
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  say("");
  const why = await whyNoModel();
  if (why) say(why);
  else await send();
});
form.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey) || event.isComposing) return;
  event.preventDefault();
  if (!event.repeat) form.requestSubmit();
});
// A field that keeps the form from being sent must be seen.
form.addEventListener("invalid", ({ target }) => {
  for (let each = target.closest("details"); each; each = each.parentElement.closest("details")) each.open = true;
}, true);
form.strength.addEventListener("input", () => {
  form.strength.dataset.set = "";
  showStrength();
});
whenModelChanged(showModel);
whenMaskChanged(showStrength);
whenChanged((pictures) => {
  given = pictures;
  showPictures();
});
whenDecided(async (settings) => {
  // Without the picture that has brought them: what it was made from is another one.
  if (settings) await enterSettings(settings.model, settings.fields, settings.sources, []);
  toForm();
});
document.querySelector("#settings").open = matchMedia(WIDE).matches;
findModels();
begin({ reuse, edit: useAsInput });
