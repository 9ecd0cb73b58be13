"""Constants, shapes, and what moves elements."""

from __future__ import annotations

from typing import Any

import numpy as np

from ....ir import dims as D
from ....ir import dtypes as T
from ....ir.graph import Value
from ...onnx.errors import NodeProblem, Unsupported
from ..context import Context, Size, axes_of, axis_of, require_ints
from ..node import TfNode
from ..table import importer
from .nn import back, first

_FAR = 2**31 - 1


@importer("Const")
def const(c: Context, n: TfNode) -> Value:
    return c.const(n.attr("value"), name=n.name)


@importer("Identity", "StopGradient", "PreventGradient", "Snapshot", "CheckNumerics", "Enter",
          "PlaceholderWithDefault", "EnsureShape", "Print", "PrintV2", "RefIdentity",
          "CheckNumericsV2", note="passed on; a given input may take a PlaceholderWithDefault's "
          "place")
def identity(c: Context, n: TfNode) -> Any:
    x = n.inputs[0]
    return c.op("identity", x) if isinstance(x, Value) and x.const is None else x


@importer("IdentityN")
def identity_n(c: Context, n: TfNode) -> list[Any]:
    return list(n.inputs)


@importer("NoOp", "Assert", "ControlTrigger", note="left out")
def nothing(c: Context, n: TfNode) -> list[Any]:
    return []


@importer("Shape")
def shape(c: Context, n: TfNode) -> Value:
    return c.cast(c.shape(n[0]), n.dtype("out_type", T.i32))


@importer("ShapeN")
def shape_n(c: Context, n: TfNode) -> list[Value]:
    to = n.dtype("out_type", T.i32)
    return [c.cast(c.shape(v), to) for v in n.all()]


@importer("Size")
def size(c: Context, n: TfNode) -> Value:
    return c.cast(c.scalar(c.numel_of(n[0], range(n[0].rank))), n.dtype("out_type", T.i32))


@importer("Rank")
def rank(c: Context, n: TfNode) -> Value:
    return c.const(n[0].rank, T.i32)


@importer("Fill")
def fill(c: Context, n: TfNode) -> Value:
    return c.expand_new(c.scalar(n[1]), c.index(n[0]))


@importer("ZerosLike", "OnesLike")
def like(c: Context, n: TfNode) -> Any:
    if not isinstance(n.inputs[0], Value):
        return n.inputs[0]  # a list nothing was written to
    x = n[0]
    return c.expand_new(c.like(0 if n.op == "ZerosLike" else 1, x), c.shape(x))


@importer("Range")
def range_(c: Context, n: TfNode) -> Value:
    return c.op("range", n[0], n[1], n[2])


@importer("LinSpace")
def linspace(c: Context, n: TfNode) -> Value:
    count = int(require_ints(n[2], "num").item())
    steps = c.const(np.arange(count), n[0].dtype)
    gap = c.div(c.sub(n[1], n[0]), c.like(max(count - 1, 1), n[0]))
    return c.add(n[0], c.mul(steps, gap))


@importer("RandomUniform", "RandomStandardNormal",
          note="numbers differ from TensorFlow's")
def random(c: Context, n: TfNode) -> Value:
    to = n.dtype("dtype")
    fn = "random_uniform" if n.op == "RandomUniform" else "random_normal"
    return c.op("fill", c.index(n[0]), c.const(0, to), c.const(1, to), fn=fn, to=to,
                seed=int(n.attr("seed", 0)))


# --- views ----------------------------------------------------------------------------------


@importer("Reshape")
def reshape(c: Context, n: TfNode) -> Value:
    known = n[1].known_ints()
    if known is not None and D.is_static(*known.flat):
        return c.op("reshape", n[0], c.ints([int(v) for v in known.flat]), zero_copies=False)
    return c.op("reshape", n[0], c.index(n[1]), zero_copies=False)


@importer("ExpandDims")
def expand_dims(c: Context, n: TfNode) -> Value:
    x = n[0]
    axis = axis_of(int(require_ints(n[1], "the axis").item()), x.rank + 1)
    return c.unsqueeze(x, [axis])


@importer("Squeeze")
def squeeze(c: Context, n: TfNode) -> Value:
    x = n[0]
    axes = n.ints("squeeze_dims", n.attr("axis", ()))
    if not axes:
        axes = tuple(i for i, d in enumerate(x.dims) if d == 1)
        if not D.is_static(*x.dims):
            raise Unsupported(f"it removes every axis of size 1, but {list(x.dims)} is not static; "
                              "name the axes", "UNSUPPORTED_NODE_DYNAMIC")
    chosen = axes_of(axes, x.rank)
    return c.squeeze(x, chosen) if chosen else c.op("identity", x)


