"""A report as one static SVG picture: head, graph, bars and timeline, for papers and slides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from ....ir.text.units import seconds, size
from ..report import Bar, Box, BoxGraph, Report, TimelineChart
from .slots import all_events

WIDTH, PAD, ROW = 1200, 24, 26
BOX, GAP, TALL = 172, 28, 58  # of a box: width, space beside it, height
MOST_BOXES = 240
MOST_EVENTS = 6_000  # of the timeline
INK, SOFT, FRAME, LIMIT = "#1b2430", "#566173", "#aeb8c5", "#c81e1e"
# fmt: off
COLOURS = {
    "compute": "#4f8fc6", "communication": "#e58a2b", "gradient sync and optimizer": "#a85f17",
    "waiting": "#d9dee5", "parameters": "#54459b", "gradients": "#8577c6", "optimizer": "#b7ade2",
    "activations": "#2d8a66", "batch data": "#7cc4a5", "temporaries": "#b9e0cf",
    "persistent": "#54459b", "outputs": "#2d8a66", "received copies": "#e58a2b",
    "margin": "#c3cad4", "runtime": "#98a2b0",
}
# fmt: on
EVENTS = {
    "F": "#9cc7ea",
    "B": "#3f7fb5",
    "I": "#3f7fb5",
    "W": "#7a6cc0",
    "S": "#a85f17",
    "T": "#e58a2b",
    "O": "#7d8590",
}
STAGES = ("#dbe7f7", "#faeccf", "#d8efe4", "#f8dcea", "#e4dff7", "#dcedf3", "#efe7d0", "#f6ded5")
OTHERS = ("#7f6a55", "#a3927f", "#c7baab")
LEAST_SHARE = 0.04  # of a budget that the largest bar must have for it to be drawn
LETTERS = 7.2  # pixels of one, about


class Canvas:
    """Elements drawn so far, and how far down the next one goes."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.y = float(PAD)

    def text(
        self,
        x: float,
        y: float,
        label: str,
        size: int = 12,
        fill: str = INK,
        bold: bool = False,
        room: float = WIDTH,
    ) -> None:
        """One line, shortened to the width `room`; from a negative `x` it ends at the right edge."""
        weight, anchor = (600 if bold else 400), ("end" if x < 0 else "start")
        x = x if x >= 0 else WIDTH + x
        wide = LETTERS * size / 12 * (1.1 if weight > 400 else 1.0)
        fits = max(1, int(room / wide))
        fitted = label if len(label) <= fits else label[: max(1, fits - 1)] + "…"
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{fill}" font-weight="{weight}" '
            f'text-anchor="{anchor}">{escape(fitted)}</text>'
        )

    def rect(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        fill: str,
        stroke: str = "none",
        title: str = "",
    ) -> None:
        tooltip = f"<title>{escape(title)}</title>" if title else ""
        self.parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.3):.2f}" height="{height:.1f}" '
            f'fill="{fill}" stroke="{stroke}">{tooltip}</rect>'
        )

    def line(self, points: Sequence[tuple[float, float]]) -> None:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(
            f'<polyline points="{path}" fill="none" stroke="#8f9bab" stroke-width="1.3" '
            'marker-end="url(#tip)"/>'
        )

    def heading(self, label: str) -> None:
        self.y += 30
        self.text(PAD, self.y, label, 14, bold=True)
        self.y += 14

    def picture(self) -> str:
        height = self.y + PAD
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height:.0f}" '
            f'viewBox="0 0 {WIDTH} {height:.0f}" font-family="system-ui, DejaVu Sans, sans-serif">\n'
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
            'markerHeight="7" orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="#8f9bab"/></marker>'
            "</defs>\n"
            f'<rect width="{WIDTH}" height="{height:.0f}" fill="#fff"/>\n'
            + "\n".join(self.parts)
            + "\n</svg>\n"
        )


def svg(report: Report) -> str:
    """The whole report in one picture. Names reach it as escaped text only."""
    canvas = Canvas()
    canvas.text(PAD, canvas.y + 14, report.title, 20, bold=True)
    canvas.text(PAD, canvas.y + 34, report.subtitle, 12, SOFT)
    canvas.y += 46
    tiles(canvas, report)
    canvas.heading("Model")
    graph(canvas, report.graphs[""], report.stages)
    if report.memory:
        limit = float(report.memory_limit_bytes)
        largest = max(sum(amount for _, amount in bar.parts) for bar in report.memory)
        far = largest < LEAST_SHARE * limit  # bars beside such a budget would be slivers
        beyond = ", far beyond these bars" if far else ""
        canvas.heading(f"Memory per device, budget {size(limit)}{beyond}")
        bars(canvas, report.memory, 0.0 if far else limit, size)
    if report.step:
        canvas.heading("One step")
        bars(canvas, report.step, 0.0, seconds)
    if report.timeline is not None:
        canvas.heading("Timeline")
        timeline(canvas, report.timeline)
    return canvas.picture()


def tiles(canvas: Canvas, report: Report) -> None:
    width = (WIDTH - 2 * PAD) / len(report.tiles)
    for i, (name, value, hint) in enumerate(report.tiles):
        x, room = PAD + i * width, width - 22
        canvas.rect(x, canvas.y, width - 8, 62, "#fff", "#dde2e9", f"{name}: {value}, {hint}")
        canvas.text(x + 10, canvas.y + 17, name, 11, SOFT, room=room)
        canvas.text(x + 10, canvas.y + 37, value, 16, bold=True, room=room)
        canvas.text(x + 10, canvas.y + 53, hint, 11, SOFT, room=room)
    canvas.y += 62


