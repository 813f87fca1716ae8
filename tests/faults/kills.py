"""Kills ranks of a run at random points: `python -m plait.tests.faults.kills --kills 50`.

torchrun starts all ranks again each time; training goes on from the newest checkpoint and must end with
the bits of a run that nobody interrupted, every sample seen exactly once per epoch.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import torch

from plait.tests.faults.kill_worker import SAMPLES
from plait.tests.ranks import launch
from plait.tests.runtime import toy

WORKER = Path(__file__).parent / "kill_worker.py"
LAYOUT = {"zero1": 2}
RANKS, PATIENCE_SECONDS, LATEST_SECONDS, MOST_BATCHES = 2, 120.0, 2.5, 8


class Outcome(NamedTuple):
    """What a run left: its values, the samples and losses by batch, and how many steps were redone."""

    state: dict[str, torch.Tensor]
    samples: dict[int, list[int]]
    losses: dict[int, str]
    redone: int


def with_program(folder: Path) -> Path:
    """A new folder with the program that is trained."""
    folder.mkdir(parents=True)
    toy.write(folder / "program", toy.table(LAYOUT, 1))
    return folder


def start(folder: Path, batches: int, restarts: int) -> subprocess.Popen[bytes]:
    """Start the ranks of a run in a folder, under torchrun."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nnodes=1",
        "--local-addr=127.0.0.1",
    ]
    command += [f"--nproc-per-node={RANKS}", f"--max-restarts={restarts}", "--monitor-interval=0.1"]
    command += ["--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", str(WORKER)]
    with (folder / "torchrun").open("wb") as output:
        return subprocess.Popen([*command, str(folder), str(batches)], stdout=output, stderr=output)


def outcome(folder: Path) -> Outcome:
    """What a run that ended has left. Batches that were done again count as they were last."""
    rows = [json.loads(line) for line in (folder / "log").read_text().splitlines()]
    samples = {number: indices for number, indices, _ in rows}
    losses = {number: loss for number, _, loss in rows}
    return Outcome(torch.load(folder / "state.pt"), samples, losses, len(rows) - len(samples))


def kill_often(folder: Path, process: subprocess.Popen[Any], kills: int, rng: random.Random) -> int:
    """Kill one rank after the other; gives how many. Each is killed some time after all ranks have
    started, every other one after some batches more, however slow the machine is."""
    known: set[str] = set()
    for done in range(kills):
        deadline = time.monotonic() + PATIENCE_SECONDS
        pids = [folder / f"pid_{rank}" for rank in range(RANKS)]
        while not all(p.exists() and p.read_text() not in known | {""} for p in pids):
            if process.poll() is not None or time.monotonic() > deadline:
                return done
            time.sleep(0.02)
        until = _batches(folder) + rng.randint(0, MOST_BATCHES) if done % 2 else 0
        while _batches(folder) < until and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.02)
        time.sleep(rng.uniform(0.0, LATEST_SECONDS))
        known |= {path.read_text() for path in pids}
        if process.poll() is not None:
            return done
        os.kill(int(pids[rng.randrange(RANKS)].read_text()), signal.SIGKILL)
    return kills


def _batches(folder: Path) -> int:
    """Batches that a run has done, those that it did again as well."""
    log = folder / "log"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def survive(root: Path, kills: int, batches: int, seed: int) -> str:
    """Run once undisturbed and once with kills; raises AssertionError where they differ. Gives a line
    for the report."""
    plain, killed = with_program(root / "plain"), with_program(root / "killed")
    launch(RANKS, [str(WORKER), str(plain), str(batches)], timeout_seconds=PATIENCE_SECONDS * 3)
    expected = outcome(plain)
    process = start(killed, batches, kills)
    try:
        done = kill_often(killed, process, kills, random.Random(seed))
        code = process.wait(PATIENCE_SECONDS * 3)
    finally:
        process.terminate()
    assert code == 0, (killed / "torchrun").read_text()[-3000:]
    actual = outcome(killed)
    assert actual.samples == expected.samples
    assert actual.losses == expected.losses
    assert all(torch.equal(actual.state[n], t) for n, t in expected.state.items())
    seen = Counter(i for indices in actual.samples.values() for i in indices)
    epochs = batches * toy.ROWS // SAMPLES
    assert seen == dict.fromkeys(range(SAMPLES), epochs), seen
    return f"{done} kills, {batches} batches, {actual.redone} done again: the same bits"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--batches", type=int, default=400, help="a multiple of 5: whole epochs")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="plait-kills-") as root:
        print(survive(Path(root), options.kills, options.batches, options.seed))


if __name__ == "__main__":
    main()
