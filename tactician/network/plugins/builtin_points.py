"""Built-in plugins of PointPillars: from points to pillars, to an image, to boxes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ... import ops
from ...ir import dtypes as T
from ...ir.graph import Graph, Value
from ..enums import DataType
from .builtin import KINDS, Array, Fields, Kind
from .builtin_boxes import need
from .kit import Kit

F, I = DataType.FLOAT, DataType.INT32


def _floats(f: Fields, name: str, count: int) -> Array:
    found = f.many(name).astype(np.float32)
    if len(found) != count:
        raise ops.OpError(f"field {name!r} has {len(found)} numbers; it needs {count}")
    return found


def _scatter(g: Graph, inputs: Sequence[Value], f: Fields) -> Sequence[Value]:
    """Pillars that are valid at their places of an image of zeros."""
    need(inputs, [(3,), (3,), (1,)], "pillars [N, P, C], places [N, P, 4] and counts [N]")
    k = Kit(g)
    x, coords, count = inputs
    high, wide = (int(n) for n in f.many("dense_shape"))
    number = k.unsqueeze(k.upto(k.size(x, 1)), 0)
    valid = k.binary("lt", number, k.cast(k.unsqueeze(count, 1), T.i64))
    at = k.cast(coords, T.i64)
    row, column = k.squeeze(k.part(at, 2, 2, 3), 2), k.squeeze(k.part(at, 2, 3, 4), 2)
    place = k.where(valid, k.add(k.mul(row, wide), column), np.int64(high * wide))
    image = k.unsqueeze(k.upto(k.size(x, 0)), 1)
    both = k.expand(k.unsqueeze(image, 2), k.size(x, 0), k.size(x, 1), 1)
    index = k.join([both, k.unsqueeze(place, 2)], 2)
    blank = k.full(0, np.float32, k.size(x, 0), high * wide + 1, k.size(x, 2))
    dense = k.op("scatter_nd", blank, index, x, reduction="none")
    dense = k.reshape(k.part(dense, 1, 0, high * wide), 0, high, wide, k.size(x, 2))
    return [k.transpose(dense, 0, 3, 1, 2)]


def _centres(f: Fields, high: int, wide: int, anchors: Array) -> Array:
    """Anchors [high, wide, anchors, 7]: centre, sizes, angle."""
    span = _floats(f, "point_cloud_range", 6)
    bottom = np.repeat(_floats(f, "anchor_bottom_height", len(anchors) // 2), 2)
    x = span[0] + np.arange(wide) * (span[3] - span[0]) / (wide - 1)
    y = span[1] + np.arange(high) * (span[4] - span[1]) / (high - 1)
    out = np.zeros((high, wide, len(anchors), 7), np.float32)
    out[..., 0], out[..., 1] = x[None, :, None], y[:, None, None]
    out[..., 2], out[..., 3:] = anchors[:, 2] / 2 + bottom, anchors
    return out


def _decode(g: Graph, inputs: Sequence[Value], f: Fields) -> Sequence[Value]:
    """Boxes (x, y, z, dx, dy, dz, angle, class, score) above a score, first those found first."""
    need(inputs, [(4,)] * 3, "scores [N, H, W, A * classes], offsets [N, H, W, A * 7] and "
         "directions [N, H, W, A * 2]")
    k = Kit(g)
    scores, offsets, directions = inputs
    anchors = f.many("anchors").astype(np.float32).reshape(-1, 4)
    count = len(anchors)
    high, wide, width = scores.dims[1:]
    if not isinstance(high, int) or not isinstance(wide, int) or not isinstance(width, int) or (
            width % count):
        raise ops.OpError(f"{scores!r} must have known sizes and a multiple of {count} (anchors) "
                          "channels")
    boxes = high * wide * count
    base = _centres(f, high, wide, anchors).reshape(boxes, 7)
    scores = k.op("activation", k.reshape(scores, 0, boxes, width // count), fn="sigmoid")
    best = k.reduce("max", scores, 2)
    label = k.op("argreduce", scores, fn="max", axis=2, keepdims=False, last=False)
    d = [k.squeeze(p, 2) for p in k.split(k.reshape(offsets, 0, boxes, 7))]
    a = [k.const(base[None, :, i]) for i in range(7)]
    diagonal = k.const(np.sqrt(base[None, :, 3] ** 2 + base[None, :, 4] ** 2))
    box = [k.add(k.mul(d[0], diagonal), a[0]), k.add(k.mul(d[1], diagonal), a[1]),
           k.add(k.mul(d[2], a[5]), a[2])]
    box += [k.mul(k.unary("exp", d[i]), a[i]) for i in (3, 4, 5)]
    turn = np.float32(f.one("dir_offset"))
    period = np.float32(2 * np.pi / float(f.one("num_dir_bins", 2)))
    angle = k.sub(k.add(d[6], a[6]), turn)
    whole = k.unary("floor", k.add(k.div(angle, period), np.float32(f.one("dir_limit_offset"))))
    first, second = k.split(k.reshape(directions, 0, boxes, 2))
    behind = k.cast(k.binary("le", k.squeeze(first, 2), k.squeeze(second, 2)), T.f32)
    box.append(k.add(k.add(k.sub(angle, k.mul(whole, period)), turn), k.mul(behind, period)))
    rows = k.join([k.unsqueeze(v, 2) for v in (*box, k.f32(label), best)], 2)
    valid = k.cast(k.binary("ge", best, np.float32(f.one("score_thresh"))), T.i64)
    place = k.sub(k.op("cumulative", valid, k.const(np.int64(1)), fn="sum", exclusive=False,
                       reverse=False), np.int64(1))
    place = k.where(k.binary("gt", valid, np.int64(0)), place, np.int64(boxes))
    image = k.expand(k.reshape(k.upto(k.size(rows, 0)), -1, 1, 1), k.size(rows, 0), boxes, 1)
    blank = k.full(0, np.float32, k.size(rows, 0), boxes + 1, 9)
    packed = k.op("scatter_nd", blank, k.join([image, k.unsqueeze(place, 2)], 2), rows,
                  reduction="none")
    return [k.part(packed, 1, 0, boxes), k.cast(k.reduce("sum", valid, 1), T.i32)]


def _voxel_shapes(g: Graph, inputs: Sequence[Value], f: Fields) -> Sequence[Value]:
    need(inputs, [(3,), (1,)], "points [N, M, 4 or 5] and counts [N]")
    if inputs[0].dims[2] not in (4, 5):
        raise ops.OpError(f"points {inputs[0]!r} must have 4 or 5 numbers each")
    k = Kit(g)
    n, most = k.size(inputs[0], 0), int(f.one("max_voxels"))
    shapes = ((most, int(f.one("max_num_points_per_voxel")), int(f.one("voxel_feature_num"))),
              (most, 4), ())
    return [k.full(0, t, n, *s) for t, s in zip((np.float32, np.int32, np.int32), shapes,
                                                strict=True)]


def _voxels(arrays: Sequence[Array], f: Fields) -> Sequence[Array]:
    """Pillars in the order of their places, with the points of each in the order given: values,
    distances from the pillar's mean and from its middle."""
    points, counts = arrays
    low, top = np.split(_floats(f, "point_cloud_range", 6), 2)
    size = _floats(f, "voxel_size", 3)
    most, each = int(f.one("max_voxels")), int(f.one("max_num_points_per_voxel"))
    width = int(f.one("voxel_feature_num"))
    n = len(points)
    grid = np.rint((top - low) / size).astype(int)
    out = np.zeros((n, most, each, width), np.float32)
    coords, found = np.zeros((n, most, 4), np.int32), np.zeros(n, np.int32)
    for b in range(n):
        p = points[b, :counts[b]]
        p = p[((p[:, :3] >= low) & (p[:, :3] < top)).all(1)]
        cell = np.floor((p[:, :2] - low[:2]) / size[:2]).astype(int)
        at = cell[:, 1] * grid[0] + cell[:, 0]
        pillars, inverse = np.unique(at, return_inverse=True)
        found[b] = min(len(pillars), most)
        for v in range(found[b]):
            mine = p[inverse == v][:each]
            y, x = divmod(int(pillars[v]), int(grid[0]))
            coords[b, v] = 0, 0, y, x
            middle = size / 2 + np.array([x, y, 0], np.float32) * size + low
            xyz = mine[:, :3]
            rows = np.concatenate([mine, xyz - xyz.mean(0), xyz - middle], 1)
            fit = min(width, rows.shape[1])
            out[b, v, :len(mine), :fit] = rows[:, :fit]
        # the frame's number stays 0, as the plugin's kernels leave it
    return [out, coords, found]


def _top(g: Graph, inputs: Sequence[Value], f: Fields) -> Sequence[Value]:
    k = Kit(g)
    (x,) = inputs
    values, at = ops.emit(g, "topk", [x, k.ints(int(f.one("k")))], sorted=True,
                          axis=int(f.one("axis", -1)) % x.rank,
                          largest=bool(f.one("is_largest"))).outputs
    return [values, k.cast(at, T.i32)]


KINDS.update({
    "PillarScatterPlugin": Kind(("dense_shape",), (F,), _scatter, inputs=(F, I, I)),
    "DecodeBbox3DPlugin": Kind(
        ("point_cloud_range", "anchors", "anchor_bottom_height", "dir_offset",
         "dir_limit_offset", "num_dir_bins", "score_thresh"), (F, I), _decode),
    "VoxelGeneratorPlugin": Kind(
        ("max_num_points_per_voxel", "max_voxels", "point_cloud_range", "voxel_feature_num",
         "voxel_size"), (F, I, I), _voxel_shapes, inputs=(F, I), compute=_voxels),
    "TopkLastDim": Kind(("type_id", "k", "is_largest", "axis"), (F, I), _top,
                        ignored=("type_id",)),
})  # fmt: skip
