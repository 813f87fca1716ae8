"""`torch.func` inside a forward: vmap, grad, jvp and their like as operators of the step.

A transform runs apart from the recording on tensors without values; the operators that it comes to are
recorded in turn, so that the step differentiates them as any others.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, func
from torch.fx.experimental.proxy_tensor import make_fx

from ...errors import TraceError
from ..locate import current_user_line, in_torch
from ..torch_private import apart_from_recording, fake_mode_of, tree_flatten, tree_unflatten
from ..values.gradients import gradients, replayed

Replacement = Callable[..., Any]
OF_FUNCTIONS = (func.vmap, func.grad, func.grad_and_value, func.jacrev, func.jacfwd, func.hessian)


class Transforms:
    """What transforms functions while a model is recorded; transforms inside others are torch's own."""

    def __init__(self) -> None:
        self.inside = False

    def replacements(self) -> dict[Callable[..., Any], Replacement]:
        """By function of torch, what is called in its place."""
        return {
            **dict.fromkeys(OF_FUNCTIONS, self.transformed),
            func.jvp: self.along_tangents,
            func.vjp: self.pulled_back,
        }

    def transformed(self, original: Replacement, *args: Any, **kwargs: Any) -> Replacement:
        derived = original(*args, **kwargs)

        def call(*args: Any, **kwargs: Any) -> Any:
            return derived(*args, **kwargs) if self.inside else self.run(derived, args, kwargs)

        return call

    def along_tangents(
        self,
        original: Replacement,
        function: Replacement,
        primals: Any,
        tangents: Any,
        **kwargs: Any,
    ) -> Any:
        def derived(primals: Any, tangents: Any) -> Any:
            return original(function, primals, tangents, **kwargs)

        if self.inside:
            return derived(primals, tangents)
        return self.run(derived, (primals, tangents), {})

    def pulled_back(
        self, original: Replacement, function: Replacement, *primals: Any, has_aux: bool = False
    ) -> Any:
        """The results, which are recorded as they are, and a function that gives their gradients."""
        if self.inside:
            return original(function, *primals, has_aux=has_aux)
        leaves, structure = tree_flatten(primals)
        inputs = [p.view(p.shape) for p in leaves]  # whose paths begin here
        result = function(*tree_unflatten(inputs, structure))
        output, *rest = result if has_aux else (result,)

        def pull(cotangents: Any) -> Any:
            seeds = tree_flatten(cotangents)[0]
            derived = gradients(
                tree_flatten(output)[0], inputs, seeds, create_graph=True, allow_unused=True
            )
            there = [
                torch.zeros_like(i) if g is None else g
                for i, g in zip(inputs, derived, strict=True)
            ]
            return tree_unflatten(there, structure)

        return (output, pull, *rest)

    def run(self, derived: Replacement, args: Any, kwargs: Any) -> Any:
        """What a transformed function gives, as operators that are recorded."""
        leaves, structure = tree_flatten((args, kwargs))
        places = [n for n, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        if not places:
            return derived(*args, **kwargs)
        structures = list[Any]()

        def function(*values: Tensor) -> list[Any]:
            known = dict(zip(places, values, strict=True))
            args, kwargs = tree_unflatten(
                [known.get(n, leaf) for n, leaf in enumerate(leaves)], structure
            )
            results, of_results = tree_flatten(derived(*args, **kwargs))
            structures.append(of_results)
            return results

        tensors = [leaves[n] for n in places]
        self.inside = True
        try:
            with apart_from_recording(), fake_mode_of(tensors[0]), gradients_uncut():
                graph = make_fx(function)(*map(torch.empty_like, tensors))
        finally:
            self.inside = False
        graph.graph.eliminate_dead_code()  # comparisons of sizes that transforms make
        return tree_unflatten(list(replayed(graph, tensors)), structures[0])


@contextlib.contextmanager
def gradients_uncut() -> Iterator[None]:
    """Refuse what ends gradients inside a transform: transforms record the same operators themselves."""
    line = current_user_line()
    before = torch.Tensor.detach, torch.no_grad.__enter__

    def refused(original: Replacement) -> Replacement:
        def call(*args: Any) -> Any:
            if in_torch(sys._getframe(1).f_code.co_filename):
                return original(*args)
            raise TraceError(
                f"{line}: detach or no_grad inside of a function that torch.func transforms: detach its "
                "arguments or its results outside"
            )

        return call

    torch.Tensor.detach, torch.no_grad.__enter__ = map(refused, before)  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.Tensor.detach, torch.no_grad.__enter__ = before  # type: ignore[method-assign]
