"""From a placement to a program: one module per rank, its operators and transfers in one order."""

from .program import compile_placement as compile_placement
