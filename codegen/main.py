"""`main.py` of a program: the script that torchrun starts. Users are meant to edit it."""

from __future__ import annotations

MAIN = '''"""Train the model of this folder's plan: {strategy}, {devices} devices.

Start it with: torchrun --nproc-per-node {devices} main.py --steps 10
On another number of ranks the plan is made again. Put your own model and data where the two
comments say so.
"""

import argparse
import json
from contextlib import nullcontext
from pathlib import Path
from threading import Event

import plait
from plait.ir.capture import materialize
from plait.runtime.comm.watchdog import WatchOptions
from plait.runtime.launch.session import session
from plait.runtime.launch.signals import stop_on_sigterm


def parse(folder: Path) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add = parser.add_argument
    add("--steps", type=int, default=10)
    add("--lr", type=float, default=1e-3)
    add("--source", default=None, help="model and batch; default: as compiled")
    add("--nonfinite", choices=("stop", "skip", "keep"), default="keep")
    add("--checkpoint", type=Path, default=folder / "checkpoint", help="its folder")
    add("--checkpoint-every", type=int, default=0, metavar="N", help="steps; resumes from the last")
    add("--checkpoint-on-stop", action="store_true", help="on SIGTERM, write one before the end")
    add("--elastic", action="store_true", help="ranks may leave, on SIGTERM: the others go on")
    add("--fall-back", action="store_true", help="past damaged checkpoints")
    add("--keep", type=int, default=2, metavar="K", help="checkpoints that stay")
    add("--timeout", type=float, default=60.0, help="seconds until a missing rank ends all others")
    add("--dump", type=Path, default=folder / "dump", help="for plait inspect, when ranks fail")
    return parser.parse_args()


def main() -> None:
    folder = Path(__file__).resolve().parent
    options = parse(folder)
    with session():
        arguments = json.loads((folder / "source.json").read_text()) | (
            {{"source": options.source}} if options.source else {{}}
        )
        source = materialize(**arguments, dtype={dtype}, seed=0)  # your model, your first global batch
        program = plait.open_program(
            folder,
            source.model,
            optimizer_args={{"lr": options.lr}},
            loss_fn=source.loss_fn,
            nonfinite=options.nonfinite,
            watch=WatchOptions(options.timeout, options.dump),
        )
        if options.checkpoint_every or options.checkpoint_on_stop:
            program.resume(options.checkpoint, fall_back=options.fall_back)
        leaves = Event()  # this rank alone
        ask = leaves.set if options.elastic else lambda: program.request_stop()
        waits = options.elastic or options.checkpoint_on_stop
        with stop_on_sigterm(ask) if waits else nullcontext():
            while program.batches < options.steps and not program.stopping:
                # your data loader's global batch, from sample program.samples on
                try:
                    loss = program.step(source.batch)
                except plait.CommunicationError:
                    if leaves.is_set() or not options.elastic:
                        raise
                    where = options.checkpoint if options.checkpoint_every else None
                    program = plait.regroup(program, checkpoint=where, fall_back=options.fall_back)
                    continue
                if program.groups.pool.rank == 0:
                    print(json.dumps({{"step": program.batches - 1, "loss": loss.item()}}), flush=True)
                if leaves.is_set():
                    return
                every = options.checkpoint_every
                if program.stopping or (every and program.batches % every == 0):
                    program.save(options.checkpoint, keep=options.keep)


if __name__ == "__main__":
    main()
'''


def main_module(strategy: str, devices: int, dtype: str | None) -> str:
    """Source of `main.py`; `source.json` beside it names the model and batch. Without a `dtype` the
    model keeps its own types, of which it has several."""
    text = f'"{dtype}"' if dtype else "None"
    return MAIN.format(strategy=strategy, devices=devices, dtype=text)
