// When: who computes, sends and waits, and what every stage then holds; one zoomable axis for both.
const KINDS = { F: ["forward", FORWARD], B: ["backward", BACKWARD], I: ["backward of inputs", BACKWARD], W: ["backward of weights", "#7a6cc0"], S: ["gradient sync", SENDS], T: ["transfer", SENDS], O: ["optimizer", "#7d8590"] };
const COMPUTES = "FBIW", SIGNS = { F: 1, B: -1, W: -1 }; // what a slot adds to the micro-batches that wait for backward
const LABELS = 26, PARTS = 54, SINGLE = 6; // pixels of a slot from which it is named, taken apart, drawn alone

// Rows of events [kind, label, start, end, parts], in order; slots come as letters (report.SlotRow).
function timelineRows(data) {
  const rows = data.rows.map(() => []);
  (data.slots || []).forEach(([kinds, slots], row) => {
    const seen = kinds.map(() => 0), chunks = kinds.some(k => k[1] > 0);
    let clock = 0;
    for (const [, wait, letter] of slots.matchAll(/(\d*)([a-z])/g)) {
      const at = letter.charCodeAt(0) - 97, [kind, chunk, seconds, parts] = kinds[at], number = seen[at]++;
      clock += (wait ? +wait : 0) * data.tick_seconds;
      rows[row].push([kind, kind + number + (chunks ? "." + chunk : ""), clock, clock + seconds, parts || [], SIGNS[kind] || 0]);
      clock += seconds;
    }
  });
  for (const [row, kind, label, start, end] of data.events || []) {
    rows[row].push([kind, label, start, end, [], SIGNS[kind] || 0]);
  }
  return rows;
}
function firstAfter(events, seconds) { // the first event that ends after a moment
  let low = 0, high = events.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (events[middle][3] > seconds) high = middle; else low = middle + 1;
  }
  return low;
}

function timelinePanel(parent, report, cursor, traffic) {
  const data = report.timeline;
  if (!data && !report.step.length) return;
  const node = section(parent, "when", "When", data?.hint);
  if (data) timelineChart(node, report, cursor, traffic);
  else make("p", node, "The step is too long to be drawn slot by slot; its totals are below.");
  stepPanel(node, report, cursor, name => traffic.get(name) || FIXED[name] || (name === "waiting" ? css("--idle") : UNKNOWN));
}

