"""Values that files hold as text: `str(value)` writes one, `parse` reads it back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self, dataclass_transform


@dataclass_transform(frozen_default=True)
class TextValue:
    """Base of frozen values that are one short text in files and on the command line.

    A subclass declares its fields as a dataclass does, prints itself with `__str__` and reads that
    text with `parse`, which raises ValueError.
    """

    def __init_subclass__(cls) -> None:
        dataclass(frozen=True, eq=False)(cls)
        # msgspec writes a dataclass as an object of its fields; other classes are left to the hooks
        delattr(cls, "__dataclass_fields__")

    @classmethod
    def parse(cls, text: str) -> Self:
        """The value that prints as `text`."""
        raise NotImplementedError

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and hash(self) == hash(other) and str(self) == str(other)

    def __hash__(self) -> int:
        known: int | None = self.__dict__.get("_hash")
        if known is None:
            known = self.__dict__["_hash"] = hash(str(self))
        return known

    def __getstate__(self) -> dict[str, Any]:
        """Fields alone: hashes of texts differ between processes."""
        return {name: value for name, value in self.__dict__.items() if name != "_hash"}

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)


def encode_text(value: Any) -> str:
    """msgspec's `enc_hook`: the text of a `TextValue`."""
    if isinstance(value, TextValue):
        return str(value)
    raise NotImplementedError(f"{type(value)} in a file")


def decode_text(kind: type[Any], data: Any) -> Any:
    """msgspec's `dec_hook`: a `TextValue` from its text; raises ValueError."""
    if not issubclass(kind, TextValue):
        raise NotImplementedError(f"{kind} in a file")
    if not isinstance(data, str):
        raise ValueError(f"a text is needed, not {data!r:.40}")
    return kind.parse(data)
