"""Packed sequences of unequal lengths, beside torch's own recurrent networks."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from plait.tests.ir.capture.judged import agrees, make, refused
from plait.tests.sampling import some

STEPS, SAMPLES, WIDTH = 5, 3, 4


class Packed(nn.Module):
    """The last states, the padded outputs and the mean of all steps of a network on packed steps."""

    def __init__(self, network: Callable[..., nn.Module], batch_first: bool = True, **options):
        super().__init__()
        self.first, self.padded_to = batch_first, options.pop("padded_to", None)
        self.network = network(WIDTH, WIDTH, batch_first=batch_first, **options)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        x = x if self.first else x.transpose(0, 1)
        packed = pack_padded_sequence(x, lengths, self.first, enforce_sorted=False)
        out, states = self.network(packed)
        last = states[0] + states[1] if isinstance(states, tuple) else states
        padded, _ = pad_packed_sequence(out, self.first, total_length=self.padded_to)
        return last.square().sum() + padded.tanh().sum() + out.data.square().mean()


def steps(*lengths: int) -> dict[str, Tensor]:
    x = torch.randn(SAMPLES, STEPS, WIDTH, dtype=torch.float64)
    return {"x": x, "lengths": torch.tensor(lengths)}


@pytest.mark.parametrize(
    "case",
    some(
        [
            (nn.LSTM, {"num_layers": 2, "bidirectional": True}),
            (nn.GRU, {"batch_first": False}),
            (nn.RNN, {"nonlinearity": "relu", "bias": False}),
            (nn.LSTM, {"padded_to": 7}),
        ],
        4,
    ),
)
def test_packed_sequences_are_what_torch_computes(case) -> None:
    network, options = case
    agrees(make(lambda: Packed(network, **options)), steps(3, 5, 1))


def test_a_padded_length_that_the_batch_would_decide_is_refused() -> None:
    refused(make(lambda: Packed(nn.LSTM)), steps(3, 4, 1), "total_length", at=Packed.forward)
