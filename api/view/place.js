// Where boxes and edges go: columns left to right, broken into lines like text; an opened box unfolds
// beneath its line, so that text never shrinks and nothing is left empty.
const BOX = { least: 176, most: 330, height: 78, gap: 16, lane: 7, margin: 22, head: 30, pad: 12 };

// Columns a line, their width and the gap between them: as many as fit, then stretched to the panel.
function breakLines(graph, width) {
  const least = graph.edges.some(e => e[2]) ? 50 : 30, room = width - 2 * BOX.margin;
  const columns = [];
  graph.boxes.forEach((box, i) => (columns[box.column || 0] ||= []).push(i));
  for (const members of columns) members.sort((a, b) => (graph.boxes[a].row || 0) - (graph.boxes[b].row || 0));
  const across = Math.max(1, Math.floor((room + least) / (BOX.least + least)));
  const count = Math.ceil(columns.length / across), each = Math.ceil(columns.length / count);
  const lines = [];
  for (let first = 0; first < columns.length; first += each) lines.push(columns.slice(first, first + each));
  const boxWidth = Math.min(BOX.most, (room - (each - 1) * least) / each);
  const gap = each > 1 ? Math.min(200, (room - each * boxWidth) / (each - 1)) : least;
  return { lines, gap, boxWidth };
}

// Places of every box of a graph, and of graphs that are open inside: pure, top left at (0, 0).
function place(graphs, key, path, width, opened) {
  const graph = graphs[key], { lines, gap, boxWidth } = breakLines(graph, width);
  const step = boxWidth + gap;
  const at = [], inner = [], tops = [], bottoms = [];
  const lanes = edgeLanes(graph, lines);
  let y = 2;
  lines.forEach((columns, line) => {
    y += lanes.above[line].size * BOX.lane;
    const rows = Math.max(...columns.map(c => c.length)), tall = rows * (BOX.height + BOX.gap) - BOX.gap;
    tops[line] = y;
    columns.forEach((members, column) => {
      const high = members.length * (BOX.height + BOX.gap) - BOX.gap;
      members.forEach((i, row) => {
        at[i] = { line, column, x: BOX.margin + column * step,
          y: y + (tall - high) / 2 + row * (BOX.height + BOX.gap) };
      });
    });
    bottoms[line] = y + tall;
    y += tall + (lanes.below[line].size + 1) * BOX.lane;
    for (const i of columns.flat()) {
      const mine = path + "/" + i;
      if (!opened.has(mine) || !graph.boxes[i].inside) continue;
      const body = place(graphs, opened.get(mine), mine, width - 2 * BOX.margin - 2 * BOX.pad, opened);
      const height = body.height + BOX.head + BOX.pad;
      inner.push({ box: i, path: mine, x: BOX.margin, y: y + 6, width: width - 2 * BOX.margin, height, body });
      y += height + 16;
    }
    if (line + 1 < lines.length) y += BOX.gap / 2;
  });
  return { key, path, graph, at, inner, lanes, tops, bottoms, gap, boxWidth, width, height: y };
}

// Edges that cannot go straight take a lane below their source's line, one lane per source.
function edgeLanes(graph, lines) {
  const line = [], column = [];
  lines.forEach((columns, l) => columns.forEach((members, c) => members.forEach(i => { line[i] = l; column[i] = c; })));
  const below = lines.map(() => new Map()), above = lines.map(() => new Map());
  for (const [source, target] of graph.edges) {
    const straight = line[source] === line[target] && column[target] === column[source] + 1;
    if (straight) continue;
    const under = below[line[source]];
    if (!under.has(source)) under.set(source, under.size);
    if (line[source] !== line[target] && column[target] > 0) {
      const over = above[line[target]];
      if (!over.has(source)) over.set(source, over.size);
    }
  }
  return { below, above };
}

function edgePath(spot, source, target) {
  const from = spot.at[source], to = spot.at[target], half = BOX.height / 2;
  const x1 = from.x + spot.boxWidth, y1 = from.y + half, x2 = to.x, y2 = to.y + half;
  if (from.line === to.line && to.column === from.column + 1) {
    if (Math.abs(y1 - y2) < 1) return { d: `M${x1} ${y1}H${x2}`, far: false };
    const middle = (x1 + x2) / 2;
    return { d: `M${x1} ${y1}C${middle} ${y1} ${middle} ${y2} ${x2} ${y2}`, far: false };
  }
  const order = spot.lanes.below[from.line].get(source);
  const out = x1 + 9 + (order % 3) * 4, low = spot.bottoms[from.line] + (order + 1) * BOX.lane;
  if (from.line === to.line) return { d: bend([[x1, y1], [out, y1], [out, low], [x2 - 12, low], [x2 - 12, y2], [x2, y2]]), far: true };
  const side = 5 + (order % 3) * 4;
  if (to.column === 0) return { d: bend([[x1, y1], [out, y1], [out, low], [side, low], [side, y2], [x2, y2]]), far: to.line > from.line + 1 };
  const lane = spot.tops[to.line] - (spot.lanes.above[to.line].get(source) + 1) * BOX.lane;
  return { d: bend([[x1, y1], [out, y1], [out, low], [side, low], [side, lane], [x2 - 12, lane], [x2 - 12, y2], [x2, y2]]), far: true };
}

// A path of straight pieces with rounded corners.
function bend(points) {
  let d = `M${points[0][0]} ${points[0][1]}`;
  for (let i = 1; i < points.length - 1; i++) {
    const [px, py] = points[i - 1], [x, y] = points[i], [nx, ny] = points[i + 1];
    const before = Math.hypot(x - px, y - py), after = Math.hypot(nx - x, ny - y);
    const r = Math.min(5, before / 2, after / 2);
    if (r < 0.5) { d += `L${x} ${y}`; continue; }
    d += `L${x - (x - px) / before * r} ${y - (y - py) / before * r}`;
    d += `Q${x} ${y} ${x + (nx - x) / after * r} ${y + (ny - y) / after * r}`;
  }
  const end = points[points.length - 1];
  return d + `L${end[0]} ${end[1]}`;
}
