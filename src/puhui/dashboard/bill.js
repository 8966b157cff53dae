/** The bill: the meter, energy, CO₂ and money beside the world without experts, over time, by task and by model. */

import { bars } from "./chart.js";
import { again, begin, by, choice, count, energy, fill, grams, h, money, number, percent, read, remembered, say, surety, table } from "./shell.js";

const PERIODS = ["hour", "today", "week", "month", "all"], QUANTITIES = ["requests", "energy", "co2", "money"], EVERY_MS = 5000;
const PARTS = ["big", "expert", "audit", "learning", "node"], MOST_SLOTS = 1200, MOST_QUIET = 4, DAY_S = 86_400;
let period = PERIODS.find((one) => one === remembered("period")) ?? "all";
let quantity = QUANTITIES.find((one) => one === remembered("quantity")) ?? "requests";
let bill = null, drawn = "";

const spelled = (parts) => parts.join(" "), co2 = (value) => spelled(grams(value));
const used = (line) => ({ energy: line.energy.joules, co2: line.co2_g, money: line.cost })[quantity];
const alone = (line) => ({ energy: line.big_energy.joules, co2: line.big_co2_g, money: line.big_cost })[quantity];
const shown = { requests: count, energy: (value) => spelled(energy(value)), co2,
  money: (value) => spelled(money(value, bill.currency)) };

function drawMeter({ total, delta }) {
  const share = total.share_by_expert, big = total.requests - total.by_expert;
  const proven = total.proven_risk !== null && total.by_expert > 0;
  fill(by("meter"), h("div", { class: "card meter" },
    h("p", { class: "figure giant" }, percent(share)),
    h("div", {},
      h("p", {}, say("answeredBy", count(total.requests))),
      h("div", { class: "bar", "aria-hidden": "true" }, total.by_expert > 0 && h("span", { class: "is-expert", style: { flex: total.by_expert } }),
        big > 0 && h("span", { class: "is-big", style: { flex: big } })),
      h("ul", { class: "legend" }, h("li", {}, h("span", { class: "dot is-expert" }), say("byExperts", count(total.by_expert))),
        h("li", {}, h("span", { class: "dot is-big" }), say("byBig", count(big))),
        total.failed > 0 && h("li", {}, h("span", { class: "dot" }), say("failed", count(total.failed))))),
    h("p", { class: proven ? "promise" : "promise none" },
      proven ? say("proven", percent(total.proven_risk, 1), surety(delta)) : say("notProven"))));
}

/** One quantity: what was used and what the big model alone would have, as two bars of one scale. */
function amount(name, parts, usedValue, aloneValue, note, bounds) {
  const top = Math.max(usedValue, aloneValue, bounds?.[1] ?? 0) || 1;
  const wide = (value) => `${(100 * value) / top}%`;
  const share = aloneValue ? usedValue / aloneValue - 1 : 0;
  const told = !aloneValue || Math.abs(share) < 0.005 ? say("same") : share < 0 ? say("less", percent(-share)) : say("more", percent(share));
  const row = (label, value, kind, range) => [h("span", {}, label),
    h("div", { class: "track", "aria-hidden": "true" }, h("span", { class: kind, style: { width: wide(value) } }),
      range && h("i", { style: { left: wide(range[0]), width: wide(range[1] - range[0]) } })),
    h("span", {}, spelled(parts(value)))];
  const [figure, unit] = parts(usedValue);
  return h("div", { class: "card" }, h("h2", {}, name), h("p", { class: "figure" }, figure, " ", h("small", {}, unit)),
    h("p", { class: share < -0.005 ? "gain" : share > 0.005 ? "loss" : "small", style: { margin: 0 } }, told),
    h("div", { class: "pair" }, row(say("withPuhui"), usedValue, "is-expert", bounds), row(say("alone"), aloneValue, "is-alone")),
    h("p", { class: "small" }, note));
}

function drawAmounts({ total, currency, carbon_g_per_kwh: carbon, price_per_kwh: price }) {
  const basis = say(total.energy.measured ? "measured" : "estimated");
  const [low, high] = [total.energy.low, total.energy.high];
  fill(by("amounts"),
    amount(say("energyName"), energy, total.energy.joules, total.big_energy.joules, say("bounds", basis, spelled(energy(low)), spelled(energy(high))), [low, high]),
    amount(say("co2Name"), (value) => [grams(value)[0], `${grams(value)[1]} CO₂`], total.co2_g, total.big_co2_g, say("gridNote", number(carbon))),
    amount(say("moneyName"), (value) => money(value, currency), total.cost, total.big_cost, say("priceNote", `${number(price)} ${currency}`)));
}

function drawWhere({ parts, total }) {
  const all = PARTS.reduce((sum, part) => sum + parts[part], 0);
  if (!all) return fill(by("where"), h("p", { class: "small" }, say("nothingYet")));
  fill(by("where"),
    h("div", { class: "bar", "aria-hidden": "true" }, PARTS.map((part) => parts[part] > 0 && h("span", { class: `is-${part}`, style: { flex: parts[part] } }))),
    h("ul", { class: "legend" }, PARTS.map((part) => h("li", {}, h("span", { class: `dot is-${part}` }),
      `${say(`part_${part}`)}: ${spelled(energy(parts[part]))} (${percent(parts[part] / all)})`))),
    h("p", { class: "small" }, say(total.energy.joules > total.big_energy.joules ? "whereMore" : "whereLess")));
}

