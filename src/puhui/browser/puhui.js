/**
 * Puhui's static experts in JavaScript: on a page, in a worker, in Node 20. No dependencies, no network once loaded.
 *
 *     import { load } from "./puhui.js";
 *     const expert = await load("https://cdn.example/experts/0123/");
 *     const { label, confidence, sure } = expert.ask("turn on the light");
 *
 * Where the expert is not `sure`, ask the big model. A bundle is what `puhui/compress/bundle.py` describes; features
 * equal those of `puhui/models/hashing.py` bit for bit, confidences those of `puhui/models/static.py` to rounding.
 */

const CARD = "expert.json", SIGNATURE = "signature.json", CONFIG = "static.json", WEIGHTS = "weights.safetensors";
const PROBES = "probes.json";
const FORMATS = [3, 4];

/** A bundle is missing something, damaged or not signed. `file` names the file at fault. */
export class BundleError extends Error {
  constructor(file, why) {
    super(`${file} ${why}`);
    this.name = "BundleError";
    this.file = file;
  }
}

/**
 * The static expert in the bundle at `url`, once the digest of each file that it needs and the signature hold.
 * Options, and what `checks` says, as for `openBundle`. Throws BundleError.
 */
export async function load(url, options = {}) {
  const bundle = await openBundle(url, options);
  if (bundle.card.family !== "static") {
    throw new BundleError(CARD, `is of the family "${bundle.card.family}"; puhui.js runs "static" alone`);
  }
  const [config, weights] = await Promise.all([bundle.read(CONFIG), bundle.read(WEIGHTS)]);
  const expert = new Expert(bundle, new StaticModel(parsed(CONFIG, config), safetensors(weights)));
  if (options.probe) await probe(expert, bundle);
  await bundle.keep();
  return expert;
}

/** A bundle and its model, ready to answer. */
export class Expert {
  constructor({ card, id, checks, bytes }, model) {
    Object.assign(this, { card, id, checks, bytes, labels: model.labels });
    this.model = model;
  }

  /** { label, confidence in [0, 1], sure: whether the guarantee was proven for such a confidence } of any text. */
  ask(text) {
    const { label, confidence } = this.model.predict(text);
    const threshold = this.card.calibration.threshold ?? Infinity;
    return { label, confidence, sure: confidence >= threshold };
  }
}

/**
 * Asks the expert the bundle's probes: `expert.probed` is then { texts, same, furthest }, of how many texts, how many
 * got the label that they got where the expert was made, and by how much confidences are off at most; null where the
 * bundle has none. Throws BundleError for another label where either is sure: nothing that was proven holds here then.
 */
export async function probe(expert, bundle) {
  expert.probed = null;
  if (!bundle.card.files?.[PROBES]) return;
  const made = parsed(PROBES, await bundle.read(PROBES)), threshold = bundle.card.calibration.threshold ?? Infinity;
  const found = { texts: made.length, same: 0, furthest: 0 };
  for (const { text, label, confidence } of made) {
    const said = await expert.ask(text);
    found.furthest = Math.max(found.furthest, Math.abs(said.confidence - confidence));
    if (said.label === label) found.same++;
    else if (Math.max(said.confidence, confidence) >= threshold) {
      throw new BundleError(PROBES, `is answered otherwise on this device: "${said.label}" for "${label}"`);
    }
  }
  expert.probed = found;
}

// --- the bundle: fetched, checked, kept -------------------------------------------------------------------------

/**
 * The card of the bundle at `url`, and `read(name)`, which gives the ArrayBuffer of a file once its digest holds.
 *
 * `expert`: the id that it must have. `trusted`: the public keys that may have signed it (default: any).
 * `cache`: keep it in Cache Storage, so that it loads without a network; what a server takes back (404) stays away.
 * `unchecked`: go on where nothing can be checked, as on a page that came over plain HTTP. `fetch`: in place of fetch.
 * `probe`: see whether the expert answers here as where it was made (`probe`).
 * `checks` says of the digests and the signature whether they were checked: what is checked and wrong is an error.
 */