@importer("Transpose", "ConjugateTranspose")
def transpose(c: Context, n: TfNode) -> Value:
    perm = tuple(int(p) for p in require_ints(n[1], "the permutation").reshape(-1))
    return c.op("transpose", n[0], perm=tuple(axis_of(p, n[0].rank, "perm") for p in perm))


@importer("BroadcastTo")
def broadcast_to(c: Context, n: TfNode) -> Value:
    return c.expand(n[0], c.index(n[1]))


@importer("BroadcastArgs")
def broadcast_args(c: Context, n: TfNode) -> Value:
    """The shape two shapes broadcast to."""
    shapes = [c.index(n[0]), c.index(n[1])]
    longest = max(int(v.dims[0]) for v in shapes)  # type: ignore[arg-type]
    full = [c.concat([c.ints([1] * (longest - int(v.dims[0]))), v]) for v in shapes]  # type: ignore
    a, b = full[0].const, full[1].const
    if a is not None and b is not None:
        return c.const(np.where(a == 1, b, a), n[0].dtype)
    first_is_one = c.binary("eq", full[0], c.ints([1]))
    return c.cast(c.select(first_is_one, full[1], full[0]), n[0].dtype)


# --- joining and cutting ----------------------------------------------------------------------


def _join(c: Context, values: list[Value], axis: Value) -> Value:
    at = axis_of(int(require_ints(axis, "the axis").item()), values[0].rank)
    return c.op("concat", *values, axis=at) if len(values) > 1 else c.op("identity", values[0])


@importer("ConcatV2")
def concat_v2(c: Context, n: TfNode) -> Value:
    *values, axis = n.all()
    return _join(c, values, axis)


@importer("Concat")
def concat(c: Context, n: TfNode) -> Value:
    axis, *values = n.all()
    return _join(c, values, axis)


@importer("Pack", "Stack")
def pack(c: Context, n: TfNode) -> Value:
    values = n.all()
    axis = axis_of(n.attr("axis", 0), values[0].rank + 1)
    parts = [c.unsqueeze(v, [axis]) for v in values]
    return c.op("concat", *parts, axis=axis) if len(parts) > 1 else c.op("identity", parts[0])


@importer("Unpack", "Unstack")
def unpack(c: Context, n: TfNode) -> list[Value]:
    x = n[0]
    axis = axis_of(n.attr("axis", 0), x.rank)
    return [c.squeeze(c.cut(x, axis, i, i + 1), [axis]) for i in range(n.attr("num"))]


