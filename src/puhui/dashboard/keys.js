/** The keys: who may use the node, for what, and how much. A new key is shown once. */

import { again, begin, by, confirmed, day, energy, fill, h, keepKey, money, number, read, say, trouble } from "./shell.js";

const SCOPES = ["chat", "embeddings", "read", "admin"], KEEPS = ["nothing", "redacted", "whole"], EVERY_MS = 10_000;
const LIMITS = ["requests_per_minute", "tokens_per_minute", "money_per_day", "money_per_month", "kwh_per_day", "kwh_per_month"];
let keys = null, currency = "", drawn = "";

// --- the list ---------------------------------------------------------------------------------------------------

function fact(name, value) {
  return h("div", {}, h("dt", {}, name), h("dd", { style: { fontSize: "1rem", fontWeight: 400 } }, value));
}

function spent(key) {
  const { money: cost = 0, kwh = 0 } = key.spent?.month ?? {};
  return say("spentLine", money(cost, currency).join(" "), energy(kwh * 3.6e6).join(" "));
}

function drawKey(key) {
  const { rules } = key, active = key.state === "active";
  const limits = LIMITS.filter((name) => rules[name] !== undefined).map((name) => `${say(`limit_${name}`)}: ${number(rules[name])}`);
  const time = key.revoked ? say("revokedOn", day(key.revoked)) : key.expires ? say("expiresOn", day(key.expires)) : say("neverExpires");
  return h("section", { class: "card key", "data-key": key.id },
    h("div", { class: "head" }, h("h2", {}, key.name, " ", h("code", {}, key.id)), h("span", { class: `pill ${active ? "expert" : "bad"}` }, say(`state_${key.state}`))),
    h("p", { class: "small", style: { margin: 0 } }, `${say("madeOn", day(key.created))} · ${time}`),
    h("dl", {}, fact(say("mayDo"), rules.scopes.map((scope) => say(`scope_${scope}`)).join(", ")),
      fact(say("limits"), limits.length ? limits.map((line) => h("div", {}, line)) : say("noLimits")),
      fact(say("modelsAllowed"), rules.models?.length ? rules.models.join(", ") : say("anyModel")),
      fact(say("learns"), say(rules.inherit ? "inherited" : rules.share ? "shared" : "alone_")),
      fact(say("kept"), rules.keep ? say(`keep_${rules.keep}`) : say("keptAsNode")),
      fact(say("spent"), spent(key))),
    active && h("p", { class: "buttons" },
      h("button", { type: "button", "data-do": "change", onclick: () => edit(key) }, say("change")),
      h("button", { type: "button", "data-do": "revoke", onclick: () => revoke(key) }, say("revoke"))));
}

function draw() {
  if (by("copy").dataset.copied !== "yes") by("copy").textContent = say("copy");
  if (!keys) return;
  by("new").disabled = false;
  by("open").hidden = keys.length > 0;
  const order = ({ state, created }) => (state === "active" ? 0 : 1e12) - created;
  fill(by("keys"), [...keys].sort((one, other) => order(one) - order(other)).map(drawKey));
}

async function revoke(key) {
  if (!await confirmed(say("revokeTitle", key.name), say("revokeText"), say("revoke"))) return;
  try {
    await read(`keys/${key.id}`, { method: "DELETE" });
    await look();
  } catch (error) {
    trouble(error.message);
  }
}

// --- making and changing ----------------------------------------------------------------------------------------

function field(id, label, input) {
  return h("div", { class: "field" }, h("label", { for: id, htmlFor: id }, label), input);
}

/** The day on which a key expires (UTC), as a date field writes it. */
const lastDay = (key) => (key?.expires ? new Date(key.expires * 1000).toISOString().slice(0, 10) : "");

