"""Evaluates stages of the compute language in numpy, over whole index grids at once.

The oracle that tests compare `Op.stages` against `Op.reference` with. It is strict where a code
generator may be careless: types must match, and a load outside of its tensor raises unless its
guard is false there (also in the branch of a select that is not taken).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..ir import dims as D
from ..ir import expr as E
from ..ir.dtypes import DType
from ..ir.graph import Node, Value
from . import _math as M
from .registry import get

Array = np.ndarray[Any, Any]


def bind_symbols(
    values: Sequence[Value | None], arrays: Sequence[Array | None]
) -> dict[str, int]:
    """Sizes of the symbols that are dimensions of ``values``, from the arrays' shapes.

    Raises:
        ValueError: If a symbol would have two sizes.
    """
    sizes: dict[str, int] = {}
    for v, a in zip(values, arrays, strict=True):
        if v is None or a is None:
            continue
        for d, n in zip(v.dims, a.shape, strict=True):
            plain = isinstance(d, D.Dim) and {str(d)} == d.symbols()
            if plain and sizes.setdefault(str(d), n) != n:
                raise ValueError(f"{d} is {sizes[str(d)]} and {n}")
    return sizes


def run_stages(
    node: Node, *inputs: Any, sizes: Mapping[str, int] | None = None
) -> tuple[Array, ...] | None:
    """Outputs of a node through its stages, or None if it has none.

    Args:
        node: The node; its inputs may have symbolic shapes.
        inputs: One array per input, None for absent ones.
        sizes: Sizes of symbols that are not plain dimensions of inputs.
    """
    stages = get(node.op).stages(node)
    if stages is None:
        return None
    arrays = [None if a is None else np.asarray(a) for a in inputs]
    bound = {**bind_symbols(node.inputs, arrays), **(sizes or {})}
    env = {v: a for v, a in zip(node.inputs, arrays, strict=True) if v is not None}
    results = evaluate_stages(stages, env, bound)  # type: ignore[arg-type]
    return tuple(results[v] for v in node.outputs)


def evaluate_stages(
    stages: Sequence[E.Stage], inputs: Mapping[Value, Array], sizes: Mapping[str, int] | None = None
) -> dict[Value, Array]:
    """Runs stages in order.

    Args:
        stages: What to run; later ones may load what earlier ones wrote.
        inputs: Arrays of the values that are loaded; constants may be left out.
        sizes: Values of symbols.

    Returns:
        ``inputs`` and everything written.

    Raises:
        IndexError: If a load is out of bounds where its guard holds.
        TypeError: If element types do not fit together.
    """
    env = dict(inputs)
    for stage in stages:
        env[stage.out] = _Evaluation(env, sizes or {}).stage(stage)
    return env


def evaluate_at(
    e: E.Expr, at: Mapping[E.Var, Array], inputs: Mapping[Value, Array],
    sizes: Mapping[str, int] | None = None,
) -> Array:
    """An expression at some points: ``at`` gives every variable's value at each of them."""
    grid = _Grid(_Evaluation(inputs, sizes or {}), {id(v): a for v, a in at.items()}, 1)
    count = max((len(a) for a in at.values()), default=1)
    return np.array(np.broadcast_to(grid.value(e), (count,)))


class _Evaluation:
    def __init__(self, env: Mapping[Value, Array], sizes: Mapping[str, int]):
        self.env, self.sizes = env, sizes

    def stage(self, stage: E.Stage) -> Array:
        shape = tuple(D.evaluate(d, self.sizes) for d in stage.out.dims)
        extents = tuple(D.evaluate(v.extent, self.sizes) for v in stage.vars)
        if extents != shape:
            raise TypeError(f"stage iterates over {extents} to write {stage.out} of {shape}")
        if stage.expr.dtype is not stage.out.dtype:
            raise TypeError(f"stage computes {stage.expr.dtype} for {stage.out}")
        grid = _Grid(self, {}, 0).extended(stage.vars)
        return np.array(np.broadcast_to(grid.value(stage.expr), shape))

    def array(self, v: Value) -> Array:
        if v in self.env:
            return np.asarray(self.env[v])
        if v.const is None:
            raise KeyError(f"no array for {v}")
        return v.const


