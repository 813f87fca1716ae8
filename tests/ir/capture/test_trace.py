"""Executing a traced model gives the loss, gradients and buffers of the module itself."""

import msgspec
import pytest
import torch
from torch import nn

from plait.ir.capture import trace
from plait.tests import zoo
from plait.tests.ir.capture import eager
from plait.tests.sampling import some

FUNCTIONS = {
    "gpt2": ["data", "entry", "gpt2_block", "exit"],
    "llama": ["data", "entry", "llama_decoder_layer", "exit"],
    "bert": ["data", "entry", "bert_layer", "exit"],
    "vit": ["data", "entry", "vit_layer", "exit"],
    "t5": ["data", "entry", "t5_block", "t5_block_2", "middle", "t5_block_3", "t5_block_4", "exit"],
    "mixtral": ["data", "entry", "mixtral_decoder_layer", "exit"],
}


@pytest.mark.parametrize("name", some(zoo.ZOO, 7))
def test_same_numbers_as_the_module(name: str) -> None:
    torch.manual_seed(0)
    module, batch = zoo.ZOO[name](batch=2)
    module = eager.without_dropout(module).double()
    batch = eager.double(batch)
    if "labels" in batch and batch["labels"].dim() == 2:
        batch["labels"][0, 3:6] = -100
    model = trace(module, batch)
    loss, gradients, buffers = eager.run(model, module, batch)
    if zoo.KIND[name] == "mixture of experts":
        module.set_experts_implementation("eager")
    with eager.Lifted():
        expected = module(**batch).loss
    expected.backward()
    assert torch.allclose(loss, expected, rtol=1e-12, atol=0)
    assert max(eager.difference(gradients, module).values()) < 1e-10
    for buffer, value in buffers.items():
        torch.testing.assert_close(value, module.get_buffer(buffer), rtol=1e-10, atol=0)
    assert bool(buffers) == (name == "resnet")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_equal_layers_share_one_function(name: str) -> None:
    with torch.device("meta"):
        module, batch = getattr(zoo, name)(layers=3)
    model = trace(module.train(), batch)
    assert [f.name for f in model.functions] == FUNCTIONS[name]
    block = max(model.functions, key=lambda f: sum(c.function == f.name for c in model.calls))
    paths = [c.path for c in model.calls if c.function == block.name]
    assert len(paths) >= 2
    assert all(path.rpartition(".")[2].isdecimal() for path in paths)


def test_a_trace_is_deterministic_and_allocates_nothing() -> None:
    with torch.device("meta"):
        module, batch = zoo.llama()
    one, other = trace(module, batch), trace(module, batch)
    assert one == other
    assert msgspec.json.encode(one) == msgspec.json.encode(other)


def test_meta_and_real_models_trace_alike() -> None:
    real, batch = zoo.gpt2()
    with torch.device("meta"):
        meta, _ = zoo.gpt2()
    assert trace(real.train(), batch) == trace(meta.train(), batch)


def test_the_module_is_left_as_it_was() -> None:
    module, batch = zoo.resnet()
    module.train()

    def state() -> list[object]:
        return [
            (name, id(t), t._version, t.requires_grad)
            for name, t in [*module.named_parameters(), *module.named_buffers()]
        ] + [(m.training, len(m._forward_hooks), sorted(vars(m))) for m in module.modules()]

    before = state()
    trace(module, batch)
    assert state() == before


def test_a_batch_of_one_is_traced_as_two() -> None:
    module, batch = zoo.llama(batch=1)
    model = trace(module, batch)
    assert model.batch == 2
    assert [(i.type.shape, i.batched) for i in model.inputs] == [((2, 12), True)] * 2


def test_masks_of_a_causal_model_are_gone() -> None:
    """A causal mask is a property of attention, not a tensor."""
    module, batch = zoo.llama()
    model = trace(module, batch)
    ops = [op for f in model.functions for op in f.ops if op.target == "plait.attention.default"]
    assert [(op.args[3], op.args[5]) for op in ops] == [(None, True)]
    # key and value heads stay grouped
    block = model.function("llama_decoder_layer")
    q, k = (block.types[v].shape[1] for v in ops[0].operands()[:2])
    assert (q, k) == (8, 4)


def test_forward_operators_come_first_and_gradients_after() -> None:
    model = trace(zoo.gpt2()[0].train(), zoo.gpt2()[1])
    for function in model.functions:
        made = {r for op in function.forward_ops for r in op.results}
        given = {i.value for i in function.inputs}
        assert all(o.value in made | given for o in function.outputs)
        assert all(v in made | given for op in function.forward_ops for v in op.operands())
        tangents = {o.tangent for o in function.outputs if o.tangent is not None}
        assert bool(function.backward_ops) == bool(tangents)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.tanh(self.linear(x))


def mean_square(output: torch.Tensor, batch: object) -> torch.Tensor:
    return output.pow(2).mean()


def check(module: nn.Module, batch: dict[str, torch.Tensor], loss_fn=mean_square):
    module = module.double()
    model = trace(module, batch, loss_fn)
    loss, gradients, buffers = eager.run(model, module, batch)
    expected = loss_fn(module(**batch), batch)
    expected.backward()
    torch.testing.assert_close(loss, expected)
    assert max(eager.difference(gradients, module).values()) < 1e-10
    return model, buffers


def rows(name: str = "x") -> dict[str, torch.Tensor]:
    return {name: torch.randn(4, 8, dtype=torch.float64)}