/** The form, filled with what there is of `key`; null: a new one. */
function form(key) {
  const rules = key?.rules ?? { scopes: keys.length ? ["chat", "embeddings"] : ["admin"] };
  const box = (scope) => h("label", {}, h("input", { type: "checkbox", name: "scopes", value: scope, checked: rules.scopes.includes(scope) }), " ", say(`scope_${scope}`));
  const limit = (name) => field(`limit-${name}`, say(`limit_${name}`), h("input", { id: `limit-${name}`, name, type: "number", min: name.startsWith("requests") || name.startsWith("tokens") ? 1 : 0, step: name.startsWith("requests") || name.startsWith("tokens") ? 1 : "any", value: rules[name] ?? "" }));
  return [
    h("h2", { id: "edit-title" }, say(key ? "editChange" : "editNew")), h("p", { class: "notice wrong", id: "edit-wrong", role: "alert", hidden: true }),
    field("name", say("keyName"), h("input", { id: "name", name: "name", required: true, maxLength: 128, value: key?.name ?? "", autocomplete: "off" })),
    h("fieldset", { class: "plain checks" }, h("legend", {}, say("mayDo")), SCOPES.map(box)),
    h("fieldset", { class: "plain" }, h("legend", {}, `${say("limits")} (${say("limitHint")})`), h("div", { class: "row" }, LIMITS.map(limit))),
    h("div", { class: "row" }, field("expires", say("keyExpires"), h("input", { id: "expires", name: "expires", type: "date", value: lastDay(key) })),
      field("keep", say("kept"), h("select", { id: "keep", name: "keep" }, h("option", { value: "" }, say("keptAsNode")), KEEPS.map((keep) => h("option", { value: keep, selected: rules.keep === keep }, say(`keep_${keep}`)))))),
    field("key-models", say("keyModels"), h("input", { id: "key-models", name: "models", value: (rules.models ?? []).join(", "), autocomplete: "off" })),
    h("p", { class: "checks" }, ["share", "inherit"].map((name) => h("label", {}, h("input", { type: "checkbox", name, checked: Boolean(rules[name]) }), " ", say(`key_${name}`)))),
    h("p", { class: "buttons" }, h("button", { type: "button", onclick: () => by("edit").close() }, say("no")),
      h("button", { class: "main", type: "submit" }, say(key ? "save" : "makeIt"))),
  ];
}

/** What the form says, as the node takes it; null takes a rule away. A day that was not touched leaves the very second. */
function filled(key) {
  const data = new FormData(by("edit-form")), text = (name) => data.get(name)?.trim() ?? "";
  const limits = LIMITS.map((name) => [name, text(name) === "" ? null : Number(text(name))]);
  const models = text("models").split(",").map((name) => name.trim()).filter(Boolean);
  const expires = text("expires") ? Date.parse(`${text("expires")}T23:59:59Z`) / 1000 : null;
  return {
    name: text("name"), ...(text("expires") === lastDay(key) ? {} : { expires }),
    rules: { ...Object.fromEntries(limits), scopes: data.getAll("scopes"), models: text("models") ? models : null,
      share: data.has("share") || null, inherit: data.has("inherit") || null, keep: text("keep") || null },
  };
}

function edit(key) {
  fill(by("edit-form"), form(key));
  by("edit-form").onsubmit = async (event) => {
    event.preventDefault();
    try {
      const made = await read(key ? `keys/${key.id}` : "keys", { method: key ? "PATCH" : "POST", json: filled(key) });
      by("edit").close();
      if (made.key) show(made.key);
      await look();
    } catch (error) {
      by("edit-wrong").textContent = error.message;
      by("edit-wrong").hidden = false;
    }
  };
  by("edit").showModal();
}

function show(key) {
  if (!keys.length) keepKey(key); // the first: from now on this page needs it
  by("shown-key").textContent = key;
  by("copy").dataset.copied = "";
  by("copy").textContent = say("copy");
  by("shown").onclose = () => {
    by("shown-key").textContent = "";
  };
  by("shown").showModal();
}

by("copy").onclick = async () => {
  const code = by("shown-key");
  try {
    await navigator.clipboard.writeText(code.textContent);
    by("copy").dataset.copied = "yes";
    by("copy").textContent = say("copied");
  } catch {
    getSelection().selectAllChildren(code); // no clipboard without https: it is marked, to be copied by hand
  }
};
by("new").onclick = () => edit(null);
begin(draw);
const look = again(async () => {
  const { data } = await read("keys"), now = JSON.stringify(data);
  if (!currency) currency = (await read("status")).currency;
  keys = data;
  if (now === drawn) return;
  drawn = now;
  draw();
}, EVERY_MS);
