// Stacked bars with a table of their figures below: memory against the budget, the step's parts.

function memoryPanel(parent, report, cursor) {
  const tables = report.tables.filter(t => t.title === "Host memory");
  if (!report.memory.length) return;
  const limit = report.memory_limit_bytes, own = report.memory.some(bar => bar.limit_bytes);
  const far = limit && !drawnLimit(limit, report.memory) ? ", far beyond these bars" : "";
  const against = own ? ", against the budget of its kind" : limit ? `, against a budget of ${bytes(limit)}${far}` : "";
  const node = section(parent, "much", "How much", "every term of the peak of a device" + against);
  barsWithFigures(node, report.memory, termColour, bytes, limit, cursor, ["peak", "the fullest"]);
  for (const table of tables) tablePanel(node, table);
}
function stepPanel(node, report, cursor, colour) {
  if (!report.step.length) return;
  subtitle(node, "Where a step goes", report.part === "device" ? "seconds of one step on each device" : "seconds of one step on a device of each stage");
  barsWithFigures(node, report.step, colour, time, 0, cursor, ["step", "the busiest"]);
}
// One bar has its figures below it; several have them beside them, term by term. Of paired reports they open.
function barsWithFigures(node, list, colour, show, limit, cursor, words) {
  if (list.length === 1) {
    bars(node, list, colour, show, limit, cursor);
    told(node, inside => amounts(inside, list[0], colour, show));
    return;
  }
  const split = make("div", node, undefined, "split even"), [left, right] = [make("div", split), make("div", split)];
  bars(left, list, colour, show, limit, cursor);
  told(right, inside => figures(inside, list, colour, show, words, (sum, bar) => limit && sum > (bar.limit_bytes || limit)));
}
function told(node, fill) {
  if (!paired) return fill(node);
  const inside = make("div");
  fold(node, "figures", inside, () => fill(inside));
  node.appendChild(inside);
}
function amounts(node, bar, colour, show) {
  const list = make("dl", node, undefined, "amounts"), total = totalOf(bar) || 1;
  bar.parts.forEach(([name, amount], i) => {
    if (amount <= 0) return;
    const item = make("div", list);
    swatch(make("dt", item), name, colour(name, i));
    make("dd", item, `${show(amount)} · ${(100 * amount / total).toFixed(1)} %`);
  });
}
function totalOf(bar) { return bar.parts.reduce((sum, part) => sum + part[1], 0); }
function busyOf(bar) { return totalOf({ parts: bar.parts.filter(p => p[0] !== "waiting") }); }
// A budget that would press the bars into slivers, at less than a share of it, is not drawn.
const LEAST_SHARE = 0.2;
function drawnLimit(limit, list, share = LEAST_SHARE) { return Math.max(...list.map(totalOf)) >= share * limit ? limit : 0; }

function bars(node, list, colour, show, limit, cursor, share) {
  const budget = limit, over = (bar, total) => budget && total > (bar.limit_bytes || budget);
  limit = drawnLimit(Math.max(limit, ...list.map(bar => bar.limit_bytes || 0)), list, share);
  const most = Math.max(limit, ...list.map(totalOf)) * (limit ? 1.03 : 1) || 1;
  const grid = make("div", node, undefined, "bars");
  list.forEach(bar => {
    make("span", grid, bar.label);
    const strip = make("div", grid, undefined, "bar"), stages = bar.stages || [];
    cursor.link(strip, stages[0] ?? -1);
    cursor.listen(() => strip.classList.toggle("linked", stages.includes(cursor.stage)));
    let at = 0;
    bar.parts.forEach(([name, amount], i) => {
      if (amount <= 0) return;
      const part = make("div", strip, undefined, "part"), tint = colour(name, i), wide = 100 * amount / most;
      part.style.left = 100 * at / most + "%";
      part.style.width = wide + "%";
      part.style.background = tint;
      part.style.color = dark(tint) ? "#fff" : "#1b2430";
      part.dataset.name = name;
      at += amount;
      tipFor(part, name, [["amount", show(amount)], ["share", (100 * amount / totalOf(bar)).toFixed(1) + " %"]]);
    });
    if (limit) make("div", strip, undefined, "budget").style.left = 100 * (bar.limit_bytes || budget) / most + "%";
    const total = totalOf(bar);
    const told = bar.limit_bytes && !limit ? ` of ${show(bar.limit_bytes)}` : ""; // a budget that is not drawn
    make("span", grid, show(total) + told, "right" + (over(bar, total) ? " over" : ""));
  });
  onRedraw(() => grid.querySelectorAll(".part").forEach(part => {
    const name = part.dataset.name;
    part.textContent = part.clientWidth > widthOf(name, 11) + 12 ? name : "";
  }));
}

function figures(node, list, colour, show, [name, fullestName], over) {
  const sums = list.map(totalOf), parts = list.map(bar => busyOf(bar) / (bar.limit_bytes || 1)), fullest = parts.indexOf(Math.max(...parts));
  const most = Math.max(1, Math.min(5, Math.floor((node.clientWidth - 170) / 90)));
  const picked = list.length <= most ? list.map((_, i) => i) : [fullest];
  const short = i => list[i].label.split(" · ")[0];
  const table = make("tbody", make("table", node, undefined, "pairs")), top = make("tr", table);
  make("th", top);
  picked.forEach(i => make("th", top, short(i) + (list.length > most ? ", " + fullestName : ""), "right"));
  if (picked.length === 1) make("th", top, "share", "right");
  const names = [...new Set(list.flatMap(bar => bar.parts.filter(p => p[1] > 0).map(p => p[0])))];
  names.forEach((term, place) => {
    const row = make("tr", table);
    swatch(make("td", row), term, colour(term, place));
    const of = i => (list[i].parts.find(p => p[0] === term) || [0, 0])[1];
    picked.forEach(i => make("td", row, show(of(i)), "right"));
    if (picked.length === 1) make("td", row, (100 * of(fullest) / (sums[fullest] || 1)).toFixed(1) + " %", "right");
  });
  const row = make("tr", table, undefined, "total");
  make("td", row, name);
  picked.forEach(i => make("td", row, show(sums[i]), "right" + (over(sums[i], list[i]) ? " over" : "")));
  if (picked.length === 1) make("td", row, "", "right");
}
