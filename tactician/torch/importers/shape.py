"""Views, movement and joining of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ...ir import dims as D
from ...ir.graph import Value
from ..context import Context, axis_of
from ..table import AtenProblem, aten_op

aten = torch.ops.aten


@aten_op(aten.view.default, aten._unsafe_view.default, aten.reshape.default,
         aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.unsqueeze.default,
         aten.flatten.using_ints, aten.view_copy.default, aten.unflatten.int,
         torch.ops.prims.view_of.default)
def reshape(c: Context, x: Value, *args: Any) -> Value:
    """Whatever the arguments say, torch knows the resulting shape."""
    return c.view(x, c.shape_out)


@aten_op(aten.expand.default, aten.expand_copy.default, aten.broadcast_to.default)
def expand(c: Context, x: Value, size: Any, implicit: bool = False) -> Value:
    return c.broadcast(x, c.shape_out)


@aten_op(aten.permute.default, aten.permute_copy.default)
def permute(c: Context, x: Value, dims: Sequence[int]) -> Value:
    return c.transpose(x, [axis_of(d, x.rank) for d in dims])


@aten_op(aten.transpose.int, aten.swapaxes.default)
def transpose(c: Context, x: Value, a: int, b: int) -> Value:
    perm = list(range(x.rank))
    if perm:
        a, b = axis_of(a, x.rank), axis_of(b, x.rank)
        perm[a], perm[b] = b, a
    return c.transpose(x, perm)


@aten_op(aten.t.default, aten.numpy_T.default)
def matrix_transpose(c: Context, x: Value) -> Value:
    return c.transpose(x, list(range(x.rank))[::-1])


@aten_op(aten.slice.Tensor, aten.slice_copy.Tensor)
def slice_tensor(c: Context, x: Value, dim: int = 0, start: Any = None, end: Any = None,
                 step: int = 1) -> Value:
    axis = axis_of(dim, x.rank)
    first, size = _start(x.dims[axis], start), c.shape_out[axis]
    return c.slice_axis(x, axis, first, size, step)


def _start(extent: D.DimLike, start: D.DimLike | None) -> D.DimLike:
    """Where a slice starts, as Python reads it."""
    if start is None:
        return 0
    if isinstance(start, int) and start < 0:
        start = start + extent
        return D.dim_max(start, 0)
    return D.dim_min(start, extent) if D.is_static(start, extent) else start


@aten_op(aten.select.int, aten.select_copy.int)
def select(c: Context, x: Value, dim: int, index: D.DimLike) -> Value:
    axis = axis_of(dim, x.rank)
    if isinstance(index, int) and index < 0:
        index = index + x.dims[axis]
    return c.squeeze(c.slice_axis(x, axis, index, 1), [axis])


@aten_op(aten.narrow.default)
def narrow(c: Context, x: Value, dim: int, start: D.DimLike, length: D.DimLike) -> Value:
    axis = axis_of(dim, x.rank)
    return c.slice_axis(x, axis, _start(x.dims[axis], start), length)


@aten_op(aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default,
         aten.split.sizes, aten.tensor_split.sections, aten.split_with_sizes_copy.default)
def split(c: Context, x: Value, sizes: Any, dim: int = 0) -> list[Value]:
    axis = axis_of(dim, x.rank)
    out, start = [], 0
    for part in c.result:
        size = c.dim(part.shape[axis])
        out.append(c.slice_axis(x, axis, start, size))
        start = start + size  # type: ignore[assignment]
    return out


@aten_op(aten.unbind.int)
def unbind(c: Context, x: Value, dim: int = 0) -> list[Value]:
    axis = axis_of(dim, x.rank)
    return [c.squeeze(c.slice_axis(x, axis, i, 1), [axis]) for i in range(len(c.result))]


@aten_op(aten.cat.default, aten.concat.default)
def cat(c: Context, tensors: Sequence[Value], dim: int = 0) -> Value:
    full = [t for t in tensors if not (t.rank == 1 and t.dims == (0,))] or list(tensors[:1])
    parts = [c.value(t, c.dtype) for t in full]
    return c.concat(parts, axis_of(dim, parts[0].rank))


@aten_op(aten.stack.default)
def stack(c: Context, tensors: Sequence[Value], dim: int = 0) -> Value:
    axis = axis_of(dim, tensors[0].rank + 1)
    return c.concat([c.unsqueeze(c.value(t, c.dtype), [axis]) for t in tensors], axis)


@aten_op(aten.repeat.default, aten.tile.default)
def repeat(c: Context, x: Value, repeats: Sequence[D.DimLike]) -> Value:
    rank = len(c.shape_out)
    x = c.view(x, [*[1] * (rank - x.rank), *x.dims])
    repeats = [*[1] * (rank - len(repeats)), *repeats]
    return c.op("tile", x, c.sizes(repeats)) if rank else x


@aten_op(aten.flip.default)
def flip(c: Context, x: Value, dims: Sequence[int]) -> Value:
    axes = [axis_of(d, x.rank) for d in dims]
    if not x.rank or not axes:
        return x
    low = -(1 << 60)
    return c.op("strided_slice", x, c.ints([-1] * len(axes)), c.ints([low] * len(axes)),
                c.ints(axes), c.ints([-1] * len(axes)))


@aten_op(aten.roll.default)
def roll(c: Context, x: Value, shifts: Any, dims: Any = ()) -> Value:
    shifts = [shifts] if isinstance(shifts, int) else list(shifts)
    dims = [dims] if isinstance(dims, int) else list(dims)
    if not dims:
        flat = c.view(x, [x.numel])
        return c.view(_roll(c, flat, 0, shifts[0]), x.dims)
    for shift, dim in zip(shifts, dims, strict=True):
        x = _roll(c, x, axis_of(dim, x.rank), shift)
    return x


def _roll(c: Context, x: Value, axis: int, shift: int) -> Value:
    extent = x.dims[axis]
    if not isinstance(extent, int):
        if shift == 0:
            return x
        cut = extent - shift if shift > 0 else -shift
    else:
        cut = -shift % extent if extent else 0
        if cut == 0:
            return x
    parts = [c.slice_axis(x, axis, cut, extent - cut), c.slice_axis(x, axis, 0, cut)]
    return c.concat(parts, axis)


@aten_op(aten.constant_pad_nd.default)
def constant_pad(c: Context, x: Value, pad: Sequence[Any], value: Any = 0) -> Value:
    return c.op("pad", x, _pads(c, x, pad), c.value(value, x.dtype), mode="constant")


def _pads(c: Context, x: Value, pad: Sequence[Any]) -> Value:
    """torch's pairs, last dimension first, as all befores and all afters."""
    before: list[Any] = [0] * x.rank
    after: list[Any] = [0] * x.rank
    for i in range(len(pad) // 2):
        before[x.rank - 1 - i], after[x.rank - 1 - i] = pad[2 * i], pad[2 * i + 1]
    return c.sizes([*before, *after])


@aten_op(aten.pad.default)
def pad_any(c: Context, x: Value, pad: Sequence[Any], mode: str = "constant",
            value: Any = None) -> Value:
    if mode == "constant":
        return constant_pad(c, x, pad, 0 if value is None else value)
    names = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}
    if mode not in names:
        raise AtenProblem(f"padding mode {mode!r}")
    return c.op("pad", x, _pads(c, x, pad), mode=names[mode])


