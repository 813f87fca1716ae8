"use strict";
const report = JSON.parse(document.getElementById("report").textContent);
const STAGES = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8a6d00", "#5b5ea6"];
const TERMS = ["#355c7d", "#6c8ebf", "#94b8d8", "#f2a65a", "#f7d08a", "#b5838d", "#8d99ae", "#d0d6dd", "#a3b18a"];
const PARTS = ["#4c956c", "#d68c45", "#7d6b91", "#dfe3e8"];
const KINDS = { F: "#8ecae6", B: "#fb8500" };

function make(tag, parent, text, kind) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (kind) node.className = kind;
  if (parent) parent.appendChild(node);
  return node;
}
function section(title, hint, wide) {
  const node = make("section", document.getElementById("main"), undefined, wide ? "wide" : "");
  const head = make("h2", node, title);
  if (hint) make("span", head, hint, "hint");
  return node;
}
function legend(parent, names, colours) {
  const row = make("div", parent, undefined, "legend");
  names.forEach((name, i) => make("span", row, name).style.setProperty("--c", colours[i % colours.length]));
}
function time(s) {
  if (s >= 1) return s.toPrecision(3) + " s";
  if (s >= 1e-3) return (s * 1e3).toPrecision(3) + " ms";
  return (s * 1e6).toPrecision(3) + " µs";
}
const gib = b => (b / 2 ** 30).toFixed(2) + " GiB";

