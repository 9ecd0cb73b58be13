"""Quantizing layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...ir import dims as D
from ...ir.graph import Value
from ...ops import OpError
from ..core import NetworkCore
from ..enums import DataType, LayerType, to_ir
from ..layer import Attr, Emitter, ILayer
from ..tensor import ITensor
from ..values import Dims, as_int, dims
from .contraction import dims_attr


class _QuantizeBase(ILayer):
    """Inputs: data, scale, and optionally a zero point.

    The scale is a scalar (or one element), a vector along ``axis``, or has the rank of the data
    (one scale per block).

    Attributes:
        axis: The dimension of a vector of scales; -1: not set.
        block_shape: Sizes of the blocks that share a scale; empty: from the scale's shape.
        to_type: The result's element type.
    """

    axis = Attr(as_int, "The dimension of a vector of scales.")
    block_shape = Attr(dims_attr, "Sizes of blocks.")
    to_type = Attr(DataType, "The result's element type.")

    def _max_inputs(self) -> int:
        return 2

    def _attrs(self, x: Value, scale: Value) -> dict[str, Any]:
        axis = self._state["axis"]
        if scale.rank == 1 and scale.dims[0] != 1 and axis < 0:
            raise OpError(f"scale {scale!r} has one number per channel; set the layer's axis to"
                          " say along which dimension")
        block, where = self._block(x, scale)
        if where >= 0:
            axis = where
        else:
            axis = max(axis, 0) + self._net._off
        return {"axis": axis, "block_size": block, "to": to_ir(self._state["to_type"])}

    def _block(self, x: Value, scale: Value) -> tuple[int, int]:
        """Size and dimension of blocks along one dimension, or (0, -1)."""
        sizes = tuple(self._state["block_shape"])
        if sizes:
            if len(sizes) != x.rank:
                raise OpError(f"block_shape {sizes} needs one size per dimension of {x!r}")
            if scale.rank == x.rank:
                for d, n, b in zip(x.dims, scale.dims, sizes, strict=True):
                    count = 1 if b == -1 else D.ceil_div(d, max(b, 1))
                    if D.is_static(count, n) and count != n:
                        raise OpError(f"{x!r} in blocks of {sizes} does not have the {scale.dims}"
                                      f" blocks of its scale {scale!r}")
            blocked = [i for i, b in enumerate(sizes) if b > 1]
            return (sizes[blocked[0]], blocked[0]) if len(blocked) == 1 else (0, -1)
        if scale.rank < 2 or scale.rank != x.rank:
            return 0, -1
        for i, (d, n) in enumerate(zip(x.dims, scale.dims, strict=True)):
            if D.is_static(d, n) and n != d and n != 1:
                return int(D.ceil_div(d, n)), i  # type: ignore[arg-type]
        return 0, -1


class IQuantizeLayer(_QuantizeBase):
    __doc__ = "Quantization: ``round(x / scale) + zero_point``. " + (_QuantizeBase.__doc__ or "")
    _layer_type = LayerType.QUANTIZE
    _title = "Quantize"
    _incomplete = True

    def _emit(self, e: Emitter) -> Sequence[Value]:
        x, scale = self._x(0), self._x(1)
        zero = self._x(2) if self._in(2) is not None else None
        return [e.value("quantize", x, scale, zero, **self._attrs(x, scale))]


class IDequantizeLayer(_QuantizeBase):
    __doc__ = "Dequantization: ``(x - zero_point) * scale``. " + (_QuantizeBase.__doc__ or "")
    _layer_type = LayerType.DEQUANTIZE
    _title = "Dequantize"
    _incomplete = True

    def _emit(self, e: Emitter) -> Sequence[Value]:
        x, scale = self._x(0), self._x(1)
        zero = self._x(2) if self._in(2) is not None else None
        return [e.value("dequantize", x, scale, zero, **self._attrs(x, scale))]


class IDynamicQuantizeLayer(ILayer):
    """Quantizes blocks by their own largest magnitude: data and scales.

    Attributes:
        axis: The dimension that is cut into blocks; negative counts from the end.
        block_size: Elements of a block.
        block_shape: The same as one size per dimension.
        to_type: Element type of the data.
        scale_type: Element type of the scales.
    """

    _layer_type = LayerType.DYNAMIC_QUANTIZE
    _title = "DynamicQuantize"
    _default_outputs = 2
    axis = Attr(as_int, "The dimension that is cut into blocks.")
    block_size = Attr(as_int, "Elements of a block.")
    block_shape = Attr(dims_attr, "Sizes of blocks.")
    to_type = Attr(DataType, "Element type of the data.")
    scale_type = Attr(DataType, "Element type of the scales.")

    def _max_inputs(self) -> int:
        return 1

    def _emit(self, e: Emitter) -> Sequence[Value]:
        s, x = self._state, self._x()
        axis, size = s["axis"], s["block_size"]
        if len(s["block_shape"]):
            sizes = tuple(s["block_shape"])
            blocked = [i for i, b in enumerate(sizes) if b != 1]
            if len(sizes) != x.rank - self._net._off or len(blocked) != 1:
                raise OpError(f"block_shape {sizes} needs one size per dimension of {x!r}, all but"
                              " one of them 1")
            axis, size = blocked[0], sizes[blocked[0]]
            if size == -1:
                whole = x.dims[axis + self._net._off]
                if isinstance(whole, D.Dim):
                    raise OpError(f"a block over all of dimension {axis} needs it static")
                size = whole
        axis += self._net._off if axis >= 0 else 0
        double = self._x(1) if self._in(1) is not None else None
        return e.op("dynamic_quantize", x, double, axis=axis, block_size=size,
                    to=to_ir(s["to_type"]), scale_to=to_ir(s["scale_type"])).outputs


class QuantizeAdders(NetworkCore):
    """``add_*`` methods of quantizing layers."""

    def add_quantize(self, input: ITensor, scale: ITensor,
                     output_type: DataType = DataType.INT8) -> IQuantizeLayer:
        """Adds a quantization."""
        return self._add(IQuantizeLayer, [input, scale], axis=-1, block_shape=Dims(),
                         to_type=DataType(output_type))

    def add_dequantize(self, input: ITensor, scale: ITensor,
                       output_type: DataType = DataType.FLOAT) -> IDequantizeLayer:
        """Adds a dequantization."""
        return self._add(IDequantizeLayer, [input, scale], axis=-1, block_shape=Dims(),
                         to_type=DataType(output_type))

    def add_dynamic_quantize(self, input: ITensor, axis: int, block_size: int,
                             output_type: DataType, scale_type: DataType) -> IDynamicQuantizeLayer:
        """Adds a quantization by blocks along one dimension."""
        return self._add(IDynamicQuantizeLayer, [input], axis=as_int(axis),
                         block_size=as_int(block_size), block_shape=Dims(),
                         to_type=DataType(output_type), scale_type=DataType(scale_type))

    def add_dynamic_quantize_v2(self, input: ITensor, block_shape: Any, output_type: DataType,
                                scale_type: DataType) -> IDynamicQuantizeLayer:
        """Like `add_dynamic_quantize`, with one block size per dimension."""
        return self._add(IDynamicQuantizeLayer, [input], axis=0, block_size=0,
                         block_shape=Dims(dims(block_shape)), to_type=DataType(output_type),
                         scale_type=DataType(scale_type))
