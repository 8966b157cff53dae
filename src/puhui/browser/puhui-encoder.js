/**
 * Puhui's encoder experts in a browser, on an onnxruntime-web that the caller brings.
 *
 *     import * as ort from "onnxruntime-web";
 *     import { loadEncoder } from "./puhui-encoder.js";
 *     const expert = await loadEncoder(ort, "https://cdn.example/experts/0123/");
 *     const { label, confidence, sure } = await expert.ask("turn on the light");
 *
 * Bundles are checked as puhui.js checks them. Tokens are those of `tokenizer.json`, for BERT's kind of it: clean
 * text, ideographs apart, accents off, lower case, words and punctuation, WordPiece. ONNX Runtime's int8 kernels differ
 * from machine to machine, and the browser's from Python's: { probe: true } sees whether that changes answers here.
 */

import { BundleError, openBundle, parsed, probe } from "./puhui.js";

const CONFIG = "encoder.json", MODEL = "model.onnx", TOKENIZER = "tokenizer.json";
const FORMAT = 1, CHARACTERS_A_TOKEN = 32;

/**
 * The encoder expert in the bundle at `url`; `ort` is the module onnxruntime-web. Options as for `openBundle`, and
 * `session`: options of InferenceSession.create. Throws BundleError.
 */
export async function loadEncoder(ort, url, { session = { executionProviders: ["wasm"] }, ...options } = {}) {
  const bundle = await openBundle(url, options);
  if (bundle.card.family !== "encoder") {
    throw new BundleError("expert.json", `is of the family "${bundle.card.family}"; puhui-encoder.js runs "encoder"`);
  }
  const [configBytes, model, tokenizerBytes] = await Promise.all([CONFIG, MODEL, TOKENIZER].map(bundle.read));
  const config = parsed(CONFIG, configBytes);
  if (config.format !== FORMAT) throw new BundleError(CONFIG, `has format ${config.format}; read here is ${FORMAT}`);
  const tokenizer = new WordPieces(parsed(TOKENIZER, tokenizerBytes), config.max_tokens);
  let opened;
  try {
    opened = await ort.InferenceSession.create(new Uint8Array(model), session);
  } catch (error) {
    throw new BundleError(MODEL, `cannot be opened by ONNX Runtime (${error.message})`);
  }
  const expert = new EncoderExpert(bundle, config, tokenizer, ort, opened);
  if (options.probe) await probe(expert, bundle);
  await bundle.keep();
  return expert;
}

/** As `Expert` of puhui.js, but that answers come later. */
export class EncoderExpert {
  constructor({ card, id, checks, bytes }, config, tokenizer, ort, session) {
    Object.assign(this, { card, id, checks, bytes, labels: config.labels, config, tokenizer, ort, session });
    this.last = Promise.resolve();
  }

  /** { label, confidence in [0, 1], sure } of any text. Questions wait for each other: a session runs one at a time. */
  ask(text) {
    const answer = this.last.then(() => this.answer(text));
    this.last = answer.catch(() => {});
    return answer;
  }

  async answer(text) {
    const { slope, offset, labels } = this.config;
    const ids = BigInt64Array.from(this.tokenizer.encode(text), BigInt);
    const tensor = (data) => new this.ort.Tensor("int64", data, [1, data.length]);
    const feeds = { input_ids: tensor(ids), attention_mask: tensor(new BigInt64Array(ids.length).fill(1n)) };
    const logits = (await this.session.run(feeds)).logits.data;
    const best = logits.indexOf(Math.max(...logits));
    const second = Math.max(...logits.filter((_, number) => number !== best));
    const confidence = 1 / (1 + Math.exp(-(slope * (logits[best] - second) + offset[best])));
    return { label: labels[best], confidence, sure: confidence >= (this.card.calibration.threshold ?? Infinity) };
  }
}

