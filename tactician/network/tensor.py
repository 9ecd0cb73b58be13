"""`ITensor`: a view over one value of the graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..ir import dims as D
from ..ir.graph import Node, SymbolInfo, Value
from ..support import logger as log
from .broadcast import FLAG, is_broadcast
from .enums import DataType, TensorFormat, TensorLocation, from_ir, to_ir
from .values import Dims, InvalidDims, as_int, dims

if TYPE_CHECKING:
    from .core import NetworkCore

# Which operands of an op are read as numbers while shapes are computed.
_SHAPE_OPERANDS: dict[str, tuple[int, ...]] = {
    "reshape": (1,), "squeeze": (1,), "unsqueeze": (1,), "slice": (1, 2, 3),
    "strided_slice": (1, 2, 3, 4), "pad": (1,), "expand": (1,), "tile": (1,), "trilu": (1,),
    "one_hot": (1,), "topk": (1,), "nms": (2,), "fill": (0,), "range": (0, 1, 2),
    "resize": (1, 2), "cumulative": (1,), "window": (0,), "loop": (0,),
}
_MAX_SHAPE_TENSOR = 64


class ITensor:
    """A tensor of a network: an input, a constant, or the output of a layer.

    One object exists per tensor of a network, so tensors can be compared with ``==`` and ``is``.
    """

    def __init__(self, network: NetworkCore, value: Value):
        self._net = network
        self._v = value

    # --- name, type, shape ---------------------------------------------------------------

    @property
    def name(self) -> str:
        """The tensor's name; names of inputs and outputs are the engine's I/O names."""
        return self._v.name

    @name.setter
    def name(self, name: str) -> None:
        if not isinstance(name, str):
            raise TypeError(f"a tensor's name is a str, got {type(name).__name__}")
        if self.is_network_input:
            for info in self._net.graph.symbols.values():
                if info.kind in ("dim", "value") and info.source == self._v.name:
                    info.source = name
        self._v.name = name

    @property
    def shape(self) -> Dims:
        """Dimensions, -1 for those known only at run time; without the batch dimension in a
        network with implicit batch. Of an invalid layer: an object that raises the reason."""
        v = self._v
        if v.shape is None:
            reason = v.producer.error if v.producer is not None else "it has no type"
            self._net._report_once(reason or "its layer is invalid")
            return InvalidDims(reason or "its layer is invalid")
        return Dims(-1 if isinstance(d, D.Dim) else d for d in v.shape[self._net._off:])

    @shape.setter
    def shape(self, shape: Any) -> None:
        if not self.is_network_input:
            self._net._error(f"tensor {self.name!r}: only shapes of network inputs can be set;"
                             " other shapes follow from their layers")
            return
        set_input_type(self._net, self._v, dims(shape))
        self._net._propagate(self._v)

    @property
    def dtype(self) -> DataType:
        return from_ir(self._v.dtype)

    @dtype.setter
    def dtype(self, dtype: DataType) -> None:
        new = to_ir(dtype)
        if new is self._v.dtype:
            return
        if self.is_network_input:
            self._v.dtype = new
            if self._v.content is not None and not new.is_int:
                self._v.content = None
            self._net._propagate(self._v)
            return
        layer = self._net._layer_of(self._v)
        if layer is None:
            self._net._error(f"tensor {self.name!r}: its type cannot be set")
            return
        layer.set_output_type(self._v.meta.get("output_index", self._v.index), dtype)

    # --- role ----------------------------------------------------------------------------

    @property
    def is_network_input(self) -> bool:
        return any(self._v is v for v in self._net.graph.inputs)

    @property
    def is_network_output(self) -> bool:
        return any(self._v is v for v in self._net.graph.outputs)

    @property
    def is_shape_tensor(self) -> bool:
        """Whether its numbers are needed while shapes are computed: an integer tensor of at most
        one dimension that a layer reads as a shape, or that is an output for shapes."""
        v = self._v
        if v.shape is None or len(v.shape) > 1 or not (v.dtype.is_int or v.dtype.kind == "b"):
            return False
        if v.meta.get("output_for_shapes"):
            return True
        return _feeds_shapes(v, set())

    @property
    def is_execution_tensor(self) -> bool:
        """Whether its data are computed on the device; True unless it only serves shapes."""
        if not self.is_shape_tensor:
            return True
        if self.is_network_output and not self._v.meta.get("output_for_shapes"):
            return True
        return any(not _only_shapes(node, self._v) for node in self._v.users)

    # --- hints ---------------------------------------------------------------------------

    @property
    def dynamic_range(self) -> tuple[float, float] | None:
        """The range INT8 quantization uses for this tensor, or None."""
        return self._v.meta.get("dynamic_range")

    @dynamic_range.setter
    def dynamic_range(self, value: Any) -> None:
        if value is None:
            self.reset_dynamic_range()
        else:
            low, high = value
            self.set_dynamic_range(low, high)

    def set_dynamic_range(self, min: float, max: float) -> bool:
        """Sets the range of values for INT8; returns False (and logs) if it is not a range."""
        if not (np.isfinite(min) and np.isfinite(max) and min <= max):
            self._net._error(f"tensor {self.name!r}: dynamic range [{min}, {max}] is not a"
                             " finite interval with min <= max")
            return False
        self._v.meta["dynamic_range"] = (float(min), float(max))
        return True

    def get_dynamic_range(self) -> float | None:
        """The largest magnitude of the dynamic range (version 7)."""
        r = self.dynamic_range
        return None if r is None else builtin_max(abs(r[0]), abs(r[1]))

    def reset_dynamic_range(self) -> None:
        """Forgets the dynamic range."""
        self._v.meta.pop("dynamic_range", None)

    @property
    def location(self) -> TensorLocation:
        """Where the engine expects or leaves the data of this input or output."""
        return TensorLocation(self._v.meta.get("location", 0))

    @location.setter
    def location(self, value: TensorLocation) -> None:
        self._v.meta["location"] = TensorLocation(value).value

    @property
    def allowed_formats(self) -> int:
        """Bit mask of `TensorFormat`\\ s that this input or output may have."""
        return int(self._v.meta.get("allowed_formats", (1 << len(TensorFormat.__members__)) - 1))

    @allowed_formats.setter
    def allowed_formats(self, value: int) -> None:
        value = as_int(value)
        if not value & 1 << TensorFormat.LINEAR.value:
            log.warning(f"tensor {self.name!r}: engines keep inputs and outputs in LINEAR format;"
                        " the formats asked for are not used", self._net._logger)
        self._v.meta["allowed_formats"] = value

    @property
    def broadcast_across_batch(self) -> bool:
        """Implicit batch only: whether the tensor has one value for the whole batch.

        Set on an input, one copy of it is bound, whatever the batch; it has no effect in a network
        with explicit batch. Of other tensors it follows from their layer and its inputs.
        """
        return bool(self._net._off) and is_broadcast(self._v, {})

    @broadcast_across_batch.setter
    def broadcast_across_batch(self, value: bool) -> None:
        if not self._net._off:
            return
        if not self.is_network_input:
            self._net._error(f"tensor {self.name!r}: broadcast_across_batch can be set for inputs"
                             " of the network only; of other tensors it follows from these")
            return
        self._v.meta[FLAG] = bool(value)

    def get_dimension_name(self, index: int) -> str | None:
        """The name given to a dimension of an input, or None."""
        return self._v.meta.get("dimension_names", {}).get(as_int(index))

    def set_dimension_name(self, index: int, name: str) -> None:
        """Names a dimension of an input. Dimensions of one name have one size at run time."""
        index = as_int(index)
        shape = self._v.dims
        off = self._net._off
        if not 0 <= index < len(shape) - off:
            raise IndexError(f"tensor {self.name!r} has no dimension {index}")
        if not self.is_network_input:
            self._net._error(f"tensor {self.name!r}: only dimensions of inputs can be named")
            return
        self._v.meta.setdefault("dimension_names", {})[index] = name
        old = shape[index + off]
        if isinstance(old, D.Dim) and name:
            symbol = symbol_name(name)
            self._net.graph.symbols.setdefault(
                symbol, SymbolInfo(symbol, "dim", self._v.name, index + off))
            new = list(shape)
            new[index + off] = D.sym(symbol)
            self._v.shape = tuple(new)
            self._net._propagate(self._v)

    def __repr__(self) -> str:
        shape = "?" if self._v.shape is None else tuple(self.shape)
        return f"<ITensor {self.name!r} {self.dtype.name} {shape}>"


builtin_max = max


def symbol_name(text: str) -> str:
    """A valid symbol name close to ``text``."""
    return "".join("_" if c.isspace() or c in "*+()," else c for c in text) or "_"


def set_input_type(net: NetworkCore, v: Value, shape: tuple[int, ...]) -> None:
    """Gives a network input its shape: -1 becomes a symbol; small integer vectors get symbolic
    contents so that shapes can be computed from them."""
    symbols = net.graph.symbols
    names: dict[int, str] = v.meta.get("dimension_names", {})
    out: list[D.DimLike] = []
    if net._off:
        symbols.setdefault("batch", SymbolInfo("batch", "dim", v.name, 0))
        out.append(D.sym("batch"))
    for i, d in enumerate(shape):
        if d >= 0:
            out.append(d)
            continue
        s = symbol_name(names.get(i) or f"{v.name}.{i + net._off}")
        symbols.setdefault(s, SymbolInfo(s, "dim", v.name, i + net._off))
        out.append(D.sym(s))
    v.shape = tuple(out)
    v.content = None
    if v.dtype.is_int and v.dtype.bits >= 32 and len(out) <= 1 and D.is_static(*out):
        count = int(D.product(out))  # type: ignore[arg-type]
        if count <= _MAX_SHAPE_TENSOR:
            content = np.empty(count, object)
            for i in range(count):
                s = symbol_name(f"{v.name}@{i}")
                symbols.setdefault(s, SymbolInfo(s, "value", v.name, i))
                content[i] = D.sym(s)
            v.content = content.reshape(tuple(out))


def _only_shapes(node: Node, v: Value) -> bool:
    """Whether a node reads ``v`` only to compute shapes."""
    operands = _SHAPE_OPERANDS.get(node.op, ())
    if all(i in operands for i, x in enumerate(node.inputs) if x is v):
        return True
    outputs = node.outputs
    return all(o.content is not None and o.users for o in outputs) and all(
        _only_shapes(u, o) for o in outputs for u in o.users)


def _feeds_shapes(v: Value, seen: set[int]) -> bool:
    if id(v) in seen:
        return False
    seen.add(id(v))
    for node in v.users:
        operands = _SHAPE_OPERANDS.get(node.op, ())
        if any(x is v and i in operands for i, x in enumerate(node.inputs)):
            return True
        if any(o.content is not None and _feeds_shapes(o, seen) for o in node.outputs):
            return True
    return False
