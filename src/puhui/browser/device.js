/** The /device page: picks an expert, asks it as one types, and shows what it said, how surely and how fast. */

import { BundleError, load } from "./puhui.js";

const WORDS = {
  en: {
    other: "中文", title: "An expert, on this page",
    lead: "Type. The answer is computed here; what you type never leaves this page.",
    again: "Try again", expert: "Expert", text: "Your text", write: "Write something",
    emptyTitle: "No expert is in place yet",
    emptyText: "Puhui learns one from the big model's answers. Send it traffic; this page looks again by itself.",
    emptyForGood: "This node was told not to learn any (--no-learn). This page looks again by itself.",
    progress: (answers, needed) => `${answers} answers so far; the next attempt is at ${needed}`,
    noLearning: (answers) => `${answers} answers so far; this node does not learn`,
    loading: "Loading the expert…", looking: "Asking the node…", online: "Online", ready: "Works offline",
    away: "Offline, still answering", gone: "Node out of reach, still answering",
    cannot: "Needs the network here (no https)",
    here: "Answered here", big: "Not sure enough: the big model would be asked",
    confidence: (value, needed) => `confidence ${value}` + (needed ? `, needed ${needed}` : ""),
    time: (us) => `${us} µs on this device`,
    labels: "Answers it knows", coverage: "Answers by itself", risk: "Proven bound on the risk", wire: "Over the wire",
    kept: (size) => `already here, ${size}`, checked: "Checked", id: "Id", family: "Family",
    probed: "As where it was made",
    alike: ({ same, texts }) => `${same} of ${texts} texts`,
    checks: { both: "digests and signature", digests: "digests; no Ed25519 here", none: "nothing: no https" },
    atMost: (risk, sure) => `≤ ${risk}, ${sure} sure`,
    damaged: (why) => `The expert's bundle is damaged, so it does not answer. ${why}`,
    unreachable: () => "The node cannot be reached, and nothing is kept on this device yet.",
    unsupported: (family) => `This expert is of the family "${family}", which this page does not run.`,
    failed: (why) => `The expert cannot be loaded: ${why}`,
    promise: "The bound is on how often the expert's answer is one with which the big model would not agree. " +
      "It speaks of agreement, not of truth.",
  },
  zh: {
    other: "English", title: "专家，就在这个页面里",
    lead: "输入文字即可。答案在本机算出，您输入的内容不会离开这个页面。",
    again: "重试", expert: "专家", text: "您的文字", write: "写点什么",
    emptyTitle: "还没有专家上岗",
    emptyText: "普慧会从大模型的回答中学出专家。让流量经过它即可，本页会自动再查看。",
    emptyForGood: "本节点被设为不学习专家（--no-learn）。本页会自动再查看。",
    progress: (answers, needed) => `已有 ${answers} 个回答，到 ${needed} 个时再次尝试`,
    noLearning: (answers) => `已有 ${answers} 个回答；本节点不学习`,
    loading: "正在载入专家…", looking: "正在询问节点…", online: "在线", ready: "可离线使用",
    away: "已离线，照常回答", gone: "节点无法连接，照常回答", cannot: "此处需要网络（没有 https）",
    here: "由本机回答", big: "把握不足：会去问大模型",
    confidence: (value, needed) => `置信度 ${value}` + (needed ? `，要求 ${needed}` : ""),
    time: (us) => `本机用时 ${us} 微秒`,
    labels: "会答的答案数", coverage: "自己回答的比例", risk: "已证明的风险上界", wire: "传输大小",
    kept: (size) => `本机已有 ${size}`, checked: "已核验", id: "编号", family: "类别",
    probed: "与制作时一致",
    alike: ({ same, texts }) => `${texts} 条文本中的 ${same} 条`,
    checks: { both: "摘要与签名", digests: "摘要；此浏览器没有 Ed25519", none: "未核验：没有 https" },
    atMost: (risk, sure) => `≤ ${risk}，把握 ${sure}`,
    damaged: (why) => `专家的文件已损坏，因此不作答。${why}`,
    unreachable: () => "节点无法连接，本机也还没有存下任何内容。",
    unsupported: (family) => `此专家属于 “${family}” 类，本页不能运行。`,
    failed: (why) => `无法载入专家：${why}`,
    promise: "上界指的是：专家的回答与大模型不一致的请求所占的比例。它说的是与大模型一致，而不是正确。",
  },
};
const LOOK_AGAIN_MS = 10_000, LOOK_FOR_FIRST_MS = 2_000, TIMED_MS = 1;
const by = (id) => document.getElementById(id);
const folder = new URL("device/experts/", location.href);

