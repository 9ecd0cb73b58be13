"""Whether this process can use a GPU, asked without importing anything heavy first."""

from __future__ import annotations

import ctypes
import functools
import sys
from importlib.util import find_spec

from ...support import knobs


@functools.cache
def gpu_present() -> bool:
    """Whether there is a GPU that the CUDA target supports, and the bindings to use it."""
    if find_spec("cuda") is None:
        return False
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    from .driver import default_gpu

    return default_gpu() is not None


def gpu_is_default() -> bool:
    """Whether engines are built for the GPU where nothing else is said: there is one, Triton can
    compile for it, and ``TACTICIAN_DEVICE`` does not say ``cpu``."""
    return knobs.default_device() != "cpu" and find_spec("triton") is not None and gpu_present()
