"""What a plan names as its model: data is read again, code is run only where a person names it."""

import pytest

from plait.api.formats.model_source import ModelSource
from plait.api.plans.plan_model import model_of_plan
from plait.ir.errors import UsageError
from plait.tests.paths import ROOT

CONFIG = ROOT / "examples" / "configs" / "gpt2.json"


@pytest.mark.parametrize(
    ("source", "is_data"),
    [
        ("model.json", True),
        (f"hf:{CONFIG}", True),
        ("hf:openai-community/gpt2", False),
        ("hf:missing.json", False),
        ("train.py:make", False),
    ],
)
def test_data_and_code(source, is_data):
    assert ModelSource(source).is_data is is_data


class Named:
    source = str(ModelSource("train.py:make"))


def test_a_plan_of_code_asks_for_its_model():
    with pytest.raises(UsageError, match=r"name it with --model .*train\.py:make"):
        model_of_plan(Named, None, None, None)  # pyright: ignore[reportArgumentType]
