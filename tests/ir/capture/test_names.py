"""Names of modules, parameters, buffers and batch keys are data: nothing in them ever runs."""

import msgspec
import pytest
import torch
from torch import nn

from plait.ir.capture import trace
from plait.ir.capture.execute import execute

PAYLOAD = 'a", None) or getattr(__import__("os"), "mkdir")("{}") or getattr(self, "b'
NAMES = [
    PAYLOAD,
    "two\nlines",
    "'quote\"",
    '"""',
    "ключ",
    "class",
    "__import__('os')",
    "a b",
    "\\",
    "{x}",
    "%s",
]


class Weird(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.table = nn.ModuleDict({name: nn.Linear(8, 8, bias=False)})
        self.add_module(name, nn.Linear(8, 8))
        self.register_parameter(name + "p", nn.Parameter(torch.ones(8)))
        self.register_buffer(name + "b", torch.ones(8))
        self.name = name

    def forward(self, **batch: torch.Tensor) -> torch.Tensor:
        x = getattr(self, self.name)(self.table[self.name](batch[self.name]))
        return (x * getattr(self, self.name + "p") + getattr(self, self.name + "b")).sum()


@pytest.mark.parametrize("name", NAMES)
def test_hostile_names_are_kept_as_data(name: str, tmp_path) -> None:
    target = tmp_path / "made by the payload"
    name = name.replace("{}", str(target)) if name is PAYLOAD else name
    module = Weird(name)
    batch = {name: torch.randn(4, 8)}
    model = trace(module, batch)
    assert not target.exists()
    assert [p.name for p in model.parameters] == [
        *(n for n, _ in module.named_parameters()),
        name + "b",
    ]
    state_tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    loss, _, _ = execute(model, {n: t.detach() for n, t in state_tensors.items()}, [batch[name]])
    torch.testing.assert_close(loss, module(**batch).detach())
    assert not target.exists()


@pytest.mark.parametrize("name", NAMES)
def test_names_that_may_reach_source_are_identifiers(name: str) -> None:
    module = Weird(name)
    model = trace(module, {name: torch.randn(4, 8)})
    generated = [f.name for f in model.functions]
    generated += [i.name for f in model.functions for i in f.inputs]
    generated += [i.name for i in model.inputs]
    generated += [r for c in model.calls for r in (*c.results, *c.arguments)]
    assert all(identifier.isidentifier() and identifier.isascii() for identifier in generated)
    scopes = {op.scope for f in model.functions for op in f.ops}
    assert all(set(s) <= set("._") or s.replace(".", "").isidentifier() for s in scopes)


def test_a_class_may_be_called_anything() -> None:
    strange = type("class; import os\n", (nn.Linear,), {})
    module = nn.Sequential(strange(8, 8), strange(8, 8), nn.Flatten(0))

    model = trace(module, torch.randn(4, 8), lambda output, batch: output.sum())
    assert all(f.name.isidentifier() for f in model.functions)
    assert msgspec.json.encode(model)


class TwoKinds(nn.Module):
    """Layers with angles of two kinds, which are computed in an order that a set may have."""

    def __init__(self, order: tuple[str, ...]) -> None:
        super().__init__()
        self.order, self.layers = order, nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        for kind in ("near", "far"):
            self.register_buffer(kind, torch.rand(4))

    def forward(self, x):
        place = torch.arange(x.shape[0])[:, None]
        angles = {kind: (place * getattr(self, kind)).cos() for kind in self.order}
        for layer, kind in zip(self.layers, ("near", "far"), strict=True):
            x = layer(x) * angles[kind]
        return x.mean()


def test_the_order_of_a_set_changes_no_fingerprint() -> None:
    x = torch.randn(4, 4)
    traces = [trace(TwoKinds(order), x) for order in (("near", "far"), ("far", "near"))]
    assert traces[0].fingerprint() == traces[1].fingerprint()
