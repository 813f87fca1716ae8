// Tables of figures, of plans beside this one, and their points in time and memory.
function tablePanel(parent, table) {
  if (!table || !table.rows.length) return;
  const node = paired ? make("div") : parent, fill = () => rowsTable(node, table.columns, table.rows, table.right);
  if (!paired) {
    subtitle(parent, table.title, table.hint);
    return void fill();
  }
  fold(make("div", parent), table.title, node, fill);
  parent.appendChild(node);
}
function rowsTable(parent, columns, rows, right = []) {
  const body = make("tbody", make("table", parent, undefined, "cards")), top = make("tr", body, undefined, "head");
  const kind = i => (right.includes(i) ? "right" : i === 0 ? "main" : "");
  columns.forEach((name, i) => make("th", top, name, kind(i)).scope = "col");
  for (const line of rows) {
    const row = make("tr", body);
    line.forEach((cell, i) => cellOf(row, columns[i], cell, kind(i) + (cell === "too large" ? " over" : "")));
  }
  return body;
}
function cellOf(row, label, text, kind) {
  const cell = make("td", row, text && unbroken(text), kind);
  cell.dataset.label = label;
  return cell;
}

// Terms of two plans: their amounts and what the second has more.
function pairsTable(parent, title, pairs, show, names = ["this plan", "instead"]) {
  const table = make("table", parent, undefined, "pairs"), body = make("tbody", table), top = make("tr", body);
  for (const [i, name] of [title, ...names, "more"].entries()) make("th", top, name, i ? "right" : "").scope = "col";
  pairs.forEach(([name, one, other], i) => {
    const row = make("tr", body, undefined, i === pairs.length - 1 ? "total" : "");
    make("td", row, name);
    make("td", row, unbroken(show(one)), "right");
    make("td", row, unbroken(show(other)), "right");
    make("td", row, other === one ? "same" : signed(other - one, show), "right");
  });
}

function whyPanel(parent, report) {
  if (!report.rivals.length) return;
  const node = section(parent, "why", "Why this plan", "every family of strategies under the same cost model");
  const list = make("ul", node, undefined, "reasons");
  for (const reason of report.reasons) make("li", list, unbroken(reason));
  const split = make("div", node, undefined, "split");
  rivalsTable(make("div", split), report);
  scatter(make("div", split), report.points, report.memory_limit_bytes);
}

function rivalsTable(parent, report) {
  const names = ["instead", "strategy", "step", "against the plan", "peak memory", "budget"].slice(0, paired ? 5 : 6);
  const table = make("table", parent, undefined, "rivals cards"), body = make("tbody", table);
  const top = make("tr", body, undefined, "head"), step = report.points.length ? report.points[0][1] : 1;
  names.forEach((name, i) => make("th", top, name, i > 1 && i < 5 ? "right" : "").scope = "col");
  for (const rival of report.rivals) {
    const row = make("tr", body), first = cellOf(row, names[0], undefined, "main");
    if (rival.reason) {
      make("span", first, rival.name);
      cellOf(row, names[1], rival.strategy);
      const cell = cellOf(row, "", rival.reason);
      cell.colSpan = names.length - 2;
      continue;
    }
    const chosen = cellOf(row, names[1], undefined, "main");
    make("span", chosen, `${rival.strategy}, ${rival.micro_batches} micro-batch${rival.micro_batches > 1 ? "es" : ""}, ${rival.memory_actions}`);
    cellOf(row, names[2], time(rival.step_seconds), "right");
    cellOf(row, names[3], percent(rival.step_seconds / step - 1), "right");
    const peak = cellOf(row, names[4], bytes(rival.peak_bytes), "right");
    if (paired) {
      if (!rival.fits) make("div", peak, "too large", "over whole");
    } else cellOf(row, names[5], rival.fits ? "fits" : "too large", rival.fits ? "" : "over whole");
    if (rival.seconds.length || rival.near_duplicates) opening(first, body, rival, names.length); else make("span", first, rival.name);
  }
}
function opening(cell, body, rival, columns) {
  const line = make("tr", body, undefined, "inside"), inside = make("td", line);
  inside.colSpan = columns;
  fold(cell, rival.name, line, () => terms(inside, rival));
}
function terms(parent, rival) {
  const halves = make("div", parent, undefined, "halves");
  if (rival.seconds.length) pairsTable(make("div", halves), "seconds of a step", rival.seconds, time);
  if (rival.memory.length) pairsTable(make("div", halves), "bytes of the fullest stage", rival.memory, bytes);
  if (rival.near_duplicates) make("span", parent, rival.near_duplicates, "note");
}