export async function openBundle(url, { expert, trusted, cache = false, unchecked = false, fetch } = {}) {
  const subtle = globalThis.crypto?.subtle;
  if (!subtle && !unchecked) {
    throw new Error("no WebCrypto here, so nothing can be checked: use https or localhost, or { unchecked: true }");
  }
  const store = cache && globalThis.caches ? await caches.open("puhui") : null;
  const folder = new URL(`${String(url).replace(/\/*$/, "")}/`, globalThis.location?.href);
  const files = new Files(folder, store, subtle, fetch ?? globalThis.fetch.bind(globalThis));
  const [cardBytes, signatureBytes] = await Promise.all([files.get(CARD, expert), files.get(SIGNATURE)]);
  const card = parsed(CARD, cardBytes), signature = parsed(SIGNATURE, signatureBytes);
  const id = (await files.digest(cardBytes)) ?? expert ?? null;
  if (trusted && !trusted.includes(signature.key)) {
    throw new BundleError(SIGNATURE, `is of the key ${signature.key?.slice?.(0, 16)}…, which is not trusted here`);
  }
  const signed = subtle ? await verified(subtle, id, signature) : false;
  if (trusted && !signed && !unchecked) throw new Error("no Ed25519 here, so nobody's signature can be trusted");
  return {
    card,
    id,
    checks: { digests: Boolean(subtle), signature: signed },
    get bytes() { return files.bytes; },
    keep: () => files.keep(),
    read(name) {
      const digest = card.files?.[name];
      if (typeof digest !== "string") throw new BundleError(CARD, `gives no digest of ${name}`);
      return files.get(name, digest);
    },
  };
}

/** The files of one folder, from Cache Storage or the network. `bytes` counts what was read, unpacked. */
class Files {
  constructor(folder, store, subtle, fetch) {
    Object.assign(this, { folder, store, subtle, fetch, bytes: 0, fresh: new Map() });
  }

  async get(name, digest) {
    const address = new URL(name, this.folder).href;
    const bytes = digest ? await this.known(name, address, digest) : await this.latest(name, address);
    this.bytes += bytes.byteLength;
    return bytes;
  }

  /** The file of that digest: the one kept, the one in the browser's cache or else the server's. */
  async known(name, address, digest) {
    const right = async (bytes) => bytes && (!this.subtle || (await this.digest(bytes)) === digest);
    const kept = await this.kept(address);
    if (await right(kept)) return kept;
    for (const mode of ["default", "reload"]) {
      const bytes = await this.download(name, address, mode);
      if (await right(bytes)) return bytes;
    }
    throw new BundleError(name, `was changed: its digest is not ${digest.slice(0, 16)}…`);
  }

  /** The server's file; where no server is reached, the one kept. */
  async latest(name, address) {
    try {
      return await this.download(name, address, "no-cache");
    } catch (error) {
      const kept = error.status ? null : await this.kept(address);
      if (!kept) throw error;
      return kept;
    }
  }

  async download(name, address, mode) {
    let response;
    try {
      response = await this.fetch(address, { cache: mode });
      if (response.ok) {
        const bytes = await response.arrayBuffer();
        this.fresh.set(address, bytes);
        return bytes;
      }
    } catch (error) {
      throw new BundleError(name, `cannot be fetched (${error.message})`);
    }
    const { status } = response;
    throw Object.assign(new BundleError(name, `cannot be fetched (status ${status})`), { status });
  }

  async kept(address) {
    return (await this.store?.match(address))?.arrayBuffer();
  }

  /** Puts what was fetched into Cache Storage, now that all of it is known to be right. */
  async keep() {
    for (const [address, bytes] of this.store ? this.fresh : []) await this.store.put(address, new Response(bytes));
  }

  async digest(bytes) {
    if (!this.subtle) return null;
    const found = new Uint8Array(await this.subtle.digest("SHA-256", bytes));
    return Array.from(found, (byte) => byte.toString(16).padStart(2, "0")).join("");
  }
}

/** True for a valid signature, false where this browser knows no Ed25519. Throws BundleError for a wrong one. */
async function verified(subtle, id, { key, signature }) {
  const pairs = (hex) => (/^([0-9a-f]{2})+$/i.test(hex) ? hex.match(/../g) : []); // no bytes are never valid
  const binary = (hex) => Uint8Array.from(pairs(hex), (pair) => Number.parseInt(pair, 16));
  let valid = false;
  try {
    const owner = await subtle.importKey("raw", binary(key), "Ed25519", false, ["verify"]);
    valid = await subtle.verify("Ed25519", owner, binary(signature), new TextEncoder().encode(id));
  } catch (error) {
    if (error.name === "NotSupportedError") return false;
  }
  if (!valid) throw new BundleError(SIGNATURE, `or ${CARD} was changed: the signature does not match its key`);
  return true;
}

