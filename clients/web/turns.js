// Whose turn it is: requests run side by side, quiet ones alone, all in the order in which they came.

const AT_ONCE = 4; // a browser opens six connections to a server, of which the page needs some for itself

const waiting = [];
let running = 0;
let alone = false;

/**
 * The result of some work once it has had its turn; rejected at once if the signal is aborted.
 *
 * quiet: whether nothing else may run meanwhile, since its time is measured.
 */
export function inTurn(work, { quiet, signal }) {
  return new Promise((resolve, reject) => {
    const entry = { quiet, work, end: (outcome) => outcome.then(resolve, reject) };
    signal.addEventListener("abort", () => {
      reject(signal.reason);
      if (waiting.includes(entry)) waiting.splice(waiting.indexOf(entry), 1);
      next(); // the ones behind it may have waited for it alone
    }, { once: true });
    waiting.push(entry);
    next();
  });
}

function next() {
  while (waiting.length && mayBegin(waiting[0])) begin(waiting.shift());
}

function mayBegin({ quiet }) {
  return !alone && running < (quiet ? 1 : AT_ONCE);
}

async function begin({ quiet, work, end }) {
  running += 1;
  alone = quiet;
  const outcome = work();
  end(outcome);
  await outcome.catch(() => {});
  running -= 1;
  alone = false;
  next();
}
