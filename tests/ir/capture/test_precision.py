"""A precision changes parameters and what follows them; casts that the user wrote stay."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from plait.ir.capture import trace
from plait.ir.capture.execute import execute
from plait.ir.errors import UsageError
from plait.ir.lowering.cast import cast_model, in_precision
from plait.tests.ir.capture import eager

WIDTH, CLASSES = 16, 11


class Norm(nn.Module):
    """A root-mean-square norm in float32, as most language models have it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x):
        given = x.dtype
        wide = x.to(torch.float32)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * wide.to(given)


class Turned(nn.Module):
    """Rotary angles in float32, a router in float32, and a loss in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up = Norm(), nn.Linear(WIDTH, WIDTH, bias=False)
        self.router = nn.Linear(WIDTH, 2, bias=False)
        self.head = nn.Linear(WIDTH, CLASSES, bias=False)

    def forward(self, x, y):
        places = torch.arange(x.shape[1], dtype=torch.float32)
        angles = places[:, None] * torch.linspace(0.1, 1.0, WIDTH, dtype=torch.float32)
        h = x * angles.cos().to(x.dtype)
        h = self.up(self.norm(h)) * self.router(h).softmax(-1, dtype=torch.float32)[..., :1].to(
            h.dtype
        )
        return F.cross_entropy(self.head(h).float().flatten(0, 1), y.flatten())


def make() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x, y = torch.randn(4, 8, WIDTH), torch.randint(0, CLASSES, (4, 8))
        return Turned(), {"x": x, "y": y}


def types_of(model, target: str) -> set[str]:
    return {
        f.types[op.results[0]].dtype for f in model.functions for op in f.ops if op.target == target
    }


def loss_in(model, module, batch) -> float:
    cast = {n: t.to(torch.bfloat16) if t.is_floating_point() else t for n, t in batch.items()}
    loss, gradients, _ = execute(model, eager.state_tensors(module), eager.tensors(model, cast))
    assert {g.dtype for g in gradients.values()} == {torch.bfloat16}
    expected = module(**cast)
    assert loss.dtype == expected.dtype == torch.float32
    assert abs(float(loss - expected.detach())) < 1e-5
    return float(loss)


def test_casts_stay_where_a_precision_is_asked_for() -> None:
    module, batch = make()
    traced = trace(module, batch, precision="bf16")
    assert {p.type.dtype for p in traced.parameters if p.kind != "constant"} == {"bfloat16"}
    assert types_of(traced, "aten.mm.default") == {"bfloat16"}
    for target in ("aten.rsqrt.default", "aten.cos.default", "plait.cross_entropy.default"):
        assert types_of(traced, target) == {"float32"}, target
    assert types_of(traced, "aten._softmax.default") == {"float32"}
    wide = loss_in(traced, copy.deepcopy(module).to(torch.bfloat16), batch)
    assert wide != float(torch.tensor(wide).to(torch.bfloat16))


def test_a_model_of_that_precision_is_left_as_it_is() -> None:
    module, batch = make()
    module = module.to(torch.bfloat16)
    module.router.float()
    module.router.register_forward_pre_hook(lambda m, given: (given[0].float(),))
    cast = {"x": batch["x"].to(torch.bfloat16), "y": batch["y"]}
    traced = trace(module, cast)
    assert traced == trace(module, cast, precision="bf16")
    assert traced.parameter("router.weight").type.dtype == "float32"
    assert in_precision(traced, "bf16") is traced
    half = in_precision(traced, "fp16")
    assert half.parameter("router.weight").type.dtype == "float32"
    assert half.parameter("up.weight").type.dtype == "float16"
    assert types_of(half, "aten.rsqrt.default") == {"float32"}


def test_verification_lifts_everything() -> None:
    module, batch = make()
    lifted = cast_model(trace(module, batch, precision="bf16"), "float64")
    floats = {t.dtype for f in lifted.functions for t in f.types if t.is_float}
    assert floats == {"float64"}


def test_an_unknown_precision() -> None:
    module, batch = make()
    with pytest.raises(UsageError, match="fp8"):
        trace(module, batch, precision="fp8")


class Numbers(nn.Module):
    """Numbers of Python: written into a row, and a complex one in a product."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2))

    def forward(self, x):
        row = torch.ones(3)
        row[-1] = 0.1
        turned = torch.view_as_complex(self.scale * x) * (0.3 + 1j)
        return (row * turned.real).sum()


def test_numbers_are_lifted_as_they_are_written() -> None:
    module, x = Numbers(), torch.randn(4, 3, 2)
    lifted, x = cast_model(trace(module, (x,)), "float64"), x.double()
    loss, gradients, _ = execute(lifted, eager.state_tensors(module.double()), [x])
    row = torch.tensor([1, 1, 0.1], dtype=torch.float64)
    exact = torch.stack([0.3 * (row * x[..., 0]).sum(), -(row * x[..., 1]).sum()])
    torch.testing.assert_close(gradients["scale"], exact, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(loss, exact.sum(), rtol=1e-14, atol=1e-14)
