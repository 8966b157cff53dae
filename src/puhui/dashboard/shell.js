/** What all pages share: words in two languages, colours, calls to the node, and making elements. */

import { WORDS } from "./words.js";

export const by = (id) => document.getElementById(id);
const page = document.documentElement.dataset.page;
const THEMES = ["system", "light", "dark"];
let language = remembered("language") ?? (/^zh/i.test(navigator.language) ? "zh" : "en");
let drawPage = () => {};

/** What is kept of a choice in this browser; with `value`, keeps that. */
function remembered(name, value) {
  try {
    if (value !== undefined) localStorage.setItem(`puhui-${name}`, value);
    return localStorage.getItem(`puhui-${name}`);
  } catch {
    return null; // storage is turned off: the page works all the same
  }
}

// --- words and numbers ------------------------------------------------------------------------------------------

/** The word or sentence of that name in the language chosen; those with values in them are functions. */
export function say(name, ...values) {
  const found = WORDS[language][name] ?? WORDS.en[name] ?? name;
  return typeof found === "function" ? found(...values) : found;
}
const locale = () => (language === "zh" ? "zh-CN" : "en-GB");
export const count = (number) => Math.round(number).toLocaleString(locale());
export const percent = (share, digits = share > 0 && share < 0.1 ? 1 : 0) => `${(share * 100).toFixed(digits)} %`;
/** How sure a promise at δ is, rounded down: nothing is 100 % sure. */
export const surety = (delta) => `${Math.floor(1000 - delta * 1000 + 1e-6) / 10} %`;

/** A number with three digits that matter. */
export function number(value) {
  if (!value) return "0";
  const size = Math.abs(value);
  if (size >= 1000) return Math.round(value).toLocaleString(locale());
  if (size >= 1e-5) return String(Number(value.toPrecision(3)));
  const [digits, power] = value.toExponential(1).split("e");
  return `${digits} × 10${[...power].map((sign) => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(sign)] ?? "").join("")}`;
}
const scaled = (value, steps) => {
  const [, unit, factor] = steps.find(([least]) => Math.abs(value) >= least) ?? steps.at(-1);
  return [number(value / factor), unit];
};
export const energy = (joules) => scaled(joules, [[3.6e6, "kWh", 3.6e6], [3.6, "Wh", 3600], [0, "mWh", 3.6]]);
export const joules = (value) => scaled(value, [[1000, "kJ", 1000], [0.5, "J", 1], [5e-4, "mJ", 1e-3], [0, "µJ", 1e-6]]).join(" ");
export const grams = (value) => scaled(value, [[1e3, "kg", 1e3], [1, "g", 1], [1e-3, "mg", 1e-3], [0, "µg", 1e-6]]);
export const bytes = (value) => scaled(value, [[1e6, "MB", 1e6], [0, "kB", 1e3]]).join(" ");
export const ms = (value) => (value === null || value === undefined ? "–" : value < 1 ? `${number(value * 1000)} µs` : `${number(value)} ms`);
export const money = (value, currency) => [value && Math.abs(value) < 0.01 ? number(value) : value.toFixed(2), currency];
export const clock = (seconds) => new Date(seconds * 1000).toLocaleTimeString(locale(), { hour12: false });
export const moment = (seconds) => new Date(seconds * 1000).toLocaleString(locale(),
  { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", hour12: false });
export const day = (seconds) => new Date(seconds * 1000).toLocaleDateString(locale(), { year: "numeric", month: "short", day: "numeric" });

// --- elements ---------------------------------------------------------------------------------------------------

/** An element: `h("p", { class: "small", onclick }, "text", other)`. What is given as text is never read as HTML. */
export function h(tag, given = {}, ...inside) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(given)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") Object.assign(element.style, value);
    else if (name in element && !["list", "form"].includes(name)) element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...inside.flat().filter((part) => part !== null && part !== undefined && part !== false));
  return element;
}
export const fill = (element, ...inside) => element.replaceChildren(...inside.flat().filter(Boolean));

/** A table whose rows fold into cards on a phone. Columns: { name, left, wide, cell(row) }. */
export function table(columns, rows, { caption, foot, mark } = {}) {
  const cell = (column, content) =>
    h("td", { class: [column.left && "left", column.wide && "wide"].filter(Boolean).join(" "), "data-label": column.name }, content ?? "");
  const line = (row) => h("tr", { class: mark?.(row) ? "chosen" : "" }, columns.map((column) => cell(column, column.cell(row))));
  return h("div", { class: "scroll" }, h("table", { class: "fold" },
    caption && h("caption", {}, caption),
    h("thead", {}, h("tr", {}, columns.map((column) =>
      h("th", { scope: "col", class: [column.left && "left", column.wide && "wide"].filter(Boolean).join(" ") }, column.name)))),
    h("tbody", {}, rows.map(line)),
    foot && h("tfoot", {}, line(foot))));
}

/** Radio buttons in a row; what is chosen is kept in this browser. Returns the choice. */
export function choice(place, name, options, chosen, onchoose) {
  const legend = place.querySelector("legend");
  fill(place, legend, options.map(([value, label]) => h("label", {},
    h("input", { type: "radio", name, value, checked: value === chosen, onchange: () => onchoose(value) }), label)));
}

