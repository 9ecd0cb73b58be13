"""Expressions of the compute language as Triton text.

An `Emitter` writes one assignment per distinct expression into the outermost open scope that
knows its variables. Iteration variables, and values that are in registers already, are bound to
names first; blocks must broadcast with each other, so all of them have the kernel's block rank
(``r[:, None]``, ``c[None, :]``) or are scalars. Which block axes a value extends along is
tracked, because a load's mask has to fit its pointers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...ir import dims as D
from ...ir import dtypes as T
from ...ir import expr as E
from ...ir.dtypes import DType
from ...ir.expr import Expr, Var
from ...ir.graph import Value
from ..cpu import affine as A
from . import requantize
from . import types as ty
from .functions import Functions, Text, helper_text, limits, memory_cast

_I32_MAX = 2**31 - 1
HEADER = "import triton\nimport triton.language as tl\n"


class Frame:
    """The parameters of a kernel under construction and the helpers it needs.

    Attributes:
        args: Tensors (or arrays packed at build time) by parameter name, in order.
        dims: Sizes, in the order of the integer parameters ``d0``, ``d1``, …
        wide: Whether sizes and offsets are i64: some tensor has 2**31 elements or more.
        workspace, counters: Whether there are parameters ``workspace`` (``*u8``) and ``counters``
            (``*i32``).
    """

    def __init__(self, wide: bool = False):
        self.args: dict[Value | int, tuple[Any, str]] = {}
        self.dims: dict[D.Dim, str] = {}
        self.functions = Functions()
        self.wide = wide
        self.workspace = self.counters = False
        self._changed: dict[tuple[Value, float, float], Value] = {}

    def pointer(self, v: Value) -> str:
        """The parameter that points at a tensor."""
        if v not in self.args:
            self.args[v] = v, ty.pointer_type(v.dtype)
        return f"p{list(self.args).index(v)}"

    def array(self, a: np.ndarray[Any, Any]) -> str:
        """The parameter that points at an array the plan stores."""
        key = id(a)
        if key not in self.args:
            self.args[key] = a, ty.pointer_type(T.dtype(a.dtype))
        return f"p{list(self.args).index(key)}"

    def changed(self, v: Value, factor: float, more: float) -> Value:
        """Stands for ``v * factor + more`` of a constant of 32-bit floats, computed now."""
        key = v, factor, more
        if key not in self._changed:
            self._changed[key] = made = Value(v.name, v.dtype, v.dims)
            made.const = np.asarray(
                np.asarray(v.const, np.float64) * factor + more, dtype=np.float32)  # fmt: skip
            self.args[made] = made.const, ty.pointer_type(v.dtype)
        return self._changed[key]

    def size(self, d: D.DimLike) -> str:
        """A dimension: a literal or a parameter."""
        if not isinstance(d, D.Dim):
            return str(int(d))
        if d not in self.dims:
            self.dims[d] = f"d{len(self.dims)}"
        return self.dims[d]

    @property
    def types(self) -> tuple[str, ...]:
        """Triton types of all parameters."""
        shared = ("*u8",) * self.workspace + ("*i32",) * self.counters
        size = "i64" if self.wide else "i32"
        return (*(t for _, t in self.args.values()), *shared, *(size,) * len(self.dims))

    @property
    def values(self) -> tuple[Any, ...]:
        """What ``Kernel.args`` is."""
        return tuple(a for a, _ in self.args.values())

    def source(self, symbol: str, body: Iterable[str]) -> str:
        """The whole text of the kernel's module."""
        names = [f"p{k}" for k in range(len(self.args))]
        names += ["workspace"] * self.workspace + ["counters"] * self.counters
        names += self.dims.values()
        helpers = helper_text(self.functions.helpers)
        lines = "\n".join("    " + line for line in body)
        kernel = f"@triton.jit\ndef {symbol}({', '.join(names)}):\n{lines}\n"
        return "\n\n".join(x for x in (HEADER, helpers, kernel) if x)


def is_wide(values: Iterable[Value]) -> bool:
    """Whether offsets into any of the values need 64 bits."""
    return any(
        not isinstance(n, D.Dim) and n > _I32_MAX
        for v in values for n in [D.product(v.dims) * 1]
    )


