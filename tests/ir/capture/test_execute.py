"""Operator names and literals from a file: only what torch registered, never evaluated."""

import pytest
import torch
from torch import nn

from plait.codegen.function import statement
from plait.ir.capture.execute import run_op, run_ops
from plait.ir.capture.literals import decode, encode
from plait.ir.capture.resolve import resolve
from plait.ir.errors import FileError
from plait.ir.model.model import Op, Ref


def test_known_operators_resolve() -> None:
    assert resolve("aten.mm.default") is torch.ops.aten.mm.default
    assert resolve("plait.dropout.default") is torch.ops.plait.dropout.default


@pytest.mark.parametrize(
    "target",
    [
        "aten.mm",
        "aten.no_such.default",
        "aten.mm.no_such",
        "os.system.default",
        "",
        "aten..default",
        "aten.mm.default\n",
        "aten.__class__.default",
        "aten.mm.__class__",
        "load_library.x.y",
        "__import__('os').system.default",
        "aten.mm.default.x",
        "\uff41ten.mm.default",
    ],
)
def test_everything_else_is_refused(target: str) -> None:
    with pytest.raises(FileError, match="registered"):
        resolve(target)


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        0.5,
        "mean",
        float("inf"),
        float("-inf"),
        2 - 1j,
        torch.float32,
        torch.bfloat16,
        torch.contiguous_format,
        [1, 2, [3, -1.5]],
    ],
)
def test_literals_round_trip(value) -> None:
    assert decode(encode(value, lambda _: None), lambda v: v) == value


@pytest.mark.parametrize(
    "text", ["dtype:no", "memory_format:__class__", "float:1e9", "dtype:", "complex:exit()"]
)
def test_unknown_literals_are_refused(text: str) -> None:
    with pytest.raises(FileError):
        decode(text, lambda v: v)


def test_values_are_freed_after_their_last_use() -> None:
    alive = []

    class Watched(dict):
        def pop(self, key, *rest):
            alive.append(key)
            return super().pop(key, *rest)

    ops = [
        Op("aten.neg.default", (Ref(0),), {}, (1,)),
        Op("aten.neg.default", (Ref(1),), {}, (2,)),
        Op("aten.topk.default", (Ref(2), 1), {}, (3, -1)),
    ]
    made = run_ops(ops, {0: torch.arange(4.0)}, [3])
    assert made.keys() == {3}
    assert made[3].item() == 3.0


def test_kernels_that_read_gaps_are_handed_memory_without_them() -> None:
    """In what runs here, and in what is generated (`tests/ir/ops`: which operators these are)."""
    sizes = (None, 2, 4, 9, 2)
    forward = Op("aten.native_group_norm.default", (Ref(0), None, *sizes, 1e-5), {}, (1, 2, 3))
    x = torch.randn(2, 8, 3, 3).to(memory_format=torch.channels_last)[:, :4]
    expected = nn.functional.group_norm(x.contiguous(), 2)
    torch.testing.assert_close(run_op(forward, lambda _: x)[0], expected)
    text = "".join(statement(forward, {n: f"v{n}" for n in range(4)}))
    assert "(v0.contiguous(), None" in text.replace("\n", "")
