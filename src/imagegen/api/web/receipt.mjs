// The receipt that a picture's file carries (docs/results.md): read here, so that the picture is sent nowhere.
import { parse } from "./api.mjs";

const PNG = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];
/** `{"imagegen":` in UTF-16, big-endian: the comment in the EXIF of JPEG, WebP and AVIF files. */
const COMMENT = [...'{"imagegen":'].flatMap((character) => [0, character.charCodeAt(0)]);
/** No receipt is longer: a prompt has 8,192 characters at most. */
const LONGEST = 512 * 1024;

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
  for (let at = PNG.length; at + 8 <= bytes.length; ) {
    const length = view.getUint32(at);
    if (starts(bytes, at + 4, head)) {
      return new TextDecoder().decode(bytes.subarray(at + 4 + head.length, at + 8 + Math.min(length, LONGEST)));
    }
    at += 12 + length;
  }
  return "";
}

function comment(bytes) {
  for (let at = bytes.indexOf(COMMENT[1]); at > 0; at = bytes.indexOf(COMMENT[1], at + 1)) {
    if (!starts(bytes, at - 1, COMMENT)) continue;
    const text = new TextDecoder("utf-16be").decode(bytes.subarray(at - 1, at - 1 + LONGEST));
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
