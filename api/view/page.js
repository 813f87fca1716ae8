// The page: headline, graph, timeline, then memory and time side by side, then tables.
function headline() {
  const node = document.getElementById("head");
  make("h1", node, report.title);
  make("p", node, report.subtitle);
  const tiles = make("div", node, undefined, "tiles");
  for (const [name, value, note] of report.tiles) {
    const tile = make("div", tiles, undefined, note.startsWith("too large") ? "tile over" : "tile");
    make("span", tile, name);
    make("b", tile, value);
    if (note) make("span", tile, note);
  }
}
function tablePanel(parent, table) {
  if (!table || !table.rows.length) return;
  const node = section(parent, table.title, table.hint);
  const body = make("table", make("div", node, undefined, "scroll")), top = make("tr", body);
  const right = i => (table.right.includes(i) ? "right" : i === 0 ? "wrap" : "");
  table.columns.forEach((name, i) => make("th", top, name, right(i)));
  for (const line of table.rows) {
    const row = make("tr", body);
    line.forEach((cell, i) => make("td", row, cell, right(i) + (cell === "too large" ? " over" : "")));
  }
}
const main = document.getElementById("main");
report.memory ||= [];
report.stages ||= 0;
report.part ||= "stage";
report.tables ||= [];
headline();
graphPanel(main);
timelinePanel(main);
if (report.memory.length) {
  const one = make("div", main, undefined, "column"), other = make("div", main, undefined, "column");
  memoryPanel(one);
  stepPanel(other);
  report.tables.forEach((table, i) => tablePanel(i % 2 ? other : one, table));
} else {
  report.tables.forEach(table => tablePanel(make("div", main, undefined, "wide"), table));
}
