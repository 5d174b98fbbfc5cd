// What the comparison of two pictures has found.

import { psnr } from "./psnr.js";
import { verdict } from "./words.js";

/** Shows it on the card of the two figures, and returns it as a sentence; null if there are not both. */
export function judge(article, figures) {
  const [off, on] = figures;
  if (!on || !figures.every(({ element }) => element.classList.contains("done"))) return null;
  if (on.entry.distance === undefined) on.entry.distance = distanceOf(off, on);
  const found = verdict(off.entry.report, on.entry.report, on.entry.distance);
  const words = article.querySelector(".verdict") ?? document.createElement("p");
  words.className = "verdict";
  words.textContent = found;
  article.append(words);
  return found;
}

/** In dB; null where there is none. */
function distanceOf(off, on) {
  const same = on.image.naturalWidth === off.image.naturalWidth && on.image.naturalHeight === off.image.naturalHeight;
  return on.entry.type.startsWith("video/") || !same ? null : psnr(on.image, off.image);
}
