// The settings of a picture inside its file: for this page, for other programs that show them, and as XMP.

import { textIn, withTexts } from "./png.js";

const KEYWORD = "triton-taylorseer";
const MOST_CHARACTERS = 100_000; // of a text in a file that may come from anyone
const TEXTS = ["prompt", "negative_prompt", "cache_preset", "cache_predictor", "cache_schedule"];
const NUMBERS = ["class_label", "num_inference_steps", "guidance_scale", "width", "height", "num_frames", "strength", "cache_interval",
  "cache_order", "cache_warmup_steps", "cache_max_error", "deadline_ms"];
const SOURCE = "http://cv.iptc.org/newscodes/digitalsourcetype";
const NO_XML = /[^\t\n\r\u{20}-\u{D7FF}\u{E000}-\u{FFFD}\u{10000}-\u{10FFFF}]/gu;
const ESCAPES = { "&": "&amp;", "<": "&lt;", ">": "&gt;", "\r": "&#13;" };

/** The parts of a PNG file with the settings of its picture; other files stay as they are. */
export function withSettings(bytes, entry) {
  return withTexts(bytes, { [KEYWORD]: jsonOf(entry), parameters: linesOf(entry), "XML:com.adobe.xmp": xmpOf(entry) });
}

/** The settings as JSON. The seed is exact: JSON.stringify cannot write one above 2^53. */
export function jsonOf({ fields: { model, seed, ...fields }, report, sources, masked }) {
  const from = sources.length ? { sources, masked } : {};
  const text = JSON.stringify({ model, fields: { seed: 0, ...fields }, report: { ...report, seed: 0 }, ...from });
  return text.replace(/"seed":0(?=[,}])/g, `"seed":${seed}`); // in a string the quotes would be escaped
}

/** The lines that other programs show under the keyword `parameters`. */
function linesOf({ fields, report }) {
  const negative = fields.negative_prompt ? [`Negative prompt: ${fields.negative_prompt}`] : [];
  const values = {
    Steps: fields.num_inference_steps ?? report.num_steps,
    "CFG scale": fields.guidance_scale,
    Seed: fields.seed,
    Size: report.width && `${report.width}x${report.height}`,
    Model: fields.model,
    "Denoising strength": fields.strength,
  };
  const known = Object.entries(values).filter(([, value]) => value !== undefined);
  const lines = [fields.prompt ?? `class ${fields.class_label}`, ...negative, known.map((pair) => pair.join(": ")).join(", ")];
  return lines.join("\n").replaceAll("\0", "");
}

function xmpOf({ fields, sources, made }) {
  const kind = sources.length ? "compositeWithTrainedAlgorithmicMedia" : "trainedAlgorithmicMedia";
  const subject = fields.prompt ?? `class ${fields.class_label}`;
  return `<?xpacket begin="\u{FEFF}" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:xmp="http://ns.adobe.com/xap/1.0/"
    xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">
   <dc:description><rdf:Alt><rdf:li xml:lang="x-default">${xmlOf(subject)}</rdf:li></rdf:Alt></dc:description>
   <xmp:CreatorTool>${xmlOf(`triton-taylorseer, ${fields.model}`)}</xmp:CreatorTool>
   <xmp:CreateDate>${new Date(made).toISOString()}</xmp:CreateDate>
   <Iptc4xmpExt:DigitalSourceType>${SOURCE}/${kind}</Iptc4xmpExt:DigitalSourceType>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>`;
}

/** Text as XML has it; characters that it cannot hold are left out. */
function xmlOf(text) {
  return text.replace(NO_XML, "").replace(/[&<>\r]/g, (letter) => ESCAPES[letter]);
}

/**
 * The settings in a file, as { model, fields, sources }; null where there are none.
 *
 * A file may come from anyone: what is not a known field of the right type is left out.
 */
export async function settingsIn(file) {
  const text = textIn(new Uint8Array(await file.arrayBuffer()), KEYWORD);
  if (text === null || text.length > MOST_CHARACTERS) return null;
  try {
    return checked(JSON.parse(text.replace(/"seed"\s*:\s*(\d{1,19})(?![\d.eE])/g, '"seed":"$1"'))); // exact, as a text
  } catch {
    return null;
  }
}

function checked(told) {
  if (!isObject(told) || !isObject(told.fields)) return null;
  const { fields, model, sources } = told;
  const own = (names, isRight) => names.filter((name) => Object.hasOwn(fields, name) && isRight(fields[name]));
  const kept = [
    ...own(TEXTS, (value) => typeof value === "string" && value !== ""),
    ...own(NUMBERS, Number.isFinite),
    ...own(["seed"], (value) => typeof value === "string" && /^\d{1,19}$/.test(value)),
    ...own(["size"], (value) => typeof value === "string" && /^\d{1,5}x\d{1,5}$/.test(value)),
  ];
  if (!kept.length) return null;
  return {
    model: typeof model === "string" ? model : "",
    fields: Object.fromEntries(kept.map((name) => [name, fields[name]])),
    sources: Array.isArray(sources) ? sources.filter((name) => typeof name === "string").slice(0, 16) : [],
  };
}

function isObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