/** The JSON in the bytes of the file `name`. */
export function parsed(name, bytes) {
  try {
    return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch (error) {
    throw new BundleError(name, `is damaged (${error.message})`);
  }
}

const ARRAYS = { I8: Int8Array, U8: Uint8Array, F32: Float32Array };

/** Arrays by name, each with its `shape`. */
function safetensors(buffer) {
  try {
    const length = Number(new DataView(buffer).getBigUint64(0, true));
    const { __metadata__, ...header } = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length)));
    return new Map(Object.entries(header).map(([name, { dtype, shape, data_offsets: [from, to] }]) => {
      const Type = ARRAYS[dtype];
      if (!Type) throw new TypeError(`${name} is of the type ${dtype}`);
      const array = new Type(buffer.slice(8 + length + from, 8 + length + to));
      if (array.length !== shape.reduce((product, size) => product * size, 1)) throw new RangeError(`${name} is cut`);
      return [name, Object.assign(array, { shape })];
    }));
  } catch (error) {
    throw new BundleError(WEIGHTS, `is damaged (${error.message})`);
  }
}

// --- the model: hashed features → rows of logits → weighted mean → label ----------------------------------------

/** As `StaticModel` of `puhui/models/static.py`. */
export class StaticModel {
  constructor({ format, labels, features: options, reads }, arrays) {
    if (!FORMATS.includes(format)) {
      throw new BundleError(CONFIG, `has format ${format}; this puhui.js reads ${FORMATS.join(" and ")}`);
    }
    this.labels = labels;
    this.hasher = new Hasher(options);
    const count = labels.length, damaged = (why) => new BundleError(WEIGHTS, `is damaged: ${why}`);
    const take = (name, shape, Type) => {
      const array = arrays.get(name);
      arrays.delete(name);
      if (!(array instanceof Type && String(array.shape) === String(shape))) {
        throw damaged(`${name} is missing, or not ${Type.name} of shape ${shape}`);
      }
      if (Type === Float32Array && !array.every(Number.isFinite)) throw damaged(`${name} is not finite`);
      return array;
    };
    this.towers = reads.map((read, i) => {
      const rows = arrays.get(`${i}.gain`)?.length ?? 0, packed = arrays.get(`${i}.table`) instanceof Uint8Array;
      const table = take(`${i}.table`, [rows, packed ? (count + 1) >> 1 : count], packed ? Uint8Array : Int8Array);
      const slots = rowsOf(take(`${i}.owners`, [(options.buckets + 7) >> 3], Uint8Array), options.buckets);
      if (slots.owned !== rows - 1) throw damaged(`${slots.owned} buckets own rows, and ${rows} rows are there`);
      return {
        read,
        slots,
        table: packed ? unpacked(table, rows, count) : table,
        gain: take(`${i}.gain`, [rows], Float32Array),
        weight: take(`${i}.weight`, [rows], Float32Array),
        bias: take(`${i}.bias`, [count], Float32Array),
        seen: new Uint32Array(rows),
      };
    });
    [this.slope] = take("reliability.slope", [1], Float32Array);
    this.offset = take("reliability.offset", [count], Float32Array);
    if (!(this.slope > 0)) throw damaged(`the slope of its reliability is ${this.slope}`);
    if (arrays.size) throw new BundleError(WEIGHTS, `holds ${[...arrays.keys()]}, unknown here: upgrade puhui.js`);
    this.logits = new Float64Array(count);
    this.sums = new Float64Array(count);
    this.turn = 0;
  }

  /** { label, confidence in [0, 1] } of any text. */
  predict(text) {
    const { logits } = this;
    const { buckets, words } = this.hasher.read(text);
    logits.fill(0);
    this.turn = (this.turn + 1) >>> 0 || 1;
    for (const tower of this.towers) this.add(tower, buckets, tower.read === "all" ? buckets.length : words);
    let best = 0;
    for (let j = 1; j < logits.length; j++) if (logits[j] > logits[best]) best = j;
    let second = -Infinity;
    for (let j = 0; j < logits.length; j++) if (j !== best && logits[j] > second) second = logits[j];
    const evidence = this.slope * (logits[best] - second) + this.offset[best];
    return { label: this.labels[best], confidence: 1 / (1 + Math.exp(-evidence)) };
  }

