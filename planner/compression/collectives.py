"""Which collectives travel compressed: those that gain more on the wire than their codecs take.

Gradients and weights are decided for along every axis, once per step or once per call, by its links, its
group and its bytes. The user says what may happen to numbers on the way, by the name of an algorithm or
as a quality:

    lossless   nothing is lost
    safe       every number is sent, and its error is unbiased, or carried over to an optimizer that is
               linear in gradients (with Adam's squares that diverges: Tang et al. 2021, 1-bit Adam)
    all        whatever a paper trained with

What loses anything has to be worth it: it is taken where it makes a step shorter by a part of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from ...cost_model.communication.compressed_collective import lowered
from ...cost_model.communication.data_parallel import Axis, BatchAxes, Subject
from ...ir.compression.program import Algorithm, Program
from ...ir.compression.registry import ALGORITHMS, algorithm
from ...ir.compression.stage import Reduce, Residual, Score, Select
from ...ir.devices.cluster import Cluster
from ...ir.errors import UsageError
from ...ir.plan.flat_shard import WHOLE
from ...ir.plan.strategy import Strategy

QUALITIES = ("lossless", "safe", "all")
LINEAR = ("sgd", "momentum")  # optimizers whose steps add up as gradients do
WORTH = 0.05  # of a step: what a collective has to gain
ANY_OPTIMIZER = ("Averaged", "Sharded")  # classes that leave the optimizer to the user


class Compressor:
    """Chooses programs for the collectives of strategies. `compress`: `none`, `auto` or the name of
    an algorithm, which is then taken wherever it can."""

    def __init__(self, compress: str, quality: str, optimizer: str) -> None:
        if quality not in QUALITIES:
            raise UsageError(f"unknown quality {quality!r}; known: {', '.join(QUALITIES)}")
        self.forced = compress not in ("none", "auto")
        if self.forced:
            known = algorithm(compress)
            self.programs = runnable(known)
            if not self.programs and all(p.subject != "activations" for p in known.programs):
                raise UsageError(
                    f"{compress} is an optimizer itself (plan --optimizer) or weighs ranks against each "
                    f"other (plait.runtime.compression)"
                )
        else:
            allowed = permitted(quality, optimizer in LINEAR) if compress == "auto" else ()
            self.programs = tuple(allowed)

    def choose(
        self,
        strategy: Strategy,
        cluster: Cluster,
        scale: float,
        item: int,
        trained: int,
        small: float,
        calls: int,
        work: float,
    ) -> dict[tuple[Subject, str], Program]:
        """Programs for `trained` bytes of weights per device in so many calls, a part `small` of them in
        small tensors, by what travels and the role; `work` are the other seconds of a step. Copies of
        what is not cut have to stay alike, so that nothing does where a fraction of the weights is."""
        if not self.programs or not trained or strategy.fraction != WHOLE:
            return {}
        plain = BatchAxes(strategy, cluster, scale, item)
        found: dict[tuple[Subject, str], Program] = {}
        sent = list(travels(plain, trained, calls))
        whole = work + sum(one.seconds(plain) for one in sent)
        for one in sent:
            best = one.seconds(plain) - WORTH * whole
            key = one.subject, one.axis[0]
            for program in filter(one.suits, self.programs):
                own = BatchAxes(strategy, cluster, scale, item, {key: program})
                seconds = one.seconds(own, small)
                if seconds < best or (self.forced and key not in found):
                    found[key], best = program, seconds
        return found


class Travel(NamedTuple):
    """A collective of gradients or weights: `amount` bytes, so many `times` per step at least.
    `lasting`: the same tensors once per step, so that something can be kept from one to the next."""

    subject: Subject
    kind: str
    amount: float
    axis: Axis
    times: int
    lasting: bool

    def seconds(self, axes: BatchAxes, small: float = 0.0) -> float:
        """In a step."""
        each = axes.travel_seconds(self.subject, self.kind, self.amount, [self.axis], small)
        return self.times * each

    def suits(self, program: Program) -> bool:
        """Whether a program can take its place."""
        same = (program.subject, program.result) == (self.subject, self.kind)
        return same and (self.lasting or not keeps(program))


def travels(axes: BatchAxes, trained: int, calls: int) -> Iterator[Travel]:
    """What travels for `trained` bytes of weights in so many calls."""
    part = trained * axes.scale * axes.part("optimizer")
    for axis in axes.replicas:
        yield Travel("gradients", "all_reduce", part, axis, 1, True)
    for axis in axes.sharded:
        lasting = "gradient" not in axes.shards
        parts = 1 if lasting else calls
        gradients = trained * axes.scale / parts
        yield Travel("gradients", "reduce_scatter", gradients, axis, parts, lasting)
        lasting = "parameter" not in axes.shards
        parts, times = (1, 1) if lasting else (calls, 2 * calls)  # forward and backward
        yield Travel("weights", "all_gather", trained / parts, axis, times, lasting)


def keeps(program: Program) -> bool:
    """Whether a program keeps anything from one exchange to the next."""
    return bool(lowered(program, 2, 2).states)


def permitted(quality: str, linear: bool) -> Iterator[Program]:
    """Programs of all algorithms that a quality allows, under an optimizer that is `linear` or not."""
    for known in ALGORITHMS.values() if quality != "lossless" else ():
        yield from (p for p in runnable(known) if quality == "all" or _careful(p, linear))


def _careful(program: Program, linear: bool) -> bool:
    """Whether all numbers are sent in every step, and no error is lost for good."""
    refused = (Select,) if linear or program.subject == "weights" else (Select, Residual)
    return not program.accepts_bias and not any(isinstance(s, refused) for s in program.stages)


def runnable(known: Algorithm) -> tuple[Program, ...]:
    """Programs of an algorithm that leave the optimizer alone and add up or average."""
    if known.optimizer not in ANY_OPTIMIZER or known.schedule.every != 1:
        return ()
    return tuple(
        p for p in known.programs if p.subject in ("gradients", "weights") and not _robust(p)
    )


def _robust(program: Program) -> bool:
    """Whether ranks are weighed against each other."""
    return any(
        isinstance(s, Score) or (isinstance(s, Reduce) and s.rule not in ("sum", "mean"))
        for s in program.stages
    )
