"""Plait: a compiler that spreads PyTorch training over many devices."""

from plait.api import __all__ as __all__
from plait.api import __dir__ as __dir__
from plait.api import __getattr__ as __getattr__

TYPE_CHECKING = False  # typing.TYPE_CHECKING costs a module; checkers know the name
if TYPE_CHECKING:
    from plait.api import *  # noqa: F403
