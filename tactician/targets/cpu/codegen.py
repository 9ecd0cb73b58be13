"""A builder for kernels: loops, addresses and sizes on top of llvmlite's.

Sizes and indices are plain ints while they are known and LLVM values otherwise, so code for
static shapes folds in Python and symbolic shapes take the same path.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

from llvmlite import ir

from ...ir import dims as D
from ...ir.dims import DimLike
from . import vecmath as V
from .isa import Isa
from .printer import text_of
from .vecmath import I8, I64, PTR

Num: TypeAlias = "int | ir.Value"

_ARGUMENTS = ("args", "dims", "begin", "end", "scratch")


class Loop:
    """A loop being emitted: its index, and values carried from turn to turn.

    Attributes:
        index: The index in this turn.
        carried: The carried values in this turn; assign ``next`` before the body ends.
        results: After the loop: the carried values it ended with.
    """

    def __init__(self, index: Num, carried: list[ir.Value]):
        self.index = index
        self.carried = carried
        self.next: list[ir.Value] = list(carried)
        self.results: list[ir.Value] = []


class Gen:
    """Emits one kernel with the calling convention of docs/architecture.md.

    Attributes:
        b: The llvmlite builder, for everything without a shorthand here.
        dims: Symbolic sizes used so far, in the order of the kernel's scalar arguments.
    """

    def __init__(self, symbol: str, isa: Isa):
        self.isa = isa
        self.module = ir.Module(symbol)
        self.module.isa = isa  # conversions of types ask it
        self.symbol = symbol
        kind = ir.FunctionType(ir.VoidType(), [PTR, PTR, I64, I64, PTR])
        self.function = ir.Function(self.module, kind, symbol)
        for arg, name in zip(self.function.args, _ARGUMENTS, strict=True):
            arg.name = name
        self.args, self.dim_values, self.begin, self.end, self.scratch = self.function.args
        for i in (0, 1, 4):
            self.function.args[i].add_attribute("noalias")
        entry = self.function.append_basic_block("entry")
        self._body = self.function.append_basic_block("body")
        self._entry = entry
        self.b = ir.IRBuilder(self._body)
        self.dims: list[DimLike] = []
        self._sizes: dict[DimLike, ir.Value] = {}

    def _head(self) -> ir.IRBuilder:
        """Adds to the entry block, which others add to as well."""
        return ir.IRBuilder(self._entry)

    def finish(self) -> str:
        """Ends the function; the module's text."""
        self.b.ret_void()
        self._head().branch(self._body)
        return text_of(self.module)

    # --- sizes ---------------------------------------------------------------------------

    def size(self, d: DimLike) -> Num:
        """A dimension: an int, or the scalar argument that carries it."""
        if not isinstance(d, D.Dim):
            return int(d)
        if d not in self._sizes:
            at = self._head().gep(self.dim_values, [I64(len(self.dims))], source_etype=I64)
            self._sizes[d] = self._head().load(at, typ=I64)
            self.dims.append(d)
        return self._sizes[d]

    def arg(self, index: int) -> ir.Value:
        """Pointer argument ``index``."""
        at = self._head().gep(self.args, [I64(index)], source_etype=PTR)
        return self._head().load(at, typ=PTR)

    def value(self, x: Num) -> ir.Value:
        return I64(x) if isinstance(x, int) else x

    def add(self, x: Num, y: Num) -> Num:
        if isinstance(x, int) and isinstance(y, int):
            return x + y
        if isinstance(x, int) and x == 0:
            return y
        if isinstance(y, int) and y == 0:
            return x
        return self.b.add(self.value(x), self.value(y), flags=("nsw",))

    def sub(self, x: Num, y: Num) -> Num:
        if isinstance(x, int) and isinstance(y, int):
            return x - y
        if isinstance(y, int) and y == 0:
            return x
        return self.b.sub(self.value(x), self.value(y), flags=("nsw",))

    def mul(self, x: Num, y: Num) -> Num:
        if isinstance(x, int) and isinstance(y, int):
            return x * y
        for p, q in ((x, y), (y, x)):
            if isinstance(p, int) and p in (0, 1):
                return q if p else 0
        return self.b.mul(self.value(x), self.value(y), flags=("nsw",))

    def div(self, x: Num, y: Num) -> Num:
        """Quotient of non-negative numbers."""
        if isinstance(x, int) and isinstance(y, int):
            return x // y
        if isinstance(y, int) and y == 1:
            return x
        return self.b.udiv(self.value(x), self.value(y))

    def mod(self, x: Num, y: Num) -> Num:
        """Remainder of non-negative numbers."""
        if isinstance(x, int) and isinstance(y, int):
            return x % y
        if isinstance(y, int) and y == 1:
            return 0
        return self.b.urem(self.value(x), self.value(y))

    def ceil_div(self, x: Num, y: int) -> Num:
        return self.div(self.add(x, y - 1), y)

    def min(self, x: Num, y: Num) -> Num:
        if isinstance(x, int) and isinstance(y, int):
            return min(x, y)
        a, b = self.value(x), self.value(y)
        return self.b.select(self.b.icmp_signed("<", a, b), a, b)

    def max(self, x: Num, y: Num) -> Num:
        if isinstance(x, int) and isinstance(y, int):
            return max(x, y)
        a, b = self.value(x), self.value(y)
        return self.b.select(self.b.icmp_signed(">", a, b), a, b)

    def test(self, op: str, x: Num, y: Num) -> bool | ir.Value:
        """A signed comparison; a Python bool if both are known."""
        if isinstance(x, int) and isinstance(y, int):
            return {
                "<": x < y, "<=": x <= y, ">": x > y, ">=": x >= y, "==": x == y, "!=": x != y,
            }[op]  # fmt: skip
        return self.b.icmp_signed(op, self.value(x), self.value(y))

    def both(self, p: bool | ir.Value, q: bool | ir.Value) -> bool | ir.Value:
        if isinstance(p, bool):
            return q if p else False
        if isinstance(q, bool):
            return p if q else False
        return self.b.and_(p, q)

    def linear(self, terms: Sequence[tuple[Num, Num]]) -> Num:
        """Sum of products."""
        total: Num = 0
        for x, y in terms:
            total = self.add(total, self.mul(x, y))
        return total

    # --- memory --------------------------------------------------------------------------

    def at(self, base: ir.Value, index: Num, size: int = 1) -> ir.Value:
        """Address of element ``index`` of ``size`` bytes each."""
        if isinstance(index, int):
            return base if index == 0 else self.b.gep(base, [I64(index * size)], source_etype=I8)
        unit = {1: I8, 2: V.I16, 4: V.I32, 8: I64}.get(size)
        if unit is None:
            return self.b.gep(base, [self.value(self.mul(index, size))], source_etype=I8)
        return self.b.gep(base, [index], source_etype=unit)

    def load(self, t: ir.Type, ptr: ir.Value, align: int = 0) -> ir.Value:
        return self.b.load(ptr, typ=t, align=align or _natural(t))

    def store(self, x: ir.Value, ptr: ir.Value, align: int = 0) -> None:
        self.b.store(x, ptr, align=align or _natural(x.type))

    def variable(self, t: ir.Type) -> ir.Value:
        """Address of a variable on the stack, made once per call."""
        slot = self._head().alloca(t)
        slot.type = PTR  # llvmlite gives it a typed pointer, which opaque ones do not mix with
        return slot

    # --- control flow --------------------------------------------------------------------

    @contextmanager
    def loop(
        self, start: Num, end: Num, step: int = 1, carried: Sequence[ir.Value] = ()
    ) -> Iterator[Loop]:
        """``for index in range(start, end, step)``. One known turn is emitted without a loop."""
        if isinstance(start, int) and isinstance(end, int):
            if start >= end:
                raise ValueError("an empty loop: test before emitting")
            if start + step >= end:
                loop = Loop(start, list(carried))
                yield loop
                loop.results = loop.next
                return
        sure = isinstance(start, int) and isinstance(end, int)
        before = self.b.block
        body = self.b.append_basic_block("loop")
        after = self.b.append_basic_block("after")
        first, last = self.value(start), self.value(end)
        if sure:
            self.b.branch(body)
        else:
            self.b.cbranch(self.b.icmp_signed("<", first, last), body, after)
        self.b.position_at_end(body)
        index = self.b.phi(I64)
        phis = [self.b.phi(v.type) for v in carried]
        loop = Loop(index, list(phis))
        yield loop
        end_block = self.b.block
        succ = self.b.add(index, I64(step), flags=("nsw",))
        index.add_incoming(first, before)
        index.add_incoming(succ, end_block)
        for phi, initial, following in zip(phis, carried, loop.next, strict=True):
            phi.add_incoming(initial, before)
            phi.add_incoming(following, end_block)
        self.b.cbranch(self.b.icmp_signed("<", succ, last), body, after)
        self.b.position_at_end(after)
        if sure:
            loop.results = list(loop.next)
            return
        for initial, following in zip(carried, loop.next, strict=True):
            phi = self.b.phi(following.type)
            phi.add_incoming(initial, before)
            phi.add_incoming(following, end_block)
            loop.results.append(phi)

    @contextmanager
    def when(self, cond: bool | ir.Value) -> Iterator[bool]:
        """Emits the body under a condition. A known False emits it nowhere that runs: callers
        test for Python bools first where that matters."""
        if isinstance(cond, bool):
            if not cond:
                raise ValueError("a condition known to be false: test before emitting")
            yield True
            return
        with self.b.if_then(cond):
            yield True


def _natural(t: ir.Type) -> int:
    """The alignment that every address of such data has: its element's."""
    e = V.element(t)
    if isinstance(e, ir.IntType):
        return max(1, e.width // 8)
    return {V.F64: 8, V.HALF: 2}.get(e, 4 if e == V.F32 else 8)
