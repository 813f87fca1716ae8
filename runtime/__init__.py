"""What a generated program calls while it runs, on torch.distributed. Loads torch when asked to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..ir.late_names import late_names

if TYPE_CHECKING:
    from .program import Program as Program

__getattr__ = late_names(__name__, {"Program": ".program"})
