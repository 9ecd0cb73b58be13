"""``onnx_tensorrt.tensorrt_engine``: an engine that takes and gives numpy arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

import tactician as trt
from tactician.runtime.easy import Engine as _Engine


class Binding:
    """An input or output of an engine.

    Attributes:
        name: Its tensor's name.
        dtype: numpy's type.
        shape: Extents; -1 where they are known at run time.
        is_input: Whether the engine reads it.
    """

    def __init__(self, engine: Any, name: str):
        self.name = name
        self.dtype = np.dtype(trt.nptype(engine.get_tensor_dtype(name)))
        self.shape = tuple(engine.get_tensor_shape(name))
        self.is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT


class Engine:
    """Runs an `ICudaEngine` on lists of arrays."""

    def __init__(self, trt_engine: Any):
        self.engine = trt_engine
        names = [trt_engine.get_tensor_name(i) for i in range(trt_engine.num_io_tensors)]
        self.bindings = [Binding(trt_engine, n) for n in names]
        self.inputs = [b for b in self.bindings if b.is_input]
        self.outputs = [b for b in self.bindings if not b.is_input]
        self._easy = _Engine(trt_engine)

    def run(self, inputs: Sequence[Any]) -> list[Any]:
        """Outputs for inputs in the order of ``self.inputs``."""
        if len(inputs) < len(self.inputs):
            raise ValueError(f"Not enough inputs. Expected {len(self.inputs)}, got {len(inputs)}.")
        feeds = {b.name: np.asarray(a) for b, a in zip(self.inputs, inputs, strict=False)}
        found = self._easy(feeds)
        return [found[b.name] for b in self.outputs]
