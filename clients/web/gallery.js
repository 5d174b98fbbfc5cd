// The pictures on the page and in the browser's history: shown, kept, shown again after a reload, deleted.

import { discard, newCard, showDone, showPicture } from "./cards.js";
import { isSure } from "./dialogs.js";
import { forget, forgetAll, keep, kept } from "./history.js";
import { tell } from "./telling.js";
import { judge } from "./verdict.js";

const MOST_SOURCE_BYTES = 4 * 2 ** 20; // what an entry was made from is kept up to this, beyond it by name alone
const KEEPS_NONE = "This browser keeps no pictures for this page: they are gone after a reload.";

const cards = document.querySelector("#cards");
const generate = document.querySelector("#generate");
const stop = document.querySelector("#stop");
const clear = document.querySelector("#clear");

const figures = new Set(); // all on the page
let keeps = true; // whether this browser keeps pictures

/**
 * Puts cards before all others.
 *
 * entries: of each card, one, or two that are compared.
 * does: name of a button -> what it does, with the figure. A figure that is being made has `stop`, which cancels it.
 */
export function show(entries, does) {
  const shown = entries.map((each) => newFigures(each, does));
  cards.prepend(...shown.map(({ article }) => article));
  showBar();
  return shown.flatMap((card) => card.figures);
}

function newFigures(entries, does) {
  const card = newCard(entries, { ...does, remove });
  for (const figure of card.figures) {
    Object.assign(figure, { article: card.article, quiet: entries.length > 1 });
    figures.add(figure);
  }
  return card;
}

/** The figures of a card. */
export function figuresIn(article) {
  return [...figures].filter((figure) => figure.article === article);
}

// What is kept

/** Shows what this browser has kept, below what is there already. */
export async function restore(does) {
  await store(async () => {
    const shown = new Set([...figures].map(({ entry }) => String(entry.id)));
    const entries = (await kept()).filter(({ id }) => !shown.has(String(id)));
    cards.append(...together(entries).map((each) => restored(each, does)));
  });
}

/** The entries of each card. */
function together(entries) {
  const groups = [];
  for (const entry of entries) {
    const [before, more] = groups.at(-1) ?? [];
    const belongs = before && !more && entry.pair !== null && before.id[0] === entry.id[0] && before.pair === entry.pair;
    if (belongs) groups.at(-1).push(entry);
    else groups.push([entry]);
  }
  return groups;
}

function restored(entries, does) {
  const card = newFigures(entries, does);
  for (const figure of card.figures) {
    figure.image.loading = "lazy";
    showPicture(figure);
    showDone(figure);
  }
  if (entries[1]?.distance !== undefined) judge(card.article, card.figures);
  return card.article;
}

/** Keeps finished pictures. The oldest ones may have to go for them, from the page as well. */
export function keepFigures(list) {
  return store(async () => {
    for (const { entry } of list) {
      const gone = new Set((await keep(lightened(entry))).map(String));
      for (const figure of figures) if (gone.has(String(figure.entry.id))) leave(figure);
    }
  });
}

function lightened(entry) {
  const { pictures, mask, blob } = entry;
  const carried = [...pictures.map(({ file }) => file), mask].reduce((sum, file) => sum + (file?.size ?? 0), 0);
  if (carried > MOST_SOURCE_BYTES) return { ...entry, pictures: [], mask: null, bytes: blob.size };
  return { ...entry, bytes: blob.size + carried };
}

/** Does something with what is kept; that a browser keeps nothing is shown. */
async function store(work) {
  try {
    await work();
  } catch {
    keeps = false;
  }
  showBar();
}

// What is deleted

function remove(figure) {
  leave(figure);
  store(() => forget(figure.entry.id));
  tell(`${figure.title} is deleted`);
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

// What is told of all pictures, and can be done with them

export function showBar() {
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
