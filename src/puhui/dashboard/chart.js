/** Two charts as SVG: bars over time, and a line towards a limit. Both are read by eye, by pointer and by keyboard. */

import { fill, h, say } from "./shell.js";

const SVG = "http://www.w3.org/2000/svg", LEFT = 48, RIGHT = 10, TOP = 12, BOTTOM = 24;

function s(tag, given = {}, ...inside) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(given)) element.setAttribute(name, value);
  element.append(...inside);
  return element;
}

/** A round number at or above `value`, of which a third and two thirds are round enough. */
function ceiling(value) {
  const size = 10 ** Math.floor(Math.log10(value || 1));
  return [1, 1.5, 2, 3, 4, 5, 6, 8, 10].map((step) => step * size).find((step) => step >= value * 0.999);
}

/** The frame of a chart: redrawn when its width changes; `tips` are asked for by place from left to right. */
function frame(place, label, height, count, draw, tip) {
  const svg = s("svg", { role: "img", tabindex: 0, "aria-label": label, height });
  const shown = h("div", { class: "tip", hidden: true });
  const told = h("p", { class: "unseen", role: "status" });
  let at = null, width = 0, xOf = () => 0;
  const show = (index) => {
    at = index === null ? null : Math.max(0, Math.min(count - 1, index));
    svg.querySelector(".mark")?.replaceChildren();
    shown.hidden = at === null;
    if (at === null) return;
    const [title, ...lines] = tip(at);
    fill(shown, h("b", {}, title), lines.map((line) => h("div", {}, line)));
    told.textContent = [title, ...lines].join(", ");
    const x = xOf(at);
    shown.style.left = `${Math.max(0, Math.min(x + 12, width - shown.offsetWidth))}px`;
    if (x + 12 > width - shown.offsetWidth) shown.style.left = `${Math.max(0, x - 12 - shown.offsetWidth)}px`;
    svg.querySelector(".mark")?.append(s("line", { class: "cursor", x1: x, x2: x, y1: TOP, y2: height - BOTTOM }));
  };
  const redraw = () => {
    width = Math.max(200, box.clientWidth);
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.replaceChildren(s("g", { class: "mark" }));
    xOf = draw(svg, width, height);
    if (at !== null) show(at);
  };
  const nearest = (event) => {
    const x = event.clientX - svg.getBoundingClientRect().left;
    let best = 0;
    for (let index = 1; index < count; index++) if (Math.abs(xOf(index) - x) < Math.abs(xOf(best) - x)) best = index;
    return best;
  };
  svg.addEventListener("pointermove", (event) => show(nearest(event)));
  svg.addEventListener("pointerleave", () => show(null));
  svg.addEventListener("blur", () => show(null));
  svg.addEventListener("keydown", (event) => {
    const steps = { ArrowRight: (at ?? -1) + 1, ArrowLeft: (at ?? count) - 1, Home: 0, End: count - 1 };
    if (event.key === "Escape") show(null);
    if (!(event.key in steps)) return;
    event.preventDefault();
    show(steps[event.key]);
  });
  const box = h("div", { class: "chart" }, svg, shown, told);
  fill(place, box);
  new ResizeObserver(() => box.clientWidth && box.clientWidth !== width && redraw()).observe(box);
  redraw();
}

