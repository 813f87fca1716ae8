"""Pages in a headless Chromium: texts stay in their boxes and off each other, in both schemes."""

import json
from pathlib import Path

import pytest

from plait.api.cli import main
from plait.api.formats.files import read
from plait.api.view import render
from plait.api.view.plans.from_schedule import step_parts
from plait.ir.plan.plan import Plan
from plait.tests.api.view.test_view import hostile_report
from plait.tests.api.view.trace_faults import trace_faults
from plait.tests.browser import CHROMIUM, Browser

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no browser at hand")
FAULTS = Path(__file__).with_name("page_faults.js").read_text(encoding="utf-8")
WIDTHS, SCHEMES = (1400, 900, 390), ("light", "dark")
TALLEST, LARGEST_BYTES = 2500, 1_000_000
OPEN = """
    document.querySelectorAll("button.fold").forEach(button => button.click());
    for (let i = 0; i < 3; i++) {
      const boxes = [...document.querySelectorAll("g.box.opens[aria-expanded=false]")];
      boxes[Math.min(1, boxes.length - 1)]?.dispatchEvent(new MouseEvent("click"));
    }
"""
PLANT = """
    const first = document.querySelector("h2");
    first.style.position = "relative";
    first.style.top = "-14px";
    first.style.width = "3000px";
    first.style.whiteSpace = "nowrap";
    first.textContent = "planted ".repeat(90);
"""


@pytest.fixture(scope="module")
def browser():
    with Browser() as opened:
        yield opened


def test_names_are_texts_and_planted_faults_are_seen(browser, tmp_path):
    file = tmp_path / "hostile.html"
    file.write_text(render(hostile_report()), encoding="utf-8")
    page = browser.open(file, 1400)
    assert (page.errors, len(page.requests)) == ([], 1)
    assert page.evaluate("document.images.length") == 0
    assert page.evaluate(FAULTS) == []
    page.evaluate(PLANT)
    assert any("outside" in fault for fault in page.evaluate(FAULTS))


@pytest.mark.long
def test_pages_have_no_faults(browser, pages):
    assert len(pages) == 12
    faults: list[str] = []
    for file in pages:
        if file.stat().st_size > LARGEST_BYTES:
            faults.append(f"{file.name}: {file.stat().st_size} bytes")
        for width in WIDTHS:
            for scheme in SCHEMES:
                where = f"{file.stem} at {width}, {scheme}: "
                faults += [where + fault for fault in faults_of(browser, file, width, scheme)]
    assert faults == []


@pytest.mark.long
def test_traces_have_no_faults(pages, tmp_path):
    for file in sorted(pages[0].parent.glob("*.json")):
        trace = tmp_path / file.name
        assert main(["view", str(file), "--format", "chrome-trace", "-o", str(trace)]) == 0
        assert trace_faults(json.loads(trace.read_text(encoding="utf-8"))) == []


@pytest.mark.long
def test_what_a_step_is_made_of_is_the_step(pages):
    for file in sorted(pages[0].parent.glob("*.json")):
        if file.stem == "placement":
            continue
        plan = read(file, Plan, "plait/plan")
        step = pytest.approx(plan.prediction.step_seconds, rel=1e-9)
        for number in range(len(plan.stages)):
            assert sum(seconds for _, seconds in step_parts(plan, number)) == step


def faults_of(browser: Browser, file: Path, width: int, scheme: str) -> list[str]:
    """Of a page as it is opened, and after boxes and rows of it were opened."""
    page = browser.open(file, width, scheme)
    faults = [*page.evaluate(FAULTS), *page.errors, *page.requests[1:]]
    tall = page.evaluate("document.documentElement.scrollHeight")
    if tall > TALLEST and width == max(WIDTHS):
        faults.append(f"{tall} px tall")
    page.evaluate(OPEN)
    faults += [f"opened: {fault}" for fault in page.evaluate(FAULTS)]
    page.close()
    return faults
