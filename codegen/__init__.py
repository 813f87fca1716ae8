"""From a plan to a program: per-device functions, stages, a data table, and a main for torchrun."""

from .program import compile_program as compile_program
from .program import write_program as write_program
