"""Index algebra: loads by flat linear index, simplified divisions, shared subexpressions.

`Lowerer` turns expressions of the compute language into the form the emitter reads: every load
has one flat index ``offset + sum(coefficient * term)``, integer index arithmetic is collected
into `Linear`, divisions that ranges decide are gone, and equal expressions are one object.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...ir import dims as D
from ...ir import expr as E
from ...ir.dtypes import b1, i64
from ...ir.expr import Expr, Var
from ...ir.graph import Value
from ...regions.region import is_slice, pitch
from . import gelu

Terms = tuple[tuple[Expr, D.DimLike], ...]


@dataclass(frozen=True, eq=False)
class Linear(Expr):
    """``offset + sum(coefficient * term)``, an i64; terms are not linear themselves."""

    terms: Terms
    offset: D.DimLike


@dataclass(frozen=True, eq=False)
class FlatLoad(Expr):
    """The element of ``value`` at flat index ``at``; see `expr.Load` for the guard."""

    value: Value
    at: Linear
    guard: Expr | None = None
    other: Expr | None = None


@dataclass(frozen=True, eq=False)
class Keep(Expr):
    """``x``, which is also written to scratch memory where ``slot`` (a load) says."""

    x: Expr
    slot: Expr


def children(e: Expr) -> tuple[Expr, ...]:
    """Like `expr.children`, for lowered expressions too."""
    if isinstance(e, Linear):
        return tuple(t for t, _ in e.terms)
    if isinstance(e, Keep):
        return (e.x, e.slot)
    if isinstance(e, FlatLoad):
        rest = tuple(x for x in (e.guard, e.other) if x is not None)
        return (*(t for t, _ in e.at.terms), *rest)
    return E.children(e)


def walk(roots: Iterable[Expr]) -> list[Expr]:
    """Every distinct expression under ``roots``, children first."""
    seen: dict[Expr, None] = {}

    def go(x: Expr) -> None:
        if x not in seen:
            for c in children(x):
                go(c)
            seen[x] = None

    for r in roots:
        go(r)
    return list(seen)


def contiguous(dims: Iterable[D.DimLike]) -> tuple[D.DimLike, ...]:
    """Row-major strides."""
    strides: list[D.DimLike] = []
    step: D.DimLike = 1
    for d in reversed(tuple(dims)):
        strides.append(step)
        step = step * d
    return tuple(reversed(strides))


def strides_of(v: Value) -> tuple[D.DimLike, ...]:
    """The strides of a value in memory: row-major, with rows apart where it is a slice."""
    return contiguous((*v.dims[:-1], pitch(v))) if is_slice(v) else contiguous(v.dims)


class _Sum:
    """A mutable linear form."""

    def __init__(self, offset: D.DimLike = 0):
        self.offset = offset
        self.terms: dict[Expr, D.DimLike] = {}

    def add(self, term: Expr, c: D.DimLike) -> None:
        total = self.terms.pop(term, 0) + c
        if total != 0:
            self.terms[term] = total

    def merge(self, other: Expr, c: D.DimLike = 1) -> _Sum:
        if isinstance(other, Linear):
            self.offset = self.offset + other.offset * c
            for t, k in other.terms:
                self.add(t, k * c)
        elif isinstance(other, E.Const):
            self.offset = self.offset + int(other.value) * c
        elif isinstance(other, E.Size):
            self.offset = self.offset + other.dim * c
        else:
            self.add(other, c)
        return self


Range = tuple[int | None, int | None]


class Lowerer:
    """Lowers expressions; equal results are the same object.

    Attributes:
        keep: Values whose loads keep one index per dimension, because their memory layout is
            not decided yet.
        layout: Values with a layout of their own: what gives the flat index of an index.
    """

    def __init__(self, keep: Iterable[Value] = ()):
        self.keep = set(keep)
        self.layout: dict[Value, Callable[[Sequence[Expr]], Expr]] = {}
        self._made: dict[Any, Expr] = {}
        self._ranges: dict[Expr, Range] = {}
        self._keep: list[Expr] = []  # ids in keys stay valid while these live

    def lower(self, e: Expr, env: Mapping[Var, Expr] | None = None) -> Expr:
        """The lowered form of ``e``, with variables replaced by (lowered) ``env``."""
        done: dict[Expr, Expr] = {}
        table = env or {}

        def go(x: Expr) -> Expr:
            if x not in done:
                done[x] = self._node(x, go, table)
            return done[x]

        self._keep.append(e)
        return go(e)

    def replace(self, e: Expr, old: Expr, new: Expr) -> Expr:
        """``e`` with one (lowered) subexpression replaced."""
        done: dict[Expr, Expr] = {old: new}

        def go(x: Expr) -> Expr:
            if x not in done:
                done[x] = self._node(x, go, {})
            return done[x]

        return go(e)

    def _node(self, x: Expr, go: Any, env: Mapping[Var, Expr]) -> Expr:
        if isinstance(x, Var):
            return env.get(x, x)
        if isinstance(x, E.Const):
            return self._one(("const", x.dtype, repr(x.value)), x)
        if isinstance(x, E.Size):
            return self.linear(_Sum(x.dim))
        if isinstance(x, Linear):
            total = _Sum(x.offset)
            for t, c in x.terms:
                total.merge(go(t), c)
            return self.linear(total)
        if isinstance(x, E.Load):
            return self._load(x, [go(i) for i in x.index], go)
        if isinstance(x, FlatLoad):
            at = _Sum(x.at.offset)
            for t, c in x.at.terms:
                at.merge(go(t), c)
            return self._flat(x, at, go)
        if isinstance(x, E.Unary):
            a = go(x.x)
            return self._one((x.fn, x.dtype, a), E.Unary(x.dtype, x.fn, a))
        if isinstance(x, E.Cast):
            return self._cast(x, go(x.x))
        if isinstance(x, E.Binary):
            return self._binary(x, go(x.a), go(x.b))
        if isinstance(x, E.Select):
            return self._select(x, go(x.cond), go(x.a), go(x.b))
        if isinstance(x, Keep):
            a, slot = go(x.x), go(x.slot)
            return self._one(("keep", a, slot), Keep(x.dtype, a, slot))
        assert isinstance(x, E.Reduce)
        body = go(x.body)
        over = tuple(v for old in x.vars for v in _vars_of(go(old)))
        return self._one(("reduce", x.fn, over, body), E.Reduce(x.dtype, x.fn, over, body))

    def _one(self, key: Any, made: Expr) -> Expr:
        return self._made.setdefault(key, made)

    # --- loads ---------------------------------------------------------------------------

    def _load(self, x: E.Load, index: list[Expr], go: Any) -> Expr:
        if x.value in self.keep:
            guard = None if x.guard is None else go(x.guard)
            other = None if x.other is None else go(x.other)
            key = ("indexed", x.value, tuple(index), guard, other)
            return self._one(key, E.Load(x.dtype, x.value, tuple(index), guard, other))
        at = _Sum()
        if x.value in self.layout:
            return self._flat(x, at.merge(self.layout[x.value](index)), go)
        strides = strides_of(x.value)
        for i, s, d in zip(index, strides, x.value.dims, strict=True):
            if d != 1:  # the only index into an extent of 1 is 0
                at.merge(i, s)
        return self._flat(x, at, go)

    def flat(self, value: Value, index: Sequence[Expr]) -> Linear:
        """The flat index of an element, for storing it."""
        if value in self.layout:
            return self._as_linear(_Sum().merge(self.layout[value](index)))
        at = _Sum()
        for i, s in zip(index, strides_of(value), strict=True):
            at.merge(i, s)
        return self._as_linear(at)

    def total(self, parts: Iterable[tuple[Expr, D.DimLike]]) -> Expr:
        """``sum(coefficient * expression)``."""
        out = _Sum()
        for e, c in parts:
            out.merge(e, c)
        return self.linear(out)

    def _flat(self, x: Any, at: _Sum, go: Any) -> Expr:
        guard = None if x.guard is None else go(x.guard)
        other = None if x.other is None else go(x.other)
        truth = None if guard is None else self.truth(guard)
        if guard is not None and (truth is False or any(d == 0 for d in x.value.dims)):
            assert other is not None
            return other
        if truth is True:
            guard = other = None
        where = self._as_linear(at)
        key = ("load", x.value, where, guard, other)
        return self._one(key, FlatLoad(x.dtype, x.value, where, guard, other))

    # --- integers ------------------------------------------------------------------------

    def _as_linear(self, s: _Sum) -> Linear:
        terms = tuple(s.terms.items())
        key = ("linear", frozenset(terms), s.offset)
        made = self._one(key, Linear(i64, terms, s.offset))
        assert isinstance(made, Linear)
        return made

    def linear(self, s: _Sum) -> Expr:
        """A linear form as the simplest expression that says it."""
        if not s.terms and not isinstance(s.offset, D.Dim):
            return self._one(("const", i64, repr(s.offset)), E.Const(i64, s.offset))
        if s.offset == 0 and len(s.terms) == 1:
            ((term, c),) = s.terms.items()
            if c == 1:
                return term
        return self._as_linear(s)

    def _binary(self, x: E.Binary, a: Expr, b: Expr) -> Expr:
        if a.dtype is i64 and x.dtype is i64:
            made = self._index_binary(x.fn, a, b)
            if made is not None:
                return made
        if x.dtype is b1:
            made = self._logic(x.fn, a, b)
            if made is not None:
                return made
        return self._one((x.fn, x.dtype, a, b), E.Binary(x.dtype, x.fn, a, b))

    def _index_binary(self, fn: str, a: Expr, b: Expr) -> Expr | None:
        if fn == "add":
            return self.linear(_Sum().merge(a).merge(b))
        if fn == "sub":
            return self.linear(_Sum().merge(a).merge(b, -1))
        if fn == "mul":
            for p, q in ((a, b), (b, a)):
                c = _constant(q)
                if c is not None:
                    return self.linear(_Sum().merge(p, c))
        if fn in ("floordiv", "mod"):
            d = _constant(b)
            if d is not None and (isinstance(d, D.Dim) or d > 0):
                return self._divide(fn, a, d)
        if fn in ("min", "max"):
            return self._extreme(fn, a, b)
        return None

    def _extreme(self, fn: str, a: Expr, b: Expr) -> Expr | None:
        (alo, ahi), (blo, bhi) = self.range(a), self.range(b)
        below = ahi is not None and blo is not None and ahi <= blo
        above = alo is not None and bhi is not None and alo >= bhi
        if below or above:
            return a if below == (fn == "min") else b
        return None

    def _divide(self, fn: str, a: Expr, d: D.DimLike) -> Expr | None:
        """``a // d`` or ``a % d``: whole multiples of ``d`` come out, and so does what is
        provably smaller than ``d``."""
        s = _Sum().merge(a)
        whole, rest = _Sum(), _Sum()
        for t, c in s.terms.items():
            (whole if _divides(d, c) else rest).add(t, c)
        q = D.floor_div(s.offset, d) if not isinstance(s.offset, D.Dim) else 0
        if isinstance(d, D.Dim) or isinstance(s.offset, D.Dim):
            q = D.floor_div(s.offset, d) if _divides(d, s.offset) else 0
        whole.offset, rest.offset = q * d, s.offset - q * d
        quotient = _Sum(q)
        for t, c in whole.terms.items():
            quotient.add(t, D.floor_div(c, d))
        if self._below(rest, d):
            return self.linear(quotient if fn == "floordiv" else rest)
        reduced = self._common_factor(fn, rest, d)
        if reduced is None:
            body = self.linear(rest)
            divisor = self.linear(_Sum(d))
            reduced = self._one((fn, i64, body, divisor), E.Binary(i64, fn, body, divisor))
        return reduced if fn == "mod" else self.linear(quotient.merge(reduced))

    def _below(self, s: _Sum, d: D.DimLike) -> bool:
        """Whether 0 <= s < d for certain."""
        if isinstance(d, D.Dim):
            if s.offset == 0 and not s.terms:
                return True
            if s.offset == 0 and len(s.terms) == 1:
                ((t, c),) = s.terms.items()
                return c == 1 and isinstance(t, Var) and t.extent == d
            return False
        low, high = self._sum_range(s)
        return low is not None and high is not None and low >= 0 and high < d

    def _common_factor(self, fn: str, s: _Sum, d: D.DimLike) -> Expr | None:
        """(g*q + r) // d == q // (d/g) when g divides d and 0 <= r < g; likewise for mod."""
        if isinstance(d, D.Dim) or isinstance(s.offset, D.Dim):
            return None
        if any(isinstance(c, D.Dim) for c in s.terms.values()):
            return None
        for g in sorted({math.gcd(d, int(c)) for c in s.terms.values()} - {1}, reverse=True):
            q, r = _Sum(s.offset // g), _Sum(s.offset % g)
            for t, c in s.terms.items():
                (q if int(c) % g == 0 else r).add(t, int(c) // g if int(c) % g == 0 else c)
            if self._below(r, g) and q.terms:
                inner = self._divide(fn, self.linear(q), d // g)
                assert inner is not None
                return inner if fn == "floordiv" else self.linear(r.merge(inner, g))
        return None

    # --- ranges and truth ----------------------------------------------------------------

    def range(self, e: Expr) -> Range:
        """Bounds of an i64 expression, None where unknown."""
        if e not in self._ranges:
            self._ranges[e] = self._range(e)
            self._keep.append(e)
        return self._ranges[e]

    def _range(self, e: Expr) -> Range:
        if isinstance(e, E.Const):
            return int(e.value), int(e.value)
        if isinstance(e, Var):
            return 0, None if isinstance(e.extent, D.Dim) else max(e.extent - 1, 0)
        if isinstance(e, Linear):
            s = _Sum(e.offset)
            s.terms = dict(e.terms)
            return self._sum_range(s)
        if isinstance(e, E.Binary) and e.fn in ("floordiv", "mod"):
            d = _constant(e.b)
            low, high = self.range(e.a)
            if isinstance(d, int) and d > 0:
                if e.fn == "mod":
                    return 0, d - 1
                return (None if low is None else low // d, None if high is None else high // d)
            return (0, None) if low is not None and low >= 0 else (None, None)
        if isinstance(e, E.Binary) and e.fn in ("min", "max"):
            return self._extreme_range(e.fn, self.range(e.a), self.range(e.b))
        return None, None

    @staticmethod
    def _extreme_range(fn: str, a: Range, b: Range) -> Range:
        def pick(p: int | None, q: int | None, surest: bool) -> int | None:
            known = [x for x in (p, q) if x is not None]
            if not known or (not surest and len(known) < 2):
                return None
            return min(known) if fn == "min" else max(known)

        return pick(a[0], b[0], fn == "max"), pick(a[1], b[1], fn == "min")

    def _sum_range(self, s: _Sum) -> Range:
        if isinstance(s.offset, D.Dim):
            return None, None
        low: int | None = s.offset
        high: int | None = s.offset
        for t, c in s.terms.items():
            a, b = self.range(t)
            if isinstance(c, D.Dim):
                # sizes are not negative, so the sign of the term's lower bound decides
                low = low if a is not None and a >= 0 and _positive(c) else None
                high = None
                continue
            if c < 0:
                a, b = b, a
            low = None if low is None or a is None else low + a * c
            high = None if high is None or b is None else high + b * c
        return low, high

    def truth(self, e: Expr) -> bool | None:
        """The value of a b1 expression where it is certain."""
        if isinstance(e, E.Const):
            return bool(e.value)
        if isinstance(e, E.Binary) and e.fn in E.COMPARE and e.a.dtype is i64:
            low, high = self.range(self.linear(_Sum().merge(e.a).merge(e.b, -1)))
            return _sign_truth(e.fn, low, high)
        return None

    def _logic(self, fn: str, a: Expr, b: Expr) -> Expr | None:
        if fn in E.COMPARE and a.dtype is i64:
            truth = self.truth(E.Binary(b1, fn, a, b))
            if truth is not None:
                return self._bool(truth)
        if fn in ("and", "or") and a.dtype is b1:
            neutral = fn == "and"
            for p, q in ((a, b), (b, a)):
                known = self.truth(p)
                if known is not None:
                    return q if known == neutral else self._bool(known)
            if a is b:
                return a
        return None

    def _bool(self, value: bool) -> Expr:
        return self._one(("const", b1, repr(value)), E.Const(b1, value))

    # --- the rest ------------------------------------------------------------------------

    def _cast(self, x: E.Cast, a: Expr) -> Expr:
        if a.dtype is x.dtype:
            return a
        if gelu.rounds(x):
            short = gelu.shorter(a)
            a = a if short is a else self.lower(short)
        if isinstance(a, E.Const) and a.dtype.kind != "c" and x.dtype.is_float:
            return self._one(("const", x.dtype, repr(a.value)), E.Const(x.dtype, a.value))
        key = ("cast", x.dtype, x.saturate, a)
        return self._one(key, E.Cast(x.dtype, a, x.saturate))

    def _select(self, x: E.Select, c: Expr, a: Expr, b: Expr) -> Expr:
        truth = self.truth(c)
        if truth is not None:
            return a if truth else b
        return a if a is b else self._one(("select", c, a, b), E.Select(x.dtype, c, a, b))


def _positive(d: D.Dim) -> bool:
    return all(c > 0 for c in d.terms.values())


def _sign_truth(fn: str, low: int | None, high: int | None) -> bool | None:
    """Truth of ``x fn 0`` for low <= x <= high."""
    if fn in ("gt", "le"):
        yes = True if low is not None and low > 0 else None
        yes = False if high is not None and high <= 0 else yes
        return yes if fn == "gt" or yes is None else not yes
    if fn in ("ge", "lt"):
        yes = True if low is not None and low >= 0 else None
        yes = False if high is not None and high < 0 else yes
        return yes if fn == "ge" or yes is None else not yes
    equal = None
    if low == 0 and high == 0:
        equal = True
    elif (low is not None and low > 0) or (high is not None and high < 0):
        equal = False
    return equal if fn == "eq" or equal is None else not equal


def _constant(e: Expr) -> D.DimLike | None:
    """The value of an integer that depends on nothing but sizes."""
    if isinstance(e, E.Const):
        return int(e.value)
    if isinstance(e, E.Size):
        return e.dim
    if isinstance(e, Linear) and not e.terms:
        return e.offset
    return None


def _divides(d: D.DimLike, c: D.DimLike) -> bool:
    if not isinstance(d, D.Dim) and not isinstance(c, D.Dim):
        return c % d == 0
    return D.floor_div(c, d) * d == c


def _vars_of(e: Expr) -> tuple[Var, ...]:
    """Variables that stand for one that was replaced, outermost (largest coefficient) first."""
    if isinstance(e, Var):
        return (e,)
    if isinstance(e, Linear):
        return tuple(t for t, _ in e.terms if isinstance(t, Var))
    return ()
