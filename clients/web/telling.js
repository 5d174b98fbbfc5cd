// What the page says: sentences under the form, and news for those who listen.

const APART_MS = 200; // a region that is changed twice at once is heard once

const problem = document.querySelector("#problem");
const news = document.querySelector("#news");
const queue = []; // { message, about }; the first is being told

export function say(message) {
  problem.textContent = message;
  problem.hidden = !message;
}

/** Tells a message after those that wait, of which it replaces the one about the same thing. */
export function tell(message, about = message) {
  const older = queue.findIndex((each, i) => i > 0 && each.about === about);
  if (older > 0) queue.splice(older, 1);
  if (queue.push({ message, about }) === 1) tellNext();
}

function tellNext() {
  news.textContent = queue[0].message;
  setTimeout(() => {
    queue.shift();
    if (queue.length) tellNext();
  }, APART_MS);
}

/**
 * Tells listeners of pictures that were asked for together: each one's end, and little before, as steps would talk without
 * end. One picture alone is told with its start and its half.
 */
export function announcer(count) {
  let [begun, queued, ended] = [false, false, 0];
  return {
    begin(title) {
      if (!begun) tell(count > 1 ? `${count} pictures are started` : `${title}: started`, title);
      begun = true;
    },
    queue(title, place) {
      if (!queued) tell(`${title}: ${place}`, title);
      queued = true;
    },
    half(title) {
      if (count === 1) tell(`${title}: 50 %`, title);
    },
    end(title, how) {
      ended += 1;
      tell(`${title}: ${how}${count > 1 ? `; ${ended} of ${count}` : ""}`, title);
    },
  };
}
