// Pictures on their way: asked for, made in their turn, and compared.

import { fit, showDone, showFailure, showPicture, showPreview, showStep, showWorking } from "./cards.js";
import { figuresIn, keepFigures, restore, show, showBar } from "./gallery.js";
import { Refused } from "./http.js";
import { jsonOf, withSettings } from "./metadata.js";
import { made } from "./requests.js";
import { announcer, tell } from "./telling.js";
import { inTurn } from "./turns.js";
import { judge } from "./verdict.js";
import { placeInQueue } from "./words.js";

const CACHE_OFF = { cache_interval: 1 };
const HINT = /(: try again in [\d.]+ s)?\.?$/;

let latest = 0; // when the last ones were asked for

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
  const entries = jobs.map((job, place) => (both ? pairOf(job, started, 2 * place) : [entryOf(job, started, place, "")]));
  for (const figure of show(entries, DOES)) make(figure, both ? announcer(1) : news);
}

/** Shows the pictures of earlier visits, and says what the form does for one: `reuse` its entry, or `edit` its file. */
export function begin({ reuse, edit }) {
  DOES.reuse = ({ entry }) => reuse(entry);
  DOES.edit = ({ entry, buttons }) => edit(new File([entry.blob], buttons.save.download, { type: entry.type }));
  restore(DOES);
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

const DOES = {
  cancel: (figure) => figure.stop(),
  retry: (figure) => make(figure, announcer(1)),
  vary: ({ entry }) => start([{ ...entry, fields: { ...entry.fields, seed: randomSeed() } }], false),
  copy: async ({ entry, title }) => {
    await navigator.clipboard.writeText(jsonOf(entry));
    tell(`The settings of ${title} are copied`);
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
  if (signal.aborted) figure.entry = entry; // cancelled at the last moment, it is not there
  signal.throwIfAborted();
}

function settle(figure, news) {
  showDone(figure);
  const both = figuresIn(figure.article);
  const found = judge(figure.article, both);
  news.end(figure.title, `done, ${figure.state.textContent}${found ? `. ${found}` : ""}`);
  keepFigures(found ? both : [figure]); // both have what was found
}

function fail(figure, error) {
  const cancelled = error.name === "AbortError";
  figure.retryAt = error.retryMs && Date.now() + error.retryMs;
  const again = figure.retryAt && (() => toWait(error.message, figure.retryAt));
  const text = cancelled ? "cancelled" : error instanceof Refused ? error.message : "The server cannot be reached.";
  showFailure(figure, again ? again() : text, cancelled);
  if (again) countDown(figure, again);
}

function countDown(figure, again) {
  figure.counting = setInterval(() => {
    figure.state.textContent = again();
    if (Date.now() > figure.retryAt) clearInterval(figure.counting);
  }, 1000);
}

/** The server's sentence, with the seconds that are left. */
function toWait(message, time) {
  const left = Math.ceil((time - Date.now()) / 1000);
  return `${message.replace(HINT, "")}: try again${left > 0 ? ` in ${left} s` : ""}`;
}
