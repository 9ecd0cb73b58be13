"""Computes contractions of dequantized operands in integers.

    'convolution(dequantize(x, s, z), dequantize(w, t)) + b
     => dequantize(int_conv(x, w, z), s * t) + b'

The form is described in docs/architecture.md ("Quantized contractions"). Integer contractions
that front ends made themselves (ONNX's QLinearConv, MatMulInteger, …) get its weights: signed,
without a zero point where that is possible.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np

from ..ir import dtypes as T
from ..ir.graph import Graph, Node, Value
from ..ops import emit
from .manager import Pass
from .quantized import Scaling, dequantized, is_small_int, replace

_Array = np.ndarray[Any, Any]
_F8 = (T.f8e4m3, T.f8e5m2)
_OPS = {"convolution": "int_conv", "matmul": "int_matmul"}


class QuantizeContractions(Pass):
    """Convolutions and matrix products of quantized operands become integer ones.

    Args:
        takes: Whether the target has a kernel for an integer contraction.
    """

    name = "quantize_contractions"

    def __init__(self, takes: Callable[[Node], bool]):
        self.takes = takes

    def run(self, graph: Graph) -> bool:
        changed = False
        for node in list(graph.nodes):
            if node.op in _OPS:
                changed |= _quantize(graph, node, self.takes)
            elif node.op in _OPS.values():
                changed |= _simplify(graph, node)
        return changed


def _quantize(graph: Graph, node: Node, takes: Callable[[Node], bool]) -> bool:
    a, b = dequantized(node.inputs[0]), dequantized(node.inputs[1])
    if a is None or b is None or node.meta.get("precision") in (T.f32, T.f16, T.bf16):
        return False
    if node.op == "matmul" and a.data.dtype in _F8 and b.data.dtype in _F8:
        return _float8(graph, node, a, b, takes)
    if not _fits(node, a, b):
        return False
    operands: list[Value | None] = [*_operand(graph, a), *_operand(graph, b)]
    inputs = [operands[0], operands[2], operands[1], operands[3]]
    attrs = {f.name: getattr(node.attrs, f.name) for f in fields(node.attrs) if f.name != "to"}
    new = emit(graph, _OPS[node.op], inputs, node.name, before=node, source=node.source, **attrs)
    new.meta = dict(node.meta)
    if not takes(new):
        graph.remove(new)
        return False
    replace(graph, node, _scaled(graph, node, new.output, a, b))
    return True


def _float8(
    graph: Graph, node: Node, a: Scaling, b: Scaling, takes: Callable[[Node], bool]
) -> bool:
    """A product of 8-bit floats, with the scales applied to the result."""
    out = node.outputs[0]
    columns = b.data.rank - (2 if node.attrs.tb == "transpose" else 1)
    if a.data.dtype is not b.data.dtype or "vector" in (node.attrs.ta, node.attrs.tb):
        return False
    if a.axis is not None or b.axis not in (None, columns) or a.zero or b.zero:
        return False
    if out.shape is None or any(s.scale.const is None for s in (a, b)):
        return False
    new = emit(graph, "matmul", [a.data, b.data], node.name, before=node, source=node.source,
               ta=node.attrs.ta, tb=node.attrs.tb, to=T.f32)
    new.meta = dict(node.meta)
    if not takes(new):
        graph.remove(new)
        return False
    sa, sb = (np.asarray(s.scale.const).astype(np.float32).reshape(-1) for s in (a, b))
    y = _emit(graph, node, "binary", [new.output, graph.constant(sa * sb)], fn="mul")
    replace(graph, node, y if out.dtype is T.f32 else _emit(graph, node, "cast", [y], to=out.dtype))
    return True


def _fits(node: Node, a: Scaling, b: Scaling) -> bool:
    """Whether the parameters lie so that they can be applied to the result."""
    out = node.outputs[0]
    if any(s.scale.const is None for s in (a, b)):
        return False
    if not all(is_small_int(s.data.dtype) for s in (a, b)):
        return False
    if any(s.data.dtype.bits < 8 and s.data.const is None for s in (a, b)):
        return False
    if out.shape is None or not out.dtype.is_float:
        return False
    if node.op == "convolution":
        return a.axis is None and _single(a.zero) and b.axis in (None, 0) and (
            b.zero is None or b.zero.const is not None)
    if "vector" in (node.attrs.ta, node.attrs.tb):
        return False
    rows = a.data.rank - (1 if node.attrs.ta == "transpose" else 2)
    columns = b.data.rank - (2 if node.attrs.tb == "transpose" else 1)
    if a.axis not in (None, rows) or b.axis not in (None, columns):
        return False
    # a zero point per row or column could only be that of a constant operand of two dimensions
    return not (a.axis is not None and b.axis is not None) and _single(a.zero) and (
        _single(b.zero) or (b.zero is not None and b.data.const is not None))


def _single(zero: Value | None) -> bool:
    return zero is None or zero.numel == 1


def _operand(graph: Graph, s: Scaling) -> tuple[Value, Value | None]:
    """The integers of an operand and their zero point; constants in i8 without one if possible."""
    zero = s.zero
    if zero is not None and zero.rank == 1 and zero.dims[0] == 1 and zero.const is not None:
        zero = graph.constant(zero.const.reshape(()), zero.name)
    if s.data.const is None or (zero is not None and zero.const is None):
        return s.data, zero
    points = None if zero is None else np.asarray(zero.const)
    shifted = _shifted(s.data.const, points, s.axis)
    if shifted is None:
        return s.data, zero
    return _constant(graph, s.data, shifted), None


def _shifted(data: _Array, zero: _Array | None, axis: int | None) -> _Array | None:
    """``data - zero`` as i8, or None if that doesn't fit."""
    wide = data.astype(np.int16)
    if zero is not None:
        shape = [1] * data.ndim
        if zero.size > 1:
            shape[axis or 0] = zero.size
        wide = wide - zero.astype(np.int16).reshape(shape)
    if wide.size and (wide.min() < -128 or wide.max() > 127):
        return None
    return wide.astype(np.int8)