let language = remembered("language") ?? (navigator.languages.some((tag) => /^zh/i.test(tag)) &&
  !/^en/i.test(navigator.languages[0]) ? "zh" : "en");
let experts = [], chosen, expert = null; // in place; the id of one; that one, loaded
let looked = false, stale = false, kept = false, transferred = 0, trouble = null, timer = 0;

const say = () => WORDS[language];
const percent = (share) => `${(share * 100).toFixed(share < 0.1 ? 1 : 0)} %`;
const surety = (delta) => `${Math.floor(1000 - delta * 1000 + 1e-6) / 10} %`; // rounded down: never "100 % sure"
const size = (bytes) => (bytes < 1e5 ? `${(bytes / 1e3).toFixed(1)} kB` : `${(bytes / 1e6).toFixed(2)} MB`);

function remembered(key, value) {
  try {
    if (value !== undefined) localStorage.setItem(`puhui-${key}`, value);
    return localStorage.getItem(`puhui-${key}`);
  } catch {
    return null; // storage is turned off: the page works all the same
  }
}

// --- what there is ----------------------------------------------------------------------------------------------

/** Reads the list of experts in place, and again from time to time. */
async function look() {
  clearTimeout(timer);
  try {
    const response = await fetch("device/experts", { cache: "no-cache" });
    if (!response.ok) throw new Error(`status ${response.status}`);
    stale = response.headers.has("x-puhui-kept");
    const { experts: found, learns = true, learning } = await response.json();
    experts = found;
    if (trouble?.kind === "unreachable") trouble = null;
    showLearning(learns, learning);
    if (!stale) await forget();
  } catch {
    stale = true;
    if (!expert) trouble = { kind: "unreachable" };
  }
  looked = true;
  const named = ({ id }) => location.hash === `#${id.slice(0, 12)}`;
  const next = experts.find(({ id }) => id === chosen) ?? experts.find(named) ?? experts[0];
  if (next?.id !== chosen) await choose(next);
  timer = setTimeout(look, experts.length ? LOOK_AGAIN_MS : LOOK_FOR_FIRST_MS);
  show();
}

/** Drops what is kept of experts that are no longer in place. */
async function forget() {
  if (!globalThis.caches) return;
  const cache = await caches.open("puhui");
  for (const { url } of await cache.keys()) {
    const here = url.startsWith(folder.href) ? url.slice(folder.href.length).split("/")[0] : null;
    if (here && !experts.some(({ id }) => id === here)) await cache.delete(url);
  }
}

async function choose(next) {
  [chosen, expert, trouble] = [next?.id, null, null];
  show();
  if (!next) return;
  if (next.family !== "static") {
    trouble = { kind: "unsupported", why: next.family };
    return show();
  }
  const url = new URL(next.id, folder).href;
  performance.clearResourceTimings();
  try {
    const loaded = await load(url, { expert: next.id, cache: true, unchecked: !isSecureContext, probe: true });
    if (chosen !== next.id) return; // another was chosen meanwhile
    expert = loaded;
    const entries = performance.getEntriesByType("resource").filter(({ name }) => name.startsWith(url));
    const fetched = entries.some(({ name }) => name.endsWith("/weights.safetensors"));
    transferred = fetched ? entries.reduce((sum, { transferSize }) => sum + transferSize, 0) : 0;
    kept = Boolean(globalThis.caches && (await caches.match(`${url}/weights.safetensors`)));
    for (let i = 0; i < 50; i++) expert.ask(`${i} ${next.task}`); // so that the first answer is timed warm
  } catch (error) {
    if (chosen !== next.id) return;
    const damaged = error instanceof BundleError && !/cannot be fetched/.test(error.message);
    trouble = { kind: damaged ? "damaged" : "failed", why: error.message };
  }
  show();
}

// --- what is shown ----------------------------------------------------------------------------------------------

function show() {
  const words = say();
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const element of document.querySelectorAll("[data-say]")) element.textContent = words[element.dataset.say];
  by("language").textContent = words.other;
  by("language").lang = language === "zh" ? "en" : "zh-CN";
  by("text").placeholder = expert ? words.write : words.loading;
  by("text").disabled = !expert;
  by("bench").hidden = !experts.length;
  by("empty").hidden = !looked || Boolean(experts.length || trouble);
  by("trouble").hidden = !trouble;
  by("what").textContent = trouble ? words[trouble.kind](trouble.why) : "";
  showState(words);
  showExperts();
  showFacts(words);
  showAnswer();
}

