// Who computes when, and what every stage then holds: one zoomable axis for both.
const KINDS = { F: ["forward", WORK.forward], B: ["backward", WORK.backward], S: ["gradient sync and optimizer", STEP["gradient sync and optimizer"]], T: ["transfer", WORK.communication] };

function timelinePanel(parent) {
  const data = report.timeline;
  if (!data) return;
  const node = section(parent, "Timeline of one step", "wheel zooms, drag moves, double click shows all", true);
  const tools = make("div", node, undefined, "tools"), kinds = new Set(data.events.map(e => e[1]));
  const group = make("div", tools, undefined, "switch");
  legend(tools, [...[..."FBST"].filter(k => kinds.has(k)).map(k => KINDS[k]), ["waiting", STEP.waiting]]);
  const canvas = make("canvas", node), end = Math.max(...data.events.map(e => e[4]));
  const row = data.rows.length > 24 ? 18 : 26, curves = memoryCurves(data), axis = 24;
  const chart = curves.length ? { top: data.rows.length * row + axis + 32, height: 110 } : null;
  const height = chart ? chart.top + chart.height + 8 : data.rows.length * row + axis;
  const left = Math.max(60, ...data.rows.map(r => widthOf(r, 12) + 12));
  let from = 0, to = end;

  for (const [text, act] of [["−", () => zoom(1.6)], ["+", () => zoom(1 / 1.6)], ["all", () => { from = 0; to = end; }]]) {
    const button = make("button", group, text);
    button.addEventListener("click", () => { act(); show(); });
  }
  function zoom(factor, about = (from + to) / 2) {
    const span = Math.min(end, Math.max(end / 20000, (to - from) * factor));
    const start = about - (about - from) * span / (to - from);
    from = Math.max(0, Math.min(end - span, start));
    to = from + span;
  }
  const scale = () => (canvas.clientWidth - left - 10) / (to - from);
  function show() {
    const width = canvas.clientWidth, ratio = devicePixelRatio || 1, pen = canvas.getContext("2d");
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    canvas.style.height = height + "px";
    pen.scale(ratio, ratio);
    pen.textBaseline = "middle";
    pen.font = `12px ${FONT}`;
    data.rows.forEach((name, i) => {
      pen.fillStyle = STEP.waiting;
      pen.fillRect(left, i * row + 3, width - left - 10, row - 6);
      pen.fillStyle = INK;
      pen.fillText(name, 0, i * row + row / 2);
      if (report.stages > 1 && i < report.stages) {
        pen.fillStyle = stageColour(i, report.stages);
        pen.fillRect(left - 7, i * row + 3, 4, row - 6);
      }
    });
    clipped(pen, width, 0, data.rows.length * row, () => data.events.forEach(e => event(pen, e, width)));
    ticks(pen, width);
    if (chart) memory(pen, width);
  }
  function clipped(pen, width, top, high, inside) {
    pen.save();
    pen.beginPath();
    pen.rect(left, top, width - left - 10, high);
    pen.clip();
    inside();
    pen.restore();
  }
  function event(pen, [place, kind, label, start, stop], width) {
    const x = left + (start - from) * scale(), w = (stop - start) * scale();
    if (x + w < left || x > width) return;
    const tint = KINDS[kind][1], gap = w > 5 ? 1 : 0;
    pen.fillStyle = tint;
    pen.fillRect(x, place * row + 3, Math.max(w - gap, 0.6), row - 6);
    const near = Math.max(x, left), room = Math.min(x + w, width - 10) - near;
    if (row < 20 || room < 14) return;
    pen.font = `11px ${FONT}`;
    const text = pen.measureText(label).width + 8 < room ? label : kind !== "S" && row > 20 ? fitted(label, room - 8, 11) : "";
    if (!text || text === "…" || (text !== label && text.length < 5)) return;
    pen.fillStyle = dark(tint) ? "#fff" : INK;
    pen.fillText(text, near + 4, place * row + row / 2 + 0.5);
  }
  function ticks(pen, width) {
    const rough = (to - from) / Math.max(2, (width - left) / 110), size = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map(f => f * size).find(s => s >= rough), y = data.rows.length * row;
    pen.font = `11px ${FONT}`;
    for (let at = Math.ceil(from / step) * step; at <= to + step * 1e-6; at += step) {
      const x = left + (at - from) * scale(), label = time(Math.round(at / step) * step);
      pen.fillStyle = "#c2cad4";
      pen.fillRect(x, y, 1, 5);
      pen.fillStyle = SOFT;
      const half = pen.measureText(label).width / 2;
      pen.fillText(label, Math.min(Math.max(x - half, left), width - 2 * half - 4), y + 14);
    }
  }
  function memory(pen, width) {
    const top = chart.top, budget = report.memory_limit_bytes;
    const most = Math.max(budget, ...curves.flatMap(c => c.map(p => p[1]))) * 1.06;
    const y = amount => top + chart.height * (1 - amount / most);
    pen.font = `12px ${FONT}`;
    pen.fillStyle = INK;
    pen.fillText("Memory over time, by " + report.part, left, top - 16);
    pen.font = `11px ${FONT}`;
    for (let i = 0; i <= 2; i++) {
      const at = y(most / 1.06 * i / 2);
      pen.fillStyle = "#e6e9ee";
      pen.fillRect(left, at, width - left - 10, 1);
      pen.fillStyle = SOFT;
      const label = bytes(most / 1.06 * i / 2), wide = pen.measureText(label).width;
      pen.fillText(label, left - wide - 6, Math.min(at, top + chart.height - 4));
    }
    clipped(pen, width, top - 4, chart.height + 8, () => {
      curves.forEach((curve, stage) => {
        pen.strokeStyle = stageColour(stage, report.stages);
        pen.lineWidth = 1.8;
        pen.beginPath();
        curve.forEach(([at, amount], i) => {
          const x = left + (at - from) * scale();
          if (i) pen.lineTo(x, y(curve[i - 1][1])); else pen.moveTo(x, y(amount));
          pen.lineTo(x, y(amount));
        });
        pen.stroke();
      });
      if (!budget) return;
      pen.setLineDash([6, 4]);
      pen.strokeStyle = LIMIT;
      pen.beginPath();
      pen.moveTo(left, y(budget));
      pen.lineTo(width, y(budget));
      pen.stroke();
    });
  }
  canvas.addEventListener("wheel", e => {
    e.preventDefault();
    zoom(e.deltaY > 0 ? 1.25 : 0.8, from + Math.max(0, e.offsetX - left) / scale());
    show();
  }, { passive: false });
  canvas.addEventListener("dblclick", () => { from = 0; to = end; show(); });
  let held = null;
  canvas.addEventListener("pointerdown", e => { held = e.offsetX; canvas.setPointerCapture(e.pointerId); });
  canvas.addEventListener("pointerup", () => { held = null; });
  canvas.addEventListener("pointermove", e => {
    if (held !== null) {
      const shift = Math.max(-from, Math.min(end - to, (held - e.offsetX) / scale()));
      from += shift;
      to += shift;
      held = e.offsetX;
      show();
      return;
    }
    const at = from + (e.offsetX - left) / scale(), place = Math.floor(e.offsetY / row);
    const hit = e.offsetX >= left && data.events.find(v => v[0] === place && v[3] <= at && at < v[4]);
    if (!hit) return hideTip();
    const told = KINDS[hit[1]][0];
    showTip(e, told === hit[2] ? told : `${told} ${hit[2]}`, [["on", data.rows[place]], ["from", time(hit[3])], ["to", time(hit[4])], ["takes", time(hit[4] - hit[3])]]);
  });
  canvas.addEventListener("pointerleave", hideTip);
  addEventListener("resize", show);
  addEventListener("beforeprint", show);
  show();
}

// Steps of (time, bytes) per stage: a forward adds its activations, the backward lets them go.
function memoryCurves(data) {
  if ((data.curves || []).length) return data.curves;
  if (!(data.each_bytes || []).some(Boolean)) return [];
  return data.steady_bytes.map((steady, stage) => {
    const own = data.events.filter(e => e[0] === stage && e[1] !== "S").sort((a, b) => a[3] - b[3]);
    const points = [[0, steady]];
    let held = 0;
    for (const [, kind, , start, stop] of own) {
      held += kind === "F" ? 1 : -1;
      points.push([kind === "F" ? start : stop, steady + held * data.each_bytes[stage]]);
    }
    points.push([Math.max(...data.events.map(e => e[4])), steady]);
    return points;
  });
}