function grid(svg, width, y, values, text) {
  for (const value of values) {
    svg.append(s("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value) }));
    const label = s("text", { x: LEFT - 7, y: y(value) + 4, "text-anchor": "end" });
    label.textContent = text(value);
    svg.append(label);
  }
}

function underneath(svg, width, height, count, xOf, text) {
  const most = Math.max(1, Math.floor((width - LEFT - RIGHT) / 86));
  const every = Math.max(1, Math.ceil(count / most));
  for (let index = 0; index < count; index += every) {
    const label = s("text", { x: xOf(index), y: height - 7, "text-anchor": index || count === 1 ? "middle" : "start" });
    label.textContent = text(index);
    svg.append(label);
  }
}

/** Stacked bars, one a slot, with a stepped line where a slot has `line`. Slots: { label, parts: [[class, value]], line, tip }. */
export function bars(place, slots, { label, text }) {
  if (!slots.length) return fill(place, h("p", { class: "small" }, say("nothingYet")));
  const top = ceiling(Math.max(...slots.map(({ parts, line }) => Math.max(parts.reduce((sum, [, value]) => sum + value, 0), line ?? 0)))) || 1;
  frame(place, label, 230, slots.length, (svg, width, height) => {
    const y = (value) => height - BOTTOM - (value / top) * (height - TOP - BOTTOM);
    const step = (width - LEFT - RIGHT) / slots.length, wide = Math.max(1, Math.min(56, step * 0.78));
    const xOf = (index) => LEFT + step * (index + 0.5);
    grid(svg, width, y, [0, top / 2, top], text);
    slots.forEach(({ parts, line, gap }, index) => {
      let below = 0;
      if (gap) {
        const dots = s("text", { x: xOf(index), y: height - BOTTOM - 5, "text-anchor": "middle" });
        dots.textContent = "⋯";
        svg.append(dots);
      }
      for (const [kind, value] of parts) {
        if (!value) continue;
        const high = y(below) - y(below + value);
        svg.append(s("rect", { class: `f-${kind}`, x: xOf(index) - wide / 2, y: y(below + value), width: wide,
          height: Math.max(0.5, high), rx: Math.min(3, wide / 4) }));
        below += value;
      }
      if (line) svg.append(s("path", { class: "alone", d: `M${xOf(index) - wide / 2 - 1},${y(line)}h${wide + 2}` }));
    });
    underneath(svg, width, height, slots.length, xOf, (index) => slots[index].label);
    return xOf;
  }, (index) => slots[index].tip);
}

/** The evidence against an expert, on a logarithmic scale, and the limit at which it steps down. */
export function evidence(place, points, limit, { label, tip, limitText }) {
  if (!points.length) return fill(place, h("p", { class: "small" }, say("noEvidence")));
  const low = Math.min(0.25, ...points.map(({ evidence: value }) => value)) * 0.8, high = limit * 1.6;
  frame(place, label, 190, points.length, (svg, width, height) => {
    const span = Math.max(1, points.at(-1).observations);
    const x = (index) => LEFT + (points[index].observations / span) * (width - LEFT - RIGHT);
    const y = (value) => TOP + ((Math.log(high) - Math.log(value)) / (Math.log(high) - Math.log(low))) * (height - TOP - BOTTOM);
    grid(svg, width, y, [1, ...(limit > 10 ? [Math.round(Math.sqrt(limit))] : [])], (value) => String(value));
    svg.append(s("line", { class: "limit", x1: LEFT, x2: width - RIGHT, y1: y(limit), y2: y(limit) }));
    const limitLabel = s("text", { class: "limit-text", x: width - RIGHT, y: y(limit) - 6, "text-anchor": "end" });
    limitLabel.textContent = limitText;
    const limitValue = s("text", { class: "limit-text", x: LEFT - 7, y: y(limit) + 4, "text-anchor": "end" });
    limitValue.textContent = String(Math.round(limit));
    const path = points.map((point, index) => `${index ? "L" : "M"}${x(index).toFixed(1)},${y(point.evidence).toFixed(1)}`).join("");
    const area = `${path}L${x(points.length - 1).toFixed(1)},${height - BOTTOM}L${x(0).toFixed(1)},${height - BOTTOM}Z`;
    svg.append(limitLabel, limitValue, s("path", { class: "area", d: area }), s("path", { class: "line", d: path }));
    const marks = [0.25, 0.5, 0.75, 1].map((share) => Math.round(span * share));
    for (const mark of marks) {
      const text = s("text", { x: LEFT + (mark / span) * (width - LEFT - RIGHT), y: height - 7, "text-anchor": mark === span ? "end" : "middle" });
      text.textContent = mark.toLocaleString();
      svg.append(text);
    }
    return x;
  }, tip);
}
