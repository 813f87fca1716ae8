"""What a run of calls does: the unit in which strategies are mixed."""

import msgspec

from ..ir.plan import Memory
from ..ir.strategy import Strategy


class Decision(msgspec.Struct, frozen=True):
    """What calls `first` to `last - 1` do. Calls that follow from the batch alone remember nothing."""

    first: int
    last: int
    strategy: Strategy
    memory: Memory