  /**
   * Adds a tower's logits: row 0 counts for nothing, and each other once however often the text repeats it, but for
   * words in their order, which count each time and by where they stand.
   */
  add({ read, slots, table, gain, weight, bias, seen }, buckets, count) {
    const { logits, sums, turn } = this, labels = sums.length;
    sums.fill(0);
    let squares = 0;
    for (let i = 0; i < count; i++) {
      const row = slots[buckets[i]];
      if (row === 0 || (read !== "order" && seen[row] === turn)) continue;
      seen[row] = turn;
      squares += weight[row] * weight[row];
      const factor = read === "order" ? gain[row] * ((i + 0.5) / count - 0.5) : gain[row];
      for (let j = 0, at = row * labels; j < labels; j++, at++) sums[j] += factor * table[at];
    }
    const norm = Math.max(Math.sqrt(squares), 1e-6);
    for (let j = 0; j < labels; j++) logits[j] += sums[j] / norm + bias[j];
  }
}

/** The row of each bucket, from a bit for each: those that own one own the rows 1, 2, …, in order. */
function rowsOf(owners, buckets) {
  const rows = new Uint32Array(buckets);
  rows.owned = 0;
  for (let bucket = 0; bucket < buckets; bucket++) {
    if ((owners[bucket >> 3] >> (bucket & 7)) & 1) rows[bucket] = ++rows.owned;
  }
  return rows;
}

/** Two numbers a byte, each plus 8, the even label's in the low four bits. */
function unpacked(table, rows, labels) {
  const found = new Int8Array(rows * labels), width = (labels + 1) >> 1;
  for (let row = 0, at = 0; row < rows; row++) {
    for (let j = 0; j < labels; j++) found[at++] = ((table[row * width + (j >> 1)] >> (4 * (j & 1))) & 15) - 8;
  }
  return found;
}

// --- features: as `puhui/models/hashing.py`, bit for bit --------------------------------------------------------

const BASE = 0x9e3779b1, MIX_1 = 0x85ebca6b, MIX_2 = 0xc2b2ae35, SALT = 0x632be5ab;
const SEPARATOR = 0, LETTER = 1, IDEOGRAPH = 2;
const KINDS = new Uint8Array(0x10000).fill(LETTER);
for (const [first, end, kind] of [
  [0x0000, 0x0030, SEPARATOR], [0x003a, 0x0061, SEPARATOR], [0x007b, 0x00aa, SEPARATOR], [0x00ab, 0x00b5, SEPARATOR],
  [0x00b6, 0x00c0, SEPARATOR], [0x2000, 0x2070, SEPARATOR], [0x3000, 0x3005, SEPARATOR], [0x3008, 0x3021, SEPARATOR],
  [0x3040, 0x3100, IDEOGRAPH], [0x3400, 0xa000, IDEOGRAPH], [0xf900, 0xfb00, IDEOGRAPH],
]) KINDS.fill(kind, first, end);

/** { buckets: Uint32Array, words: how many of the first are single words } of any text. */
export function features(text, options) {
  const { buckets, words } = new Hasher(options).read(text);
  return { buckets: buckets.slice(), words };
}

class Hasher {
  constructor({ buckets, char_min, char_max, words, max_chars }) {
    const most = max_chars + 2;
    Object.assign(this, { charMin: char_min, charMax: char_max, runs: words, maxChars: max_chars });
    this.mask = buckets - 1;
    this.prefix = new Int32Array(most + 1);
    this.starts = new Int32Array(most);
    this.ends = new Int32Array(most);
    this.powers = powers(BASE, most);
    this.inverses = powers(inverse(BASE), most + 1);
    this.found = new Uint32Array(most * (words + char_max - char_min + 1));
  }

