// What the page reads from files and makes of them: receipts, masks, zips. Nothing is sent for it.
import { parse } from "./api.mjs";

// -- receipts (docs/results.md) --------------------------------------------------------------------------------------

const PNG = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];
/** `{"imagegen":` in UTF-16, big-endian: the comment in the EXIF of JPEG, WebP and AVIF files. */
const COMMENT = [...'{"imagegen":'].flatMap((character) => [0, character.charCodeAt(0)]);
/** No receipt is longer: a prompt has 8,192 characters at most. */
const MOST_BYTES = 512 * 1024;

const starts = (bytes, at, pattern) => pattern.every((byte, index) => bytes[at + index] === byte);

/** The receipt in the bytes of a file; null if there is none. */
export function receiptIn(bytes) {
  const text = starts(bytes, 0, PNG) ? pngText(bytes) : comment(bytes);
  try {
    return text ? (parse(text).imagegen ?? null) : null;
  } catch {
    return null;
  }
}

/** The text of the chunk `iTXt` whose keyword is `imagegen` (PNG specification, 11.3.4.5). It is not compressed. */
function pngText(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const head = [..."iTXtimagegen", "\0", "\0", "\0", "\0", "\0"].map((character) => character.charCodeAt(0));
  for (let at = PNG.length; at + 8 <= bytes.length;) {
    const length = view.getUint32(at);
    if (starts(bytes, at + 4, head)) {
      return new TextDecoder().decode(bytes.subarray(at + 4 + head.length, at + 8 + Math.min(length, MOST_BYTES)));
    }
    at += 12 + length;
  }
  return "";
}

function comment(bytes) {
  for (let at = bytes.indexOf(COMMENT[1]); at > 0; at = bytes.indexOf(COMMENT[1], at + 1)) {
    if (!starts(bytes, at - 1, COMMENT)) continue;
    const text = new TextDecoder("utf-16be").decode(bytes.subarray(at - 1, at - 1 + MOST_BYTES));
    return text.slice(0, endOf(text));
  }
  return "";
}

/** Where the JSON object ends that the text begins with. */
function endOf(text) {
  let depth = 0;
  for (const match of text.matchAll(/"(?:[^"\\]|\\.)*"|[{}]/gs)) {
    if (match[0] === "{") depth += 1;
    if (match[0] === "}" && --depth === 0) return match.index + 1;
  }
  return 0;
}

// -- masks: strokes in shares of the picture's size ------------------------------------------------------------------

/** The longest side of a mask in pixels; the service scales it to the picture. */
const LONGEST_SIDE = 1536;

/** Draw the strokes in one colour. `size` of a stroke: its width as a share of the longer side. */
export function draw(context, strokes, colour) {
  const { width, height } = context.canvas;
  Object.assign(context, { lineCap: "round", lineJoin: "round", strokeStyle: colour });
  for (const { size, erase, points } of strokes) {
    context.globalCompositeOperation = erase ? "destination-out" : "source-over";
    context.lineWidth = size * Math.max(width, height);
    context.beginPath();
    points.forEach(([x, y], index) => context[index ? "lineTo" : "moveTo"](x * width, y * height));
    // A point alone is a dot.
    if (points.length === 1) context.lineTo(points[0][0] * width, points[0][1] * height);
    context.stroke();
  }
  context.globalCompositeOperation = "source-over";
}

/**
 * The mask as a PNG, whose transparent part is repainted: imagegen's own API and OpenAI's read it the same way.
 * undefined if nothing is painted.
 */
export function maskOf({ input, strokes }) {
  if (!strokes.some((stroke) => !stroke.erase)) return undefined;
  const scale = Math.min(1, LONGEST_SIDE / Math.max(input.width, input.height));
  const canvas = Object.assign(document.createElement("canvas"), {
    width: Math.max(1, Math.round(input.width * scale)),
    height: Math.max(1, Math.round(input.height * scale)),
  });
  const context = canvas.getContext("2d");
  draw(context, strokes, "#000");
  context.globalCompositeOperation = "source-out";
  context.fillRect(0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/png");
}

// -- zips of files that are compressed already: stored, not deflated (APPNOTE.TXT, 4.3) ------------------------------

const TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let value = byte;
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
  return value;
});

function crc32(bytes) {
  let value = ~0;
  for (const byte of bytes) value = TABLE[(value ^ byte) & 255] ^ (value >>> 8);
  return ~value >>> 0;
}

/** Little-endian numbers, each with its size in bytes. */
function packed(...fields) {
  const view = new DataView(new ArrayBuffer(fields.reduce((sum, [size]) => sum + size, 0)));
  let at = 0;
  for (const [size, value] of fields) {
    if (size === 2) view.setUint16(at, value, true);
    else view.setUint32(at, value, true);
    at += size;
  }
  return new Uint8Array(view.buffer);
}

/** 1980-01-01, the first day of the format: files made from the same pictures are equal. */
const DATE = 0x21;
const UTF8 = 0x800;

/** A zip of `files`: [{name, data: Uint8Array}]. */
export function zip(files) {
  const parts = [];
  const directory = [];
  let offset = 0;
  for (const { name, data } of files) {
    const text = new TextEncoder().encode(name);
    const sizes = [
      [4, crc32(data)],
      [4, data.length],
      [4, data.length],
      [2, text.length],
      [2, 0],
    ];
    const common = [[2, 10], [2, UTF8], [2, 0], [2, 0], [2, DATE], ...sizes];
    const head = packed([4, 0x04034b50], ...common);
    parts.push(head, text, data);
    directory.push(packed([4, 0x02014b50], [2, 10], ...common, [2, 0], [2, 0], [2, 0], [4, 0], [4, offset]), text);
    offset += head.length + text.length + data.length;
  }
  const size = directory.reduce((sum, part) => sum + part.length, 0);
  const count = files.length;
  const end = packed([4, 0x06054b50], [2, 0], [2, 0], [2, count], [2, count], [4, size], [4, offset], [2, 0]);
  return new Blob([...parts, ...directory, end], { type: "application/zip" });
}