@dataclass(eq=False)
class Scope:
    """A place for lines: the function's body or a loop's."""

    lines: list[str] = field(default_factory=list)
    memo: dict[Any, Text] = field(default_factory=dict)


@dataclass(eq=False)
class Group:
    """Iteration variables that are counted through as one, the last one fastest.

    Attributes:
        flat: The joint index.
        depth: The scope it is bound in.
    """

    vars: tuple[Var, ...]
    flat: Text
    depth: int

    def size(self, first: int, last: int) -> D.DimLike:
        """Points of the variables from ``first`` to ``last``."""
        return D.product(v.extent for v in self.vars[first : last + 1])


class Emitter:
    """See the module's text.

    Attributes:
        frame: The kernel's parameters.
        masks: Text of the mask along each block axis; axes without one are always inside.
        shapes: Extent of each block axis, for blocks made from nothing.
        lowerer: Brings expressions into the form with flat indices.
    """

    def __init__(
        self, frame: Frame, masks: Mapping[int, str] | None = None,
        shape: Sequence[int] = (), lowerer: A.Lowerer | None = None, prefix: str = "t",
    ):
        self.frame = frame
        self.fn = frame.functions
        self.masks: dict[int, str] = dict(masks or {})
        self.shape = tuple(shape)
        self.lowerer = lowerer or A.Lowerer()
        self.scopes: list[Scope] = [Scope()]
        self._prefix, self._count = prefix, 0
        self._vars: dict[Var, tuple[Text, int]] = {}
        self._groups: dict[Var, Group] = {}
        self._results: dict[Value | E.Reduce, tuple[Text, int]] = {}
        self._saved: list[tuple[dict[Any, Any], ...]] = []
        self._needs: dict[Expr, frozenset[Any]] = {}
        self.block_axis: dict[Var, int] = {}  # reduced at once, along this axis
        self.in_place = False  # blocks that are loaded needn't be brought into other registers

    # --- bindings and scopes -------------------------------------------------------------

    def bind(self, var: Var, text: str, axes: Iterable[int] = ()) -> None:
        """Gives an iteration variable its value in the current scope."""
        dt = T.i64 if self.frame.wide else T.i32
        self._vars[var] = Text(text, dt, frozenset(axes)), len(self.scopes) - 1

    def bind_group(self, variables: Sequence[Var], flat: str, axes: Iterable[int] = ()) -> None:
        """Gives several variables their values by their joint index. They are divided out of it
        where they are needed one by one."""
        if len(variables) == 1:
            self.bind(variables[0], flat, axes)
            return
        dt = T.i64 if self.frame.wide else T.i32
        group = Group(tuple(variables), Text(flat, dt, frozenset(axes)), len(self.scopes) - 1)
        for v in variables:
            self._vars[v] = group.flat, group.depth
            self._groups[v] = group

    def _piece(self, g: Group, first: int, last: int) -> Text:
        """The joint index of the variables ``first`` … ``last`` of a group."""
        n = len(g.vars)
        if first == 0 and last == n - 1:
            return g.flat
        memo = self.scopes[g.depth].memo
        key = ("piece", g, first, last)
        if key not in memo:
            text = g.flat.text
            if last < n - 1:
                text += f" // {self.frame.size(g.size(last + 1, n - 1))}"
            if first > 0:
                inner = f"({text})" if "/" in text else text
                text = f"{inner} % {self.frame.size(g.size(first, last))}"
            memo[key] = self._at(g.depth, lambda: self.assign(text, g.flat.dt, g.flat.axes))
        return memo[key]

    def bind_number(self, var: Var, number: int) -> None:
        """Gives an iteration variable a known value in the current scope."""
        self._vars[var] = constant(number, T.i64, self.frame.wide), len(self.scopes) - 1

    def bind_result(self, value: Value, text: str, axes: Iterable[int], dt: DType) -> None:
        """Every load of ``value`` gives the register ``text`` of register type ``dt``."""
        self._results[value] = Text(text, dt, frozenset(axes)), len(self.scopes) - 1
        self._needs.clear()

    def pin(self, e: E.Reduce, x: Text) -> None:
        """Gives a reduction its result in the current scope."""
        self._results[e] = x, len(self.scopes) - 1
        self._needs.clear()

    def push(self) -> None:
        """Opens a scope: lines that depend on what is bound now go there."""
        self._saved.append((dict(self._vars), dict(self._groups), dict(self._results)))
        self.scopes.append(Scope())

    def pop(self, head: str) -> None:
        """Closes the scope; its lines become the body of ``head``, such as a ``for``."""
        inner = self.scopes.pop()
        self._vars, self._groups, self._results = self._saved.pop()
        self._needs.clear()
        out = self.scopes[-1].lines
        out.append(head)
        out.extend("    " + line for line in inner.lines or ["pass"])

    def line(self, text: str) -> None:
        """Adds a line to the innermost scope."""
        self.scopes[-1].lines.append(text)

    @property
    def lines(self) -> list[str]:
        return self.scopes[0].lines

    def name(self) -> str:
        self._count += 1
        return f"{self._prefix}{self._count}"

    def full(self, axes: Iterable[int], value: str, dt: DType) -> str:
        """A block along ``axes`` with the same number everywhere."""
        return f"tl.full({self.shape_text(axes)}, {value}, {ty.tl_name(dt)})"

    def shape_text(self, axes: Iterable[int]) -> str:
        axes = frozenset(axes)
        if not axes:
            return "()"
        extents = [str(n) if k in axes else "1" for k, n in enumerate(self.shape)]
        return f"({', '.join(extents)}{',' if len(extents) == 1 else ''})"

    # --- what an expression depends on ---------------------------------------------------

    def needs(self, e: Expr) -> frozenset[Any]:
        """Variables and register values that a (lowered) expression depends on."""
        if e not in self._needs:
            own: set[Any] = set()
            if isinstance(e, E.Reduce) and e in self._results:
                return frozenset([e])
            if isinstance(e, Var):
                own.add(e)
            if isinstance(e, (A.FlatLoad, E.Load)) and e.value in self._results:
                own.add(e.value)
            for c in A.children(e):
                own |= self.needs(c)
            if isinstance(e, E.Reduce):
                own -= set(e.vars)
            self._needs[e] = frozenset(own)
        return self._needs[e]

    def _depth(self, e: Expr) -> int:
        found = [
            (self._vars if isinstance(n, Var) else self._results)[n][1] for n in self.needs(e)
        ]
        return max(found, default=0)

    def axes_of(self, e: Expr) -> frozenset[int]:
        """Block axes that the value of ``e`` extends along at most."""
        out: frozenset[int] = frozenset()
        for n in self.needs(e):
            out |= (self._vars if isinstance(n, Var) else self._results)[n][0].axes
        return out

    # --- expressions ---------------------------------------------------------------------

    def emit(self, e: Expr) -> Text:
        """The register that holds a lowered expression."""
        if isinstance(e, Var):
            g = self._groups.get(e)
            return self._vars[e][0] if g is None else self._piece(g, k := g.vars.index(e), k)
        if isinstance(e, E.Const):
            return self._const(e)
        if isinstance(e, (A.FlatLoad, E.Load)) and e.value in self._results:
            return self._results[e.value][0]
        if isinstance(e, E.Reduce) and e in self._results:
            return self._results[e][0]
        depth = self._depth(e)
        for scope in self.scopes[depth:]:
            if e in scope.memo:
                return scope.memo[e]
        rounding = None if self.fn.exact else requantize.match(e)
        if rounding is not None:
            made = self._at(depth, lambda: self._rounded(e, rounding))
        else:
            operands = self._operands(e)
            made = self._at(depth, lambda: self._make(e, operands))
        self.scopes[depth].memo[e] = made
        return made

    def _at(self, depth: int, make: Any) -> Text:
        """Runs ``make`` with lines going to the scope at ``depth``."""
        inner = self.scopes[depth + 1 :]
        del self.scopes[depth + 1 :]
        try:
            return make()
        finally:
            self.scopes.extend(inner)

    def _operands(self, e: Expr) -> tuple[Text, ...]:
        if isinstance(e, (E.Reduce, A.Linear, A.FlatLoad)):
            return ()
        return tuple(self.emit(c) for c in A.children(e))

    def assign(self, text: str, dt: DType, axes: frozenset[int]) -> Text:
        if text.isidentifier():
            return Text(text, dt, axes)
        name = self.name()
        self.line(f"{name} = {text}")
        return Text(name, dt, axes)

    def _const(self, e: E.Const) -> Text:
        return constant(e.value, e.dtype, self.frame.wide)

    def _make(self, e: Expr, ops: tuple[Text, ...]) -> Text:
        if isinstance(e, E.Size):
            return Text(self.frame.size(e.dim), T.i64 if self.frame.wide else T.i32)
        if isinstance(e, A.Linear):
            return self._linear(e)
        if isinstance(e, A.FlatLoad):
            return self._load(e)
        if isinstance(e, E.Reduce):
            return self._reduce(e)
        axes = frozenset().union(*(x.axes for x in ops))
        if isinstance(e, E.Unary):
            x = self._tensor(ops[0])
            dt = T.b1 if e.dtype is T.b1 else x.dt
            return self.assign(self.fn.unary(e.fn, x), dt, axes)
        if isinstance(e, E.Binary):
            return self._binary(e, ops, axes)
        if isinstance(e, E.Cast):
            return self._cast(e, ops[0])
        assert isinstance(e, E.Select), type(e)
        c, a, b = ops
        dt = _wider(a, b)
        if (a.number is not None and b.number is not None) or dt.bits == 64:
            a = self._tensor(a, dt)
        return self.assign(f"tl.where({c}, {a}, {b}).to({ty.tl_name(dt)})", dt, axes)

    def _tensor(self, x: Text, dt: DType | None = None) -> Text:
        """A literal as a tensor of its type."""
        dt = dt or x.dt
        if x.number is None:
            return x if x.dt is dt else self.assign(f"{x}.to({ty.tl_name(dt)})", dt, x.axes)
        return self.assign(f"tl.full((), {x}, {ty.tl_name(dt)})", dt, frozenset())

    def _cast(self, e: E.Cast, x: Text) -> Text:
        index = e.x.dtype is T.i64 and x.dt is T.i32
        if index and e.dtype is T.i32:
            return x
        plain = e.dtype.is_float or (e.dtype.is_int and not e.saturate)
        if x.number is not None and plain and e.x.dtype.is_int:
            return constant(x.number, e.dtype, self.frame.wide)
        x = self._tensor(x)
        dt = ty.register(e.dtype)
        return self.assign(self.fn.cast(x, e.x.dtype, e.dtype, e.saturate), dt, x.axes)

    def _rounded(self, e: Expr, r: requantize.Rounding) -> Text:
        x = requantize.rounded(self, r)
        signed = ".to(tl.int8, bitcast=True)" if e.dtype is T.i8 else ""
        return self.assign(f"{x}{signed}", e.dtype, x.axes)

    def _binary(self, e: E.Binary, ops: tuple[Text, ...], axes: frozenset[int]) -> Text:
        a, b = ops
        if a.number is not None and b.number is not None:
            a = self._tensor(a)
        nonnegative = False
        if e.a.dtype is T.i64:
            a, b, dt = self._index_pair(e, a, b)
            low, _ = self.lowerer.range(e.a)
            floor, _ = self.lowerer.range(e.b)
            nonnegative = low is not None and low >= 0 and floor is not None and floor > 0
        else:
            dt = ty.register(e.a.dtype)
            if e.a.dtype.kind == "u" and b.number:
                nonnegative = True
        if e.dtype is T.b1:
            dt = T.b1
        return self.assign(self.fn.binary(e.fn, a, b, nonnegative), dt, axes)

    def _index_pair(self, e: E.Binary, a: Text, b: Text) -> tuple[Text, Text, DType]:
        """Operands of integer arithmetic that counts elements: 32 bits where they suffice."""
        if a.dt is T.i32 and b.dt is T.i32:
            if e.dtype is T.b1 or self._fits(e):
                return a, b, T.i32
        elif b.number is not None and a.dt is T.i64:
            return a, b, T.i64
        else:
            return self._tensor(a, T.i64), self._tensor(b, T.i64), T.i64
        return self._tensor(a, T.i64), self._tensor(b, T.i64), T.i64

    def _fits(self, e: E.Binary) -> bool:
        low, high = self.lowerer.range(e)
        if low is not None and high is not None:
            return low >= -_I32_MAX and high <= _I32_MAX
        if e.fn in ("floordiv", "mod", "min", "max", "truncdiv", "fmod", "bitand"):
            return True
        # sizes are known only at run time, but every tensor has fewer than 2**31 elements
        big = [abs(x.value) for x in (e.a, e.b) if isinstance(x, E.Const)]
        return e.fn in ("add", "sub") or (e.fn == "mul" and all(n < 65536 for n in big))

    def _linear(self, e: A.Linear) -> Text:
        """A linear form; scalar terms join first, then those along fewer axes."""
        offset = e.offset
        terms = []
        for x, c in self._terms(e):
            if x.number is not None and not isinstance(c, D.Dim):
                offset = offset + int(x.number) * c
            else:
                terms.append((x, c))
        terms.sort(key=lambda t: len(t[0].axes))
        low, high = self.lowerer.range(e)
        known = low is not None and high is not None
        wide = self.frame.wide or any(t.dt is T.i64 for t, _ in terms) or (
            known and not (low >= -_I32_MAX and high <= _I32_MAX))  # type: ignore[operator]
        dt = T.i64 if wide else T.i32
        total, axes = "", frozenset[int]()
        for x, c in terms:
            term = f"{x}.to(tl.int64)" if wide and x.dt is not T.i64 else x.text
            if isinstance(c, D.Dim):
                term = f"{term} * {self.frame.size(c)}"
            elif c == -1:
                term = f"-{term}" if not total else term
            elif c != 1:
                term = f"{term} * {abs(c) if total else c}"
            if not total:
                total = term
            else:
                total += f" {'-' if not isinstance(c, D.Dim) and c < 0 else '+'} {term}"
            axes |= x.axes
        if offset != 0 or not total:
            at = self.frame.size(offset)
            if not total:
                number = None if isinstance(offset, D.Dim) else int(offset)
                at = f"({at})" if at.startswith("-") else at
                return Text(at, T.i64 if self.frame.wide else T.i32, axes, number)
            total += f" - {at[1:]}" if at.startswith("-") else f" + {at}"
        return self.assign(total, dt, axes)

    def _terms(self, e: A.Linear) -> list[tuple[Text, D.DimLike]]:
        """The terms of a linear form; neighbours within a group that step as one are one."""
        plain = [(t, c) for t, c in e.terms if t not in self._groups]
        out = [(self.emit(t), c) for t, c in plain]
        step = {t: c for t, c in e.terms if t in self._groups}
        for g in dict.fromkeys(self._groups[t] for t in step):  # type: ignore[index]
            first = 0
            while first < len(g.vars):
                last = first
                if g.vars[first] in step:
                    while last + 1 < len(g.vars) and g.vars[last + 1] in step and (
                        step[g.vars[last]] == step[g.vars[last + 1]] * g.vars[last + 1].extent
                    ):
                        last += 1
                    out.append((self._piece(g, first, last), step[g.vars[last]]))
                first = last + 1
        return out

    # --- memory --------------------------------------------------------------------------

    def _load(self, e: A.FlatLoad) -> Text:
        at = self.emit(e.at)
        axes = at.axes
        guard = None if e.guard is None else self.emit(e.guard)
        other = None if e.other is None else self.emit(e.other)
        pointer = self.frame.pointer(e.value)
        if guard is not None:
            axes |= guard.axes
        where = self._spread(at, axes)
        mask = self.mask(axes, guard)
        filler = "0" if e.value.dtype.kind in "iub" else "0.0"
        literal = other is not None and other.number is not None and e.value.dtype is not T.b1
        if guard is not None and literal:
            filler = str(other)
        tail = f", mask={mask}, other={filler}" if mask else ""
        text = f"tl.load({pointer} + {where}{tail})"
        dt = ty.register(e.value.dtype)
        if e.value.dtype is T.b1:
            text += " != 0"
        elif ty.is_narrow_float(e.value.dtype):
            text += ".to(tl.float32)"
        x = self.assign(text, dt, axes)
        if guard is not None and not literal and other is not None:
            text = f"tl.where({guard}, {x}, {other}).to({ty.tl_name(dt)})"
            return self.assign(text, dt, axes | other.axes)
        return x

    def _spread(self, at: Text, axes: frozenset[int]) -> str:
        """An offset in the shape of ``axes``."""
        if at.axes == axes:
            return at.text
        dt = T.i64 if at.dt is T.i64 else T.i32
        return f"({at} + {self.full(axes, '0', dt)})"

    def mask(self, axes: Iterable[int], guard: Text | None = None) -> str:
        """The mask of a block along ``axes``; "" if everything is inside."""
        parts = [self.masks[k] for k in sorted(axes) if self.masks.get(k)]
        if guard is not None:
            parts.insert(0, guard.text)
        return parts[0] if len(parts) == 1 else " & ".join(f"({p})" for p in parts)

    def store(self, value: Value, at: A.Linear, e: Expr | None = None, x: Text | None = None
              ) -> None:
        """Writes a lowered expression, or a register, at a flat index."""
        if x is None:
            assert e is not None
            if isinstance(e, E.Cast) and ty.is_narrow_float(e.dtype) and not e.saturate and (
                e.dtype.bits == 16 and e.x.dtype is T.f32):
                e = e.x  # storing rounds
            x = self.emit(e)
        where = self.emit(at)
        axes = where.axes | x.axes
        mask = self.mask(axes)
        tail = f", mask={mask}" if mask else ""
        stored = memory_cast(x, value.dtype)
        self.line(f"tl.store({self.frame.pointer(value)} + {self._spread(where, axes)}, "
                  f"{stored}{tail})")

    # --- reductions ----------------------------------------------------------------------

    def _reduce(self, e: E.Reduce) -> Text:
        from .reduce import at_once, serial

        # windows of one element have no variables
        at_hand = e.vars and e.vars[0] in self.block_axis
        return at_once(self, e) if at_hand else serial(self, e)


