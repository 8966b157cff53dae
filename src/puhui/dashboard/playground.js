/** The playground: one question to the node, and beside it the same to the big model. */

import { again, begin, by, call, count, fill, grams, h, joules, money, ms, percent, read, remembered, say, trouble } from "./shell.js";

const LONG = 120;
let status = { currency: "", models: [] }, thresholds = new Map(), models = [];
let shown = []; // the answers on the page

// --- asking -----------------------------------------------------------------------------------------------------

function question() {
  const system = by("system").value.trim();
  return {
    model: by("model").value.trim(),
    messages: [...(system ? [{ role: "system", content: system }] : []), { role: "user", content: by("user").value }],
  };
}

/** The quality that the slider asks for, in percent; at its beginning none. */
function wanted() {
  const { value, min } = by("quality");
  return value === min ? 0 : value / 100;
}

/** Asks the node; `told` is called with what is known, again as a stream goes on. */
async function ask(body, quality, streamed, told) {
  const began = performance.now(), answer = { text: "", puhui: null, ms: 0, first: null, usage: null };
  const response = await call("v1/chat/completions", {
    method: "POST", json: streamed ? { ...body, stream: true } : body, headers: { "x-puhui-quality": String(quality) },
  });
  if (!streamed) {
    const reply = await response.json();
    Object.assign(answer, { text: reply.choices?.[0]?.message?.content ?? "", puhui: reply.puhui, usage: reply.usage });
  } else {
    await eachEvent(response, (event) => {
      if (event.error) throw new Error(event.error.message);
      answer.first ??= performance.now() - began;
      answer.text += event.choices?.[0]?.delta?.content ?? "";
      answer.puhui = event.puhui ?? answer.puhui;
      answer.usage = event.usage ?? answer.usage;
      told(answer);
    });
  }
  answer.ms = performance.now() - began;
  told(answer);
  return answer;
}

async function eachEvent(response, take) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ;) {
    const { value, done } = await reader.read();
    if (done) return;
    const pieces = (rest + value).split("\n\n");
    rest = pieces.pop();
    for (const piece of pieces) {
      const data = piece.split("\n").filter((line) => line.startsWith("data: ")).map((line) => line.slice(6)).join("\n");
      if (data && data !== "[DONE]") take(JSON.parse(data));
    }
  }
}

async function send(event) {
  event.preventDefault();
  const body = question(), quality = wanted(), streamed = by("stream").checked;
  remembered("system", by("system").value);
  by("send").disabled = true;
  trouble(null);
  shown = [{ who: "puhuiAnswer", quality }, ...(by("beside").checked ? [{ who: "bigAnswer", quality: 1 }] : [])];
  drawAnswers();
  for (const [place, asked] of shown.entries()) { // one after the other: neither holds up the other
    try {
      await ask(body, asked.quality, streamed, (answer) => {
        asked.answer = answer;
        drawAnswers();
      });
    } catch (error) {
      asked.trouble = error.message;
    }
    if (!place) await learnThresholds();
    drawAnswers();
  }
  by("send").disabled = false;
}

/** The thresholds of the experts in place, by the name that an answer gives them. A key may not be allowed to see them. */
async function learnThresholds() {
  try {
    const { tasks } = await read("experts", { optional: true });
    thresholds = new Map(tasks.flatMap(({ versions }) => versions).map(({ id, threshold }) => [`expert:${id.slice(0, 12)}`, threshold]));
  } catch {
    // the answer is shown without
  }
}

// --- what is shown ----------------------------------------------------------------------------------------------

function why({ path, quality, by: who }) {
  const expert = path.find(({ name }) => name.startsWith("expert:"));
  const needed = thresholds.get(expert?.name)?.toFixed(3) ?? "–";
  if (quality >= 1) return say("why_asked");
  if (!expert) return quality ? say("why_promise", percent(quality)) : say("why_big");
  return say(who.startsWith("expert:") ? "why_expert" : "why_unsure", expert.confidence.toFixed(3), needed);
}

