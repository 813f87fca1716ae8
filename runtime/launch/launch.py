"""Starts ranks on this machine with torchrun, and says what went wrong when one fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from ...ir.errors import PlaitError
from .scratch import scratch_folder
from .signals import GRACE_SECONDS

LAST_LINES = 25


class LaunchError(PlaitError):
    """A rank failed or the run took too long: the message ends with the rank's last lines."""

    exit_code = 1

    def __init__(self, message: str, *, timed_out: bool = False) -> None:
        super().__init__(message)
        self.timed_out = timed_out


def launch(
    ranks: int, target: Sequence[str], *, timeout_seconds: float, directory: Path | None = None
) -> tuple[str, ...]:
    """Run `target` (`["script.py", …]` or `["-m", "module", …]`) on `ranks` ranks.

    Gives what each rank printed. Raises LaunchError naming the first failed rank.
    """
    with scratch_folder("launch") as logs:
        command = [
            # one thread per rank: ranks of one machine share its cores
            "env",
            "OMP_NUM_THREADS=1",
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nnodes=1",
            f"--nproc-per-node={ranks}",
            "--rdzv-backend=c10d",
            "--rdzv-endpoint=127.0.0.1:0",
            "--local-addr=127.0.0.1",
            "--max-restarts=0",
            f"--log-dir={logs}",
            "--redirects=3",
            *target,
        ]
        code, torchrun_output = _run(command, timeout_seconds, directory)
        outputs = _outputs(logs, ranks, "stdout.log")
        if code != 0:
            errors = _outputs(logs, ranks, "stderr.log")
            reason = _reason(code, torchrun_output, errors, timeout_seconds)
            raise LaunchError(reason, timed_out=code is None)
        return outputs


def _run(
    command: list[str], timeout_seconds: float, directory: Path | None
) -> tuple[int | None, str]:
    """Exit code (None: out of time) and what torchrun itself printed."""
    process = subprocess.Popen(
        command,
        cwd=directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        stdin=subprocess.DEVNULL,
    )
    try:
        torchrun_output, _ = process.communicate(timeout=timeout_seconds)
        return process.returncode, torchrun_output
    except subprocess.TimeoutExpired:
        # torchrun ends its ranks when it is asked to end; killed, it would leave them behind
        process.send_signal(signal.SIGTERM)
        try:
            torchrun_output, _ = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            torchrun_output, _ = process.communicate()
        return None, torchrun_output
    except BaseException:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
        raise


def _outputs(logs: Path, ranks: int, name: str) -> tuple[str, ...]:
    outputs = []
    for rank in range(ranks):
        path = next(iter(sorted(logs.glob(f"*/attempt_0/{rank}/{name}"))), None)
        outputs.append(path.read_text(errors="replace") if path else "")
    return tuple(outputs)


def _reason(
    code: int | None, torchrun_output: str, errors: tuple[str, ...], timeout_seconds: float
) -> str:
    """The first rank that raised an error of its own; ranks that only lost a peer come last."""
    if code is None:
        head = f"{len(errors)} ranks took more than {timeout_seconds:.0f} s and were stopped"
    else:
        head = f"{len(errors)} ranks: torchrun ended with code {code}"
    failed = [(rank, text) for rank, text in enumerate(errors) if "Traceback" in text]
    failed.sort(key=lambda pair: "CommunicationError" in pair[1])
    if not failed:
        return f"{head}; it printed:\n{_last(torchrun_output)}"
    rank, text = failed[0]
    return f"{head}; rank {rank} ended with:\n{_last(text)}"


def _last(text: str) -> str:
    return "\n".join(text.rstrip().splitlines()[-LAST_LINES:])


class RunOptions(NamedTuple):
    """How `torchrun` starts a program: on how many ranks (0: as planned), restarted how often."""

    ranks: int = 0
    restarts: int = 0


AS_PLANNED = RunOptions()


def torchrun_command(
    folder: Path, arguments: Sequence[str], options: RunOptions = AS_PLANNED
) -> list[str]:
    """The command that starts a program's `main.py` with as many ranks as its mesh has.

    torchrun ends its ranks when it gets SIGTERM, and kills those that do not end in time.
    """
    from .program_folder import read_table

    return [
        "env",
        "OMP_NUM_THREADS=1",
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nnodes=1",
        f"--nproc-per-node={options.ranks or read_table(folder).mesh.size}",
        "--rdzv-backend=c10d",
        "--rdzv-endpoint=127.0.0.1:0",
        "--local-addr=127.0.0.1",
        f"--max-restarts={options.restarts}",
        f"--shutdown-timeout={GRACE_SECONDS + 1:.0f}",
        str(folder / "main.py"),
        *arguments,
    ]


def torchrun(folder: Path, arguments: Sequence[str], options: RunOptions = AS_PLANNED) -> NoReturn:
    """Become torchrun with a program's ranks: signals and exit codes are those of torchrun itself."""
    command = torchrun_command(folder, arguments, options)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execvp(command[0], command)
