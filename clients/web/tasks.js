// What a model can do with pictures: the `tasks` that the server tells of it, each
// { pipeline, input_image: { min, max }, mask_image, strength }.

/** The most pictures that one of the tasks takes. */
export function mostPictures(tasks) {
  return Math.max(0, ...tasks.map((task) => task.input_image.max));
}

/** The task that the server chooses for that many pictures, with a mask or without. */
export function taskFor(tasks, count, masked) {
  return tasks.find((task) => takes(task, count) && task.mask_image === masked);
}

function takes({ input_image: { min, max } }, count) {
  return min <= count && count <= max;
}

/** Why there is no task for them, as a sentence. */
export function whyNot(tasks, count, masked) {
  if (count === 0) return "This model needs a picture: choose, drop or paste one.";
  if (!masked && taskFor(tasks, count, true)) return "Draw a mask: this model repaints what it covers.";
  return `This model takes ${counts(tasks)}, and the form has ${count}.`;
}

function counts(tasks) {
  const ranges = tasks.map(({ input_image: { min, max } }) => (min === max ? `${min}` : `${min} to ${max}`));
  const words = [...new Set(ranges)].filter((range) => range !== "0").sort().join(" or ");
  return `${words} ${words === "1" ? "picture" : "pictures"}`;
}
