"""Printing Python: identifiers, literals, and lines that keep within 100 columns."""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterable

from ..ir.model.model import Argument, Ref, complex_number

WIDTH = 100
RESERVED = (
    frozenset(keyword.kwlist)
    | frozenset(keyword.softkwlist)
    | {
        "comm",
        "run",
        "aten",
        "plait",
        "torch",
        "call",
        "range",
        "reversed",
        "forward",
        "backward",
        "batch_only",
        "saved",
        "float",
        "l",
        "O",
        "I",
        "ops",
    }
)


class VariableNames:
    """Assigns every value one safe, unique identifier."""

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self.taken = set(RESERVED) | set(taken)
        self.names_by_key: dict[object, str] = {}

    def of(self, key: object, wish: str) -> str:
        if key not in self.names_by_key:
            self.names_by_key[key] = self.fresh(wish)
        return self.names_by_key[key]

    def fresh(self, wish: str) -> str:
        base = identifier(wish)
        name, number = base, 1
        while name in self.taken:
            number += 1
            name = f"{base}_{number}"
        self.taken.add(name)
        return name


def identifier(wish: str) -> str:
    """Lower-case ASCII letters, digits and underscores, not starting with a digit."""
    cleaned = re.sub(r"[^a-z0-9_]+", "_", wish.lower()).strip("_")[-60:]
    return cleaned if cleaned and not cleaned[0].isdigit() else f"v{cleaned}"


def comment_text(text: str) -> str:
    """Text that is safe in a comment or docstring: one line of printable ASCII, no quotes."""
    safe = "".join(c if c.isascii() and c.isprintable() and c not in "\"\\'" else "?" for c in text)
    return safe[:80]


def literal(argument: Argument, names: dict[int, str]) -> str:
    """An operator's argument as source."""
    if isinstance(argument, Ref):
        return names[argument.value]
    if isinstance(argument, tuple):
        return "[" + ", ".join(literal(part, names) for part in argument) + "]"
    if isinstance(argument, str):
        kind, colon, value = argument.partition(":")
        if colon and kind in ("dtype", "memory_format") and value.isidentifier():
            return f"torch.{value}"
        if colon and kind == "float" and value in ("inf", "-inf", "nan"):
            return f'float("{value}")'
        if kind == "complex" and complex_number(value) is not None:
            return f'complex("{value}")'
        return string_literal(argument)
    return repr(argument)


def string_literal(text: str) -> str:
    """A string literal in double quotes, ASCII only."""
    inner = text.encode("unicode_escape").decode("ascii").replace('"', '\\"')
    return f'"{inner}"'


def wrapped(head: str, items: list[str], tail: str, indent: int) -> list[str]:
    """`head` + items + `tail` in one line if it fits, else items filled over several."""
    pad = " " * indent
    line = f"{pad}{head}{', '.join(items)}{tail}"
    if len(line) <= WIDTH:
        return [line]
    lines, current = [f"{pad}{head}"], f"{pad}   "
    for item in items:
        if len(current) + len(item) + 2 > WIDTH:
            lines.append(current)
            current = f"{pad}   "
        current += f" {item},"
    return [*lines, current, f"{pad}{tail}"]


def return_statement(values: list[str]) -> list[str]:
    """Return statement of a tuple of these variables."""
    return wrapped("return (", [f"{values[0]},"] if len(values) == 1 else values, ")", 4)


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"


def tuple_source(items: list[str]) -> str:
    """A tuple of these expressions."""
    return f"({', '.join(items)}{',' if len(items) == 1 else ''})"


def unpack_saved(names: list[str]) -> list[str]:
    """Statement that unpacks `saved` into variables."""
    return wrapped("[", names, "] = saved", 4)


COMM_METHODS = {"cut": "slice", "share": "scale"}  # collective kinds that `Comm` names otherwise


def comm_method(kind: str) -> str:
    """Method of `runtime.comm.mesh_collectives.Comm` that runs a collective of this kind."""
    return COMM_METHODS.get(kind, kind)
