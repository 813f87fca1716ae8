"""Ranges of the numbers in files: a field states its own in its type, and reading a file checks it."""

from typing import Annotated

from msgspec import Meta

MOST_BYTES = 1 << 60
Bytes = Annotated[int, Meta(ge=0, le=MOST_BYTES)]
ItemBytes = Annotated[int, Meta(ge=0, le=64)]
Amount = Annotated[float, Meta(ge=0, le=1e30)]  # bytes or operations that need not be whole
Seconds = Annotated[float, Meta(ge=0, le=1e15)]
Share = Annotated[float, Meta(ge=0, le=1)]
Rate = Annotated[float, Meta(ge=0, le=1e30)]  # of something per second
Count = Annotated[int, Meta(ge=1, le=1 << 40)]  # of what is priced, not listed
Index = Annotated[int, Meta(ge=0, le=1 << 40)]
FewCount = Annotated[int, Meta(ge=1, le=1 << 16)]  # of what is listed one by one
ListedCount = Annotated[int, Meta(ge=1, le=1 << 20)]
AxisSize = Annotated[int, Meta(ge=1, le=1 << 30)]
Integer = Annotated[int, Meta(ge=-(1 << 62), le=1 << 62)]
InFlight = Annotated[float, Meta(ge=0, le=1 << 20)]
SlotCount = Annotated[int, Meta(ge=0, le=1 << 10)]  # of a rank, each with tensors
StateCount = Annotated[int, Meta(ge=0, le=64)]
Digest = Annotated[str, Meta(pattern="^[0-9a-f]{16}$")]
