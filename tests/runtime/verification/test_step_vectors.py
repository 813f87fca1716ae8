"""What a step of an optimizer takes beside its states is counted."""

import pytest
import torch
from torch import nn

from plait.runtime.state.optimizer import OptimizerRequest
from plait.runtime.verification.step_vectors import UNKNOWN, step_vectors

NAMED = [("w", nn.Parameter(torch.zeros(300, 7))), ("b", nn.Parameter(torch.zeros(5)))]


@pytest.mark.parametrize(
    ("factory", "arguments", "vectors"),
    [
        (torch.optim.AdamW, {}, 0),
        (torch.optim.AdamW, {"fused": False}, 3),
        (torch.optim.Adam, {"weight_decay": 0.1, "fused": False}, 4),
        (torch.optim.SGD, {"lr": 0.1}, 0),
        (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1, "fused": False}, 1),
        (torch.optim.Adagrad, {}, 2),
    ],
)
def test_vectors_of_a_step(factory, arguments, vectors) -> None:
    assert step_vectors(OptimizerRequest(factory, arguments), NAMED) == vectors
    instance = factory([p for _, p in NAMED], **arguments)
    assert step_vectors(OptimizerRequest(instance), NAMED) == vectors


def test_what_cannot_be_tried_counts_as_greedy() -> None:
    def refusing(parameters):
        raise ValueError

    assert step_vectors(OptimizerRequest(refusing), NAMED) == UNKNOWN
    assert 3 < step_vectors(OptimizerRequest(torch.optim.RAdam), NAMED) < UNKNOWN
