// What runs where: boxes coloured by stage or device, strategy, time or work, that open to what is inside.
const MOST_BOXES = 1500;
const HINTS = { device: "a box is a module, or an operator, and the device it runs on", stage: "equal layers are one box", group: "a row per pipeline replica" };

function graphPanel(parent, report, cursor) {
  const graphs = report.graphs, opens = graphs[""].boxes.some(box => box.inside);
  const node = section(parent, "where", "What runs where", HINTS[report.part] + (opens ? "; open a box by click or Enter" : ""));
  const tools = make("div", node, undefined, "tools");
  const opened = new Map(); // path of a box -> key of the graph that it is opened to
  const words = [...new Set(Object.values(graphs).flatMap(g => g.boxes.map(b => b.strategy)).filter(Boolean))];
  let mode = report.modes[0], found = new Set(), boxes = [], edges = [];
  if (mode === report.part && (report.stages < 2 || !graphs[""].boxes.some(box => box.stage >= 0 || box.inside))) mode = report.modes.includes("strategy") ? "strategy" : "time";
  if (report.modes.length > 1) switchOf(tools, report.modes, mode, name => { mode = name; show(); });
  const keys = make("div", undefined);
  searchField(tools);
  tools.appendChild(keys);
  const svg = draw("svg", node, { role: "group", "aria-label": "model graph" });

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
    const hits = new Set(), parents = new Map();
    if (!text) return hits;
    const walk = (key, path) => graphs[key].boxes.forEach((box, i) => {
      const mine = path + "/" + i;
      const said = [box.label, ...(box.facts || []).filter(f => f[0] !== "reads" && f[0] !== "makes").map(f => f[1])];
      if (said.some(s => s.toLowerCase().includes(text))) hits.add(mine);
      parents.set(mine, box.inside);
      if (box.inside && hits.size < MOST_BOXES) walk(box.inside, mine);
    });
    walk("", "");
    const first = [...hits].sort((a, b) => a.split("/").length - b.split("/").length)[0];
    for (let at = first; at; at = at.slice(0, at.lastIndexOf("/"))) if (at !== first) opened.set(at, parents.get(at));
    return hits;
  }
  function colour(box) {
    if (box.kind === "communication") return SENDS;
    if (mode === report.part) return stageColour(box.stage ?? -1);
    if (mode === "strategy") return box.strategy ? STRATEGIES[words.indexOf(box.strategy) % STRATEGIES.length] : UNKNOWN;
    return COMPUTE;
  }
  function showKeys() {
    keys.replaceChildren();
    const pairs = [];
    if (mode === report.part) for (let s = 0; s < Math.min(report.stages, STAGES.length); s++) {
      pairs.push([((report.stage_names || [])[s] || report.part + " " + s) + (report.stages > STAGES.length ? `, ${s + STAGES.length} …` : ""), stageColour(s)]);
    }
    if (mode === "strategy") words.slice(0, 8).forEach((w, i) => pairs.push([w, STRATEGIES[i]]));
    if (mode === "time" || mode === "work") pairs.push([mode === "time" ? "compute" : "flops", COMPUTE]);
    if (mode !== "work") pairs.push(["communication", SENDS]);
    legend(keys, pairs);
  }
  function toggle(path, inside) {
    if (!opened.delete(path)) opened.set(path, inside);
    hideTip();
    show(path);
  }
  function show(focus) {
    showKeys();
    const width = Math.max(240, node.clientWidth - 34), spot = place(graphs, "", "", width, opened);
    svg.replaceChildren();
    boxes = [];
    edges = [];
    svg.setAttribute("viewBox", `0 0 ${width} ${spot.height}`);
    svg.style.height = spot.height + "px";
    paint(svg, spot, null);
    boxes.find(box => box.path === focus)?.node.focus({ preventScroll: true });
  }
  function paint(layer, spot, parentBox) {
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
    edges.push([line, `${spot.path}/${source}`, `${spot.path}/${target}`]);
    if (!transfer) return;
    line.style.stroke = SENDS;
    line.style.strokeWidth = "2.5";
    const from = spot.at[source], straight = spot.at[target].line === from.line;
    draw("title", line, {}, `${transfer} sent from stage to stage, per micro-batch`);
    if (!straight || widthOf(transfer, 11) > spot.gap - 6) return;
    draw("text", layer, { x: from.x + spot.boxWidth + spot.gap / 2, y: from.y + BOX.height / 2 - 7, "text-anchor": "middle", class: "soft" }, transfer);
  }
  // The edges of the box that is pointed at stand out of all others, and lie above them.
  function markEdges(path, on) {
    for (const [line, source, target] of edges) {
      if (source !== path && target !== path) continue;
      line.classList.toggle("marked", on);
      if (on) line.parentNode.insertBefore(line, line.parentNode.querySelector("g.box"));
    }
  }
  function paintInner(layer, spot, part, parentBox) {
    const box = spot.graph.boxes[part.box], at = spot.at[part.box], graph = part.body.graph;
    const own = box.stage === undefined && parentBox ? { ...box, stage: parentBox.stage } : box;
    const tip = Math.min(Math.max(at.x + 20, part.x + 14), part.x + part.width - 14);
    const fill = part.path.split("/").length % 2 ? "paper" : "sunk";
    draw("rect", layer, { x: part.x, y: part.y, width: part.width, height: part.height, rx: 5, class: fill + " rim" });
    draw("path", layer, { d: `M${tip - 8} ${part.y + 0.6}l8 -9l8 9`, class: fill + " rim" });
    const right = part.x + part.width - BOX.pad;
    word(layer, right, part.y + 19, "close ✕", () => toggle(part.path));
    let room = part.width - 80;
    if (graph.otherwise) {
      const name = "show " + graphs[graph.otherwise].name, wide = widthOf(name, 11) + 20;
      word(layer, right - 66, part.y + 19, name, () => { opened.set(part.path, graph.otherwise); show(); });
      room -= wide;
    }
    const views = graph.views || 0, times = box.times || 1;
    const said = [box.label, graph.name || "", times > 1 && graph.boxes[0].kind !== "call" ? `one of ${times} equal calls` : "",
      views ? `${views} operators that only rename memory are not drawn` : ""].filter(Boolean).join(" · ");
    draw("text", layer, { x: part.x + BOX.pad, y: part.y + 19, class: "soft" }, fitted(said, room, 11));
    paint(draw("g", layer, { transform: `translate(${part.x + BOX.pad} ${part.y + BOX.head})` }), part.body, own);
  }
  function word(layer, x, y, text, act) {
    const node = draw("text", layer, { x, y, "text-anchor": "end", class: "soft word", tabindex: 0, role: "button" }, text);
    pressed(node, act);
  }
  function pressed(node, act) {
    node.addEventListener("click", act);
    node.addEventListener("keydown", event => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      act();
    });
  }
  function weight(box) {
    const seconds = (box.forward_seconds || 0) + (box.backward_seconds || 0);
    return (report.stages ? seconds : box.flops || 0) * (box.times || 1);
  }
  function paintBox(layer, box, at, path, [own, most, total], width) {
    const stage = box.stage ?? -1, kind = "box" + (box.inside ? " opens" : "") + (found.has(path) ? " found" : "");
    const node = draw("g", layer, { class: kind, transform: `translate(${at.x} ${at.y})`, tabindex: 0, role: box.inside ? "button" : "img" });
    const tint = colour(box), height = BOX.height, sends = box.kind === "communication";
    draw("rect", node, { width, height, rx: 5, class: "frame" });
    draw("rect", node, { x: 0.5, y: 0.5, width: width - 1, height: height - 1, rx: 4.5, fill: tint, "fill-opacity": sends ? 0.2 : 0.12 });
    draw("path", node, { d: `M5 0.5H8V${height - 0.5}H5A4.5 4.5 0 0 1 0.5 ${height - 5}V5A4.5 4.5 0 0 1 5 0.5Z`, fill: tint });
    const badge = box.times > 1 ? "×" + box.times : "", beside = badge ? widthOf(badge, 12, true) + 8 : 0;
    const sign = box.inside ? (opened.has(path) ? "▾ " : "▸ ") : "", room = width - 24;
    draw("text", node, { x: 15, y: 19, class: "name" }, fitted(sign + box.label, room - beside, 12, true));
    if (badge) draw("text", node, { x: width - 9, y: 19, "text-anchor": "end", class: "name" }, badge);
    [box.about || "", third(box, own, total), box.note || ""].filter(Boolean).forEach((text, i) => {
      draw("text", node, { x: 15, y: 35 + 15 * i, class: "soft" }, fitted(text, room, 11));
    });
    if ((mode === "time" || mode === "work") && own) paintShare(node, box, own / most, width);
    const title = box.label + (badge ? " " + badge : ""), list = facts(box);
    node.setAttribute("aria-label", [title, box.about, third(box, own, total), box.note].filter(Boolean).join(", "));
    tipFor(node, title, list);
    cursor.link(node, stage);
    for (const [kind, on] of [["pointerenter", true], ["pointerleave", false], ["focus", true], ["blur", false]]) {
      node.addEventListener(kind, () => markEdges(path, on));
    }
    boxes.push({ node, stage, path });
    if (!box.inside) return;
    node.setAttribute("aria-expanded", opened.has(path));
    pressed(node, () => toggle(path, box.inside));
  }
  function third(box, own, total) {
    const share = total && own ? `${(100 * own / total).toFixed(1)} %` : "";
    const where = (box.stage ?? -1) >= 0 ? `${report.part} ${box.stage}` : "";
    const amount = report.stages ? (own ? time(own) : "") : (own ? count(own) + "flop" : "");
    if (mode === report.part) return [where, amount].filter(Boolean).join(" · ");
    if (mode === "strategy") return box.strategy || (box.kind === "communication" ? "moves data" : amount);
    return [amount, share].filter(Boolean).join(" · ");
  }
  function paintShare(node, box, part, boxWidth) {
    const room = boxWidth - 16, y = BOX.height - 6, whole = (box.forward_seconds || 0) + (box.backward_seconds || 0);
    const sent = box.communication_seconds || 0, width = Math.max(1, room * part);
    const split = whole && sent > 0 ? Math.min(1, sent / whole) : 0;
    draw("rect", node, { x: 12, y, width: width * (1 - split), height: 4, fill: sent < 0 ? UNKNOWN : COMPUTE });
    if (split) draw("rect", node, { x: 12 + width * (1 - split), y, width: width * split, height: 4, fill: SENDS });
  }
  function facts(box) {
    const list = [...(box.facts || [])], has = name => list.some(f => f[0] === name);
    if (report.stages && box.kind !== "communication") {
      if (!has("forward each")) list.push(["forward each", time(box.forward_seconds || 0)]);
      if (box.backward_seconds && !has("backward each")) list.push(["backward each", time(box.backward_seconds)]);
      if (box.communication_seconds > 0) list.push(["communication in it", time(box.communication_seconds)]);
    }
    if (box.flops && !has("work")) list.push(["work", count(box.flops) + "flop"]);
    if (box.kind === "module" && box.strategy) list.push(["split by", box.strategy]);
    return list;
  }
  cursor.listen(() => {
    for (const box of boxes) box.node.classList.toggle("linked", box.stage >= 0 && box.stage === cursor.stage);
  });
  onRedraw(() => show());
}
