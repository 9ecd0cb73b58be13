"""What importers work with: emitting ops, and shorthands for the common ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...ir import dims as D
from ...ir.dtypes import DType, b1, dtype, i64
from ...ir.graph import Graph, Value
from ...ops import registry
from .errors import NodeProblem, Problem
from .scope import Scope

Array = np.ndarray[Any, Any]


@dataclass
class ModelState:
    """What one import shares between all its scopes.

    Attributes:
        functions: Model-local functions by (domain, name, overload).
        load_tensor: Turns a ``TensorProto`` into an array (external data included).
        problems: Everything found so far.
        warnings: Things worth a warning in the log.
        outcome: Per top-level node index: imported or not.
        network: The network that owns the model's graph, if there is one; layers are added
            through it.
        layers: The layer that stands for an ONNX node, by the node's name.
    """

    functions: dict[tuple[str, str, str], Any] = field(default_factory=dict)
    load_tensor: Any = None
    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    outcome: dict[int, bool] = field(default_factory=dict)
    layer_names: dict[str, int] = field(default_factory=dict)
    plugins: Any = None
    network: Any = None
    layers: dict[str, Any] = field(default_factory=dict)
    depth: int = 0

    def unique(self, name: str) -> str:
        """``name``, or with a number if a layer already has it."""
        count = self.layer_names.get(name, 0)
        self.layer_names[name] = count + 1
        if not count:
            return name
        return self.unique(f"{name}_{count}")


class Context:
    """Builds nodes in one scope. Importers get one.

    Attributes:
        state: Shared by the whole import.
        scope: Where names resolve and nodes go.
        opsets: Operator set versions in force (a function has its own).
        stack: Names of the local functions and subgraphs around, outermost first.
        attributes: Attributes of the enclosing function call, for references to them.
    """

    def __init__(
        self,
        state: ModelState,
        scope: Scope,
        opsets: dict[str, int],
        stack: tuple[str, ...] = (),
        attributes: dict[str, Any] | None = None,
    ):
        self.state = state
        self.scope = scope
        self.opsets = opsets
        self.stack = stack
        self.attributes = attributes
        self.source = ""
        self.emitted: list[tuple[str, Any]] = []  # op, and the layer or node

    @property
    def graph(self) -> Graph:
        return self.scope.graph

    # --- emitting ---------------------------------------------------------------------------

    def ops(
        self,
        op: str,
        *inputs: Value | None,
        subgraphs: Sequence[Graph] = (),
        **attrs: Any,
    ) -> list[Value]:
        """Adds a node and returns its outputs.

        Raises:
            OpError: If operands or attributes are wrong.
        """
        values = list(inputs)
        while values and values[-1] is None:
            values.pop()
        network = self.state.network
        if network is not None and self.graph is network.graph:
            tensors = [None if v is None else network._tensor(v) for v in values]
            results = network.add_op(op, tensors, subgraphs=subgraphs, source=self.source,
                                     **attrs)
            layer = network._layers[-1]
            self.emitted.append((op, layer))
            return [network._value(t, op) for t in results]
        node = registry.emit(
            self.graph, op, values, source=self.source, subgraphs=subgraphs, **attrs
        )
        self.emitted.append((op, node))
        return list(node.outputs)

    def op(self, op: str, *inputs: Value | None, **attrs: Any) -> Value:
        """Adds a node with one output."""
        return self.ops(op, *inputs, **attrs)[0]

    def const(self, data: Any, dt: DType | None = None, name: str = "const") -> Value:
        """A constant."""
        array = np.asarray(data, dtype=None if dt is None else dt.np)
        return self.graph.constant(array, name)

    def ints(self, data: Sequence[int]) -> Value:
        """A 1-D i64 constant."""
        return self.const(np.asarray(list(data), dtype=np.int64))

    def like(self, number: Any, x: Value) -> Value:
        """A scalar constant of ``x``'s type."""
        return self.const(np.asarray(number).astype(x.dtype.np))

    # --- pointwise --------------------------------------------------------------------------

    def unary(self, fn: str, x: Value) -> Value:
        return self.op("unary", x, fn=fn)

    def binary(self, fn: str, a: Value, b: Value) -> Value:
        return self.op("binary", a, b, fn=fn)

    def add(self, a: Value, b: Value) -> Value:
        return self.binary("add", a, b)

    def sub(self, a: Value, b: Value) -> Value:
        return self.binary("sub", a, b)

    def mul(self, a: Value, b: Value) -> Value:
        return self.binary("mul", a, b)

    def div(self, a: Value, b: Value) -> Value:
        return self.binary("div", a, b)

    def select(self, cond: Value, a: Value, b: Value) -> Value:
        return self.op("select", cond, a, b)

    def activation(self, x: Value, fn: str, **attrs: float) -> Value:
        return self.op("activation", x, fn=fn, **attrs)

    def cast(self, x: Value, dt: DType, saturate: bool = True) -> Value:
        return x if x.dtype is dt else self.op("cast", x, to=dt, saturate=saturate)

    # --- shapes -----------------------------------------------------------------------------

    def shape(self, x: Value) -> Value:
        """The shape as a 1-D i64 tensor: a constant if all of it is static."""
        if x.is_static:
            return self.ints([int(d) for d in x.dims])
        return self.op("shape", x)

    def shape_of(self, x: Value, dims: Sequence[int]) -> Value:
        """Some dimensions of ``x`` as a 1-D i64 tensor."""
        if D.is_static(*(x.dims[d] for d in dims)):
            return self.ints([int(x.dims[d]) for d in dims])
        return self.op("gather", self.op("shape", x), self.ints(dims), axis=0)

    def numel_of(self, x: Value, dims: Sequence[int]) -> Value:
        """The product of some dimensions, as an i64 tensor of shape [1]."""
        if D.is_static(*(x.dims[d] for d in dims)):
            return self.ints([int(D.product(x.dims[d] for d in dims))])
        return self.op("reduce", self.shape_of(x, dims), fn="prod", axes=(0,), keepdims=True)

    def concat(self, parts: Sequence[Value], axis: int = 0) -> Value:
        if len(parts) == 1:
            return parts[0]
        if all(p.const is not None for p in parts):
            return self.const(np.concatenate([p.const for p in parts], axis=axis))
        return self.op("concat", *parts, axis=axis)

    def reshape(self, x: Value, shape: Sequence[int] | Value) -> Value:
        """Reshapes; in a list, -1 is inferred and 0 is a zero extent."""
        if not isinstance(shape, Value):
            if x.is_static and tuple(shape) == x.dims:
                return x
            shape = self.ints(shape)
        if x.const is not None and shape.const is not None:
            return self.const(x.const.reshape(shape.const), name=x.name)
        return self.op("reshape", x, shape, zero_copies=False)

    def squeeze(self, x: Value, axes: Sequence[int]) -> Value:
        return self.op("squeeze", x, self.ints(axes)) if axes else x

    def unsqueeze(self, x: Value, axes: Sequence[int]) -> Value:
        if not axes:
            return x
        if x.const is not None:
            return self.const(np.expand_dims(x.const, tuple(axes)), name=x.name)
        return self.op("unsqueeze", x, self.ints(axes))

    def transpose(self, x: Value, perm: Sequence[int]) -> Value:
        if list(perm) == list(range(x.rank)):
            return x
        return self.op("transpose", x, perm=tuple(perm))

    def expand(self, x: Value, shape: Value) -> Value:
        return self.op("expand", x, shape)

    def expand_new(self, x: Value, shape: Value) -> Value:
        """A scalar repeated to ``shape``; a constant if that is static and small."""
        known = shape.known_ints()
        if x.const is not None and known is not None and known.size <= 64:
            dims = known.reshape(-1).tolist()
            if D.is_static(*dims) and 0 <= math.prod(dims) <= 1 << 16:
                return self.const(np.full(dims, x.const, x.dtype.np))
        return self.op("expand", x, self.index(shape))

    def cut(self, x: Value, axis: int, start: int, end: int, step: int = 1) -> Value:
        """``x[..., start:end:step, ...]`` along one axis."""
        return self.op("strided_slice", x, self.ints([start]), self.ints([end]),
                       self.ints([axis]), self.ints([step]))

    def broadcast_channel(self, x: Value, rank: int, axis: int = 1) -> Value:
        """A 1-D tensor shaped so that it broadcasts along ``axis`` of a rank-``rank`` one."""
        shape = [1] * rank
        shape[axis] = -1
        return self.reshape(x, shape)

    # --- reductions and products ------------------------------------------------------------

    def reduce(self, x: Value, fn: str, axes: Sequence[int], keepdims: bool = True) -> Value:
        return self.op("reduce", x, fn=fn, axes=tuple(axes), keepdims=keepdims)

    def matmul(self, a: Value, b: Value, ta: str = "none", tb: str = "none") -> Value:
        return self.op("matmul", a, b, ta=ta, tb=tb)

    # --- helpers ----------------------------------------------------------------------------

    def scalar(self, x: Value) -> Value:
        """A one-element tensor as rank 0.

        Raises:
            NodeProblem: If it has another number of elements.
        """
        if x.is_static and x.numel != 1:
            raise NodeProblem(f"{x.name!r} must hold one element, not {list(x.dims)}")
        return x if x.rank == 0 else self.reshape(x, ())

    def index(self, x: Value) -> Value:
        """An integer tensor as i64."""
        return self.cast(x, i64)

    def boolean(self, x: Value) -> Value:
        return self.cast(x, b1)

    def named(self, dt: Any) -> DType:
        return dtype(dt)


