"""Loops around an `Emitter`: counted loops with carried values, vector loops with tails."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llvmlite import ir

from ...ir.expr import Var
from .emitter import Emitter, Scope
from .vecmath import I64

Carried = list[ir.Value]
Body = Callable[[ir.Value, Carried], Carried]


def known(x: ir.Value) -> int | None:
    """The value of a constant integer."""
    return int(x.constant) if isinstance(x, ir.Constant) else None


def loop(
    em: Emitter, start: ir.Value, stop: ir.Value, step: int, carried: Carried, body: Body
) -> Carried:
    """``for i in range(start, stop, step)``. ``body(i, carried)`` emits one iteration and
    returns the carried values after it; the result is what they are in the end.

    What does not change in the loop is computed before it, and only if it runs at all.
    """
    first, last = known(start), known(stop)
    sure = first is not None and last is not None
    if sure and first >= last:  # type: ignore[operator]
        return carried
    outer = em.scopes[-1]
    closed: list[Scope] = []
    exit_ = outer.builder.append_basic_block()
    origin = outer.builder.block
    if not sure:
        before = outer.builder.append_basic_block()
        outer.builder.cbranch(outer.builder.icmp_signed("<", start, stop), before, exit_)
        closed = em.close(outer)
        em.push(ir.IRBuilder(before))
    base = em.scopes[-1]
    head = outer.builder.append_basic_block()
    hb = ir.IRBuilder(head)
    i = hb.phi(I64)
    phis = [hb.phi(c.type) for c in carried]
    em.push(hb)
    after = body(i, list(phis))
    following = hb.add(i, I64(step))
    end = hb.block
    hb.cbranch(hb.icmp_signed("<", following, stop), head, exit_)
    em.pop()
    entry = base.builder.block
    base.builder.branch(head)
    if not sure:
        em.pop()
    i.add_incoming(start, entry)
    i.add_incoming(following, end)
    for p, c, a in zip(phis, carried, after, strict=True):
        p.add_incoming(c, entry)
        p.add_incoming(a, end)
    em.reopen(closed)
    outer.builder.position_at_end(exit_)
    if sure:
        return after
    results: Carried = []
    for c, a in zip(carried, after, strict=True):
        merged = outer.builder.phi(a.type)
        merged.add_incoming(c, origin)
        merged.add_incoming(a, end)
        results.append(merged)
    return results


def vector_loop(
    em: Emitter,
    var: Var,
    start: ir.Value,
    stop: ir.Value,
    width: int,
    carried: tuple[Carried, Carried],
    body: Callable[[int, Carried], Carried],
    overlap: ir.Value | None = None,
) -> tuple[Carried, Carried]:
    """Runs ``var`` over a range, ``width`` lanes at a time and the rest one by one.

    ``body(lanes, carried)`` emits for a vector (``lanes`` = width) or a scalar (0); the two have
    carried values of their own.

    Args:
        overlap: If doing elements twice does no harm: the variable's whole extent. The last
            vector then overlaps the one before it, unless the extent is less than a vector.
    """

    def run(lanes: int) -> Body:
        def one(i: ir.Value, now: Carried) -> Carried:
            em.bind(var, i, lanes)
            return body(lanes, now)

        return one

    b = em.builder
    if overlap is not None and width > 1:
        return _overlapping(em, start, stop, width, carried, run, overlap)
    middle: ir.Value
    first, last = known(start), known(stop)
    if first is not None and last is not None:
        middle = I64(first + (last - first) // width * width)
    else:
        count = b.and_(b.sub(stop, start), I64(-width))
        middle = b.add(start, count)
    wide = loop(em, start, middle, width, carried[0], run(width)) if width > 1 else carried[0]
    narrow = loop(em, middle if width > 1 else start, stop, 1, carried[1], run(0))
    return wide, narrow


def _overlapping(
    em: Emitter,
    start: ir.Value,
    stop: ir.Value,
    width: int,
    carried: tuple[Carried, Carried],
    run: Callable[[int], Body],
    extent: ir.Value,
) -> tuple[Carried, Carried]:
    n, b = known(extent), em.builder
    end = known(stop)
    last = b.sub(stop, I64(width)) if end is None else I64(end - width)

    def clamped(i: ir.Value, now: Carried) -> Carried:
        b = em.builder
        return run(width)(b.select(b.icmp_signed("<", i, last), i, last), now)

    even = n is not None and end is not None and n % width == 0
    vector = run(width) if even else clamped
    if n is not None and n >= width:
        return loop(em, start, stop, width, carried[0], vector), carried[1]
    enough = b.icmp_signed(">=", extent, I64(width))
    wide = loop(em, start, b.select(enough, stop, start), width, carried[0], vector)
    b = em.builder
    narrow = loop(em, start, b.select(enough, start, stop), 1, carried[1], run(0))
    return wide, narrow


def when(em: Emitter, condition: ir.Value, body: Callable[[], None]) -> None:
    """Runs ``body`` where a condition (i1) holds."""
    outer = em.scopes[-1]
    inside, after = (outer.builder.append_basic_block() for _ in range(2))
    outer.builder.cbranch(condition, inside, after)
    closed = em.close(outer)
    em.push(ir.IRBuilder(inside))
    body()
    em.builder.branch(after)
    em.pop()
    em.reopen(closed)
    outer.builder.position_at_end(after)


def unrolled(em: Emitter, var: Var, count: int, carried: Carried, body: Body) -> Carried:
    """A short loop written out."""
    outer = em.scopes[-1]
    closed = em.close(outer)  # one builder: only the inner scope knows its place
    for k in range(count):
        em.push(outer.builder)
        em.bind(var, I64(k))
        carried = body(I64(k), carried)
        em.pop()
    em.reopen(closed)
    return carried


def counters(
    b: ir.IRBuilder, item: ir.Value, extents: Sequence[ir.Value]
) -> list[ir.Value]:
    """Splits an item number into one index per extent, the last fastest."""
    out: list[ir.Value] = []
    for n in reversed(extents[1:]):
        out.append(b.urem(item, n))
        item = b.udiv(item, n)
    if extents:
        out.append(item)
    return out[::-1]


def advance(
    b: ir.IRBuilder, now: Sequence[ir.Value], extents: Sequence[ir.Value]
) -> list[ir.Value]:
    """The indices of the next item, without divisions."""
    out: list[ir.Value] = []
    carry: ir.Value = I64(1)
    for k in range(len(now) - 1, -1, -1):
        up = b.add(now[k], carry)
        if k == 0:
            out.append(up)
            break
        full = b.icmp_signed("==", up, extents[k])
        out.append(b.select(full, I64(0), up))
        carry = b.zext(full, I64)
    return out[::-1]
