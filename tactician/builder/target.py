"""Which device a build is for where nothing else is said."""

from __future__ import annotations

from importlib.util import find_spec

from ..network.enums import DeviceType
from ..support import knobs
from ..targets.cuda.present import gpu_is_default, gpu_present


def gpu_usable() -> bool:
    """Whether there is a GPU that the CUDA target can build for and run on."""
    return find_spec("triton") is not None and gpu_present()


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
    gpu = knobs.default_device() == "gpu" or gpu_is_default()
    return DeviceType.GPU if gpu else DeviceType.CPU
