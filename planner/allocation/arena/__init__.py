"""The arena: an offset for every buffer whose lifetime is known, so that the peak is small."""

from .pack import pack as pack
