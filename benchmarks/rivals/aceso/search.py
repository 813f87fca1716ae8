"""Search for Aceso's problem: the split with the fastest slowest stage, then single operators.

Stages are priced between up to `POSITIONS` operators for every number of GPUs and of later stages;
a dynamic program from the end gives the fastest slowest stage for every number of stages. The
boundaries then move by operators, with exact recomputation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, pairwise
from math import inf

import msgspec
import numpy as np
from numpy.typing import NDArray

from plait.benchmarks.rivals.aceso.boundaries import SplitTimes, alternated, lowered
from plait.benchmarks.rivals.aceso.plan import AcesoPlan
from plait.benchmarks.rivals.aceso.profile import AcesoModel, Reals, Setting
from plait.benchmarks.rivals.aceso.stage_tables import tables
from plait.benchmarks.rivals.aceso.stage_times import SLACK, Place, StageTimes, windows

POSITIONS = 110  # where a stage may end at first
SIZES = (1, 2, 4, 8)  # GPUs of a stage
REFINED = 6  # splits of a micro-batch size whose boundaries are moved
FAR = 1.06  # times the best step: splits estimated slower are not refined
NEAR = 1.5  # times an even share of the work: a slower stage is not in a good split


class AcesoAnswer(msgspec.Struct, frozen=True):
    """The best plan found, its step, and a floor of the step."""

    plan: AcesoPlan
    step_seconds: float
    floor_seconds: float


class Split(msgspec.Struct, frozen=True, order=True):
    """An estimated split: boundaries of stages, and the GPUs of each."""

    estimate: float
    micro_batch: int
    bounds: tuple[int, ...]
    gpus: tuple[int, ...]


def search(model: AcesoModel, setting: Setting) -> AcesoAnswer | None:
    """The best plan found; None where none fits."""
    searches = {b: MicroBatchSearch(model, setting, b) for b in setting.micro_batches}
    splits = [sorted(one.splits())[:REFINED] for one in searches.values()]
    best: tuple[float, AcesoPlan] | None = None
    for split in sorted(chain.from_iterable(splits)):
        if best is not None and split.estimate > FAR * best[0]:
            break
        found = searches[split.micro_batch].refined(split, best[0] if best else inf)
        if found is not None and (best is None or found[0] < best[0]):
            best = found
    if best is None:
        return None
    return AcesoAnswer(best[1], best[0], floor_seconds(model, setting))


def floor_seconds(model: AcesoModel, setting: Setting) -> float:
    """Least seconds of a step: every operator at its cheapest, spread over all GPUs."""
    least = np.full(len(model.names), np.inf)
    for (samples, tensor, _), operators in model.variants.items():
        busy = operators.forward_us + operators.backward_us
        if tensor <= setting.gpus_per_machine and samples <= max(setting.micro_batches):
            np.minimum(least, busy * tensor / samples, out=least)
    return float(least.sum()) * setting.global_batch / setting.gpus * 1e-6


class MicroBatchSearch:
    """Splits for one micro-batch size."""

    def __init__(self, model: AcesoModel, setting: Setting, micro_batch: int) -> None:
        self.setting, self.micro_batch = setting, micro_batch
        self.micro_batches = setting.global_batch // micro_batch
        self.most_stages = min(setting.max_stages, setting.gpus)
        sizes = [gpus for gpus in SIZES if gpus <= setting.gpus_per_machine]
        all_tables = tables(model, micro_batch, sizes)
        sizes = sorted({table.degrees[0].gpus for table in all_tables})
        self.work = all_tables[0].busy_us if all_tables else np.zeros(1)
        self.positions = self._positions(len(model.names))
        self.times = {
            gpus: StageTimes(
                model,
                micro_batch,
                [table for table in all_tables if table.degrees[0].gpus == gpus],
                setting.memory_limit_mb,
                self.most_stages - 1,
            )
            for gpus in sizes
        }

    def _positions(self, operators: int) -> NDArray[np.intp]:
        """Where stages may end at first: all operators, or about equal work between them."""
        if operators <= POSITIONS:
            return np.arange(operators + 1)
        targets = np.linspace(0, self.work[-1], POSITIONS + 1)
        return np.unique([0, *np.searchsorted(self.work, targets), operators])

    def splits(self) -> Iterator[Split]:
        """The split with the fastest slowest stage, for every number of stages."""
        if not self.times:
            return
        program = SplitProgram(self)
        for stages in range(1, self.most_stages + 1):
            slowest = program.slowest(stages)
            if slowest < inf:
                bounds, gpus = program.split(stages)
                step = (self.micro_batches - 1 + 0.8 * stages) * slowest * 1e-6
                yield Split(step, self.micro_batch, bounds, gpus)

    def place(self, gpus: tuple[int, ...], stage: int) -> Place:
        machine, before = self.setting.gpus_per_machine, sum(gpus[:stage])
        after = before + gpus[stage]
        return Place(
            len(gpus) - 1 - stage, before > 0 and before % machine == 0, after % machine == 0
        )

    def refined(self, split: Split, known_seconds: float) -> tuple[float, AcesoPlan] | None:
        """Step seconds and plan after moving boundaries operator by operator; None where nothing
        fits, and where the moved stages are estimated slower than a step that is known.
        """
        places = [self.place(split.gpus, i) for i in range(len(split.gpus))]
        times = [self.times[gpus] for gpus in split.gpus]
        estimates = SplitTimes(times, places)
        bounds = lowered(estimates, alternated(estimates, list(split.bounds)))
        micros = [estimates.micros(i, *ends) for i, ends in enumerate(pairwise(bounds))]
        if self._step_seconds(micros) > SLACK * known_seconds:
            return None
        chosen = [
            times[i].best(first, last, places[i])
            for i, (first, last) in enumerate(pairwise(bounds))
        ]
        stages = [choice for choice in chosen if choice is not None]
        if len(stages) < len(chosen):
            return None
        step = self._step_seconds([choice.micros for choice in stages])
        return step, AcesoPlan(self.micro_batch, tuple(choice.stage for choice in stages))

    def _step_seconds(self, micros: Sequence[float]) -> float:
        """Of a pipeline whose stages take so many microseconds."""
        return ((self.micro_batches - 1) * max(micros) + sum(micros)) * 1e-6


class SplitProgram:
    """Slowest stage of the best split, by stages and GPUs from the end and by first position."""

    def __init__(self, search: MicroBatchSearch) -> None:
        self.search, self.setting = search, search.setting
        count = len(search.positions)
        machine, gpus = self.setting.gpus_per_machine, self.setting.gpus
        busy = {g: times.least_us for g, times in search.times.items()}
        most = NEAR * min(g / gpus * float(windowed[-1]) for g, windowed in busy.items())
        self.windows = {
            g: windows(search.positions, windowed, most) for g, windowed in busy.items()
        }
        self.micros = {g: t.relaxed(self.windows[g]) for g, t in search.times.items()}
        nothing = np.full(count, inf)
        nothing[-1] = 0.0
        self.received = {g: t.extra_received(search.positions) for g, t in search.times.items()}
        self.sent = {g: t.extra_sent(search.positions) for g, t in search.times.items()}
        self.best: list[dict[int, Reals]] = [{0: nothing}]
        self.choice = list[dict[int, tuple[Reals, Reals]]]()
        for after in range(search.most_stages):
            self._add_stage(after, machine, gpus)

    def _add_stage(self, after: int, machine: int, gpus: int) -> None:
        best, chosen = dict[int, Reals](), dict[int, tuple[Reals, Reals]]()
        for used, rest in self.best[-1].items():
            for size, times in self.micros.items():
                first_gpu = gpus - used - size
                if first_gpu < 0 or first_gpu // machine != (gpus - used - 1) // machine:
                    continue
                micros = times[after]
                if (gpus - used) % machine == 0:
                    micros = micros + self.sent[size][1:, None]
                slowest, ends = self._extended(micros, rest)
                if first_gpu and first_gpu % machine == 0:
                    slowest = slowest + self.received[size]
                total = used + size
                if total not in best:
                    best[total] = np.full(len(rest), inf)
                    chosen[total] = (np.zeros(len(rest), int), np.zeros(len(rest), int))
                better = slowest < best[total]
                best[total] = np.where(better, slowest, best[total])
                chosen[total][0][better] = ends[better]
                chosen[total][1][better] = size
        self.best.append(best)
        self.choice.append(chosen)

    def _extended(self, times: Reals, rest: Reals) -> tuple[Reals, Reals]:
        """By first position: the slowest stage, and the position where the first stage ends."""
        whole = np.maximum(times, rest[1:, None])
        columns = np.arange(times.shape[1])  # ends, column + 1 positions behind their starts
        rows = np.arange(len(rest))[:, None] + columns
        inside = rows < len(whole)
        by_start = np.where(inside, whole[np.minimum(rows, len(whole) - 1), columns], inf)
        best = by_start.argmin(axis=1)
        return by_start[np.arange(len(rest)), best], np.arange(len(rest)) + best + 1

    def slowest(self, stages: int) -> float:
        row = self.best[stages].get(self.setting.gpus)
        return inf if row is None else float(row[0])

    def split(self, stages: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Boundaries, and GPUs of every stage."""
        at, used = 0, self.setting.gpus
        bounds, sizes = [0], list[int]()
        for after in reversed(range(stages)):
            ends, gpus = self.choice[after][used]
            size = int(gpus[at])
            at = int(ends[at])
            bounds.append(int(self.search.positions[at]))
            sizes.append(size)
            used -= size
        return tuple(bounds), tuple(sizes)
