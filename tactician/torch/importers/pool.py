"""Pooling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from ...ir import dims as D
from ...ir import dtypes as T
from ...ir.graph import Value
from ..context import Context
from ..table import AtenProblem, aten_op

aten = torch.ops.aten


def _batched(c: Context, x: Value, n: int) -> tuple[Value, bool]:
    """``x`` with a batch dimension, and whether it was added."""
    return (c.unsqueeze(x, [0]), True) if x.rank == n + 1 else (x, False)


def _each(given: Any, n: int, default: Any = ()) -> tuple[int, ...]:
    given = [given] if isinstance(given, int) else list(given)
    given = given or default
    return tuple(int(v) for v in (given if len(given) == n else list(given) * n))


def _max(target: Any, n: int, indices: bool) -> None:
    @aten_op(target)
    def max_pool(c: Context, x: Value, kernel: Any, stride: Any = (), padding: Any = 0,
                 dilation: Any = 1, ceil_mode: bool = False) -> Any:
        x, alone = _batched(c, x, n)
        window, pads = _each(kernel, n), _each(padding, n)
        attrs: dict[str, Any] = {
            "window": window, "stride": _each(stride, n, window), "pre": pads, "post": pads,
            "dilation": _each(dilation, n), "ceil": ceil_mode,
        }
        if indices and _read(c.node, 1):
            y, at = c.ops("max_pool_indices", x, **attrs)
            out = [y, _within_plane(c, at, x, n)]
        else:
            out = [c.op("pooling", x, fn="max", **attrs), None]  # type: ignore[list-item]
        if alone:
            out = [None if v is None else c.squeeze(v, [0]) for v in out]
        return out if indices else out[0]


def _within_plane(c: Context, at: Value, x: Value, n: int) -> Value:
    """Positions in the whole tensor as positions in the image of their channel."""
    return c.binary("mod", at, c.value(D.product(x.dims[-n:]), T.i64))


def _read(node: Any, index: int) -> bool:
    """Whether anything reads one result of a node."""
    return any(u.args[1] == index for u in node.users
               if u.op == "call_function" and getattr(u.target, "__name__", "") == "getitem")


for _n in (1, 2, 3):
    _max(getattr(aten, f"max_pool{_n}d").default, _n, False)
    _max(getattr(aten, f"max_pool{_n}d_with_indices").default, _n, True)


def _average(n: int) -> None:
    @aten_op(getattr(aten, f"avg_pool{n}d").default)
    def avg_pool(c: Context, x: Value, kernel: Any, stride: Any = (), padding: Any = 0,
                 ceil_mode: bool = False, count_include_pad: bool = True,
                 divisor_override: int | None = None) -> Value:
        x, alone = _batched(c, x, n)
        window, pads = _each(kernel, n), _each(padding, n)
        attrs: dict[str, Any] = {
            "window": window, "stride": _each(stride, n, window), "pre": pads, "post": pads,
            "ceil": ceil_mode,
        }
        if divisor_override:
            attrs |= {"ceil": False, "post": _reach(c, x, attrs, n)}
            full = math.prod(window)
            y = c.op("pooling", x, fn="average", count_include_pad=True, **attrs)
            y = c.mul(y, c.like(full / divisor_override, y))
        else:
            y = c.op("pooling", x, fn="average", count_include_pad=count_include_pad, **attrs)
        return c.squeeze(y, [0]) if alone else y


def _reach(c: Context, x: Value, attrs: dict[str, Any], n: int) -> tuple[int, ...]:
    """Trailing padding that makes every window torch counts a whole one."""
    post = []
    for i, (have, want) in enumerate(zip(x.dims[-n:], c.shape_out[-n:], strict=True)):
        if not isinstance(have, int) or not isinstance(want, int):
            if attrs["ceil"]:
                raise AtenProblem("divisor_override with ceil_mode and a dynamic size")
            post.append(attrs["post"][i])
            continue
        end = (want - 1) * attrs["stride"][i] + attrs["window"][i]
        post.append(max(end - have - attrs["pre"][i], attrs["post"][i]))
    return tuple(post)


for _n in (1, 2, 3):
    _average(_n)


def _adaptive(c: Context, x: Value, size: Sequence[Any], fn: str) -> Value:
    """Adaptive pooling: a reduction to 1, a plain pooling where sizes divide, else window by
    window along each axis."""
    n = len(size)
    first = x.rank - n
    target = c.shape_out[-n:]
    if all(t == 1 for t in target):
        return c.reduce(x, "max" if fn == "max" else "mean", range(first, x.rank))
    for i, (want, have) in enumerate(zip(target, x.dims[first:], strict=True)):
        if want == have:
            continue
        if not isinstance(want, int) or not isinstance(have, int):
            raise AtenProblem(f"adaptive pooling of a dynamic size {have} to {want}")
        x = _adapt_axis(c, x, first + i, have, want, fn)
    return x


def _adapt_axis(c: Context, x: Value, axis: int, have: int, want: int, fn: str) -> Value:
    reduction = "max" if fn == "max" else "mean"
    if have % want == 0:
        split = c.view(x, [*x.dims[:axis], want, have // want, *x.dims[axis + 1 :]])
        return c.reduce(split, reduction, [axis + 1], keepdims=False)
    parts = []
    for i in range(want):
        start, end = i * have // want, -(-(i + 1) * have // want)
        parts.append(c.reduce(c.slice_axis(x, axis, start, end - start), reduction, [axis]))
    return c.concat(parts, axis)


@aten_op(aten._adaptive_avg_pool2d.default, aten.adaptive_avg_pool2d.default,
         aten._adaptive_avg_pool3d.default, aten.adaptive_avg_pool3d.default,
         aten.adaptive_avg_pool1d.default)
def adaptive_avg_pool(c: Context, x: Value, size: Sequence[Any]) -> Value:
    return _adaptive(c, x, size, "average")


@aten_op(aten.adaptive_max_pool1d.default, aten.adaptive_max_pool2d.default,
         aten.adaptive_max_pool3d.default, note="the first result")
def adaptive_max_pool(c: Context, x: Value, size: Sequence[Any]) -> list[Value | None]:
    return [_adaptive(c, x, size, "max"), None]
