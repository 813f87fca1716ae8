"""Golden texts: `golden(text, case)` compares with `tests/golden/<test file>/<case>.txt`.

`pytest --update-golden` rewrites the files instead; their difference is reviewed as text.
"""

import difflib

import pytest

from plait.tests.paths import ROOT

FOLDER = ROOT / "tests" / "golden"


def pytest_addoption(parser):
    parser.addoption(
        "--update-golden", action="store_true", help="rewrite the texts in tests/golden"
    )


@pytest.fixture
def golden(request):
    """Compare a text with the file of this test and case, or rewrite the file."""

    def compare(text: str, case: str) -> None:
        path = FOLDER / request.path.stem / f"{case}.txt"
        text = text.rstrip() + "\n"
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert path.exists(), f"no {path.name}: run pytest --update-golden and review it"
        before = path.read_text(encoding="utf-8")
        lines = difflib.unified_diff(
            before.splitlines(), text.splitlines(), path.name, "this run", n=1, lineterm=""
        )
        assert text == before, "\n" + "\n".join(lines)

    return compare
