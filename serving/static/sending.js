"use strict";

// What the page sends: files packed as one scan, with the token and with progress.

const MAX_FILES = 65535; // of a zip without its 64-bit extension
const MAX_BYTES = 0xffffffff;
const TABLE = crcTable();

/** One line for the user. */
export class Refused extends Error {}

function crcTable() {
  return Uint32Array.from({ length: 256 }, (_, n) => {
    let c = n;
    for (let bit = 0; bit < 8; bit += 1) c = c & 1 ? 0xedb88320 ^ (c >>> 1) : c >>> 1;
    return c;
  });
}

/** CRC-32 of bytes, as a zip has it. */
export function crc32(bytes) {
  let crc = 0xffffffff;
  for (const byte of bytes) crc = TABLE[(crc ^ byte) & 0xff] ^ (crc >>> 8);
  return (crc ^ 0xffffffff) >>> 0;
}

/** Little-endian bytes of [number, size] pairs. */
function packed(fields) {
  const view = new DataView(new ArrayBuffer(fields.reduce((sum, [, size]) => sum + size, 0)));
  let at = 0;
  for (const [value, size] of fields) {
    if (size === 2) view.setUint16(at, value, true);
    else view.setUint32(at, value, true);
    at += size;
  }
  return new Uint8Array(view.buffer);
}

function entryFields(crc, size, name) {
  // Version 2.0, no flags, stored; a fixed date, 1980-01-01; no extra field.
  return [[20, 2], [0, 2], [0, 2], [0, 2], [33, 2], [crc, 4], [size, 4], [size, 4], [name.length, 2], [0, 2]];
}

/** An uncompressed zip of files. Their names, which may be a patient's, stay here: members have numbers. */
export async function zipOf(files, told = () => {}) {
  const total = files.reduce((sum, file) => sum + file.size, 0);
  if (files.length > MAX_FILES) throw new Refused(`${files.length} files are too many: ${MAX_FILES} at most; send a zip`);
  if (total + 200 * files.length > MAX_BYTES) throw new Refused("the files are larger than 4 GiB together; send one series");
  const parts = [], directory = [];
  let offset = 0, inDirectory = 0;
  for (const [index, file] of files.entries()) {
    const name = new TextEncoder().encode(String(index).padStart(6, "0"));
    const crc = crc32(new Uint8Array(await file.arrayBuffer()));
    const fields = entryFields(crc, file.size, name);
    const head = packed([[0x04034b50, 4], ...fields]);
    const listed = packed([[0x02014b50, 4], [20, 2], ...fields, [0, 2], [0, 2], [0, 2], [0, 4], [offset, 4]]);
    parts.push(head, name, file);
    directory.push(listed, name);
    offset += head.length + name.length + file.size;
    inDirectory += listed.length + name.length;
    told(index + 1, files.length);
  }
  const count = files.length;
  const end = [[0x06054b50, 4], [0, 2], [0, 2], [count, 2], [count, 2], [inDirectory, 4], [offset, 4], [0, 2]];
  return new Blob([...parts, ...directory, packed(end)], { type: "application/zip" });
}

/** One file as it is, unless it is a DICOM file; several as a zip. */
export async function scanOf(files, told) {
  if (files.length === 0) throw new Refused("no file was given");
  if (files.length > 1) return zipOf(files, told);
  const mark = new TextDecoder("latin1").decode(await files[0].slice(128, 132).arrayBuffer());
  return mark === "DICM" ? zipOf(files, told) : files[0];
}

/** All files of a drop, those within folders too. */
export async function droppedFiles(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry && item.webkitGetAsEntry()).filter(Boolean);
  if (entries.length === 0) return [...transfer.files];
  return (await Promise.all(entries.map(within))).flat();
}

async function within(entry) {
  if (entry.isFile) return [await new Promise((done, failed) => entry.file(done, failed))];
  const reader = entry.createReader(), found = [];
  for (;;) { // a reader gives a hundred at a time
    const some = await new Promise((done, failed) => reader.readEntries(done, failed));
    if (some.length === 0) return found;
    found.push(...(await Promise.all(some.map(within))).flat());
  }
}

/** Requests to the service. */
export class Service {
  #requests = new Set();
  token = "";

  /** The answer as a Blob. `sent` is told the share of the upload. Throws Refused, in the service's words with `status`,
   * or `cancelled`. */
  ask(path, body, sent = () => {}) {
    return new Promise((done, failed) => {
      const request = new XMLHttpRequest();
      if (body) this.#requests.add(request);
      request.open(body ? "POST" : "GET", path);
      request.responseType = "blob";
      if (this.token) request.setRequestHeader("Authorization", `Bearer ${this.token}`);
      request.upload.onprogress = (event) => event.lengthComputable && sent(event.loaded / event.total);
      request.onabort = () => failed(Object.assign(new Refused("cancelled"), { cancelled: true }));
      request.onerror = () => failed(new Refused("the service does not answer, or ended the connection; is it running?"));
      request.onload = () => answered(request).then(done, failed);
      request.onloadend = () => this.#requests.delete(request);
      request.send(body ?? null);
    });
  }

  async askJson(path, body, sent) {
    return JSON.parse(await (await this.ask(path, body, sent)).text());
  }

  /** End what is asked about scans; what the page asks about the service goes on. */
  cancel() {
    for (const request of this.#requests) request.abort();
  }
}

async function answered(request) {
  if (request.status === 200) return request.response;
  const text = await request.response.text();
  let line = `the service answered with status ${request.status}`;
  try {
    line = JSON.parse(text).error ?? line;
  } catch {
    // not of the service itself: the status must do
  }
  throw Object.assign(new Refused(line), { status: request.status });
}
