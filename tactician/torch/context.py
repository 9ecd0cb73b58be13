"""What importers of ATen overloads work with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..ir import dims as D
from ..ir.dtypes import DType, b1, i64
from ..ir.graph import Value
from ..network.network import INetworkDefinition
from ..parsers.onnx.context import Context as Shorthands
from ..parsers.onnx.context import ModelState
from ..parsers.onnx.scope import Scope
from .table import AtenProblem
from .types import dtype_of

Number = int | float | bool
Operand = Value | D.Dim | Number


class Context(Shorthands):
    """Adds ops to a network; shorthands are those of the ONNX importers.

    Attributes:
        network: Receives the layers.
        node: The ``fx`` node being imported.
    """

    def __init__(self, network: INetworkDefinition):
        super().__init__(ModelState(network=network), Scope(network.graph), {})
        self.network = network
        self.node: Any = None
        self.refit = False  # whether weights have to stay apart
        self._sizes: dict[Any, Value] = {}
        self._where: dict[str, tuple[Value, int]] = {}

    # --- types ----------------------------------------------------------------------------------

    @property
    def result(self) -> Any:
        """torch's own (fake) result of the node: a tensor, or a tuple of them."""
        return self.node.meta["val"]

    @property
    def dtype(self) -> DType:
        """Element type of the (first) result."""
        value = self.result
        return dtype_of((value[0] if isinstance(value, (tuple, list)) else value).dtype)

    @property
    def shape_out(self) -> list[D.DimLike]:
        """Shape of the (first) result."""
        from .types import to_dim

        value = self.result
        return [to_dim(s) for s in (value[0] if isinstance(value, (tuple, list)) else value).shape]

    def promoted(self, *positions: int) -> DType:
        """The type torch computes in when arguments of different types meet."""
        vals = []
        for i in positions:
            arg = self.node.args[i]
            vals.append(arg.meta["val"] if isinstance(arg, torch.fx.Node) else arg)
        vals = [v if isinstance(v, torch.Tensor) else _plain(v) for v in vals]
        return dtype_of(torch.result_type(*vals))

    def value(self, x: Operand, dt: DType) -> Value:
        """An operand (tensor, number or symbolic integer) as a tensor of a type."""
        if isinstance(x, Value):
            return self.cast(x, dt, saturate=False)
        if isinstance(x, D.Dim):
            return self.cast(self.reshape(self.size_value(x), []), dt)
        return self.const(np.asarray(x).astype(dt.np))

    # --- sizes ----------------------------------------------------------------------------------

    def define_symbol(self, name: str, source: Value, axis: int) -> None:
        """Says which dimension of which input a symbol is."""
        self._where.setdefault(name, (source, axis))

    def define_size(self, d: D.Dim, value: Value) -> None:
        """Says which i64 tensor of shape [1] holds a size."""
        self._sizes[d] = value

    def sizes(self, dims: Sequence[D.DimLike]) -> Value:
        """Dimensions as a 1-D i64 tensor; a constant if all are static."""
        if D.is_static(*dims):
            return self.ints([int(d) for d in dims])
        return self.concat([self.size_value(d) for d in dims])

    def size_value(self, d: D.DimLike) -> Value:
        """A dimension as an i64 tensor of shape [1], computed from the inputs' shapes."""
        if not isinstance(d, D.Dim):
            return self.ints([int(d)])
        if d not in self._sizes:
            total: Value | None = None
            for monomial, factor in d.terms.items():
                term: Value | None = None
                for atom, power in monomial:
                    for _ in range(power):
                        v = self._atom(atom)
                        term = v if term is None else self.mul(term, v)
                if term is None:
                    term = self.ints([factor])
                elif factor != 1:
                    term = self.mul(term, self.ints([factor]))
                total = term if total is None else self.add(total, term)
            assert total is not None
            self._sizes[d] = total
        return self._sizes[d]

    def _atom(self, atom: Any) -> Value:
        if atom.fn == "sym":
            held = self._sizes.get(D.sym(atom.name))
            if held is not None:
                return held
            if atom.name not in self._where:
                raise AtenProblem(f"size {atom.name} is no dimension of an input")
            source, axis = self._where[atom.name]
            return self.shape_of(source, [axis])
        parts = [self.size_value(a) for a in atom.args]
        out = parts[0]
        for p in parts[1:]:
            out = self.binary(atom.fn, out, p)
        return out

    def view(self, x: Value, dims: Sequence[D.DimLike]) -> Value:
        """Reshapes to a shape that may be symbolic."""
        if tuple(dims) == x.dims:
            return x
        unknown = [i for i, d in enumerate(dims) if isinstance(d, D.Dim)]
        if len(unknown) == 1 and 0 not in dims:
            dims = [-1 if i in unknown else d for i, d in enumerate(dims)]
        if D.is_static(*dims):
            return self.reshape(x, [int(d) for d in dims])
        return self.op("reshape", x, self.sizes(dims), zero_copies=False)

    def broadcast(self, x: Value, dims: Sequence[D.DimLike]) -> Value:
        """``x`` repeated to a shape."""
        return x if tuple(dims) == x.dims else self.op("expand", x, self.sizes(dims))

    def full(self, dims: Sequence[D.DimLike], number: Any, dt: DType) -> Value:
        """A tensor of one number."""
        scalar = self.value(number, dt)
        if not dims:
            return self.reshape(scalar, [])
        if D.is_static(*dims) and scalar.const is not None and int(D.product(dims)) <= 1 << 20:
            return self.const(np.full([int(d) for d in dims], scalar.const.reshape(()), dt.np))
        return self.op("expand", self.reshape(scalar, []), self.sizes(dims))

    def slice_axis(self, x: Value, axis: int, start: D.DimLike, size: D.DimLike,
                   step: int = 1) -> Value:
        """``size`` elements of an axis from ``start``, every ``step``-th."""
        if start == 0 and size == x.dims[axis] and step == 1:
            return x
        end = start + size * step
        return self.op("strided_slice", x, self.sizes([start]), self.sizes([end]),
                       self.ints([axis]), self.ints([step]))

    def flag(self, x: Value) -> Value:
        """A tensor as booleans: true where it isn't zero."""
        return x if x.dtype is b1 else self.binary("ne", x, self.like(0, x))

    def indices(self, x: Value) -> Value:
        return self.cast(x, i64)


def _plain(v: Any) -> Any:
    """A symbolic number as an ordinary one of its type, for type promotion."""
    if isinstance(v, torch.SymInt):
        return 1
    return 1.0 if isinstance(v, torch.SymFloat) else v


def axis_of(axis: int, rank: int) -> int:
    """A non-negative axis; scalars count as rank 1."""
    return axis + max(rank, 1) if axis < 0 else axis


def axes_of(axes: Any, rank: int) -> tuple[int, ...]:
    """Non-negative sorted axes; None and () mean all."""
    if axes is None or (not isinstance(axes, int) and not len(axes)):
        return tuple(range(rank))
    return tuple(sorted(axis_of(int(a), rank) for a in ([axes] if isinstance(axes, int) else axes)))
