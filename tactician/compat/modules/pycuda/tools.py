"""``import pycuda.tools``: making a context."""

from typing import Any

from tactician.driver import Context, Device


def get_default_device(default: int = 0) -> Device:
    """The only device."""
    return Device(default)


def make_default_context(ctx_maker: Any = None) -> Context:
    """A current context on the only device."""
    return ctx_maker(Device(0)) if ctx_maker else Device(0).make_context()


def clear_context_caches() -> None:
    """There are no caches."""
