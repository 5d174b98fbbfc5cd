// The pictures of the page: asked for, made in their turn, kept, and shown again after a reload.

import { discard, fit, newCard, showDone, showFailure, showPicture, showPreview, showStep, showWorking } from "./cards.js";
import { isSure } from "./dialogs.js";
import { forget, forgetAll, keep, kept } from "./history.js";
import { Refused } from "./http.js";
import { jsonOf, withSettings } from "./metadata.js";
import { psnr } from "./psnr.js";
import { made } from "./requests.js";
import { announcer, tell } from "./telling.js";
import { inTurn } from "./turns.js";
import { placeInQueue, verdict } from "./words.js";

const CACHE_OFF = { cache_interval: 1 };
const MOST_KEPT_BYTES = 4 * 2 ** 20; // of the pictures that an entry was made from; larger ones are kept by name
const KEEPS_NONE = "This browser keeps no pictures for this page: they are gone after a reload.";
const HINT = /(: try again in [\d.]+ s)?\.?$/;

const runs = document.querySelector("#runs");
const cards = document.querySelector("#cards");
const generate = document.querySelector("#generate");
const stop = document.querySelector("#stop");
const clear = document.querySelector("#clear");

const figures = new Set(); // all on the page
let keeps = true; // whether this browser keeps pictures
let latest = 0; // when the last ones were asked for
let asked = { reuse() {}, edit() {} };

/** What the form does for a picture: `reuse` its entry, or `edit` its file. */
export function whenAsked(listeners) {
  asked = listeners;
}

// What is asked for

/**
 * Makes pictures.
 *
 * jobs: [{ fields, pictures, mask, defaults }], fields as of the API without a stream's, pictures { file, width, height }, mask
 *   a File or null, defaults the model's own of what the fields leave out.
 * both: whether each also with the cache off, to compare.
 */
export function start(jobs, both) {
  const started = (latest = Math.max(Date.now(), latest + 1));
  const news = announcer(jobs.length);
  const begun = jobs.map((job, place) => {
    const entries = both ? pairOf(job, started, 2 * place) : [entryOf(job, started, place, "")];
    return show(entries);
  });
  cards.prepend(...begun.map(({ article }) => article));
  for (const { figures: [...list] } of begun) {
    for (const figure of list) make(figure, both ? announcer(1) : news);
  }
}

function pairOf(job, started, place) {
  // With a schedule of its own an interval of 1 would not turn the cache off.
  const others = Object.entries(job.fields).filter(([name]) => !name.startsWith("cache_"));
  const uncached = { ...job, fields: { ...Object.fromEntries(others), ...CACHE_OFF } };
  return [entryOf(uncached, started, place, "cache off", place), entryOf(job, started, place + 1, "cache on", place)];
}

/** An entry: all that is known of a picture. The `id` orders them: the latest first, those of one request by their seed. */
function entryOf({ fields, pictures, mask, defaults }, started, place, kind, pair = null) {
  const [sources, first] = [pictures.map(({ file }) => file.name), pictures[0]];
  const size = fields.size ?? `${first.width}x${first.height}`;
  return { id: [started, -place, Math.random()], kind, pair, fields, pictures, mask, masked: mask !== null, sources, defaults, size };
}

function show(entries) {
  const card = newCard(entries, DOES);
  for (const figure of card.figures) {
    Object.assign(figure, { article: card.article, quiet: entries.length > 1 });
    figures.add(figure);
    figure.details.querySelector(".copy").addEventListener("click", () => copySettings(figure));
    figure.details.querySelector(".copy").hidden = !navigator.clipboard; // browsers have it on https and on this machine
  }
  showBar();
  return card;
}

async function copySettings({ entry, title }) {
  await navigator.clipboard.writeText(jsonOf(entry));
  tell(`The settings of ${title} are copied`);
}

