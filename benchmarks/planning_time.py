"""CPU seconds of tracing and planning: `python benchmarks/planning_time.py [CONFIG.json …]`.

Each argument is a transformers config file (default: those in `examples/configs`), planned for three
clusters of 64 devices as one axis, as two and as three. `total` is a whole `plait plan` from start to
end, imports included, in a process of its own; `plan` is the seconds of the planner alone.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

CLUSTERS = ("64xh100", "8x8xh100", "4x4x4xh100")
CONFIGS = Path(__file__).resolve().parent.parent / "examples" / "configs"
LONGEST = 8192  # tokens


def spent() -> float:
    """CPU seconds of all processes waited for so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(config: Path, cluster: str) -> str:
    values = json.loads(config.read_text())
    seq = min(
        int(values.get("max_position_embeddings") or values.get("n_positions", 1024)), LONGEST
    )
    before = spent()
    command = ["plan", f"hf:{config}", "--batch", "64", "--seq", str(seq), "--cluster", cluster]
    done = subprocess.run(
        [sys.executable, "-m", "plait", *command, "--json"], capture_output=True, text=True
    )
    if done.returncode:
        return done.stderr.strip().splitlines()[-1][:60]
    made = json.loads(done.stdout)
    seconds, strategy = made["plan_time_s"]["search"], made["strategy"][0]["word"]
    return f"{spent() - before:6.1f}{seconds:7.1f}  {strategy}"


def main(configs: list[Path]) -> None:
    print(f"{'model':<16}{'cluster':<14}{'total':>6}{'plan':>7}  strategy      (seconds)")
    for config in configs:
        for cluster in CLUSTERS:
            print(f"{config.stem:<16}{cluster:<14}{measure(config, cluster)}", flush=True)


if __name__ == "__main__":
    main([Path(a) for a in sys.argv[1:]] or sorted(CONFIGS.glob("*.json")))
