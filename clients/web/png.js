// Texts in PNG files: international text chunks (iTXt), as the PNG specification has them.

const SIGNATURE = [137, 80, 78, 71, 13, 10, 26, 10];
const HEAD_BYTES = 33; // the signature and the first chunk, IHDR
const AROUND = 12; // bytes of a chunk besides its content: length, type and checksum
const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let value = byte;
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
  return value;
});

export function isPng(bytes) {
  return bytes.length > HEAD_BYTES && SIGNATURE.every((byte, i) => bytes[i] === byte);
}

/** The file with texts behind its head; texts: keyword -> text. Bytes that are no PNG stay as they are. */
export function withTexts(bytes, texts) {
  if (!isPng(bytes)) return [bytes];
  const chunks = Object.entries(texts).map(([keyword, text]) => chunkOf(keyword, text));
  return [bytes.subarray(0, HEAD_BYTES), ...chunks, bytes.subarray(HEAD_BYTES)];
}

/** The text that a file has under a keyword; null if it has none, or what there is is damaged. */
export function textIn(bytes, keyword) {
  if (!isPng(bytes)) return null;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (let at = SIGNATURE.length; at + AROUND <= bytes.length;) {
    const length = view.getUint32(at);
    const end = at + AROUND + length;
    if (end > bytes.length) return null;
    const content = bytes.subarray(at + 4, end - 4); // with the type
    if (begins(content, `iTXt${keyword}\0`)) {
      return view.getUint32(end - 4) === crc(content) ? textOf(content.subarray(keyword.length + 5)) : null;
    }
    at = end;
  }
  return null;
}

function begins(bytes, ascii) {
  return bytes.length >= ascii.length && [...ascii].every((letter, i) => bytes[i] === letter.charCodeAt(0));
}

/** The text of what follows the keyword: two bytes of compression, language, translated keyword. */
function textOf(rest) {
  const language = rest.indexOf(0, 2);
  const translated = language < 0 ? -1 : rest.indexOf(0, language + 1);
  if (rest[0] !== 0 || translated < 0) return null; // we write none that is compressed
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(rest.subarray(translated + 1));
  } catch {
    return null;
  }
}

function chunkOf(keyword, text) {
  const content = new TextEncoder().encode(`iTXt${keyword}\0\0\0\0\0${text}`);
  const chunk = new Uint8Array(content.length + 8);
  const view = new DataView(chunk.buffer);
  view.setUint32(0, content.length - 4);
  chunk.set(content, 4);
  view.setUint32(content.length + 4, crc(content));
  return chunk;
}

function crc(bytes) {
  let value = ~0;
  for (const byte of bytes) value = CRC_TABLE[(value ^ byte) & 255] ^ (value >>> 8);
  return ~value >>> 0;
}
