"""The type of a tensor: a shape and an element type."""

from math import prod

import msgspec

# fmt: off
ITEM_BYTES = {
    "bool": 1, "uint8": 1, "int8": 1, "int16": 2, "int32": 4, "int64": 8, "float8_e4m3fn": 1,
    "float8_e5m2": 1, "float16": 2, "bfloat16": 2, "float32": 4, "float64": 8,
    "complex64": 8, "complex128": 16,
}
# fmt: on
SHORT = {
    "float64": "f64",
    "float32": "f32",
    "bfloat16": "bf16",
    "float16": "f16",
    "int64": "i64",
    "int32": "i32",
}


class TensorType(msgspec.Struct, frozen=True, array_like=True):
    """Shape in elements, element type by torch's name (`"float32"`)."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def elements(self) -> int:
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.elements * ITEM_BYTES[self.dtype]

    @property
    def is_float(self) -> bool:
        return self.dtype.startswith(("float", "bfloat"))

    @property
    def differentiable(self) -> bool:
        """Whether gradients pass through it, and shards of it may be parts of a sum."""
        return self.dtype.startswith(("float", "bfloat", "complex"))

    @property
    def is_half(self) -> bool:
        """Whether elements are floats of 16 bits, which lose the small updates of training."""
        return self.dtype in ("float16", "bfloat16")

    def __str__(self) -> str:
        return f"{SHORT.get(self.dtype, self.dtype)}[{' '.join(map(str, self.shape))}]"
