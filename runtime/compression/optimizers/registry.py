"""Optimizer classes by the name that the algorithms of `ir.compression.registry` give."""

from __future__ import annotations

from types import MappingProxyType

from .cser import CSER
from .lans import LANS
from .local_adaalter import LocalAdaAlter
from .one_bit_adam import OneBitAdam
from .one_bit_lamb import OneBitLamb
from .partial_reduce import PartialReduce
from .shifted_sgd import ShiftedSGD
from .sign_momentum import SignMomentum
from .stale_sgd import StaleSGD
from .wrapped import Averaged, Sharded
from .zero_one_adam import ZeroOneAdam

OPTIMIZERS = MappingProxyType(
    {
        kind.__name__: kind
        for kind in (
            Averaged,
            Sharded,
            CSER,
            LANS,
            LocalAdaAlter,
            OneBitAdam,
            OneBitLamb,
            PartialReduce,
            ShiftedSGD,
            SignMomentum,
            StaleSGD,
            ZeroOneAdam,
        )
    }
)
