"""Models as their texts have them, which leave the lines of operators out."""

from msgspec.structs import replace

from plait.ir.model.model import Model


def without_lines(model: Model) -> Model:
    functions = [
        replace(f, ops=tuple(replace(op, line="") for op in f.ops)) for f in model.functions
    ]
    half = None if model.half is None else without_lines(model.half)
    return replace(model, functions=tuple(functions), half=half)
