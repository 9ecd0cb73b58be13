"""onnxruntime as an oracle: runs one ONNX operator on arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, ValueInfoProto, helper

ort = pytest.importorskip("onnxruntime")


def ort_run(
    op: str, inputs: Sequence[Any], outputs: int = 1, *, opset: int = 20, domain: str = "",
    **attrs: Any,
) -> list[np.ndarray]:
    """Outputs of ``op`` in onnxruntime; absent inputs are None, attributes that are None or empty
    tuples are left out."""
    names = ["" if x is None else f"x{i}" for i, x in enumerate(inputs)]
    attrs = {k: v for k, v in attrs.items() if v is not None and v != ()}
    outs = [f"y{i}" for i in range(outputs)]
    node = helper.make_node(op, names, outs, domain=domain, **attrs)
    infos = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
        for n, x in zip(names, inputs, strict=True) if x is not None
    ]
    # output types come from onnxruntime's own inference
    graph = helper.make_graph(
        [node], "oracle", infos, [ValueInfoProto(name=n) for n in outs]
    )
    opsets = [helper.make_opsetid("", opset)]
    if domain:
        opsets.append(helper.make_opsetid(domain, 1))
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feeds = {n: x for n, x in zip(names, inputs, strict=True) if x is not None}
    return session.run(None, feeds)


def onnx_reference(
    op: str, inputs: Sequence[Any], outputs: int = 1, *, opset: int = 23, **attrs: Any
) -> list[np.ndarray]:
    """The same in ONNX's own reference evaluator, for what onnxruntime does not implement."""
    from onnx.reference import ReferenceEvaluator

    names = ["" if x is None else f"x{i}" for i, x in enumerate(inputs)]
    attrs = {k: v for k, v in attrs.items() if v is not None and v != ()}
    outs = [f"y{i}" for i in range(outputs)]
    graph = helper.make_graph(
        [helper.make_node(op, names, outs, **attrs)], "oracle",
        [helper.make_tensor_value_info(n, TensorProto.UNDEFINED, None) for n in names if n],
        [helper.make_tensor_value_info(n, TensorProto.UNDEFINED, None) for n in outs],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    feeds = {n: x for n, x in zip(names, inputs, strict=True) if x is not None}
    return ReferenceEvaluator(model).run(None, feeds)
