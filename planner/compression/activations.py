"""Choice of compression programs for activations and their gradients: stage transfers and the
all-reduces inside calls.

Rounding activations is biased without error feedback, so convergence is not guaranteed: `auto` does
it only under quality `all`, and only where messages plus codecs are faster by a fraction of the
step. The name of an algorithm forces its programs wherever they apply; those of rows to experts are
used by name alone.
"""

from __future__ import annotations

from ...cost_model.communication.stage_transfer import TransferPayload, price_transfer
from ...ir.compression.program import CompressionProgram
from ...ir.compression.registry import ALGORITHMS, algorithm
from ...ir.compression.stage import Centroids
from ...ir.devices.cluster import Device, Link
from .collectives import MINIMUM_GAIN


class ActivationCompressor:
    """Chooses programs for activations. `compress`: `none`, `auto` or the name of an algorithm."""

    def __init__(self, compress: str = "none", quality: str = "safe") -> None:
        self.forced = compress not in ("none", "auto")
        algorithms = [algorithm(compress)] if self.forced else []
        if compress == "auto" and quality == "all":
            algorithms = list(ALGORITHMS.values())
        programs = [p for one in algorithms for p in one.programs if p.payload == "activations"]
        of_rows = (p for one in algorithms for p in one.programs if p.payload == "rows")
        self.rows = next(of_rows, None) if self.forced else None
        self.sends = tuple(p for p in programs if p.collective == "send")
        self.all_reduces = tuple(p for p in programs if p.collective == "all_reduce")

    @property
    def rows_per_centroid(self) -> int:
        """Rows to experts of which one is sent."""
        stages = () if self.rows is None else self.rows.stages
        return next((stage.ratio for stage in stages if isinstance(stage, Centroids)), 1)

    def accepts(self, plain: float, seconds: float, times: int, work_seconds: float) -> bool:
        """Whether to send `times` messages in `seconds` each, not in `plain`, in a step of
        `work_seconds` besides; always where the user names the algorithm.
        """
        return self.forced or saves_enough(plain, seconds, times, work_seconds)

    def stage_transfer_program(
        self, payload: TransferPayload, link: Link, device: Device, rounds: int, work: float
    ) -> CompressionProgram | None:
        """Program of the transfers to the next stage, in both directions in each of `rounds`
        rounds; `work`: seconds of a step apart from these transfers. None: sent uncompressed.
        """
        if not self.sends or not payload.large.elements:
            return None
        priced = [(price_transfer(payload, link, p, device).seconds, p) for p in self.sends]
        seconds, program = min(priced, key=lambda pair: pair[0])
        plain = price_transfer(payload, link, None, device).seconds
        return program if self.accepts(plain, seconds, 2 * rounds, work) else None


def saves_enough(plain: float, seconds: float, times: int, work: float) -> bool:
    """Whether `times` messages of `seconds`, not `plain`, save MINIMUM_GAIN of a step."""
    return times * (plain - seconds) > MINIMUM_GAIN * (work + times * plain)
