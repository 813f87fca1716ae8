"""Devices by the names that drivers, vendors and tables give them."""

from __future__ import annotations

import re
from itertools import permutations

from .hardware import preset_names, presets

# Of a chip's name: `a10` is not in `a100`, but letters may follow (`A100SXM4`)
CHIP = r"(?<![a-z0-9]){}(?!\d)"
BRANDS = re.compile(r"amd|ascend|[dh]gx|geforce|intel|nvidia|tesla|tpu")


def preset_of(name: str, memory_gb: float = 0.0) -> str | None:
    """The preset of a device by a name such as `NVIDIA A100 80GB PCIe` or `H100-SXM`; None: unknown.

    The longest name of a preset decides, of presets of one name the nearest in memory: `memory_gb`
    (1e9 bytes) or what the name says; else the one that names no memory, or the largest."""
    text = BRANDS.sub(" ", name.lower())
    lengths = {preset: _longest(preset, text) for preset in presets()}
    longest = max(lengths.values())
    if not longest:
        return None
    members = [preset for preset, length in lengths.items() if length == longest]
    sizes = {preset: presets()[preset].device.memory_bytes / 1e9 for preset in members}
    if wanted := memory_gb or memory_of(name):
        return min(members, key=lambda preset: abs(sizes[preset] - wanted))
    return max(members, key=lambda preset: (_plain(preset) == preset, sizes[preset]))


def memory_of(name: str) -> float:
    """Gigabytes that a name says, as in `V100-SXM2-16GB`; 0: none."""
    said = re.search(r"(?<![a-z0-9])(\d+) ?g(i?b)?(?![a-z])", name.lower())
    return float(said[1]) if said else 0.0


def _plain(preset: str) -> str:
    """The name without its memory."""
    return re.sub(r"-\d+$", "", preset)


def _longest(preset: str, text: str) -> int:
    """Letters and digits of the longest of a preset's names whose parts a text has; 0: of none."""
    names = (_plain(preset).replace("-", " "), *preset_names()[preset])
    orders = (order for n in names for order in permutations(BRANDS.sub(" ", n).split()))
    return max(
        sum(map(len, order))
        for order in (*orders, ())
        if re.search(r".*?".join(map(_pattern, order)), text)
    )


def _pattern(part: str) -> str:
    """Of a part of a name, with or without marks between its letters and its digits."""
    return CHIP.format(r"[\W_]*".join(re.findall(r"[a-z]+|\d+", part)))
