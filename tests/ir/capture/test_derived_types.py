"""Types of a model are those that torch derives from its operators, declared or not."""

import msgspec
import pytest
import torch
from torch import Tensor, nn

from plait.ir.capture import trace
from plait.ir.capture.sources.derived_types import verify_types
from plait.ir.errors import FileError, TraceError
from plait.ir.lowering.cast import in_precision, with_half
from plait.ir.model.model import Function, Model, Op, Ref
from plait.ir.model.tensor import TensorType


def changed(model: Model, position: int, **fields) -> Model:
    """The model with another type for the first result of an operator of its first function."""
    function: Function = model.functions[0]
    value = function.ops[position].results[0]
    types = list(function.types)
    types[value] = msgspec.structs.replace(types[value], **fields)
    other = msgspec.structs.replace(function, types=tuple(types))
    return msgspec.structs.replace(model, functions=(other, *model.functions[1:]))


@pytest.mark.parametrize("name", ["gpt2", "mixtral"])
def test_a_traced_model_has_the_types_of_its_operators(traced, name: str) -> None:
    verify_types(traced(name))


def test_an_element_type_that_no_operator_gives_is_refused(traced) -> None:
    model = traced("gpt2")
    refused = 0
    for position in range(len(model.functions[0].ops)):
        with pytest.raises(FileError, match=r"^\$\.functions\[0\]\.ops\[\d+\]: "):
            verify_types(changed(model, position, dtype="int16"))
        refused += 1
    assert refused > 5


def test_an_operator_that_nobody_declared_is_derived_too(traced) -> None:
    op = Op("aten.frexp.Tensor", (Ref(0),), {}, (1, 2))
    float32, int32 = TensorType((2, 3), "float32"), TensorType((2, 3), "int32")
    for types in ((float32, float32, int32), (float32,) * 3):
        function = msgspec.structs.replace(traced("gpt2").functions[0], ops=(op,), types=types)
        model = msgspec.structs.replace(traced("gpt2"), functions=(function,))
        if types[2] == int32:
            verify_types(model)
        else:
            with pytest.raises(FileError, match=r"aten.frexp.Tensor gives .*i(nt)?32\[2 3\]"):
                verify_types(model)


class Rotated(nn.Module):
    """Runs in float32 alone: it makes a tensor of that type whatever its own is."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return (self.map(x) @ torch.eye(4)).sum()


def test_a_product_of_two_element_types_is_refused_and_none_is_written() -> None:
    def traced_in(precision: str | None) -> Model:
        return trace(Rotated(), {"x": torch.ones(2, 4)}, precision=precision)

    with pytest.raises(TraceError, match=r"torch\.eye.*matmul of bfloat16 and float32"):
        traced_in("bf16")
    in_file = with_half(traced_in(None), traced_in)
    assert in_file.half is None
    verify_types(in_precision(in_file, "bf16"))
