// The pictures that a request begins with: chosen, dropped, pasted, or taken from a result.

import { settingsIn } from "./metadata.js";
import { offer, withdraw } from "./offers.js";
import { say, tell } from "./telling.js";

const MB = 2 ** 20;
const MAX_MB = 20;
const MAX_MB_TOGETHER = 30; // the server takes 32 in one request, with a mask and the other fields
const TYPES = new Set(["image/png", "image/jpeg", "image/webp"]);

const form = document.querySelector("#form");
const thumbs = document.querySelector("#thumbs");
const choose = document.querySelector("#choose");
const files = document.querySelector("#files");

const chosen = []; // { file, width, height }, in order
let most = 0;
let reading = Promise.resolve(); // one after the other, so that they keep their order
let changed = () => {};

/** What is in the form now, once all of it has been read. */
export async function pictures() {
  await reading;
  return [...chosen];
}

export function whenChanged(listener) {
  changed = () => listener([...chosen]);
}

/** How many pictures the form takes; 0 for none. Those that it has stay until they are removed. */
export function takeAtMost(count) {
  most = count;
  files.multiple = count > 1;
  choose.textContent = count > 1 ? "Choose pictures" : "Choose a picture";
}

/**
 * Puts pictures into the form. Where it takes one, the new one replaces the old.
 *
 * offers: whether settings in their files are offered to the form.
 */
export function add(given, offers = true) {
  say("");
  const list = [...given]; // the browser's own list is emptied as its event ends
  reading = reading.then(() => addNow(list, offers));
  return reading;
}

/** Puts these in place of all that the form has, as they were read before. */
export function replace(pictures) {
  reading = reading.then(() => {
    chosen.splice(0, Infinity, ...pictures.slice(0, most));
    refresh();
  });
  return reading;
}

async function addNow(given, offers) {
  const offered = offers ? await offerSettings(given) : "";
  if (!most) return offered || say("This model takes no pictures.");
  const read = await Promise.allSettled(given.map(pictureIn));
  const good = read.filter(({ value }) => value).map(({ value }) => value);
  const problems = read.filter(({ reason }) => reason).map(({ reason }) => reason.message);
  if (most === 1 && good.length) chosen.length = 0;
  const fitting = good.slice(0, Math.max(0, most - chosen.length));
  if (fitting.length < good.length) problems.push(`This model takes at most ${most === 1 ? "1 picture" : `${most} pictures`}.`);
  const bytes = [...chosen, ...fitting].reduce((sum, { file }) => sum + file.size, 0);
  if (bytes > MAX_MB_TOGETHER * MB) {
    problems.push(`Together the pictures have ${inMB(bytes)} MB, more than ${MAX_MB_TOGETHER} MB.`);
    fitting.length = 0;
  }
  chosen.push(...fitting);
  say(problems.join(" "));
  const news = fitting.map(({ file, width, height }) => `${file.name}, ${width} by ${height} pixels, is in the form`);
  if (offered && fitting.length) tell([...news, offered].join("; "));
  else if (news.length) tell(news.join("; "));
  refresh();
}

/** What is told of the settings that one of the files has, which are offered; empty if none has some. */
async function offerSettings(files) {
  for (const file of files) {
    const settings = file.type === "image/png" && file.size <= MAX_MB * MB && (await settingsIn(file));
    if (settings) return offer(file, settings);
  }
  return "";
}

function inMB(bytes) {
  return (bytes / MB).toFixed(1);
}

/** A picture with its size as it stands upright; what keeps it from being one is the error's message. */
async function pictureIn(file) {
  const name = file.name || "The file";
  if (!TYPES.has(file.type)) throw new Error(`${name} is not a PNG, JPEG or WebP.`);
  if (file.size > MAX_MB * MB) throw new Error(`${name} has ${inMB(file.size)} MB, more than ${MAX_MB} MB.`);
  try {
    const bitmap = await createImageBitmap(file, { imageOrientation: "from-image" });
    const { width, height } = bitmap;
    bitmap.close();
    return { file, width, height };
  } catch {
    throw new Error(`${name} cannot be read as a picture.`);
  }
}

/** An image of a file. */
export function imageOf(file, alt) {
  const image = new Image();
  image.alt = alt;
  image.src = URL.createObjectURL(file);
  // Once it is loaded, its address would only keep the file in memory.
  for (const end of ["load", "error"]) image.addEventListener(end, () => URL.revokeObjectURL(image.src), { once: true });
  return image;
}

function refresh() {
  thumbs.replaceChildren(...chosen.map(thumbOf));
  changed();
}

function thumbOf(picture) {
  const item = document.createElement("li");
  const remove = document.createElement("button");
  remove.type = "button";
  remove.textContent = "Remove";
  remove.setAttribute("aria-label", `Remove ${picture.file.name}`);
  remove.addEventListener("click", () => takeOut(picture));
  item.append(imageOf(picture.file, picture.file.name), remove);
  return item;
}

function takeOut(picture) {
  const place = chosen.indexOf(picture);
  chosen.splice(place, 1);
  withdraw(picture.file);
  refresh();
  tell(`${picture.file.name} is removed`);
  const buttons = thumbs.querySelectorAll("button");
  (buttons[Math.min(place, buttons.length - 1)] ?? choose).focus();
}

choose.addEventListener("click", () => files.click());
files.addEventListener("change", () => {
  add(files.files);
  files.value = ""; // the same file can be chosen again
});

document.addEventListener("paste", (event) => {
  const data = event.clipboardData;
  const isText = event.target.closest?.("input, textarea") && data.types.includes("text/plain"); // office programs copy both
  if (!data.files.length || isText) return;
  event.preventDefault();
  add(data.files);
});

// A file that is dropped beside the form must not replace the page.
for (const kind of ["dragover", "drop"]) {
  window.addEventListener(kind, (event) => {
    if (event.dataTransfer?.types.includes("Files")) event.preventDefault();
  });
}
form.addEventListener("dragover", ({ dataTransfer }) => {
  form.classList.toggle("over", most > 0 && dataTransfer.types.includes("Files"));
});
form.addEventListener("dragleave", ({ relatedTarget }) => {
  if (!form.contains(relatedTarget)) form.classList.remove("over");
});
form.addEventListener("drop", ({ dataTransfer }) => {
  form.classList.remove("over");
  if (dataTransfer.files.length) add(dataTransfer.files);
});
