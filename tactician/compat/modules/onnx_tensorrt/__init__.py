"""``import onnx_tensorrt``: see `tactician.onnx_backend`."""

from . import backend, tensorrt_engine

__version__ = "10.1.0"
__all__ = ["backend", "tensorrt_engine"]
