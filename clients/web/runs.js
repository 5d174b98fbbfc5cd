// Requests on their way: one figure for each, with its progress and its result; and the comparison of two.

import { compare } from "./compare.js";
import { call, events, Refused } from "./http.js";
import { fileOf, imageOf } from "./pictures.js";
import { psnr } from "./psnr.js";
import { announcer } from "./telling.js";

const runs = document.querySelector("#runs");
const CACHE_OFF = { cache_interval: 1 };

let turn = Promise.resolve(); // pictures are made one after the other: side by side they would share the time that is compared

function inTurn(work) {
  const mine = turn.then(work);
  turn = mine.catch(() => {});
  return mine;
}

/**
 * Makes a picture, or two to compare.
 *
 * job: { fields, pictures, mask }, fields as of the API without a stream's, mask a File or null.
 * both: whether also with the cache off.
 * reuse: called with the File of a result that is wanted as an input.
 */
export async function start(job, both, reuse) {
  const { fields } = job;
  const article = document.querySelector("#run").content.firstElementChild.cloneNode(true);
  const details = document.createElement("small");
  details.textContent = ` ${detailsOf(job)}`;
  article.querySelector("h2").append(subjectOf(fields), details);
  const pair = article.querySelector(".pair");
  runs.prepend(article);
  document.querySelector("#empty").hidden = true;
  // With a schedule of its own an interval of 1 would not turn the cache off.
  const uncached = { ...withoutCache(fields), ...CACHE_OFF };
  const kinds = both ? [["cache off", uncached], ["cache on", fields]] : [["", fields]];
  const [off, on] = await Promise.all(kinds.map(([name, settings]) => run(pair, name, { ...job, fields: settings }, reuse)));
  if (on && off && !on.video) tellDistance(on, off);
}