def graph(canvas: Canvas, box_graph: BoxGraph, stages: int) -> None:
    """Boxes column by column, broken into lines like text."""
    drawn = box_graph.boxes[:MOST_BOXES]
    across = (WIDTH - 2 * PAD + GAP) // (BOX + GAP)
    lines = max((box.column // across for box in drawn), default=0) + 1
    rows = [
        max((b.row for b in drawn if b.column // across == n), default=0) + 1 for n in range(lines)
    ]
    tops = [canvas.y + sum(rows[:n]) * (TALL + 18) for n in range(lines)]
    places = [
        (
            PAD + box.column % across * (BOX + GAP),
            tops[box.column // across] + box.row * (TALL + 18),
        )
        for box in drawn
    ]
    for edge in box_graph.edges:
        if edge.source < len(drawn) and edge.target < len(drawn):
            canvas.line(route(places[edge.source], places[edge.target]))
    for box, (x, y) in zip(drawn, places, strict=True):
        draw_box(canvas, box, x, y, stages)
    canvas.y += sum(rows) * (TALL + 18)
    if len(box_graph.boxes) > len(drawn):
        canvas.text(PAD, canvas.y, f"and {len(box_graph.boxes) - len(drawn)} more", 12, SOFT)


def route(source: tuple[float, float], target: tuple[float, float]) -> list[tuple[float, float]]:
    """Straight to a neighbour, else below the source's line and down to the target."""
    (x, y), (u, v) = source, target
    if 0 < u - x <= BOX + GAP and y == v:
        return [(x + BOX, y + TALL / 2), (u, v + TALL / 2)]
    out, lane, into = x + BOX - 14, y + TALL + 9, v + 16
    return [(out, y + TALL), (out, lane), (u - 10, lane), (u - 10, into), (u, into)]


def draw_box(canvas: Canvas, box: Box, x: float, y: float, stages: int) -> None:
    facts = "\n".join(f"{key}: {value}" for key, value in box.facts)
    canvas.rect(x, y, BOX, TALL, stage_colour(box.stage, stages), FRAME, facts)
    name = f"{box.times} × {box.label}" if box.times > 1 else box.label
    canvas.text(x + 9, y + 18, name, 12, bold=True, room=BOX - 18)
    canvas.text(x + 9, y + 34, box.strategy, 11, SOFT, room=BOX - 18)
    canvas.text(x + 9, y + 49, box.about, 11, SOFT, room=BOX - 18)


def stage_colour(stage: int, stages: int) -> str:
    """A light tint whose neighbours differ; white where there are no stages."""
    return STAGES[stage % len(STAGES)] if stage >= 0 and stages > 0 else "#fff"


def bars(canvas: Canvas, rows: Sequence[Bar], limit: float, text: Callable[[float], str]) -> None:
    left, room = PAD + 190, WIDTH - 2 * PAD - 190 - 90
    most = max((sum(amount for _, amount in bar.parts) for bar in rows), default=0.0)
    scale = room / (max(most, limit) or 1.0)
    for bar in rows:
        canvas.text(PAD, canvas.y + 15, bar.label, 12, SOFT, room=180)
        x = float(left)
        for place, (name, amount) in enumerate(bar.parts):
            if amount:
                fill = COLOURS.get(name, OTHERS[place % len(OTHERS)])
                tooltip = f"{name}: {text(amount)}"
                canvas.rect(x, canvas.y, amount * scale, 20, fill, title=tooltip)
                x += amount * scale
        total = text(sum(amount for _, amount in bar.parts))
        canvas.text(-PAD, canvas.y + 15, total, 12)
        canvas.y += ROW
    if limit:
        x, top = left + limit * scale, canvas.y - ROW * len(rows)
        canvas.rect(x, top - 4, 1.5, ROW * len(rows), LIMIT, title="budget")
    legend(canvas, rows)


def legend(canvas: Canvas, rows: Sequence[Bar]) -> None:
    """Names of the parts that some bar has."""
    names = dict.fromkeys(
        (name, COLOURS.get(name, OTHERS[place % len(OTHERS)]))
        for bar in rows
        for place, (name, amount) in enumerate(bar.parts)
        if amount
    )
    x = PAD + 190.0
    for name, colour in names:
        canvas.rect(x, canvas.y + 2, 10, 10, colour)
        canvas.text(x + 15, canvas.y + 11, name, 11, SOFT)
        x += 30 + LETTERS * len(name)
    canvas.y += 18


def timeline(canvas: Canvas, chart: TimelineChart) -> None:
    left, room = PAD + 110, WIDTH - 2 * PAD - 110
    events = list(all_events(chart))
    end = max((event.end_seconds for event in events), default=0.0)
    scale = room / (end or 1.0)
    for row, name in enumerate(chart.rows):
        canvas.text(PAD, canvas.y + row * ROW + 15, name, 12, SOFT, room=100)
        canvas.rect(left, canvas.y + row * ROW, room, 20, COLOURS["waiting"])
    for event in events[:MOST_EVENTS]:
        x, width = (
            left + event.start_seconds * scale,
            (event.end_seconds - event.start_seconds) * scale,
        )
        y = canvas.y + event.row * ROW
        tooltip = f"{event.label}: {seconds(event.end_seconds - event.start_seconds)}"
        canvas.rect(x, y, width, 20, EVENTS.get(event.kind, "#8795a6"), "#fff", tooltip)
        if width > LETTERS * len(event.label):
            canvas.text(x + 3, y + 14, event.label, 11, room=width)
    canvas.y += ROW * len(chart.rows) + 12
    canvas.text(left, canvas.y, "0", 11, SOFT)
    canvas.text(-PAD, canvas.y, seconds(end), 11, SOFT)
