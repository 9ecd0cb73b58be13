"""Extremes over windows that reach outside: the nearest element inside instead of a guard.

A maximum doesn't change when an element is counted twice, so an index that is outside may become
the first or the last one where the window has that element anyway. Loads then need no masks, and
what stands for elements outside needs no selection, byte by byte.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...ir import expr as E
from ..cpu import affine as A
from ..cpu.loopnest import as_linear


def clamped(stages: Sequence[E.Stage]) -> list[E.Stage]:
    """The stages with such guards replaced, where all extents are known."""
    lowerer = A.Lowerer()

    def visit(e: E.Expr) -> E.Expr | None:
        if not isinstance(e, E.Reduce) or e.fn not in ("max", "min"):
            return None
        inside = e.body.x if isinstance(e.body, E.Cast) else e.body
        if not isinstance(inside, E.Load) or inside.guard is None:
            return None
        load = _without_guard(inside, e.vars, lowerer)
        if load is None:
            return None
        body = load if inside is e.body else E.cast(load, e.body.dtype)
        return E.Reduce(e.dtype, e.fn, e.vars, body)

    return [E.Stage(s.out, s.vars, E.rewrite(s.expr, visit), s.meta) for s in stages]


def _without_guard(
    load: E.Load, windows: Sequence[E.Var], lowerer: A.Lowerer
) -> E.Load | None:
    """The load with its indices kept inside, if that is the same for an extreme over windows."""
    assert load.guard is not None
    index = list(load.index)
    for test in _conjunction(load.guard):
        if not isinstance(test, E.Binary) or test.fn not in ("ge", "lt"):
            return None
        places = [d for d, i in enumerate(load.index) if i is test.a]
        if len(places) != 1 or not isinstance(test.b, E.Const):
            return None
        d, size, bound = places[0], load.value.dims[places[0]], int(test.b.value)
        reach = _reach(test.a, windows, lowerer)
        if reach is None or bound != (0 if test.fn == "ge" else size):
            return None
        first, last, taps = reach
        if test.fn == "ge":
            if first + taps - 1 < 0:
                return None
            index[d] = E.binary("max", index[d], E.const(0, index[d].dtype))
        else:
            if last > bound - 1:
                return None
            index[d] = E.binary("min", index[d], E.const(bound - 1, index[d].dtype))
    return E.load(load.value, index)


def _conjunction(e: E.Expr) -> list[E.Expr]:
    if isinstance(e, E.Binary) and e.fn == "and":
        return _conjunction(e.a) + _conjunction(e.b)
    return [e]


def _reach(
    at: E.Expr, windows: Sequence[E.Var], lowerer: A.Lowerer
) -> tuple[int, int, int] | None:
    """Where the first and the last window begin along a dimension, and how many neighbours a
    window has there."""
    line = as_linear(lowerer.lower(at))
    taps, first = 1, line.offset
    last = first
    for term, step in line.terms:
        if not isinstance(term, E.Var) or not isinstance(term.extent, int) or (
            not isinstance(step, int)
        ):
            return None
        if term in windows:
            if step != 1 or taps > 1:
                return None
            taps = term.extent
            continue
        ends = 0, step * (term.extent - 1)
        first, last = first + min(ends), last + max(ends)
    if not isinstance(first, int) or not isinstance(last, int):
        return None
    return first, last, taps
