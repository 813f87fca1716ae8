"""First values: the user's, or made by the module's own code, the same for every plan."""

import pytest
import torch
from torch import nn

from plait.ir.errors import MismatchError, UsageError
from plait.ir.model.tensor import TensorType
from plait.ir.plan.program import ParameterSpec
from plait.runtime.state.initialization import InitialValues


def spec(shape, kind="parameter", **rest) -> ParameterSpec:
    return ParameterSpec("x", kind, TensorType(shape, "float32"), (), (), (0,), True, **rest)


def tower() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 4))


def test_real_values_are_taken_as_they_are() -> None:
    module = tower()
    assert torch.equal(InitialValues(module).value("0.weight", spec((3, 4))), module[0].weight)


def test_meta_modules_are_made_by_their_own_code_in_any_order() -> None:
    with torch.device("meta"):
        module = tower()
    before = torch.random.get_rng_state()
    one, other = InitialValues(module, 3), InitialValues(module, 3)
    names = list(one.tensors)
    forwards = {n: one.tensor(n) for n in names}
    backwards = {n: other.tensor(n) for n in reversed(names)}
    assert all(torch.equal(forwards[n], backwards[n]) for n in names)
    assert not torch.equal(InitialValues(module, 4).tensor("0.weight"), forwards["0.weight"])
    assert torch.equal(forwards["1.weight"], torch.ones(3))
    assert forwards["0.weight"].abs().max() <= 0.5  # nn.Linear: uniform in 1 / sqrt(fan in)
    assert all(p.is_meta for p in module.parameters())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_hugging_face_modules_get_their_published_initialisation() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=48,
        vocab_size=96,
    )
    with torch.device("meta"):
        module = LlamaForCausalLM(config)
    initial, real = InitialValues(module), LlamaForCausalLM(config)
    for name, tensor in [*real.named_parameters(), *real.named_buffers()]:
        values = initial.tensor(name)
        assert values.shape == tensor.shape
        if tensor.ndim > 1:
            assert abs(float(values.std()) - config.initializer_range) < 0.005, name
        else:
            torch.testing.assert_close(values, tensor.detach())


def test_a_module_that_initialises_nothing_is_named() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.s = nn.Parameter(torch.ones(3))

    with torch.device("meta"):
        module = nn.Sequential(Scale())
    with pytest.raises(UsageError, match=r"0\.s \(Scale\).*reset_parameters"):
        InitialValues(module).tensor("0.s")


def test_another_model_is_refused() -> None:
    with pytest.raises(MismatchError, match=r"'0.weight' is \[3, 4\] in the module and \[3, 5\]"):
        InitialValues(tower()).value("0.weight", spec((3, 5)))
    with pytest.raises(MismatchError, match=r"'9.weight' of the program is not in the module"):
        InitialValues(tower()).value("9.weight", spec((3, 5)))


def test_constants_come_from_the_table() -> None:
    constant = spec((2, 1), "constant", values=(1.0, 2.5))
    assert InitialValues(tower()).value("c", constant).tolist() == [[1.0], [2.5]]
