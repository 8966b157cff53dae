/** The experts: each task with the one in place, what its watch has seen, its versions, and what a person may do. */

import { evidence } from "./chart.js";
import { again, begin, by, bytes, confirmed, count, fill, h, moment, ms, number, percent, read, say, surety, table, trouble } from "./shell.js";

const EVERY_MS = 3000, ID = 12;
let found = null, drawn = "";
const chosen = new Map(), opened = new Set(), texts = new Map(); // by task: a version's id; what is unfolded; by expert: disagreements

const short = (id) => id.slice(0, ID);

/** What Puhui wrote down in English, in the language chosen where it is one of its own sentences. */
function reason(version) {
  const better = /^a better one came: (\w+)$/.exec(version.reason ?? "");
  return better ? say("betterCame", better[1]) : version.reason ?? "";
}

function fact(name, value, more) {
  return h("div", {}, h("dt", {}, name), h("dd", {}, value), more && h("dd", { class: "small" }, more));
}

function facts(task, version) {
  const done = task.requests ? task.by_expert / task.requests : 0;
  const due = task.versions.reduce((sum, { audits_due: waiting }) => sum + waiting, 0);
  return h("dl", {},
    fact(say("shareSoFar"), percent(done), say("ofRequests", count(task.requests))),
    version && fact(say("coverage"), percent(version.coverage)),
    version && fact(say("provenRisk"), `≤ ${percent(version.risk_bound, 1)}`, say("sureOf", surety(version.delta))),
    fact(say("audits"), count(task.audits), say("auditsDue", count(due))),
    version?.bytes && fact(say("size"), bytes(version.bytes)),
    version?.answer_us && fact(say("speed"), ms(version.answer_us / 1000)),
    version?.labels && fact(say("answersKnown"), count(version.labels)));
}

function watch(task, version) {
  const chart = h("div"), points = version.points.map(([observations, at, value, losses]) => ({ observations, at, evidence: value, losses }));
  queueMicrotask(() => evidence(chart, points, version.limit, {
    label: say("watchLabel"), limitText: say("limitText", number(version.limit)),
    tip: (index) => {
      const point = points[index];
      return say("watchTip", count(point.observations), number(point.losses), number(point.evidence), moment(point.at));
    },
  }));
  const told = say("watchText", short(version.id), number(version.losses), count(version.observations), number(version.evidence), number(version.limit));
  return [h("h3", {}, say("watchTitle")), h("p", { class: "small" }, told), chart];
}

async function act(version, what) {
  const name = short(version.id);
  if (!await confirmed(say(`${what}Title`, name), say(`${what}Text`), say(what))) return;
  try {
    await read(`experts/${version.id}/${what}`, { method: "POST" });
    await look();
  } catch (error) {
    trouble(error.message);
  }
}

function doable(version) {
  if (version.status === "active") return h("button", { type: "button", "data-do": "demote", onclick: () => act(version, "demote") }, say("demote"));
  if (version.why_not) return h("span", { class: "small" }, say(`whyNot_${version.why_not}`));
  return h("button", { type: "button", "data-do": "promote", onclick: () => act(version, "promote") }, say("promote"));
}

const time = (one) => (one.ended ? say("until", moment(one.created), moment(one.ended)) : say("since", moment(one.created)));
const ended = (one) => [reason(one), one.stale && say("stale", one.stale)].filter(Boolean).join("; ");

function versions(task, version) {
  const choose = (one) => {
    chosen.set(task.id, one.id);
    drawAll();
    document.querySelector(`button[data-expert="${one.id}"]`)?.focus();
  };
  const pill = { active: "pill expert", demoted: "pill bad", refused: "pill bad" };
  return [h("h3", {}, say("versions")), table([
    { name: say("colExpert"), left: true, cell: (one) => h("button", { class: "text", type: "button", "data-expert": one.id, "aria-pressed": String(one === version), onclick: () => choose(one) }, h("code", {}, short(one.id))) },
    { name: say("colStatus"), wide: true, cell: (one) => [h("span", { class: pill[one.status] ?? "pill" }, say(`status_${one.status}`)), h("div", { class: "small" }, time(one)), ended(one) && h("div", { class: "small" }, ended(one))] },
    { name: say("coverage"), cell: (one) => percent(one.coverage) },
    { name: say("provenRisk"), cell: (one) => `≤ ${percent(one.risk_bound, 2)}` },
    { name: say("colLearned"), cell: (one) => (one.rows ? say("answersCount", count(one.rows)) : "–") },
    { name: say("colEvidence"), cell: (one) => `${number(one.evidence)} / ${number(one.limit)}` },
    { name: say("colDo"), wide: true, cell: doable },
  ], task.versions, { mark: (one) => one === version })];
}

