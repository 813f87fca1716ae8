"""Galvatron's artifact written anew, against what the artifact's own code predicts (samples/s)."""

import pytest

from plait.benchmarks.rivals.galvatron_2022 import MODELS, divide, search, strategies
from plait.tests.sampling import some

PREDICTED = {
    "bert-huge": (7.945, 11.767, 15.057, 17.455),
    "vit-huge": (37.73, 53.31, 67.54, 75.43),
    "t5-large": (None, 7.273, 8.558, 10.975),
    "swin-huge": (34.11, 44.75, 56.60, 63.78),
}
CASES = [
    (name, gib, predicted)
    for name, row in PREDICTED.items()
    for gib, predicted in zip((8, 12, 16, 20), row, strict=True)
]
QUICK = [case for case in CASES if case[1] == 8]


@pytest.mark.parametrize("case", some(QUICK, 2))
def test_its_predictions_are_the_artifacts(case):
    name, gib, predicted = case
    plan = search(name, gib)
    assert (plan and plan.throughput) == (predicted and pytest.approx(predicted, rel=1e-3))


@pytest.mark.long
@pytest.mark.parametrize("case", [case for case in CASES if case not in QUICK])
def test_all_its_predictions_are_the_artifacts(case):
    test_its_predictions_are_the_artifacts(case)


def test_its_strategies_are_the_published_22():
    assert len(strategies()) == len(set(strategies())) == 22


def test_stages_have_all_layers():
    for model in MODELS.values():
        for stages in (1, 2, 4, 8):
            assert sum(divide(model, stages, 16)) == sum(k.layers for k in model.kinds)
