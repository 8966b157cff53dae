/** Requests as they flow: read from the node's stream of events, and never more of them kept than are shown. */

import { begin, by, call, clock, count, fill, h, joules, ms, NodeError, number, percent, say, table, trouble } from "./shell.js";

const MOST_KEPT = 600, MOST_ROWS = 25, MINUTE_S = 60, AGAIN_MS = 2000, RATE_S = 10;
let state = "connecting", paused = false, skipped = 0, offset = 0; // offset: the node's clock less this one, in seconds
let events = [], frozen = null, frozenAt = 0; // the latest of each kind; what is shown while paused, and of when it is
const rows = by("flow");
let due = false;

const now = () => (frozen ? frozenAt : Date.now() / 1000 + offset);
const requests = () => (frozen ?? events).filter(({ kind }) => kind === "request");

function median(values) {
  const sorted = [...values].sort((one, other) => one - other);
  return sorted.length ? sorted[sorted.length >> 1] : null;
}
const times = (who) => requests().filter((event) => event.by === who).map((event) => event.ms ?? 0);

// --- the stream -------------------------------------------------------------------------------------------------

/** Reads the stream until it ends; a page that is closed or hidden for long ends it. */
async function follow() {
  for (;;) {
    try {
      const response = await call("puhui/v1/live");
      become("connected");
      trouble(null);
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      for (let rest = ""; ;) {
        const { value, done } = await reader.read();
        if (done) break;
        const pieces = (rest + value).split("\n\n");
        rest = pieces.pop();
        for (const piece of pieces) take(piece);
      }
    } catch (error) {
      if (error instanceof NodeError && error.status) trouble(error.message);
    }
    become("lost");
    await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
  }
}

function take(piece) {
  const data = piece.split("\n").find((line) => line.startsWith("data: "));
  if (!data) return;
  const batch = JSON.parse(data.slice(6));
  skipped += batch.skipped;
  for (const event of batch.events) {
    if (event.kind === "audit") {
      const asked = events.find(({ kind, id }) => kind === "request" && id === event.id);
      if (asked) asked.audit = event;
    } else if (!events.some(({ kind, id, at }) => kind === event.kind && id === event.id && at === event.at)) events.push(event);
  }
  offset = batch.now - Date.now() / 1000;
  events = events.slice(-MOST_KEPT);
  draw();
}

function become(next) {
  state = next;
  draw();
}

// --- what is shown ----------------------------------------------------------------------------------------------

/** Draws at the next frame, once, however often it was asked for. */
function draw() {
  if (due) return;
  due = true;
  requestAnimationFrame(() => {
    due = false;
    drawNow();
  });
}

function card(name, value, note, kind) {
  return h("div", { class: "card" }, h("p", { class: "small", style: { margin: 0 } }, kind && h("span", { class: `dot ${kind}`, style: { display: "inline-block", marginRight: ".4rem" } }), name),
    h("p", { class: "figure" }, value), h("p", { class: "small", style: { margin: 0 } }, note));
}

function drawNow() {
  const pill = by("state"), shown = paused ? "paused" : state;
  pill.textContent = say(shown);
  pill.className = `pill ${{ connected: "expert", lost: "bad", paused: "big" }[shown] ?? ""}`;
  by("pause").textContent = say(paused ? "resume" : "pause");
  by("pause").setAttribute("aria-pressed", String(paused));
  const all = requests(), good = all.filter(({ status }) => (status ?? 200) === 200);
  const recent = all.filter(({ at }) => at > now() - RATE_S).length;
  const [expert, big] = [median(times("expert")), median(times("big"))];
  const byExpert = good.filter((event) => event.by === "expert").length;
  fill(by("now"),
    card(say("perSecond"), number(recent / RATE_S), say("lately", RATE_S)),
    card(say("nowShare"), good.length ? percent(byExpert / good.length) : "–", say("ofRequests", count(good.length))),
    card(say("expertTime"), ms(expert), say("median"), "is-expert"),
    card(say("bigTime"), ms(big), say("median"), "is-big"));
  fill(by("speed-legend"), h("span", {}, h("span", { class: "dot is-expert" }), say("experts")), h("span", {}, h("span", { class: "dot is-big" }), say("bigModel")));
  by("speed").setAttribute("aria-label", say("speedLabel", ms(expert), ms(big)));
  by("speed-text").textContent = `${expert && big ? say("ratio", number(big / expert)) : say("noRatio")} ${say("speedLegendText")}`;
  drawSpeed(all);
  drawFlow();
}

