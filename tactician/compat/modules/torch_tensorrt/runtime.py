"""``torch_tensorrt.runtime``: modules that run engines."""

from contextlib import contextmanager as _contextmanager

from tactician.support import logger as _log
from tactician.torch import TRTModule as TorchTensorRTModule

PythonTorchTensorRTModule = TorchTensorRTModule
__all__ = ["PythonTorchTensorRTModule", "TorchTensorRTModule", "enable_cudagraphs",
           "set_cudagraphs_mode", "set_multi_device_safe_mode"]


def set_cudagraphs_mode(mode: bool) -> bool:
    """Engines capture their launches themselves where they can: nothing changes."""
    _log.info("set_cudagraphs_mode has no effect: engines decide themselves")
    return False


@_contextmanager
def enable_cudagraphs(module=None):
    """See `set_cudagraphs_mode`."""
    set_cudagraphs_mode(True)
    yield module


@_contextmanager
def set_multi_device_safe_mode(mode: bool):
    """Engines always check where tensors lie."""
    yield
