// Sizes by shape: what a model can make of each, at about as many pixels as its own size has.

const SHAPES = [[1, 1], [4, 3], [3, 4], [16, 9], [9, 16]];
const FARTHEST = 0.1; // logarithm of the ratio of two shapes; one that is farther is another shape
const AREA_WEIGHT = 0.1; // the shape counts more than the number of pixels

/**
 * The sizes of the shapes that a model can make, as [{ name, width, height }].
 *
 * parameters: the model's, each a text: width, height, min_size, max_size, size_multiple.
 */
export function sizesOf(parameters) {
  return SHAPES.map(([across, down]) => ({ name: `${across}:${down}`, ...nearest(across / down, parameters) }))
    .filter(({ width, height, name }) => width && Math.abs(Math.log(width / height / ratioOf(name))) < FARTHEST);
}

function ratioOf(name) {
  const [across, down] = name.split(":");
  return across / down;
}

function nearest(ratio, parameters) {
  const area = Number(parameters.width ?? 1024) * Number(parameters.height ?? 1024);
  const { min, max, step } = boundsOf(parameters);
  let best = { cost: Infinity };
  for (let width = Math.ceil(min / step) * step; width <= max; width += step) {
    const height = Math.max(step, Math.round(width / ratio / step) * step);
    if (height < min || height > max) continue;
    const cost = Math.abs(Math.log(width / height / ratio)) + AREA_WEIGHT * Math.abs(Math.log((width * height) / area));
    if (cost < best.cost) best = { cost, width, height };
  }
  return { width: best.width, height: best.height };
}

/** The limits of a side, in pixels. */
export function boundsOf(parameters) {
  const [min, max, step] = [parameters.min_size ?? 16, parameters.max_size ?? 2048, parameters.size_multiple ?? 16].map(Number);
  return { min, max, step: Math.max(1, step) };
}
