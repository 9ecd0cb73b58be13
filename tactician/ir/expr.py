"""The compute language: scalar expressions over iteration variables.

An op that is not a contraction says what it computes as one or more `Stage`s: for every point
of an iteration space, one scalar expression that may load from tensors at computed indices and
reduce over further variables. Fusing is substituting one stage's expression for the loads of
its result (`inline`). Code generators of every target read the same expressions.

Expressions are immutable and form DAGs; sharing is by identity.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from . import dims as D
from .dtypes import DType, b1, i64
from .graph import Value

UNARY = frozenset(
    "neg abs exp log sqrt rsqrt recip sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh "
    "erf sigmoid floor ceil round trunc sign not isinf isnan bitnot lgamma".split()
)  # round: half to even
BINARY = frozenset(
    "add sub mul div floordiv mod fmod truncdiv pow min max atan2 "
    "and or xor bitand bitor bitxor shl shr".split()
)  # floordiv, mod: towards -inf (numpy's); fmod, truncdiv: C's; min, max propagate NaN
COMPARE = frozenset("eq ne lt le gt ge".split())
REDUCE = frozenset("sum prod max min argmax argmin argmax_last argmin_last any all".split())


@dataclass(frozen=True, eq=False)
class Expr:
    """Base class; every expression has an element type."""

    dtype: DType


@dataclass(frozen=True, eq=False)
class Const(Expr):
    """A literal."""

    value: Any


@dataclass(frozen=True, eq=False)
class Var(Expr):
    """An iteration variable, counting 0 … extent-1 (i64)."""

    name: str
    extent: D.DimLike


@dataclass(frozen=True, eq=False)
class Size(Expr):
    """A symbolic dimension as an i64 scalar."""

    dim: D.Dim


@dataclass(frozen=True, eq=False)
class Load(Expr):
    """An element of ``value`` at ``index`` (one i64 expression per dimension).

    ``guard``, if given, is a b1 expression; where it is false nothing is read (the index may be
    out of bounds) and the result is ``other``.
    """

    value: Value
    index: tuple[Expr, ...]
    guard: Expr | None = None
    other: Expr | None = None


@dataclass(frozen=True, eq=False)
class Unary(Expr):
    fn: str
    x: Expr


@dataclass(frozen=True, eq=False)
class Binary(Expr):
    """``fn`` from `BINARY` or `COMPARE`; both operands have one type."""

    fn: str
    a: Expr
    b: Expr


@dataclass(frozen=True, eq=False)
class Cast(Expr):
    """Value conversion, as numpy's ``astype`` (float to int truncates, int to bool is != 0).

    With ``saturate`` out-of-range values clamp to the limits of ``dtype``.
    """

    x: Expr
    saturate: bool = False


@dataclass(frozen=True, eq=False)
class Select(Expr):
    cond: Expr
    a: Expr
    b: Expr


@dataclass(frozen=True, eq=False)
class Reduce(Expr):
    """Reduction of ``body`` over ``vars``, row-major order; ``fn`` from `REDUCE`.

    ``argmax``/``argmin`` take exactly one variable and give its value (i64) at the first
    extreme (``_last``: the last). The body's type is the accumulator's.
    """

    fn: str
    vars: tuple[Var, ...]
    body: Expr


@dataclass(eq=False)
class Stage:
    """``out[vars] = expr`` for every point of ``vars``.

    Attributes:
        out: The value computed; ``vars`` has one variable per dimension of it, in order.
        vars: Iteration variables of the output.
        expr: Element of ``out`` at ``vars``, of ``out``'s type.
    """

    out: Value
    vars: tuple[Var, ...]
    expr: Expr
    meta: dict[str, Any] = field(default_factory=dict)


# --- construction helpers -----------------------------------------------------------------


def iter_vars(shape: Sequence[D.DimLike], prefix: str = "i") -> tuple[Var, ...]:
    return tuple(Var(i64, f"{prefix}{k}", d) for k, d in enumerate(shape))


def const(value: Any, dt: DType) -> Const:
    return Const(dt, value)


def idx(d: D.DimLike | Expr) -> Expr:
    """A dimension (or ready expression) as an index expression."""
    if isinstance(d, Expr):
        return d
    return Size(i64, d) if isinstance(d, D.Dim) else Const(i64, int(d))


def load(
    value: Value,
    index: Sequence[Expr | D.DimLike],
    guard: Expr | None = None,
    other: Expr | None = None,
) -> Load:
    if len(index) != value.rank:
        raise ValueError(f"{len(index)} indices for {value}")
    return Load(value.dtype, value, tuple(map(idx, index)), guard, other)


def unary(fn: str, x: Expr) -> Expr:
    if fn not in UNARY:
        raise ValueError(f"unknown unary function {fn!r}")
    return Unary(b1 if fn in ("not", "isinf", "isnan") else x.dtype, fn, x)


def binary(fn: str, a: Expr, b: Expr) -> Expr:
    """Applies ``fn``; integer index arithmetic on constants folds at once."""
    if fn not in BINARY and fn not in COMPARE:
        raise ValueError(f"unknown binary function {fn!r}")
    if a.dtype is not b.dtype:
        raise TypeError(f"{fn} of {a.dtype} and {b.dtype}")
    dt = b1 if fn in COMPARE else a.dtype
    folded = _fold_index(fn, a, b)
    return folded if folded is not None else Binary(dt, fn, a, b)


_INT_FOLD: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "floordiv": D.floor_div,
    "mod": D.modulo,
}


def _fold_index(fn: str, a: Expr, b: Expr) -> Expr | None:
    if a.dtype is not i64 or fn not in _INT_FOLD:
        return None
    va, vb = _index_value(a), _index_value(b)
    if va is not None and vb is not None and not (fn in ("floordiv", "mod") and vb == 0):
        return idx(_INT_FOLD[fn](va, vb))
    if fn in ("add", "sub") and vb == 0:
        return a
    if fn == "add" and va == 0:
        return b
    if fn in ("mul", "floordiv") and vb == 1:
        return a
    if fn == "mul" and va == 1:
        return b
    if fn == "mul" and (va == 0 or vb == 0):
        return Const(i64, 0)
    return None


def _index_value(e: Expr) -> D.DimLike | None:
    if isinstance(e, Const):
        return int(e.value)
    return e.dim if isinstance(e, Size) else None


def add(a: Expr, b: Expr) -> Expr:
    return binary("add", a, b)


def sub(a: Expr, b: Expr) -> Expr:
    return binary("sub", a, b)


def mul(a: Expr, b: Expr) -> Expr:
    return binary("mul", a, b)


def div(a: Expr, b: Expr) -> Expr:
    return binary("div", a, b)


def compare(fn: str, a: Expr, b: Expr) -> Expr:
    return binary(fn, a, b)


def logical_and(*terms: Expr) -> Expr:
    out = terms[0]
    for t in terms[1:]:
        out = binary("and", out, t)
    return out


def cast(x: Expr, dt: DType, saturate: bool = False) -> Expr:
    return x if x.dtype is dt else Cast(dt, x, saturate)


def select(cond: Expr, a: Expr, b: Expr) -> Expr:
    if cond.dtype is not b1 or a.dtype is not b.dtype:
        raise TypeError(f"select({cond.dtype}, {a.dtype}, {b.dtype})")
    return Select(a.dtype, cond, a, b)


def reduce_(fn: str, over: Sequence[Var], body: Expr) -> Expr:
    if fn not in REDUCE:
        raise ValueError(f"unknown reduction {fn!r}")
    return Reduce(i64 if fn.startswith("arg") else body.dtype, fn, tuple(over), body)


# --- traversal and rewriting --------------------------------------------------------------


def children(e: Expr) -> tuple[Expr, ...]:
    if isinstance(e, Load):
        return e.index + tuple(x for x in (e.guard, e.other) if x is not None)
    if isinstance(e, (Unary, Cast)):
        return (e.x,)
    if isinstance(e, Binary):
        return (e.a, e.b)
    if isinstance(e, Select):
        return (e.cond, e.a, e.b)
    if isinstance(e, Reduce):
        return (e.body,)
    return ()


def _rebuild(e: Expr, f: Callable[[Expr], Expr]) -> Expr:
    """``e`` with every child replaced by ``f(child)``; ``e`` itself if nothing changed."""
    new = [f(c) for c in children(e)]
    if all(n is c for n, c in zip(new, children(e), strict=True)):
        return e
    if isinstance(e, Load):
        n = len(e.index)
        rest = iter(new[n:])
        guard = None if e.guard is None else next(rest)
        other = None if e.other is None else next(rest)
        return Load(e.dtype, e.value, tuple(new[:n]), guard, other)
    if isinstance(e, Unary):
        return Unary(e.dtype, e.fn, new[0])
    if isinstance(e, Cast):
        return Cast(e.dtype, new[0], e.saturate)
    if isinstance(e, Binary):
        return binary(e.fn, new[0], new[1])
    if isinstance(e, Select):
        return Select(e.dtype, new[0], new[1], new[2])
    assert isinstance(e, Reduce)
    return Reduce(e.dtype, e.fn, e.vars, new[0])


def rewrite(e: Expr, visit: Callable[[Expr], Expr | None]) -> Expr:
    """Bottom-up rewriting: ``visit`` sees each node once, children already rewritten, and
    returns a replacement or None to keep it. Sharing is preserved. Where a rewritten node is
    simplified to a part of itself (``i + 0``), that part was seen before and is not shown again."""
    done: dict[int, Expr] = {}
    made: set[int] = set()  # what was shown already, and parts of replacements

    def note(x: Expr) -> None:
        rest = [x]
        while rest:
            y = rest.pop()
            if id(y) not in made:
                made.add(id(y))
                rest.extend(children(y))

    def go(x: Expr) -> Expr:
        if id(x) not in done:
            y = _rebuild(x, go)
            replacement = None if y is not x and id(y) in made else visit(y)
            done[id(x)] = y if replacement is None else replacement
            note(done[id(x)])
            keep.extend((x, y, done[id(x)]))
        return done[id(x)]

    keep: list[Expr] = []  # ids stay valid while these live
    return go(e)


def walk(e: Expr) -> list[Expr]:
    """Every distinct expression under ``e``, children before parents."""
    seen: dict[int, Expr] = {}

    def go(x: Expr) -> None:
        if id(x) in seen:
            return
        for c in children(x):
            go(c)
        seen[id(x)] = x

    go(e)
    return list(seen.values())


def substitute(e: Expr, env: dict[Var, Expr]) -> Expr:
    """Replaces iteration variables; reduction variables inside are left alone."""
    table = {id(v): x for v, x in env.items()}
    return rewrite(e, lambda x: table.get(id(x)) if isinstance(x, Var) else None)


def loads(e: Expr) -> list[Load]:
    return [x for x in walk(e) if isinstance(x, Load)]


def fresh_reduction_vars(e: Expr) -> Expr:
    """A copy whose reduction variables are new, so that it may be inlined twice."""

    def visit(x: Expr) -> Expr | None:
        if not isinstance(x, Reduce):
            return None
        new = tuple(Var(v.dtype, v.name, v.extent) for v in x.vars)
        body = substitute(x.body, dict(zip(x.vars, new, strict=True)))
        return Reduce(x.dtype, x.fn, new, body)

    return rewrite(e, visit)


def inline(e: Expr, producer: Stage) -> Expr:
    """Replaces every load of ``producer.out`` in ``e`` by the producer's expression."""

    def visit(x: Expr) -> Expr | None:
        if not isinstance(x, Load) or x.value is not producer.out:
            return None
        env = dict(zip(producer.vars, x.index, strict=True))
        body = fresh_reduction_vars(substitute(producer.expr, env))
        return _guarded(body, x.guard, x.other) if x.guard is not None else body

    return rewrite(e, visit)


def _guarded(body: Expr, guard: Expr, other: Expr | None) -> Expr:
    """``body`` where ``guard`` holds, else ``other``; loads inside inherit the guard."""

    def visit(x: Expr) -> Expr | None:
        if not isinstance(x, Load):
            return None
        joint = guard if x.guard is None else logical_and(guard, x.guard)
        filler = x.other if x.other is not None else Const(x.dtype, 0)
        return Load(x.dtype, x.value, x.index, joint, filler)

    assert other is not None
    return select(guard, rewrite(body, visit), other)
