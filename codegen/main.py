"""`main.py` of a program: the script that torchrun starts. Users are meant to edit it."""

from __future__ import annotations

MAIN = '''"""Train the model of this folder's plan: {strategy}, {devices} devices.

Start it with: torchrun --nproc-per-node {devices} main.py --steps 10
Put your own model and data where the two comments say so.
"""

import argparse
import json
from pathlib import Path

from plait.ir.capture import materialize
from plait.runtime.launch.session import session
from plait.runtime.program import Program


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--source", default=None, help="model and batch; default: as compiled")
    options = parser.parse_args()
    folder = Path(__file__).resolve().parent
    with session() as rank:
        arguments = json.loads((folder / "source.json").read_text()) | (
            {{"source": options.source}} if options.source else {{}}
        )
        source = materialize(**arguments, dtype={dtype}, seed=0)  # your model, your first global batch
        program = Program.open(folder, source.model, optimizer_args={{"lr": options.lr}})
        for step in range(options.steps):
            loss = program.step(source.batch)  # your data loader's global batch
            if rank == 0:
                print(json.dumps({{"step": step, "loss": loss.item()}}), flush=True)


if __name__ == "__main__":
    main()
'''


def main_module(strategy: str, devices: int, dtype: str | None) -> str:
    """Source of `main.py`; `source.json` beside it names the model and batch. Without a `dtype` the
    model keeps its own types, of which it has several."""
    text = f'"{dtype}"' if dtype else "None"
    return MAIN.format(strategy=strategy, devices=devices, dtype=text)
