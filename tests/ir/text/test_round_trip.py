"""What is printed is read back, whatever the value holds; what is broken says line and column."""

import random

import pytest
from hypothesis import given, settings

from plait.ir.errors import FileError
from plait.ir.text.function import parse_function, parse_halves, print_function, print_halves
from plait.ir.text.model import parse_model, print_model
from plait.ir.text.sharding import parse_sharding, print_sharding
from plait.tests.ir.text import drawn
from plait.tests.ir.text.lines import without_lines

few = settings(max_examples=40, deadline=None, derandomize=True)
ZOO = ("gpt2", "mixtral", "t5", "convnext", "resnet", "mamba")


@few
@given(drawn.functions())
def test_any_function(function):
    assert parse_function(print_function(function, "a note")) == function


@few
@given(drawn.halves())
def test_any_halves(drawn_halves):
    halves, types = drawn_halves
    assert parse_halves(print_halves(halves, types)) == halves


@few
@given(drawn.models)
def test_any_model(model):
    assert parse_model(print_model(model)) == model


@few
@given(drawn.shardings())
def test_any_sharding(sharding):
    assert parse_sharding(print_sharding(sharding)) == sharding


@pytest.mark.parametrize("name", ZOO)
def test_models_of_the_zoo(traced, name):
    model = without_lines(traced(name))
    text = print_model(model)
    assert parse_model(text) == model
    assert print_model(parse_model(text)) == text


FUNCTION = """function linear
  parameter %0 w : f32[4 4] gradient %4
  activation %1 x : f32[4 4]
  %2 = aten.mm.default %1 %0 : f32[4 4]  @layer
  output %2 tangent %3 : f32[4 4]
  backward
  %4, _ = aten.sum.dim %3 [0 -1] true dtype=dtype:float32 : f32[4 4]
"""


def test_the_example_of_the_grammar():
    assert print_function(parse_function(FUNCTION)) + "\n" == FUNCTION


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ("function linear", "", "line 2, column 3: 'function' expected, not 'parameter'"),
        ("%0 w", "w", "line 2, column 13: a value such as %3 expected, not 'w'"),
        ("f32[4 4] gradient", "f32[4 x] gradient", "line 2, column 26: a size expected, not 'x'"),
        ("%1 x : f32", "%0 x : f32", "line 3, column 21: %0 is defined already"),
        ("aten.mm.default", "", "line 4, column 9: an operator expected, not '%1'"),
        ("  @layer", "  @", "line 4, column .*: a module path expected, not the end of the line"),
        ("[0 -1]", "[0 -1", "line 7, column 27: nothing closes"),
        ("[0 -1]", "0 -1]", "line 7, column .*: ']' closes nothing"),
        ("dtype=dtype:float32", "dtype=dtype:float32 1", "a keyword argument expected, not '1'"),
        ("dtype=dtype:float32", "dtype=1 dtype=2", "dtype is given already"),
        ("true", "1e999", "a number within a double expected"),
        ("true", "9" * 30, "at most 20 digits"),
        ("%4, _", "%5, _", r"the function's values skip %4"),
        ("true", "§", "line 7, column .*: '§ dtype=.* is no token"),
    ],
)
def test_what_is_broken_says_where(before, after, says):
    with pytest.raises(FileError, match=says):
        parse_function(FUNCTION.replace(before, after, 1))


def refusal(text: str) -> str:
    """The error of a text, or nothing where it is read."""
    try:
        parse_function(text)
    except FileError as error:
        return str(error)
    return ""


def test_random_changes_are_read_or_refused():
    dice, marks = random.Random(0), ('"', "[", "]", "%", "\n", "", "9", "é", "\\")
    refusals = []
    for _ in range(500):
        text = list(FUNCTION)
        for _ in range(dice.randint(1, 3)):
            at = dice.randrange(len(text))
            text[at : at + dice.randint(0, 4)] = dice.choice(marks)
        refusals.append(refusal("".join(text)))
    assert all(r.startswith("line ") for r in refusals if r)
    assert len([r for r in refusals if r]) > 300
