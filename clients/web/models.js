// The models that are ready, and the one that the form has chosen.

import { call, Refused } from "./http.js";

const form = document.querySelector("#form");
const server = document.querySelector("#server");
const unlock = document.querySelector("#unlock");
const models = new Map(); // name -> { parameters, tasks, presets }

let changed = () => {};
let finding = Promise.resolve();

/** Calls a listener once the models are known, and whenever another one is chosen. */
export function whenModelChanged(listener) {
  changed = listener;
}

/** The model's parameters, each a text, what it can do with pictures, and the names of its cache presets. */
export function chosenModel() {
  return models.get(form.model.value) ?? { parameters: {}, tasks: [], presets: [] };
}

/** Chooses a model; false if it is not ready. */
export function chooseModel(name) {
  if (!models.has(name)) return false;
  form.model.value = name;
  changed();
  return true;
}

/** Looks which models are ready. */
export function findModels() {
  finding = find();
  return finding;
}

/** Why no model can be asked, as a sentence; empty if one can. It looks again if there was none. */
export async function whyNoModel() {
  await finding;
  if (!models.size) await findModels(); // perhaps it has them now, or a key
  return models.size ? "" : server.textContent;
}

async function find() {
  unlock.hidden = true;
  try {
    const { data } = await (await call("/v1/models")).json();
    models.clear();
    for (const { id, parameters, tasks, presets } of data) {
      models.set(id, { parameters, tasks: tasks ?? [], presets: presets ?? [] });
    }
    form.model.replaceChildren(...data.map(({ id }) => new Option(id)));
    server.textContent = data.length ? `${data.length === 1 ? "1 model is" : `${data.length} models are`} ready` : "No model is ready.";
    if (data.length) changed();
  } catch (error) {
    unlock.hidden = error.status !== 401;
    server.textContent = error instanceof Refused ? error.message : "The server cannot be reached.";
  }
}

form.model.addEventListener("change", () => changed());
unlock.addEventListener("click", findModels);