const DOES = {
  cancel: (figure) => figure.stop(),
  retry: (figure) => make(figure, announcer(1)),
  reuse: ({ entry }) => asked.reuse(entry),
  vary: ({ entry }) => start([{ ...entry, fields: { ...entry.fields, seed: randomSeed() } }], false),
  edit: ({ entry, buttons }) => asked.edit(new File([entry.blob], buttons.save.download, { type: entry.type })),
  remove: (figure) => {
    leave(figure);
    store(() => forget(figure.entry.id));
    tell(`${figure.title} is deleted`);
  },
};

export function randomSeed() {
  return BigInt(Math.floor(Math.random() * 1e9));
}

// How it is made

async function make(figure, news) {
  const stopping = new AbortController();
  const { signal } = stopping;
  figure.stop = () => stopping.abort();
  showWorking(figure, "waits for its turn");
  showBar();
  try {
    await untilAllowed(figure, signal);
    await inTurn(() => receive(figure, signal, news), { quiet: figure.quiet, signal });
    settle(figure, news);
  } catch (error) {
    fail(figure, error);
    news.end(figure.title, figure.state.textContent);
  }
  figure.stop = null;
  showBar();
}

/** Waits as long as the server has asked for. */
function untilAllowed({ retryAt = 0, state }, signal) {
  const ms = retryAt - Date.now();
  if (ms <= 0) return Promise.resolve();
  state.textContent = `is sent again in ${Math.ceil(ms / 1000)} s`;
  return new Promise((resolve, reject) => {
    setTimeout(resolve, ms);
    signal.addEventListener("abort", () => reject(signal.reason), { once: true });
  });
}

async function receive(figure, signal, news) {
  let told = false;
  figure.state.textContent = "waiting";
  news.begin(figure.title);
  for await (const event of made(figure.entry, signal)) {
    if (event.size) fit(figure, event.size);
    const kind = event.type.split(".")[1];
    if (kind === "partial_image") showPreview(figure, event);
    else if (kind === "completed") await complete(figure, event, signal);
    else if (event.queue_position >= 1) showPlace(figure, event.queue_position, news);
    else if (event.num_steps > 0) {
      showStep(figure, event);
      if (!told && 2 * event.step >= event.num_steps && event.step < event.num_steps) {
        told = true;
        news.half(figure.title);
      }
    }
  }
}

function showPlace({ state, title }, position, news) {
  state.textContent = placeInQueue(position);
  news.queue(title, state.textContent);
}

async function complete(figure, { b64_json, output_format, size, report }, signal) {
  const { entry } = figure;
  const type = output_format === "mp4" ? "video/mp4" : `image/${output_format}`;
  const finished = { ...entry, report, type, size: size ?? entry.size, made: Date.now() };
  const bytes = Uint8Array.from(atob(b64_json), (letter) => letter.charCodeAt(0));
  figure.entry = { ...finished, blob: new Blob(withSettings(bytes, finished), { type }) };
  await showPicture(figure).catch(() => { throw new Refused("The browser cannot show the picture."); });
  signal.throwIfAborted();
}

function settle(figure, news) {
  showDone(figure);
  const found = judge(figure.article);
  news.end(figure.title, `done, ${figure.state.textContent}${found ? `. ${found}` : ""}`);
  for (const each of found ? figuresIn(figure.article) : [figure]) store(() => keepFigure(each));
}

function fail(figure, error) {
  const cancelled = error.name === "AbortError";
  figure.retryAt = error.retryMs && Date.now() + error.retryMs;
  const again = figure.retryAt && (() => toWait(error.message, figure.retryAt));
  const text = cancelled ? "cancelled" : error instanceof Refused ? error.message : "The server cannot be reached.";
  showFailure(figure, { text: again ? again() : text, cancelled, again });
}

/** The server's sentence, with the seconds that are left. */
function toWait(message, time) {
  const left = Math.ceil((time - Date.now()) / 1000);
  return `${message.replace(HINT, "")}: try again${left > 0 ? ` in ${left} s` : ""}`;
}

// Comparisons

function figuresIn(article) {
  return [...figures].filter((figure) => figure.article === article);
}