/** Each answer as a dot: when it came from left to right, how long it took from below, by powers of ten. */
function drawSpeed(all) {
  const canvas = by("speed"), { clientWidth: width, clientHeight: height } = canvas, ratio = devicePixelRatio || 1;
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  const pen = canvas.getContext("2d"), style = getComputedStyle(document.body);
  const probe = by("speed-text"), colour = (name) => {
    probe.style.color = `var(--${name})`; // resolves light-dark() to the colour that holds
    const found = getComputedStyle(probe).color;
    probe.style.color = "";
    return found;
  };
  pen.scale(ratio, ratio);
  pen.font = `11px ${style.fontFamily || "system-ui"}`;
  const [left, bottom, top] = [52, 20, 10], low = 0.05, high = Math.max(1000, ...all.map((event) => event.ms ?? 0)) * 1.3;
  const y = (value) => top + ((Math.log(high) - Math.log(Math.max(low, value))) / (Math.log(high) - Math.log(low))) * (height - top - bottom);
  const end = now(), x = (at) => width - 6 - ((end - at) / MINUTE_S) * (width - left - 12);
  pen.strokeStyle = colour("line");
  pen.fillStyle = colour("soft");
  pen.textAlign = "right";
  for (let value = 0.1; value < high; value *= 10) {
    pen.beginPath();
    pen.moveTo(left, y(value));
    pen.lineTo(width, y(value));
    pen.stroke();
    pen.fillText(value < 1 ? `${value * 1000} µs` : value >= 1000 ? `${Math.round(value / 1000)} s` : `${Math.round(value)} ms`, left - 6, y(value) + 4);
  }
  pen.textAlign = "center";
  for (const ago of [60, 45, 30, 15, 0]) pen.fillText(ago ? `−${ago} s` : "0", Math.min(x(end - ago), width - 12), height - 4);
  pen.globalAlpha = 0.72;
  for (const who of ["big", "expert"]) {
    pen.fillStyle = colour(who);
    for (const event of all) {
      if (event.by !== who || event.at < end - MINUTE_S) continue;
      pen.beginPath();
      pen.arc(x(event.at), y(event.ms ?? 0), 3.2, 0, 7);
      pen.fill();
    }
  }
}

function drawFlow() {
  const latest = (frozen ?? events).filter(({ kind }) => kind !== "audit").slice(-MOST_ROWS).reverse();
  if (!latest.length) return fill(rows, h("p", { class: "small" }, say("noFlow")));
  const who = (event) => {
    if (event.kind === "change") return h("span", { class: event.change === "promotion" ? "pill expert" : "pill bad" }, `${say(`change_${event.change}`)}: ${event.name}`);
    const told = { expert: say("experts"), big: say("bigModel") }[event.by] ?? say("unanswered");
    return h("span", { class: "who" }, h("span", { class: `dot is-${event.by}` }), event.name?.replace(/^(expert|big):/, "") || told);
  };
  const audit = ({ audit: done }) => {
    if (!done) return "";
    const told = done.loss === undefined ? "refusedAudit" : done.loss > 0 ? "disagreed" : "agreed";
    return h("span", { class: told === "disagreed" ? "pill bad" : "pill" }, say(told));
  };
  const request = (event) => event.kind === "request";
  fill(rows, table([
    { name: say("colAt"), left: true, cell: (event) => clock(event.at) },
    { name: say("colWho"), left: true, cell: who },
    { name: say("colTask"), wide: true, cell: (event) => (event.task ? event.task : request(event) ? say("noTask") : "") },
    { name: say("colConfidence"), cell: (event) => (event.confidence === undefined ? "" : event.confidence.toFixed(3)) },
    { name: say("colMs"), cell: (event) => (request(event) ? ms(event.ms ?? 0) : "") },
    { name: say("colJoules"), cell: (event) => (request(event) && event.joules ? joules(event.joules) : "") },
    { name: say("colAudit"), cell: audit },
  ], latest), skipped > 0 && h("p", { class: "small" }, say("skipped", count(skipped))));
}

by("pause").onclick = () => {
  paused = !paused;
  frozenAt = now();
  frozen = paused ? [...events] : null;
  draw();
};
new ResizeObserver(draw).observe(by("speed"));
setInterval(() => !document.hidden && !paused && draw(), 1000);
begin(drawNow);
follow();
