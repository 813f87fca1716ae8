"""Factors of a cluster from steps that were measured: robust least squares of log errors.

    measured step ≈ step of the plan on the cluster, scaled by compute, communication, overhead

Iteratively reweighted Gauss-Newton with Huber's weights (Huber 1964), so that single disturbed steps
count little; a weak pull to 1 keeps a factor that no step tells of.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from ...ir.devices.cluster import Cluster
from ...ir.plan.plan import Plan
from ..explain.step_terms import step_term
from .scale import Factors, scaled

ROUNDS = 30
TURN = 0.1  # relative error from which a step counts less
PULL = 0.003  # weight of a factor's own logarithm among the errors
DIFFERENCE = 1e-4  # of logarithms, for derivatives
FURTHEST = 4.6  # a factor lies between 1/100 and 100

Floats = NDArray[np.float64]


class Step(msgspec.Struct, frozen=True):
    """A step of a plan as it was measured; `peak_bytes` of the fullest device, 0: not known."""

    plan: Plan
    step_seconds: float
    peak_bytes: int = 0


class Fit(msgspec.Struct, frozen=True):
    """The factors, the cluster they make, and the median absolute error of steps before and after."""

    factors: Factors
    cluster: Cluster
    error_before: float
    error_after: float


def fit(steps: Sequence[Step], cluster: Cluster, source: str) -> Fit:
    """Scale `cluster`, which the steps' plans are for, to the steps; `source` says where from."""
    logs = np.zeros(3)
    for _ in range(ROUNDS):
        at = errors(steps, cluster, logs)
        slopes = np.stack(
            [
                (errors(steps, cluster, logs + move) - at) / DIFFERENCE
                for move in np.eye(3) * DIFFERENCE
            ],
            axis=1,
        )
        weights = 1 / np.maximum(1.0, np.abs(at) / TURN)
        pulled = slopes.T @ (weights[:, None] * slopes) + PULL**2 * np.eye(3)
        change = np.linalg.solve(pulled, slopes.T @ (weights * at) + PULL**2 * logs)
        logs = np.clip(logs - np.clip(change, -1, 1), -FURTHEST, FURTHEST)
        if np.abs(change).max() < DIFFERENCE:
            break
    factors = factors_of(logs)
    made = with_source(with_runtime(scaled(cluster, factors), steps), source, steps)
    before = absolute(errors(steps, cluster, np.zeros(3)))
    return Fit(factors, made, before, absolute(errors(steps, made, np.zeros(3))))


def errors(steps: Sequence[Step], cluster: Cluster, logs: Floats) -> Floats:
    """Logarithms of predicted over measured seconds."""
    priced = scaled(cluster, factors_of(logs))
    known: dict[int, float] = {}
    for step in steps:
        if id(step.plan) not in known:
            known[id(step.plan)] = step_term(step.plan, priced).value
    return np.array([np.log(known[id(s.plan)] / s.step_seconds) for s in steps])


def factors_of(logs: Floats) -> Factors:
    return Factors(*np.exp(logs).tolist())


def absolute(found: Floats) -> float:
    """The median absolute relative error."""
    return float(np.median(np.abs(np.expm1(found))))


def with_runtime(cluster: Cluster, steps: Sequence[Step]) -> Cluster:
    """What libraries hold: the median of what peaks were beyond all other terms."""
    left = [
        step.peak_bytes
        - max(s.peak_bytes - dict(s.memory).get("runtime", 0) for s in step.plan.stages)
        for step in steps
        if step.peak_bytes
    ]
    if not left:
        return cluster
    device = replace(cluster.device, runtime_overhead_bytes=max(int(median(left)), 1))
    return replace(cluster, device=device)


def with_source(cluster: Cluster, source: str, steps: Sequence[Step]) -> Cluster:
    """The cluster, its scaled numbers said to come from the fit."""
    device = cluster.device

    def fitted(text: str) -> str:
        return f"{source}; before: {text}" if text else source

    kept = {key: device.source_of(key) for key in ("achievable", "sustained", "memory_gb")}
    if not any(step.peak_bytes for step in steps):
        kept["runtime_gb"] = device.source_of("runtime_gb")
    curves = tuple(replace(c, source=fitted(c.source)) for c in device.curves)
    levels = tuple(
        replace(
            link,
            source=fitted(link.source),
            curves=tuple(replace(c, source=fitted(c.source)) for c in link.curves),
        )
        for link in cluster.levels
    )
    changed = replace(device, source=fitted(device.source), sources=kept, curves=curves)
    return replace(cluster, device=changed, levels=levels)
