"""Emits expressions of the compute language as LLVM instructions, one vector at a time.

An `Emitter` holds bindings: iteration variables to i64 values (at most one variable in sight is
spread over vector lanes), tensors to base pointers, and tensors to values that are already in
registers. `emit` returns a scalar for what does not depend on the lane variable and a vector
otherwise. Everything pure is computed in the outermost open scope that knows its variables.

A GEMM or convolution epilogue uses it like this, inside a function of its own::

    em = Emitter(builder, pointer=base_of, size=dim_of)
    em.bind(row, i)                       # iteration variables; one of them along the lanes
    em.bind(col, j, width=16)             # lanes hold col = j, j + 1, … j + 15
    em.bind_result(accumulator, vector)   # the contraction's output, already in a register
    em.store(stage, em.emit(stage.expr))  # or use the vector of `em.vector(...)`
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from llvmlite import ir

from ...ir import dims as D
from ...ir import expr as E
from ...ir.expr import Expr, Var
from ...ir.graph import Value
from . import affine as A
from . import arith, convert, requantize
from . import vecmath as V
from .vecmath import I1, I8, I64

_SAFE_BYTES = 64  # size of the dummy that guarded loads read instead of foreign memory


@dataclass(eq=False)
class Scope:
    """A place where instructions can go: a builder at the end of an open block.

    Attributes:
        builder: Always stands at the end of the scope's current block.
        memo: What has been computed here (dominates everything nested).
        open: Whether instructions may still be added while inner scopes exist.
    """

    builder: ir.IRBuilder
    memo: dict[Any, ir.Value] = field(default_factory=dict)
    open: bool = True


@dataclass(eq=False)
class Binding:
    """A variable's value: ``value + shift``, or that many ``width`` from there over the lanes.

    Attributes:
        outer: Whether ``value`` is known in the outermost scope: addresses made there serve all
            shifts of it.
    """

    value: ir.Value
    scope: Scope
    width: int = 0
    shift: int = 0
    outer: bool = False


@dataclass(frozen=True)
class Shifted:
    """The index ``base + by``."""

    base: ir.Value
    by: int

    def value(self, b: ir.IRBuilder) -> ir.Value:
        """As one number."""
        return b.add(self.base, I64(self.by)) if self.by else self.base


class Emitter:
    """See the module's text.

    Attributes:
        lowerer: Brings expressions into the form that `emit` reads; share it between emitters
            of one kernel.
        mask: If set, an <W x i1> of the lanes that exist; loads along the lanes honour it.
        row_width: Lanes of values in packed scratch at present (0: one element).
        vector_lanes: Lanes that reductions over a variable of their own use.
    """

    def __init__(
        self,
        builder: ir.IRBuilder,
        *,
        pointer: Callable[[Value], ir.Value],
        size: Callable[[D.Dim], ir.Value],
        lowerer: A.Lowerer | None = None,
    ):
        """Args:
        builder: Where instructions go, at the end of a block.
        pointer: Base address of a tensor.
        size: Run-time value (i64) of a symbolic dimension.
        """
        self.scopes: list[Scope] = [Scope(builder)]
        self.lowerer = lowerer or A.Lowerer()
        self.mask: ir.Value | None = None
        self.row_width = 0
        self.vector_lanes = 16
        self._pointer, self._size = pointer, size
        self._vars: dict[Var, Binding] = {}
        self._results: dict[Value, tuple[ir.Value, Scope]] = {}
        self._local: dict[Value, Scope] = {}
        self._bases: dict[Value, ir.Value] = {}
        self._packed: dict[Value, int] = {}
        self._needs: dict[Expr, frozenset[Any]] = {}

    # --- bindings ------------------------------------------------------------------------

    @property
    def builder(self) -> ir.IRBuilder:
        return self.scopes[-1].builder

    def bind(self, var: Var, value: ir.Value | Shifted, width: int = 0) -> None:
        """Gives an iteration variable its value in the current scope. With ``width`` it is
        spread over that many lanes, starting at ``value``. The base of a shifted one must be
        known in the outermost scope."""
        if isinstance(value, Shifted):
            self._vars[var] = Binding(value.base, self.scopes[-1], width, value.by, outer=True)
        else:
            self._vars[var] = Binding(value, self.scopes[-1], width)

    def lane_binding(self, e: Expr) -> tuple[Var, Binding]:
        """The variable that ``e`` has along the lanes."""
        return next(
            (k, self._vars[k]) for k in self.needs(e) if isinstance(k, Var) and self._vars[k].width
        )

    def rebind(self, var: Var, binding: Binding) -> None:
        """Takes a variable back to an earlier binding."""
        self._vars[var] = binding

    def bind_result(self, value: Value, register: ir.Value) -> None:
        """Every load of ``value``, at whatever index, gives ``register``."""
        self._results[value] = register, self.scopes[-1]

    def bind_local(self, value: Value, packed: int = 0) -> None:
        """Marks a tensor as written in the current scope, so that loads of it stay inside.
        ``packed`` > 0: elements of that many lanes, addressed by flat index times ``packed``."""
        self._local[value] = self.scopes[-1]
        if packed:
            self._packed[value] = packed

    def bind_pointer(self, value: Value, base: ir.Value) -> None:
        """Gives a tensor its base address, instead of asking ``pointer``."""
        self._bases[value] = base

    def push(self, builder: ir.IRBuilder) -> Scope:
        scope = Scope(builder)
        self.scopes.append(scope)
        return scope

    def pop(self) -> Scope:
        """Leaves the innermost scope; what was bound in it must not be used any more."""
        return self.scopes.pop()

    def close(self, scope: Scope) -> list[Scope]:
        """Keeps instructions out of a scope (and those that share its builder) because its
        block has ended; returns what to pass to `reopen`."""
        found = [s for s in self.scopes if s.open and s.builder is scope.builder]
        for s in found:
            s.open = False
        return found

    @staticmethod
    def reopen(scopes: list[Scope]) -> None:
        for s in scopes:
            s.open = True

    # --- dependences ---------------------------------------------------------------------

    def needs(self, e: Expr) -> frozenset[Any]:
        """Variables and values written in the kernel that ``e`` depends on."""
        if e not in self._needs:
            found: set[Any] = set()
            if isinstance(e, Var):
                found.add(e)
            if isinstance(e, A.FlatLoad):
                found.add(e.value)
            for c in A.children(e):
                found |= self.needs(c)
            if isinstance(e, E.Reduce):
                found -= set(e.vars)
            self._needs[e] = frozenset(found)
        return self._needs[e]

    def depth(self, e: Expr) -> int:
        """Index of the innermost scope that binds anything ``e`` needs."""
        return max((self._depth_of(k) for k in self.needs(e)), default=0)

    def _depth_of(self, k: Any) -> int:
        if isinstance(k, Var):
            try:
                return self.scopes.index(self._vars[k].scope)
            except (KeyError, ValueError):
                raise KeyError(f"iteration variable {k.name} is not bound here") from None
        if k in self._results:
            return self.scopes.index(self._results[k][1])
        return self.scopes.index(self._local[k]) if k in self._local else 0

    def width(self, e: Expr) -> int:
        """Lanes of the result of ``e``: 0 if it is the same in all of them."""
        for k in self.needs(e):
            if isinstance(k, Var):
                w = self._vars[k].width
            elif k in self._results:
                w = V.lanes(self._results[k][0].type)
            else:
                w = self.row_width if k in self._packed else 0
            if w:
                return w
        return 0

    # --- emission ------------------------------------------------------------------------

    def emit(self, e: Expr) -> ir.Value:
        """The register value of ``e`` (any expression), usable in the innermost scope."""
        return self._emit(self.lowerer.lower(e))

    def vector(self, e: Expr, width: int) -> ir.Value:
        """Like `emit`, always as ``width`` lanes."""
        return V.splat(self.builder, self.emit(e), width)

    def _emit(self, e: Expr) -> ir.Value:
        if isinstance(e, E.Const):
            return convert.literal(e.value, e.dtype)
        if isinstance(e, Var) and not (self._vars[e].width or self._vars[e].shift):
            return self._vars[e].value
        if isinstance(e, A.FlatLoad) and e.value in self._results:
            return self._results[e.value][0]
        depth = self.depth(e)
        for scope in self.scopes[depth:]:
            if e in scope.memo:
                return scope.memo[e]
        return self._at(depth, e, lambda: self._compute(e))

    def _at(self, depth: int, key: Any, make: Callable[[], ir.Value]) -> ir.Value:
        """Runs ``make`` in the outermost open scope from ``depth`` on and remembers the result."""
        level = next(
            k for k in range(depth, len(self.scopes))
            if self.scopes[k].open or k == len(self.scopes) - 1
        )
        inner = self.scopes[level + 1 :]
        del self.scopes[level + 1 :]
        try:
            value = make()
        finally:
            self.scopes.extend(inner)
        self.scopes[level].memo[key] = value
        return value

    def _compute(self, e: Expr) -> ir.Value:
        if isinstance(e, Var):
            first = self.first_lane(self._vars[e])
            width = self._vars[e].width
            return self._iota(first, width, 1) if width else first
        if isinstance(e, A.Linear):
            return self.linear(e)
        if isinstance(e, A.FlatLoad):
            return self._load(e)
        if isinstance(e, E.Unary):
            x = self._emit(e.x)
            return arith.unary(self.builder, e.fn, x, e.x.dtype)
        if isinstance(e, E.Binary):
            x, y = self._same_width(self._emit(e.a), self._emit(e.b))
            return arith.binary(self.builder, e.fn, x, y, e.a.dtype)
        if isinstance(e, E.Cast):
            quantized = requantize.match(e) if self.width(e) > 1 else None
            if quantized is not None:
                x, zero = quantized
                z = None if zero is None else self._emit(zero)
                signed = zero is not None and zero.dtype.kind == "i"
                small = requantize.small(x)
                return requantize.emit(self.builder, self._emit(x), z, signed, e.dtype, small)
            x = self._emit(e.x)
            return convert.cast(self.builder, x, e.x.dtype, e.dtype, e.saturate)
        if isinstance(e, E.Select):
            c, x, y = self._same_width(*(self._emit(k) for k in (e.cond, e.a, e.b)))
            return self.builder.select(c, x, y)
        if isinstance(e, A.Keep):
            x = self._emit(e.x)
            assert isinstance(e.slot, A.FlatLoad)
            self.store_at(e.slot.value, e.slot.at, x)
            return x
        if isinstance(e, E.Reduce):
            from .reduction import emit_reduce

            return emit_reduce(self, e)
        raise NotImplementedError(f"cannot emit {type(e).__name__}")

    def _same_width(self, *values: ir.Value) -> tuple[ir.Value, ...]:
        w = max(V.lanes(v.type) for v in values)
        return tuple(V.splat(self.builder, v, w) for v in values)

    # --- integers ------------------------------------------------------------------------

    def first_lane(self, binding: Binding) -> ir.Value:
        """A variable's value in the first lane."""
        return Shifted(binding.value, binding.shift).value(self.builder)

    def dim(self, d: D.DimLike) -> ir.Value:
        """A dimension as an i64 value."""
        return self._size(d) if isinstance(d, D.Dim) else I64(int(d))

    def _iota(self, start: ir.Value, width: int, step: int) -> ir.Value:
        steps = ir.Constant(ir.VectorType(I64, width), [k * step for k in range(width)])
        return self.builder.add(V.splat(self.builder, start, width), steps)

    def linear(self, e: A.Linear) -> ir.Value:
        """A linear form: terms join in the outermost scope that knows them."""
        total: ir.Value | None = None
        terms = sorted(e.terms, key=lambda t: (self.width(t[0]) > 0, self.depth(t[0])))
        seen: list[Any] = []
        for term, c in terms:
            seen.append((term, c))
            key = ("partial", tuple(seen))
            depth = max(self.depth(t) for t, _ in seen)
            total = self._partial(depth, key, total, term, c)
        offset = self.dim(e.offset)
        if total is None:
            return offset
        if e.offset == 0:
            return total
        x, y = self._same_width(total, offset)
        return self.builder.add(x, y)

    def _partial(
        self, depth: int, key: Any, total: ir.Value | None, term: Expr, c: D.DimLike
    ) -> ir.Value:
        for scope in self.scopes[depth:]:
            if key in scope.memo:
                return scope.memo[key]

        def make() -> ir.Value:
            x = self._emit(term)
            if c != 1:
                x, k = self._same_width(x, self.dim(c))
                x = self.builder.mul(x, k)
            if total is None:
                return x
            x, t = self._same_width(x, total)
            return self.builder.add(t, x)

        return self._at(depth, key, make)

    # --- memory --------------------------------------------------------------------------

    def lane_split(self, at: A.Linear) -> tuple[A.Linear, D.DimLike | None, int]:
        """A flat index as (part without lanes, step per lane, lanes). The step is None where
        the index is not linear in the lane variable; lanes are 0 if there are none."""
        plain: list[tuple[Expr, D.DimLike]] = []
        step: D.DimLike | None = 0
        width = 0
        offset = at.offset
        for term, c in at.terms:
            w = self.width(term)
            if not w:
                plain.append((term, c))
                continue
            width = w
            if isinstance(term, Var) and step is not None:
                step = c
            else:
                step = None
        if step is None:
            return at, None, width
        return A.Linear(at.dtype, tuple(plain), offset), step, width

    def lane_base(self, at: A.Linear) -> ir.Value:
        """Flat index of lane 0, for an index that is linear in the lane variable."""
        plain, step, width = self.lane_split(at)
        base = self.linear(plain)
        if not width:
            return base
        lane = next(self._vars[t] for t, _ in at.terms if isinstance(t, Var) and self.width(t))
        assert step is not None
        offset = self.first_lane(lane)
        if step != 1:
            offset = self.builder.mul(offset, self.dim(step))
        return self.builder.add(base, offset)

    def address(self, value: Value, index: ir.Value) -> ir.Value:
        t = convert.memory_type(value.dtype)
        base = self._bases[value] if value in self._bases else self._pointer(value)
        return self.builder.gep(base, [index], source_etype=t)

    def place(self, value: Value, at: A.Linear) -> ir.Value:
        """Address of the element at a flat index, of the first lane's if the index has lanes (and
        is linear in their variable)."""
        outer: list[tuple[Binding, int]] = []
        rest: list[tuple[Expr, D.DimLike]] = []
        for term, c in at.terms:
            known = self._vars[term] if isinstance(term, Var) else None
            if known is not None and known.outer and not isinstance(c, D.Dim):
                outer.append((known, c))
            else:
                rest.append((term, c))
        if not outer or any(self.width(t) for t, _ in rest):
            return self.address(value, self.lane_base(at))
        plain = A.Linear(at.dtype, tuple(rest), at.offset)
        depth = self.depth(plain)
        key = ("place", value, plain.terms, plain.offset, tuple((id(k.value), c) for k, c in outer))
        base = next((s.memo[key] for s in self.scopes[depth:] if key in s.memo), None)
        if base is None:
            base = self._at(depth, key, lambda: self._place(value, plain, outer))
        shift = sum(k.shift * c for k, c in outer)
        return self._moved(value, base, shift) if shift else base

    def _place(
        self, value: Value, plain: A.Linear, outer: list[tuple[Binding, int]]
    ) -> ir.Value:
        total = self.linear(plain)
        for k, c in outer:
            term = self.builder.mul(k.value, I64(c)) if c != 1 else k.value
            total = self.builder.add(total, term)
        return self.address(value, total)

    def _moved(self, value: Value, base: ir.Value, by: int) -> ir.Value:
        t = convert.memory_type(value.dtype)
        return self.builder.gep(base, [I64(by)], source_etype=t)

    def _load(self, e: A.FlatLoad) -> ir.Value:
        from .access import emit_load

        return emit_load(self, e)

    def store(self, stage: E.Stage, register: ir.Value) -> None:
        """Writes one element, or one vector of elements, of ``stage.out`` at its variables."""
        index = [self.lowerer.lower(v) for v in stage.vars]
        self.store_at(stage.out, self.lowerer.flat(stage.out, index), register)

    def store_at(self, value: Value, at: A.Linear, register: ir.Value) -> None:
        """Writes at a flat index. A scalar goes to all lanes that the index has."""
        from .access import emit_store

        emit_store(self, value, at, register)

    def safe_address(self) -> ir.Value:
        """Memory that is always readable."""
        module = self.builder.module
        name = "nowhere"
        if name not in module.globals:
            t = ir.ArrayType(I8, _SAFE_BYTES)
            g = ir.GlobalVariable(module, t, name)
            g.linkage, g.global_constant, g.align = "internal", True, 64
            g.initializer = ir.Constant(t, None)
        return ir.FormattedConstant(V.PTR, f'@"{name}"')

    def all_lanes(self, mask: ir.Value) -> ir.Value:
        """i1: whether a mask holds in every lane."""
        n = V.lanes(mask.type)
        if not n:
            return mask
        word = ir.IntType(n)
        return self.builder.icmp_unsigned(
            "==", self.builder.bitcast(mask, word), ir.Constant(word, (1 << n) - 1)
        )


__all__ = ["I1", "Binding", "Emitter", "Scope"]
