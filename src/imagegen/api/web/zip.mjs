// A zip file of files that are compressed already: stored, not deflated (APPNOTE.TXT, 4.3).

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
    const sizes = [[4, crc32(data)], [4, data.length], [4, data.length], [2, text.length], [2, 0]];
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
