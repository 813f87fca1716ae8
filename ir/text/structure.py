"""Text of any value that files hold: `{name=value …}` for structs, `[value …]` for lists, and scalars.

    peak_points = [
      {phase=forward waiting_bytes=0 call_bytes=4096}
      {phase=backward waiting_bytes=8192 call_bytes=1024}
    ]

Fields that have their defaults are left out. Inside brackets lines may be broken anywhere.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, TypeAlias, cast

import msgspec

from ..files.text_value import decode_text, encode_text
from .lexer import TextReader, located, name_text

Plain: TypeAlias = "dict[str, Plain] | list[Plain] | str | int | float | None"
WIDTH = 100
INDENT = 2


def print_fields(value: msgspec.Struct, indent: int, names: Collection[str]) -> Iterator[str]:
    """One `name = value` for every field among `names` that has not its default."""
    for name, item in _given(value).items():
        if name in names:
            yield f"{' ' * indent}{name} = {_broken(item, indent, len(name) + 3)}"


def print_value(value: Any) -> str:
    """A value on one line."""
    return _flat(_plain(value))


def _given(value: msgspec.Struct) -> dict[str, Plain]:
    """The fields of a struct that have not their defaults, as plain data."""
    fields: dict[str, Plain] = {}
    for field in msgspec.structs.fields(value):
        item = getattr(value, field.name)
        default = field.default
        if field.default_factory is not msgspec.NODEFAULT:
            default = field.default_factory()
        if default is msgspec.NODEFAULT or type(item) is not type(default) or item != default:
            fields[field.name] = _plain(item)
    return fields


def _plain(value: Any) -> Plain:
    """A value as dicts, lists and scalars."""
    if isinstance(value, msgspec.Struct) and not value.__struct_config__.array_like:
        return _given(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in cast("list[Any]", value)]
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in cast("dict[str, Any]", value).items()}
    return cast(Plain, msgspec.to_builtins(value, enc_hook=encode_text))


def _flat(data: Plain) -> str:
    if isinstance(data, dict):
        return "{" + " ".join(f"{name_text(n)}={_flat(v)}" for n, v in data.items()) + "}"
    if isinstance(data, list):
        return "[" + " ".join(map(_flat, data)) + "]"
    if isinstance(data, str):
        return name_text(data)
    return "none" if data is None else str(data).lower() if isinstance(data, bool) else repr(data)


def _broken(data: Plain, indent: int, before: int) -> str:
    """The text of data after `before` characters of a line; broken where the line would be too long."""
    flat = _flat(data)
    if indent + before + len(flat) <= WIDTH or not isinstance(data, dict | list):
        return flat
    inner = indent + INDENT
    if isinstance(data, dict):
        items = [f"{name_text(n)}={_broken(v, inner, len(n) + 1)}" for n, v in data.items()]
    else:
        items = [_broken(item, inner, 0) for item in data]
    opening, closing = ("{", "}") if isinstance(data, dict) else ("[", "]")
    pad = "\n" + " " * inner
    return f"{opening}{pad}{pad.join(items)}\n{' ' * indent}{closing}"


def read_value(reader: TextReader, kind: Any) -> Any:
    """A value of a type, as `print_value` writes it; raises FileError at its place."""
    token = reader.next
    data = _data(reader)
    try:
        value = msgspec.convert(data, kind, strict=True, dec_hook=decode_text)
    except (msgspec.ValidationError, ValueError, OverflowError) as error:
        raise located(token.line, token.column, str(error)) from None
    unknown = _unknown(data, msgspec.to_builtins(value, enc_hook=encode_text))
    if unknown is not None:
        raise located(token.line, token.column, f"unknown field {unknown!r}")
    return value


def _unknown(data: Any, known: Any) -> str | None:
    """The first field of some data that is not part of the value that was made of it."""
    pairs: list[tuple[Any, Any]] = []
    if isinstance(data, dict) and isinstance(known, dict):
        fields, values = cast("dict[str, Any]", data), cast("dict[str, Any]", known)
        for name in fields:
            if name not in values:
                return name
        pairs = [(fields[name], values[name]) for name in fields]
    elif isinstance(data, list) and isinstance(known, list | tuple):
        pairs = list(zip(cast("list[Any]", data), cast("list[Any]", known), strict=False))
    return next((name for pair in pairs if (name := _unknown(*pair)) is not None), None)


def read_fields(
    reader: TextReader, kind: type[msgspec.Struct], names: Collection[str]
) -> dict[str, Any]:
    """`name = value` lines with fields of a struct, up to a line that is none of `names`."""
    types = {f.name: f.type for f in msgspec.structs.fields(kind) if f.name in names}
    fields: dict[str, Any] = {}
    while reader.next.kind == "word" and reader.next.text in types:
        name = reader.name("a field")
        if name in fields:
            reader.fail(f"{name} is given already: another field")
        reader.expect("=")
        fields[name] = read_value(reader, types[name])
        reader.end_line()
    return fields


def _data(reader: TextReader) -> Any:
    if reader.next.kind == "number":
        return reader.number()
    if reader.sees("inf", "nan"):
        return float(reader.take().text)
    if reader.sees("none", "true", "false"):
        return reader.flag()
    if reader.accept("["):
        items: list[Any] = []
        while not reader.accept("]"):
            items.append(_data(reader))
        return items
    if reader.accept("{"):
        return _object(reader)
    return reader.name("a value")


def _object(reader: TextReader) -> dict[str, Any]:
    data: dict[str, Any] = {}
    while not reader.accept("}"):
        name = reader.name("a field")
        if name in data:
            reader.fail(f"{name} is given already: another field")
        reader.expect("=")
        data[name] = _data(reader)
    return data
