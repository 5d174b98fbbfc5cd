// The mask: what of the first picture is to be repainted, drawn over it at its full resolution.

import { imageOf } from "./pictures.js";
import { tell } from "./telling.js";

const COLOURS = ["#e0218a", "#fff"]; // stripes, seen over every picture; style.css makes them translucent

const panel = document.querySelector("#mask");
const frame = panel.querySelector(".masked");
const canvas = panel.querySelector("canvas");
const drawing = document.querySelector("#draw");
const tools = document.querySelector("#tools");
const brush = document.querySelector("#brush");
const rectangle = document.querySelector("#rectangle");

let picture = null;
let stripes = null;
let marks = []; // all that has been drawn, so that each can be undone
let stroke = null; // the one that is being drawn
let changed = () => {};

// How much of the picture is masked after each mark.
const COVERS = {
  stroke: (before) => (before === "all" ? "all" : "some"),
  rectangle: (before) => (before === "all" ? "all" : "some"),
  stencil: (before) => (before === "all" ? "all" : "some"),
  all: () => "all",
  clear: () => "none",
  invert: (before) => ({ none: "all", some: "some", all: "none" })[before],
};
const DRAW = {
  stroke: (context, { points, size }) => points.forEach((point, i) => line(context, points[i - 1] ?? point, point, size)),
  rectangle: (context, { left, top, across, down }) => context.fillRect(left, top, across, down),
  stencil: (context, { shape }) => context.drawImage(cutOut(shape), 0, 0),
  all: (context) => context.fillRect(0, 0, canvas.width, canvas.height),
  clear: (context) => context.clearRect(0, 0, canvas.width, canvas.height),
  invert: (context) => {
    context.globalCompositeOperation = "xor";
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.globalCompositeOperation = "source-over";
  },
};
const NEWS = {
  undo: "The last mark is undone", clear: "The mask is cleared", invert: "The mask is inverted",
  all: "The whole picture is masked", rectangle: "The rectangle is masked",
};

export function whenMaskChanged(listener) {
  changed = listener;
}

/** Shows the tools for a picture, or hides them for null. Another picture begins without a mask. */
export function offerMask(of) {
  panel.hidden = !of;
  if (!of) open(false);
  else if (of.file !== picture?.file) begin(of);
}

/** Whether something is masked, and to be sent. */
export function isMasked() {
  return !panel.hidden && covered() !== "none";
}

/**
 * The mask as a PNG of the picture's size, transparent where it is to be repainted; null where nothing is.
 * Throws an Error whose message is for the reader if the browser cannot make one of this size.
 */
export function maskFile() {
  if (!isMasked()) return null;
  const address = addressOf(canvas);
  if (!address) throw new Error(`This browser cannot make a mask of ${canvas.width} x ${canvas.height} pixels.`);
  const bytes = Uint8Array.from(atob(address.split(",")[1]), (letter) => letter.charCodeAt(0));
  return new File([bytes], "mask.png", { type: "image/png" });
}

/** Its data URL, empty if the browser has no room for it. At once: toBlob waits until the browser has nothing to do. */
function addressOf({ width, height }) {
  try {
    const copy = Object.assign(document.createElement("canvas"), { width, height });
    copy.getContext("2d").putImageData(transparentWhereMasked(width, height), 0, 0);
    return copy.toDataURL("image/png").replace(/^data:,$/, "");
  } catch {
    return "";
  }
}

function transparentWhereMasked(width, height) {
  const image = canvas.getContext("2d").getImageData(0, 0, width, height);
  const pixels = new Uint32Array(image.data.buffer); // alpha is the highest byte
  // Edges are smooth on the page, and sharp in the file.
  for (let i = 0; i < pixels.length; i++) pixels[i] = pixels[i] >>> 24 < 128 ? 0xff000000 : 0;
  return image;
}

/** Draws a mask again that `maskFile` made, for the picture that is in the form. */
export async function takeMask(file) {
  const shape = await createImageBitmap(file);
  if (picture && shape.width === canvas.width && shape.height === canvas.height) add({ kind: "stencil", shape });
}

/** The stripes where a mask is transparent. */
function cutOut(shape) {
  const { width, height } = canvas;
  const copy = Object.assign(document.createElement("canvas"), { width, height });
  const context = copy.getContext("2d");
  context.fillStyle = stripes;
  context.fillRect(0, 0, width, height);
  context.globalCompositeOperation = "destination-out";
  context.drawImage(shape, 0, 0);
  return copy;
}