function step({ name, confidence, taken }) {
  const threshold = thresholds.get(name), kind = name.startsWith("expert:") ? "expert" : "big";
  const scale = confidence === null ? null : h("div", { class: "bar", "aria-hidden": "true" },
    h("span", { class: `is-${kind}`, style: { width: `${100 * confidence}%` } }),
    threshold !== undefined && h("i", { style: { left: `${100 * threshold}%` } }));
  const told = confidence === null ? "" : ` · ${say("colConfidence").toLowerCase()} ${confidence.toFixed(3)}${threshold === undefined ? "" : ` / ${threshold.toFixed(3)}`}`;
  return h("li", {}, h("span", { class: "who" }, h("span", { class: `dot is-${kind}` }), h("code", {}, name)), " ",
    h("span", { class: "small" }, `${say(taken ? "stepTaken" : "stepPassed")}${told}`), scale);
}

function fact(name, value) {
  return h("div", {}, h("dt", {}, name), h("dd", {}, value));
}

function drawAnswer({ who, quality, answer, trouble: wrong }, place) {
  const report = answer?.puhui, kind = report?.by.startsWith("expert:") ? "expert" : "big";
  const other = shown[1 - place]?.answer;
  const same = place === 1 && report && other?.puhui && (other.text.trim() === answer.text.trim() ? "agrees" : "differs");
  const tokens = answer?.usage?.total_tokens;
  return h("section", { class: "card answer", "data-by": report ? kind : "", "aria-label": say(who) },
    h("div", { class: "head" }, h("h2", {}, say(who)),
      h("span", {}, same && h("span", { class: same === "agrees" ? "pill expert" : "pill bad" }, say(same)), " ",
        report && h("span", { class: `pill ${kind}` }, say(kind === "expert" ? "experts" : "bigModel")))),
    wrong ? h("p", { class: "notice wrong" }, wrong) : h("p", { class: answer?.text.length > LONG ? "said long" : "said" }, answer ? answer.text || say("noText") : say("asking")),
    report && [h("p", { class: "small" }, why({ path: report.path, quality, by: report.by })),
      h("ul", { class: "steps" }, report.path.map(step)),
      h("dl", {}, fact(say("factTime"), ms(report.ms)), answer.first !== null && fact(say("factFirst"), ms(answer.first)),
        fact(say("factEnergy"), joules(report.energy.joules)), fact(say("factCo2"), grams(report.co2_g).join(" ")),
        fact(say("factCost"), money(report.cost, status.currency).join(" "))),
      tokens > 0 && h("p", { class: "small" }, say("tokensUsed", count(tokens))),
      place === 1 && ratio(shown[0].answer?.puhui, report)]);
}

function ratio(expert, big) {
  if (!expert?.by.startsWith("expert:") || !(big.energy.joules > 0)) return null;
  return h("p", { class: "gain" }, say("cheaper", `1/${count(big.energy.joules / expert.energy.joules)}`));
}

const drawAnswers = () => fill(by("answers"), shown.map(drawAnswer));

function draw() {
  const quality = wanted();
  by("quality-said").textContent = quality >= 1 ? say("quality_big") : quality ? say("quality_least", percent(quality)) : say("quality_any");
  by("quality").setAttribute("aria-valuetext", by("quality-said").textContent);
  fill(by("models"), models.map((value) => h("option", { value })));
  drawAnswers();
}

by("ask").addEventListener("submit", send);
by("quality").addEventListener("input", draw);
by("user").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) by("ask").requestSubmit();
});
by("system").value = remembered("system") ?? "";
begin(draw);
again(async () => {
  try {
    status = await read("status", { optional: true });
    ({ models } = status);
  } catch (error) {
    if (error.status !== 403) throw error; // a key that asks for answers alone may still see the models
    models = (await (await call("v1/models", { optional: true })).json()).data.map(({ id }) => id);
  }
  models = models.filter((id) => id !== "puhui");
  if (!by("model").value) by("model").value = models[0] ?? "";
  await learnThresholds();
  draw();
}, 60_000);
