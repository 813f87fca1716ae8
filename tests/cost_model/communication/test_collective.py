"""Collectives obey their bounds on every link they cross."""

from itertools import pairwise, product

import pytest

from plait.cost_model.communication.collective import CommGroup, collective_seconds
from plait.cost_model.hardware import load_cluster
from plait.ir.devices.cluster import Cluster

KINDS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "send")
RINGS = ("all_reduce", "all_gather", "reduce_scatter")
SPECS = ("8x8xh100", "6x8xh100", "2x4x8xa100-80", "64xh100", "local:4")
CLUSTERS = {spec: load_cluster(spec) for spec in SPECS}
PASSES = {"all_reduce": 2}


def groups(cluster: Cluster) -> list[tuple[int, int]]:
    """(size, stride) of every mesh axis that the cluster could have."""
    divisors = [d for d in range(1, cluster.devices + 1) if cluster.devices % d == 0]
    return [(n, s) for n, s in product(divisors, divisors) if cluster.devices % (n * s) == 0]


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("kind", [*KINDS, "cut", "share"])
def test_one_rank_is_free(kind: str, spec: str) -> None:
    assert collective_seconds(kind, 1e9, CommGroup(1, 1), CLUSTERS[spec]) == 0


@pytest.mark.parametrize("kind", ["cut", "share"])
def test_taking_a_part_moves_nothing(kind: str) -> None:
    assert collective_seconds(kind, 1e9, CommGroup(8, 1), CLUSTERS["8x8xh100"]) == 0


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("kind", KINDS)
def test_more_bytes_are_never_faster(kind: str, spec: str) -> None:
    cluster = CLUSTERS[spec]
    for size, stride in groups(cluster):
        times = [
            collective_seconds(kind, b, CommGroup(size, stride), cluster)
            for b in (0, 1, 1e4, 1e7, 1e10)
        ]
        assert all(a <= b for a, b in pairwise(times)), (size, stride, times)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("kind", RINGS)
def test_more_ranks_never_pay_less_latency(kind: str, spec: str) -> None:
    cluster = CLUSTERS[spec]
    for stride in {s for _, s in groups(cluster)}:
        sizes = sorted(n for n, s in groups(cluster) if s == stride)
        nested = [n for i, n in enumerate(sizes) if all(n % m == 0 for m in sizes[:i])]
        times = [collective_seconds(kind, 1, CommGroup(n, stride), cluster) for n in nested]
        assert all(a <= b for a, b in pairwise(times)), (stride, nested, times)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("kind", RINGS)
def test_never_faster_than_the_links(kind: str, spec: str) -> None:
    """What leaves a device at the fastest link, and what leaves a unit at the link it leaves by."""
    cluster, amount = CLUSTERS[spec], 1e9
    fastest = cluster.levels[-1].bandwidth_bytes_per_second
    for size, stride in groups(cluster):
        seconds = collective_seconds(kind, amount, CommGroup(size, stride), cluster)
        passes = PASSES.get(kind, 1)
        assert seconds >= passes * amount * (size - 1) / size / fastest
        crossed = cluster.slowest_link(stride, size)
        if size > 1 and crossed is not cluster.levels[-1]:
            unit = cluster.levels[-1].size
            together = min(size, max(1, -(-unit // stride)))
            outside = amount * (1 - together / size) / together
            assert seconds >= passes * outside / crossed.bandwidth_bytes_per_second, (size, stride)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("kind", RINGS)
def test_levels_never_lose_to_one_flat_ring(kind: str, spec: str) -> None:
    cluster, amount = CLUSTERS[spec], 1e8
    for size, stride in groups(cluster):
        if size == 1:
            continue
        link = cluster.slowest_link(stride, size)
        passes = 2 if link.whole_reductions and kind == "reduce_scatter" else PASSES.get(kind, 1)
        ring = passes * amount * (size - 1) / size / link.bandwidth_bytes_per_second
        ring += 2 * (size - 1) * link.latency_seconds
        assert collective_seconds(kind, amount, CommGroup(size, stride), cluster) <= ring * (
            1 + 1e-12
        )


def test_a_group_that_straddles_nodes_pays_for_the_network() -> None:
    cluster = CLUSTERS["6x8xh100"]
    inside = collective_seconds("all_reduce", 1e9, CommGroup(8, 1), cluster)
    assert collective_seconds("all_reduce", 1e9, CommGroup(12, 1), cluster) > 1.5 * inside
    assert collective_seconds("all_reduce", 1e9, CommGroup(3, 1), cluster) > inside


def test_gloo_scatters_sums_by_summing_everything() -> None:
    cluster = CLUSTERS["local:4"]
    scatter = collective_seconds("reduce_scatter", 1e9, CommGroup(4, 1), cluster)
    assert scatter == pytest.approx(
        collective_seconds("all_reduce", 1e9, CommGroup(4, 1), cluster), rel=1e-3
    )


def test_large_all_reduces_reach_the_bandwidth_that_was_published() -> None:
    """Bus bandwidth of 8 A100 over NVLink, 1 GiB: 231 GB/s in Galvatron's published profiles."""
    seconds = collective_seconds("all_reduce", 2**30, CommGroup(8, 1), load_cluster("8xa100-80"))
    assert 2 * 7 / 8 * 2**30 / seconds == pytest.approx(231e9, rel=0.1)
