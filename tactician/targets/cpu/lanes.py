"""Chooses what runs along the vector lanes of a loop nest, by a small cost model."""

from __future__ import annotations

import math
from collections.abc import Iterable

from ...ir import dims as D
from ...ir import expr as E
from ...ir.expr import Expr, Var
from . import affine as A
from .loopnest import LoopNest, Step
from .reduction import choose_lane, lanes_for

_GUESS = 64  # stands for a size known only at run time


def extent(v: Var) -> int:
    return _GUESS if isinstance(v.extent, D.Dim) else max(int(v.extent), 1)


def trips(vs: Iterable[Var]) -> float:
    return float(math.prod(extent(v) for v in vs))


def choose_row_lane(nest: LoopNest, width: int) -> Var | None:
    """The row variable to vectorize, or None if each step should use one of its own."""
    options: list[Var | None] = [None, *nest.rows]
    own = _own_cost(nest, width)
    costs = [own, *(_row_cost(nest, v, width) for v in nest.rows)]
    best = min(range(len(options)), key=lambda k: (costs[k], -k))
    return options[best]


def tile_var(nest: LoopNest, lane: Var | None) -> Var | None:
    """The row variable along which memory is contiguous where the lanes step far: a few rows
    of it done together use each cache line whole. None if there is no such access."""
    if lane is None or len(nest.rows) < 2:
        return None
    for s in nest.steps:
        accesses = [at for at, _ in _accesses(s.expr)]
        for at in [*accesses, *([s.at] if s.at is not None else [])]:
            c = dict(at.terms)
            far = c.get(lane, 0)
            if isinstance(far, D.Dim) or abs(far) > 2:
                for v in nest.rows:
                    if v is not lane and c.get(v, 0) == 1 and extent(v) >= 4:
                        return v
    return None


def inner_lane(step: Step) -> Var | None:
    """The inner variable of a step to vectorize when rows are not."""
    best, cost = None, float("inf")
    for v in step.inner:
        c = _step_cost(step, v, 8)
        if c <= cost:
            best, cost = v, c
    return best


def _spread(v: Var, width: int) -> float:
    """Cost of one element of a loop over ``v`` in vectors, the scalar rest included."""
    n = extent(v)
    w = lanes_for(n, width)
    if isinstance(v.extent, D.Dim):
        return 1.2 / w
    return (n // w + n % w) / n


def _touch(at: A.Linear, v: Var, spread: float) -> float:
    """Cost of one element of a memory access when ``v`` runs along the lanes."""
    step: D.DimLike = 0
    for t, c in at.terms:
        if t is v:
            step = c
        elif not isinstance(t, Var) and v in A.walk([t]):
            return 1.5
    if step == 0:
        return 0.2 * spread
    if step == 1:
        return spread
    if step in (2, -1):
        return 2.5 * spread
    return 1.0 + spread


def _accesses(e: Expr) -> list[tuple[A.Linear, tuple[Var, ...]]]:
    """Loads with the reduction variables they run through."""
    out: list[tuple[A.Linear, tuple[Var, ...]]] = []
    seen: set[tuple[Expr, tuple[Var, ...]]] = set()

    def go(x: Expr, over: tuple[Var, ...]) -> None:
        if (x, over) in seen:
            return
        seen.add((x, over))
        if isinstance(x, A.FlatLoad):
            out.append((x.at, over))
        inner = (*over, *x.vars) if isinstance(x, E.Reduce) else over
        for c in A.children(x):
            go(c, inner)

    go(e, ())
    return out


def _step_cost(s: Step, v: Var, width: int) -> float:
    spread = _spread(v, width)
    total = 0.0
    for at, over in _accesses(s.expr):
        total += _touch(at, v, spread) * trips(over)
    total += 0.3 * spread * len(A.walk([s.expr])) * trips(_reduced(s.expr))
    if s.at is not None:
        total += _touch(s.at, v, spread)
    return total * trips(s.inner)


def _reduced(e: Expr) -> set[Var]:
    return {v for x in A.walk([e]) if isinstance(x, E.Reduce) for v in x.vars}


def _row_cost(nest: LoopNest, v: Var, width: int) -> float:
    return sum(_step_cost(s, v, width) for s in nest.steps)


def _own_cost(nest: LoopNest, width: int) -> float:
    """Cost per row when every step has a lane variable of its own (or runs one by one)."""
    total = 0.0
    for s in nest.steps:
        if s.inner:
            lane = inner_lane(s)
            assert lane is not None
            total += _step_cost(s, lane, width)
            continue
        reduces = [x for x in A.walk([s.expr]) if isinstance(x, E.Reduce)]
        total += 1.3 * len(A.walk([s.expr]))
        for r in reduces:
            lane = choose_lane(r)
            n = trips(r.vars)
            if lane is None:
                total += 1.5 * n * len(A.walk([r.body]))
                continue
            spread = _spread(lane, width)
            total += n * sum(_touch(at, lane, spread) for at, _ in _accesses(r.body))
            total += n * 0.3 * spread * len(A.walk([r.body])) + 6.0
    return total


__all__ = ["choose_row_lane", "extent", "inner_lane", "tile_var", "trips"]
