// Settings that a file has brought with it, which the form may use.

import { tell } from "./telling.js";

const box = document.querySelector("#offer");
const use = document.querySelector("#use-settings");

let offered = null; // { file, settings }
let decided = () => {};

/** Calls a listener with the settings that are to be used, or with null. */
export function whenDecided(listener) {
  decided = listener;
}

/** Offers settings as of `settingsIn`; what is told of them. */
export function offer(file, settings) {
  offered = { file, settings };
  const { prompt, class_label, seed } = settings.fields;
  const subject = prompt === undefined ? class_label !== undefined && `class ${class_label}` : `“${prompt.slice(0, 200)}”`;
  const told = [subject, seed && `seed ${seed}`, settings.model.slice(0, 100)].filter(Boolean).join(", ");
  box.querySelector("p").textContent = `${file.name} has its settings with it: ${told}.`;
  box.hidden = false;
  const news = `${file.name} has its settings with it, which can be used`;
  tell(news);
  return news;
}

/** The offer of a file ends. */
export function withdraw(file) {
  if (offered?.file === file) close();
}

function close() {
  box.hidden = true;
  offered = null;
}

box.addEventListener("click", ({ target }) => {
  if (!target.closest("button")) return;
  const { settings } = offered;
  close();
  decided(target === use ? settings : null);
});
