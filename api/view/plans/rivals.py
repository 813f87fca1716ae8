"""Why this plan: what binds, and what every family of strategies costs instead, term by term."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ....cost_model.explain.by_kind import fullest_stage_bytes, paired, seconds_by_kind
from ....cost_model.explain.step_terms import step_term
from ....ir.plan.difference import memory_actions
from ....ir.plan.family import DEVICE_GROUPS, family, is_megatron
from ....ir.plan.plan import Alternative, Plan
from ....ir.text.summary import fullest_stage
from ....ir.text.units import gib, micro_batches, seconds
from ....planner.question.options import SIMPLER_WITHIN
from ..report import Point, Rival

MOST_TERMS = 10
NEAR = 0.05  # relative to a family's fastest: variants that are folded into it


def rivals_of(plan: Plan) -> tuple[Rival, ...]:
    """A row per family, the fastest that fits first; the plan's own family has its next best.

    DDP, FSDP and Megatron have rows of their own, with the reason where they cannot be.
    """
    families: dict[str, list[Alternative]] = {}
    for alternative in plan.alternatives:
        families.setdefault(alternative.family or alternative.strategy_text, []).append(alternative)
    baselines = _baseline_names(families)
    rows = [_rival(plan, baselines.get(name, ""), a) for name, a in families.items()]
    rows.sort(key=lambda row: (not row.fits, row.step_seconds))
    return (*rows, *_impossible(plan, families))


def _baseline_names(families: dict[str, list[Alternative]]) -> dict[str, str]:
    """Families that users know by the name of an engine or a paper."""
    names = {"DDP": "DDP", "FSDP": "FSDP"}
    megatron = [name for name in families if is_megatron(name)]
    if megatron:
        fastest = min(
            megatron, key=lambda n: (not families[n][0].fits, families[n][0].step_seconds)
        )
        names[fastest] = "Megatron"
    return names


def _rival(plan: Plan, baseline: str, members: Sequence[Alternative]) -> Rival:
    first = min(members, key=lambda a: (not a.seconds, not a.fits, a.step_seconds))
    name = first.family or "another"
    if name == (DEVICE_GROUPS if plan.groups else family(plan.strategies)):
        name += ", as the plan"
    if baseline and not name.startswith(baseline):
        name = f"{baseline}: {name}"
    others = [a for a in members if a is not first]
    return Rival(
        name=name,
        strategy=first.name.removeprefix(f"{first.family}: "),
        micro_batches=first.micro_batches,
        memory_actions=first.memory,
        step_seconds=first.step_seconds,
        peak_bytes=first.peak_bytes,
        fits=first.fits,
        seconds=_terms(seconds_by_kind(step_term(plan)), dict(first.seconds)),
        memory=_terms(fullest_stage_bytes(plan), {n: float(b) for n, b in first.memory_terms}),
        near_duplicates=_near_duplicates(plan, others),
    )


def _terms(
    ours: dict[str, float], theirs: dict[str, float]
) -> tuple[tuple[str, float, float], ...]:
    """The terms that differ most, then all others in one, then the sum."""
    if not theirs:
        return ()
    *pairs, total = paired(ours, theirs)
    rest = pairs[MOST_TERMS:]
    if rest:
        others = f"{len(rest)} smaller differences"
        pairs = [*pairs[:MOST_TERMS], (others, sum(p[1] for p in rest), sum(p[2] for p in rest))]
    return (*pairs, total)


def _near_duplicates(plan: Plan, others: Sequence[Alternative]) -> str:
    """`and 4 like it, +0.1 % to +0.4 %: dp=2,zero1=32, …`."""
    if not others:
        return ""
    step = plan.prediction.step_seconds
    change = [100 * (a.step_seconds / step - 1) for a in others]
    span = f"{min(change):+.1f} %"
    if max(change) - min(change) >= 0.1:
        span += f" to {max(change):+.1f} %"
    names = ", ".join(dict.fromkeys(a.name for a in others))
    return f"and {len(others)} like it, {span}: {names}"


def _impossible(plan: Plan, families: dict[str, list[Alternative]]) -> Iterator[Rival]:
    devices = plan.cluster.devices
    reason = "not priced: the search was stopped, or the model cannot be split so"
    if plan.global_batch % devices:
        reason = f"a global batch of {plan.global_batch:,} does not split over {devices:,} devices"
    for name, role in (("DDP", "dp"), ("FSDP", "zero3")):
        if name not in families and family(plan.strategies) != name and plan.alternatives:
            yield Rival(name, f"{role}={devices}", 1, "", 0.0, 0, False, reason=reason)


def reasons_of(plan: Plan) -> tuple[str, ...]:
    """What binds the choice: what was asked for, where something faster fits as well; memory, where
    something faster would not fit; else time alone."""
    not_fastest = _asked(plan)
    if not not_fastest:
        return (_memory_reason(plan), _time_reason(plan))
    larger = _too_large(plan)
    return (not_fastest, f"Faster, but too large: {larger}.") if larger else (not_fastest,)


def _asked(plan: Plan) -> str:
    """Empty where nothing that fits is faster."""
    step = plan.prediction.step_seconds
    faster = [a for a in plan.alternatives if a.fits and a.step_seconds < step]
    if not faster:
        return ""
    a = min(faster, key=lambda a: a.step_seconds)
    if step - a.step_seconds <= SIMPLER_WITHIN * step:
        return (
            f"Of plans too near to be told apart this is the simplest: {_with(a)} fits as well and "
            f"would take {seconds(a.step_seconds)} ({_change(plan, a)})."
        )
    return (
        f"It was asked for: {_with(a)} fits as well and would take {seconds(a.step_seconds)} "
        f"({_change(plan, a)})."
    )


def _with(a: Alternative) -> str:
    return f"{a.name} with {micro_batches(a.micro_batches)} and {a.memory}"


def _change(plan: Plan, a: Alternative) -> str:
    return f"{100 * (a.step_seconds / plan.prediction.step_seconds - 1):+.1f} %"


def _memory_reason(plan: Plan) -> str:
    larger = _too_large(plan)
    if larger:
        return f"Memory binds: {larger}."
    actions = [action for action in memory_actions(plan).split("+") if action != "keep"]
    if actions:
        return (
            f"Memory binds: layers run under {', '.join(actions)}, because keeping all that backward "
            "reads does not fit."
        )
    return "Memory does not bind: nothing faster was priced that needs more of it."


def _too_large(plan: Plan) -> str:
    """Of the faster alternatives that do not fit, the smallest; empty where there is none."""
    step = plan.prediction.step_seconds
    larger = [a for a in plan.alternatives if not a.fits and a.step_seconds < step]
    if not larger:
        return ""
    a = min(larger, key=lambda a: a.peak_bytes)
    return (
        f"{a.name} with {a.memory} would take {seconds(a.step_seconds)} ({_change(plan, a)}), but "
        f"needs {gib(a.peak_bytes)} of {gib(plan.memory_limit_of(fullest_stage(plan)))}"
    )


def _time_reason(plan: Plan) -> str:
    fitting = [a for a in plan.alternatives if a.fits]
    if not fitting:
        return "Nothing else that was priced fits."
    a = min(fitting, key=lambda a: a.step_seconds)
    sure = "nothing that was searched is faster than the plan"
    if plan.gap:
        sure = f"a better plan could be {100 * plan.gap:.2g} % faster at most"
    return f"Time decides among what fits: next best is {_with(a)}, {_change(plan, a)}; {sure}."


def points_of(plan: Plan) -> tuple[Point, ...]:
    """The plan and all that was priced beside it, as time against memory."""
    rest = (Point(a.name, a.step_seconds, a.peak_bytes, a.fits) for a in plan.alternatives)
    fits = plan.fits
    step = plan.prediction.step_seconds
    return (Point(f"this plan, {plan.strategy_text}", step, plan.peak_bytes, fits), *rest)
