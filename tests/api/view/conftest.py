"""Pages of twelve plans, models and placements, written once for the tests of a browser."""

from pathlib import Path

import pytest

from plait.api.cli import main
from plait.tests.paths import ROOT

CONFIGS = ROOT / "examples" / "configs"
LLAMA = f"hf:{CONFIGS / 'llama3-8b.json'}"
TRAIN = ("--seq", "4096", "--precision", "bf16", "--cluster")
PLANS: dict[str, tuple[str, ...]] = {
    "small": (f"hf:{CONFIGS / 'gpt2.json'}", "--global-batch", "64", *TRAIN, "8xh100"),
    "sharded": (LLAMA, "--global-batch", "64", *TRAIN, "8x8xh100"),
    "sixteen-stages": (
        *(LLAMA, "--global-batch", "512", *TRAIN, "16x8xh100", "--pin", "*:pp=16,tp=8"),
        *("--schedule", "1f1b", "--micro-batches", "256"),
    ),
    "interleaved": (
        *(f"hf:{CONFIGS / 'llama3.1-405b.json'}", "--global-batch", "2048", *TRAIN, "2048x8xh100"),
        *("--pin", "*:pp=16,zero1=128,tp=8,sp", "--schedule", "interleaved"),
    ),
    "experts": (
        *(f"hf:{CONFIGS / 'mixtral-8x7b.json'}", "--global-batch", "256", *TRAIN, "8x8xh100"),
        *("--pin", "*:pp=4,zero1=2,ep=8", "--schedule", "zb-h1"),
    ),
    "deepseek": (
        *(f"hf:{CONFIGS / 'deepseek-v3.json'}", "--global-batch", "3840", *TRAIN, "256x8xh100"),
        *("--pin", "*:pp=16,zero1=16,ep=8"),
    ),
    "compressed": (
        *(f"hf:{CONFIGS / 'gpt2.json'}", "--global-batch", "256", *TRAIN, "16x1xrtx4090@10"),
        *("--compress", "auto", "--quality", "all"),
    ),
    "mixed-cluster": (
        *(f"hf:{CONFIGS / 'gpt2.json'}", "--global-batch", "64", *TRAIN, "4xh100+8xa100-40"),
        *("--roles", "pp,dp"),
    ),
    "offload": (LLAMA, "--global-batch", "8", *TRAIN, "8xh100", "--memory", "30GiB"),
}
PLACED = ROOT / "examples" / "two_tower.py"


def write_pages(folder: Path) -> list[Path]:
    """Plan, place and view everything; the pages in the order of their names."""
    for name, (source, *options) in PLANS.items():
        batch = () if "gpt2" not in source else ("--seq", "1024")
        plan = str(folder / f"{name}.json")
        assert main(["plan", source, "--batch", "1", *options, *batch, "-o", plan]) == 0
        assert main(["view", plan]) == 0
    placed = str(folder / "placement.json")
    command = [
        "place",
        f"{PLACED}:make",
        "--devices",
        "4",
        "--memory",
        "4GiB",
        "--cluster",
        "4xh100",
    ]
    assert main([*command, "--time-limit", "2", "-o", placed]) in (0, 4)  # 4: time was up
    assert main(["view", placed]) == 0
    both = [str(folder / f"{name}.json") for name in ("small", "compressed")]
    assert main(["view", *both, "-o", str(folder / "two-plans.html")]) == 0
    third = str(folder / "offload.json")
    assert main(["view", *both, third, "-o", str(folder / "points.html")]) == 0
    return sorted(folder.glob("*.html"))


@pytest.fixture(scope="package")
def pages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_pages(tmp_path_factory.mktemp("pages"))