def constant(value: Any, dt: DType, wide: bool = False) -> Text:
    """A literal, rounded and wrapped as its type demands."""
    reg = ty.register(dt)
    if dt is T.b1:
        return Text(f"tl.full((), {int(bool(value))}, tl.int1)", dt)
    if dt.is_float:
        x = float(np.asarray(value, dtype=np.float64).astype(dt.np))
        if math.isnan(x) or math.isinf(x):
            text = f'float("{x}")' if x != -math.inf else '(-float("inf"))'
            if dt is T.f64:
                return Text(f"tl.full((), {text}, tl.float64)", reg)
            return Text(text, reg, number=x)
        if dt is T.f64 or (x != 0 and abs(x) < 1.2e-38):
            return Text(f"tl.full((), {x!r}, {ty.tl_name(reg)})", reg)
        return Text(f"({x!r})" if x < 0 else repr(x), reg, number=x)
    n = _whole(value, dt)
    if dt is T.i64 and not wide and abs(n) <= _I32_MAX:
        reg = T.i32
    if reg is T.i32:
        return Text(f"({n})" if n < 0 else str(n), reg, number=n)
    return Text(f"tl.full((), {n}, {ty.tl_name(reg)})", reg)


def _whole(value: Any, dt: DType) -> int:
    low, high = limits(dt)
    if isinstance(value, (float, np.floating)):
        x = float(value)
        return 0 if math.isnan(x) else int(min(max(x, low), high))
    n = int(value) & ((1 << dt.bits) - 1)
    return n - (1 << dt.bits) if n > high else n


def _wider(a: Text, b: Text) -> DType:
    if a.dt is b.dt:
        return a.dt
    return T.i64 if T.i64 in (a.dt, b.dt) else a.dt