def _constant(graph: Graph, old: Value, array: _Array) -> Value:
    new = graph.constant(array, old.name)
    new.meta = dict(old.meta)
    return new


def _scaled(graph: Graph, node: Node, acc: Value, a: Scaling, b: Scaling) -> Value:
    """The result in reals: dequantized, with the bias."""
    out = node.outputs[0]
    sa, sb = (np.asarray(s.scale.const).astype(np.float32).reshape(-1) for s in (a, b))
    scale = sa * sb
    axis = 1 if node.op == "convolution" else acc.rank - (2 if a.axis is not None else 1)
    value = graph.constant(scale.reshape(()) if scale.size == 1 else scale, f"{node.name}.scale")
    y = _emit(graph, node, "dequantize", [acc, value], axis=axis, to=out.dtype)
    bias = node.inputs[2] if node.op == "convolution" and len(node.inputs) > 2 else None
    if bias is None:
        return y
    shape = (1, -1, *(1,) * (acc.rank - 2))
    if bias.const is not None:
        added = graph.constant(bias.const.reshape(shape), bias.name)
    else:
        size = graph.constant(np.array(shape, np.int64))
        added = _emit(graph, node, "reshape", [bias, size], zero_copies=False)
    return _emit(graph, node, "binary", [y, added], fn="add")


def _emit(graph: Graph, node: Node, op: str, inputs: list[Value | None], **attrs: Any) -> Value:
    new = emit(graph, op, inputs, node.name, before=node, source=node.source, **attrs)
    new.meta = dict(node.meta)
    return new.output


def _simplify(graph: Graph, node: Node) -> bool:
    """Weights of an integer contraction in i8, zero points of 0 left out."""
    changed = False
    for i in (2, 3):
        zero = node.inputs[i] if i < len(node.inputs) else None
        if zero is not None and zero.const is not None and not np.any(zero.const != 0):
            node.set_input(i, None)
            changed = True
    w = node.inputs[1]
    zero = node.inputs[3] if len(node.inputs) > 3 else None
    if w is None or w.const is None or (w.dtype is T.i8 and zero is None):
        return changed
    if not is_small_int(w.dtype) or (zero is not None and (zero.const is None or zero.rank > 1)):
        return changed
    axis = 0 if node.op == "int_conv" else w.rank - (2 if node.attrs.tb == "transpose" else 1)
    shifted = _shifted(w.const, None if zero is None else zero.const, axis)
    if shifted is None:
        return changed
    node.set_input(1, _constant(graph, w, shifted))
    if zero is not None:
        node.set_input(3, None)
    return True