@importer("Split")
def split(c: Context, n: TfNode) -> list[Value]:
    x = n[1]
    axis = axis_of(int(require_ints(n[0], "the axis").item()), x.rank)
    count, extent = n.attr("num_split"), x.dims[axis]
    if not isinstance(extent, int):
        raise Unsupported(f"axis {axis} of {list(x.dims)} must be static to be split",
                          "UNSUPPORTED_NODE_DYNAMIC")
    if extent % count:
        raise NodeProblem(f"axis {axis} of extent {extent} can't be split into {count} equal parts")
    return _cuts(c, x, axis, [extent // count] * count)


def _cuts(c: Context, x: Value, axis: int, sizes: list[int]) -> list[Value]:
    out, start = [], 0
    for s in sizes:
        out.append(c.cut(x, axis, start, start + s))
        start += s
    return out


@importer("SplitV")
def split_v(c: Context, n: TfNode) -> list[Value]:
    x = n[0]
    sizes = [int(s) for s in require_ints(n[1], "the sizes").reshape(-1)]
    axis = axis_of(int(require_ints(n[2], "the axis").item()), x.rank)
    if -1 in sizes:
        extent = x.dims[axis]
        if not isinstance(extent, int):
            raise Unsupported("a size of -1 needs a static axis", "UNSUPPORTED_NODE_DYNAMIC")
        sizes[sizes.index(-1)] = extent - sum(s for s in sizes if s >= 0)
    return _cuts(c, x, axis, sizes)


@importer("Slice")
def slice_(c: Context, n: TfNode) -> Value:
    x, begin, extent = n[0], c.index(n[1]), n[2].known_ints()
    if extent is None:
        end = c.add(begin, c.index(n[2]))
    elif n[1].const is not None and D.is_static(*extent.flat):
        end = c.ints([_FAR if s == -1 else int(b) + int(s)
                      for b, s in zip(n[1].const.reshape(-1), extent.reshape(-1), strict=True)])
    else:
        parts = []
        for i, s in enumerate(extent.reshape(-1)):
            at = c.cut(begin, 0, i, i + 1)
            parts.append(c.ints([_FAR]) if s == -1
                         else c.add(at, c.cut(c.index(n[2]), 0, i, i + 1)))
        end = c.concat(parts)
    return c.op("strided_slice", x, begin, end, c.ints(range(x.rank)), None)


@importer("StridedSlice")
def strided_slice(c: Context, n: TfNode) -> Value:
    return _Slicer(c, n).run()


class _Slicer:
    """Python's indexing: slices, single elements, new axes, an ellipsis."""

    def __init__(self, c: Context, n: TfNode):
        self.c, self.n, self.x = c, n, n[0]
        self.begin, self.end = c.index(n[1]), c.index(n[2])
        self.steps = [int(s) for s in require_ints(n[3], "the strides").reshape(-1)]
        self.masks = {m: n.attr(f"{m}_mask", 0) for m in
                      ("begin", "end", "ellipsis", "new_axis", "shrink_axis")}

    def _on(self, mask: str, i: int) -> bool:
        return bool(self.masks[mask] >> i & 1)

    def _part(self, v: Value, i: int) -> Any:
        known = v.known_ints()
        if known is not None and isinstance(known.reshape(-1)[i], (int, np.integer)):
            return int(known.reshape(-1)[i])
        return self.c.cut(v, 0, i, i + 1)

    def run(self) -> Value:
        count = len(self.steps)
        consuming = [i for i in range(count)
                     if not self._on("ellipsis", i) and not self._on("new_axis", i)]
        axis, out = 0, 0
        slices: list[tuple[int, Size, Size, int]] = []
        singles: list[tuple[int, Value]] = []
        shrunk, new = [], []
        for i in range(count):
            if self._on("ellipsis", i):
                skip = self.x.rank - len(consuming)
                axis, out = axis + skip, out + skip
            elif self._on("new_axis", i):
                new.append(out)
                out += 1
            elif self._on("shrink_axis", i):
                at = self._part(self.begin, i)
                if isinstance(at, int):
                    slices.append((axis, at, _FAR if at == -1 else at + 1, 1))
                    shrunk.append(axis)
                else:
                    singles.append((axis, at))
                axis += 1
            else:
                slices.append((axis, *self._bounds(i), self.steps[i]))
                axis, out = axis + 1, out + 1
        return self._emit(slices, singles, shrunk, new)

    def _bounds(self, i: int) -> tuple[Size, Size]:
        forward = self.steps[i] > 0
        start = (0 if forward else _FAR) if self._on("begin", i) else self._part(self.begin, i)
        end = (_FAR if forward else -_FAR) if self._on("end", i) else self._part(self.end, i)
        return start, end

    def _emit(self, slices: Any, singles: Any, shrunk: list[int], new: list[int]) -> Value:
        c, x = self.c, self.x
        slices = [s for s in slices if s[1:] != (0, _FAR, 1)]
        if slices:
            axes, starts, ends, steps = zip(*slices, strict=True)
            x = c.op("strided_slice", x, c.sizes(starts), c.sizes(ends), c.ints(axes),
                     c.ints(steps))
        for axis, at in singles:
            x = c.op("gather", x, at, axis=axis)
        gone = [*shrunk, *(a for a, _ in singles)]
        x = c.squeeze(x, sorted(gone))
        x = c.unsqueeze(x, new)
        return c.op("identity", x) if x is self.x else x


@importer("Tile")
def tile(c: Context, n: TfNode) -> Value:
    return c.op("tile", n[0], c.index(n[1]))


@importer("ReverseV2")
def reverse(c: Context, n: TfNode) -> Value:
    axes = axes_of(list(require_ints(n[1], "the axes").reshape(-1)), n[0].rank)
    if not axes:
        return c.op("identity", n[0])
    k = len(axes)
    return c.op("strided_slice", n[0], c.ints([_FAR] * k), c.ints([-_FAR] * k), c.ints(axes),
                c.ints([-1] * k))


@importer("ReverseSequence")
def reverse_sequence(c: Context, n: TfNode) -> Value:
    return c.op("reverse_sequence", n[0], c.index(n[1]), batch_axis=n.attr("batch_dim", 0),
                seq_axis=n.attr("seq_dim"))


# --- padding ----------------------------------------------------------------------------------


def _pads(c: Context, v: Value) -> Value:
    """[rank, 2] as all starts, then all ends."""
    if v.const is not None:
        return c.const(v.const.astype(np.int64).T.reshape(-1))
    return c.reshape(c.transpose(c.index(v), (1, 0)), (-1,))


@importer("Pad", "PadV2")
def pad(c: Context, n: TfNode) -> Value:
    value = c.scalar(n[2]) if len(n) > 2 else None
    return c.op("pad", n[0], _pads(c, n[1]), value, mode="constant")


@importer("MirrorPad")
def mirror_pad(c: Context, n: TfNode) -> Value:
    if n.attr("mode") == "REFLECT":
        return c.op("pad", n[0], _pads(c, n[1]), mode="reflect")
    x = n[0]
    for axis, (before, after) in enumerate(require_ints(n[1], "the paddings").reshape(-1, 2)):
        parts = [x]
        if before:
            parts.insert(0, c.cut(x, axis, before - 1, -_FAR, -1))
        if after:
            parts.append(c.cut(x, axis, _FAR, -int(after) - 1, -1))
        x = c.concat(parts, axis)
    return x


# --- blocks -----------------------------------------------------------------------------------


@importer("DepthToSpace", "SpaceToDepth")
def blocks(c: Context, n: TfNode) -> Value:
    block, x = n.attr("block_size"), first(c, n, n[0])
    if n.op == "DepthToSpace":
        return back(c, n, c.op("depth_to_space", x, block=block, mode="dcr"))
    return back(c, n, c.op("space_to_depth", x, block=block))


@importer("SpaceToBatchND", "SpaceToBatch")
def space_to_batch(c: Context, n: TfNode) -> Value:
    x = n[0]
    block, pads = _block(n, 1, 2)
    m, full = len(block), np.zeros((x.rank, 2), np.int64)
    full[1:1 + m] = pads
    if full.any():
        x = c.op("pad", x, c.const(full.T.reshape(-1)), mode="constant")
    parts: list[Size] = [c.size(x, 0)]
    for i, b in enumerate(block):
        parts += [c.size_op("floordiv", c.size(x, 1 + i), b), b]
    rest = [c.size(x, k) for k in range(1 + m, x.rank)]
    y = c.to_shape(x, [*parts, *rest])
    outer = [2 * i + 2 for i in range(m)]
    perm = (*outer, 0, *(2 * i + 1 for i in range(m)), *range(1 + 2 * m, y.rank))
    y = c.transpose(y, perm)
    batch = c.size_op("mul", parts[0], int(np.prod(block)))
    return c.to_shape(y, [batch, *parts[1::2], *rest])


@importer("BatchToSpaceND", "BatchToSpace")
def batch_to_space(c: Context, n: TfNode) -> Value:
    x = n[0]
    block, crops = _block(n, 1, 2)
    m = len(block)
    batch = c.size_op("floordiv", c.size(x, 0), int(np.prod(block)))
    spatial = [c.size(x, 1 + i) for i in range(m)]
    rest = [c.size(x, k) for k in range(1 + m, x.rank)]
    y = c.to_shape(x, [*block, batch, *spatial, *rest])
    perm = [m]
    for i in range(m):
        perm += [m + 1 + i, i]
    y = c.transpose(y, (*perm, *range(2 * m + 1, y.rank)))
    grown = [c.size_op("mul", s, b) for s, b in zip(spatial, block, strict=True)]
    y = c.to_shape(y, [batch, *grown, *rest])
    if not crops.any():
        return y
    ends = [_FAR if not b else -int(b) for b in crops[:, 1]]
    return c.op("strided_slice", y, c.ints([int(a) for a in crops[:, 0]]), c.ints(ends),
                c.ints(range(1, 1 + m)), None)


def _block(n: TfNode, i: int, j: int) -> tuple[list[int], Any]:
    if n.op.endswith("ND"):
        block = [int(b) for b in require_ints(n[i], "the block's shape").reshape(-1)]
        return block, require_ints(n[j], "pads or crops").reshape(-1, 2).astype(np.int64)
    b = n.attr("block_size")
    return [b, b], require_ints(n[1], "pads or crops").reshape(-1, 2).astype(np.int64)




@importer("Flatten", note="UFF's")
def flatten(c: Context, n: TfNode) -> Value:
    x = n[0]
    if D.is_static(*x.dims[1:]):
        return c.reshape(x, [x.dims[0] if isinstance(x.dims[0], int) else -1,
                             int(D.product(x.dims[1:]))])
    return c.reshape(x, c.concat([c.shape_of(x, [0]), c.ints([-1])]))
