"""Which device a build is for where nothing else is said."""

from __future__ import annotations

import ctypes
import functools
import sys
from importlib.util import find_spec

from ..network.enums import DeviceType
from ..support import knobs


@functools.cache
def gpu_usable() -> bool:
    """Whether there is a GPU that the CUDA target can build for and run on."""
    if find_spec("cuda") is None or find_spec("triton") is None:
        return False
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    from ..targets.cuda.driver import default_gpu

    return default_gpu() is not None


def why_no_gpu() -> str:
    """What keeps engines from being built for a GPU here, or ""."""
    if find_spec("triton") is None:
        return "Triton is not installed (pip install 'tactician[cuda]')"
    if knobs.gpu() or gpu_usable():
        return ""
    from ..targets.cuda.driver import NoGpuError, open_gpu

    try:
        open_gpu(0)
    except NoGpuError as e:
        return str(e)
    return ""


def default_device_type() -> DeviceType:
    """GPU where one can be used, unless ``TACTICIAN_DEVICE`` says otherwise."""
    said = knobs.default_device()
    gpu = said == "gpu" or (said == "" and gpu_usable())
    return DeviceType.GPU if gpu else DeviceType.CPU
