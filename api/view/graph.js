// The model: boxes coloured by stage or device, strategy, time or work, that open to what is inside.
const MOST_BOXES = 1500;

function graphPanel(parent) {
  const opens = report.graphs[""].boxes.some(box => box.inside);
  const hint = report.part === "device" ? (opens ? "a box is what one device does in a slice of time; click it to open it" : "a box is an operator")
    : "equal neighbours are one box; " + (opens ? "click a box to open it" : "drawn with its model, boxes open");
  const node = section(parent, "Model", hint, true);
  const tools = make("div", node, undefined, "tools"), opened = new Set();
  const words = [...new Set(Object.values(report.graphs).flatMap(g => g.boxes.map(b => b.strategy)).filter(Boolean))];
  let mode = report.modes[0], found = new Set();
  if (mode === report.part && report.stages < 2) mode = "time";
  const keys = make("div", undefined);
  if (report.modes.length > 1) modeSwitch(tools);
  searchField(tools);
  tools.appendChild(keys);
  const svg = draw("svg", node, { role: "group", "aria-label": "model graph" });

  function modeSwitch(row) {
    const group = make("div", row, undefined, "switch");
    for (const name of report.modes) {
      const button = make("button", group, name);
      button.setAttribute("aria-pressed", name === mode);
      button.addEventListener("click", () => {
        mode = name;
        for (const other of group.children) other.setAttribute("aria-pressed", other === button);
        show();
      });
    }
  }
  function searchField(row) {
    const field = make("input", row);
    field.type = "search";
    field.placeholder = "find a module or operator";
    field.setAttribute("aria-label", field.placeholder);
    field.addEventListener("input", () => {
      found = find(field.value.trim().toLowerCase());
      show();
    });
  }
  // All boxes that match, and their parents opened as far as the first of them.
  function find(text) {
    const hits = new Set();
    if (!text) return hits;
    const walk = (key, path) => report.graphs[key].boxes.forEach((box, i) => {
      const mine = path + "/" + i;
      const said = [box.label, ...(box.facts || []).filter(f => f[0] !== "reads" && f[0] !== "makes").map(f => f[1])];
      if (said.some(s => s.toLowerCase().includes(text))) hits.add(mine);
      if (box.inside && hits.size < MOST_BOXES) walk(box.inside, mine);
    });
    walk("", "");
    const first = [...hits].sort((a, b) => b.split("/").length - a.split("/").length)[0];
    for (let at = first; at; at = at.slice(0, at.lastIndexOf("/"))) if (at !== first) opened.add(at);
    return hits;
  }
  function colour(box) {
    if (box.kind === "communication") return WORK.communication;
    if (mode === report.part) return stageColour(box.stage, report.stages);
    if (mode === "strategy") return box.strategy ? STRATEGY[words.indexOf(box.strategy) % STRATEGY.length] : UNKNOWN;
    return WORK.compute;
  }
  function showKeys() {
    keys.replaceChildren();
    const pairs = [];
    if (mode === report.part) for (let s = 0; s < report.stages; s++) {
      if (report.stages <= 10 || s === 0 || s === report.stages - 1) pairs.push([report.part + " " + s, stageColour(s, report.stages)]);
    }
    if (mode === "strategy") words.slice(0, 8).forEach((w, i) => pairs.push([w, STRATEGY[i]]));
    if (mode === "time" || mode === "work") pairs.push([mode === "time" ? "compute" : "flops", WORK.compute]);
    if (mode !== "work") pairs.push(["communication", WORK.communication]);
    legend(keys, pairs);
  }
  function toggle(path) {
    if (!opened.delete(path)) opened.add(path);
    hideTip();
    show();
  }
  function show() {
    showKeys();
    const width = Math.max(420, node.clientWidth - 34);
    const spot = place("", "", width, opened);
    svg.replaceChildren();
    svg.setAttribute("viewBox", `0 0 ${width} ${spot.height}`);
    svg.setAttribute("height", spot.height);
    paint(svg, spot, report.stages - 1, null);
  }
  function paint(layer, spot, stage, parentBox) {
    for (const [source, target, transfer] of spot.graph.edges) paintEdge(layer, spot, source, target, transfer);
    const weights = spot.graph.boxes.map(weight), total = weights.reduce((a, b) => a + b, 0);
    const most = Math.max(...weights, 1e-30);
    spot.graph.boxes.forEach((box, i) => {
      const own = box.stage === undefined && parentBox ? { ...box, stage: parentBox.stage } : box;
      paintBox(layer, own, spot.at[i], spot.path + "/" + i, [weights[i], most, total], spot.boxWidth);
    });
    for (const part of spot.inner) paintInner(layer, spot, part, parentBox);
  }
  function paintEdge(layer, spot, source, target, transfer) {
    const { d, far } = edgePath(spot, source, target);
    const line = draw("path", layer, { d, class: far ? "edge far" : "edge" });
    if (!transfer) return;
    line.style.stroke = WORK.communication;
    line.style.strokeWidth = "3";
    const from = spot.at[source], straight = spot.at[target].line === from.line;
    const lane = spot.bottoms[from.line] + ((spot.lanes.below[from.line].get(source) || 0) + 1) * BOX.lane;
    const x = from.x + spot.boxWidth + (straight ? spot.gap / 2 : -8);
    const y = straight ? from.y + BOX.height / 2 - 7 : lane + 4;
    draw("text", layer, { x, y, "text-anchor": straight ? "middle" : "end", class: "soft halo" }, transfer);
  }
  function paintInner(layer, spot, part, parentBox) {
    const box = spot.graph.boxes[part.box], at = spot.at[part.box];
    const own = box.stage === undefined && parentBox ? { ...box, stage: parentBox.stage } : box;
    const tip = Math.min(Math.max(at.x + 20, part.x + 14), part.x + part.width - 14);
    const level = part.path.split("/").length;
    draw("rect", layer, { x: part.x, y: part.y, width: part.width, height: part.height, rx: 5,
      fill: level % 2 ? "#ffffff" : "#f6f8fa", stroke: "#6e7b8c" });
    draw("path", layer, { d: `M${tip - 8} ${part.y + 0.6}l8 -9l8 9`, fill: level % 2 ? "#ffffff" : "#f6f8fa", stroke: "#6e7b8c" });
    const views = part.body.graph.views || 0, times = box.times || 1;
    const said = [box.label, times > 1 ? `one of ${times} equal calls` : "", report.stages && report.part === "stage" ? "one micro-batch on one device" : "",
      views ? `${views} operators that only rename memory are not drawn` : ""].filter(Boolean).join(" · ");
    draw("text", layer, { x: part.x + BOX.pad, y: part.y + 19, class: "soft" }, fitted(said, part.width - 70, 11));
    const close = draw("text", layer, { x: part.x + part.width - BOX.pad, y: part.y + 19, "text-anchor": "end", class: "soft", cursor: "pointer" }, "close ✕");
    close.addEventListener("click", () => toggle(part.path));
    const body = draw("g", layer, { transform: `translate(${part.x + BOX.pad} ${part.y + BOX.head})` });
    paint(body, part.body, 0, own);
  }
  function weight(box) {
    const seconds = (box.forward_seconds || 0) + (box.backward_seconds || 0);
    return (report.stages ? seconds : box.flops || 0) * (box.times || 1);
  }
  function paintBox(layer, box, at, path, [own, most, total], width) {
    const kind = "box" + (box.inside ? " opens" : "") + (found.has(path) ? " found" : "");
    const node = draw("g", layer, { class: kind, transform: `translate(${at.x} ${at.y})` });
    const tint = colour(box), height = BOX.height, sends = box.kind === "communication";
    draw("rect", node, { width, height, rx: 5, fill: "#fff", class: "frame" });
    draw("rect", node, { x: 0.5, y: 0.5, width: width - 1, height: height - 1, rx: 4.5, fill: tint, "fill-opacity": sends ? 0.16 : 0.1 });
    draw("path", node, { d: `M5 0.5H8V${height - 0.5}H5A4.5 4.5 0 0 1 0.5 ${height - 5}V5A4.5 4.5 0 0 1 5 0.5Z`, fill: tint });
    const badge = box.times > 1 ? "×" + box.times : "";
    const sign = box.inside ? (opened.has(path) ? "▾ " : "▸ ") : "", beside = badge ? widthOf(badge, 12, true) + 8 : 0;
    draw("text", node, { x: 15, y: 19, class: "name" }, fitted(sign + box.label, width - 20, 12, true));
    if (badge) draw("text", node, { x: width - 9, y: 35, "text-anchor": "end", class: "name" }, badge);
    draw("text", node, { x: 15, y: 35, class: "soft" }, fitted(second(box), width - 24 - beside, 11));
    draw("text", node, { x: 15, y: 50, class: "soft" }, fitted(third(box, own, total), width - 24, 11));
    if ((mode === "time" || mode === "work") && own) paintShare(node, box, own / most, width);
    tipFor(node, box.label + (badge ? " " + badge : ""), facts(box, own, total));
    if (!box.inside) return;
    node.setAttribute("tabindex", "0");
    node.setAttribute("role", "button");
    node.setAttribute("aria-expanded", opened.has(path));
    node.addEventListener("click", () => toggle(path));
    node.addEventListener("keydown", event => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); toggle(path); } });
  }
  function second(box) {
    const work = box.flops ? count(box.flops) + "flop" : "";
    if (box.kind === "call") return box.about || "";
    if (mode === "work") return [box.about, work].filter(Boolean).join(" · ");
    return [box.about, time(weight(box))].filter(Boolean).join(" · ");
  }
  function third(box, own, total) {
    const share = total ? `${(100 * own / total).toFixed(1)} %` : "";
    if (mode === report.part) return box.stage >= 0 ? report.part + " " + box.stage : "";
    if (mode === "strategy") return box.strategy || (box.kind === "communication" ? "moves data" : "");
    if (box.kind === "call" && mode === "work") return `${count(own)}flop · ${share}`;
    return own ? `${share} of ${box.kind === "call" ? "all" : "this level"}` : "";
  }
  function paintShare(node, box, part, boxWidth) {
    const room = boxWidth - 16, y = BOX.height - 7, whole = (box.forward_seconds || 0) + (box.backward_seconds || 0);
    const sent = box.communication_seconds || 0, width = Math.max(1, room * part);
    const split = whole && sent > 0 ? Math.min(1, sent / whole) : 0;
    draw("rect", node, { x: 12, y, width: width * (1 - split), height: 4, fill: sent < 0 ? UNKNOWN : WORK.compute });
    if (split) draw("rect", node, { x: 12 + width * (1 - split), y, width: width * split, height: 4, fill: WORK.communication });
  }
  function facts(box, own, total) {
    const list = [...(box.facts || [])], has = name => list.some(f => f[0] === name);
    if (box.kind === "module" && report.stages) {
      list.push(["forward", time(box.forward_seconds || 0)]);
      if (box.backward_seconds) list.push(["backward", time(box.backward_seconds)]);
    }
    if (report.stages && box.kind !== "communication" && box.communication_seconds > 0) list.push(["communication in it", time(box.communication_seconds)]);
    if (box.flops && !has("work")) list.push(["work", count(box.flops) + "flop"]);
    if (box.kind === "module" && box.strategy) list.push(["split by", box.strategy]);
    return list;
  }
  addEventListener("resize", show);
  show();
}
