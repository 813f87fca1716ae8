"""A function as a device runs it forward and backward, and the storage that each value lies in."""

from __future__ import annotations

from collections.abc import Iterable

from ...ir import ops as _declarations  # noqa: F401  (fills the registry)
from ...ir.loops import declaration, site_of
from ...ir.lowering.forward_backward import Variant, split
from ...ir.model import Function, Op


class Routine:
    """The two pieces of a function under a memory variant.

    `whole` is what a call takes and gives; it differs from `function` where a call runs it piece after
    piece, each on a part of its values. `hosted`: what forward saves waits in host memory. `weights`
    bytes are gathered while it runs. `roots` and `late` say whose memory a value shares, in forward
    and in backward.
    """

    def __init__(
        self,
        function: Function,
        variant: Variant,
        whole: Function | None = None,
        hosted: bool = False,
        weights: int = 0,
    ) -> None:
        self.function, self.whole = function, whole or function
        self.hosted, self.weights = hosted, weights
        self.forward: tuple[Op, ...] = function.forward_ops
        self.backward: tuple[Op, ...] = ()
        self.saved: tuple[int, ...] = ()
        if function.differentiable:
            pieces = split(function, variant)
            self.forward, self.backward, self.saved = pieces.forward, pieces.backward, pieces.saved
        self.roots = _roots(function, self.forward)
        self.late = _roots(function, self.backward)

    @property
    def divided(self) -> bool:
        return self.whole is not self.function

    def cut(self, value: int, whole: int) -> bool:
        """Whether a piece sees only a part of a value of the whole."""
        return self.function.types[value] != self.whole.types[whole]


def _roots(function: Function, ops: Iterable[Op]) -> list[int]:
    """The value whose memory each value shares."""
    root = list(range(len(function.types)))
    for op in ops:
        operands = op.operands()
        declared = declaration(site_of(op, function.types)) if operands else None
        if declared is not None and declared.work == "view":
            for result in op.results:
                if result >= 0:
                    root[result] = root[operands[0]]
    return root