  /** As `features`; the buckets are a view that holds until the next call. */
  read(text) {
    const { prefix, starts, ends, inverses, found, mask } = this;
    const [n, words] = this.lay(folded(text, this.maxChars));
    if (words === 0) return { buckets: Uint32Array.of(mixed(SALT) & mask), words: 1 };
    let count = 0;
    for (let k = 0; k < this.runs; k++) {
      const salt = Math.imul(-1 - k, SALT);
      for (let i = 0; i + k < words; i++) {
        const first = starts[i];
        found[count++] = mixed(Math.imul(prefix[ends[i + k]] - prefix[first], inverses[first]) + salt) & mask;
      }
    }
    for (let length = this.charMin; length <= Math.min(this.charMax, n); length++) {
      const salt = Math.imul(length, SALT);
      for (let i = 0; i + length <= n; i++) {
        found[count++] = mixed(Math.imul(prefix[i + length] - prefix[i], inverses[i]) + salt) & mask;
      }
    }
    return { buckets: found.subarray(0, count), words };
  }

  /** Lays out code points: prefix sums, and where words begin and end. Returns how many symbols and words. */
  lay(codes) {
    const { prefix, starts, ends, powers } = this;
    let n = 0, words = 0, before = SEPARATOR;
    for (let i = -1; i <= codes.length; i++) {
      const code = i < 0 || i === codes.length ? 0x20 : codes[i];
      const kind = code < 0x10000 ? KINDS[code] : LETTER;
      if (kind === SEPARATOR && before === SEPARATOR && n > 0) continue;
      if (kind !== LETTER || before !== LETTER) {
        if (before !== SEPARATOR) ends[words - 1] = n;
        if (kind !== SEPARATOR) starts[words++] = n;
      }
      const spread = Math.imul(kind === SEPARATOR ? 0x20 : code, MIX_1);
      prefix[n + 1] = prefix[n] + Math.imul(spread ^ (spread >>> 15), powers[n]);
      before = kind;
      n++;
    }
    return [n, words];
  }
}

/** Murmur3's finaliser. */
function mixed(hash) {
  hash = Math.imul(hash ^ (hash >>> 16), MIX_1);
  hash = Math.imul(hash ^ (hash >>> 13), MIX_2);
  return hash ^ (hash >>> 16);
}

function powers(base, count) {
  const found = new Int32Array(count).fill(1);
  for (let i = 1; i < count; i++) found[i] = Math.imul(found[i - 1], base);
  return found;
}

/** The inverse of an odd number modulo 2³², by Newton's method: each round doubles the right bits. */
function inverse(odd) {
  let found = odd;
  for (let round = 0; round < 5; round++) found = Math.imul(found, 2 - Math.imul(odd, found));
  return found;
}

/** The code points of a text, cut to `most`, in NFKC and lower case as Unicode 14 has them. */
function folded(text, most) {
  const codes = [];
  for (const part of cut(text, most)) {
    part.split(INERT).forEach((piece, i) => {
      const whole = i % 2 ? piece : piece.normalize("NFKC").toLowerCase();
      for (const character of whole) codes.push(character.codePointAt(0));
    });
  }
  if (codes.length <= most) return codes;
  const tail = most >> 1;
  return [...codes.slice(0, most - tail), ...codes.slice(codes.length - tail)];
}

/** The text, or its first and last half of `most` code points: in two parts where they would make one character. */
function cut(text, most) {
  const tail = most >> 1, head = most - tail;
  if (text.length <= most || (text.length <= 2 * most && [...text].length <= most)) return [text];
  const first = [...text.slice(0, 2 * head)].slice(0, head).join("");
  const last = [...text.slice(-2 * tail)].slice(-tail).join("");
  return /[\ud800-\udbff]$/.test(first) && /^[\udc00-\udfff]/.test(last) ? [first, last] : [first + last];
}

/**
 * Characters that Unicode 14, Python 3.11's, does not know, as gaps and lengths, with neighbours that folding leaves
 * alone. A newer browser would fold some of them. A text may be folded in pieces on both sides of any of them.
 */
