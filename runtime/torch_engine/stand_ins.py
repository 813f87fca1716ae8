"""Pipeline stages of a module whose layers are split over tensor ranks.

Export records literal shapes and takes no distributed tensors. So while a module is exported a stand-in
shows the shapes of every split layer on one rank; the exported stages then take the split layers back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Graph

from ...ir.errors import UsageError
from .sequence_styles import ModuleCall

StandIns = dict[str, nn.Module]  # by the path of the split layer


class StandIn(nn.Module):
    """Takes what a split layer takes and gives a tensor of the width that the layer gives."""

    def __init__(self, width: int, like: Tensor) -> None:
        super().__init__()
        self.width: int = width
        self.weight: nn.Parameter = nn.Parameter(like.new_zeros(1, 1))

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_floating_point():
            return F.embedding(x, self.weight.expand(1, self.width))
        return F.linear(x, self.weight.expand(self.width, x.shape[-1]))


def stand_ins(module: nn.Module, paths: Iterable[str], calls: Mapping[str, ModuleCall]) -> StandIns:
    """A stand-in of every split layer; `calls`: of every module, once, on one tensor rank."""
    like = next(p for p in module.parameters() if p.is_floating_point())
    local = like.detach().new_empty(0, device=like.device, dtype=like.dtype)
    return {path: StandIn(calls[path].output.shape[-1], local) for path in paths if path in calls}


@contextmanager
def standing_in(module: nn.Module, places: Mapping[str, nn.Module]) -> Iterator[None]:
    """Let stand-ins take the places of split layers."""
    layers = {path: module.get_submodule(path) for path in places}
    for path, stand_in in places.items():
        module.set_submodule(path, stand_in)
    try:
        yield
    finally:
        for path, layer in layers.items():
            module.set_submodule(path, layer)


def put_back(stage: nn.Module, module: nn.Module, places: Mapping[str, nn.Module]) -> set[str]:
    """Put the split layers of a module into an exported stage; gives their paths. Raises UsageError for
    one that the stage calls twice."""
    exported = dict(stage.named_modules())
    for path in places:
        if f"{path}@1" in exported:
            raise UsageError(f"{path} is called twice: no pp beside tp for such a layer")
    restored = {path for path in places if path in exported}
    for path in restored:
        graph = exported[path].graph
        if not isinstance(graph, Graph) or len(graph.find_nodes(op="placeholder")) != 1:
            raise UsageError(f"{path} takes several values: no pp beside tp for such a layer")
        stage.set_submodule(path, module.get_submodule(path))
    return restored
