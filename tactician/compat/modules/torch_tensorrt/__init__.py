"""``import torch_tensorrt``: tactician's PyTorch front end under torch_tensorrt's names."""

from typing import Any

import torch as _torch

import tactician as _tactician
from tactician.torch import trt as _trt
from tactician.torch.backend import tactician as _backend
from tactician.torch.trt import (  # noqa: F401
    Device,
    EngineCapability,
    Input,
    MutableTorchTensorRTModule,
    compile,
    convert_method_to_trt_engine,
    dtype,
    load,
    memory_format,
    save,
)

from . import dynamo, logging, runtime  # noqa: F401

__version__ = "2.8.0"
trt = _tactician
ENABLED_FEATURES = {"torchscript_frontend": False, "dynamo_frontend": True, "fx_frontend": False,
                    "refit": True}
DeviceType = _tactician.DeviceType


def _register() -> None:
    """The names that programs give to ``torch.compile``."""
    from torch._dynamo import register_backend
    from torch._dynamo.backends import registry

    for name in ("torch_tensorrt", "tensorrt"):
        if name not in registry._COMPILER_FNS:
            register_backend(_backend, name=name)


_register()


def __getattr__(name: str) -> Any:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; there are "
                         f"{', '.join(sorted(_trt.__all__))}, dynamo, runtime, logging")


def set_device(gpu_id: int) -> None:
    """Makes a GPU the current one."""
    _torch.cuda.set_device(gpu_id)


def dump_build_info() -> None:
    """Prints the version."""
    print(get_build_info())


def get_build_info() -> str:
    """The version, in words."""
    return f"tactician {_tactician.__tactician_version__} under the name of torch_tensorrt"
