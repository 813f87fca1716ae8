"""What `make demo` runs: plan GPT-2 offline, then plan, generate, verify and train a small Llama on 4
ranks of this machine, and draw the report."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
OUT = HERE.parent / "out"
RANKS, STEPS = 4, 5


def plait(*arguments: str) -> str:
    """Run the command line as a person would; its results are printed and returned."""
    print(f"\n$ plait {' '.join(arguments)}", flush=True)
    finished = subprocess.run(
        [sys.executable, "-m", "plait", *arguments], text=True, capture_output=True, check=False
    )
    sys.stderr.write("".join(x for x in finished.stderr.splitlines(True) if x.startswith("plait")))
    print(finished.stdout, end="", flush=True)
    if finished.returncode:
        sys.exit(f"{finished.stderr}\nplait ended with code {finished.returncode}")
    return finished.stdout


def one_process(source: str) -> list[float]:
    """The same training in one process, by torch alone."""
    import torch

    from plait.ir.capture import materialize

    module = materialize(source, seed=0)
    optimizer = torch.optim.AdamW(module.model.parameters(), lr=1e-3)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = module.model(**module.batch).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def main() -> None:
    start = time.monotonic()
    OUT.mkdir(exist_ok=True)
    gpt2, llama = f"hf:{HERE / 'configs' / 'gpt2.json'}", f"{HERE / 'small_llama.py'}:make"
    plan, program = str(OUT / "plan.json"), str(OUT / "program")
    print("1. Plan GPT-2 for two nodes of eight H100s, on this laptop:")
    plait(
        "plan",
        gpt2,
        "--batch",
        "64",
        "--seq",
        "1024",
        "--cluster",
        "2x8xh100",
        "--precision",
        "bf16",
        "-o",
        str(OUT / "gpt2.json"),
    )
    print("\n2. Plan a small Llama for 4 ranks of this machine, write its program, verify it:")
    plait("trace", llama, "-o", str(OUT / "model.json"))
    plait("plan", llama, "--cluster", f"local:{RANKS}", "--pin", "*:dp=2,tp=2", "-o", plan)
    plait("compile", plan, llama, "-o", program)
    plait("verify", plan, llama)
    print("\n3. Train it on 4 ranks:")
    many = plait("run", program, "--", "--steps", str(STEPS))
    report = plait(
        "view", plan, "--model", str(OUT / "model.json"), "-o", str(HERE.parent / "report.html")
    )
    parallel = [json.loads(x)["loss"] for x in many.splitlines() if x.startswith("{")]
    print("\nloss by step        " + "  ".join(f"{i:>9}" for i in range(STEPS)))
    print("4 ranks             " + "  ".join(f"{x:9.6f}" for x in parallel))
    print("one process         " + "  ".join(f"{x:9.6f}" for x in one_process(llama)))
    print(f"report              {report.strip()}")
    print(f"demo took {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
