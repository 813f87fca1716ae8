"""Times of stages between positions of a chain of operators, for every number of later stages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from plait.benchmarks.rivals.aceso.plan import AcesoStage
from plait.benchmarks.rivals.aceso.profile import AcesoModel, Reals, Variant
from plait.benchmarks.rivals.aceso.stage_tables import (
    Flags,
    OperatorTables,
    Pattern,
    before,
    thinned,
)

PRUNED = 12  # runs that are tried without their last operator
SLACK = 1.002  # times the fastest: what an estimate may be above the exact time
RELAXED_PATTERNS = 8  # of recomputation, in the prices of all stages


class Place(msgspec.Struct, frozen=True):
    """Where a stage lies: later stages, and whether it receives and sends between machines."""

    after: int
    receives_between: bool
    sends_between: bool


class StageChoice(msgspec.Struct, frozen=True):
    """A stage that fits, and its microseconds for one micro-batch."""

    micros: float
    stage: AcesoStage


class Windows(msgspec.Struct, frozen=True):
    """Positions at which stages may start, for each at which they end: shape [ends, window]."""

    ends: NDArray[np.intp]
    starts: NDArray[np.intp]
    valid: Flags


def windows(positions: NDArray[np.intp], busy_us: Reals, most_us: float) -> Windows:
    """Starts before every end: of at most so many microseconds, or one position."""
    done = busy_us[positions]
    farthest = np.searchsorted(done, done[1:] - most_us)
    widths = np.arange(1, len(positions)) - farthest
    numbers = np.arange(len(widths))[:, None] - np.arange(max(1, int(widths.max())))[None, :]
    valid = (numbers >= 0) & (numbers >= np.minimum(farthest, np.arange(len(widths)))[:, None])
    return Windows(positions[1:], positions[np.maximum(numbers, 0)], valid)


class StageTimes:
    """Stages on so many GPUs, under every choice of degrees."""

    def __init__(
        self,
        model: AcesoModel,
        micro_batch: int,
        choices: Sequence[OperatorTables],
        limit_mb: float,
        most_after: int,
    ) -> None:
        self.model, self.family, self.micro_batch = model, model.family, micro_batch
        self.choices, self.limit_mb = choices, limit_mb
        self.in_flight = np.arange(1, most_after + 2, dtype=float)

    @property
    def least_us(self) -> Reals:
        """Microseconds of all operators before each, under the fastest degrees of each."""
        busy = [t.operators.forward_us + t.operators.backward_us for t in self.choices]
        return before(np.min(busy, axis=0))

    def relaxed(self, spans: Windows) -> Reals:
        """Microseconds with messages inside a machine, by later stages, end and start; inf where
        none fits.
        """
        best = np.full((len(self.in_flight), *spans.starts.shape), np.inf)
        for table in sorted(self.choices, key=lambda table: table.busy_us[-1]):
            self._relax(table, spans, best)
        best[:, ~spans.valid] = np.inf
        return best

    def _relax(self, table: OperatorTables, spans: Windows, best: Reals) -> None:
        """Lowers the best microseconds where these degrees are faster."""
        first, last = spans.starts, spans.ends[:, None]
        in_flight = self.in_flight[:, None, None]
        missing = self._fixed_mb(table, spans)[None] - self.limit_mb
        input_mb = table.operators.input_mb[first]
        stored = input_mb + table.stored_mb[last] - table.stored_mb[first]
        missing = missing + in_flight * stored
        busy = table.busy_us[last] - table.busy_us[first]
        busy = busy + table.inside_us[first] + table.sent_inside_us[last - 1]
        faster = (busy < best) & spans.valid
        missing[~faster] = 0.0
        extra = np.where(missing <= 0, 0.0, np.inf)
        if (missing > 0).any():
            for patterns in table.patterns:
                coarse = thinned(patterns, RELAXED_PATTERNS)
                np.minimum(extra, _recomputed(coarse, spans, missing, in_flight), out=extra)
        np.minimum(best, busy + extra, out=best, where=faster)

    def extra_received(self, positions: NDArray[np.intp]) -> Reals:
        """More microseconds by first operator where messages come from another machine."""
        extra = self.choices[0].between_us - self.choices[0].inside_us
        return np.append(extra, 0.0)[positions]

    def extra_sent(self, positions: NDArray[np.intp]) -> Reals:
        """More microseconds by the operator after the last where messages go to another machine."""
        extra = self.choices[0].sent_between_us - self.choices[0].sent_inside_us
        return np.append(0.0, extra)[positions]

    def _fixed_mb(self, table: OperatorTables, spans: Windows) -> Reals:
        """States, and what kernels reserve."""
        weights = table.weights_mb[spans.ends[:, None]] - table.weights_mb[spans.starts]
        operators = table.operators
        both = np.array([operators.reserved_forward_mb, operators.reserved_backward_mb])
        reserved = _windowed_max(both, spans).sum(axis=0)
        return weights * self.family.state_copies + np.maximum(reserved, weights)

    def _messages(self, table: OperatorTables, first: int, last: int, place: Place) -> float:
        """Microseconds to receive and to send; what is sent has the first's tensor degree."""
        per_byte = table.between_us if place.receives_between else table.inside_us
        given = table.sent_between_us if place.sends_between else table.sent_inside_us
        one, other = table.degrees[first], table.degrees[last - 1]
        if one.tensor == other.tensor:
            return float(per_byte[first] + given[last - 1])
        samples = self.micro_batch // other.data
        variant = Variant(samples, one.tensor, other.algorithm)
        operators = self.model.variants.get(variant)
        if operators is None:
            return np.inf
        size = float(operators.output_mb[last - 1])
        return float(per_byte[first]) + self.model.send_us(size, place.sends_between)

    def estimate(self, first: int, last: int, place: Place) -> float:
        """Microseconds of these operators, with recomputation between neighbouring patterns."""
        best = np.inf
        for table in self.choices:
            busy = self._busy_us(table, first, last, place)
            if busy < best:
                best = min(best, self._estimate(table, first, last, place, busy))
        return best

    def _busy_us(self, table: OperatorTables, first: int, last: int, place: Place) -> float:
        """Microseconds where nothing is recomputed."""
        busy = float(table.busy_us[last] - table.busy_us[first])
        return busy + self._messages(table, first, last, place)

    def _estimate(
        self, table: OperatorTables, first: int, last: int, place: Place, busy: float
    ) -> float:
        missing = self._missing_mb(table, first, last, place)
        if missing <= 0:
            return busy
        mixes = [_mix(patterns, first, last, missing, place) for patterns in table.patterns]
        return busy + min((mix.micros for mix in mixes if mix is not None), default=np.inf)

    def _missing_mb(self, table: OperatorTables, first: int, last: int, place: Place) -> float:
        """MB above the limit where nothing is recomputed."""
        stored = float(table.stored_mb[last] - table.stored_mb[first])
        return self._lasting_mb(table, first, last, place, stored) - self.limit_mb

    def best(self, first: int, last: int, place: Place) -> StageChoice | None:
        """The fastest choice for these operators; None where none fits."""
        best: StageChoice | None = None
        busy = [self._busy_us(table, first, last, place) for table in self.choices]
        estimates = [
            self._estimate(table, first, last, place, micros)
            for table, micros in zip(self.choices, busy, strict=True)
        ]
        for number in np.argsort(estimates, kind="stable"):
            if best is None or estimates[number] < SLACK * best.micros:
                choice = self._exact(self.choices[number], first, last, place, busy[number])
                if choice is not None and (best is None or choice.micros < best.micros):
                    best = choice
        return best

    def _exact(
        self, table: OperatorTables, first: int, last: int, place: Place, busy: float
    ) -> StageChoice | None:
        best: tuple[float, Flags] | None = None
        for flags in self._fitting(table, first, last, place):
            again = float(table.operators.forward_us[first:last][flags].sum())
            if best is None or again < best[0]:
                best = (again, flags)
        if best is None:
            return None
        stage = AcesoStage(table.degrees[first:last], tuple(map(bool, best[1])))
        return StageChoice(busy + best[0], stage)

    def _fitting(
        self, table: OperatorTables, first: int, last: int, place: Place
    ) -> Iterator[Flags]:
        """Marks that fit: none, or a mix of two neighbouring patterns, the dearer in front."""
        missing = self._missing_mb(table, first, last, place)
        if missing <= 0:
            yield np.zeros(last - first, dtype=bool)
            return
        for patterns in table.patterns:
            mix = _mix(patterns, first, last, missing, place)
            if mix is None:
                continue
            dear = patterns[mix.number].flags[first:last]
            cheap = patterns[mix.number - 1].flags[first:last]

            def mixed(count: int, dear: Flags = dear, cheap: Flags = cheap) -> Flags:
                flags = np.concatenate([dear[:count], cheap[count:]])
                alone = ~np.append(flags[1:], False) & ~np.append(False, flags[:-1])
                return flags & ~alone

            low, high = 0, last - first  # operators of the dearer pattern
            if self._excess_mb(table, first, last, place, mixed(high)) > 0:
                continue
            while high - low > 1:
                middle = (low + high) // 2
                if self._excess_mb(table, first, last, place, mixed(middle)) <= 0:
                    high = middle
                else:
                    low = middle
            yield self._pruned(table, (first, last), place, mixed(high))

    def _pruned(
        self, table: OperatorTables, ends: tuple[int, int], place: Place, flags: Flags
    ) -> Flags:
        """The marks without those that are not needed, the most expensive first."""
        forward = table.operators.forward_us[ends[0] : ends[1]]
        run_ends = np.flatnonzero(flags & ~np.append(flags[1:], False))
        for last in sorted(run_ends.tolist(), key=lambda n: -float(forward[n]))[:PRUNED]:
            fewer = flags.copy()
            fewer[last] = False
            if not fewer[last - 1] or (last > 1 and not fewer[last - 2]):
                fewer[last - 1] = False
            if self._excess_mb(table, *ends, place, fewer) <= 0:
                flags = fewer
        return flags

    def _excess_mb(
        self, table: OperatorTables, first: int, last: int, place: Place, flags: Flags
    ) -> float:
        """MB above the limit, with these operators recomputed."""
        values, closes = table.values_mb[first:last], table.closes[first:last]
        both = flags & np.append(flags[1:], False)
        stored = float(table.stored_mb[last] - table.stored_mb[first])
        stored -= float(values[both & ~closes].sum())
        lasting = self._lasting_mb(table, first, last, place, stored)
        return lasting + _longest_run(values, both, closes) - self.limit_mb

    def _lasting_mb(
        self, table: OperatorTables, first: int, last: int, place: Place, stored: float
    ) -> float:
        """MB of states, of what kernels reserve, and of what later stages wait for."""
        operators, inner = table.operators, slice(first, last - 1)
        weights = float(table.weights_mb[last] - table.weights_mb[first])
        reserved = 0.0
        if last - first > 1:
            reserved = float(
                operators.reserved_forward_mb[inner].max()
                + operators.reserved_backward_mb[inner].max()
            )
        fixed = weights * self.family.state_copies + max(reserved, weights)
        return fixed + (float(operators.input_mb[first]) + stored) * (place.after + 1)


