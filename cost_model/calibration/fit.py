"""Factors of a cluster from steps that were measured: robust least squares of log errors.

    measured step ≈ step of the plan on the cluster, scaled by compute, communication, overhead

Iteratively reweighted Gauss-Newton with Huber's weights (Huber 1964), so that single disturbed
steps count little; a weak prior at 1 keeps factors that no step determines."""

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
from ..scaled_cluster import ScaleFactors, scaled_cluster

MAX_ITERATIONS = 30
HUBER_THRESHOLD = 0.1  # relative error beyond which a step counts less
PRIOR_WEIGHT = 0.003  # weight of a factor's own logarithm among the errors
LOG_DIFFERENCE = 1e-4  # of logarithms, for derivatives
MAX_LOG_FACTOR = 4.6  # a factor lies between 1/100 and 100

Floats = NDArray[np.float64]


class MeasuredStep(msgspec.Struct, frozen=True):
    """Measured step of a plan; `peak_bytes` of the fullest device, 0: unknown."""

    plan: Plan
    step_seconds: float
    peak_bytes: int = 0


class Fit(msgspec.Struct, frozen=True):
    """The factors, the scaled cluster, and the median absolute error of steps before and after."""

    factors: ScaleFactors
    cluster: Cluster
    error_before: float
    error_after: float


def fit(steps: Sequence[MeasuredStep], cluster: Cluster, source: str) -> Fit:
    """Scale `cluster`, which the steps' plans are for, to the steps; `source` says where from."""
    logs = np.zeros(3)
    for _ in range(MAX_ITERATIONS):
        at = log_errors(steps, cluster, logs)
        slopes = np.stack(
            [
                (log_errors(steps, cluster, logs + move) - at) / LOG_DIFFERENCE
                for move in np.eye(3) * LOG_DIFFERENCE
            ],
            axis=1,
        )
        weights = 1 / np.maximum(1.0, np.abs(at) / HUBER_THRESHOLD)
        pulled = slopes.T @ (weights[:, None] * slopes) + PRIOR_WEIGHT**2 * np.eye(3)
        change = np.linalg.solve(pulled, slopes.T @ (weights * at) + PRIOR_WEIGHT**2 * logs)
        logs = np.clip(logs - np.clip(change, -1, 1), -MAX_LOG_FACTOR, MAX_LOG_FACTOR)
        if np.abs(change).max() < LOG_DIFFERENCE:
            break
    factors = factors_of(logs)
    fitted_cluster = with_source(
        with_runtime(scaled_cluster(cluster, factors), steps), source, steps
    )
    before = median_absolute_error(log_errors(steps, cluster, np.zeros(3)))
    return Fit(
        factors,
        fitted_cluster,
        before,
        median_absolute_error(log_errors(steps, fitted_cluster, np.zeros(3))),
    )


def log_errors(steps: Sequence[MeasuredStep], cluster: Cluster, logs: Floats) -> Floats:
    """Logarithms of predicted over measured seconds."""
    priced = scaled_cluster(cluster, factors_of(logs))
    known: dict[int, float] = {}
    for step in steps:
        if id(step.plan) not in known:
            known[id(step.plan)] = step_term(step.plan, priced).value
    return np.array([np.log(known[id(s.plan)] / s.step_seconds) for s in steps])


def factors_of(logs: Floats) -> ScaleFactors:
    return ScaleFactors(*np.exp(logs).tolist())


def median_absolute_error(errors: Floats) -> float:
    """The median absolute relative error."""
    return float(np.median(np.abs(np.expm1(errors))))


def with_runtime(cluster: Cluster, steps: Sequence[MeasuredStep]) -> Cluster:
    """The cluster with its runtime overhead set to the median of peaks beyond all other terms."""
    overheads = [
        step.peak_bytes
        - max(s.peak_bytes - dict(s.memory_terms).get("runtime", 0) for s in step.plan.stages)
        for step in steps
        if step.peak_bytes
    ]
    if not overheads:
        return cluster
    device = replace(cluster.device, runtime_overhead_bytes=max(int(median(overheads)), 1))
    return replace(cluster, device=device)


def with_source(cluster: Cluster, source: str, steps: Sequence[MeasuredStep]) -> Cluster:
    """The cluster with the fit recorded as the source of its scaled numbers."""
    device = cluster.device

    def fitted(text: str) -> str:
        return f"{source}; before: {text}" if text else source

    sources = {key: device.source_of(key) for key in ("achievable", "sustained", "memory_gb")}
    if not any(step.peak_bytes for step in steps):
        sources["runtime_gb"] = device.source_of("runtime_gb")
    curves = tuple(replace(c, source=fitted(c.source)) for c in device.curves)
    levels = tuple(
        replace(
            link,
            source=fitted(link.source),
            curves=tuple(replace(c, source=fitted(c.source)) for c in link.curves),
        )
        for link in cluster.levels
    )
    changed = replace(device, source=fitted(device.source), sources=sources, curves=curves)
    return replace(cluster, device=changed, levels=levels)
