"""Regions: parts that fast links join, normalised cuts of noisy links, paths along fast links."""

from itertools import combinations
from random import Random

from msgspec.structs import replace

from plait.cost_model.hardware import load_any_cluster
from plait.ir.devices.cluster import PartLink
from plait.ir.devices.mixed import mixed_cluster
from plait.planner.heterogeneous.regions import link_graph, partitions, paths
from plait.planner.heterogeneous.shapes import near_parts, shapes


def cluster(parts, gigabytes, slow=0.2):
    """Parts of two devices; `gigabytes`: per second, by pair, where it is not the slow link."""
    link = load_any_cluster("1xh100+1xa100-40").levels[0]

    def of(rate):
        return replace(link, bandwidth_bytes_per_second=rate * 1e9)

    links = [PartLink(*pair, of(rate)) for pair, rate in gigabytes.items()]
    kinds = [load_any_cluster(("2xh100", "2xa100-40")[n % 2]) for n in range(parts)]
    return mixed_cluster("zones", kinds, of(slow), links)


def test_equal_links_leave_the_whole_and_the_parts():
    found = partitions(cluster(3, {}))
    assert found[0] == ((0, 1, 2),)
    assert found[-1] == ((0,), (1,), (2,))


def test_fast_links_join_regions():
    found = partitions(cluster(4, {(0, 2): 12, (1, 3): 12}))
    assert {((0, 1, 2, 3),), ((0, 2), (1, 3)), ((0,), (1,), (2,), (3,))} <= set(found)


def test_a_cut_finds_zones_in_noisy_links_where_one_fast_link_joins_them():
    # 0 2 4 and 1 3 5 are zones; a link between them is as fast as most inside
    random = Random(0)
    inside = {
        pair: random.uniform(8, 12)
        for zone in ((0, 2, 4), (1, 3, 5))
        for pair in combinations(zone, 2)
    }
    across = {(a, b): random.uniform(0.5, 1.5) for a in (0, 2, 4) for b in (1, 3, 5)}
    links = {tuple(sorted(pair)): rate for pair, rate in {**inside, **across, (0, 1): 9}.items()}
    assert ((0, 2, 4), (1, 3, 5)) in partitions(cluster(6, links))


def test_paths_go_along_fast_links():
    graph = link_graph(cluster(4, {(0, 3): 12, (1, 3): 12, (1, 2): 12}))
    assert paths(graph, range(4))[0] in {(0, 3, 1, 2), (2, 1, 3, 0)}


def test_replicas_stay_in_regions_and_a_region_may_be_alone():
    zones = cluster(4, {(0, 2): 12, (1, 3): 12})
    found = shapes(zones, near_parts(zones), [1] * 4)
    regions = [[{group.part for group in row} for row in shape] for shape in found]
    assert [{0, 2}] in regions
    assert [{0, 2}, {1, 3}] in regions
    assert any(set().union(*rows) == {0, 1, 2, 3} for rows in regions)
