"""The layout of one message: codes in 32-bit words, then scales, each padded to 16 bytes.

A word holds 32 / bits codes that lie `tile * bits / 32` apart: code j of word w of a tile belongs
to element `j * words + w`, so that packing moves nothing between vector lanes. Integer codes are
in two's complement, and so are signs of two bits (1, 0, -1); signs of one bit are 1 for negative, e4m3
codes as in the OCP 8-bit format.
"""

from __future__ import annotations

from msgspec import Struct

from .stage import PER_TENSOR, Codes

ALIGNMENT_BYTES = 16
WORD_BITS = 32
LANES = 16  # words of a tile, at least
SCALE_BYTES = 4
LARGEST_E4M3 = 448.0


class MessageFormat(Struct, frozen=True):
    """Codes of `bits`, one fp32 scale per `group` elements (PER_TENSOR: per message).

    `codes` "fp32" and "bf16" are uncompressed numbers without scales.
    """

    bits: int
    group: int
    codes: Codes | str = "integer"

    @property
    def plain(self) -> bool:
        return self.codes in ("fp32", "bf16")

    @property
    def sign_bits(self) -> bool:
        """Whether a code is a sign bit alone, without zero."""
        return self.codes == "sign" and self.bits == 1

    @property
    def tile(self) -> int:
        """Elements whose codes share words."""
        return max(self.group, LANES * WORD_BITS // self.bits)

    @property
    def words(self) -> int:
        """Words per tile; also the distance between the codes of a word."""
        return self.tile * self.bits // WORD_BITS

    @property
    def largest(self) -> float:
        """The value of the largest code; sign codes are 1 and -1."""
        if self.codes == "integer":
            return float(2 ** (self.bits - 1) - 1)
        return LARGEST_E4M3 if self.codes == "e4m3" else 1.0

    def scales(self, elements: int) -> int:
        """Number of scales in a message of `elements`."""
        if self.plain:
            return 0
        return 1 if self.group == PER_TENSOR else elements // self.group

    def codes_bytes(self, elements: int) -> int:
        return _aligned(elements * self.bits // 8)

    def used_bytes(self, elements: int) -> int:
        """Bytes of a message before its last padding."""
        return self.codes_bytes(elements) + self.scales(elements) * SCALE_BYTES

    def bytes(self, elements: int) -> int:
        """Bytes of a message of `elements`, a multiple of `tile`."""
        return _aligned(self.used_bytes(elements))

    @property
    def bytes_per_element(self) -> float:
        """Bytes per element of a long message, padding excluded."""
        scales = 0.0 if self.plain or self.group == PER_TENSOR else SCALE_BYTES / self.group
        return self.bits / 8 + scales


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