def test_a_plain_sequence_is_cut_at_its_layers() -> None:
    class Stack(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Linear(8, 8)
            self.layers = nn.ModuleList(Residual() for _ in range(3))

        def forward(self, x):
            x = self.stem(x)
            for layer in self.layers:
                x = layer(x)
            return x

    model, _ = check(Stack(), rows())
    assert [c.function for c in model.calls] == ["entry", *["residual"] * 3, "exit"]
    assert [c.path for c in model.calls][1:4] == ["layers.0", "layers.1", "layers.2"]


def test_a_shared_layer_is_called_again() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Linear(8, 8)
            self.layers = nn.ModuleList([Residual()])

        def forward(self, x):
            return self.layers[0](self.layers[0](self.stem(x)))

    model, _ = check(Shared(), rows())
    assert [c.function for c in model.calls] == ["entry", "residual", "residual", "exit"]
    assert model.calls[1].parameters == model.calls[2].parameters


def test_a_first_layer_without_a_gradient_for_its_input_is_a_function_of_its_own() -> None:
    model, _ = check(nn.Sequential(Residual(), Residual(), Residual()), rows("input"))
    assert [c.function for c in model.calls][:3] == ["residual", "residual_2", "residual_2"]
    first = model.function("residual").activations()[0]
    assert first.gradient is None


def test_frozen_unused_and_tied_parameters() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frozen = nn.Linear(8, 8).requires_grad_(False)
            self.first = nn.Linear(8, 8)
            self.second = nn.Linear(8, 8)
            self.second.weight = self.first.weight
            self.unused = nn.Linear(8, 8)

        def forward(self, x):
            with torch.no_grad():
                fixed = torch.relu(self.first(x))
            return self.second(self.first(self.frozen(x))) + fixed

    model, _ = check(Mixed(), rows())
    by_name = {p.name: p for p in model.parameters}
    assert by_name["first.weight"].aliases == ("second.weight",)
    assert not by_name["frozen.weight"].trainable
    assert "unused.weight" in by_name


def test_writes_in_place_become_values() -> None:
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)
            self.register_buffer("count", torch.zeros((), dtype=torch.float64))

        def forward(self, x):
            y = self.linear(x)
            view = y[:, 2:4]
            y[:, 0] = 3.0
            view.mul_(2.0)
            y.t()[5].add_(view.sum())
            y.T[6] -= 1.0
            y.mT[7] *= 2.0
            w = y * 2
            y = w.transpose_(0, 1).t()
            w[1] += 1.0
            self.count.add_(y.detach().abs().max())
            z = torch.zeros_like(y)
            z[1:] = y[:-1]
            return z.relu_() + view.sum() + y

    module = Writes()
    model, buffers = check(module, rows())
    torch.testing.assert_close(buffers["count"], module.count)
    assert not any(op.target.split(".")[1].endswith("_") for f in model.functions for op in f.ops)


def test_constants_tuples_and_several_losses() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x, pair, scale=2.0):
            return (
                self.linear(x) * torch.tensor([1.0, 2.0] * 4).double() + pair[0]
            ).sum() * scale, x

    module = Constant().double()
    batch = (torch.randn(4, 8).double(), (torch.randn(8).double(), 7))
    model = trace(module, batch)
    assert [i.path for i in model.inputs] == [(0,), (1, 0)]
    assert [i.batched for i in model.inputs] == [True, False]
    loss, gradients, _ = eager.run(model, module, batch)
    expected = module(*batch)[0]
    expected.backward()
    torch.testing.assert_close(loss, expected)
    assert max(eager.difference(gradients, module).values()) < 1e-10


def test_tracing_under_no_grad_and_another_default_device() -> None:
    module, batch = zoo.llama()
    with torch.no_grad(), torch.device("meta"):
        inside = trace(module, batch)
    assert inside == trace(module, batch)


class Classes(nn.Module):
    """Scores of classes in the second dimension, made there or turned round."""

    def __init__(self, form: str, reduction: str) -> None:
        super().__init__()
        self.form, self.reduction = form, reduction
        self.scores = nn.Conv1d(4, 5, 1) if form == "made" else nn.Linear(4, 5)

    def forward(self, x, labels):
        scores = self.scores(x.transpose(1, 2) if self.form == "made" else x)
        if self.form == "turned":
            scores = scores.transpose(1, 2)
        if self.form == "pictures":
            scores, labels = scores.movedim(-1, 1).unflatten(2, (3, 2)), labels.unflatten(1, (3, 2))
        loss = nn.functional.cross_entropy(scores, labels, reduction=self.reduction)
        return (loss * torch.arange(6.0).view(loss.shape[1:])).sum() if loss.dim() else loss


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("form", ["made", "turned", "pictures"])
def test_cross_entropy_of_any_shape_is_one_operator(form: str, reduction: str) -> None:
    torch.manual_seed(0)
    module = Classes(form, reduction).double()
    batch = {"x": torch.randn(4, 6, 4).double(), "labels": torch.randint(5, (4, 6))}
    batch["labels"][0, 2:4] = -100
    model = trace(module, batch)
    names = {op.target for f in model.functions for op in f.ops}
    assert "plait.cross_entropy.default" in names
    assert not any("nll" in name for name in names)
    loss, gradients, _ = eager.run(model, module, batch)
    expected = module(**batch)
    expected.backward()
    assert torch.allclose(loss, expected, rtol=1e-12, atol=0)
    assert max(eager.difference(gradients, module).values()) < 1e-10