// The name of a point beside its mark, where it lies on no other mark or name.
function nameOf(svg, label, [x, y], taken, end) {
  const wide = widthOf(label, 11), apart = ([l, t, w, h]) => l + w < x0 || l > x0 + wide || t + h < y0 || t > y0 + 13;
  let x0, y0;
  for ([x0, y0] of [[x + 10, y - 7], [x - wide - 10, y - 7], [x - wide / 2, y - 22], [x - wide / 2, y + 9]]) {
    if (x0 < 64 || x0 + wide > end || !taken.every(apart)) continue;
    taken.push([x0, y0, wide, 13]);
    draw("text", svg, { x: x0, y: y0 + 11 }, label);
    return;
  }
}

// Plans as points: right is slower, up is larger, the line is the budget.
function scatter(parent, points, limit) {
  if (points.length < 3) return;
  const svg = draw("svg", parent, { role: "group", "aria-label": "step time against peak memory" }), named = points.length <= 12 && pages.comparison;
  onRedraw(() => {
    svg.replaceChildren();
    const width = Math.max(220, parent.clientWidth), height = paired ? 140 : 230, right = 14, top = 12, bottom = 40;
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.style.height = height + "px";
    const times = points.map(p => p[1]), sizes = points.map(p => p[2]), least = Math.min(...times), most = Math.max(...times);
    const wide = most > 3 * least, along = wide ? Math.log : s => s, span = along(most) - along(least) || 1;
    const largest = Math.max(...sizes, limit), tall = Math.min(largest, 2 * (limit || largest));
    const highest = (tall < largest ? "≥ " : "") + bytes(tall), left = Math.max(62, widthOf(highest, 11) + 10);
    const x = s => left + (width - left - right) * (along(s) - along(least) + span * 0.05) / (span * 1.1);
    const y = b => top + (height - top - bottom) * (1 - Math.min(b, tall) / (tall * 1.06));
    draw("rect", svg, { x: left, y: top, width: width - left - right, height: height - top - bottom, class: "sunk" });
    for (const amount of [0, tall / 2, tall]) draw("text", svg, { x: left - 6, y: y(amount) + 4, "text-anchor": "end", class: "soft" }, amount === tall ? highest : bytes(amount));
    draw("text", svg, { x: left, y: height - bottom + 15, class: "soft" }, time(least));
    draw("text", svg, { x: width - right, y: height - bottom + 15, "text-anchor": "end", class: "soft" }, time(most));
    draw("text", svg, { x: left, y: height - 8, class: "soft" }, fitted(`→ step${wide ? " (log)" : ""}, ↑ memory, ◆ ${named ? "the first" : "this plan"}`, width - left, 11));
    if (limit) draw("line", svg, { x1: left, x2: width - right, y1: y(limit), y2: y(limit), class: "limit" });
    const marks = points.map(p => [x(p[1]) - 6, y(p[2]) - 6, 12, 12]);
    points.forEach(([label, seconds, size, fits], i) => {
      if (named) nameOf(svg, label, [x(seconds), y(size)], marks, width - right);
      const at = [x(seconds), y(size)], colour = fits ? COMPUTE : css("--limit");
      const mark = i ? draw("circle", svg, { cx: at[0], cy: at[1], r: 4.5, fill: fits ? colour : "none", stroke: colour, "stroke-width": 1.5 })
        : draw("path", svg, { d: `M${at[0]} ${at[1] - 8}l8 8l-8 8l-8 -8z`, fill: css("--link"), class: "rim" });
      mark.setAttribute("tabindex", "0");
      mark.setAttribute("role", "img");
      mark.setAttribute("aria-label", `${label}: ${time(seconds)}, ${bytes(size)}`);
      tipFor(mark, label, [["step", time(seconds)], ["peak memory", bytes(size)], ["budget", fits ? "fits" : "too large"]]);
    });
  });
}