const UNKNOWN = `
  378 2 6 4 7 1 1 1 14 1 18d 1 26 2 32 6 37 8 1b 7 3 b 10e 1 3c 5b c 39 10 2 31 2b 3 2c 7 1 2 6 ec 1d 8 6 2 b 9 2 2
  4 2 8 1 4 2 1 5 1a 1 2 3 12 13 2 6 1 2 2 1 1 2 2 1 4 2 4 2 2 3 3 1 7 4 1 1 11 7 a 3 38 a 1 3 3 1 14 2 16 6 1 3 1d
  8 13 9 2 2 4 1 7 3 4 2 4 2 1e 2 e 4 28 5 3 3 4 1 9 1 28 d 2f 9 1 3 1 4 7 2 b 2 1d c 2f 9 1 3 1 4 7 2 b 2 1c d 2e a
  1 3 4 3 7 d 1d 3 46 1 4 6 1 1 2 7 51 a b 16 55 d 8 1 1 6 e 4 2c 3c 4 21 4 27 1 24 9 7 58 a1 1 1 5 1 2 179 114 20
  23 56 2 6 314 4 1c 5 1b 2 1e 2 40 2a 2d f 29 36 c 26 75 c 6 a db 5 3a 9 1 1d 2 b 1d 7 2 1f 31 4d 1e 14 1 74 38 c
  40 11 7 2b 2 b 8 2b 5 216 2 6 2 26 2 6 2 8 1 1 1 1 1 1 1 1f 2 35 1 f 1 e 2 6 1 13 2 3 1 9 1 65 1 c 2 1b 1 d b 19 f
  21 f 8c 4 297 39 714 8c f4 c 26 1 1 5 1 41 2 e 18 49 7e 41 55 c d6 2a 40 6 51 2 67 31 5e 3 52 1c 1f 1 726d 6b 134
  14 b8 8 cb 5 2 1 1 1 5 18 3b 97 2 1a 74 2c 4e 1 b b 1a 2a e c b 22 53 1a 1a 39 3c 4 7e 12 2ba4 215c 16e 2 6a 26 7
  c 5 5 1a 1 5 1 1 1 2 1 2 1 7d 10 1bd 2 36 28 2a 6 33 1 13 1 4 4 5 1 87 2 1 1 be 3 6 2 6 2 6 2 3 3 7 1 7 a 5 1ff 1
  e2 1c 7a 5 85 9e 12 24 4 24 74 b 1 f 1 7 1 2 1 b 1 f 1 7 1 2 1c3 6 1 2a 1 9 246 3 1 2 5 8 24 3 4 a 9c 2 199 33 d
  33 31 4 183 3 98 14 28 8 77 4d 22 6 9 44 a 1 32 35 3e 4 9 60 4f 10 a0 c 15 4 37 a 2 2 4 1 9 1 e 7 3 5 c3 24 2 4 4e
  18 e7 7 2 26 55 12 66 f 63 f 103 d 64 53 3d 6 5 c 8d 4 2 b 1c 47 9 52 18d 7 1 e 4c 16 2 d 7a 6 3 1 1 2 1 9 48 2 3
  4 15a 6 1537 9 36b7 6 3a 16 2fa 5b b4 39 7 11 40 5 b 2 3ffe 4 1 7 1 2 c9e 7 125c 2e 2 17 210 94 57 4 1ba 55 1 47 1
  2 2 1 2 2 2 4 1 c 1 1 1 7 1 41 1 4 2 8 1 7 1 1c 1 4 1 5 1 1 3 7 1 154 2 124 2 2be f 5 1 f 450 1f e1 7 1 11 2 7 1 2
  1 5 105 e 170 1 3d e 5d6 7 29 4c 4b4 4 1 1b 1 2 1 1 2 1 1 a 1 4 1 1 1 1 6 1 4 1 1 1 1 1 1 3 1 2 1 1 2 1 1 1 1 1 1
  1 1 1 1 2 1 1 2 4 1 7 1 4 1 4 1 1 1 a 1 11 5 3 1 5 1 11 244 ae 52 3 d 2c 4 9 7 2 1a9 2dd 518 a 528 a5be 5120 21e
  b05e3 1 1e 60 80 f0 2fe10`;
let position = 0;
const ranges = UNKNOWN.trim().split(/\s+/).map((step) => (position += Number.parseInt(step, 16)));
const escaped = ranges.map((code, i) => `\\u{${(i % 2 ? code - 1 : code).toString(16)}}${i % 2 ? "" : "-"}`);
/** They and lone surrogates, which are left as they are. */
const INERT = new RegExp(`([${escaped.join("")}\\ud800-\\udfff])`, "u");
