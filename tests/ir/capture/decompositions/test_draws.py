"""Random operators draw what torch's own do: moments and quantiles of many numbers agree."""

import pytest
import torch
from torch import distributions, nn
from torch.nn import functional as F

from plait.ir.capture import trace
from plait.ir.capture.execute import execute

COUNT = 20_000
TOLERANCE = 0.03  # about four standard errors of 20,000 numbers


class Drawn(nn.Module):
    """Sums what is drawn, one column at a time, so that the loss shows every statistic."""

    def __init__(self, draw, statistic) -> None:
        super().__init__()
        self.draw, self.statistic = draw, statistic
        self.scale = nn.Parameter(torch.ones(1, dtype=torch.float64))

    def forward(self, x):
        return (self.statistic(self.draw(x).double()) * self.scale).sum()


STATISTICS = {
    "mean": lambda d: d.mean(),
    "spread": lambda d: (d - d.mean()).abs().mean(),
    "tail": lambda d: (d > 0.7).double().mean(),
}
DRAWS = {
    "rand": lambda x: torch.rand_like(x),
    "randn": lambda x: torch.randn(x.shape),
    "normal_": lambda x: torch.empty_like(x).normal_(0.2, 0.5),
    "normal": lambda x: torch.normal(x, 0.5),
    "uniform_": lambda x: torch.empty_like(x).uniform_(-1, 2),
    "exponential_": lambda x: torch.empty_like(x).exponential_(2.0),
    "geometric_": lambda x: torch.empty_like(x).geometric_(0.6),
    "log_normal_": lambda x: torch.empty_like(x).log_normal_(0.0, 0.25),
    "cauchy_": lambda x: torch.empty_like(x).cauchy_().clamp(-1, 1),
    "bernoulli": lambda x: torch.bernoulli(torch.full_like(x, 0.3)),
    "bernoulli_": lambda x: torch.empty_like(x).bernoulli_(0.8),
    "randint": lambda x: torch.randint(-2, 3, x.shape),
    "multinomial": lambda x: torch.multinomial(x[:, :3].exp(), 2),
    "replacing": lambda x: torch.multinomial(x[:, :3].exp(), 5, replacement=True),
    "randperm": lambda x: torch.randperm(x.shape[0]) / x.shape[0],
    "alpha_dropout": lambda x: F.alpha_dropout(x + 1, 0.4, True),
    "dropout1d": lambda x: F.dropout1d(x[:, None] + 1, 0.4, True),
    "rrelu": lambda x: F.rrelu(x - 1, training=True),
    "gamma": lambda x: distributions.Gamma(2 * x + 0.2, 2.0, False).sample() / 2,
    "beta": lambda x: distributions.Beta(x + 0.4, 0.7 + x, False).sample(),
    "gumbel": lambda x: F.gumbel_softmax(x, 0.5),
}


@pytest.mark.parametrize("name", DRAWS)
def test_the_numbers_are_distributed_as_those_of_torch(name: str) -> None:
    torch.manual_seed(0)
    batch = torch.rand(COUNT // 4, 4)
    for statistic in STATISTICS.values():
        module = Drawn(DRAWS[name], statistic)
        model = trace(module, batch)
        loss = execute(model, dict(module.named_parameters()), [batch], seed=5).loss
        assert float(loss) == pytest.approx(float(module(batch).detach()), abs=TOLERANCE)


def test_a_permutation_has_every_number_once() -> None:
    module = Drawn(lambda x: torch.randperm(7).double() * torch.randperm(7), lambda d: d.sum())
    model = trace(module, batch := torch.rand(4, 4))
    losses = {
        float(execute(model, dict(module.named_parameters()), [batch], seed=s).loss) for s in (0, 1)
    }
    assert len(losses) == 2
    assert all(loss <= sum(i * i for i in range(7)) for loss in losses)
