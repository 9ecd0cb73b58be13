"""Networks of zoo.py in Q/DQ form, as networks trained for int8 on GPUs have it: batch
normalization is folded, what convolutions and products read is i8 without a zero point, so is the
shortcut of a residual addition, and weights have one scale per channel. Ranges come from a few
random inputs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

_READERS = ("Conv", "Gemm", "MatMul")


class _Editor:
    """The graph with its constants by name."""

    def __init__(self, model: onnx.ModelProto):
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        self.graph = self.model.graph
        self.constants = {t.name: numpy_helper.to_array(t) for t in self.graph.initializer}

    def constant(self, name: str, array: Any) -> str:
        self.constants[name] = np.asarray(array)
        return name

    def readers(self, name: str) -> list[Any]:
        return [n for n in self.graph.node if name in n.input]

    def finish(self) -> onnx.ModelProto:
        """The model; constants that nothing reads are left out."""
        used = {i for n in self.graph.node for i in n.input}
        del self.graph.initializer[:], self.graph.value_info[:]
        self.graph.initializer.extend(
            numpy_helper.from_array(a, n) for n, a in self.constants.items() if n in used
        )
        return self.model


def _fold(e: _Editor) -> None:
    """Batch normalization behind a convolution goes into its weights."""
    for norm in [n for n in e.graph.node if n.op_type == "BatchNormalization"]:
        conv = next((n for n in e.graph.node if norm.input[0] in n.output), None)
        if conv is None or conv.op_type != "Conv" or len(e.readers(norm.input[0])) != 1:
            continue
        scale, shift, mean, variance = (e.constants[i] for i in norm.input[1:5])
        epsilon = next((a.f for a in norm.attribute if a.name == "epsilon"), 1e-5)
        factor = scale / np.sqrt(variance + epsilon)
        w = e.constants[conv.input[1]]
        bias = e.constants[conv.input[2]] if len(conv.input) > 2 else np.zeros(len(w), w.dtype)
        inputs = [
            conv.input[0],
            e.constant(f"{conv.name}.w", (w * factor[:, None, None, None]).astype(w.dtype)),
            e.constant(f"{conv.name}.b", ((bias - mean) * factor + shift).astype(w.dtype)),
        ]
        del conv.input[:]
        conv.input.extend(inputs)
        conv.output[0] = norm.output[0]
        e.graph.node.remove(norm)


def _ranges(model: onnx.ModelProto, names: list[str]) -> dict[str, float]:
    """Largest magnitudes of tensors, on random inputs."""
    import onnxruntime as ort

    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    given = {v.name for v in probe.graph.input}
    probe.graph.output.extend(
        helper.make_empty_tensor_value_info(n) for n in names if n not in given
    )
    session = ort.InferenceSession(probe.SerializeToString(), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(1)
    found = dict.fromkeys(names, 1e-6)
    for _ in range(2):
        feeds = {v.name: rng.standard_normal(v.shape, dtype=np.float32)
                 for v in session.get_inputs()}
        wanted = [n for n in names if n not in given]
        for name, a in (*feeds.items(), *zip(wanted, session.run(wanted, feeds), strict=True)):
            found[name] = max(found.get(name, 0.0), float(np.abs(a).max()))
    return found


def quantized(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with quantized convolutions, products and shortcuts."""
    e = _Editor(model)
    _fold(e)
    made_by = {o: n for n in e.graph.node for o in n.output}
    uses: dict[str, list[tuple[Any, int]]] = {}
    for n in e.graph.node:
        if n.op_type in _READERS and n.input[1] in e.constants:
            uses.setdefault(n.input[0], []).append((n, 0))
        if n.op_type == "Add" and not any(i in e.constants for i in n.input):
            # the shortcut: what was there first, or else the second convolution
            relu = [k for k, i in enumerate(n.input)
                    if i in made_by and made_by[i].op_type == "Relu"]
            k = relu[0] if relu else 1
            uses.setdefault(n.input[k], []).append((n, k))
    ranges = _ranges(e.finish(), list(uses))
    nodes = []
    for name, places in uses.items():
        scale = e.constant(f"{name}.scale", np.float32(ranges[name] / 127))
        zero = e.constant("zero", np.int8(0))
        nodes += [
            helper.make_node("QuantizeLinear", [name, scale, zero], [f"{name}.q"], f"{name}.Q"),
            helper.make_node("DequantizeLinear", [f"{name}.q", scale, zero], [f"{name}.dq"],
                             f"{name}.DQ"),
        ]  # fmt: skip
        for n, k in places:
            n.input[k] = f"{name}.dq"
            if n.op_type in _READERS:
                nodes.append(_weights(e, n))
    e.graph.node.extend(nodes)
    _sort(e.graph)
    return e.finish()


def _weights(e: _Editor, n: Any) -> Any:
    """Quantizes a node's weights; the node that brings them back."""
    w = e.constants[n.input[1]]
    axis = 0
    if n.op_type == "MatMul" or (
        n.op_type == "Gemm" and not any(a.name == "transB" and a.i for a in n.attribute)
    ):
        axis = 1
    others = tuple(i for i in range(w.ndim) if i != axis)
    scale = np.maximum(np.abs(w).max(others), 1e-8).astype(np.float32) / 127
    shape = [-1 if i == axis else 1 for i in range(w.ndim)]
    q = np.clip(np.rint(w / scale.reshape(shape)), -127, 127).astype(np.int8)
    base = f"{n.name}.weights"
    n.input[1] = f"{base}.dq"
    return helper.make_node(
        "DequantizeLinear",
        [e.constant(base, q), e.constant(f"{base}.scale", scale),
         e.constant(f"{base}.zero", np.zeros(scale.shape, np.int8))],
        [f"{base}.dq"], f"{base}.DQ", axis=axis,
    )  # fmt: skip


def _sort(graph: Any) -> None:
    """Brings nodes into an order in which they can run."""
    ready = {v.name for v in graph.input} | {t.name for t in graph.initializer} | {""}
    ready |= {i for n in graph.node for i in n.input} - {o for n in graph.node for o in n.output}
    waiting, done = list(graph.node), []
    while waiting:
        now = [n for n in waiting if all(i in ready for i in n.input)]
        done += now
        ready |= {o for n in now for o in n.output}
        waiting = [n for n in waiting if n not in now]
    del graph.node[:]
    graph.node.extend(done)


def with_batch(model: onnx.ModelProto, batch: int) -> onnx.ModelProto:
    """The model for another batch size: no constant of it may depend on the batch."""
    out = onnx.ModelProto()
    out.CopyFrom(model)
    del out.graph.value_info[:]
    for v in (*out.graph.input, *out.graph.output):
        if v.type.tensor_type.shape.dim:
            v.type.tensor_type.shape.dim[0].dim_value = batch
    return out
