"""Stops or kills a rank of a run: `python -m plait.tests.faults.stopped --timeout 60`.

Prints, for every fault, after how many seconds the other ranks and torchrun had ended, and whether the
rank was named.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from plait.tests.runtime import toy

RANKS = 4
MAIN = """
import os, signal, sys, time
from pathlib import Path
from plait.runtime.comm.watchdog import WatchOptions
from plait.runtime.launch.session import session
from plait.runtime.program import Program
from plait.tests.runtime import toy

folder, timeout, fault = Path(__file__).parent, float(sys.argv[1]), sys.argv[2]
with session("gloo") as rank:
    watch = WatchOptions(timeout, folder / "dump")
    program = Program.open(folder, toy.model(), optimizer_args={"lr": 0.1}, watch=watch)
    while True:
        program.step(toy.batch(program.batches))
        (folder / f"pid_{rank}").write_text(str(os.getpid()))
        if fault == "works" and program.batches == 30:
            break
        if rank == 2 and program.batches == 20:
            if fault == "works":
                time.sleep(1.5 * timeout)
            if fault == "leaves":
                os._exit(0)
            if fault == "skips":
                program.batches += 1
            if fault == "stops while others save":
                os.kill(os.getpid(), signal.SIGSTOP)
        if fault == "stops while others save" and program.batches == 20:
            program.save(folder / "checkpoint")
        time.sleep(0.02)
"""
FAULTS: dict[str, Callable[[int], None]] = {
    "stops": lambda pid: os.kill(pid, signal.SIGSTOP),
    "is killed": lambda pid: os.kill(pid, signal.SIGKILL),
    "works": lambda pid: None,
    "leaves": lambda pid: None,
    "skips": lambda pid: None,
    "stops while others save": lambda pid: None,
}


def inject(fault: str, timeout_seconds: float, folder: Path) -> str:
    """Run a fault on rank 2 of 4; gives a line for the report."""
    toy.write(folder, toy.table({"dp": 2, "tp": 2}, 1))
    (folder / "main.py").write_text(MAIN)
    arguments = ["run", str(folder), "--", str(timeout_seconds), fault]
    with (folder / "output").open("wb") as output:
        command = [sys.executable, "-m", "plait", *arguments]
        process = subprocess.Popen(command, stdout=output, stderr=output)
    files = [folder / f"pid_{rank}" for rank in range(RANKS)]
    while not all(f.exists() and f.read_text() for f in files):
        assert process.poll() is None, (folder / "output").read_text()[-2000:]
        time.sleep(0.05)
    time.sleep(2)
    pids, start = [int(f.read_text()) for f in files], time.monotonic()
    FAULTS[fault](pids[2])
    others = [pid for rank, pid in enumerate(pids) if rank != 2]
    while any(Path(f"/proc/{pid}").exists() for pid in others):
        assert time.monotonic() - start < 4 * timeout_seconds
        time.sleep(0.1)
    seconds = time.monotonic() - start
    code = process.wait()
    text = (folder / "output").read_text()
    if fault == "works":
        return f"rank 2 works long: waited for, all ended after {seconds:.1f} s, code {code}"
    named = "rank 2 is missing" in text or "rank 2 and the others differ" in text
    by_torchrun = "rank      : 2" in text
    return (
        f"rank 2 {fault}: the others ended after {seconds:.1f} s, all after "
        f"{time.monotonic() - start:.1f} s, code {code}, "
        f"named by {'the ranks' if named else 'torchrun' if by_torchrun else 'nobody'}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--timeout", type=float, default=60.0)
    parser.add_argument("--faults", nargs="*", choices=list(FAULTS), default=list(FAULTS))
    options = parser.parse_args()
    for fault in options.faults:
        with tempfile.TemporaryDirectory(prefix="plait-stopped-") as folder:
            print(inject(fault, options.timeout, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