function showState(words) {
  let is = "online";
  if (!navigator.onLine || stale) is = expert ? (navigator.onLine ? "gone" : "away") : "looking";
  else if (!isSecureContext) is = "cannot";
  else if (kept && navigator.serviceWorker?.controller) is = "ready";
  const state = by("state");
  if (state.textContent !== words[is]) state.textContent = words[is];
  state.dataset.is = is === "gone" ? "away" : is;
}

/** The list to pick from; left alone where nothing changed, as it may be open. */
function showExperts() {
  const select = by("expert"), shown = [...select.options].map(({ value }) => value);
  if (String(shown) !== String(experts.map(({ id }) => id))) {
    select.replaceChildren(...experts.map(({ id, task }) => new Option(`${task} · ${id.slice(0, 6)}`, id)));
  }
  select.value = chosen ?? "";
}

function showFacts(words) {
  const told = experts.find(({ id }) => id === chosen);
  const facts = [];
  if (told) {
    facts.push([words.labels, told.labels]);
    facts.push([words.coverage, percent(told.coverage)]);
    facts.push([words.risk, words.atMost(percent(told.risk_bound), surety(told.delta))]);
  }
  if (expert) {
    const { digests, signature } = expert.checks;
    facts.push([words.wire, transferred ? size(transferred) : words.kept(size(expert.bytes))]);
    facts.push([words.checked, words.checks[signature ? "both" : digests ? "digests" : "none"]]);
    if (expert.probed) facts.push([words.probed, words.alike(expert.probed)]);
    facts.push([words.id, chosen.slice(0, 12)]);
  }
  by("facts").replaceChildren(...facts.map(([name, value]) => {
    const [pair, term, definition] = ["div", "dt", "dd"].map((tag) => document.createElement(tag));
    [term.textContent, definition.textContent] = [name, value];
    pair.append(term, definition);
    return pair;
  }));
}

function showLearning(learns, learning) {
  by("empty-text").dataset.say = learns ? "emptyText" : "emptyForGood";
  by("learning").replaceChildren(...learning.map(({ task, answers, needed }) => {
    const [item, bar, line] = ["li", "progress", "span"].map((tag) => document.createElement(tag));
    [bar.max, bar.value] = [needed, Math.min(answers, needed)];
    bar.setAttribute("aria-label", task);
    line.className = "small";
    line.textContent = say()[learns ? "progress" : "noLearning"](answers, needed);
    item.append(task, ...(learns ? [bar] : []), line);
    return item;
  }));
}

function showAnswer() {
  const words = say(), text = by("text").value, threshold = expert?.card.calibration.threshold;
  const said = expert && text ? timed(text) : null;
  by("answer").dataset.verdict = !said ? "none" : said.sure ? "here" : "away";
  by("label").textContent = said?.label ?? "…";
  by("fill").style.width = `${(said?.confidence ?? 0) * 100}%`;
  by("mark").hidden = threshold == null;
  by("mark").style.left = `calc(${(threshold ?? 0) * 100}% - 1px)`;
  by("confidence").textContent = said ? words.confidence(said.confidence.toFixed(3), threshold?.toFixed(3)) : "";
  by("time").textContent = said ? words.time(said.us < 10 ? said.us.toFixed(1) : Math.round(said.us)) : "";
  by("verdict").textContent = !said ? "" : said.sure ? words.here : words.big;
}

/** The expert's answer, and the mean time of as many as fill a millisecond: a page's clock ticks in 5 to 100 µs. */
function timed(text) {
  const started = performance.now();
  let said, rounds = 0, spent = 0;
  do {
    said = expert.ask(text);
    spent = performance.now() - started;
    rounds++;
  } while (spent < TIMED_MS);
  return { ...said, us: (spent / rounds) * 1000 };
}

// --- what is done -----------------------------------------------------------------------------------------------

by("text").addEventListener("input", showAnswer);
by("expert").addEventListener("change", ({ target }) => {
  history.replaceState(null, "", `#${target.value.slice(0, 12)}`);
  choose(experts.find(({ id }) => id === target.value));
});
by("language").addEventListener("click", () => {
  language = language === "zh" ? "en" : "zh";
  remembered("language", language);
  look();
});
by("again").addEventListener("click", () => {
  chosen = undefined;
  trouble = null;
  look();
});
addEventListener("online", look);
addEventListener("offline", show);
navigator.serviceWorker?.addEventListener("controllerchange", show);
navigator.serviceWorker?.register("device/device-worker.js", { scope: "./device" }).catch(() => show());

show();
await look();
if (expert) by("text").focus();
