// Two pictures one over the other, and a slider between them.

const ALIKE = 0.1; // a picture whose shape differs by more is not stretched

/**
 * Puts the picture from before under the result in its frame.
 *
 * shapes: logarithm of the ratio of their shapes.
 */
export function compare(frame, before, result, title, shapes) {
  const slider = document.createElement("input");
  Object.assign(slider, { type: "range", min: 0, max: 100, value: 50, className: "divider" });
  slider.setAttribute("aria-label", `Before and after: ${title}`);
  const show = () => {
    frame.style.setProperty("--at", `${slider.value}%`);
    slider.setAttribute("aria-valuetext", `${slider.value} % before, ${100 - slider.value} % after`);
  };
  slider.addEventListener("input", show);
  show();
  before.alt = `${title}, before`;
  before.classList.add("before");
  before.classList.toggle("small", result.classList.contains("small")); // both are drawn the same way
  before.classList.toggle("whole", Math.abs(shapes) > ALIKE);
  frame.classList.add("compared");
  frame.prepend(before);
  frame.append(sign("before"), sign("after"), slider);
}

function sign(text) {
  const words = document.createElement("span");
  words.className = `sign ${text}`;
  words.textContent = text;
  words.setAttribute("aria-hidden", "true"); // the slider says it
  return words;
}
