// What the page says: sentences under the form, and news for those who listen.

const problem = document.querySelector("#problem");
const news = document.querySelector("#news");

export function say(message) {
  problem.textContent = message;
  problem.hidden = !message;
}

export function tell(message) {
  news.textContent = message;
}

/** Tells listeners of a picture's start, quarters and end; its steps would talk without end. */
export function announcer(title) {
  let quarter = 0;
  const announce = (what) => tell(`${title}: ${what}`);
  announce.step = (step, steps) => {
    const now = Math.floor((4 * step) / steps);
    if (now > quarter && now < 4) announce(`${25 * now} %`);
    quarter = Math.max(quarter, now);
  };
  return announce;
}
