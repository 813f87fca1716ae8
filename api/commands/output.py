"""How commands answer: results on stdout, notes and progress on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from math import inf
from threading import Timer
from typing import Any, Protocol


class Update(Protocol):
    """Tells how far work is."""

    def __call__(
        self, done: int | None = None, total: int | None = None, so_far: str = ""
    ) -> None: ...


TIME_LIMIT = 4  # exit code: time is up, the best so far is written
LONG_SECONDS = 1.0  # work that takes longer shows its progress


def note(text: str) -> None:
    print(text, file=sys.stderr)


def print_json(data: dict[str, Any]) -> None:
    """Print what `--json` asks for; its schema is that of a struct in `api/serve`."""
    print(json_text(data))


def json_text(data: dict[str, Any]) -> str:
    return json.dumps(data, indent=1)


def best_so_far(
    update: Update, show: Callable[[float], str], after: str = ""
) -> Callable[[float, float], None]:
    """What a search tells (`planner/question/deadline.Watch`) as the progress of a command: the best so
    far, and how far it may be from the least that is possible."""
    best, bound = inf, 0.0

    def watch(value: float, least: float) -> None:
        nonlocal best, bound
        best, bound = min(best, value), max(bound, least)
        if best < inf:
            part = max(0.0, 1 - bound / best) if best else 0.0
            gap = f", gap at most {100 * part:.2g} %" if bound and best else ""
            update(so_far=f"best so far {show(best)}{gap}{after}")

    return watch


@contextmanager
def progress(title: str) -> Generator[Update, None, None]:
    """Show that work goes on, where stderr is a terminal and the work is long.

    Yields `update(done, total)`, for work that knows how much there is, and `update(so_far="…")` for
    what it has so far; nothing may be printed inside.
    """
    if not sys.stderr.isatty():
        yield lambda done=None, total=None, so_far="": None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    bar = Progress(
        *columns,
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    task = bar.add_task(title, total=None)
    timer = Timer(LONG_SECONDS, bar.start)
    timer.daemon = True
    timer.start()
    try:
        yield lambda done=None, total=None, so_far="": bar.update(
            task, completed=done, total=total, description=", ".join(filter(None, (title, so_far)))
        )
    finally:
        timer.cancel()
        timer.join()
        bar.stop()