/** Asks before something is done; whether it is to be done. */
export async function confirmed(title, text, yes) {
  const dialog = by("confirm");
  by("confirm-title").textContent = title;
  by("confirm-text").textContent = text;
  by("confirm-yes").textContent = yes;
  dialog.returnValue = "";
  dialog.showModal();
  await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
  return dialog.returnValue === "yes";
}

/** Shows what went wrong above the page, or takes it away. */
export function trouble(text) {
  by("trouble").textContent = text ?? "";
  by("trouble").hidden = !text;
}

// --- the node ---------------------------------------------------------------------------------------------------

export class NodeError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}
let shownKey = null;
try {
  shownKey = sessionStorage.getItem("puhui-key");
} catch {
  // kept in memory then
}

/** The key that this tab sends. It is in this tab only, and gone with it. */
export function keepKey(key) {
  shownKey = key;
  try {
    if (key) sessionStorage.setItem("puhui-key", key);
    else sessionStorage.removeItem("puhui-key");
  } catch {
    // kept in memory then
  }
  drawFrame();
}

let asking = null;

/** Asks the person for a key; all who wait for one get the same. */
function askKey(why) {
  asking ??= new Promise((resolve) => {
    const dialog = by("ask-key");
    by("ask-key-why").textContent = why ?? "";
    by("ask-key-why").hidden = !why;
    by("ask-key-value").value = "";
    dialog.oncancel = (event) => event.preventDefault();
    dialog.onclose = () => {
      keepKey(by("ask-key-value").value.trim());
      asking = null;
      resolve();
    };
    dialog.showModal();
  });
  return asking;
}

/**
 * A response of the node's; asks for a key where it wants one. Raises `NodeError` for what is no success. `optional`: a
 * page does without what the key that it has may not see.
 */
export async function call(path, { json, optional = false, ...options } = {}) {
  for (;;) {
    const sent = shownKey;
    const headers = { ...options.headers };
    if (sent) headers.authorization = `Bearer ${sent}`;
    if (json !== undefined) headers["content-type"] = "application/json";
    let response;
    try {
      response = await fetch(path, { ...options, headers, body: json === undefined ? undefined : JSON.stringify(json) });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new NodeError(0, say("unreachable"));
    }
    if (response.ok) return response;
    const message = (await response.json().catch(() => ({}))).error?.message ?? `status ${response.status}`;
    const wantsKey = response.status === 401 || (response.status === 403 && sent && !optional && /scope/.test(message));
    if (!wantsKey) throw new NodeError(response.status, message);
    if (sent === shownKey) await askKey(sent ? message : null);
  }
}
export const read = async (path, options) => (await call(`puhui/v1/${path}`, options)).json();

/** Runs `work` now and every so often while the page is seen; what it raises is shown. */
export function again(work, everyMs) {
  let timer = 0, running = false;
  const run = async () => {
    clearTimeout(timer);
    if (running) return;
    running = true;
    try {
      await work();
      trouble(null);
    } catch (error) {
      trouble(error.message);
      if (!(error instanceof NodeError)) console.error(error);
    }
    running = false;
    timer = setTimeout(() => !document.hidden && run(), everyMs);
  };
  document.addEventListener("visibilitychange", () => !document.hidden && run());
  run();
  return run;
}

// --- the frame --------------------------------------------------------------------------------------------------

function drawFrame() {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  document.title = `${say(`nav${page[0].toUpperCase()}${page.slice(1)}`)} · Puhui 普慧`;
  for (const element of document.querySelectorAll("[data-say]")) element.textContent = say(element.dataset.say);
  for (const element of document.querySelectorAll("[data-say-label]")) element.setAttribute("aria-label", say(element.dataset.sayLabel));
  const theme = document.documentElement.dataset.theme ?? "system";
  by("theme").textContent = { system: "◐", light: "○", dark: "●" }[theme];
  by("theme").title = say(`theme_${theme}`);
  by("theme").setAttribute("aria-label", say(`theme_${theme}`));
  by("language").textContent = say("other");
  by("language").lang = language === "zh" ? "en" : "zh-CN";
  by("key-button").hidden = !shownKey;
  by("key-button").textContent = say("dropKey");
}

/** Begins a page: `draw` draws it from what it has, and is called again when the language or the colours change. */
export function begin(draw) {
  drawPage = draw;
  by("language").onclick = () => {
    language = language === "zh" ? "en" : "zh";
    remembered("language", language);
    drawFrame();
    drawPage();
  };
  by("theme").onclick = () => {
    const next = THEMES[(THEMES.indexOf(document.documentElement.dataset.theme ?? "system") + 1) % THEMES.length];
    if (next === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = next;
    remembered("theme", next);
    drawFrame();
    drawPage();
  };
  by("key-button").onclick = () => {
    keepKey(null);
    location.reload();
  };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawPage());
  drawFrame();
  drawPage();
}
export { remembered };
