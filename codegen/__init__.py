"""From a plan to a program: local functions, stages, a table of data, and a main for torchrun."""

from .program import compile_program as compile_program
from .program import write as write
