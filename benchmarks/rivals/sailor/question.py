"""What a scenario asks: a fleet, an objective, and its limits."""

from __future__ import annotations

from math import inf
from pathlib import Path
from typing import NamedTuple

import msgspec

from plait.benchmarks.rivals.sailor.judge import Fleet
from plait.benchmarks.rivals.sailor.quick_prices import Price


class Score(NamedTuple):
    """How good a plan is, smaller first: how far it breaks a limit, then its objective."""

    violation: float
    value: float


WORST = Score(inf, inf)


class Scenario(msgspec.Struct, frozen=True):
    """One row of `scenarios.json`."""

    scenario: str
    model: str
    fleet: Fleet
    objective: str  # throughput, or usd_per_step
    max_usd_per_step: float | None = None
    min_steps_per_s: float | None = None

    @property
    def limits_dollars(self) -> bool:
        """Whether dollars count."""
        return self.objective != "throughput" or self.max_usd_per_step is not None

    def score(self, price: Price) -> Score:
        violation = 0.0
        if self.max_usd_per_step is not None:
            violation = max(violation, price.dollars / self.max_usd_per_step - 1)
        if self.min_steps_per_s is not None:
            violation = max(violation, price.seconds * self.min_steps_per_s - 1)
        value = price.seconds if self.objective == "throughput" else price.dollars
        return Score(violation, value)

    @property
    def zones(self) -> list[str]:
        return [zone for zone, gpus in self.fleet.items() if any(gpus.values())]

    @property
    def mixed(self) -> bool:
        """Whether the fleet has several kinds of GPU."""
        return len({gpu for gpus in self.fleet.values() for gpu, n in gpus.items() if n}) > 1


def read_scenarios(folder: Path) -> list[Scenario]:
    return msgspec.json.decode((folder / "scenarios.json").read_bytes(), type=list[Scenario])


def steps_down(samples: int, micro_batch: int, most: int) -> list[int]:
    """Numbers of replicas up to `most` at which the number of micro-batches changes, descending.

    Between two of them more replicas take as long: the last micro-batches are partly empty.
    """
    steps = list[int]()
    replicas = most
    while replicas >= 1:
        micro_batches = -(-samples // (micro_batch * replicas))
        least = -(-samples // (micro_batch * micro_batches))
        steps.append(least)
        replicas = least - 1
    return steps
