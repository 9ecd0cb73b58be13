"""Reductions inside expressions, as loops with accumulators in registers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir

from ...ir import dims as D
from ...ir import expr as E
from ...ir.dtypes import DType, i64
from ...ir.expr import Reduce, Var
from . import affine as A
from . import arith, convert, nest
from . import vecmath as V
from .emitter import Emitter
from .vecmath import I32, I64

_UNROLL = 4  # reductions of at most this many terms are written out
_COMBINE = {"sum": "add", "prod": "mul", "max": "max", "min": "min", "any": "or", "all": "and"}


def emit_reduce(em: Emitter, e: Reduce) -> ir.Value:
    """The value of a reduction: a vector if its operands have lanes, else a scalar computed
    with vectors along one of its own variables."""
    width = em.width(e)
    mask, em.mask = em.mask, None if not width else em.mask
    lane = None if width or em.vector_lanes < 2 else choose_lane(e)
    rule = _Rule(e)
    if lane is None:
        totals = _nest(em, rule, list(e.vars), None, 0, (rule.identity(width), []))[0]
        em.mask = mask
        return totals[-1]
    own = lanes_for(lane.extent, em.vector_lanes)
    order = [v for v in e.vars if v is not lane] + [lane]
    start = rule.identity(own), rule.identity(0)
    wide, narrow = _nest(em, rule, order, lane, own, start)
    total = rule.merge(em.builder, rule.across(em.builder, wide), narrow)
    em.mask = mask
    return total[-1]


def lanes_for(extent: D.DimLike, most: int) -> int:
    """Lanes for a loop of this length: a power of two, no more than there are elements."""
    if isinstance(extent, D.Dim):
        return most
    while most > 1 and most > extent:
        most //= 2
    return most


def choose_lane(e: Reduce) -> Var | None:
    """The variable to run over lanes: the one along which most loads are contiguous."""
    scores = {v: 0.0 for v in e.vars if isinstance(v.extent, D.Dim) or v.extent >= 4}
    for x in A.walk([e.body]):
        if not isinstance(x, A.FlatLoad):
            continue
        for t, c in x.at.terms:
            if isinstance(t, Var):
                if t in scores:
                    scores[t] += 1.0 if c == 1 else -1.0
            else:
                for v in scores:
                    if v in _vars_in(t):
                        scores[v] -= 1.0
    best = max(scores, key=lambda v: (scores[v], e.vars.index(v)), default=None)
    return best if best is not None and scores[best] > -1.0 else None


def _vars_in(e: E.Expr) -> set[Var]:
    return {x for x in A.walk([e]) if isinstance(x, Var)}


def _nest(
    em: Emitter,
    rule: _Rule,
    order: Sequence[Var],
    lane: Var | None,
    own: int,
    totals: tuple[list[ir.Value], list[ir.Value]],
) -> tuple[list[ir.Value], list[ir.Value]]:
    """Loops over ``order``; totals are the accumulators of vector and of scalar code."""
    if not order:
        return rule.step(em, totals[0]), []
    var, rest = order[0], order[1:]
    if var is lane:
        stop = em.dim(var.extent)
        return nest.vector_loop(
            em, var, I64(0), stop, own, totals, lambda _lanes, now: rule.step(em, now),
            stop if rule.idempotent else None,
        )  # fmt: skip
    split = len(totals[0])

    def body(i: ir.Value, now: list[ir.Value]) -> list[ir.Value]:
        em.bind(var, i)
        wide, narrow = _nest(em, rule, rest, lane, own, (now[:split], now[split:]))
        return [*wide, *narrow]

    flat = [*totals[0], *totals[1]]
    if not rest and not isinstance(var.extent, D.Dim) and var.extent <= _UNROLL:
        flat = nest.unrolled(em, var, var.extent, flat, body)
    else:
        flat = nest.loop(em, I64(0), em.dim(var.extent), 1, flat, body)
    return flat[:split], flat[split:]


class _Rule:
    """How one reduction starts, takes an element, and joins partial results.

    Accumulators are lists: the value, and before it the extreme found so far for arg functions.
    """

    def __init__(self, e: Reduce):
        self.e = e
        self.dt: DType = e.body.dtype
        self.arg = e.fn.startswith("arg")
        self.last = e.fn.endswith("_last")
        self.idempotent = e.fn not in ("sum", "prod")
        self.extreme = e.fn[3:6] if self.arg else e.fn

    def identity(self, width: int) -> list[ir.Value]:
        first = convert.literal(neutral(self.extreme, self.dt), self.dt, width)
        return [first, V.const(V.with_lanes(I64, width), 0)] if self.arg else [first]

    def step(self, em: Emitter, now: list[ir.Value]) -> list[ir.Value]:
        width = V.lanes(now[-1].type)
        b = em.builder
        x = V.splat(em.builder, em._emit(self.e.body), width)
        if not self.arg:
            return [self._join(em.builder, now[0], x)]
        where = V.splat(b, em._emit(self.e.vars[0]), width)
        better = self._better(b, now[0], x)
        return [b.select(better, x, now[0]), b.select(better, where, now[1])]

    def _join(self, b: ir.IRBuilder, x: ir.Value, y: ir.Value) -> ir.Value:
        return arith.binary(b, _COMBINE[self.e.fn], x, y, self.dt)

    def _better(self, b: ir.IRBuilder, best: ir.Value, x: ir.Value) -> ir.Value:
        """Whether ``x``, which comes later, replaces ``best``; NaN counts as extreme."""
        op = (">" if self.extreme == "max" else "<") + ("=" if self.last else "")
        if not self.dt.is_float:
            return arith.binary(b, _NAMES[op], x, best, self.dt)
        better = b.and_(b.fcmp_unordered(op, x, best), b.fcmp_ordered("ord", best, best))
        return b.or_(better, b.fcmp_unordered("uno", x, x)) if self.last else better

    def merge(self, b: ir.IRBuilder, p: list[ir.Value], q: list[ir.Value]) -> list[ir.Value]:
        """Joins partial results over different elements, in any order."""
        if not self.arg:
            return [self._join(b, p[0], q[0])]
        op = ">" if self.extreme == "max" else "<"
        tie = b.icmp_signed(">" if self.last else "<", q[1], p[1])
        if self.dt.is_float:
            p_nan, q_nan = (b.fcmp_unordered("uno", k[0], k[0]) for k in (p, q))
            better = b.and_(b.fcmp_unordered(op, q[0], p[0]), b.not_(p_nan))
            same = b.or_(b.fcmp_ordered("==", q[0], p[0]), b.and_(p_nan, q_nan))
        else:
            better = arith.binary(b, _NAMES[op], q[0], p[0], self.dt)
            same = b.icmp_signed("==", q[0], p[0])
        take = b.or_(better, b.and_(same, tie))
        return [b.select(take, y, x) for x, y in zip(p, q, strict=True)]

    def across(self, b: ir.IRBuilder, wide: list[ir.Value]) -> list[ir.Value]:
        """Joins the lanes of a vector by halves."""
        n = V.lanes(wide[0].type)
        while n > 1:
            n //= 2
            low, high = ([_part(b, x, k, n) for x in wide] for k in (0, n))
            wide = self.merge(b, low, high)
        return [b.extract_element(x, I32(0)) if V.lanes(x.type) else x for x in wide]


_NAMES = {">": "gt", "<": "lt", ">=": "ge", "<=": "le"}


def _part(b: ir.IRBuilder, x: ir.Value, first: int, n: int) -> ir.Value:
    order = ir.Constant(ir.VectorType(I32, n), list(range(first, first + n)))
    return b.shuffle_vector(x, x, order)


def neutral(fn: str, dt: DType) -> Any:
    """What a reduction over nothing gives."""
    if fn in ("sum", "any"):
        return 0
    if fn in ("prod", "all"):
        return 1
    if dt.is_float:
        return float("-inf") if fn == "max" else float("inf")
    if dt.kind == "b":
        return fn == "min"
    low, high = convert.limits(dt)
    return low if fn == "max" else high


__all__ = ["choose_lane", "emit_reduce", "i64", "lanes_for", "neutral"]
