"""What any model can do here: `python benchmarks/coverage.py --sources FILE.py … [--json FILE]`.

A source file has factories `name() -> (model, batch)` or `(model, batch, loss_fn)`: its public functions
that need no argument, and those of dicts `name -> factory`. Each is traced, split into micro-batches,
planned for two clusters, compiled and verified under every word of `WORDS` on forked gloo ranks
(`--verify N`: of N models drawn at random). `--json FILE` keeps a row per model and takes rows of
earlier runs along; `-o FILE` writes the table of docs from all of them.
"""

from __future__ import annotations

if (
    __name__ == "coverage"
):  # numba, in a script beside this file, looks for the package of that name
    raise ImportError("this is the coverage of models, not of lines")

import argparse
import importlib.util
import inspect
import json
import random
import re
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from plait.codegen import compile_program, write_program
from plait.cost_model.hardware import load_cluster
from plait.ir.analysis.axes import analyse
from plait.ir.capture import load_source, trace
from plait.ir.errors import PlaitError
from plait.ir.files.json_files import dump
from plait.ir.lowering.cast import cast_model
from plait.ir.model.model import Model
from plait.planner import PlanOptions, plan
from plait.planner.question.pins import pin_all
from plait.runtime.verification import verify as verification
from plait.runtime.verification.verify import Job, Verdict, verify
from plait.tests import ranks

# verified words: strategy, micro-batches
STRATEGIES = {
    "dp=4": ("dp=4", 1),
    "zero3=4": ("zero3=4", 1),
    "tp=4": ("tp=4", 1),
    "pp=2,tp=2": ("pp=2,tp=2", 1),
    "pp=2 ×2": ("pp=2", 2),
}
SECONDS_PER_STEP = 60  # of CPU: of tracing, of a plan; longer is a failure
LAUNCH_SECONDS = 900.0
MODELS_PER_LAUNCH = 6
PASSED, REFUSED, TRACEBACK = "yes", "refused", "traceback"


class Row(msgspec.Struct):
    """One model. Texts are `yes`, `refused` (with a reason in `message`) or `traceback`.

    `opaque` are operators without a declaration; `verify` is by word; `cpu_seconds` of the trace.
    """

    name: str
    source: str
    trace: str = ""
    opaque: list[str] = []
    micro_batches: str = ""
    plan_local4: str = ""
    plan_8xh100: str = ""
    verify: dict[str, str] = {}
    message: str = ""
    cpu_seconds: float = 0.0

    def note(self, what: str, text: str) -> None:
        self.message = "; ".join(filter(None, (self.message, f"{what}: {text}")))