function head() {
  const node = document.getElementById("head");
  make("h1", node, report.title);
  for (const [name, value] of report.facts) {
    const fact = make("div", node, undefined, "fact");
    make("span", fact, name);
    make("b", fact, value);
  }
}
function graph() {
  const node = section("Model", "equal layers are one box; click a box to see inside", true);
  const stages = new Set(report.boxes.map(b => b.stage)).size;
  if (stages > 1) legend(node, [...Array(stages).keys()].map(s => "stage " + s), STAGES);
  const flow = make("div", node, undefined, "flow");
  const inside = make("div", node);
  inside.id = "inside";
  const boxes = report.boxes.map(box => {
    const item = make("button", flow, undefined, "box");
    item.style.borderLeftColor = STAGES[box.stage % STAGES.length];
    const title = make("b", item, box.title);
    if (box.times > 1) make("span", title, "×" + box.times, "times");
    make("i", item, box.subtitle);
    if (box.share > 0) make("i", item, "  " + (100 * box.share).toFixed(1) + " % of compute");
    item.addEventListener("click", () => open(box, item));
    return item;
  });
  function open(box, item) {
    boxes.forEach(b => b.classList.toggle("on", b === item));
    inside.replaceChildren();
    const facts = make("table", make("div", inside));
    for (const [name, value] of box.facts) {
      const row = make("tr", facts);
      make("th", row, name);
      make("td", row, value);
    }
    const right = make("div", inside);
    if (!box.rows.length) { make("div", right, "Operators are shown when the report is made with the model.", "tag"); return; }
    const table = make("table", right);
    for (const [scope, names] of box.rows) {
      const row = make("tr", table);
      make("th", row, scope);
      make("td", row, names, "op");
    }
  }
  const widest = report.boxes.reduce((best, b, i) => (b.share > report.boxes[best].share ? i : best), 0);
  open(report.boxes[widest], boxes[widest]);
}
function memory() {
  if (!report.memory.length) return;
  const node = section("Memory per device", "by stage, against the budget of " + gib(report.budget_bytes));
  const names = report.memory[0].map(t => t[0]);
  legend(node, names, TERMS);
  const peaks = report.memory.map(terms => terms.reduce((sum, t) => sum + t[1], 0));
  const most = Math.max(report.budget_bytes, ...peaks) * 1.04;
  report.memory.forEach((terms, stage) => {
    const row = make("div", node, undefined, "row");
    make("div", row, "stage " + stage);
    const bar = make("div", row, undefined, "bar");
    terms.forEach(([name, amount], i) => {
      const part = make("div", bar);
      part.style.width = 100 * amount / most + "%";
      part.style.background = TERMS[i % TERMS.length];
      part.title = name + " " + gib(amount);
    });
    make("div", bar, undefined, "limit").style.left = 100 * report.budget_bytes / most + "%";
    make("div", row, gib(peaks[stage]), "value");
  });
}
function parts() {
  if (!report.parts.length) return;
  const node = section("Where a step goes", "seconds of one step, by stage");
  legend(node, report.parts[0].map(t => t[0]), PARTS);
  report.parts.forEach((terms, stage) => {
    const row = make("div", node, undefined, "row");
    make("div", row, "stage " + stage);
    const bar = make("div", row, undefined, "bar");
    const total = terms.reduce((sum, t) => sum + t[1], 0);
    terms.forEach(([name, amount], i) => {
      const part = make("div", bar);
      part.style.width = 100 * amount / total + "%";
      part.style.background = PARTS[i % PARTS.length];
      part.title = name + " " + time(amount);
    });
    make("div", row, terms.slice(0, 2).map(t => time(t[1])).join(" + "), "value");
  });
}
function timeline() {
  if (!report.events.length) return;
  const node = section("Timeline of one step", "wheel to zoom, drag to move; numbers are micro-batches", true);
  legend(node, ["forward", "backward"], [KINDS.F, KINDS.B]);
  const canvas = make("canvas", node);
  const stages = Math.max(...report.events.map(e => e[0])) + 1;
  const end = Math.max(...report.events.map(e => e[4]));
  let from = 0, to = end;
  const left = 64, rowHeight = 26, height = stages * rowHeight + 26;
  function draw() {
    const width = canvas.clientWidth, ratio = window.devicePixelRatio || 1;
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    canvas.style.height = height + "px";
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    pen.font = "12px system-ui, sans-serif";
    pen.textBaseline = "middle";
    const scale = (width - left - 8) / (to - from);
    for (let s = 0; s < stages; s++) {
      pen.fillStyle = "#f1f3f6";
      pen.fillRect(left, s * rowHeight + 2, width - left - 8, rowHeight - 4);
      pen.fillStyle = "#1c2430";
      pen.fillText("stage " + s, 0, s * rowHeight + rowHeight / 2);
    }
    pen.save();
    pen.beginPath();
    pen.rect(left, 0, width - left - 8, stages * rowHeight);
    pen.clip();
    for (const [stage, kind, micro, start, stop] of report.events) {
      const x = left + (start - from) * scale, w = (stop - start) * scale;
      if (x + w < left || x > width) continue;
      pen.fillStyle = KINDS[kind];
      pen.fillRect(x, stage * rowHeight + 3, Math.max(w - 1, 0.5), rowHeight - 6);
      const label = String(micro);
      if (w > pen.measureText(label).width + 6) {
        pen.fillStyle = "#1c2430";
        pen.fillText(label, x + 3, stage * rowHeight + rowHeight / 2);
      }
    }
    pen.restore();
    pen.fillStyle = "#5b6675";
    const ticks = Math.max(2, Math.floor((width - left) / 130));
    for (let i = 0; i <= ticks; i++) {
      const at = from + (to - from) * i / ticks, label = time(at || 0);
      const x = left + (at - from) * scale - (i === ticks ? pen.measureText(label).width : 0);
      pen.fillText(label, x, stages * rowHeight + 14);
    }
  }
  canvas.addEventListener("wheel", event => {
    event.preventDefault();
    const place = from + (event.offsetX - left) / (canvas.clientWidth - left) * (to - from);
    const factor = event.deltaY > 0 ? 1.25 : 0.8;
    from = Math.max(0, place - (place - from) * factor);
    to = Math.min(end, place + (to - place) * factor);
    draw();
  }, { passive: false });
  let held = null;
  canvas.addEventListener("pointerdown", event => { held = event.offsetX; canvas.setPointerCapture(event.pointerId); });
  canvas.addEventListener("pointerup", () => { held = null; });
  canvas.addEventListener("pointermove", event => {
    if (held === null) return;
    const shift = Math.max(-from, Math.min(end - to, (held - event.offsetX) / (canvas.clientWidth - left) * (to - from)));
    from += shift;
    to += shift;
    held = event.offsetX;
    draw();
  });
  window.addEventListener("resize", draw);
  draw();
}
function alternatives() {
  if (!report.alternatives.length) return;
  const node = section("What else was priced", "the next best, under the same cost model", true);
  const table = make("table", node), top = make("tr", table);
  ["strategy", "micro-batches", "activations", "step", "against this plan", "peak", "budget"].forEach(name => make("th", top, name));
  for (const line of report.alternatives) {
    const row = make("tr", table);
    line.forEach(cell => make("td", row, cell));
  }
}
head();
graph();
memory();
parts();
timeline();
alternatives();
