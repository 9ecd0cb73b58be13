"""``import cuda.bindings``: the runtime and driver API on host memory."""

__version__ = "12.8.0"
