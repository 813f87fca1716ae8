"""Strict reading and canonical writing of Plait's JSON files. Nothing in a file is ever executed."""

from __future__ import annotations

import json
import re
from functools import cache
from hashlib import sha256
from typing import Any, NoReturn, TypeVar, cast

import msgspec

from ..errors import FileError
from .file_version_1 import upgrade
from .text_value import decode_text, encode_text

T = TypeVar("T")
VERSION = 2
MOST_BYTES = 256 << 20
DEEPEST = 200
# Commands that write a format, for messages about another one.
WRITERS = {"plait/model": "trace", "plait/plan": "plan", "plait/placement": "place"}
LONGEST_TEXT = 1 << 16  # characters of one string
SURROGATE = re.compile(r"\\u[dD][89abABcdefCDEF]")
# strings whole, brackets outside
TOKENS = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[\]{}]', re.DOTALL)
STEPS = {"[": 1, "{": 1, "]": -1, "}": -1}  # of depth


def dump(value: Any, format_: str) -> bytes:
    """`{"format": …, "version": 2, …fields}` in the order of the type's fields, one item a line."""
    body = msgspec.to_builtins(value, enc_hook=encode_text)
    text = msgspec.json.encode({"format": format_, "version": VERSION, **body})
    return msgspec.json.format(text, indent=1) + b"\n" if len(text) < 1 << 20 else text + b"\n"


def load(data: bytes, kind: type[T], format_: str) -> T:
    """Read what `dump` wrote, now or in version 1; raises FileError with the JSON path of what is
    wrong."""
    if len(data) > MOST_BYTES:
        raise FileError(f"$: {len(data)} bytes; at most {MOST_BYTES} are read")
    parsed = parse(data)
    if not isinstance(parsed, dict):
        raise FileError("$: not an object")
    body = cast("dict[str, Any]", parsed)
    found, version = body.pop("format", None), body.pop("version", None)
    if found != format_:
        raise FileError(_other_format(found, format_))
    if version not in (1, VERSION) or type(version) is not int:
        known = f"this reads versions 1 and {VERSION}"
        raise FileError(f"$.version: {version!r:.60} is not known; {known}")
    if version == 1:
        body = upgrade(body, format_)
    try:
        value = msgspec.convert(body, kind, strict=True, dec_hook=decode_text)
    except msgspec.ValidationError as error:
        raise FileError(located(str(error))) from None
    except (ValueError, OverflowError, RecursionError) as error:
        raise FileError(f"$: {str(error)[:200]}") from None
    _refuse_unknown(body, value, "$")
    return value


def _other_format(found: Any, expected: str) -> str:
    """The message for a file of another format, or of none."""
    kind = expected.removeprefix("plait/")
    written = f" (`plait {WRITERS[expected]}` writes one)" if expected in WRITERS else ""
    if isinstance(found, str) and found.startswith("plait/"):
        return f"$.format: a {found[6:66]}, where a {kind} is expected{written}"
    return f"$.format: {found!r:.60} where {expected!r} is expected{written}"


def _refuse_unknown(data: Any, value: Any, path: str) -> None:
    """Every key of the file must have become part of the value."""
    if isinstance(data, dict):
        read = _fields(value) if isinstance(value, msgspec.Struct) else value
        for key, item in cast("dict[str, Any]", data).items():
            if key not in read:
                raise FileError(f"{path}.{key[:60]}: unknown field")
            if isinstance(item, dict | list):
                _refuse_unknown(item, read[key], f"{path}.{key}")
    elif isinstance(data, list):
        items = _fields(value).values() if isinstance(value, msgspec.Struct) else value
        pairs = zip(cast("list[Any]", data), items, strict=False)
        for place, (item, other) in enumerate(pairs):
            if isinstance(item, dict | list):
                _refuse_unknown(item, other, f"{path}[{place}]")


def _fields(value: msgspec.Struct) -> dict[str, Any]:
    """What an object or a list of a file became, by key; those that have their defaults are among it."""
    config = value.__struct_config__
    fields = {} if config.tag_field is None else {config.tag_field: config.tag}
    for name, key in _names(type(value)):
        fields[key] = getattr(value, name)
    return fields


@cache
def _names(kind: type[msgspec.Struct]) -> tuple[tuple[str, str], ...]:
    """Every field of a kind of object, with its key in files."""
    return tuple((field.name, field.encode_name) for field in msgspec.structs.fields(kind))


def located(message: str) -> str:
    """msgspec's message with the JSON path first."""
    match = re.fullmatch(r"(?s)(.*?) - at `(.*)`", message)
    return f"{match[2]:.200}: {match[1]:.200}" if match else f"$: {message:.200}"


def parse(data: bytes) -> Any:
    """The JSON value of some bytes; FileError for duplicate keys, NaN, absurd depth or numbers."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FileError(f"$: not UTF-8 (byte {error.start})") from None
    depth = 0
    for match in TOKENS.finditer(text):
        token = match[0]
        if token in STEPS:
            depth += STEPS[token]
            if depth > DEEPEST:
                raise FileError(f"$: nested deeper than {DEEPEST}")
        elif len(token) > LONGEST_TEXT:
            raise FileError(f"$…{token[:30]}: a text of more than {LONGEST_TEXT} characters")
    try:
        value = json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=_constant,
            parse_int=_integer,
            parse_float=_real,
        )
    except json.JSONDecodeError as error:
        raise FileError(f"$: not JSON: {error.msg} (line {error.lineno})") from None
    except RecursionError:
        raise FileError("$: nested too deep") from None
    if SURROGATE.search(text):
        _refuse_surrogates(value, "$")
    return value


def _refuse_surrogates(value: Any, path: str) -> None:
    """Half a character outside the basic plane is no text: it could not be written again."""
    if isinstance(value, str):
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise FileError(f"{path:.200}: half of a surrogate pair")
    elif isinstance(value, dict):
        for key, item in cast("dict[str, Any]", value).items():
            _refuse_surrogates(key, path)
            _refuse_surrogates(item, f"{path}.{key}")
    elif isinstance(value, list):
        for place, item in enumerate(cast("list[Any]", value)):
            _refuse_surrogates(item, f"{path}[{place}]")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for name, item in pairs:
        if name in value:
            raise FileError(f"$…{name[:60]}: the key stands twice in one object")
        value[name] = item
    return value


def _constant(text: str) -> NoReturn:
    raise FileError(f"$: {text} is not a number that a file may hold")


def _integer(text: str) -> int:
    if len(text) > 20 or not -(1 << 63) <= int(text) < 1 << 63:
        raise FileError(f"$: {text[:30]} is beyond 64 bits")
    return int(text)


def _real(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise FileError(f"$: {text[:30]} is beyond a double")
    return number


def digest(value: Any) -> str:
    """Identity of a value: 16 hex digits of the sha256 of its canonical form."""
    return sha256(msgspec.json.encode(value, enc_hook=encode_text)).hexdigest()[:16]
