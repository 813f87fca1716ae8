"""Prices of compression programs: bounds, monotony, and what was published."""

from itertools import pairwise

import pytest

from plait.cost_model.communication.collective import CommGroup, collective_seconds
from plait.cost_model.communication.compressed_collective import kernel_bytes, kernel_seconds, price
from plait.cost_model.hardware import load_cluster
from plait.ir.compression.identity import uncompressed
from plait.ir.compression.lower import lower
from plait.ir.compression.registry import PROGRAMS
from plait.ir.devices.cluster import Cluster, Link

CLUSTERS = {spec: load_cluster(spec) for spec in ("4x8xh100", "8xa100-40", "local:4")}


@pytest.mark.parametrize("spec", CLUSTERS)
@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_has_a_price_that_grows(name, spec):
    cluster = CLUSTERS[spec]
    prices = [
        price(PROGRAMS[name], elements, CommGroup(cluster.devices, 1), cluster)
        for elements in (1, 10**4, 10**6, 10**8)
    ]
    assert all(a.seconds <= b.seconds and a.sent_bytes <= b.sent_bytes for a, b in pairwise(prices))
    assert all(p.transfer_seconds > 0 and p.codec_seconds > 0 for p in prices)


@pytest.mark.parametrize("name", PROGRAMS)
def test_bytes_are_those_of_the_runtime(name):
    cluster = CLUSTERS["4x8xh100"]
    pipeline = lower(PROGRAMS[name], 8, 4)
    assert price(
        PROGRAMS[name], 10**6, CommGroup(32, 1), cluster
    ).sent_bytes == pipeline.sent_bytes(10**6)


def test_never_faster_than_memory():
    device = CLUSTERS["4x8xh100"].device
    for program in PROGRAMS.values():
        for kernel in lower(program, 8, 4).kernels:
            least = kernel_bytes(kernel, 2**20) / device.memory_bandwidth_bytes_per_second
            assert kernel_seconds(kernel, 2**20, device) >= least


def test_plain_exchanges_cost_what_collectives_cost():
    """Without compression the wire takes as long as the collectives that a program is made of."""
    cluster, elements = CLUSTERS["local:4"], 4 * 128 * 1000
    program = uncompressed(PROGRAMS["eight-bits.gradients"])
    expected = collective_seconds("all_to_all", 4 * elements, CommGroup(4, 1), cluster)
    expected += collective_seconds("all_gather", 4 * elements, CommGroup(4, 1), cluster)
    assert price(program, elements, CommGroup(4, 1), cluster).transfer_seconds == pytest.approx(
        expected
    )


def test_levels_are_those_of_the_cluster():
    cluster = CLUSTERS["4x8xh100"]
    assert cluster.neighbours_per_node(32, 1) == 8
    assert cluster.neighbours_per_node(8, 1) == 8
    assert cluster.neighbours_per_node(4, 8) == 1
    assert cluster.neighbours_per_node(16, 2) == 4


def test_error_states_are_counted_and_replicas_are_not():
    cluster = CLUSTERS["4x8xh100"]
    one_bit = price(PROGRAMS["one-bit.gradients"], 2**20, CommGroup(32, 1), cluster)
    assert one_bit.state_bytes == pytest.approx(4 * 2**20 * (1 + 1 / 32), rel=0.02)
    assert price(PROGRAMS["sdp4bit.weights"], 2**20, CommGroup(32, 1), cluster).state_bytes == 0


def test_the_published_speed_of_gradients_in_two_levels():
    """SDP4Bit, table 4: 1.3 B gradients over 8 nodes of 4 A100 and 100 Gbit/s, 379.3 to 45.9 ms."""
    a100 = load_cluster("8x4xa100-40")
    network = Link("network", 8, 5e-6, 12.5e9 / 4)
    cluster = Cluster("slingshot", a100.device, (network, a100.levels[-1]))
    elements = 1_300_000_000
    before = collective_seconds("reduce_scatter", 4 * elements, CommGroup(32, 1), cluster)
    after = price(PROGRAMS["sdp4bit.gradients"], elements, CommGroup(32, 1), cluster).seconds
    assert before == pytest.approx(0.3793, rel=0.2)
    assert after == pytest.approx(0.0459, rel=0.3)
    assert before / after == pytest.approx(379.3 / 45.9, rel=0.3)


def test_compression_pays_on_slow_links_only():
    def gain(bandwidth):
        device = CLUSTERS["local:4"].device
        cluster = Cluster("x", device, (Link("x", 4, 1e-4, bandwidth),))
        plain = collective_seconds("all_reduce", 4 * 16e6, CommGroup(4, 1), cluster)
        return (
            plain
            / price(PROGRAMS["dithering.gradients"], 16_000_000, CommGroup(4, 1), cluster).seconds
        )

    gains = [gain(b) for b in (12.5e6, 125e6, 1.25e9, 12.5e9, 125e9)]
    assert all(a >= b for a, b in pairwise(gains))
    assert gains[0] > 5 > 1 > gains[-1]
