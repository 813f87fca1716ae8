"""Moving a value between the layouts of neighbouring operators, by Aceso's rules and tables."""

from __future__ import annotations

from plait.benchmarks.rivals.aceso.plan import Degrees
from plait.benchmarks.rivals.aceso.profile import RESNET, AcesoModel

Layout = tuple[int, int, int, int]  # copies, and the splits of three dimensions
LAYOUTS = (  # of the input and output of a GPT operator, by a part of its name
    ("attention-qkv", "KS"),
    ("GEMM-1", "KS"),
    ("attention-score", "SH"),
    ("attention-softmax", "HH"),
    ("enc-attention-dropout", "HH"),
    ("attention-context", "HS"),
    ("attention-dense", "SK"),
    ("GEMM-2", "SK"),
    ("gelu", "SS"),
    ("final-layernorm", "KF"),
    ("post-process", "FF"),
)


def reshard_ms(
    model: AcesoModel, operator: int, neighbours: tuple[Degrees, Degrees], size_mb: float
) -> float:
    """Milliseconds, forward and backward, to give an operator what the one before it computed."""
    one, other = neighbours
    if one == other or not model.family.reshards:
        return 0.0
    source, target = _layouts(model, operator - 1, one)[1], _layouts(model, operator, other)[0]
    if source == target:
        return 0.0
    if source[0] != target[0]:
        ratio = max(source[0], target[0]) // min(source[0], target[0])
        return model.collective_ms("all_gather", ratio, size_mb)
    ratio = max(a // b for a, b in zip(source[1:], target[1:], strict=True))
    return 2 * model.collective_ms("all_to_all", ratio, size_mb)


def _layouts(model: AcesoModel, operator: int, degrees: Degrees) -> tuple[Layout, Layout]:
    """Layouts that an operator takes and gives."""
    tensor, data, algorithm = degrees
    name = model.names[operator]
    layouts: dict[str, Layout] = {
        "K": (tensor, 1, data, 1),
        "S": (1, 1, data, tensor),
        "H": (1, data, tensor, 1),
        "F": (tensor, data, 1, 1),
    }
    if model.family is RESNET:
        return layouts["F"], layouts["F"]
    taken, given = next((pair for part, pair in LAYOUTS if part in name), "KK")
    if algorithm and {taken, given} == {"K", "S"}:
        taken, given = given, taken
    return layouts[taken], layouts[given]
