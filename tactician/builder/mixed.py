"""Whether a layer that may compute in INT8 is faster in FP32: both are timed.

A contraction is measured in two small graphs, as it will stand in the network: with operands of
i8, sums scaled, biased and rounded to i8 again, or in floats from end to end. Between contractions
changing types costs nothing, because epilogues do it; what reads an input of the network also pays
for bringing that to the type and layout it needs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np

from ..ir import dtypes as T
from ..ir.graph import Graph, Node, Value
from ..ops import emit
from ..passes.implicit_quantize import LARGEST
from ..regions.fuse import Fusion, fuse
from ..support.errors import BuildError
from ..tactics.tuner import CacheMiss, Tuner

LayOut = Callable[[Graph, Fusion], Fusion]
_INTEGER = {"convolution": "int_conv", "matmul": "int_matmul"}
_TIE = 0.97  # INT8 stays unless FP32 takes less than this share of its time
_SCALE = np.float32(1 / LARGEST)


class Mixed:
    """Compares layers of one build.

    Args:
        tuner: Times kernels; its cache keeps what was measured.
        lay_out: Stores values of a trial graph as those of the network will be.
    """

    def __init__(self, tuner: Tuner, lay_out: LayOut):
        self.tuner, self.lay_out = tuner, lay_out

    def stays(self, node: Node, x: Value) -> str | None:
        """Why a contraction that reads ``x`` is better left in FP32; None: it is not, or that is
        not known.

        Raises:
            BuildError: If something would have to be timed that the build insists to find in the
                timing cache.
        """
        try:
            wide = self._microseconds(_floats(node, x), x.producer is None)
            narrow = self._microseconds(_integers(node, x), x.producer is None)
        except CacheMiss as e:
            raise BuildError(f"{e} (ERROR_ON_TIMING_CACHE_MISS is set)") from None
        if wide is None or narrow is None or wide >= _TIE * narrow:
            return None
        return f"it takes {wide:.1f} µs in FP32 and {narrow:.1f} µs in INT8, conversions included"

    def _microseconds(self, graph: Graph, whole: bool) -> float | None:
        """Time of the contraction, and with ``whole`` of what is done to its operand before."""
        total = 0.0
        for region in self.lay_out(graph, fuse(graph)).regions:
            contracts = region.anchor is not None
            if contracts or whole:
                choice = self.tuner.choose(region)
                if choice.kernel is None or choice.info.get("time_us") is None:
                    return None
                total += float(choice.info["time_us"])
            if contracts:
                return total
        return None


def _operands(node: Node, x: Value, graph: Graph, dtype: T.DType) -> tuple[Value, dict[str, Any]]:
    names = (f.name for f in fields(node.attrs))
    attrs = {n: getattr(node.attrs, n) for n in names if n != "to"}
    return graph.add_input("x", dtype, x.dims), attrs


def _floats(node: Node, x: Value) -> Graph:
    graph = Graph("in floats")
    operand, attrs = _operands(node, x, graph, T.f32)
    weights = [graph.constant(v.const) for v in node.inputs[1:] if v is not None]
    graph.outputs = [emit(graph, node.op, [operand, *weights], node.name, **attrs).output]
    return graph


def _integers(node: Node, x: Value) -> Graph:
    """Quantized; an input of the network comes in floats."""
    graph = Graph("in integers")
    operand, attrs = _operands(node, x, graph, T.i8 if x.producer is not None else T.f32)
    scale = graph.constant(_SCALE)
    if operand.dtype is not T.i8:
        operand = emit(graph, "quantize", [operand, scale], "to i8", axis=0, to=T.i8).output
    w = node.inputs[1]
    assert w is not None and w.const is not None
    top = max(float(np.abs(w.const).max(initial=0.0)), 1e-30)
    weights = graph.constant(np.rint(w.const * (LARGEST / top)).astype(np.int8))
    acc = emit(graph, _INTEGER[node.op], [operand, weights], node.name, **attrs).output
    axis = 1 if node.op == "convolution" else acc.rank - 1
    channels = acc.dims[axis]
    assert isinstance(channels, int)
    scales = graph.constant(np.full(channels, top * _SCALE * _SCALE, np.float32))
    y = emit(graph, "dequantize", [acc, scales], "scaled", axis=axis, to=T.f32).output
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None and bias.const is not None:
        shape = [channels if i == axis else 1 for i in range(acc.rank)]
        b = graph.constant(bias.const.reshape(shape))
        y = emit(graph, "binary", [y, b], "biased", fn="add").output
    graph.outputs = [emit(graph, "quantize", [y, scale], "rounded", axis=0, to=T.i8).output]
    return graph