/** What the comparison of a card has found, as a sentence, which is shown; null if there is none. */
function judge(article) {
  const [off, on] = figuresIn(article);
  if (!on || ![off, on].every(({ element }) => element.classList.contains("done"))) return null;
  if (on.entry.distance === undefined) on.entry.distance = distanceOf(off, on);
  const found = verdict(off.entry.report, on.entry.report, on.entry.distance);
  const words = article.querySelector(".verdict") ?? document.createElement("p");
  words.className = "verdict";
  words.textContent = found;
  article.append(words);
  return found;
}

function distanceOf(off, on) {
  const same = on.image.naturalWidth === off.image.naturalWidth && on.image.naturalHeight === off.image.naturalHeight;
  return on.entry.type.startsWith("video/") || !same ? null : psnr(on.image, off.image);
}

// What is kept

/** Shows what this browser has kept. */
export async function restore() {
  await store(async () => {
    const cardsOf = [];
    for (const entry of await kept()) {
      const before = cardsOf.at(-1)?.[0];
      const together = entry.pair !== null && before?.id[0] === entry.id[0] && before.pair === entry.pair;
      if (together) cardsOf.at(-1).push(entry);
      else cardsOf.push([entry]);
    }
    cards.append(...cardsOf.map(restored));
  });
  showBar();
}

function restored(entries) {
  const card = show(entries);
  for (const figure of card.figures) {
    figure.image.loading = "lazy";
    showPicture(figure);
    showDone(figure);
  }
  if (entries.length > 1 && entries[1].distance !== undefined) judge(card.article);
  return card.article;
}

async function keepFigure({ entry }) {
  const { pictures, mask, blob } = entry;
  const carried = [...pictures.map(({ file }) => file), mask].filter(Boolean).reduce((sum, { size }) => sum + size, 0);
  const light = carried <= MOST_KEPT_BYTES ? { pictures, mask } : { pictures: [], mask: null };
  const bytes = blob.size + (light.pictures.length ? carried : 0);
  const gone = await keep({ ...entry, ...light, bytes });
  for (const id of gone) for (const figure of figures) if (String(figure.entry.id) === String(id)) leave(figure);
}

/** Does something with what is kept; a browser that keeps nothing is told about. */
async function store(work) {
  try {
    await work();
  } catch {
    keeps = false;
  }
  showBar();
}

/** Takes a picture off the page, and hands the focus on if it had it. */
function leave(figure) {
  const { element, article } = figure;
  const focused = element.contains(document.activeElement);
  const all = [...cards.querySelectorAll("figure")];
  const place = all.indexOf(element);
  const next = all[place + 1] ?? all[place - 1];
  figures.delete(figure);
  discard(figure);
  article.classList.remove("pair");
  article.querySelector(".verdict")?.remove();
  if (!article.querySelector("figure")) article.remove();
  showBar();
  if (focused) (next?.querySelector(":is(.remove, .cancel):not([hidden])") ?? generate).focus();
}

/** What is told of all pictures, and can be done with them. */
function showBar() {
  const working = [...figures].filter((figure) => figure.stop).length;
  const done = [...figures].filter(({ entry }) => entry.blob).length;
  const focused = document.activeElement;
  stop.hidden = working < 2;
  clear.hidden = figures.size === working;
  if ([stop, clear].includes(focused) && focused.hidden) generate.focus();
  document.querySelector("#empty").hidden = figures.size > 0;
  const parts = [working > 0 && `${working} being made`, keeps && done > 0 && `${done} kept in this browser`, !keeps && KEEPS_NONE];
  document.querySelector("#kept").textContent = parts.filter(Boolean).join(", ");
}

stop.addEventListener("click", () => {
  for (const figure of figures) figure.stop?.();
});
clear.addEventListener("click", async () => {
  const ended = [...figures].filter((figure) => !figure.stop);
  const what = ended.length === 1 ? "this picture" : `all ${ended.length} pictures`;
  if (!(await isSure(`Delete ${what}? They are gone from this page and from this browser.`))) return;
  ended.forEach(leave);
  await store(forgetAll);
  tell("All pictures are deleted");
});
