"""Shape arithmetic shared by the op declarations: axes, broadcasting, shape tensors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from ..ir import dims as D
from ..ir import expr as E
from ..ir.dtypes import i64
from ..ir.graph import Node, Shape, Value
from .registry import OpError

_NO_BOUND = -(2**62)


def fmt(shape: Iterable[D.DimLike]) -> str:
    """A shape as error messages show it."""
    return f"[{', '.join(map(str, shape))}]"


def show(value: Value | None) -> str:
    """Name, type and shape of an operand, for error messages."""
    return "absent" if value is None else f"{value.name!r} {value.dtype}{fmt(value.dims)}"


def operand(node: Node, i: int) -> Value:
    """Input ``i``, which must be there.

    Raises:
        OpError: If it is absent.
    """
    v = optional(node, i)
    if v is None:
        raise OpError(f"input {i} is missing; {node.op} cannot do without it")
    return v


def optional(node: Node, i: int) -> Value | None:
    """Input ``i``, or None if it is absent."""
    return node.inputs[i] if i < len(node.inputs) else None


# --- axes ---------------------------------------------------------------------------------


def axis_of(axis: int, rank: int, what: str = "axis") -> int:
    """``axis`` counted from the front.

    Raises:
        OpError: If it is out of range.
    """
    if not -rank <= axis < rank:
        raise OpError(f"{what} {axis} is out of range for rank {rank}; use {-rank} to {rank - 1}")
    return axis % rank


def axes_of(axes: Iterable[int], rank: int, what: str = "axis") -> tuple[int, ...]:
    """Axes counted from the front, in the order given.

    Raises:
        OpError: If one is out of range or given twice.
    """
    out = tuple(axis_of(int(a), rank, what) for a in axes)
    if len(set(out)) != len(out):
        raise OpError(f"{what} given twice in {list(out)}")
    return out


# --- data-dependent sizes and assumptions -------------------------------------------------


def data_dim(node: Node, k: int, upper: D.DimLike | None = None) -> D.Dim:
    """The ``k``-th size that only running ``node`` can tell: the symbol ``%<id>.<k>``.

    ``node.meta["data_dims"]`` keeps each symbol's upper bound, None where there is none.
    """
    name = f"%{node.id}.{k}"
    node.meta.setdefault("data_dims", {})[name] = upper
    return D.sym(name)


def data_dims(node: Node, count: int, first: int = 0) -> Shape:
    """``count`` data-dependent sizes in a row."""
    return tuple(data_dim(node, first + k) for k in range(count))


def data_symbols(v: Value) -> set[str]:
    """Sizes in a value's shape or contents that only running some node can tell."""
    content = () if v.content is None else v.content.reshape(-1)
    return {s for d in (*(v.shape or ()), *content) if isinstance(d, D.Dim)
            for s in D.symbols(d) if s.startswith("%")}


def is_data_dependent(node: Node) -> bool:
    """True if an output size of ``node`` is known only once the node itself has run."""
    own = f"%{node.id}."
    return any(s.startswith(own) for v in node.outputs for d in v.dims for s in D.symbols(d))


def assume(node: Node | None, relation: str, a: D.DimLike, b: D.DimLike) -> None:
    """Records in ``node.meta["assumptions"]`` a relation (``eq`` or ``le``) between dimensions
    that shape inference relied on; whoever sets run-time shapes has to check it."""
    if node is not None:
        known = node.meta.setdefault("assumptions", [])
        if (relation, a, b) not in known:
            known.append((relation, a, b))


def lower_bound(d: D.DimLike) -> int:
    """A number that ``d`` cannot be below. Input dimensions are at least 1, data-dependent sizes
    at least 0; contents of shape tensors have no bound."""
    if not isinstance(d, D.Dim):
        return int(d)
    total = 0
    for monomial, factor in d.terms.items():
        if monomial and factor < 0:
            return _NO_BOUND
        least = 1
        for atom, power in monomial:
            bound = _atom_bound(atom.fn, atom.name, atom.args)
            if bound < 0:
                return _NO_BOUND
            least *= bound**power
        total += factor * least
    return total


def _atom_bound(fn: str, name: str, args: tuple[D.DimLike, ...]) -> int:
    if fn == "sym":
        return -1 if "@" in name else 0 if name.startswith("%") else 1
    bounds = [lower_bound(a) for a in args]
    if fn == "max":
        return max(bounds)
    if fn == "min":
        return min(bounds)
    if fn == "mod":
        return 0
    return 0 if bounds[0] >= 0 and bounds[1] >= 0 else -1


def order(a: D.DimLike, b: D.DimLike) -> int | None:
    """-1 if surely a < b, 0 if a == b, 1 if surely a > b, None if it depends."""
    difference = a - b
    if not isinstance(difference, D.Dim):
        return (difference > 0) - (difference < 0)
    if lower_bound(difference) > 0:
        return 1
    return -1 if lower_bound(-difference) > 0 else None


def at_least(a: D.DimLike, b: D.DimLike) -> bool:
    """True if surely a >= b."""
    return lower_bound(a - b) >= 0


def clamped(a: D.DimLike, low: D.DimLike, high: D.DimLike) -> D.DimLike:
    """``min(max(a, low), high)``, without the parts that cannot matter."""
    if not at_least(a, low):
        a = D.dim_max(a, low)
    return a if at_least(high, a) else D.dim_min(a, high)


