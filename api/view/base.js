"use strict";
const report = JSON.parse(document.getElementById("report").textContent);

// One colour means one thing on the whole page: blue computes, orange communicates, violet is model
// state, green is activations, grey is idle or reserved, red is the limit, plum is the stage or device.
const INK = "#1b2430", SOFT = "#566173", LIMIT = "#c81e1e", UNKNOWN = "#8795a6";
const WORK = { compute: "#4f8fc6", communication: "#e58a2b", forward: "#9cc7ea", backward: "#3f7fb5" };
const STEP = { "compute": WORK.compute, "communication": WORK.communication,
  "gradient sync and optimizer": "#a85f17", "waiting": "#d9dee5" };
const MEMORY = { parameters: "#54459b", gradients: "#8577c6", optimizer: "#b7ade2",
  activations: "#2d8a66", "batch data": "#7cc4a5", temporaries: "#b9e0cf",
  communication: WORK.communication, persistent: "#54459b", outputs: "#2d8a66",
  "received copies": WORK.communication, margin: "#c3cad4", runtime: "#98a2b0" };
const STRATEGY = ["#c79b16", "#7d8c2b", "#8b5a3b", "#3c9aa3", "#6a6f78", "#d8bd6a", "#b0bd62", "#c08b6c"];
const OTHERS = ["#7f6a55", "#a3927f", "#c7baab"];

function stageColour(number, stages) {
  const at = stages > 1 ? number / (stages - 1) : 0.5;
  const mix = (one, other) => Math.round(one + (other - one) * at);
  return `rgb(${mix(240, 122)} ${mix(170, 28)} ${mix(196, 78)})`;
}
function termColour(name, place) { return MEMORY[name] || OTHERS[place % OTHERS.length]; }
function dark(colour) {
  const parts = colour.startsWith("#") ? [1, 3, 5].map(i => parseInt(colour.slice(i, i + 2), 16))
    : colour.match(/\d+/g).map(Number);
  return 0.3 * parts[0] + 0.59 * parts[1] + 0.11 * parts[2] < 145;
}

function make(tag, parent, text, kind) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (kind) node.className = kind;
  if (parent) parent.appendChild(node);
  return node;
}
const SVG = document.getElementById("seed").namespaceURI;
function draw(tag, parent, attributes, text) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  parent.appendChild(node);
  return node;
}
function section(parent, title, hint, wide) {
  const node = make("section", parent, undefined, wide ? "wide" : "");
  const head = make("h2", node, title);
  if (hint) make("span", head, hint);
  return node;
}
function legend(parent, pairs) {
  const row = make("div", parent, undefined, "legend");
  for (const [name, colour] of pairs) swatch(make("span", row), name, colour);
  return row;
}
function swatch(parent, name, colour) {
  make("span", parent, undefined, "swatch").style.background = colour;
  parent.appendChild(document.createTextNode(name));
}

function figure(value) {
  return value >= 100 ? value.toFixed(0) : value.toPrecision(3);
}
function time(s) {
  if (!s) return "0 s";
  for (const [size, unit] of [[1, "s"], [1e-3, "ms"], [1e-6, "µs"]]) {
    if (s >= size * 0.9995) return figure(s / size) + " " + unit;
  }
  return figure(s * 1e9) + " ns";
}
function bytes(amount) {
  for (const [size, unit] of [[2 ** 40, "TiB"], [2 ** 30, "GiB"], [2 ** 20, "MiB"], [2 ** 10, "KiB"]]) {
    if (amount >= size) return figure(amount / size) + " " + unit;
  }
  return amount.toFixed(0) + " B";
}
function count(number) {
  for (const [size, letter] of [[1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (number >= size) return figure(number / size) + " " + letter;
  }
  return number.toFixed(0) + " ";
}

const ruler = document.createElement("canvas").getContext("2d");
const FONT = 'system-ui, "Segoe UI", "Helvetica Neue", "DejaVu Sans", sans-serif';
function widthOf(text, size, bold) {
  ruler.font = `${bold ? 600 : 400} ${size}px ${FONT}`;
  return ruler.measureText(text).width;
}
function fitted(text, width, size, bold) {
  if (widthOf(text, size, bold) <= width) return text;
  let low = 0, high = text.length;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (widthOf(text.slice(0, middle) + "…", size, bold) <= width) low = middle; else high = middle - 1;
  }
  return low ? text.slice(0, low) + "…" : "";
}

const tip = make("div", document.body, undefined, "tip");
function showTip(event, title, facts) {
  tip.replaceChildren();
  make("b", tip, title);
  const table = make("div", tip);
  for (const [name, value] of facts) {
    make("i", table, name);
    make("span", table, value);
  }
  const { width, height } = tip.getBoundingClientRect();
  tip.style.left = Math.max(4, Math.min(event.clientX + 14, innerWidth - width - 8)) + "px";
  const below = event.clientY + 18;
  tip.style.top = (below + height < innerHeight ? below : Math.max(4, event.clientY - height - 12)) + "px";
  tip.style.visibility = "visible";
}
function hideTip() { tip.style.visibility = "hidden"; }
function tipFor(node, title, facts) {
  node.addEventListener("pointermove", event => showTip(event, title, facts));
  node.addEventListener("pointerleave", hideTip);
}
