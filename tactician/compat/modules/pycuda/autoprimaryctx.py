"""``import pycuda.autoprimaryctx``: makes a device and context current."""

from tactician.driver.autoinit import context, device

__all__ = ["context", "device"]
