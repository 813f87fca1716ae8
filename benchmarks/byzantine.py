"""Training with ranks that lie: held-out loss of every rule under three attacks.

Eight ranks (threads) train a classifier on samples of their own; two of them send what they like,
knowing all honest gradients. Rules are compression programs that tolerate two (`krum:drop=2`). Zeno
scores candidates on validation batches of the ranks, and takes the median over ranks.

    sign flip     minus three times its own gradient
    inner product minus half of the honest mean (Xie et al., Fall of empires)
    a little      the honest mean less a multiple of the deviation that hides among the others (Baruch et
                  al., A little is enough)
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor, nn

from plait.benchmarks.accuracy import table
from plait.ir.compression.registry import algorithm
from plait.runtime.comm.group_hierarchy import GroupHierarchy
from plait.runtime.compression.optimizers.wrapped import Averaged
from plait.runtime.compression.threads import run_ranks

RANKS, LIARS, STEPS, WIDTH, CLASSES, SAMPLES, RATE = 8, 2, 60, 16, 4, 16, 0.2
RULES = {
    "mean": "bf16",
    "trimmed mean": "trimmed-mean:drop=2",
    "median": "median",
    "phocas": "phocas:drop=2",
    "krum": "krum:drop=2",
    "zeno": "zeno:drop=2",
}


def sign_flip(honest: Tensor, own: Tensor) -> Tensor:
    return -3 * own


def inner_product(honest: Tensor, own: Tensor) -> Tensor:
    return -0.5 * honest.mean(0)


def a_little(honest: Tensor, own: Tensor) -> Tensor:
    """As far from the mean as enough honest ranks are themselves to make up a majority with liars."""
    supporters = RANKS // 2 + 1 - LIARS
    far = NormalDist().inv_cdf((RANKS - LIARS - supporters) / (RANKS - LIARS))
    return honest.mean(0) - max(far, 0.5) * honest.std(0)


Attack = Callable[[Tensor, Tensor], Tensor]
ATTACKS: dict[str, Attack] = {
    "sign flip": sign_flip,
    "inner product": inner_product,
    "a little": a_little,
}


def samples(seed: int, count: int) -> tuple[Tensor, Tensor]:
    """Points around the centres of their classes."""
    draw = torch.Generator().manual_seed(seed)
    centres = torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(1))
    labels = torch.randint(CLASSES, (count,), generator=draw)
    return centres[labels] + 1.5 * torch.randn(count, WIDTH, generator=draw), labels


def network() -> nn.Module:
    draw = torch.Generator().manual_seed(2)
    module = nn.Sequential(nn.Linear(WIDTH, 32), nn.Tanh(), nn.Linear(32, CLASSES))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.2)
    return module


def train(rule: str, attack: Attack | None, levels: GroupHierarchy) -> float:
    """Held-out loss after training on one rank; the last ranks lie."""
    module, rank = network(), levels.all.index
    parameters = list(module.parameters())

    def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(module(batch[0]), batch[1])

    check = samples(10_000 + rank, 4 * SAMPLES)
    arguments: dict[str, Any] = {"base": torch.optim.SGD, "small_bytes": 0}
    optimizer = Averaged(parameters, levels, RATE, program=algorithm(RULES[rule]), **arguments)
    optimizer.validate = lambda: float(loss(check))
    for step in range(STEPS):
        optimizer.zero_grad()
        loss(samples(RANKS * step + rank, SAMPLES)).backward()
        if attack is not None:
            lie(parameters, attack, levels)
        optimizer.step()
    with torch.no_grad():
        return float(loss(samples(99, 2_000)))


def lie(parameters: list[nn.Parameter], attack: Attack, levels: GroupHierarchy) -> None:
    """Replace the gradients of the last ranks by what they send."""
    for parameter in parameters:
        assert parameter.grad is not None
        rows = levels.all.all_gather(parameter.grad.clone())
        if levels.all.index >= RANKS - LIARS:
            parameter.grad = attack(rows[: RANKS - LIARS], parameter.grad)


def new_sample_loss(rule: str, attack: str) -> float:
    """Loss of a rule under an attack, or with honest ranks alone where it is empty."""
    torch.set_num_threads(1)
    return run_ranks(partial(train, rule, ATTACKS.get(attack)), RANKS)[0]


def main(arguments: list[str]) -> int:
    argparse.ArgumentParser(description=__doc__).parse_args(arguments)
    attacks = ("", *ATTACKS)
    rows = [
        [rule, *(f"{new_sample_loss(rule, attack):.3f}" for attack in attacks)] for rule in RULES
    ]
    print(table(["rule", "honest", *ATTACKS], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
