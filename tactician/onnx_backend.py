"""The classic ONNX backend interface (`onnx.backend.base`) on top of tactician.

``prepare(model).run(inputs)``, `run_model`, `run_node` and `supports_device` behave as ONNX's own
backend tests expect. ``target="reference"`` (or ``TACTICIAN_ONNX_BACKEND=reference``) runs the
graph with the numpy interpreter instead of a built engine.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from .ir.graph import Graph
from .ir.verify import verify
from .parsers.onnx.model import import_model
from .support.errors import TacticianError

Array = np.ndarray[Any, Any]


class ModelError(TacticianError, ValueError):
    """A model that cannot be imported; the text lists every problem."""


def load_graph(model: Any, folder: str | None = None) -> Graph:
    """A verified graph from a ``ModelProto``.

    Raises:
        ModelError: With all problems of the model.
    """
    graph = Graph()
    state = import_model(model, graph, folder)
    if state.problems:
        raise ModelError("\n".join(p.text for p in state.problems))
    verify(graph)
    return graph


class BackendRep:
    """A prepared model. ``run`` takes inputs in order and returns a tuple of outputs."""

    def __init__(self, model: Any, target: str, folder: str | None = None):
        self.target = target
        self.graph = load_graph(model, folder)

    def run(self, inputs: Any, **_: Any) -> tuple[Any, ...]:
        from .ops.interpreter import run_graph

        arrays = [np.asarray(a) for a in inputs]
        if len(arrays) > len(self.graph.inputs):
            raise ValueError(f"{len(arrays)} inputs for a model that takes "
                             f"{len(self.graph.inputs)}")
        return tuple(run_graph(self.graph, arrays))


def prepare(
    model: Any, device: str = "CPU", target: str | None = None, folder: str | None = None, **_: Any
) -> BackendRep:
    """Imports a ``ModelProto`` and makes it ready to run.

    Args:
        model: The model.
        device: ``CPU``.
        target: ``engine`` or ``reference`` (default: ``TACTICIAN_ONNX_BACKEND``).
        folder: Where external data lies.
    """
    if not supports_device(device):
        raise ValueError(f"device {device!r} is not supported; use CPU")
    target = target or os.environ.get("TACTICIAN_ONNX_BACKEND", "reference")
    return BackendRep(model, target, folder)


def run_model(model: Any, inputs: Any, device: str = "CPU", **kwargs: Any) -> tuple[Any, ...]:
    return prepare(model, device, **kwargs).run(inputs)


def run_node(
    node: Any,
    inputs: Sequence[Any],
    device: str = "CPU",
    outputs_info: Sequence[tuple[Any, tuple[int, ...]]] | None = None,
    **kwargs: Any,
) -> tuple[Any, ...]:
    """Runs a single ``NodeProto``; ``opset_version`` chooses the operator set."""
    from onnx import TensorProto, defs, helper

    arrays = [np.asarray(a) for a in inputs]
    names = [n for n in node.input if n]
    infos = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for name, a in zip(names, arrays, strict=True)
    ]
    outputs = [
        helper.make_tensor_value_info(n, TensorProto.UNDEFINED, None) for n in node.output if n]
    opset = kwargs.pop("opset_version", defs.onnx_opset_version())
    graph = helper.make_graph([node], "node", infos, outputs)
    opsets = [helper.make_opsetid(node.domain, opset)]
    return run_model(helper.make_model(graph, opset_imports=opsets), arrays, device, **kwargs)


def supports_device(device: str) -> bool:
    return device.split(":")[0].upper() == "CPU"


def is_compatible(model: Any, device: str = "CPU", **_: Any) -> bool:
    """True if every node of the model can be imported."""
    return supports_device(device) and not import_model(model, Graph()).problems