/** Something that unfolds, and stays so when the page is drawn again. */
function unfolding(key, title, inside, onopen) {
  const details = h("details", { open: opened.has(key) }, h("summary", {}, title), inside);
  details.addEventListener("toggle", () => {
    opened[details.open ? "add" : "delete"](key);
    if (details.open) onopen?.();
  });
  return details;
}

function disagreements(version) {
  const place = h("div"), key = `disagreements ${version.id}`;
  const show = (rows) => fill(place, rows.length ? h("ul", { class: "says" }, rows.map((row) => h("li", {},
    h("p", {}, row.input),
    h("div", { class: "two-answers" },
      h("div", {}, h("span", { class: "pill expert" }, say("expertSaid")), h("p", {}, row.expert)),
      h("div", {}, h("span", { class: "pill big" }, say("bigSaid")), h("p", {}, row.big)))))) : h("p", { class: "small" }, say("disagreementsNone")));
  const load = async () => {
    const kept = texts.get(version.id);
    if (kept) show(kept.rows);
    if (kept?.count === version.disagreements) return;
    try {
      const { disagreements: rows } = await read(`experts/${version.id}/disagreements`);
      texts.set(version.id, { rows, count: version.disagreements });
      show(rows);
    } catch (error) {
      trouble(error.message);
    }
  };
  if (opened.has(key)) load();
  return unfolding(key, say("disagreements", count(version.disagreements)), place, load);
}

function history(task) {
  const rows = task.events.map((event) => h("li", {}, h("time", {}, moment(event.at)),
    h("span", {}, h("b", {}, say(`event_${event.kind}`)), event.expert ? [" ", h("code", {}, short(event.expert))] : "", `: ${event.note}`)));
  return unfolding(`history ${task.id}`, say("history"), rows.length ? h("ul", { class: "events" }, rows) : h("p", { class: "small" }, say("noHistory")));
}

function drawTask(task) {
  const placed = task.versions.find(({ status }) => status === "active");
  const version = task.versions.find(({ id }) => id === chosen.get(task.id)) ?? placed ?? task.versions[0];
  return h("section", { class: "card task", "data-task": task.id },
    h("div", { class: "head" },
      h("div", {}, h("h2", {}, task.name), h("p", { class: "small", style: { margin: 0 } }, say("bigNamed", task.model))),
      h("span", { class: placed ? "pill expert" : "pill big" }, say(placed ? "inPlace" : "nobody"))),
    facts(task, placed),
    version && [...watch(task, version), ...versions(task, version), disagreements(version)],
    history(task));
}

function drawAll() {
  if (!found) return;
  fill(by("tasks"), found.tasks.map(drawTask));
  by("learning").hidden = !found.learning.length;
  for (const part of ["Title", "Text"]) {
    const line = by(`learning-${part.toLowerCase()}`);
    line.dataset.say = `${found.learns ? "learning" : "noLearning"}${part}`;
    line.textContent = say(line.dataset.say);
  }
  fill(by("learning-list"), found.learning.map((row) => h("li", {}, h("span", {}, row.task),
    found.learns && h("progress", { max: row.needed, value: Math.min(row.answers, row.needed), "aria-label": row.task }),
    h("span", { class: "small" }, say(found.learns ? "progress" : "noLearning", count(row.answers), count(row.needed))))));
  by("empty").hidden = Boolean(found.tasks.length || found.learning.length);
}

const look = again(async () => {
  const next = await read("experts"), now = JSON.stringify(next);
  found = next;
  if (now === drawn) return; // what has not changed is left as it is, with what points at it
  drawn = now;
  const held = document.activeElement?.dataset?.expert;
  drawAll();
  if (held) document.querySelector(`button[data-expert="${held}"]`)?.focus();
}, EVERY_MS);

begin(drawAll);
