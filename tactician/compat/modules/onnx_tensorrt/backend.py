"""``import onnx_tensorrt.backend``: ONNX's backend interface under onnx-tensorrt's names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx.backend.base import Backend, BackendRep, Device, DeviceType, namedtupledict

from tactician import onnx_backend

__all__ = ["TensorRTBackend", "TensorRTBackendRep", "is_compatible", "prepare", "run_model",
           "run_node", "supports_device"]


class TensorRTBackendRep(BackendRep):  # type: ignore[misc]
    """A prepared model; ``run`` gives a named tuple of outputs.

    Args:
        model: A ``ModelProto``, or its bytes.
        device: ``CUDA``, ``CUDA:0``, …: where there is no such GPU, the CPU does the work.
        max_workspace_size, serialize_engine, verbose: Taken as onnx-tensorrt takes them; engines
            always go through a plan's bytes in memory, and workspace is not limited.
    """

    def __init__(self, model: Any, device: Any, max_workspace_size: int | None = None,
                 serialize_engine: bool = False, verbose: bool = False, **kwargs: Any):
        if not isinstance(device, Device):
            device = Device(device)
        if isinstance(model, (bytes, str)):
            import onnx

            model = onnx.load_model_from_string(model)  # type: ignore[arg-type]
        self.device, self.serialize_engine, self.verbose = device, serialize_engine, verbose
        try:
            self._rep = onnx_backend.prepare(model, folder=kwargs.get("folder"))
        except onnx_backend.ModelError as e:
            raise RuntimeError(f"While parsing the model:\n{e}") from e
        self.output_names = [o.name for o in model.graph.output]

    def run(self, inputs: Any, **kwargs: Any) -> Any:
        """Runs the model on an array, or a list of arrays in the order of its inputs."""
        if isinstance(inputs, np.ndarray):
            inputs = [inputs]
        outputs = self._rep.run(inputs)
        return namedtupledict("Outputs", self.output_names)(*outputs)


class TensorRTBackend(Backend):  # type: ignore[misc]
    """onnx-tensorrt's backend class."""

    @classmethod
    def prepare(cls, model: Any, device: str = "CUDA:0", **kwargs: Any) -> TensorRTBackendRep:
        """Builds an engine for a ``ModelProto``."""
        return TensorRTBackendRep(model, device, **kwargs)

    @classmethod
    def run_model(cls, model: Any, inputs: Any, device: str = "CUDA:0", **kwargs: Any) -> Any:
        """`prepare` and `TensorRTBackendRep.run` in one."""
        return cls.prepare(model, device, **kwargs).run(inputs)

    @classmethod
    def run_node(cls, node: Any, inputs: Any, device: str = "CUDA:0",
                 outputs_info: Sequence[Any] | None = None, **kwargs: Any) -> Any:
        """Runs one ``NodeProto``."""
        arrays = list(inputs.values()) if isinstance(inputs, dict) else inputs
        outputs = onnx_backend.run_node(node, arrays, outputs_info=outputs_info, **kwargs)
        return namedtupledict("Outputs", [n for n in node.output if n])(*outputs)

    @classmethod
    def supports_device(cls, device_str: str) -> bool:
        """True for CUDA devices, as in onnx-tensorrt, and for the CPU."""
        return Device(device_str).type in (DeviceType.CUDA, DeviceType.CPU)

    @classmethod
    def is_compatible(cls, model: Any, device: str = "CUDA:0", **kwargs: Any) -> bool:
        """Whether every node can be imported."""
        return bool(onnx_backend.is_compatible(model))


prepare = TensorRTBackend.prepare
run_node = TensorRTBackend.run_node
run_model = TensorRTBackend.run_model
supports_device = TensorRTBackend.supports_device
is_compatible = TensorRTBackend.is_compatible