function covered() {
  return marks.reduce((before, { kind }) => COVERS[kind](before), "none");
}

function begin(of) {
  picture = of;
  marks = [];
  stroke = null;
  Object.assign(canvas, { width: of.width, height: of.height });
  stripes = stripesFor(Math.max(of.width, of.height) / 50);
  frame.style.setProperty("--ratio", of.width / of.height);
  frame.querySelector("img")?.remove();
  frame.prepend(imageOf(of.file, ""));
  const { left, top, across, down } = rectangle.elements;
  Object.assign(left, { max: of.width - 1, value: 0 });
  Object.assign(top, { max: of.height - 1, value: 0 });
  Object.assign(across, { max: of.width, value: of.width });
  Object.assign(down, { max: of.height, value: of.height });
  showBrush();
  open(false);
}

function stripesFor(width) {
  const tile = document.createElement("canvas");
  const side = Math.max(2, Math.round(width));
  Object.assign(tile, { width: side, height: 2 * side });
  const context = tile.getContext("2d");
  COLOURS.forEach((colour, i) => {
    context.fillStyle = colour;
    context.fillRect(0, i * side, side, side);
  });
  const pattern = context.createPattern(tile, "repeat");
  pattern.setTransform?.(new DOMMatrix().rotate(45));
  return pattern;
}

function open(on) {
  tools.hidden = tools.disabled = !on;
  canvas.classList.toggle("drawing", on);
  showState();
}

function showState() {
  const drawn = covered() !== "none";
  frame.hidden = tools.hidden && !drawn;
  drawing.textContent = tools.hidden ? (drawn ? "Change the mask" : "Draw a mask") : "Done with the mask";
}

function add(mark) {
  marks.push(mark);
  paint(mark);
  after(mark.kind);
}

function undo() {
  if (!marks.pop()) return tell("There is nothing to undo");
  DRAW.clear(canvas.getContext("2d"));
  marks.forEach(paint);
  after("undo");
}

function after(kind) {
  if (NEWS[kind]) tell(NEWS[kind]);
  showState();
  changed();
}

function paint(mark) {
  const context = canvas.getContext("2d");
  context.fillStyle = context.strokeStyle = stripes;
  DRAW[mark.kind](context, mark);
}

function line(context, from, to, size) {
  context.lineWidth = size;
  context.beginPath();
  context.moveTo(from.x, from.y);
  context.lineTo(to.x, to.y);
  context.stroke();
  context.beginPath(); // a line has no round ends where it has no length
  context.arc(to.x, to.y, size / 2, 0, 2 * Math.PI);
  context.fill();
}

function brushSize() {
  return Math.max(1, Math.round((brush.value / 100) * Math.min(canvas.width, canvas.height)));
}

function showBrush() {
  const text = `${brushSize()} px`;
  document.querySelector("#brush-number").textContent = text;
  brush.setAttribute("aria-valuetext", text);
}

function pointOf({ clientX, clientY }) {
  const box = canvas.getBoundingClientRect();
  return { x: ((clientX - box.left) * canvas.width) / box.width, y: ((clientY - box.top) * canvas.height) / box.height };
}

function extend(event) {
  const passed = event.getCoalescedEvents?.() ?? [];
  const points = (passed.length ? passed : [event]).map(pointOf);
  paint({ ...stroke, points: [...stroke.points.slice(-1), ...points] });
  stroke.points.push(...points);
}

canvas.addEventListener("pointerdown", (event) => {
  if (tools.hidden || !event.isPrimary || event.button !== 0) return;
  canvas.setPointerCapture(event.pointerId);
  stroke = { kind: "stroke", size: brushSize(), points: [] };
  extend(event);
});
canvas.addEventListener("pointermove", (event) => {
  if (stroke && event.isPrimary) extend(event);
});
for (const end of ["pointerup", "pointercancel"]) {
  canvas.addEventListener(end, (event) => {
    if (!stroke || !event.isPrimary) return;
    marks.push(stroke);
    stroke = null;
    after("stroke");
  });
}

drawing.addEventListener("click", () => open(tools.hidden));
tools.addEventListener("click", ({ target: { value } }) => {
  if (value === "undo") undo();
  else if (["clear", "invert", "all"].includes(value)) add({ kind: value });
});
brush.addEventListener("input", showBrush);
rectangle.addEventListener("submit", (event) => {
  event.preventDefault();
  const fields = Object.fromEntries([...new FormData(rectangle)].map(([name, text]) => [name, Number(text)]));
  add({ kind: "rectangle", ...fields });
});
