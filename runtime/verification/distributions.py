"""What torch's random operators draw, in terms of uniform numbers: the judge's own formulas.

They follow the definitions of the distributions, and share no code with what traces are made of.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

ATEN = torch.ops.aten
Of = Callable[..., Tensor]


def _same(result: Tensor, args: Any) -> Sequence[int]:
    return result.shape


def _of_chances(result: Tensor, args: Any) -> Sequence[int]:
    """One number per category, or per draw where draws are independent."""
    independent = len(args) > 2 and args[2] and args[1] != 1
    return result.shape if independent else args[0].shape


class Distribution(NamedTuple):
    """`of(u, *arguments)`: what is drawn; `shape`: of u, by the result and the arguments."""

    of: Of
    shape: Callable[[Tensor, Any], Sequence[int]] = _same


def _normal(u: Tensor, mean: Any = 0.0, deviation: Any = 1.0) -> Tensor:
    return math.sqrt(2.0) * torch.erfinv(2.0 * u - 1.0) * deviation + mean


def _integers(u: Tensor, low: int, high: int) -> Tensor:
    return (torch.floor(u.double() * (high - low)) + low).long()


def _categories(u: Tensor, chances: Tensor, count: int, again: bool = False, *_: Any) -> Tensor:
    if not again or count == 1:
        return torch.topk(chances / -torch.log(u), count, -1).indices
    steps = torch.cumsum(chances, -1)
    return (steps.unsqueeze(-2) <= (u * steps[..., -1:]).unsqueeze(-1)).sum(-1)


def _slope(
    u: Tensor, x: Tensor, noise: Tensor, low: float = 1 / 8, high: float = 1 / 3, *_: Any
) -> Tensor:
    noise.copy_(torch.where(x <= 0, low + (high - low) * u, 1.0))  # backward reads it
    return x * noise


ROUNDS = 8


def _of_gamma(result: Tensor, args: Any) -> Sequence[int]:
    return (2 * ROUNDS + 1, *result.shape)


def _gamma(u: Tensor, concentration: Tensor, *_: Any) -> Tensor:
    """Marsaglia and Tsang (2000): the first of `ROUNDS` proposals that is accepted."""
    d = torch.where(concentration < 1, concentration + 1, concentration) - 1 / 3
    drawn, open_ = d.clone(), torch.ones_like(d, dtype=torch.bool)
    for x, chance in zip(_normal(u[:ROUNDS]), u[ROUNDS : 2 * ROUNDS], strict=True):
        v = (1 + x / (9 * d).sqrt()) ** 3
        accepted = open_ & (v > 0) & (chance.log() < x**2 / 2 + d * (1 - v + v.log()))
        drawn, open_ = torch.where(accepted, d * v, drawn), open_ & ~accepted
    return torch.where(concentration < 1, drawn * u[-1] ** (1 / concentration), drawn)


def _dirichlet(u: Tensor, concentration: Tensor, *_: Any) -> Tensor:
    drawn = _gamma(u, concentration)
    return drawn / drawn.sum(-1, keepdim=True)


DISTRIBUTIONS: dict[Any, Distribution] = {
    ATEN.rand.default: Distribution(lambda u, *_: u),
    ATEN.rand_like.default: Distribution(lambda u, *_: u),
    ATEN.uniform_.default: Distribution(lambda u, x, a=0.0, b=1.0: a + (b - a) * u),
    ATEN.randn.default: Distribution(lambda u, *_: _normal(u)),
    ATEN.randn_like.default: Distribution(lambda u, *_: _normal(u)),
    ATEN.normal_.default: Distribution(lambda u, x, *numbers: _normal(u, *numbers)),
    ATEN.normal.Tensor_float: Distribution(lambda u, *numbers: _normal(u, *numbers)),
    ATEN.normal.float_Tensor: Distribution(lambda u, *numbers: _normal(u, *numbers)),
    ATEN.normal.Tensor_Tensor: Distribution(lambda u, *numbers: _normal(u, *numbers)),
    ATEN.normal.float_float: Distribution(
        lambda u, mean, deviation, _: _normal(u, mean, deviation)
    ),
    ATEN.log_normal_.default: Distribution(lambda u, x, m=1.0, d=2.0: _normal(u, m, d).exp()),
    ATEN.exponential_.default: Distribution(lambda u, x, rate=1.0: -torch.log(u) / rate),
    ATEN.cauchy_.default: Distribution(
        lambda u, x, m=0.0, w=1.0: m + w * torch.tan(math.pi * u - math.pi / 2)
    ),
    ATEN.geometric_.default: Distribution(lambda u, x, p: torch.ceil(u.log() / math.log1p(-p))),
    ATEN.bernoulli.default: Distribution(lambda u, p, *_: (u < p).to(p.dtype)),
    ATEN.bernoulli.p: Distribution(lambda u, x, p=0.5: (u < p).to(x.dtype)),
    ATEN.bernoulli_.float: Distribution(lambda u, x, p=0.5: (u < p).to(x.dtype)),
    ATEN.bernoulli_.Tensor: Distribution(lambda u, x, p: (u < p).to(x.dtype)),
    ATEN.randint.default: Distribution(lambda u, high, *_: _integers(u, 0, high)),
    ATEN.randint.low: Distribution(lambda u, low, high, *_: _integers(u, low, high)),
    ATEN.randint_like.default: Distribution(lambda u, x, high: _integers(u, 0, high)),
    ATEN.randint_like.low_dtype: Distribution(lambda u, x, low, high: _integers(u, low, high)),
    ATEN.random_.to: Distribution(lambda u, x, high: _integers(u, 0, high)),
    getattr(ATEN.random_, "from"): Distribution(lambda u, x, low, high: _integers(u, low, high)),
    ATEN.randperm.default: Distribution(lambda u, _: torch.argsort(u)),
    ATEN.multinomial.default: Distribution(_categories, _of_chances),
    ATEN._standard_gamma.default: Distribution(_gamma, _of_gamma),
    ATEN._sample_dirichlet.default: Distribution(_dirichlet, _of_gamma),
    ATEN.rrelu_with_noise.default: Distribution(_slope),
}
