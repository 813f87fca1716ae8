"""Tensors that the model's code made from Python numbers, or keeps unregistered, as constants."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from ...errors import TraceError
from ...model.model import Parameter
from ..literals import tensor_type
from ..torch_private import is_fake

MAXIMUM_CONSTANT = 65_536


class UnsupportedNode(Exception):
    """Node `index` of the recording cannot be expressed; the caller knows how to find its line."""

    def __init__(self, index: int, message: str) -> None:
        super().__init__(message)
        self.index = index


class Constants:
    """The constants of one recording; `reader` is the one that meets their nodes."""

    def __init__(self, reader: Any) -> None:
        self.reader = reader
        self.values: dict[str, int] = {}
        self.trained: dict[int, tuple[fx.Node, Tensor]] = {}

    def value(self, node: fx.Node) -> int:
        name = str(node.target)
        if name not in self.values:
            tensor = getattr(self.reader.recording.graph, name)
            if not isinstance(tensor, Tensor):
                raise TraceError(
                    "operators that take functions (torch.while_loop, scan, map) are not supported: "
                    "write the turns as a loop of Python, which is recorded turn by turn"
                )
            self.values[name] = self.add(tensor)
            if tensor.requires_grad:
                self.trained[self.values[name]] = node, tensor
                self.reader.aliases.carrying.add(self.values[name])
        return self.values[name]

    def add(self, tensor: Tensor) -> int:
        type_ = tensor_type(tensor)
        if type_.elements > MAXIMUM_CONSTANT:
            raise TraceError(
                f"the model uses a tensor of {type_.elements} elements that is neither a parameter "
                f"nor a buffer (at most {MAXIMUM_CONSTANT} are kept); use register_buffer"
            )
        if is_fake(tensor):
            raise TraceError(
                "the model uses a tensor without values that is neither a parameter nor a buffer; "
                "use register_buffer. (So are tensors from torch.autograd.grad, which is not supported "
                "inside a model, and from .data, for which detach() does)"
            )
        numbers = tensor.detach().cpu().reshape(-1)
        values = tuple((numbers.int() if numbers.dtype == torch.bool else numbers).tolist())
        graph = self.reader.graph
        taken = {p.name for p in self.reader.recording.state_tensors}
        number = len(self.values)
        while f"constant_{number}" in taken:
            number += 1
        value: int = graph.value(type_)
        constant = Parameter(f"constant_{number}", type_, "constant", False, (), values)
        graph.parameters[value] = constant
        return value

    def refuse_trained(self) -> None:
        """Raises UnsupportedNode for one that the loss would train, were it a parameter."""
        graph = self.reader.graph
        graph.trainable |= self.trained.keys()
        wanted = graph.wanted()
        graph.trainable -= self.trained.keys()
        nodes = list(self.reader.recording.graph.graph.nodes)
        for value, (node, tensor) in self.trained.items():
            if value in wanted:
                raise UnsupportedNode(
                    nodes.index(node),
                    f"the loss depends on a tensor {tensor_type(tensor)} that requires a gradient and "
                    "is no parameter of the model: it would not be trained. Make it a parameter of the "
                    "model (a loss function with parameters belongs inside: a module whose forward "
                    "gives the loss), or detach it",
                )
