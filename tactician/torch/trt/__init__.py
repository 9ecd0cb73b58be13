"""torch_tensorrt's entry points: programs written for it find its names here.

``tactician.compat.install()`` makes ``import torch_tensorrt`` give this package's names.
"""

from . import dynamo
from .entry import compile, convert_method_to_trt_engine, load, save
from .inputs import Device, EngineCapability, Input, dtype, memory_format
from .mutable import MutableTorchTensorRTModule

__all__ = [
    "Device", "EngineCapability", "Input", "MutableTorchTensorRTModule", "compile",
    "convert_method_to_trt_engine", "dtype", "dynamo", "load", "memory_format", "save",
]