@aten_op(aten.reflection_pad1d.default, aten.reflection_pad2d.default,
         aten.reflection_pad3d.default)
def reflection_pad(c: Context, x: Value, pad: Sequence[Any]) -> Value:
    return pad_any(c, x, pad, "reflect")


@aten_op(aten.replication_pad1d.default, aten.replication_pad2d.default,
         aten.replication_pad3d.default)
def replication_pad(c: Context, x: Value, pad: Sequence[Any]) -> Value:
    return pad_any(c, x, pad, "replicate")


@aten_op(aten.pixel_shuffle.default)
def pixel_shuffle(c: Context, x: Value, factor: int) -> Value:
    return _blocks(c, x, factor, "depth_to_space", mode="crd")


@aten_op(aten.pixel_unshuffle.default)
def pixel_unshuffle(c: Context, x: Value, factor: int) -> Value:
    """Channels come first, then positions in the block (`space_to_depth` has it the other way)."""
    *lead, channels, height, width = x.dims
    n = len(lead)
    parts = c.view(x, [*lead, channels, height // factor, factor, width // factor, factor])
    perm = [*range(n + 1), n + 2, n + 4, n + 1, n + 3]
    return c.view(c.transpose(parts, perm), c.shape_out)


def _blocks(c: Context, x: Value, factor: int, op: str, **attrs: Any) -> Value:
    lead = x.dims[:-3]
    if len(lead) != 1:
        x = c.view(x, [D.product(lead), *x.dims[-3:]])
    return c.view(c.op(op, x, block=factor, **attrs), c.shape_out)


@aten_op(aten.diagonal.default, aten.diagonal_copy.default,
         note="static sizes")
def diagonal(c: Context, x: Value, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Value:
    a, b = axis_of(dim1, x.rank), axis_of(dim2, x.rank)
    length, rows, cols = c.shape_out[-1], x.dims[a], x.dims[b]
    if not isinstance(length, int) or not D.is_static(rows, cols):
        raise AtenProblem("the diagonal of a matrix of dynamic size")
    rest = [i for i in range(x.rank) if i not in (a, b)]
    x = c.transpose(x, [*rest, a, b])
    flat = c.view(x, [*(x.dims[:-2]), rows * cols])
    first = offset if offset >= 0 else -offset * int(cols)
    at = np.arange(length, dtype=np.int64) * (int(cols) + 1) + first
    return c.op("gather", flat, c.const(at), axis=len(rest), batch_dims=0)


@aten_op(aten.unfold.default, note="static sizes")
def unfold(c: Context, x: Value, dim: int, size: int, step: int) -> Value:
    if not x.rank:
        return c.view(x, c.shape_out)
    axis = axis_of(dim, x.rank)
    count = c.shape_out[axis]
    if not isinstance(count, int):
        raise AtenProblem("unfold of a dimension of dynamic size")
    at = np.arange(count)[:, None] * step + np.arange(size)[None, :]
    y = c.op("gather", x, c.const(at.astype(np.int64)), axis=axis, batch_dims=0)
    perm = [i for i in range(y.rank) if i != axis + 1]
    return c.transpose(y, [*perm, axis + 1])
