"""The HTTP server: batching, the device thread and the wire formats."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("revmux-server")
except PackageNotFoundError:
    # Run from a checkout that was never installed.
    __version__ = "unknown"
