"""What importers of ATen overloads work with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from ..ir import dims as D
from ..ir.dtypes import DType, b1, i64
from ..ir.graph import Value
from ..network.network import INetworkDefinition
from ..parsers.onnx.context import Context as Shorthands
from ..parsers.onnx.context import ModelState
from ..parsers.onnx.scope import Scope
from .table import AtenProblem
from .types import dtype_of, to_dim

Number = int | float | bool
Operand = Value | D.Dim | Number


@dataclass(frozen=True)
class Complex:
    """A tensor of complex numbers: networks have their parts.

    Attributes:
        re, im: Real and imaginary part, of one type and shape.
    """

    re: Value
    im: Value


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
        self._numbers: dict[str, Value] = {}
        self._places: dict[Value, Value] = {}
        self.data_sizes: dict[str, D.DimLike] = {}  # torch's symbols of sizes that data decide

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
        value = self.result
        first = value[0] if isinstance(value, (tuple, list)) else value
        return [self.dim(s) for s in first.shape]

    def dim(self, size: Any) -> D.DimLike:
        """torch's size as a dimension.

        Raises:
            AtenProblem: If it depends on data in a way that isn't known, or has no such form.
        """
        return to_dim(size, self.data_sizes)

    def promoted(self, *positions: int) -> DType:
        """The type torch computes in when arguments of different types meet."""
        vals = []
        for i in positions:
            arg = self.node.args[i]
            vals.append(arg.meta["val"] if isinstance(arg, torch.fx.Node) else arg)
        vals = [v if isinstance(v, torch.Tensor) else _plain(v) for v in vals]
        return dtype_of(torch.result_type(*vals))

    def parts(self, x: Any, dt: DType) -> Complex:
        """An operand (complex or not) as complex."""
        if isinstance(x, Complex):
            return Complex(self.cast(x.re, dt), self.cast(x.im, dt))
        if isinstance(x, complex):
            return Complex(self.const(x.real, dt), self.const(x.imag, dt))
        re = self.value(x, dt)
        return Complex(re, self.full(re.dims, 0, dt))

    def split_parts(self, pairs: Value) -> Complex:
        """Complex numbers of a tensor whose last dimension holds their two parts."""
        last = pairs.rank - 1
        re, im = (self.squeeze(self.slice_axis(pairs, last, k, 1), [last]) for k in (0, 1))
        return Complex(re, im)

    def join_parts(self, x: Complex) -> Value:
        """The parts along a new last dimension, as torch lays them out."""
        axis = x.re.rank
        return self.concat([self.unsqueeze(v, [axis]) for v in (x.re, x.im)], axis)

    def value(self, x: Operand, dt: DType) -> Value:
        """An operand (tensor, number or symbolic integer) as a tensor of a type."""
        if isinstance(x, Value):
            return self.cast(x, dt, saturate=False)
        if isinstance(x, D.Dim):
            return self.cast(self.reshape(self.size_value(x, exact=True), []), dt)
        return self.const(np.asarray(x).astype(dt.np))

    # --- sizes ----------------------------------------------------------------------------------

    def define_symbol(self, name: str, source: Value, axis: int) -> None:
        """Says which dimension of which input a symbol is."""
        self._where.setdefault(name, (source, axis))

    def define_size(self, d: D.Dim, value: Value) -> None:
        """Says which i64 tensor of shape [1] holds a size."""
        self._sizes[d] = value

    def places(self, mask: Value) -> Value:
        """Indices of the elements that are not 0, i64 ``[rank, n]``: once for each mask, so that
        what is selected by it has the same size."""
        found = self._places.get(mask)
        if found is None:
            found = self._places[mask] = self.op("non_zero", mask)
            count = found.dims[1]
            if isinstance(count, D.Dim):
                self.define_symbol(str(count), found, 1)
        return found

    def sizes(self, dims: Sequence[D.DimLike]) -> Value:
        """Dimensions as a 1-D i64 tensor; a constant if all are static."""
        if D.is_static(*dims):
            return self.ints([int(d) for d in dims])
        return self.concat([self.size_value(d) for d in dims])

    def define_number(self, name: str, value: Value) -> None:
        """Says which i64 tensor of shape [1] holds an integer that data decide."""
        self._numbers[name] = value
        self.data_sizes[name] = D.sym(name)

    def size_value(self, d: D.DimLike, exact: bool = False) -> Value:
        """A dimension as an i64 tensor of shape [1], computed from the inputs' shapes.

        Args:
            exact: It needn't be a size: numbers that data decide may be negative.
        """
        if not isinstance(d, D.Dim):
            return self.ints([int(d)])
        if exact and D.symbols(d) & set(self._numbers):
            return self._polynomial(d, exact)
        if d not in self._sizes:
            self._sizes[d] = self._polynomial(d)
        return self._sizes[d]

    def _polynomial(self, d: D.Dim, exact: bool = False) -> Value:
        total: Value | None = None
        for monomial, factor in d.terms.items():
            term: Value | None = None
            for atom, power in monomial:
                for _ in range(power):
                    v = self._atom(atom, exact)
                    term = v if term is None else self.mul(term, v)
            if term is None:
                term = self.ints([factor])
            elif factor != 1:
                term = self.mul(term, self.ints([factor]))
            total = term if total is None else self.add(total, term)
        assert total is not None
        return total

    def _atom(self, atom: Any, exact: bool) -> Value:
        if atom.fn == "sym":
            return self._symbol(atom.name, exact)
        parts = [self.size_value(a, exact) for a in atom.args]
        out = parts[0]
        for p in parts[1:]:
            out = self.binary(atom.fn, out, p)
        return out

    def _symbol(self, name: str, exact: bool) -> Value:
        number = self._numbers.get(name)
        if exact and number is not None:
            return number
        held = self._sizes.get(D.sym(name))
        if held is not None:
            return held
        if name not in self._where and number is not None:
            zero, one = self.const(0, i64), self.const(1, i64)
            counted = self.op("range", zero, self.reshape(number, []), one)
            self.define_symbol(name, counted, 0)  # its length makes a size of the number
        if name not in self._where:
            raise AtenProblem(f"size {name} is no dimension of an input")
        source, axis = self._where[name]
        return self.shape_of(source, [axis])

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


def has_complex(tree: Any) -> bool:
    """Whether complex tensors are among values or torch's own results."""
    leaves = pytree.tree_leaves(tree)
    return any(isinstance(x, Complex) or (isinstance(x, torch.Tensor) and x.is_complex())
               for x in leaves)


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
