"""Which collectives travel compressed: those that gain more on the wire than their codecs take.

Every collective once per step is decided for itself: its links, its group and its bytes. The user says
what may happen to numbers on the way, by the name of an algorithm or as a quality:

    lossless   nothing is lost
    safe       every number is sent, and its error is unbiased, or carried over to an optimizer that is
               linear in gradients (with Adam's squares that diverges: Tang et al. 2021, 1-bit Adam)
    all        whatever a paper trained with

What loses anything has to be worth it: it is taken where it makes a step shorter by a part of it.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..cost_model.batch_axes import Axis, BatchAxes, Subject
from ..ir.cluster import Cluster
from ..ir.compression.program import Algorithm, Program
from ..ir.compression.registry import ALGORITHMS, algorithm
from ..ir.compression.stage import Reduce, Residual, Score, Select
from ..ir.errors import UsageError
from ..ir.strategy import Strategy

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
                    f"{compress} needs an optimizer of its own or weighs ranks against each other: "
                    f"use it from plait.runtime.compression"
                )
        else:
            allowed = permitted(quality, optimizer in LINEAR) if compress == "auto" else ()
            self.programs = tuple(allowed)

    def choose(
        self, strategy: Strategy, cluster: Cluster, scale: float, item: int, trained: int,
        small: float, work: float,
    ) -> dict[tuple[Subject, str], Program]:  # fmt: skip
        """Programs for `trained` bytes of weights per device, a part `small` of them in small tensors,
        by what travels and the role; `work` are the other seconds of a step."""
        if not self.programs or not trained:
            return {}
        plain = BatchAxes(strategy, cluster, scale, item)
        found: dict[tuple[Subject, str], Program] = {}
        sent = [
            (*one, plain.seconds(one[1], one[2], [one[3]])) for one in collectives(plain, trained)
        ]
        gain = WORTH * (work + sum(seconds for *_, seconds in sent))
        for subject, kind, amount, axis, exact in sent:
            best = exact - gain
            for program in self.programs:
                if (program.subject, program.result) != (subject, kind):
                    continue
                own = BatchAxes(strategy, cluster, scale, item, {(subject, axis[0]): program})
                seconds = own.step_seconds(subject, kind, amount, [axis], small)
                if seconds < best or (self.forced and (subject, axis[0]) not in found):
                    found[subject, axis[0]], best = program, seconds
        return found


def collectives(axes: BatchAxes, trained: int) -> Iterator[tuple[Subject, str, float, Axis]]:
    """What travels once per step: subject, collective, bytes, and the axis."""
    for axis in axes.replicas:
        yield "gradients", "all_reduce", trained * axes.scale / axes.pieces("optimizer"), axis
    for axis in axes.sharded:
        if "gradient" not in axes.shards:
            yield "gradients", "reduce_scatter", trained * axes.scale, axis
        if "parameter" not in axes.shards:
            yield "weights", "all_gather", float(trained), axis


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