/** BERT's tokenizer, from what Hugging Face's `tokenizers` writes. */
export class WordPieces {
  constructor({ normalizer, pre_tokenizer, model, post_processor, added_tokens }, maxTokens) {
    const kinds = [normalizer, pre_tokenizer, model, post_processor].map((part) => part?.type);
    if (String(kinds) !== "BertNormalizer,BertPreTokenizer,WordPiece,TemplateProcessing") {
      throw new BundleError(TOKENIZER, `is of the kind ${kinds}, which is not known here: only BERT's is`);
    }
    if (added_tokens.some((token) => ["normalized", "single_word", "lstrip", "rstrip"].some((flag) => token[flag]))) {
      throw new BundleError(TOKENIZER, "has added tokens of a kind that is not known here");
    }
    const pairs = post_processor.single;
    const place = pairs.findIndex((part) => part.Sequence);
    const named = ({ SpecialToken: { id } }) => post_processor.special_tokens[id].ids[0];
    Object.assign(this, { normalizer, model, maxTokens });
    this.vocabulary = new Map(Object.entries(model.vocab));
    this.before = pairs.slice(0, place).map(named);
    this.after = pairs.slice(place + 1).map(named);
    this.added = new Map(added_tokens.map(({ content, id }) => [content, id]));
    const contents = [...this.added.keys()].sort((one, other) => other.length - one.length);
    this.split = new RegExp(`(${contents.map((content) => content.replace(/[\\^$.*+?()[\]{}|]/g, "\\$&")).join("|")})`);
  }

  /** The numbers of a text's tokens, at most `maxTokens`, with those that stand before and after. */
  encode(text) {
    const most = this.maxTokens - this.before.length - this.after.length;
    const head = text.slice(0, 2 * this.maxTokens * CHARACTERS_A_TOKEN);
    const whole = [...head].slice(0, this.maxTokens * CHARACTERS_A_TOKEN).join("").replace(/\p{Surrogate}/gu, "?");
    const ids = [], parts = this.added.size ? whole.split(this.split) : [whole];
    for (let i = 0; i < parts.length && ids.length < most; i++) {
      if (i % 2) ids.push(this.added.get(parts[i]));
      else for (const word of this.words(parts[i])) ids.push(...this.pieces(word));
    }
    return [...this.before, ...ids.slice(0, most), ...this.after];
  }

  /** Words and marks of punctuation. */
  words(text) {
    const { clean_text: clean, handle_chinese_chars: apart, lowercase, strip_accents: strip } = this.normalizer;
    let found = text;
    if (clean) found = found.replace(/\ufffd|(?![\t\n\r])[\p{Cc}\p{Cf}\p{Co}]/gu, "").replace(/\p{White_Space}/gu, " ");
    if (apart) found = found.replace(IDEOGRAPH, " $& ");
    if (strip ?? lowercase) found = found.normalize("NFD").replace(/\p{Mn}/gu, "");
    // One by one, as tokenizers does: a sigma at a word's end stays the usual one.
    if (lowercase) found = found.replace(/\P{Lowercase_Letter}/gu, (character) => character.toLowerCase());
    return found.match(/[\p{P}$+<=>^`|~]|[^\p{White_Space}\p{P}$+<=>^`|~]+/gu) ?? [];
  }

  /** The longest pieces of a word that the vocabulary holds, from its beginning on; unknown if any is missing. */
  pieces(word) {
    const { unk_token: unknown, continuing_subword_prefix: prefix, max_input_chars_per_word: most } = this.model;
    const characters = [...word], found = [];
    for (let start = 0, end; start < characters.length && characters.length <= most; start = end) {
      let id;
      for (end = characters.length; end > start && id === undefined; end--) {
        id = this.vocabulary.get((start ? prefix : "") + characters.slice(start, end).join(""));
      }
      if (id === undefined) return [this.vocabulary.get(unknown)];
      found.push(id);
      end++;
    }
    return characters.length <= most ? found : [this.vocabulary.get(unknown)];
  }
}

/** As BERT has it, with the gap that `tokenizers` leaves at U+2B820. */
const IDEOGRAPH = new RegExp(
  "[\\u4e00-\\u9fff\\u3400-\\u4dbf\\uf900-\\ufaff\\u{20000}-\\u{2a6df}\\u{2a700}-\\u{2b81f}\\u{2b920}-\\u{2ceaf}" +
  "\\u{2f800}-\\u{2fa1f}]", "gu",
);
