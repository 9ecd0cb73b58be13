"""Operators that move elements or make constants."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from ....ir import dims as D
from ....ir import dtypes as T
from ....ir.graph import Value
from ..context import Context, axes_of, axis_of, require_ints
from ..errors import NodeProblem, Unsupported
from ..node import OnnxNode
from ..table import importer
from ..types import dtype_of


@importer("Constant")
def constant(c: Context, n: OnnxNode) -> Value:
    name = n.proto.output[0]
    if "value" in n.attributes:
        n.used.add("value")
        return c.const(c.state.load_tensor(n.attributes["value"].t), name=name)
    if "sparse_value" in n.attributes:
        from ..subgraph import densify

        n.used.add("sparse_value")
        return c.const(densify(c, n.attributes["sparse_value"].sparse_tensor), name=name)
    for attribute, dt in (("value_int", np.int64), ("value_ints", np.int64),
                          ("value_float", np.float32), ("value_floats", np.float32)):
        if attribute in n.attributes:
            return c.const(np.asarray(n.attr(attribute), dt), name=name)
    raise Unsupported(f"Constant with {', '.join(n.attributes) or 'no value'}; numbers only",
                      "UNSUPPORTED_NODE_ATTR")


@importer("ConstantOfShape", since=9)
def constant_of_shape(c: Context, n: OnnxNode) -> Value:
    value = np.asarray(n.attr("value", np.zeros(1, np.float32))).reshape(())
    return c.expand_new(c.const(value), n[0])


@importer("Shape", until=14)
def shape(c: Context, n: OnnxNode) -> Value:
    return c.op("shape", n[0])


@importer("Shape", since=15)
def shape_range(c: Context, n: OnnxNode) -> Value:
    rank = n[0].rank
    start, end = n.attr("start", 0), n.attr("end", rank)
    start = min(max(start + rank if start < 0 else start, 0), rank)
    end = min(max(end + rank if end < 0 else end, 0), rank)
    full = c.op("shape", n[0])
    return full if (start, end) == (0, rank) else c.cut(full, 0, start, max(start, end))


@importer("Size")
def size(c: Context, n: OnnxNode) -> Value:
    if n[0].rank == 0:
        return c.const(1, T.i64)
    return c.reduce(c.op("shape", n[0]), "prod", (0,), keepdims=False)


@importer("Reshape", since=5, until=13)
def reshape(c: Context, n: OnnxNode) -> Value:
    return c.op("reshape", n[0], c.index(n[1]), zero_copies=True)


@importer("Reshape", since=14)
def reshape_allowzero(c: Context, n: OnnxNode) -> Value:
    return c.op("reshape", n[0], c.index(n[1]), zero_copies=not n.flag("allowzero"))


@importer("Flatten")
def flatten(c: Context, n: OnnxNode) -> Value:
    x = n[0]
    axis = n.attr("axis", 1)
    if not -x.rank <= axis <= x.rank:
        raise NodeProblem(f"axis {axis} is out of range for rank {x.rank}")
    axis = axis + x.rank if axis < 0 else axis
    rows, columns = range(axis), range(axis, x.rank)
    return c.op("reshape", x, c.concat([c.numel_of(x, rows), c.numel_of(x, columns)]),
                zero_copies=False)


@importer("Squeeze", until=12)
def squeeze_attribute(c: Context, n: OnnxNode) -> Value:
    return _squeeze(c, n[0], n.ints("axes") if "axes" in n.attributes else None)


@importer("Squeeze", since=13)
def squeeze(c: Context, n: OnnxNode) -> Value:
    axes = None if not n.has(1) else [int(a) for a in require_ints(n[1], "axes")]
    return _squeeze(c, n[0], axes)


def _squeeze(c: Context, x: Value, axes: Sequence[int] | None) -> Value:
    if axes is None:
        unknown = [d for d in x.dims if isinstance(d, D.Dim)]
        if unknown:
            raise NodeProblem(
                f"Squeeze without axes of shape {list(x.dims)}: whether {unknown[0]} is 1 is "
                "unknown, so the rank is; give the axes", "UNSUPPORTED_NODE_DYNAMIC")
        chosen = tuple(i for i, d in enumerate(x.dims) if d == 1)
    else:
        chosen = axes_of(axes, x.rank)
    return c.op("squeeze", x, c.ints(chosen))


@importer("Unsqueeze", until=12)
def unsqueeze_attribute(c: Context, n: OnnxNode) -> Value:
    return _unsqueeze(c, n[0], n.ints("axes"))


@importer("Unsqueeze", since=13)
def unsqueeze(c: Context, n: OnnxNode) -> Value:
    return _unsqueeze(c, n[0], [int(a) for a in require_ints(n[1], "axes").reshape(-1)])


def _unsqueeze(c: Context, x: Value, axes: Sequence[int]) -> Value:
    rank = x.rank + len(axes)
    chosen = axes_of(axes, rank)
    if len(chosen) != len(axes):
        raise NodeProblem(f"axes {axes} name one axis twice (output rank {rank})")
    return c.op("unsqueeze", x, c.ints(chosen))


@importer("Transpose")
def transpose(c: Context, n: OnnxNode) -> Value:
    perm = n.ints("perm", tuple(reversed(range(n[0].rank))))
    return c.op("transpose", n[0], perm=tuple(axis_of(p, n[0].rank, "perm") for p in perm))


@importer("Concat", since=4)
def concat(c: Context, n: OnnxNode) -> Value:
    values = n.present()
    return c.op("concat", *values, axis=axis_of(n.attr("axis"), values[0].rank))


@importer("Slice", until=9)
def slice_attributes(c: Context, n: OnnxNode) -> Value:
    starts, ends = n.ints("starts"), n.ints("ends")
    axes = n.ints("axes", range(len(starts)))
    return c.op("strided_slice", n[0], c.ints(starts), c.ints(ends),
                c.ints([axis_of(a, n[0].rank) for a in axes]), c.ints([1] * len(starts)))


@importer("Slice", since=10)
def slice_inputs(c: Context, n: OnnxNode) -> Value:
    axes = n.get(3)
    if axes is not None:
        known = require_ints(axes, "axes").reshape(-1)
        axes = c.ints([axis_of(int(a), n[0].rank) for a in known])
    steps = n.get(4)
    return c.op("strided_slice", n[0], c.index(n[1]), c.index(n[2]), axes,
                None if steps is None else c.index(steps))


@importer("Split", since=2, until=12)
def split_attribute(c: Context, n: OnnxNode) -> list[Value]:
    axis = axis_of(n.attr("axis", 0), n[0].rank)
    sizes = n.ints("split") if "split" in n.attributes else _even(n, axis, None)
    return _split(c, n[0], axis, sizes)


@importer("Split", since=13)
def split(c: Context, n: OnnxNode) -> list[Value]:
    axis = axis_of(n.attr("axis", 0), n[0].rank)
    count = n.attr("num_outputs", None)
    if not n.has(1):
        return _split(c, n[0], axis, _even(n, axis, count))
    known = n[1].known_ints()
    if known is None or not D.is_static(*known.flat):
        return _split_at_run_time(c, n, axis)
    return _split(c, n[0], axis, list(known.reshape(-1)))


def _split_at_run_time(c: Context, n: OnnxNode, axis: int) -> list[Value]:
    """Parts whose sizes are only known at run time."""
    sizes, out = c.index(n[1]), []
    start = c.ints([0])
    for i in range(len(n.proto.output)):
        end = c.add(start, c.cut(sizes, 0, i, i + 1))
        out.append(c.op("strided_slice", n[0], start, end, c.ints([axis]), c.ints([1])))
        start = end
    return out


def _even(n: OnnxNode, axis: int, count: int | None) -> list[D.DimLike]:
    count = count or len(n.proto.output)
    extent = n[0].dims[axis]
    if isinstance(extent, D.Dim):
        chunk = D.floor_div(extent, count)
        return [chunk] * count
    chunk = -(-extent // count)
    sizes: list[D.DimLike] = [chunk] * count
    sizes[-1] = extent - chunk * (count - 1)
    return sizes


def _split(c: Context, x: Value, axis: int, sizes: Sequence[D.DimLike]) -> list[Value]:
    extent = x.dims[axis]
    known = [s for s in sizes if isinstance(s, int)]
    if len(known) < len(sizes):
        return _split_symbolic(c, x, axis, len(sizes), sizes)
    if isinstance(extent, int) and sum(known) != extent:
        raise NodeProblem(f"split sizes {known} add up to {sum(known)}, but axis {axis} has "
                          f"extent {extent}")
    ends = list(itertools.accumulate(known))
    return [c.cut(x, axis, end - s, end) for s, end in zip(known, ends, strict=True)]


def _split_symbolic(
    c: Context, x: Value, axis: int, count: int, sizes: Sequence[D.DimLike]
) -> list[Value]:
    """Equal parts of an axis whose extent is only known at run time."""
    if any(s != sizes[0] for s in sizes):
        raise NodeProblem(f"split sizes {sizes} are symbolic and differ",
                          "UNSUPPORTED_NODE_DYNAMIC")
    chunk = c.binary("floordiv", c.shape_of(x, [axis]), c.ints([count]))
    out = []
    for i in range(count):
        start = c.binary("mul", chunk, c.ints([i]))
        end = c.binary("mul", chunk, c.ints([i + 1]))
        out.append(c.op("strided_slice", x, start, end, c.ints([axis]), c.ints([1])))
    return out


@importer("Expand", since=8)
def expand(c: Context, n: OnnxNode) -> Value:
    return c.op("expand", n[0], c.index(n[1]))


@importer("Tile", since=6)
def tile(c: Context, n: OnnxNode) -> Value:
    return c.op("tile", n[0], c.index(n[1]))


@importer("Pad", until=10)
def pad_attributes(c: Context, n: OnnxNode) -> Value:
    pads = n.ints("pads")
    return c.op("pad", n[0], c.ints(pads), c.like(n.attr("value", 0.0), n[0]),
                mode=n.attr("mode", "constant"))


@importer("Pad", since=11)
def pad(c: Context, n: OnnxNode) -> Value:
    x, pads = n[0], c.index(n[1])
    if n.has(3):
        axes = [axis_of(int(a), x.rank) for a in require_ints(n[3], "axes").reshape(-1)]
        pads = _spread_pads(c, pads, axes, x.rank)
    mode = n.attr("mode", "constant")
    value = n.get(2) if mode == "constant" else None
    return c.op("pad", x, pads, None if value is None else c.scalar(value), mode=mode)


def _spread_pads(c: Context, pads: Value, axes: list[int], rank: int) -> Value:
    """Pads given for some axes, as pads of all axes."""
    where = np.array(axes + [rank + a for a in axes], dtype=np.int64)
    if pads.const is not None:
        full = np.zeros(2 * rank, dtype=np.int64)
        full[where] = pads.const
        return c.const(full)
    parts = []
    for k in range(2 * rank):
        hit = np.flatnonzero(where == k)
        parts.append(c.cut(pads, 0, int(hit[0]), int(hit[0]) + 1) if hit.size else c.ints([0]))
    return c.concat(parts)


@importer("DepthToSpace", until=10)
def depth_to_space(c: Context, n: OnnxNode) -> Value:
    return c.op("depth_to_space", n[0], block=n.attr("blocksize"), mode="dcr")


@importer("DepthToSpace", since=11)
def depth_to_space_mode(c: Context, n: OnnxNode) -> Value:
    return c.op("depth_to_space", n[0], block=n.attr("blocksize"),
                mode=n.attr("mode", "DCR").lower())


@importer("SpaceToDepth", until=27)
def space_to_depth(c: Context, n: OnnxNode) -> Value:
    return c.op("space_to_depth", n[0], block=n.attr("blocksize"))


@importer("ReverseSequence", since=10)
def reverse_sequence(c: Context, n: OnnxNode) -> Value:
    return c.op("reverse_sequence", n[0], n[1], batch_axis=n.attr("batch_axis", 1),
                seq_axis=n.attr("time_axis", 0))


@importer("Trilu", since=14)
def trilu(c: Context, n: OnnxNode) -> Value:
    k = n.get(1)
    return c.op("trilu", n[0], None if k is None else c.scalar(k), upper=n.flag("upper", True))


@importer("Range", since=11)
def range_(c: Context, n: OnnxNode) -> Value:
    n.ignore("stash_type")
    return c.op("range", c.scalar(n[0]), c.scalar(n[1]), c.scalar(n[2]))


@importer("EyeLike", since=9)
def eye_like(c: Context, n: OnnxNode) -> Value:
    to = dtype_of(n.attr("dtype")) if "dtype" in n.attributes else n[0].dtype
    return c.op("eye", n[0], k=n.attr("k", 0), to=to)


@importer("Dropout", since=7, until=11)
def dropout(c: Context, n: OnnxNode) -> list[Value]:
    n.ignore("ratio", "seed")
    return _no_dropout(c, n)


@importer("Dropout", since=12, note="random values in training mode differ from other runtimes'")
def dropout_inputs(c: Context, n: OnnxNode) -> list[Value]:
    training = n.get(2)
    if training is None or (training.const is not None and not training.const.any()):
        n.ignore("seed")
        return _no_dropout(c, n)
    from .random import seed_of

    x, ratio = n[0], n.get(1)
    ratio = c.const(0.5, T.f32) if ratio is None else c.cast(c.scalar(ratio), T.f32)
    ratio = c.select(c.scalar(training), ratio, c.const(0.0, T.f32))
    draw = c.op("fill", c.shape(x), c.const(0.0, T.f32), c.const(1.0, T.f32),
                fn="random_uniform", to=T.f32, seed=seed_of(n))
    mask = c.binary("ge", draw, ratio)
    kept = c.div(c.const(1.0, T.f32), c.sub(c.const(1.0, T.f32), ratio))
    y = c.select(mask, c.mul(x, c.cast(kept, x.dtype)), c.like(0, x))
    return [y, mask]


def _no_dropout(c: Context, n: OnnxNode) -> list[Value]:
    out = [c.op("identity", n[0])]
    if n.wants(1):
        out.append(c.expand_new(c.const(True), c.shape(n[0])))
    return out
