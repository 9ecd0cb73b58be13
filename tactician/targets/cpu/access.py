"""Vector loads and stores: contiguous, strided, gathered, guarded."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from llvmlite import ir

from ...ir import dims as D
from ...ir import expr as E
from ...ir.expr import Expr, Var
from ...ir.graph import Value
from . import affine as A
from . import convert
from . import vecmath as V
from .vecmath import I1, I32, I64

if TYPE_CHECKING:
    from .emitter import Emitter


def emit_load(em: Emitter, e: A.FlatLoad) -> ir.Value:
    """A load, guarded or not, as a register value."""
    if e.guard is not None:
        return _guarded(em, e)
    return convert.from_memory(em.builder, _raw(em, e.value, e.at, None), e.value.dtype)


def _raw(em: Emitter, value: Value, at: A.Linear, allowed: ir.Value | None) -> ir.Value:
    """Memory-typed elements at a flat index. ``allowed`` (i1 or lanes of it): where false, a
    harmless address is read instead."""
    packed = em._packed.get(value, 0)
    if packed:
        return _raw_packed(em, value, at, packed)
    _, step, width = em.lane_split(at)
    b = em.builder
    if not width:
        if allowed is None or not V.lanes(allowed.type):
            return _element(em, em.place(value, at), value, allowed)
        return _gather(em, value, lambda k: em.linear(at), V.lanes(allowed.type), allowed)
    if step is None:
        indices = em.linear(at)
        b = em.builder
        return _gather(
            em, value, lambda k: b.extract_element(indices, I32(k)), width, allowed
        )
    if allowed is None and em.mask is None and not isinstance(step, D.Dim):
        wide = _strided(em, value, at, int(step), width)
        if wide is not None:
            return wide
    if em.mask is not None:
        allowed = em.mask if allowed is None else em.builder.and_(allowed, em.mask)
    if step == 1 and allowed is not None and V.lanes(allowed.type) and value.dtype.size >= 4:
        return _masked(em, value, at, width, allowed)
    base = em.lane_base(at)

    def index(k: int) -> ir.Value:
        assert step is not None
        return base if k == 0 else em.builder.add(base, _times(em, step, k))

    return _gather(em, value, index, width, allowed)


def _scalar(
    em: Emitter, value: Value, index: ir.Value, allowed: ir.Value | None
) -> ir.Value:
    return _element(em, em.address(value, index), value, allowed)


def _element(em: Emitter, at: ir.Value, value: Value, allowed: ir.Value | None) -> ir.Value:
    if allowed is not None:
        at = em.builder.select(allowed, at, em.safe_address())
    t = convert.memory_type(value.dtype)
    return em.builder.load(at, typ=t, align=value.dtype.size)


def _raw_packed(em: Emitter, value: Value, at: A.Linear, packed: int) -> ir.Value:
    """Scratch that holds a whole vector (or in scalar code one element) per flat index."""
    width = em.row_width
    b = em.builder
    index = b.mul(em.linear(at), I64(packed))
    t = convert.memory_type(value.dtype, width)
    return b.load(em.address(value, index), typ=t, align=value.dtype.size)


def _strided(
    em: Emitter, value: Value, at: A.Linear, step: int, width: int
) -> ir.Value | None:
    """Constant steps that whole vectors serve: 1, -1, 2; None for others."""
    b, t, size = em.builder, convert.memory_type(value.dtype, width), value.dtype.size
    if step == 1:
        return b.load(em.place(value, at), typ=t, align=size)
    if step not in (-1, 2):
        return None
    base = em.lane_base(at)
    if step == -1:
        first = em.address(value, b.sub(base, I64(width - 1)))
        x = b.load(first, typ=t, align=size)
        order = [width - 1 - k for k in range(width)]
        return b.shuffle_vector(x, x, ir.Constant(ir.VectorType(I32, width), order))
    # the second vector starts one element early and so ends with the last lane's element
    low = b.load(em.address(value, base), typ=t, align=size)
    high = b.load(em.address(value, b.add(base, I64(width - 1))), typ=t, align=size)
    order = [2 * k if 2 * k < width else width + 2 * k - (width - 1) for k in range(width)]
    return b.shuffle_vector(low, high, ir.Constant(ir.VectorType(I32, width), order))


def _masked(
    em: Emitter, value: Value, at: A.Linear, width: int, mask: ir.Value
) -> ir.Value:
    b, t = em.builder, convert.memory_type(value.dtype, width)
    name = f"llvm.masked.load.{V.type_suffix(t)}.p0"
    fn = V.declare(b.module, name, t, [V.PTR, I32, mask.type, t])
    return b.call(fn, [em.place(value, at), I32(value.dtype.size), mask, ir.Constant(t, None)])


def _times(em: Emitter, step: D.DimLike, k: int) -> ir.Value:
    """``step * k``, without asking for a size of its own."""
    if isinstance(step, D.Dim):
        return em.builder.mul(em.dim(step), I64(k))
    return I64(step * k)


def _gather(
    em: Emitter,
    value: Value,
    index: Callable[[int], ir.Value],
    width: int,
    allowed: ir.Value | None,
) -> ir.Value:
    """One scalar load per lane."""
    b = em.builder
    out: ir.Value = V.undefined(convert.memory_type(value.dtype, width))
    for k in range(width):
        ok = allowed
        if allowed is not None and V.lanes(allowed.type):
            ok = b.extract_element(allowed, I32(k))
        out = b.insert_element(out, _scalar(em, value, index(k), ok), I32(k))
    return out


# --- guards -------------------------------------------------------------------------------


def _guarded(em: Emitter, e: A.FlatLoad) -> ir.Value:
    assert e.guard is not None and e.other is not None
    width = em.width(e.guard) or em.width(A.FlatLoad(e.dtype, e.value, e.at))
    if not width:
        ok = em._emit(e.guard)
        raw = _raw(em, e.value, e.at, ok)
        x = convert.from_memory(em.builder, raw, e.value.dtype)
        other = em._emit(e.other)
        if V.lanes(other.type):
            x, ok = (V.splat(em.builder, v, V.lanes(other.type)) for v in (x, ok))
        return em.builder.select(ok, x, other)
    return _guarded_vector(em, e, width)


def _guarded_vector(em: Emitter, e: A.FlatLoad, width: int) -> ir.Value:
    """Branches on whether the guard holds in all lanes; if so the load needs no guard."""
    guard = e.guard
    assert guard is not None and e.other is not None
    uniform = not em.width(guard)
    inside = em._emit(guard) if uniform else _holds_everywhere(em, guard, width)
    # what both branches share is computed before they part
    other = V.splat(em.builder, em._emit(e.other), width)
    outer = em.scopes[-1]
    b = outer.builder
    fast, slow, after = (b.append_basic_block() for _ in range(3))
    b.cbranch(inside, fast, slow)
    closed = em.close(outer)

    def branch(block: ir.Block, make: Callable[[], ir.Value]) -> tuple[ir.Value, ir.Block]:
        scope = em.push(ir.IRBuilder(block))
        x = V.splat(em.builder, make(), width)
        end = scope.builder.block
        scope.builder.branch(after)
        em.pop()
        return x, end

    def whole() -> ir.Value:
        raw = _raw(em, e.value, e.at, None)
        return convert.from_memory(em.builder, raw, e.value.dtype)

    def lane_by_lane() -> ir.Value:
        if uniform:
            return other
        _, step, lanes = em.lane_split(e.at)
        masked = (step == 1 or not lanes) and e.value.dtype.size >= 4
        if em.mask is None and not masked:
            return _one_by_one(em, e, width)
        ok = em._emit(guard)
        raw = _raw(em, e.value, e.at, ok)
        x = convert.from_memory(em.builder, raw, e.value.dtype)
        return em.builder.select(ok, x, other)

    x, x_end = branch(fast, whole)
    y, y_end = branch(slow, lane_by_lane)
    em.reopen(closed)
    b.position_at_end(after)
    out = b.phi(x.type)
    out.add_incoming(x, x_end)
    out.add_incoming(y, y_end)
    return out


def _one_by_one(em: Emitter, e: A.FlatLoad, width: int) -> ir.Value:
    """A loop over the lanes: little code, for what is rarely run."""
    from .nest import loop

    var, wide = em.lane_binding(e)
    slot = V.entry_alloca(em.builder, convert.register_type(e.dtype, width))

    def lane(k: ir.Value, now: list[ir.Value]) -> list[ir.Value]:
        em.bind(var, em.builder.add(em.first_lane(wide), k))
        x = em._emit(e)
        if e.dtype.kind == "b":
            x = em.builder.zext(x, V.I8)
        em.builder.store(x, em.builder.gep(slot, [k], source_etype=x.type))
        return now

    packed = em.row_width
    em.row_width = 0
    loop(em, I64(0), I64(width), 1, [], lane)
    em.row_width = packed
    em.rebind(var, wide)
    if e.dtype.kind == "b":
        raw = em.builder.load(slot, typ=ir.VectorType(V.I8, width))
        return em.builder.trunc(raw, ir.VectorType(I1, width))
    return em.builder.load(slot, typ=convert.register_type(e.dtype, width))


def _holds_everywhere(em: Emitter, guard: Expr, width: int) -> ir.Value:
    """i1: the guard holds in all lanes (if the mask is set, in those). Conjunctions of linear
    comparisons hold between two lanes where they hold at both, so the ends are enough."""
    parts = _conjuncts(guard)
    if em.mask is not None or not all(_monotonic(em, p) for p in parts):
        mask = em._emit(guard)
        if em.mask is not None:
            mask = em.builder.or_(mask, em.builder.not_(em.mask))
        return em.all_lanes(mask)
    ok: ir.Value | None = None
    for p in parts:
        if not em.width(p):
            tests = [em._emit(p)]
        else:
            assert isinstance(p, E.Binary)
            tests = _end_tests(em, p, width)
        for t in tests:
            ok = t if ok is None else em.builder.and_(ok, t)
    assert ok is not None
    return ok


def _conjuncts(e: Expr) -> list[Expr]:
    if isinstance(e, E.Binary) and e.fn == "and":
        return _conjuncts(e.a) + _conjuncts(e.b)
    return [e]


def _as_linear(e: Expr) -> A.Linear:
    if isinstance(e, A.Linear):
        return e
    if isinstance(e, E.Const):
        return A.Linear(e.dtype, (), int(e.value))
    return A.Linear(e.dtype, ((e, 1),), 0)


def _monotonic(em: Emitter, e: Expr) -> bool:
    """A comparison of i64 linear forms in the lane variable, or the same in all lanes."""
    if not em.width(e):
        return True
    if not isinstance(e, E.Binary) or e.fn not in ("lt", "le", "gt", "ge"):
        return False
    if e.a.dtype.name != "i64":
        return False
    return all(em.lane_split(_as_linear(s))[1] is not None for s in (e.a, e.b))


def _end_tests(em: Emitter, p: E.Binary, width: int) -> list[ir.Value]:
    """The comparison at the first and at the last lane."""
    op = {"lt": "<", "le": "<=", "gt": ">", "ge": ">="}[p.fn]
    sides = []
    for side in (p.a, p.b):
        at = _as_linear(side)
        _, step, w = em.lane_split(at)
        first = em.lane_base(at)
        last = first
        if w:
            assert step is not None
            last = em.builder.add(first, _times(em, step, width - 1))
        sides.append((first, last))
    return [em.builder.icmp_signed(op, x, y) for x, y in zip(*sides, strict=True)]


# --- stores -------------------------------------------------------------------------------


def emit_store(em: Emitter, value: Value, at: A.Linear, register: ir.Value) -> None:
    """Stores a register value at a flat index; a scalar is spread where the index has lanes."""
    packed = em._packed.get(value, 0)
    b = em.builder
    dt = value.dtype
    if packed:
        register = V.splat(b, register, em.row_width)
        raw = convert.to_memory(b, register, dt)
        index = b.mul(em.linear(at), I64(packed))
        b.store(raw, em.address(value, index), align=dt.size)
        return
    _, step, width = em.lane_split(at)
    register = V.splat(b, register, width)
    raw = convert.to_memory(b, register, dt)
    if not width:
        if V.lanes(register.type):
            raise ValueError(f"a vector for one element of {value}")
        b.store(raw, em.place(value, at), align=dt.size)
        return
    if step == 1:
        target = em.place(value, at)
        if em.mask is None:
            b.store(raw, target, align=dt.size)
        else:
            _masked_store(em, raw, target, dt.size)
        return
    if step is None:
        indices = em.linear(at)
    base = None if step is None else em.lane_base(at)
    for k in range(width):
        if base is None:
            index = em.builder.extract_element(indices, I32(k))
        else:
            assert step is not None
            index = em.builder.add(base, _times(em, step, k))
        _store_lane(em, raw, k, em.address(value, index), dt.size)


def _masked_store(em: Emitter, raw: ir.Value, target: ir.Value, size: int) -> None:
    assert em.mask is not None
    b, t = em.builder, raw.type
    if isinstance(em.mask, ir.Constant) and [bool(m.constant) for m in em.mask.constant] == [
        k == 0 for k in range(t.count)
    ]:  # LLVM makes a store of the wider type of it where the lanes have just been narrowed
        b.store(b.extract_element(raw, I32(0)), target, align=size)
        return
    name = f"llvm.masked.store.{V.type_suffix(t)}.p0"
    fn = V.declare(b.module, name, ir.VoidType(), [t, V.PTR, I32, em.mask.type])
    b.call(fn, [raw, target, I32(size), em.mask])


def _store_lane(em: Emitter, raw: ir.Value, k: int, target: ir.Value, size: int) -> None:
    b = em.builder
    x = b.extract_element(raw, I32(k))
    if em.mask is None:
        b.store(x, target, align=size)
        return
    with b.if_then(b.extract_element(em.mask, I32(k))):
        b.store(x, target, align=size)


__all__ = ["I1", "Var", "emit_load", "emit_store"]
