"""The version of the package, as `pip` knows it."""

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("plait")
except PackageNotFoundError:  # a checkout that was never installed
    VERSION = "0+unknown"
