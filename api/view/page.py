"""Drawing reports: one HTML file, no network, scripts allowed only by their hash."""

from __future__ import annotations

import base64
import json
from hashlib import sha256
from html import escape
from importlib import resources

import msgspec

from .report import Pages, Report

SCRIPTS = ("base.js", "tables.js", "place.js", "graph.js", "bars.js", "timeline.js", "page.js")


def render(report: Report | Pages) -> str:
    """The page. Names are data: they reach it as escaped JSON and are set as text only."""
    pages = report if isinstance(report, Pages) else Pages((report,))
    script, style = "\n".join(map(_asset, SCRIPTS)), _asset("page.css")
    data = json.dumps(msgspec.to_builtins(pages), separators=(",", ":"))
    for character, code in (("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026")):
        data = data.replace(character, code)
    title = pages.comparison.title if pages.comparison else pages.reports[0].title
    policy = (
        f"default-src 'none'; script-src 'sha256-{_hash(script)}'; "
        f"style-src 'sha256-{_hash(style)}'; base-uri 'none'; form-action 'none'"
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)} · Plait</title>\n<style>{style}</style></head>\n"
        f'<body><script type="application/json" id="report">{data}</script>\n'
        '<svg id="seed" hidden></svg><main id="main"></main>\n'
        f"<script>{script}</script></body></html>\n"
    )


def _asset(name: str) -> str:
    return resources.files(__package__ or __name__).joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return base64.b64encode(sha256(text.encode()).digest()).decode()
