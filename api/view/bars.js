// Stacked bars with a table of their figures below: memory against the budget, the step's parts.
const MOST_COLUMNS = 5;

function memoryPanel(parent) {
  if (!report.memory.length) return;
  const node = section(parent, "Memory per device", "every term of the peak" + (report.memory_limit_bytes ? `, against a budget of ${bytes(report.memory_limit_bytes)}` : ""));
  bars(node, report.memory, termColour, bytes, report.memory_limit_bytes);
  figures(node, report.memory, termColour, bytes, "peak", sum => report.memory_limit_bytes && sum > report.memory_limit_bytes);
}
function stepPanel(parent) {
  if (!report.step || !report.step.length) return;
  const node = section(parent, "Where a step goes", report.part === "device" ? "seconds of one step on each device" : "seconds of one step on a device of each stage");
  const colour = name => STEP[name] || UNKNOWN;
  bars(node, report.step, colour, time, 0);
  figures(node, report.step, colour, time, "step", () => false);
}
function totalOf(bar) { return bar.parts.reduce((sum, part) => sum + part[1], 0); }

function bars(node, list, colour, show, limit) {
  const most = Math.max(limit, ...list.map(totalOf)) * (limit ? 1.03 : 1) || 1;
  const grid = make("div", node, undefined, "bars");
  list.forEach(bar => {
    make("span", grid, bar.label);
    const strip = make("div", grid, undefined, "bar");
    let at = 0;
    bar.parts.forEach(([name, amount], i) => {
      if (amount <= 0) return;
      const part = make("div", strip, undefined, "part"), tint = colour(name, i), wide = 100 * amount / most;
      part.style.left = 100 * at / most + "%";
      part.style.width = wide + "%";
      part.style.background = tint;
      part.style.color = dark(tint) ? "#fff" : INK;
      part.dataset.name = name;
      at += amount;
      tipFor(part, name, [["amount", show(amount)], ["share", (100 * amount / totalOf(bar)).toFixed(1) + " %"]]);
    });
    if (limit) make("div", strip, undefined, "limit").style.left = 100 * limit / most + "%";
    const total = totalOf(bar);
    make("span", grid, show(total), "right" + (limit && total > limit ? " over" : ""));
  });
  if (limit) {
    make("span", grid);
    const row = make("span", grid, undefined, "limit-name right");
    row.textContent = `budget ${show(limit)}`;
    row.style.paddingRight = 100 - 100 * limit / most + "%";
    make("span", grid);
  }
  const label = () => grid.querySelectorAll(".part").forEach(part => {
    const name = part.dataset.name;
    part.textContent = part.clientWidth > widthOf(name, 11) + 10 ? name : "";
  });
  label();
  addEventListener("resize", label);
}

function figures(node, list, colour, show, name, over) {
  const sums = list.map(totalOf), fullest = sums.indexOf(Math.max(...sums));
  const picked = list.length <= MOST_COLUMNS ? list.map((_, i) => i) : [fullest];
  const short = i => list[i].label.split(" · ")[0];
  const table = make("table", make("div", node, undefined, "scroll")), top = make("tr", table);
  make("th", top);
  picked.forEach(i => make("th", top, short(i) + (list.length > MOST_COLUMNS ? ", the fullest" : ""), "right"));
  if (picked.length === 1) make("th", top, "share", "right");
  const names = [...new Set(list.flatMap(bar => bar.parts.map(p => p[0])))];
  names.forEach((term, place) => {
    const row = make("tr", table);
    swatch(make("td", row), term, colour(term, place));
    const of = i => (list[i].parts.find(p => p[0] === term) || [0, 0])[1];
    picked.forEach(i => make("td", row, show(of(i)), "right"));
    if (picked.length === 1) make("td", row, (100 * of(fullest) / (sums[fullest] || 1)).toFixed(1) + " %", "right");
  });
  const row = make("tr", table, undefined, "total");
  make("td", row, name);
  picked.forEach(i => make("td", row, show(sums[i]), "right" + (over(sums[i]) ? " over" : "")));
  if (picked.length === 1) make("td", row, "", "right");
}
