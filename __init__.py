"""Plait: a compiler that spreads PyTorch training over many devices."""

from plait.api import *  # noqa: F403
from plait.api import __all__ as __all__
from plait.api import __getattr__ as __getattr__