class Mix(msgspec.Struct, frozen=True):
    """A pattern that saves enough, and microseconds of mixing it with the one before."""

    number: int
    micros: float


def _mix(
    patterns: Sequence[Pattern], first: int, last: int, missing: float, place: Place
) -> Mix | None:
    """The first pattern that saves so much in a stage; one without marks saves nothing."""
    for number, pattern in enumerate(patterns):
        stored = float(pattern.saved_mb[last] - pattern.saved_mb[first]) * (place.after + 1)
        if stored < missing:  # runs only take away
            continue
        saved = stored - _run_mb(pattern, first, last)
        if saved >= missing:
            cheaper = patterns[number - 1]
            less = float(cheaper.saved_mb[last] - cheaper.saved_mb[first]) * (place.after + 1)
            less = max(0.0, less - _run_mb(cheaper, first, last))
            share = (missing - less) / max(saved - less, 1e-9)
            least, most = (float(p.again_us[last] - p.again_us[first]) for p in (cheaper, pattern))
            return Mix(number, least + share * (most - least))
    return None


def _run_mb(pattern: Pattern, first: int, last: int) -> float:
    """The most that a run of recomputed operators holds."""
    return float(pattern.run_mb[first : last - 1].max(initial=0.0))


def _recomputed(
    patterns: Sequence[Pattern], spans: Windows, missing: Reals, in_flight: Reals
) -> Reals:
    """Least microseconds to run again so that so much is saved, between neighbouring patterns.

    Shape of `missing`: later stages, end, start; so is the result's, inf where nothing saves enough.
    """
    first, last = spans.starts, spans.ends[:, None]
    runs = _windowed_max(np.array([pattern.run_mb for pattern in patterns]), spans)
    least = np.where(missing > 0, np.inf, 0.0)
    saves = [pattern.saved_mb[last] - pattern.saved_mb[first] for pattern in patterns]
    most = np.max(saves, axis=0)
    short = np.flatnonzero((missing > 0) & (in_flight * most >= missing))  # runs only take away
    stages, span = np.divmod(short, first.size)
    wanted, factor = missing.ravel()[short], in_flight.ravel()[stages]
    saved_before, time_before = np.zeros(len(short)), np.zeros(len(short))
    for pattern, stored, run in zip(patterns[1:], saves[1:], runs[1:], strict=True):
        time = (pattern.again_us[last] - pattern.again_us[first]).ravel()[span]
        saved = factor * stored.ravel()[span] - run.ravel()[span]
        enough = saved >= wanted
        if enough.any():
            part = (wanted - saved_before)[enough] / np.maximum(saved - saved_before, 1e-9)[enough]
            mixed = time_before[enough] + np.clip(part, 0, 1) * (time - time_before)[enough]
            least.ravel()[short[enough]] = mixed
        more = ~enough  # of the others the next pattern saves more
        short, span, wanted, factor = short[more], span[more], wanted[more], factor[more]
        saved_before, time_before = np.maximum(saved, saved_before)[more], time[more]
    return least


