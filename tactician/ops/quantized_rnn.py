"""LSTM on 8-bit weights whose state is quantized at every step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..ir import dtypes as T
from ..ir.graph import Graph, Node, TensorType, Value
from . import registry
from ._numeric import Array, operands, shape_text
from .recurrent import RnnAttrs, _Cell, _check_attrs, _directions
from .registry import Kind, Op, OpError, register


@register
class QuantizedLstm(Op):
    """The recurrent half of ONNX runtime's DynamicQuantizeLSTM.

    Inputs ``gates f32 [time, batch, dirs*4*hidden]`` (products of the inputs with their weights,
    bias added; gates i o f c), ``r i8 [dirs, hidden, 4*hidden]``, ``r_scale f32 [dirs, 4*hidden]``,
    ``lens?, h0?, c0?, p?``; outputs and attributes as `rnn` with layout 0. Each row of the state
    is quantized to u8 by its own range, as `dynamic_quantize_linear` does, before it meets ``r``.
    """

    name = "quantized_lstm"
    kind = Kind.OPAQUE
    Attrs = RnnAttrs

    def num_outputs(self, node: Node) -> int:
        return 3

    def infer(self, node: Node) -> Sequence[TensorType]:
        gates, r, scale = operands(node, 3, 7)[:3]
        a = node.attrs
        _check_attrs(a)
        dirs, width = _directions(a), 4 * a.hidden
        if a.cell != "lstm" or a.layout:
            raise OpError("only an LSTM with layout 0 can be quantized")
        if gates.dtype is not T.f32 or gates.rank != 3 or gates.dims[2] != dirs * width:
            raise OpError(f"gates must be f32[time, batch, {dirs * width}], not "
                          f"{shape_text(gates)}")
        if r.dtype is not T.i8 or r.dims != (dirs, a.hidden, width):
            raise OpError(f"r must be i8[{dirs}, {a.hidden}, {width}], not {shape_text(r)}")
        if scale.dtype is not T.f32 or scale.dims != (dirs, width):
            raise OpError(f"r_scale must be f32[{dirs}, {width}], not {shape_text(scale)}")
        steps, batch = gates.dims[:2]
        state = (dirs, batch, a.hidden)
        return [TensorType(T.f32, (steps, *state)), TensorType(T.f32, state),
                TensorType(T.f32, state)]

    def reference(self, node: Node, *inputs: Any) -> Any:
        gates, r, scale, lens, h0, c0, p = (*inputs, None, None, None, None)[:7]
        a = node.attrs
        steps, batch = gates.shape[:2]
        width = 4 * a.hidden
        counts = np.full(batch, steps) if lens is None else np.asarray(lens).astype(np.int64)
        out, last_h, last_c = [], [], []
        for d in range(_directions(a)):
            cell = _QuantizedCell(a, d, r[d], scale[d], None if p is None else p[d])
            zeros = np.zeros((batch, a.hidden), np.float32)
            h = zeros if h0 is None else np.asarray(h0[d])
            c = zeros if c0 is None else np.asarray(c0[d])
            y = np.zeros((steps, batch, a.hidden), np.float32)
            back = a.direction == "reverse" or d == 1
            for t in reversed(range(steps)) if back else range(steps):
                live = (t < counts)[:, None]
                new_h, new_c = cell.step(gates[t, :, d * width : (d + 1) * width], h, c)
                h, c = np.where(live, new_h, h), np.where(live, new_c, c)
                y[t] = np.where(live, new_h, 0)
            out.append(y)
            last_h.append(h)
            last_c.append(c)
        return np.stack(out, axis=1), np.stack(last_h), np.stack(last_c)

    def decompose(self, node: Node, graph: Graph) -> list[Value] | None:
        """An LSTM on real numbers that takes the gates through the identity."""
        gates, r, scale, lens, h0, c0, p = (*node.inputs, None, None, None, None)[:7]
        assert r is not None and scale is not None
        if r.const is None or scale.const is None:
            return None
        width = 4 * node.attrs.hidden
        dirs = _directions(node.attrs)
        real = r.const.astype(np.float32) * scale.const[:, None]
        select = np.zeros((dirs, width, dirs * width), np.float32)
        for d in range(dirs):
            select[d, :, d * width : (d + 1) * width] = np.eye(width, dtype=np.float32)
        weights = graph.constant(np.ascontiguousarray(real.swapaxes(1, 2)), f"{node.name}.r")
        inputs = [gates, graph.constant(select), weights, None, lens, h0, c0, p]
        attrs = {k: getattr(node.attrs, k) for k in node.attrs.__dataclass_fields__}
        new = registry.emit(graph, "rnn", inputs, node.name, before=node, source=node.source,
                            **attrs)
        return list(new.outputs)


class _QuantizedCell(_Cell):
    """One direction's step with a quantized state."""

    def __init__(self, a: RnnAttrs, d: int, r: Array, scale: Array, p: Array | None):
        none = np.zeros((4 * a.hidden, 1), np.float32)
        super().__init__(a, d, none, none, None, p)
        self.integers, self.scale = r.astype(np.float64), scale

    def step(self, xw: Array, h: Array, c: Array) -> tuple[Array, Array]:
        low = np.minimum(h.min(axis=1, keepdims=True), 0).astype(np.float32)
        high = np.maximum(h.max(axis=1, keepdims=True), 0).astype(np.float32)
        scale = ((high - low) / np.float32(255)).astype(np.float32)
        safe = np.where(scale == 0, np.float32(1), scale)
        zero = np.rint(np.clip(-low / safe, 0, 255))
        q = np.where(scale == 0, 0, np.clip(np.rint(h / safe) + zero, 0, 255) - zero)
        product = (q @ self.integers).astype(np.float32) * (scale * self.scale)
        self.r = np.zeros((h.shape[1], 4 * h.shape[1]), np.float32)
        return self._lstm(xw + product, h, c)
