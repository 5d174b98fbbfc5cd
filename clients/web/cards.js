// Pictures on the page: each a figure with its progress, its result, its settings and its buttons.

import { compare } from "./compare.js";
import { showLarge } from "./dialogs.js";
import { imageOf } from "./pictures.js";
import { aboutOf, fileNameOf, nameOf, rowsOf, seconds, stepsOf, subjectOf } from "./words.js";

// Each button, what it says to those who hear it with the picture's name, and when it is seen.
const BUTTONS = {
  enlarge: ["Enlarge", "done"],
  cancel: ["Cancel", "working"],
  retry: ["Try again:", "failed"],
  reuse: ["Reuse the settings of", "done failed"],
  vary: ["Vary", "done"],
  edit: ["Send to edit:", "done"],
  save: ["Save", "done"],
  remove: ["Delete", "done failed"],
  copy: ["Copy the settings of", "done"],
};
const AFTER = ["cancel", "save", "retry"]; // where the focus goes from a button that is no longer seen

const titles = new Set(); // all names on the page, no two the same

/**
 * The card of one entry, or of the two of a comparison; their figures are returned.
 *
 * does: name of a button -> what it does, with the figure.
 */
export function newCard(entries, does) {
  const article = document.createElement("article");
  const heading = document.createElement("h3");
  heading.textContent = subjectOf(entries[0].fields).slice(0, 400);
  const figures = entries.map((entry) => newFigure(entry, does));
  if (figures.length > 1) article.append(heading);
  else figures[0].element.querySelector("figcaption").prepend(heading);
  const place = document.createElement("div");
  place.className = "figures";
  place.append(...figures.map(({ element }) => element));
  article.append(place);
  article.classList.toggle("pair", figures.length > 1);
  return { article, figures };
}

function newFigure(entry, does) {
  const element = document.querySelector("#picture").content.firstElementChild.cloneNode(true);
  const find = (selector) => element.querySelector(selector);
  const buttons = Object.fromEntries(Object.keys(BUTTONS).map((name) => [name, find(`.${name}`)]));
  const figure = {
    entry, element, buttons, title: uniqueName(entry), urls: new Set(), frame: find(".frame"), image: find("img"), video: find("video"),
    bar: find("progress"), state: find(".state"), details: find(".details"),
  };
  find(".kind").textContent = entry.kind;
  find(".about").textContent = aboutOf(entry);
  nameParts(figure);
  for (const [name, work] of Object.entries({ ...does, enlarge: () => showLarge(figure.image) })) {
    buttons[name].addEventListener("click", () => work(figure));
  }
  fit(figure, entry.size);
  return figure;
}

function uniqueName(entry) {
  const name = nameOf(entry);
  let unique = name;
  for (let number = 2; titles.has(unique); number++) unique = `${name} (${number})`;
  titles.add(unique);
  return unique;
}

function nameParts({ title, image, video, bar, buttons, details }) {
  image.alt = title;
  video.setAttribute("aria-label", title);
  bar.setAttribute("aria-label", `Progress of ${title}`);
  for (const [name, [verb]] of Object.entries(BUTTONS)) buttons[name].setAttribute("aria-label", `${verb} ${title}`);
  details.querySelector("summary").setAttribute("aria-label", `Settings of ${title}`);
}

/** Gives the figure the shape of its picture; size as "64x96". */
export function fit({ element, image }, size) {
  const [width, height] = size.split("x").map(Number);
  element.style.setProperty("--ratio", `${width} / ${height}`);
  image.classList.toggle("small", Math.max(width, height) <= 128);
}

/** Takes the figure away, and what it holds. */
export function discard(figure) {
  titles.delete(figure.title);
  figure.urls.forEach((url) => URL.revokeObjectURL(url));
  clearInterval(figure.counting);
  figure.element.remove();
}

// While it is made

export function showWorking(figure, text) {
  clearInterval(figure.counting);
  figure.bar.value = 0;
  figure.state.textContent = text;
  enter(figure, "working");
}

export function showStep({ bar, state }, { step, num_steps }) {
  bar.value = step / num_steps;
  state.textContent = `step ${step} of ${num_steps}`;
}

export function showPreview({ image }, { b64_json, output_format }) {
  image.classList.add("unfinished");
  image.src = `data:image/${output_format};base64,${b64_json}`;
  image.hidden = false;
}

// Afterwards

/** Shows the result in the frame, and resolves once it is there. */
export async function showPicture({ entry: { blob, type }, image, video, urls, buttons }) {
  const moving = type.startsWith("video/");
  const target = moving ? video : image;
  const url = URL.createObjectURL(blob);
  urls.add(url);
  image.classList.remove("unfinished");
  image.hidden = moving;
  target.src = buttons.save.href = url;
  target.hidden = false;
  if (!moving && image.loading !== "lazy") await image.decode();
}

/** What is told of a finished picture, and what can be done with it. */
export function showDone(figure) {
  const { entry, state, buttons } = figure;
  const { report, type, sources, pictures } = entry;
  state.textContent = [`${seconds(report.total_s)}, ${stepsOf(report)}`, ...(report.warnings ?? [])].join("; ");
  buttons.save.download = fileNameOf(entry, type.split("/")[1]);
  showSettings(figure);
  enter(figure, "done");
  if (type.startsWith("video/")) for (const name of ["edit", "enlarge"]) buttons[name].hidden = true;
  else if (pictures.length) compareWithSource(figure);
  buttons.copy.hidden = !navigator.clipboard; // browsers have it on https and on this machine
  buttons.vary.hidden = sources.length > pictures.length; // they were too large to be kept
}

function compareWithSource({ entry: { pictures: [first], size }, frame, image, title, urls }) {
  const before = imageOf(first.file, "");
  before.loading = image.loading;
  urls.add(before.src);
  const [width, height] = size.split("x");
  compare(frame, before, image, title, Math.log((first.width * height) / (first.height * width)));
}

function showSettings({ entry, details }) {
  const terms = rowsOf(entry).flatMap(([term, text]) => {
    const pair = [document.createElement("dt"), document.createElement("dd")];
    [pair[0].textContent, pair[1].textContent] = [term, text];
    return pair;
  });
  details.querySelector("dl").replaceChildren(...terms);
  details.hidden = false;
}

/** What went wrong, or that it was cancelled. */
export function showFailure(figure, text, cancelled) {
  figure.state.textContent = text;
  enter(figure, "failed");
  figure.element.classList.toggle("cancelled", cancelled);
}

/** Shows the buttons of a state, and hands the focus on from one that is no longer seen. */
function enter({ element, bar, buttons }, state) {
  const focused = document.activeElement; // a browser may drop it as soon as it is hidden
  for (const [name, [, states]] of Object.entries(BUTTONS)) buttons[name].hidden = !states.split(" ").includes(state);
  for (const each of ["working", "done", "failed"]) element.classList.toggle(each, each === state);
  element.classList.remove("cancelled");
  bar.hidden = state !== "working";
  if (element.contains(focused) && focused.hidden) AFTER.map((name) => buttons[name]).find((each) => !each.hidden).focus();
}
