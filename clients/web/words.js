// How the page speaks of a picture: its names, what is told of it, and its settings.

const MOST_CHARACTERS = 80; // of a name, which is heard with every button
const CACHE = {
  cache_preset: "preset", cache_interval: "interval", cache_order: "order", cache_warmup_steps: "warm-up steps",
  cache_predictor: "predictor", cache_schedule: "schedule", cache_max_error: "target error",
};

/** What the picture shows. */
export function subjectOf({ prompt, class_label }) {
  return prompt ?? `class ${class_label}`;
}

/** A short name, without new lines. */
export function nameOf({ fields, kind }) {
  const words = subjectOf(fields).replace(/\s+/g, " ").trim();
  const letters = [...words];
  const short = letters.length > MOST_CHARACTERS ? `${letters.slice(0, MOST_CHARACTERS).join("")}…` : words;
  return [short, kind, `seed ${fields.seed}`].filter(Boolean).join(", ");
}

/** What of its settings is always seen. */
export function aboutOf({ fields, sources, masked }) {
  const [first, ...more] = sources;
  const from = first && `from ${first}${more.length ? ` and ${more.length} more` : ""}${masked ? " with a mask" : ""}`;
  return [from, fields.size, `seed ${fields.seed}`].filter(Boolean).join(", ");
}

/** The name of the file that it is saved to. */
export function fileNameOf({ fields, kind }, ending) {
  const words = [subjectOf(fields).slice(0, 40), kind, fields.seed].join("-");
  return `${words.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-/, "")}.${ending}`;
}

/** Where a request is in the queue; 1 is the next. */
export function placeInQueue(position) {
  return position === 1 ? "waiting, next in the queue" : `waiting, ${ordinal(position)} in the queue`;
}

function ordinal(number) {
  const ending = Math.floor((number % 100) / 10) === 1 ? "th" : ({ 1: "st", 2: "nd", 3: "rd" })[number % 10] ?? "th";
  return `${number}${ending}`;
}

export function stepsOf({ full_steps, num_steps }) {
  return `${full_steps.length} of ${num_steps} steps full`;
}

export function seconds(value) {
  return `${value.toFixed(2)} s`;
}

/** What a comparison has found, of two reports and their pictures' distance in dB; null for a video. */
export function verdict(off, on, distance) {
  const faster = `Denoised in ${seconds(on.denoise_s)} in place of ${seconds(off.denoise_s)}, ${(off.denoise_s / on.denoise_s).toFixed(1)} times as fast`;
  if (distance === null) return `${faster}.`;
  const far = Number.isFinite(distance) ? `PSNR ${distance.toFixed(1)} dB to the uncached picture` : "identical to the uncached picture";
  return `${faster}; ${far}.`;
}

/** The settings and the numbers of a finished picture: [term, text], as far as they are known. */
export function rowsOf({ fields, report, defaults, sources, masked, made }) {
  const own = (value) => value && `${value}, the model's`;
  const rows = [
    ["Model", fields.model],
    ["Prompt", fields.prompt],
    ["Negative prompt", fields.negative_prompt],
    ["Class label", fields.class_label],
    ["Seed", fields.seed],
    ["Steps", fields.num_inference_steps ?? own(defaults.num_inference_steps) ?? report.num_steps],
    ["Size", report.width ? `${report.width} x ${report.height} pixels` : fields.size],
    ["Frames", fields.num_frames],
    ["Guidance", fields.guidance_scale ?? own(defaults.guidance_scale)],
    ["From", sources.length ? `${sources.join(", ")}${masked ? ", with a mask" : ""}` : undefined],
    ["Strength", sources.length ? fields.strength ?? "the model's" : undefined],
    ["Cache", cacheOf(fields, defaults)],
    ["Deadline", fields.deadline_ms && `${fields.deadline_ms} ms`],
    ["Time", timesOf(report)],
    ["Full steps", `${stepsOf(report)}: ${report.full_steps.join(", ")}`],
    ["Engine", report.engine],
    ["Warnings", report.warnings?.join("; ")],
    ["Made", new Date(made).toLocaleString()],
  ];
  return rows.filter(([, text]) => text !== undefined && text !== "");
}

function cacheOf(fields, defaults) {
  if (fields.cache_interval === 1) return "off";
  const set = Object.entries(CACHE).filter(([name]) => fields[name] !== undefined);
  if (set.length) return set.map(([name, word]) => `${word} ${fields[name]}`).join(", ");
  return ["the model's choice", defaults.cache_preset && `preset ${defaults.cache_preset}`].filter(Boolean).join(", ");
}

function timesOf({ total_s, denoise_s, queue_s }) {
  const parts = [
    `${seconds(total_s)} in all`,
    typeof denoise_s === "number" && `denoising ${seconds(denoise_s)}`,
    typeof queue_s === "number" && `in the queue ${seconds(queue_s)}`,
  ];
  return parts.filter(Boolean).join(", ");
}
