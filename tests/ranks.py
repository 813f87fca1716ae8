"""Ranks that start quickly: forks of a process that has imported torch and the programs' runtime.

`launch` takes and gives what `runtime.launch.launch.launch` does, without torchrun: a fork costs a
hundredth of the imports that a new interpreter needs. What torchrun itself does is tested in
`tests/runtime/launch`.
"""

import multiprocessing
import os
import runpy
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from datetime import timedelta
from multiprocessing.connection import wait
from pathlib import Path

from plait.runtime.launch import launch as launcher

PRELOADED = [
    "torch.distributed",
    "torch.distributed.checkpoint.state_dict_saver",
    "torch.distributed.checkpoint.state_dict_loader",
    "plait.ir.capture.tracing",
    "plait.ir.capture.operators.elementary",
    "plait.runtime.program",
    "plait.runtime.verification.reference",
    "plait.tests.zoo",
    "transformers.models.gpt2.modeling_gpt2",  # and what all models of transformers share
    "plait.tests.frozen",
]


def launch(
    ranks: int, target: Sequence[str], *, timeout_seconds: float, directory: Path | None = None
) -> tuple[str, ...]:
    """Run a script or `-m` module on `ranks` forks; gives what each printed. Raises LaunchError."""
    from torch.distributed import TCPStore

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    store = TCPStore("127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=timeout_seconds))
    with tempfile.TemporaryDirectory(prefix="plait-ranks-") as logs:
        processes = [
            context.Process(target=_rank, args=(rank, ranks, store.port, list(target), logs))
            for rank in range(ranks)
        ]
        for process in processes:
            process.start()
        code = _wait(processes, timeout_seconds)
        outputs, errors = (
            tuple(Path(logs, f"{rank}.{kind}").read_text(errors="replace") for rank in range(ranks))
            for kind in ("out", "err")
        )
    if code != 0:
        reason = launcher._reason(code, "", errors, timeout_seconds)
        raise launcher.LaunchError(reason, timed_out=code is None)
    return outputs


def _wait(processes: list[multiprocessing.Process], timeout_seconds: float) -> int | None:
    """The first exit code that is not zero, else zero; None: out of time. Ends all processes."""
    deadline, running = time.monotonic() + timeout_seconds, {p.sentinel: p for p in processes}
    code: int | None = 0
    while running and code == 0:
        ended = wait(list(running), max(0.0, deadline - time.monotonic()))
        codes = [running.pop(sentinel).exitcode or 0 for sentinel in ended]
        code = next((c for c in codes if c), 0) if ended else None
    for process in running.values():
        process.terminate()
    for process in processes:
        process.join(timeout=10)
        process.kill()  # one that is stopped does not end when asked
        process.join()
    return code


def _rank(rank: int, ranks: int, port: int, target: list[str], logs: str) -> None:
    """Be one rank: what torchrun sets in the environment, output to files, then the target."""
    for number, kind in ((1, "out"), (2, "err")):
        file = os.open(Path(logs, f"{rank}.{kind}"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "tests",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    import torch

    torch.set_num_threads(1)
    try:
        if target[0] == "-m":
            sys.argv = target[1:]
            runpy.run_module(target[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = list(target)
            sys.path.insert(0, str(Path(target[0]).parent))
            runpy.run_path(target[0], run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise
    except BaseException:
        traceback.print_exc()
        sys.exit(1)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