def axis_of(axis: int, rank: int, what: str = "axis") -> int:
    """A non-negative axis.

    Raises:
        NodeProblem: If it is out of range.
    """
    if not -rank <= axis < max(rank, 1):
        raise NodeProblem(f"{what} {axis} is out of range for rank {rank}: "
                          f"expected {-rank}…{rank - 1}")
    return axis + rank if axis < 0 else axis


def axes_of(axes: Sequence[int], rank: int) -> tuple[int, ...]:
    """Sorted non-negative axes without repetition."""
    return tuple(sorted({axis_of(int(a), rank, "axes:") for a in axes}))


def require_ints(value: Value, what: str, static: bool = True) -> Array:
    """The integer contents of an operand that must be known while parsing.

    With ``static`` False they may be symbolic: shapes, or elements of an integer input.

    Raises:
        NodeProblem: If it is computed at run time.
    """
    known = value.known_ints()
    if value.is_static and value.numel == 0:
        return np.zeros(tuple(int(d) for d in value.dims), dtype=object)
    if known is None or (static and not D.is_static(*known.flat)):
        raise NodeProblem(
            f"{what} ({value.name!r}) must be known while parsing, but is computed at run time; "
            "make it an initializer",
            "UNSUPPORTED_NODE_DYNAMIC",
        )
    return known
