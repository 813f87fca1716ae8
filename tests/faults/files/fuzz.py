"""Mutated files of every kind through every command, in process: none may do more than refuse.

    python -m plait.tests.faults.files.fuzz --count 10000

A mutant that is accepted by its kind's `check` is given to every command that reads such files (or, with
`--commands N`, to N drawn ones); one that is refused is given to one other command, which must refuse it
as well. Anything but a result or a `PlaitError` is a crash. `--seconds S` ends each subject early, and
SIGTERM all of them; the report says how many mutants there were.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import itertools
import random
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any

from plait.ir.errors import PlaitError
from plait.runtime.launch.session import session
from plait.tests.faults.files.mutate import byte_mutants
from plait.tests.faults.files.subjects import Subject, Verb, subjects

HANGS_SECONDS = (
    60  # of the processor, after which a command is ended; ten times that where it waits
)
BYTE_SHARE = 8  # one mutant in so many has random bytes changed, not fields
MIB = 1 << 20
LONGEST_MESSAGE = 2000  # characters of an error
REFUSED = (2, 3, 4, 5, 6, 7)
STOP = threading.Event()  # SIGTERM: report what was done so far


class Hang(BaseException):
    """A command took too long."""


@dataclass
class Report:
    """What became of the mutants of one subject. `crashes` by where they happened, with an example."""

    kind: str
    mutants: int = 0
    accepted: int = 0
    refused: int = 0
    commands: int = 0
    crashes: Counter[str] = field(default_factory=Counter[str])
    examples: dict[str, str] = field(default_factory=dict[str, str])
    slowest_seconds: float = 0.0
    slowest: str = ""
    peak_bytes: int = 0
    largest: str = ""

    def __str__(self) -> str:
        return (
            f"{self.kind:<16}{self.mutants:>7}{self.accepted:>10}{self.refused:>9}"
            f"{self.crashes.total():>8}{self.commands:>10}{self.slowest_seconds:>9.2f} s "
            f"{self.peak_bytes / MIB:>8.0f} MiB"
        )


HEADER = (
    f"{'kind':<16}{'mutants':>7}{'accepted':>10}{'refused':>9}{'crashed':>8}{'commands':>10}"
    f"{'slowest':>11} {'memory':>12}"
)


@dataclass(frozen=True)
class Effort:
    """So many mutants of a subject, from a seed; accepted ones go to `commands` of its commands (0: to
    all). It ends after `seconds` of the processor."""

    count: int
    seed: int = 0
    commands: int = 0
    seconds: float = inf


def examine(subject: Subject, effort: Effort) -> Report:
    """Give mutants of a subject to its commands."""
    dice = random.Random(f"{subject.kind}.{effort.seed}")
    report = Report(subject.kind)
    subject.place.write_bytes(subject.sound)
    usual = {name: _usual(name, verb) for name, verb in subject.verbs.items()}
    sources = subject.mutants(subject.sound, dice), byte_mutants(subject.sound, dice)
    end = time.process_time() + effort.seconds
    for number in range(effort.count):
        if time.process_time() > end or STOP.is_set():
            break
        mutant = next(sources[number % BYTE_SHARE == 0])
        subject.place.write_bytes(mutant.data)
        report.mutants += 1
        check, *others = subject.verbs
        code = _examine(report, check, subject.verbs[check], mutant.change, usual)
        report.refused += code in REFUSED
        report.accepted += code not in REFUSED
        most = 1 if code in REFUSED else effort.commands or len(others)
        others = dice.sample(others, min(most, len(others)))
        for name in others:
            other = _examine(report, name, subject.verbs[name], mutant.change, usual)
            if code in REFUSED and other == 0 and name not in subject.lenient:
                _crash(report, f"{name} takes what check refuses", mutant.change)
    subject.place.write_bytes(subject.sound)
    return report


def _usual(name: str, verb: Verb) -> float:
    """Seconds of a command on the sound file, once everything is imported."""
    for _ in range(2):
        start = time.process_time()
        code, text, _ = _quietly(verb)
        assert code in (0, 4) or name == "view galvatron" or code == 2, f"{name}: {text}"
    return time.process_time() - start


def _examine(report: Report, name: str, verb: Verb, change: str, usual: dict[str, float]) -> int:
    """One command on the mutant that lies in its place; its exit code, -1 for a crash."""
    report.commands += 1
    before = _reset_peak()
    start = time.process_time()
    code, text, where = _quietly(verb)
    seconds = max(0.0, time.process_time() - start - usual[name])
    grown = _peak() - before
    if where:
        _crash(report, f"{name}: {where}", f"{change}: {text}")
    elif len(text) > LONGEST_MESSAGE and code in REFUSED:
        _crash(report, f"{name}: a message of {len(text)} characters", change)
    if seconds > report.slowest_seconds:
        report.slowest_seconds, report.slowest = seconds, f"{name}: {change}"
    if grown > report.peak_bytes:
        report.peak_bytes, report.largest = grown, f"{name}: {change}"
    return -1 if where else code


def _crash(report: Report, where: str, example: str) -> None:
    report.crashes[where] += 1
    report.examples.setdefault(where, example[:600])


def _quietly(verb: Verb) -> tuple[int, str, str]:
    """Exit code, what was said on stderr, and where it crashed, if it did."""
    out, errors = io.StringIO(), io.StringIO()
    signal.signal(signal.SIGPROF, _hang)
    signal.signal(signal.SIGALRM, _hang)
    signal.setitimer(signal.ITIMER_PROF, HANGS_SECONDS)
    signal.setitimer(signal.ITIMER_REAL, 10 * HANGS_SECONDS)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            result = verb()
        out.getvalue().encode()
        return (result if type(result) is int else 0), errors.getvalue(), ""
    except PlaitError as error:
        return error.exit_code, str(error), ""
    except SystemExit as end:
        return int(end.code or 0), errors.getvalue(), ""
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # of torch's checkpoints, too, which are no Exceptions
        return -1, f"{type(error).__name__}: {error}"[:300], _where(error)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)


def _where(error: BaseException) -> str:
    """The kind of an error and the last lines of ours that it came from."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/plait/" in f.filename]
    ours = [f for f in frames if "/tests/" not in f.filename][-2:]
    lines = (f"{f.filename.rpartition('/plait/')[2]}:{f.lineno}" for f in ours)
    return f"{type(error).__name__} at {' > '.join(lines)}"


