"use strict";
const pages = JSON.parse(document.getElementById("report").textContent);
const paired = pages.reports.length > 1; // two reports beside each other, under a table of what both have

// One colour means one thing on the whole page. Stages, strategies, kinds of memory and kinds of traffic have
// a palette each whose neighbours differ; colour never stands alone: a number, name or legend is beside it.
const FORWARD = "#9cc7ea", BACKWARD = "#3f7fb5", COMPUTE = "#4f8fc6", UNKNOWN = "#8795a6", SENDS = "#e58a2b";
const STAGES = ["#3b76c4", "#d99a1c", "#2d9468", "#c94f86", "#7d6bd0", "#5f9fb8", "#a8862c", "#c26344"];
const STRATEGIES = ["#2f9c95", "#c7641f", "#7b62c9", "#7f8f1f", "#c44569", "#4a86c5", "#a87f2a", "#5c6f82"];
const TRAFFIC = ["#e58a2b", "#b8406a", "#c9a91e", "#8d5fc0", "#a2512a", "#d66bb0", "#6f8a1f", "#d0554a"];
const MEMORY = { parameters: "#6252b0", gradients: "#9a8bd6", optimizer: "#c2b6ea", activations: "#2d8a66",
  "batch data": "#9fd8be", temporaries: "#6cbfa0", communication: SENDS, persistent: "#6252b0",
  outputs: "#2d8a66", "received copies": SENDS, margin: "#c3cad4", runtime: "#8894a4" };
const OTHERS = ["#7f6a55", "#a3927f", "#c7baab"];
const FIXED = { compute: COMPUTE, optimizer: "#7d8590" };

function stageColour(number) { return number < 0 ? UNKNOWN : STAGES[number % STAGES.length]; }
function termColour(name, place) { return MEMORY[name] || OTHERS[place % OTHERS.length]; }
function css(name) { return getComputedStyle(document.documentElement).getPropertyValue(name).trim(); }
function dark(colour) {
  if (!colour.startsWith("#")) return false;
  const [r, g, b] = [1, 3, 5].map(i => parseInt(colour.slice(i, i + 2), 16));
  return 0.3 * r + 0.59 * g + 0.11 * b < 140;
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
function section(parent, kind, title, hint) {
  const node = make("section", parent, undefined, kind), head = make("h2", node, title);
  if (hint) make("span", head, hint);
  return node;
}
function subtitle(parent, title, hint) {
  const head = make("h3", parent, title);
  if (hint) make("span", head, hint);
}
// A button that opens a node, which is filled when it is opened first.
function fold(parent, name, node, fill) {
  const button = make("button", parent, "▸ " + name, "fold");
  let filled = false;
  button.type = "button";
  node.hidden = true;
  button.setAttribute("aria-expanded", "false");
  button.addEventListener("click", () => {
    node.hidden = !node.hidden;
    if (!filled) fill();
    filled = true;
    button.setAttribute("aria-expanded", !node.hidden);
    button.textContent = (node.hidden ? "▸ " : "▾ ") + name;
  });
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
function switchOf(parent, names, chosen, act) {
  const group = make("div", parent, undefined, "switch");
  for (const name of names) {
    const button = make("button", group, name);
    button.type = "button";
    button.setAttribute("aria-pressed", name === chosen);
    button.addEventListener("click", () => {
      for (const other of group.children) other.setAttribute("aria-pressed", other === button);
      act(name);
    });
  }
  return group;
}

// A number and its unit stay on one line; a minus is one.
function unbroken(text) { return text.replace(/(^|[ (])-(?=\d)/g, "$1−").replace(/(\d) (?=(?:[kMGTP]?i?B|[mµn]?s|%|GiB)(?![a-z]))/g, "$1\u00a0"); }
function figure(value) { return value >= 100 ? value.toFixed(0) : value.toPrecision(3); }
function time(s) {
  if (!s) return "0 s";
  for (const [size, unit] of [[1, "s"], [1e-3, "ms"], [1e-6, "µs"]]) {
    if (Math.abs(s) >= size * 0.9995) return figure(s / size) + " " + unit;
  }
  return figure(s * 1e9) + " ns";
}
function bytes(amount) {
  for (const [size, unit] of [[2 ** 40, "TiB"], [2 ** 30, "GiB"], [2 ** 20, "MiB"], [2 ** 10, "KiB"]]) {
    if (amount >= 0.9765 * size) return figure(amount / size) + " " + unit; // 0.977 GiB, not 1000 MiB
  }
  return amount.toFixed(0) + " B";
}
function signed(change, show) { return (change < 0 ? "−" : "+") + show(Math.abs(change)); }
function percent(ratio) { return signed(100 * ratio, x => x.toFixed(1)) + " %"; }
function count(number) {
  for (const [size, letter] of [[1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (number >= size) return figure(number / size) + " " + letter;
  }
  return number.toFixed(0) + " ";
}

const ruler = document.createElement("canvas").getContext("2d");
const FONT = 'system-ui, "Segoe UI", "Helvetica Neue", "DejaVu Sans", sans-serif';
const widths = new Map();
function widthOf(text, size, bold) {
  const key = `${bold ? 600 : 400} ${size} ${text}`;
  if (!widths.has(key)) {
    ruler.font = `${bold ? 600 : 400} ${size}px ${FONT}`;
    widths.set(key, ruler.measureText(text).width);
  }
  return widths.get(key);
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
function showTip(x, y, title, facts) {
  tip.replaceChildren();
  make("b", tip, title);
  const table = make("div", tip);
  for (const [name, value] of facts) {
    make("i", table, name);
    make("span", table, value);
  }
  const { width, height } = tip.getBoundingClientRect();
  tip.style.left = Math.max(4, Math.min(x + 14, innerWidth - width - 8)) + "px";
  tip.style.top = (y + 18 + height < innerHeight ? y + 18 : Math.max(4, y - height - 12)) + "px";
  tip.style.visibility = "visible";
}
function hideTip() { tip.style.visibility = "hidden"; }
function tipFor(node, title, facts) {
  node.addEventListener("pointermove", event => showTip(event.clientX, event.clientY, title, facts));
  node.addEventListener("pointerleave", hideTip);
  node.addEventListener("focus", () => {
    if (!node.matches(":focus-visible")) return;
    const at = node.getBoundingClientRect();
    showTip(at.left, at.bottom - 12, title, facts);
  });
  node.addEventListener("blur", hideTip);
}

// One cursor for all panels of a report: the stage that is pointed at, and the moment.
class Cursor {
  constructor() { this.stage = -1; this.seconds = -1; this.listeners = []; }
  listen(act) { this.listeners.push(act); }
  move(stage, seconds = -1) {
    if (stage === this.stage && seconds === this.seconds) return;
    this.stage = stage;
    this.seconds = seconds;
    for (const act of this.listeners) act();
  }
  link(node, stage) {
    if (stage < 0) return;
    node.addEventListener("pointerenter", () => this.move(stage));
    node.addEventListener("pointerleave", () => this.move(-1));
  }
}

const redraws = [];
function redraw() { for (const act of redraws) act(); }
function onRedraw(act) { redraws.push(act); act(); }
let drawnWidth = innerWidth;
addEventListener("resize", () => { if (innerWidth !== drawnWidth) { drawnWidth = innerWidth; redraw(); } });
addEventListener("beforeprint", redraw);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
