"""Short ways to write ONNX models in tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

import tactician as trt
from tactician.network.network import INetworkDefinition

F32, I64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


def tensor(name: str, shape: Sequence[int | str | None] | None, dt: int = F32) -> Any:
    return helper.make_tensor_value_info(name, dt, shape)


def weights(**arrays: Any) -> list[Any]:
    return [numpy_helper.from_array(np.asarray(a), k) for k, a in arrays.items()]


def model(nodes: Sequence[Any], inputs: Sequence[Any], outputs: Sequence[Any], *,
          initializers: Sequence[Any] = (), opset: int = 17, functions: Sequence[Any] = (),
          domains: Sequence[str] = ()) -> ModelProto:
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializer=initializers)
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    return helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=9)


class Quiet(trt.ILogger):
    """Keeps messages."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[tuple[Any, str]] = []

    def log(self, severity: Any, msg: str) -> None:
        self.messages.append((severity, msg))

    def text(self) -> str:
        return "\n".join(m for _, m in self.messages)


def parse(m: ModelProto | bytes, path: str | None = None) -> tuple[Any, Any, Quiet]:
    """(parser, network, logger) after parsing; look at ``parser.num_errors``."""
    logger = Quiet()
    network = INetworkDefinition()
    parser = trt.OnnxParser(network, logger)
    data = m if isinstance(m, bytes) else m.SerializeToString()
    ok = parser.parse(data, path)
    assert ok == (parser.num_errors == 0)
    return parser, network, logger


def errors(m: ModelProto | bytes, path: str | None = None) -> str:
    """All problems of a model as text."""
    parser, _, _ = parse(m, path)
    return "\n".join(str(parser.get_error(i)) for i in range(parser.num_errors))