def _hang(signum: int, frame: Any) -> None:
    raise Hang(f"longer than {HANGS_SECONDS} s")


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{key}:"))


def _reset_peak() -> int:
    """Bytes resident now; the process's peak counts from here."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--count", type=int, default=10_000, help="mutants of every kind")
    parser.add_argument("--kinds", default="", help="comma-separated; default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--commands", type=int, default=0, help="of an accepted mutant; default: all"
    )
    parser.add_argument("--seconds", type=float, default=inf, help="of the processor, per subject")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: STOP.set())
    kinds = frozenset(filter(None, options.kinds.split(",")))
    crashes = 0
    with session("gloo"), tempfile.TemporaryDirectory(prefix="plait-mutants-") as folder:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            found = subjects(Path(folder), kinds)
        gc.freeze()  # collections look at what a command leaves, not at all of torch
        print(HEADER)
        for of_kind in (list(g) for _, g in itertools.groupby(found, lambda s: s.kind.split()[0])):
            for subject in of_kind:
                count = -(-options.count // len(of_kind))
                effort = Effort(count, options.seed, options.commands, options.seconds)
                report = examine(subject, effort)
                crashes += report.crashes.total()
                print(report, flush=True)
                print(f"    slowest {report.slowest}\n    largest {report.largest}")
                for where, number in report.crashes.most_common():
                    print(f"    {number} × {where}\n        {report.examples[where]}", flush=True)
    return 1 if crashes else 0


if __name__ == "__main__":
    sys.exit(main())