/** The slots from the first to the last: [when, its line or null]. Many in a row in which nothing was done are one: [null, from, to]. */
function slots({ by_time: lines, step_s: step, since, drawn_up: now }) {
  const busy = lines.filter((line) => step >= DAY_S || line.requests + line.failed + line.audits > 0);
  const known = new Map(busy.map((line) => [Date.parse(line.name) / 1000, line]));
  if (!known.size) return [];
  const last = since === null ? Math.max(...known.keys()) : Math.floor(now / step) * step;
  const first = Math.max(since ?? Math.min(...known.keys()), last - (MOST_SLOTS - 1) * step);
  const found = [];
  let quiet = [];
  const rest = () => (quiet.length > MOST_QUIET ? [[null, quiet[0], quiet.at(-1) + step]] : quiet.map((at) => [at, null]));
  for (let at = Math.floor(first / step) * step; at <= last; at += step) {
    if (!known.has(at)) quiet.push(at);
    else {
      found.push(...rest(), [at, known.get(at)]);
      quiet = [];
    }
  }
  return step >= DAY_S ? [...found, ...quiet.map((at) => [at, null])] : found;
}

const slotName = (at, step) => {
  const text = new Date(at * 1000).toISOString();
  return step >= DAY_S ? text.slice(5, 10) : text.slice(11, step < 60 ? 19 : 16);
};

function drawTime() {
  const { step_s: step } = bill;
  by("time-title").textContent = say(`byTime_${step}`);
  const found = slots(bill).map(([at, line, until]) => {
    if (at === null) return { gap: true, label: "", parts: [], tip: [`${slotName(line, 60)} – ${slotName(until, 60)}`, say("quiet")] };
    const name = slotName(at, step), requests = line?.requests ?? 0, expert = line?.by_expert ?? 0;
    const told = line ? [say("byExperts", count(expert)), say("byBig", count(requests - expert))] : [say("nothingYet")];
    if (quantity === "requests") {
      return { label: name, parts: [["expert", expert], ["big", requests - expert]], tip: [name, ...told] };
    }
    const values = line ? [`${say("withPuhui")}: ${shown[quantity](used(line))}`, `${say("alone")}: ${shown[quantity](alone(line))}`] : told;
    return { label: name, parts: [["used", line ? used(line) : 0]], line: line ? alone(line) : 0, tip: [name, ...values] };
  });
  const chart = h("div"), legend = quantity === "requests"
    ? [["is-expert", say("experts")], ["is-big", say("bigModel")]] : [["is-expert", say("withPuhui")], ["is-alone", say("bigAloneLine")]];
  const opened = by("time").querySelector("details")?.open;
  fill(by("time"), chart, h("ul", { class: "legend" }, legend.map(([kind, text]) => h("li", {}, h("span", { class: `dot ${kind}` }), text))),
    h("details", { open: opened }, h("summary", {}, say("asTable")), lines(say("colTime"), bill.by_time, (line) => line.name.replace("T", " ").replace(/(:00)?Z$/, ""))));
  bars(chart, found, { label: say("chartLabel", say(`q_${quantity}`)), text: shown[quantity] });
}

/** A table of the bill's lines. */
function lines(name, given, title, foot) {
  return table([
    { name, wide: true, cell: title },
    { name: say("colRequests"), cell: (line) => count(line.requests) },
    { name: say("colExperts"), cell: (line) => percent(line.share_by_expert) },
    { name: say("colProven"), cell: (line) => (line.proven_risk === null ? "–" : `≤ ${percent(line.proven_risk, 1)}`) },
    { name: say("colEnergy"), cell: (line) => spelled(energy(line.energy.joules)) },
    { name: say("colAlone"), cell: (line) => spelled(energy(line.big_energy.joules)) },
    { name: say("colCo2"), cell: (line) => co2(line.co2_g) },
    { name: say("colMoney"), cell: (line) => spelled(money(line.cost, bill.currency)) },
  ], given, { foot });
}

function draw() {
  choice(by("period"), "period", PERIODS.map((one) => [one, say(`period_${one}`)]), period, (chosen) => {
    period = remembered("period", chosen) ?? chosen;
    drawn = "";
    look();
  });
  choice(by("quantity"), "quantity", QUANTITIES.map((one) => [one, say(`q_${one}`)]), quantity, (chosen) => {
    quantity = remembered("quantity", chosen) ?? chosen;
    if (bill) drawTime();
  });
  if (bill) drawBill();
}

function drawBill() {
  drawMeter(bill);
  drawAmounts(bill);
  drawWhere(bill);
  drawTime();
  const own = (name) => ({ "(no task)": say("noTask"), "(none)": say("noneModel") })[name] ?? name;
  const total = { ...bill.total, name: say("total") };
  fill(by("by-task"), lines(say("colTask"), bill.by_task, (line) => own(line.name), total));
  fill(by("by-model"), lines(say("colModel"), bill.by_model, (line) => own(line.name), total));
}

const look = again(async () => {
  let wanted, found;
  do {
    wanted = period;
    found = await read(`bill?period=${wanted}`);
  } while (wanted !== period); // another was chosen meanwhile
  const now = JSON.stringify({ ...found, drawn_up: 0 });
  bill = found;
  if (now !== drawn) drawBill(); // what has not changed is left as it is, with what points at it
  drawn = now;
}, EVERY_MS);

begin(draw);