class _Grid:
    """A space of iteration variables, one array axis each; values are broadcastable over it."""

    def __init__(self, run: _Evaluation, table: dict[int, Array], rank: int):
        self.run, self.table, self.rank = run, table, rank
        self.done: dict[int, Array] = {}
        self.keep: list[E.Expr] = []

    def extended(self, over: Sequence[E.Var]) -> _Grid:
        """This grid with further variables as last axes."""
        rank = self.rank + len(over)
        table = {k: a.reshape(a.shape + (1,) * len(over)) for k, a in self.table.items()}
        for k, v in enumerate(over):
            n = D.evaluate(v.extent, self.run.sizes)
            shape = [1] * rank
            shape[self.rank + k] = n
            table[id(v)] = np.arange(n, dtype=np.int64).reshape(shape)
        return _Grid(self.run, table, rank)

    def value(self, e: E.Expr) -> Array:
        if id(e) not in self.done:
            with np.errstate(all="ignore"):
                result = self._value(e)
            if result.dtype != e.dtype.np:
                raise TypeError(f"{type(e).__name__} gives {result.dtype}, not {e.dtype}")
            self.done[id(e)] = result
            self.keep.append(e)
        return self.done[id(e)]

    def _value(self, e: E.Expr) -> Array:
        if isinstance(e, E.Const):
            return np.asarray(e.value, dtype=e.dtype.np).reshape((1,) * self.rank)
        if isinstance(e, E.Var):
            if id(e) not in self.table:
                raise KeyError(f"variable {e.name} is not in scope")
            return self.table[id(e)]
        if isinstance(e, E.Size):
            size = D.evaluate(e.dim, self.run.sizes)
            return np.full((1,) * self.rank, size, np.int64)
        if isinstance(e, E.Load):
            return self._load(e)
        if isinstance(e, E.Unary):
            return _apply(M.UNARY[e.fn], e.dtype, self.value(e.x))
        if isinstance(e, E.Binary):
            if e.a.dtype is not e.b.dtype:
                raise TypeError(f"{e.fn} of {e.a.dtype} and {e.b.dtype}")
            return _apply(M.BINARY[e.fn], e.dtype, self.value(e.a), self.value(e.b))
        if isinstance(e, E.Cast):
            return M.convert(self.value(e.x), e.dtype, e.saturate)
        if isinstance(e, E.Select):
            return np.where(self.value(e.cond), self.value(e.a), self.value(e.b))
        assert isinstance(e, E.Reduce)
        return self._reduce(e)

    def _load(self, e: E.Load) -> Array:
        data = self.run.array(e.value)
        guard = None if e.guard is None else self.value(e.guard)
        index = [self.value(i) for i in e.index]
        bad = np.zeros((1,) * self.rank, dtype=bool)
        for i, n in zip(index, data.shape, strict=True):
            bad = bad | (i < 0) | (i >= n)
        wrong = bad if guard is None else bad & guard
        if wrong.any():
            raise IndexError(f"a load reads outside of {e.value} with shape {data.shape}")
        if guard is None:
            if data.size == 0:
                return np.zeros(np.broadcast_shapes(*(i.shape for i in index)), data.dtype)
            return data[tuple(index)] if index else data.reshape((1,) * self.rank)
        if e.other is None:
            raise TypeError("a guarded load needs a value for where its guard is false")
        other = self.value(e.other)
        if data.size == 0:
            return np.broadcast_to(other, np.broadcast_shapes(other.shape, guard.shape))
        safe = tuple(np.where(guard & ~bad, i, 0) for i in index)
        read = data[safe] if index else data.reshape((1,) * self.rank)
        return np.where(guard, read, other)

    def _reduce(self, e: E.Reduce) -> Array:
        grid = self.extended(e.vars)
        body = grid.value(e.body)
        extents = tuple(D.evaluate(v.extent, self.run.sizes) for v in e.vars)
        body = np.broadcast_to(body, body.shape[: self.rank] + extents)
        axes = tuple(range(self.rank, grid.rank))
        if e.fn.startswith("arg"):
            return _arg(e.fn, body, axes[0])
        return _fold(e.fn, body, axes, e.dtype)


def _apply(f: Any, to: DType, *operands: Array) -> Array:
    result = f(*(M.widen(a) for a in operands))
    return np.asarray(result).astype(to.np, copy=False)


def _arg(fn: str, body: Array, axis: int) -> Array:
    pick = np.argmax if fn.startswith("argmax") else np.argmin
    if not fn.endswith("_last"):
        return pick(body, axis=axis).astype(np.int64)
    back = pick(np.flip(body, axis), axis=axis)
    return (body.shape[axis] - 1 - back).astype(np.int64)


def _fold(fn: str, body: Array, axes: tuple[int, ...], dt: DType) -> Array:
    if fn in ("any", "all"):
        return (np.any if fn == "any" else np.all)(body, axis=axes)
    if fn in ("sum", "prod"):
        f = np.sum if fn == "sum" else np.prod
        wide = body if dt.kind == "b" else M.widen(body)
        return f(wide, axis=axes, dtype=wide.dtype).astype(dt.np)
    empty = any(body.shape[a] == 0 for a in axes)
    low, high = (-np.inf, np.inf) if dt.is_float else M.limits(dt)
    wide = M.widen(body)
    start: dict[str, Any] = {"initial": low if fn == "max" else high} if empty else {}
    return (np.max if fn == "max" else np.min)(wide, axis=axes, **start).astype(dt.np)


__all__ = ["bind_symbols", "evaluate_at", "evaluate_stages", "run_stages"]
