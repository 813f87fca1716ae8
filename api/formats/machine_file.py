"""The cluster file of a machine from what it says of itself; what it does not say is the preset's."""

from __future__ import annotations

from collections.abc import Iterator

from ...cost_model.device_names import preset_of
from ...cost_model.hardware import BYTES_PER_GIGABIT, NETWORK_SHARE, Preset, presets
from ...ir.errors import UsageError
from ...runtime.measurement.inventory import Inventory


def machine_file(inventory: Inventory, nodes: int | None = None) -> str:
    """A cluster file with comments; `nodes` machines where given.

    Raises UsageError where there is no device, there are several kinds, or none of a preset's.
    """
    if not inventory.names:
        raise UsageError(
            "no accelerator answers to nvidia-smi or torch.cuda here; run this on the machine to be "
            "used, or name a preset (`plait clusters`); `plait calibrate` measures processors"
        )
    kinds = sorted(set(inventory.names))
    if len(kinds) > 1:
        raise UsageError(f"devices of several kinds ({', '.join(kinds)}) need a file with [[part]]")
    preset = preset_of(name := inventory.names[0], inventory.memory_gb[0])
    if preset is None:
        raise UsageError(
            f"no preset has the chip of {name!r}; `plait calibrate -o machine.toml` measures it"
        )
    return "\n".join(_lines(inventory, preset, nodes or inventory.nodes or 1)) + "\n"


def _lines(inventory: Inventory, kind: str, nodes: int) -> Iterator[str]:
    preset, devices = presets()[kind], len(inventory.names)
    yield f"# {devices} × {inventory.names[0]} by {' and '.join(inventory.sources)}; edit freely"
    yield f'kind = "{kind}"  # its rates: `plait clusters {devices}x{kind}`'
    if nodes > 1:
        yield from _network(inventory, preset, nodes, devices)
    yield from _inside(inventory, preset, devices)


def _network(inventory: Inventory, preset: Preset, nodes: int, devices: int) -> Iterator[str]:
    network, gbit = preset.links["network"], sum(inventory.port_gbits) / devices
    rate, source = network.gb_per_s, "the preset's: no active port by ibstat"
    if gbit:
        rate = gbit * NETWORK_SHARE * BYTES_PER_GIGABIT / 1e9
        source = f"{gbit:g} Gbit/s per device by ibstat, {NETWORK_SHARE:.0%} of it (assumed)"
    yield from _level("network", nodes, rate, network.latency_us, f"{source}")


def _inside(inventory: Inventory, preset: Preset, devices: int) -> Iterator[str]:
    link, name = preset.links["scale_up"], "scale_up"
    rate, source = link.gb_per_s, link.source
    if inventory.nvlink is False and devices > 1 and preset.device.host_bandwidth_bytes_per_second:
        rate = min(rate, preset.device.host_bandwidth_bytes_per_second / 1e9)
        name, source = "pcie", "no NVLink by nvidia-smi topo: as fast as host memory"
    yield from _level(name, devices, rate, link.latency_us, source)


def _level(name: str, size: int, rate: float, latency_us: float, source: str) -> Iterator[str]:
    yield ""
    yield "[[level]]"
    yield f'name = "{name}"'
    yield f"size = {size}"
    yield f"gb_per_s = {rate:g}"
    yield f"latency_us = {latency_us:g}"
    yield f'source = "{source}"'
