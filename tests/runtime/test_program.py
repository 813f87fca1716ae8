"""Programs on real gloo ranks compute what one process computes."""

import subprocess
import sys
from pathlib import Path

import pytest

from plait.tests.ranks import launch
from plait.tests.sampling import some

HERE = Path(__file__).parent


@pytest.mark.ranks
@pytest.mark.parametrize("share", some([3, 1], 2))
def test_every_role_computes_the_same_as_one_process(share: int, tmp_path: Path) -> None:
    target = [str(HERE / "toy_worker.py"), str(tmp_path), str(share)]
    outputs = launch(4, target, timeout_seconds=180)
    assert [o.split() for o in outputs] == [["done", str(rank)] for rank in range(4)]


def test_a_rank_starts_without_what_only_tracing_and_checkpoints_need() -> None:
    """Imports of a rank cost at most half of what `import torch` does; these would double it."""
    heavy = {"sympy", "torch.distributed.checkpoint", "torch.distributed.tensor", "transformers"}
    code = f"import sys, plait.runtime.program; print(*{heavy!r} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not done.stdout.split()