class TooLong(Exception):
    pass


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raise TooLong in what takes longer."""

    def ring(*_: Any) -> None:
        raise TooLong(f"takes more than {seconds} CPU-s")

    before = signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def attempt(row: Row, what: str, action: Callable[[], Any]) -> tuple[str, Any]:
    """How an action ended, and what it gave; its error becomes a note of the row."""
    try:
        with limited(SECONDS_PER_STEP):
            return PASSED, action()
    except PlaitError as error:
        row.note(what, str(error))
        return REFUSED, None
    except Exception as error:
        lines = traceback.format_exception_only(error)
        place = traceback.extract_tb(error.__traceback__)[-1]
        row.note(what, f"{''.join(lines).strip()} ({place.name}, line {place.lineno})")
        return TRACEBACK, None


# sources


def factories(file: Path) -> dict[str, Callable[[], Any]]:
    """The factories of a file by name."""
    spec = importlib.util.spec_from_file_location(f"coverage_{file.stem}", file.resolve())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.append(str(file.resolve().parent))
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    named: dict[str, Callable[[], Any]] = {}
    for name, item in vars(module).items():
        if name.startswith("_"):
            continue
        if isinstance(item, dict) and item and all(map(callable, item.values())):
            named.update((str(key), make) for key, make in item.items())
        elif inspect.isfunction(item) and item.__module__ == spec.name and _needs_nothing(item):
            named[name] = item
    return named


def _needs_nothing(function: Callable[..., Any]) -> bool:
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(function).parameters.values()
    return all(p.default is not p.empty or p.kind in kinds for p in parameters)


def source_text(file: Path, name: str, scratch: Path) -> str:
    """A SOURCE that other processes can load: a file with this factory alone."""
    wrapper = scratch / f"{file.stem}_{len(list(scratch.glob('*_source.py')))}_source.py"
    wrapper.write_text(
        "from pathlib import Path\n"
        "from plait.benchmarks.coverage import factories\n"
        f"make = factories(Path({str(file.resolve())!r}))[{name!r}]\n"
    )
    return f"{wrapper}:make"


# one model


def opaque(model: Model) -> list[str]:
    """Operators that are replicated because nothing is known of their loops."""
    return sorted(
        {
            op.target
            for function in model.functions
            for op, known in zip(function.ops, analyse(function).ops, strict=True)
            if known.opaque
        }
    )


def planned(
    model: Model, cluster: str, strategy: str = "", micro_batches: int | None = None
) -> Any:
    options = PlanOptions(
        pins=pin_all(strategy) if strategy else (),
        micro_batches=micro_batches,
        time_limit_seconds=SECONDS_PER_STEP / 2,
    )
    return plan(model, load_cluster(cluster), options)


def cluster_of(strategy: str) -> str:
    return "local:2" if strategy == "pp=2" else "local:4"


def evaluate(
    file: Path, name: str, scratch: Path, judged: bool, trace_only: bool
) -> tuple[Row, list[Job]]:
    """The row of one model, and the programs that are still to be verified."""
    row = Row(name, file.stem)
    text = source_text(file, name, scratch)
    start = time.process_time()

    def traced() -> Model:
        source = load_source(text)
        return trace(source.model, source.batch, source.loss_fn, name=name)

    row.trace, model = attempt(row, "trace", traced)
    row.cpu_seconds = round(time.process_time() - start, 2)
    if model is None:
        return row, []
    row.opaque = opaque(model)
    if trace_only:
        return row, []
    row.micro_batches = attempt(row, "micro-batches", lambda: planned(model, "local:2", "dp=2", 2))[
        0
    ]
    row.plan_local4 = attempt(row, "local:4", lambda: planned(model, "local:4"))[0]
    row.plan_8xh100 = attempt(row, "8xh100", lambda: planned(model, "8xh100"))[0]
    jobs = compiled(row, model, text, scratch) if judged else []
    return row, jobs


def compiled(row: Row, model: Model, text: str, scratch: Path) -> list[Job]:
    """Programs of the words that have a plan."""
    folder = Path(tempfile.mkdtemp(dir=scratch))
    exact, jobs = cast_model(model, "float64"), []
    (folder / "model.json").write_bytes(dump(exact, "plait/model"))
    for number, (role, (strategy, micro_batches)) in enumerate(STRATEGIES.items()):
        place = folder / str(number)

        def write(strategy: str = strategy, micro: int = micro_batches, at: Path = place) -> None:
            found = planned(exact, cluster_of(strategy), strategy, micro)
            write_program(compile_program(found, exact), at)

        row.verify[role], _ = attempt(row, role, write)
        if row.verify[role] == PASSED:
            name = f"{row.source} {row.name} {role}"
            jobs.append(Job(name, str(place), text, str(folder / "model.json")))
    return jobs


def judge(rows: Sequence[Row], jobs: Sequence[Job]) -> None:
    """Verify all programs, in one launch for every number of ranks, and fill the rows."""
    verdicts: dict[str, Verdict] = {}
    for count in (2, 4):
        some = [j for j in jobs if j.name.endswith("pp=2 ×2") == (count == 2)]
        verdicts.update((v.name, v) for v in (verify(some, count, LAUNCH_SECONDS) if some else []))
    for row in rows:
        for role in row.verify:
            verdict = verdicts.get(f"{row.source} {row.name} {role}")
            if verdict is not None and not verdict.passed:
                row.verify[role] = "traceback" if verdict.failure else "differs"
                row.note(role, verdict.failure[-400:] or str(verdict)[:400])


# the document

COLUMNS = ("model", "traced", "opaque", "micro-batches", "local:4", "8xh100", "verified", "CPU-s")


def cells(row: Row) -> tuple[str, ...]:
    passed = sum(result == PASSED for result in row.verify.values())
    verified = f"{passed} of {len(row.verify)}" if row.verify else ""
    facts = (row.trace, ", ".join(row.opaque) or "none", row.micro_batches)
    return row.name, *facts, row.plan_local4, row.plan_8xh100, verified, f"{row.cpu_seconds:.1f}"


def table(columns: tuple[str, ...], texts: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(columns, *texts, strict=True)]
    lines = [columns, tuple("-" * width for width in widths), *texts]
    return "\n".join(
        "| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    )


def document(rows: Sequence[Row]) -> str:
    """Counts, a table per source, then why what failed did."""
    traced = [row for row in rows if row.trace == PASSED]
    outcomes = Counter(result for row in rows for result in row.verify.values())
    failures = Counter(
        f"{what}: {result}"
        for row in rows
        for what, result in (
            ("trace", row.trace),
            ("micro-batches", row.micro_batches),
            ("local:4", row.plan_local4),
            ("8xh100", row.plan_8xh100),
            *((f"verify {role}", result) for role, result in row.verify.items()),
        )
        if result not in (PASSED, "")
    )
    lines = [
        "# Models",
        "",
        "Written by `python benchmarks/coverage.py --sources FILE.py … -o "
        "docs/results/coverage.md`.",
        "Every model is traced in training mode with tiny sizes, split into micro-batches, planned for",
        "four processes of this machine and for eight H100, compiled under",
        ", ".join(f"`{role}`" for role in STRATEGIES)
        + " and trained on gloo ranks beside the user's",
        "own module in one process (agreement to 1e-9 in float64). An operator is opaque where nobody",
        "declared its loops: it runs whole on every rank.",
        "",
        f"**{len(traced)} of {len(rows)} models of {len({r.source for r in rows})} sources trace, "
        f"{sum(not row.opaque for row in traced)} of them without opaque operators; of "
        f"{sum(outcomes.values())} programs {outcomes[PASSED]} agree, {outcomes[REFUSED]} are "
        f"refused with a reason, {outcomes['differs']} differ and {outcomes[TRACEBACK]} fail.**",
        "",
    ]
    for source in dict.fromkeys(row.source for row in rows):
        lines += [
            f"## {source}",
            "",
            table(COLUMNS, [cells(r) for r in rows if r.source == source]),
            "",
        ]
    lines += ["## What failed, by kind", ""]
    lines += [f"- {count} × {kind}" for kind, count in failures.most_common()]
    lines += ["", "Reasons:", ""]
    lines += [f"- {row.name}: {first_line(row.message)}" for row in rows if row.message]
    return "\n".join([*lines, ""])


def first_line(text: str) -> str:
    """A message without the paths of one machine."""
    shown = re.sub(r"(?<![\w.])/\S*/", "", " ".join(text.split()))
    return shown[:300].replace("|", "/")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sources", type=Path, nargs="+", default=[])
    parser.add_argument("--only", nargs="+", default=(), help="names of models")
    parser.add_argument("--verify", type=int, metavar="N", help="models to verify; default: all")
    parser.add_argument("--trace-only", action="store_true", help="neither plan nor verify")
    parser.add_argument("--seed", type=int, default=0, help="of the draw of --verify")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    verification.launch = ranks.launch  # forks start in no time
    known = earlier(options.json)
    for file in options.sources:
        for row in rows_of(file, options):
            known[row.source, row.name] = row
            print(json.dumps(msgspec.to_builtins(row), ensure_ascii=False), flush=True)
            if options.json:
                encoded = msgspec.json.encode(list(known.values()))
                options.json.write_bytes(msgspec.json.format(encoded, indent=1))
    if options.output:
        options.output.write_text(document(list(known.values())))


def earlier(file: Path | None) -> dict[tuple[str, str], Row]:
    if file is None or not file.is_file():
        return {}
    rows = msgspec.json.decode(file.read_bytes(), type=list[Row])
    return {(row.source, row.name): row for row in rows}


def rows_of(file: Path, options: argparse.Namespace) -> Iterator[Row]:
    """The rows of a source file, as they are judged: `MODELS_PER_LAUNCH` together."""
    names = [n for n in factories(file) if not options.only or n in options.only]
    rng = random.Random(options.seed)
    count = len(names) if options.verify is None else min(options.verify, len(names))
    judged = set(rng.sample(names, count))
    for first in range(0, len(names), MODELS_PER_LAUNCH):
        rows, jobs = list[Row](), list[Job]()
        with tempfile.TemporaryDirectory(prefix="plait-coverage-") as scratch:
            for name in names[first : first + MODELS_PER_LAUNCH]:
                row, programs = evaluate(
                    file, name, Path(scratch), name in judged, options.trace_only
                )
                rows.append(row)
                jobs += programs
            judge(rows, jobs)
        yield from rows


if __name__ == "__main__":
    main()
