// The page: does it fit, why this plan, what runs where, when, and how much; or two plans beside each other.
function headline(parent, report) {
  const node = make("header", parent);
  make("h1", node, report.title);
  make("p", node, report.subtitle);
  if (report.verdict) verdict(node, report.verdict, report.fits);
  if (report.headroom) headroom(node, report);
  if (paired) return;
  const tiles = make("div", node, undefined, "tiles");
  for (const [name, value, note] of report.tiles) {
    const tile = make("div", tiles, undefined, note.startsWith("too large") ? "tile over" : "tile");
    make("span", tile, name);
    make("b", tile, unbroken(value));
    if (note) make("span", tile, unbroken(note));
  }
}
function verdict(parent, text, fits) {
  text = unbroken(text);
  const line = make("p", parent, undefined, "verdict" + (fits ? "" : " over"));
  const end = text.indexOf(". A step") + 1;
  make("b", line, text.slice(0, end));
  line.appendChild(document.createTextNode(text.slice(end)));
}
function headroom(parent, report) {
  bars(parent, [report.headroom], termColour, bytes, report.memory_limit_bytes, new Cursor(), 0.02);
  const row = parent.querySelector(".bars > .right:last-child");
  row.textContent += ` of ${bytes(report.memory_limit_bytes)}`;
}
// Colours of collectives, by the order in which they come; the same in all reports of a page.
function trafficColours() {
  const names = pages.reports.flatMap(({ step, timeline }) => [...(step || []).flatMap(bar => bar.parts.map(p => p[0])), ...(timeline?.slots || []).flatMap(s => s[0].flatMap(k => (k[3] || []).map(p => p[0])))]);
  const distinct = [...new Set(names)].filter(n => !FIXED[n] && n !== "waiting");
  return new Map(distinct.map((name, i) => [name, TRAFFIC[i % TRAFFIC.length]]));
}
function reportPage(parent, report) {
  const defaults = { fits: true, reasons: [], rivals: [], points: [], memory: [], step: [], stages: 0, part: "stage", tables: [], memory_limit_bytes: 0 };
  report = { ...defaults, ...report };
  report.rivals = report.rivals.map(rival => ({ seconds: [], memory: [], ...rival }));
  const node = make("article", parent, undefined, "report"), cursor = new Cursor();
  headline(node, report);
  const body = make("div", node, undefined, "sections");
  whyPanel(body, report);
  graphPanel(body, report, cursor);
  const graph = body.lastChild;
  for (const table of report.tables) if (table.title !== "Host memory") tablePanel(graph, table);
  timelinePanel(body, report, cursor, trafficColours());
  memoryPanel(body, report, cursor);
}
function comparisonPanel(parent, comparison) {
  const node = make("div", parent, undefined, "comparison");
  make("h1", node, comparison.title);
  make("p", node, comparison.verdict);
  const names = comparison.columns.slice(1, 3), top = paired ? make("div", node, undefined, "thirds") : node;
  const left = paired ? make("div", top) : top;
  rowsTable(left, comparison.columns, comparison.rows);
  if (comparison.seconds) pairsTable(make("div", top), "seconds of a step", comparison.seconds, time, names);
  if (comparison.memory) pairsTable(make("div", top), "bytes of the fullest stage", comparison.memory, bytes, names);
  if (comparison.differences) {
    subtitle(left, "Layers that differ");
    rowsTable(left, ["modules", ...names], comparison.differences);
  }
  if (comparison.points) scatter(make("div", node, undefined, "points"), comparison.points, comparison.memory_limit_bytes || 0);
}
const main = document.getElementById("main");
if (pages.comparison) comparisonPanel(main, pages.comparison);
const parent = paired ? make("div", main, undefined, "pair") : main;
for (const report of pages.reports) reportPage(parent, report);
