// Stacked bars with a table of their figures below: memory against the budget, the step's parts.

function memoryPanel(parent, report, cursor) {
  const tables = report.tables.filter(t => t.title === "Host memory");
  if (!report.memory.length) return;
  const limit = report.memory_limit_bytes;
  const node = section(parent, "How much", "every term of the peak of a device" + (limit ? `, against a budget of ${bytes(limit)}` : ""));
  const split = make("div", node, undefined, "split even"), [drawn, told] = [make("div", split), make("div", split)];
  bars(drawn, report.memory, termColour, bytes, limit, cursor);
  figures(told, report.memory, termColour, bytes, "peak", sum => limit && sum > limit);
  for (const table of tables) tablePanel(node, table);
}
function stepPanel(node, report, cursor, colour) {
  if (!report.step.length) return;
  subtitle(node, "Where a step goes", report.part === "device" ? "seconds of one step on each device" : "seconds of one step on a device of each stage");
  const split = make("div", node, undefined, "split even"), [drawn, told] = [make("div", split), make("div", split)];
  bars(drawn, report.step, colour, time, 0, cursor);
  figures(told, report.step, colour, time, "step", () => false);
}
function totalOf(bar) { return bar.parts.reduce((sum, part) => sum + part[1], 0); }

function bars(node, list, colour, show, limit, cursor) {
  const most = Math.max(limit, ...list.map(totalOf)) * (limit ? 1.03 : 1) || 1;
  const grid = make("div", node, undefined, "bars");
  list.forEach(bar => {
    make("span", grid, bar.label);
    const strip = make("div", grid, undefined, "bar"), [first, last] = bar.stages || [-1, -1];
    cursor.link(strip, first);
    cursor.listen(() => strip.classList.toggle("linked", first >= 0 && first <= cursor.stage && cursor.stage <= last));
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
    if (limit) make("div", strip, undefined, "budget").style.left = 100 * limit / most + "%";
    const total = totalOf(bar);
    make("span", grid, show(total), "right" + (limit && total > limit ? " over" : ""));
  });
  onRedraw(() => grid.querySelectorAll(".part").forEach(part => {
    const name = part.dataset.name;
    part.textContent = part.clientWidth > widthOf(name, 11) + 12 ? name : "";
  }));
}

function figures(node, list, colour, show, name, over) {
  const sums = list.map(totalOf), fullest = sums.indexOf(Math.max(...sums));
  const most = Math.max(1, Math.min(5, Math.floor((node.clientWidth - 170) / 90)));
  const picked = list.length <= most ? list.map((_, i) => i) : [fullest];
  const short = i => list[i].label.split(" · ")[0];
  const table = make("tbody", make("table", node, undefined, "pairs")), top = make("tr", table);
  make("th", top);
  picked.forEach(i => make("th", top, short(i) + (list.length > most ? ", the fullest" : ""), "right"));
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
  picked.forEach(i => make("td", row, show(sums[i]), "right" + (over(sums[i]) ? " over" : "")));
  if (picked.length === 1) make("td", row, "", "right");
}
