"""Arena allocation: offsets for buffers of known lifetimes that minimise the peak."""

from .pack import pack as pack