# --- broadcasting -------------------------------------------------------------------------


def unify(a: D.DimLike, b: D.DimLike, node: Node | None = None, what: str = "sizes") -> D.DimLike:
    """The common value of two dimensions that have to be equal; a symbol is assumed to have
    the number it meets.

    Raises:
        OpError: If they are different numbers.
    """
    if a == b:
        return a
    if D.is_static(a, b):
        raise OpError(f"{what} differ: {a} and {b}")
    assume(node, "eq", a, b)
    return b if isinstance(a, D.Dim) and not isinstance(b, D.Dim) else a


def broadcast_dim(a: D.DimLike, b: D.DimLike, node: Node | None = None) -> D.DimLike:
    """One dimension of a numpy broadcast. A symbol against a number other than 1 is assumed to
    equal it; two different symbols give their maximum, assuming they are equal or one is 1.

    Raises:
        OpError: If they are different numbers and neither is 1.
    """
    if a == b or (b == 1 and not isinstance(b, D.Dim)):
        return a
    if a == 1:
        return b
    if D.is_static(a, b):
        raise OpError(f"sizes {a} and {b} do not broadcast")
    if isinstance(a, D.Dim) and isinstance(b, D.Dim):
        assume(node, "broadcast", a, b)
        return D.dim_max(a, b)
    assume(node, "broadcast", a, b)
    return b if isinstance(a, D.Dim) else a


def broadcast(*shapes: Sequence[D.DimLike], node: Node | None = None) -> Shape:
    """The shape numpy would broadcast ``shapes`` to.

    Raises:
        OpError: If they do not broadcast, with all shapes.
    """
    rank = max((len(s) for s in shapes), default=0)
    out: list[D.DimLike] = [1] * rank
    for shape in shapes:
        lead = rank - len(shape)
        for i, d in enumerate(shape):
            try:
                out[lead + i] = broadcast_dim(out[lead + i], d, node)
            except OpError:
                text = " and ".join(fmt(s) for s in shapes)
                raise OpError(
                    f"shapes {text} do not broadcast: dimension {i - len(shape)} has sizes "
                    f"{out[lead + i]} and {d}; make them equal or one of them 1"
                ) from None
    return tuple(out)


def broadcast_index(
    dims: Sequence[D.DimLike], index: Sequence[E.Expr], shape: Sequence[D.DimLike]
) -> tuple[E.Expr, ...]:
    """Where to read an operand of shape ``dims`` so that it broadcasts to ``shape`` at ``index``.

    A symbolic dimension under a different one reads ``i mod size``: itself if the sizes are
    equal, 0 if it is 1.
    """
    lead = len(shape) - len(dims)
    out: list[E.Expr] = []
    for i, d in enumerate(dims):
        at, full = index[lead + i], shape[lead + i]
        if d == full or (isinstance(full, int) and full == 0):
            out.append(at)
        elif not isinstance(d, D.Dim):
            # A number under a symbol: equal to it unless it is 1.
            out.append(E.idx(0) if d == 1 else at)
        elif isinstance(full, D.Dim) or full != 1:
            out.append(E.binary("mod", at, E.idx(d)))
        else:
            out.append(E.idx(0))
    return tuple(out)


def broadcast_load(value: Value, index: Sequence[E.Expr], shape: Shape) -> E.Load:
    """The element of ``value`` that broadcasts to ``index`` of ``shape``."""
    return E.load(value, broadcast_index(value.dims, index, shape))


# --- shape tensors ------------------------------------------------------------------------


def vector_length(value: Value, what: str) -> int:
    """The length of a vector operand (a scalar counts as one element).

    Raises:
        OpError: If it is not a vector of known length.
    """
    if value.rank > 1:
        raise OpError(f"{what} must be a vector, not {show(value)}")
    n = value.dims[0] if value.rank else 1
    if isinstance(n, D.Dim):
        raise OpError(f"the length of {what} {show(value)} must be known when building")
    return int(n)


def ints(value: Value | None) -> list[D.DimLike] | None:
    """Contents of an integer operand in row-major order, or None if they are not known."""
    known = None if value is None else value.known_ints()
    return None if known is None else list(known.reshape(-1))


def static_ints(value: Value, what: str) -> list[int]:
    """Contents that have to be plain numbers when building.

    Raises:
        OpError: If they are not known.
    """
    known = ints(value)
    if known is None or not D.is_static(*known):
        raise OpError(f"{what} {show(value)} must be known when building; make it a constant")
    return [int(k) for k in known]


def scalar_int(value: Value | None) -> D.DimLike | None:
    """The content of a one-element integer operand, or None if it is not known."""
    known = ints(value)
    return known[0] if known is not None and len(known) == 1 else None


def element(value: Value, k: int) -> E.Expr:
    """Element ``k`` of a vector or scalar operand as an i64 expression: its content if known,
    else a load."""
    known = ints(value)
    if known is not None:
        return E.idx(known[k])
    return E.cast(E.load(value, [E.idx(k)] if value.rank else []), i64)


def to_ints(array: object) -> list[int]:
    """A shape operand of a numpy reference as a list."""
    return [int(x) for x in np.asarray(array).reshape(-1)]
