// The pictures that this browser keeps for the page, with their settings: newest first, bounded in number and in bytes.

const STORE = "pictures";
const MOST = 200;
const MOST_BYTES = 256 * 2 ** 20;

let opening = null;

/** All entries, newest first, each with its `id`; rejected where the browser keeps nothing for this page. */
export async function kept() {
  const entries = [];
  await each("readonly", (cursor) => entries.push(cursor.value));
  return entries;
}

/** Keeps an entry, and resolves to the ids of the oldest ones that had to go for it. `bytes` of each entry counts. */
export async function keep(entry, most = MOST, mostBytes = MOST_BYTES) {
  await run("readwrite", (store) => store.put(entry));
  const gone = [];
  let [count, bytes] = [0, 0];
  await each("readwrite", (cursor) => {
    count += 1;
    bytes += cursor.value.bytes;
    if (count === 1 || (count <= most && bytes <= mostBytes)) return;
    gone.push(cursor.value.id);
    cursor.delete();
  });
  return gone;
}

export function forget(id) {
  return run("readwrite", (store) => store.delete(id));
}

export function forgetAll() {
  return run("readwrite", (store) => store.clear());
}

function opened() {
  opening ??= new Promise((resolve, reject) => {
    const request = indexedDB.open("triton-taylorseer", 1); // throws where the browser has none
    request.addEventListener("upgradeneeded", () => request.result.createObjectStore(STORE, { keyPath: "id" }));
    request.addEventListener("success", () => resolve(request.result));
    for (const end of ["error", "blocked"]) request.addEventListener(end, () => reject(request.error));
  });
  return opening;
}

/** Resolves once a change is done. */
async function run(mode, work) {
  const transaction = (await opened()).transaction(STORE, mode);
  const done = new Promise((resolve, reject) => {
    transaction.addEventListener("complete", () => resolve());
    for (const end of ["error", "abort"]) transaction.addEventListener(end, () => reject(transaction.error));
  });
  work(transaction.objectStore(STORE));
  return done;
}

/** Visits all entries, newest first. */
function each(mode, visit) {
  return run(mode, (store) => {
    const request = store.openCursor(null, "prev");
    request.addEventListener("success", () => {
      const cursor = request.result;
      if (!cursor) return;
      visit(cursor);
      cursor.continue();
    });
  });
}