def _windowed_max(amounts: Reals, spans: Windows) -> Reals:
    """The largest of the operators from every start to every end but the last: by row of amounts."""
    starts = np.concatenate([[0], spans.ends[:-1]])
    blocks = np.maximum.reduceat(amounts, starts, axis=1)
    inner = np.ravel(np.column_stack([starts, np.maximum(spans.ends - 1, starts)]))
    padded = np.pad(amounts, ((0, 0), (0, 1)))
    short = np.maximum.reduceat(padded, inner, axis=1)[:, ::2]
    short[:, spans.ends - 1 == starts] = 0.0
    largest = np.zeros((len(amounts), *spans.starts.shape))
    largest[:, :, 0] = running = short
    for column in range(1, spans.starts.shape[1]):
        running = running.copy()
        running[:, column:] = np.maximum(running[:, column:], blocks[:, :-column])
        largest[:, :, column] = running
    return largest


def _longest_run(values: Reals, both: Flags, closes: Flags) -> float:
    """The most that a run of recomputed operators holds."""
    marked = np.flatnonzero(both)
    if not len(marked):
        return 0.0
    starts = np.ones(len(marked), dtype=bool)
    starts[1:] = (np.diff(marked) > 1) | closes[marked[:-1]]
    return float(np.add.reduceat(values[marked], np.flatnonzero(starts)).max())