function timelineChart(node, report, cursor, traffic) {
  const data = report.timeline, rows = timelineRows(data), end = Math.max(...rows.flatMap(r => r.length ? [r[r.length - 1][3]] : [0]));
  const tools = make("div", node, undefined, "tools"), zooms = make("div", tools, undefined, "switch");
  const kinds = new Set(rows.flatMap(r => [...new Set(r.map(e => e[0]))]));
  const key = make("div", tools);
  const canvas = make("canvas", node), readout = make("div", node, "point at a slot to read it; drag moves, Ctrl and wheel or + and − zoom, arrows walk", "readout");
  readout.setAttribute("aria-live", "polite");
  canvas.tabIndex = 0;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `timeline of one step, ${time(end)}, ${data.rows.length} rows; arrows walk from slot to slot, plus and minus zoom`);
  const row = Math.max(11, Math.min(26, Math.floor(352 / data.rows.length))), curves = memoryCurves(data, rows), axis = 24;
  const chart = curves.length ? { top: data.rows.length * row + axis + 30, height: 108 } : null;
  const height = chart ? chart.top + chart.height + 8 : data.rows.length * row + axis;
  const left = Math.max(66, ...data.rows.map(r => widthOf(r, 12) + 14));
  const slots = rows.flatMap(r => r.filter(e => COMPUTES.includes(e[0])));
  const slotSeconds = slots.reduce((sum, e) => sum + e[3] - e[2], 0) / Math.max(1, slots.length);
  let from = 0, to = end, chosen = [0, 0], names = null;

  for (const [text, label, act] of [["−", "zoom out", () => zoom(1.6)], ["+", "zoom in", () => zoom(1 / 1.6)], ["all", "show all", () => { from = 0; to = end; }]]) {
    const button = make("button", zooms, text);
    button.type = "button";
    button.setAttribute("aria-label", label);
    button.addEventListener("click", () => { act(); show(); });
  }
  const parts = [...new Set([...(data.slots || []).flatMap(s => s[0].flatMap(k => (k[3] || []).map(p => p[0]))), ...(data.events || []).filter(e => e[1] === "S").map(e => e[2])])].filter(n => traffic.has(n));
  legend(key, [...[..."FBIWTO"].filter(k => kinds.has(k)).map(k => KINDS[k]), ...parts.map(n => [n, traffic.get(n)]), ["waiting", "var(--idle)"]]);

  function zoom(factor, about = (from + to) / 2) {
    const span = Math.min(end, Math.max(end / 200000, (to - from) * factor));
    const start = about - (about - from) * span / (to - from);
    from = Math.max(0, Math.min(end - span, start));
    to = from + span;
  }
  const room = () => canvas.clientWidth - left - 10, scale = () => room() / (to - from);
  function show() {
    if (room() <= 0) return;
    const width = canvas.clientWidth, ratio = devicePixelRatio || 1, pen = canvas.getContext("2d");
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    canvas.style.height = height + "px";
    names = { ink: css("--ink"), soft: css("--soft"), idle: css("--idle"), line: css("--line"), limit: css("--limit"), link: css("--link"), paper: css("--paper") };
    pen.scale(ratio, ratio);
    pen.textBaseline = "middle";
    data.rows.forEach((name, i) => {
      pen.fillStyle = names.idle;
      pen.fillRect(left, i * row + 1.5, width - left - 10, row - 3);
      pen.font = `${i === cursor.stage ? 600 : 400} 12px ${FONT}`;
      pen.fillStyle = names.ink;
      if (row >= 14 || i % 2 === 0) pen.fillText(name, 0, i * row + row / 2);
      if (report.stages > 1 && i < report.stages) {
        pen.fillStyle = i === cursor.stage ? names.link : stageColour(i);
        pen.fillRect(left - 8, i * row + 1.5, 5, row - 3);
      }
    });
    clipped(pen, width, 0, data.rows.length * row, () => rows.forEach((events, i) => paintRow(pen, events, i, width)));
    ticks(pen, width);
    if (chart) memory(pen, width);
    if (cursor.seconds >= from && cursor.seconds <= to) {
      pen.fillStyle = names.link;
      pen.fillRect(left + (cursor.seconds - from) * scale(), 0, 1.5, chart ? chart.top + chart.height : data.rows.length * row);
    }
  }
  function clipped(pen, width, top, high, inside) {
    pen.save();
    pen.beginPath();
    pen.rect(left, top, width - left - 10, high);
    pen.clip();
    inside();
    pen.restore();
  }
  // Slots too narrow to be told apart become the share of every pixel that each kind has.
  function paintRow(pen, events, i, width) {
    const first = firstAfter(events, from), seen = [];
    for (let at = first; at < events.length && events[at][2] < to; at++) seen.push(events[at]);
    const narrow = seen.length && seen.reduce((sum, e) => sum + e[3] - e[2], 0) / seen.length * scale() < SINGLE;
    const shared = narrow && seen.length > 100 ? seen.filter(e => COMPUTES.includes(e[0])) : [];
    if (shared.length) paintShares(pen, shared, i);
    for (const e of seen) if (!shared.length || !COMPUTES.includes(e[0])) paintEvent(pen, e, i, width);
  }
  function paintShares(pen, seen, i) {
    const columns = Math.ceil(room() / 2), share = (to - from) / columns, busy = Object.fromEntries([...COMPUTES].map(k => [k, new Float32Array(columns + 1)]));
    for (const [kind, , start, stop] of seen) {
      const a = Math.max(0, (start - from) / share), b = Math.min(columns, (stop - from) / share);
      for (let c = Math.floor(a); c < b; c++) busy[kind][c] += Math.min(c + 1, b) - Math.max(c, a);
    }
    const slot = slotSeconds / share; // in columns; of all rows, so that they look alike
    if (slot < 1.5 && seen.length > 200) for (const kind of COMPUTES) busy[kind] = smooth(smooth(busy[kind], Math.ceil(2 * slot)), Math.ceil(2 * slot));
    for (let c = 0; c < columns; c++) {
      let y = i * row + 1.5;
      for (const kind of COMPUTES) {
        const tall = busy[kind][c] * (row - 3);
        if (tall <= 0) continue;
        pen.fillStyle = KINDS[kind][1];
        pen.fillRect(left + 2 * c, y, 2.1, tall);
        y += tall;
      }
    }
  }
  // The mean over as many columns to each side: single slots would only flicker.
  function smooth(list, reach) {
    const sums = [0], mean = new Float32Array(list.length);
    for (const value of list) sums.push(sums[sums.length - 1] + value);
    for (let c = 0; c < list.length; c++) {
      const first = Math.max(0, c - reach), last = Math.min(list.length, c + reach + 1);
      mean[c] = (sums[last] - sums[first]) / (last - first);
    }
    return mean;
  }
  function paintEvent(pen, [kind, label, start, stop, made], i, width) {
    const x = left + (start - from) * scale(), w = (stop - start) * scale();
    const tint = kind === "S" ? traffic.get(label) || FIXED[label] || SENDS : KINDS[kind][1], y = i * row + 1.5, tall = row - 3;
    pen.fillStyle = tint;
    pen.fillRect(x, y, Math.max(w - (w > 5 ? 1 : 0), 0.6), tall);
    if (w > PARTS && row > 18) paintParts(pen, made, x, w, y + tall - 6);
    const near = Math.max(x, left), space = Math.min(x + w, width - 10) - near;
    if (row < 14 || space < LABELS) return;
    const text = fitted(label, space - 8, 11);
    if (!text || (text !== label && text.length < 5)) return;
    pen.font = `11px ${FONT}`;
    pen.fillStyle = dark(tint) ? "#fff" : "#1b2430";
    pen.fillText(text, near + 4, y + (w > PARTS && row > 18 && made.length > 1 ? tall / 2 - 2 : tall / 2));
  }
  function paintParts(pen, made, x, w, y) {
    const whole = made.reduce((sum, p) => sum + p[1], 0);
    if (made.length < 2 || !whole) return;
    for (const [name, seconds] of made) {
      const wide = seconds / whole * (w - 1);
      if (traffic.has(name)) {
        pen.fillStyle = traffic.get(name);
        pen.fillRect(x, y, wide, 6);
      }
      x += wide;
    }
  }
  function ticks(pen, width) {
    const rough = (to - from) / Math.max(2, (width - left) / 110), size = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map(f => f * size).find(s => s >= rough), y = data.rows.length * row;
    pen.font = `11px ${FONT}`;
    for (let at = Math.ceil(from / step) * step; at <= to + step * 1e-6; at += step) {
      const x = left + (at - from) * scale(), label = time(Math.round(at / step) * step);
      pen.fillStyle = names.soft;
      pen.fillRect(x, y, 1, 5);
      const half = pen.measureText(label).width / 2;
      pen.fillText(label, Math.min(Math.max(x - half, left), width - 2 * half - 4), y + 14);
    }
  }
  function memory(pen, width) {
    const top = chart.top, highest = Math.max(...curves.map(c => c.most)), whole = report.memory.some(bar => bar.limit_bytes) ? 0 : report.memory_limit_bytes;
    const budget = highest >= LEAST_SHARE * whole ? whole : 0, most = Math.max(budget, highest) * 1.06, y = amount => top + chart.height * (1 - amount / most);
    pen.font = `12px ${FONT}`;
    pen.fillStyle = names.ink;
    pen.fillText(fitted(`Memory over time, by ${report.part}` + (budget ? "; dashed: budget" : whole ? `; the budget, ${bytes(whole)}, is far above` : ""), width - left, 12), left, top - 16);
    pen.font = `11px ${FONT}`;
    for (let i = 0; i <= 2; i++) {
      const at = y(most / 1.06 * i / 2), label = bytes(most / 1.06 * i / 2);
      pen.fillStyle = names.line;
      pen.fillRect(left, at, width - left - 10, 1);
      pen.fillStyle = names.soft;
      pen.fillText(label, left - pen.measureText(label).width - 6, Math.min(at, top + chart.height - 4));
    }
    clipped(pen, width, top - 4, chart.height + 8, () => {
      const order = curves.map((_, i) => i).sort((a, b) => (a === cursor.stage) - (b === cursor.stage));
      for (const stage of order) {
        const { at, amount } = coarse(curves[stage]);
        pen.strokeStyle = stage === cursor.stage ? names.link : stageColour(stage);
        pen.lineWidth = stage === cursor.stage ? 3 : 1.5;
        pen.beginPath();
        let last = null;
        for (let i = 0; i < at.length; i++) {
          const x = left + (at[i] - from) * scale();
          if (last === null) pen.moveTo(x, y(amount[i])); else pen.lineTo(x, y(last));
          pen.lineTo(x, y(amount[i]));
          last = amount[i];
        }
        pen.stroke();
      }
      if (!budget) return;
      pen.setLineDash([6, 4]);
      pen.strokeStyle = names.limit;
      pen.lineWidth = 1.5;
      pen.beginPath();
      pen.moveTo(left, y(budget));
      pen.lineTo(width, y(budget));
      pen.stroke();
    });
  }
  // Where points are closer than pixels, the highest of every two pixels.
  function coarse(curve) {
    if (curve.at.length < room()) return curve;
    const first = Math.max(0, firstPast(curve.at, from) - 1), last = firstPast(curve.at, to) + 1, each = 2 / scale();
    const at = [], amount = [];
    for (let i = first; i < Math.min(last, curve.at.length); i++) {
      if (at.length && curve.at[i] - at[at.length - 1] < each) amount[amount.length - 1] = Math.max(amount[amount.length - 1], curve.amount[i]);
      else { at.push(curve.at[i]); amount.push(curve.amount[i]); }
    }
    return { at, amount };
  }
  function tell(place, event, seconds) {
    const name = data.rows[place], curve = curves[place];
    const holds = curve ? `; holds ${bytes(curve.amount[Math.max(0, firstPast(curve.at, seconds) - 1)])}` : "";
    if (!event) { readout.textContent = `at ${time(seconds)}: ${name} waits${holds}`; return; }
    const [kind, label, start, stop, made] = event, word = KINDS[kind][0];
    const detail = made.length > 1 ? ": " + made.map(([n, s]) => `${n} ${time(s)}`).join(", ") : "";
    readout.textContent = `at ${time(seconds)}: ${name}, ${word === label ? word : `${word} ${label}`}, ${time(start)} to ${time(stop)}, ${time(stop - start)}${detail}${holds}`;
  }
  function firstPast(list, seconds) {
    let low = 0, high = list.length;
    while (low < high) { const m = (low + high) >> 1; if (list[m] > seconds) high = m; else low = m + 1; }
    return low;
  }
  function walk(rowStep, step) {
    const place = Math.max(0, Math.min(rows.length - 1, chosen[0] + rowStep));
    let at = rowStep && rows[place].length ? firstAfter(rows[place], cursor.seconds) : chosen[1] + step;
    at = Math.max(0, Math.min(rows[place].length - 1, at));
    const event = rows[place][at];
    if (!event) return;
    chosen = [place, at];
    const middle = (event[2] + event[3]) / 2;
    if (middle < from || middle > to) { const span = to - from; from = Math.max(0, Math.min(end - span, middle - span / 2)); to = from + span; }
    cursor.move(place < report.stages ? place : -1, middle);
    tell(place, event, middle);
  }
  const KEYS = { ArrowLeft: () => walk(0, -1), ArrowRight: () => walk(0, 1), ArrowUp: () => walk(-1, 0), ArrowDown: () => walk(1, 0),
    "+": () => zoom(1 / 1.6, cursor.seconds >= 0 ? cursor.seconds : undefined), "-": () => zoom(1.6), 0: () => { from = 0; to = end; } };
  canvas.addEventListener("keydown", e => {
    const act = KEYS[e.key === "=" ? "+" : e.key];
    if (!act || e.ctrlKey || e.metaKey) return;
    e.preventDefault();
    act();
    show();
  });
  canvas.addEventListener("wheel", e => {
    if (!e.ctrlKey && !e.metaKey) return;
    e.preventDefault();
    zoom(e.deltaY > 0 ? 1.25 : 0.8, from + Math.max(0, e.offsetX - left) / scale());
    show();
  }, { passive: false });
  canvas.addEventListener("dblclick", () => { from = 0; to = end; show(); });
  let drag = null;
  canvas.addEventListener("pointerdown", e => { drag = e.offsetX; canvas.setPointerCapture(e.pointerId); });
  canvas.addEventListener("pointerup", () => { drag = null; });
  canvas.addEventListener("pointermove", e => {
    if (drag !== null) {
      const shift = Math.max(-from, Math.min(end - to, (drag - e.offsetX) / scale()));
      from += shift;
      to += shift;
      drag = e.offsetX;
      show();
      return;
    }
    if (e.offsetX < left) return;
    const at = Math.min(end, from + (e.offsetX - left) / scale());
    const place = e.offsetY < data.rows.length * row ? Math.floor(e.offsetY / row) : Math.max(0, cursor.stage);
    const number = firstAfter(rows[place], at), event = rows[place][number];
    chosen = [place, number];
    tell(place, event && event[2] <= at ? event : null, at);
    cursor.move(place < report.stages ? place : -1, at);
  });
  canvas.addEventListener("pointerleave", () => { cursor.move(-1); readout.textContent = ""; });
  cursor.listen(show);
  onRedraw(show);
}

// Moments and bytes per stage: a forward adds its activations, the backward lets them go.
function memoryCurves(data, rows) {
  const curve = points => ({ at: points.map(p => p[0]), amount: points.map(p => p[1]), most: points.reduce((m, p) => Math.max(m, p[1]), 0) });
  if ((data.curves || []).length) return data.curves.map(curve);
  if (!(data.each_bytes || []).some(Boolean)) return [];
  return data.steady_bytes.map((steady, stage) => {
    const points = [[0, steady]];
    let waiting = 0;
    for (const [kind, , start, stop, , sign] of rows[stage]) {
      if (!sign) continue;
      waiting += sign;
      points.push([kind === "F" ? start : stop, steady + waiting * data.each_bytes[stage]]);
    }
    points.push([rows[stage].length ? rows[stage][rows[stage].length - 1][3] : 0, steady]);
    return curve(points);
  });
}