function tellDistance(on, off) {
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

function detailsOf({ fields, pictures, mask }) {
  const [first, ...more] = pictures.map(({ file }) => file.name);
  const source = first && `from ${first}${more.length ? ` and ${more.length} more` : ""}${mask ? " with a mask" : ""}`;
  return [source, fields.size, `seed ${fields.seed}`].filter(Boolean).join(", ");
}

function withoutCache(fields) {
  return Object.fromEntries(Object.entries(fields).filter(([name]) => !name.startsWith("cache_")));
}

// One request

async function run(pair, name, job, reuse) {
  const title = [subjectOf(job.fields), name].filter(Boolean).join(", ");
  const figure = newFigure(name, title);
  figure.tell = announcer(title);
  fit(figure, job.fields.size ?? `${job.pictures[0].width}x${job.pictures[0].height}`);
  const before = job.pictures.length ? imageOf(job.pictures[0].file, "") : null; // now, as the form may lose it
  pair.append(figure.element);
  const stopping = new AbortController();
  figure.cancel.addEventListener("click", () => stopping.abort());
  const given_up = new Promise((_, reject) => {
    stopping.signal.addEventListener("abort", () => reject(stopping.signal.reason), { once: true });
  });
  const work = async () => finish(figure, await made(figure, job, stopping.signal), { title, name, job, before, reuse });
  try {
    return await Promise.race([inTurn(work), given_up]);
  } catch (error) {
    return fail(figure, error);
  } finally {
    putAway(figure.cancel, figure.element);
  }
}

function newFigure(name, title) {
  const element = document.querySelector("#picture").content.firstElementChild.cloneNode(true);
  const parts = { frame: ".frame", image: "img", video: "video", bar: "progress", state: ".state", cancel: ".cancel",
    save: ".save", reuse: ".reuse" };
  const figure = Object.fromEntries(Object.entries(parts).map(([part, selector]) => [part, element.querySelector(selector)]));
  element.querySelector("strong").textContent = name;
  figure.image.alt = title;
  for (const [part, verb] of [["bar", ""], ["cancel", "Cancel "], ["save", "Save "], ["reuse", "Use as input: "]]) {
    figure[part].setAttribute("aria-label", `${verb}${title}`);
  }
  return { ...figure, element };
}

/** Gives the figure the shape of its picture. */
function fit({ element, image }, size) {
  const [width, height] = size.split("x").map(Number);
  element.style.setProperty("--ratio", `${width} / ${height}`);
  element.style.setProperty("--width", `${width}px`);
  image.classList.toggle("small", Math.max(width, height) <= 128);
}

/** The last event of the request, its result shown. */
async function made(figure, job, signal) {
  signal.throwIfAborted(); // while it waited for its turn
  figure.state.textContent = "waiting";
  figure.tell("started");
  const [path, options] = requestOf(job);
  const response = await call(path, { method: "POST", ...options, signal });
  for await (const event of events(response)) {
    signal.throwIfAborted(); // what is on its way no longer counts
    if (event.error) throw new Refused(event.error.message);
    const kind = event.type.split(".")[1];
    if (event.size) fit(figure, event.size);
    if (kind === "progress") showStep(figure, event);
    else if (kind === "partial_image") showPreview(figure, event);
    else if (kind === "completed") {
      await showResult(figure, event);
      signal.throwIfAborted();
      return event;
    }
  }
  throw new Refused("The connection ended before the picture was done.");
}

function requestOf({ fields, pictures, mask }) {
  const all = { ...fields, stream: true, progress: true, partial_images: 3 };
  if (pictures.length) return ["/v1/images/edits", { body: formOf(all, pictures, mask) }];
  return ["/v1/images/generations", { headers: { "Content-Type": "application/json" }, body: jsonOf(all) }];
}

function formOf(fields, pictures, mask) {
  const body = new FormData();
  for (const { file } of pictures) body.append(pictures.length > 1 ? "image[]" : "image", file);
  if (mask) body.append("mask", mask);
  for (const [name, value] of Object.entries(fields)) body.append(name, value);
  return body;
}

/** The JSON of a request: its seed is exact, which JSON.stringify cannot write. */
function jsonOf({ seed, ...fields }) {
  return JSON.stringify(fields).replace("{", `{"seed":${seed},`);
}

// What a figure shows

function showStep({ bar, state, tell }, { step, num_steps }) {
  bar.value = step / num_steps;
  state.textContent = `step ${step} of ${num_steps}`;
  tell.step(step, num_steps);
}

function showPreview({ image }, { b64_json }) {
  image.classList.add("unfinished");
  image.src = `data:image/png;base64,${b64_json}`;
  image.hidden = false;
}

async function showResult({ image, video }, event) {
  const moving = event.output_format === "mp4";
  const target = moving ? video : image;
  image.classList.remove("unfinished");
  image.hidden = moving;
  target.src = `data:${typeOf(event)};base64,${event.b64_json}`;
  target.hidden = false;
  if (!moving) await image.decode();
}

function typeOf({ output_format }) {
  return output_format === "mp4" ? "video/mp4" : `image/${output_format}`;
}

function finish(figure, event, { title, name, job, before, reuse }) {
  const { element, frame, image, state, tell, save } = figure;
  const video = event.output_format === "mp4";
  const { report } = event;
  element.classList.add("done");
  figure.bar.hidden = true;
  state.textContent = [
    `${report.total_s.toFixed(2)} s, ${report.full_steps.length} of ${report.num_steps} steps full`,
    ...(report.warnings ?? []),
  ].join("; ");
  const words = [subjectOf(job.fields).slice(0, 40), name, job.fields.seed].join("-");
  save.href = `data:${typeOf(event)};base64,${event.b64_json}`;
  save.download = `${words.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-/, "")}.${event.output_format}`;
  save.hidden = false;
  figure.reuse.hidden = video;
  figure.reuse.addEventListener("click", () => reuse(fileOf(event.b64_json, save.download, typeOf(event))));
  if (before && !video) before.decode().then(() => compare(frame, before, image, title), () => {});
  tell(`done, ${state.textContent}`);
  return { report, image, state, tell, video };
}

function fail({ element, bar, state, tell }, error) {
  const cancelled = error.name === "AbortError";
  state.textContent = cancelled ? "cancelled" : error instanceof Refused ? error.message : "The server cannot be reached.";
  tell(state.textContent);
  element.classList.toggle("failed", !cancelled);
  element.classList.toggle("cancelled", cancelled);
  bar.hidden = true;
  return null;
}

/** Hides a button that has done its work, and hands the focus on if it had it. */
function putAway(button, figure) {
  const focused = document.activeElement === button;
  button.hidden = true;
  if (!focused) return;
  const next = figure.querySelector(".save:not([hidden])") ?? figure.closest("article").querySelector(".cancel:not([hidden])");
  (next ?? document.querySelector("#generate")).focus();
}
