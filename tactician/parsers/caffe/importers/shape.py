"""Layers that move elements without computing."""

from __future__ import annotations

import itertools

from ....ir import dims as D
from ....ir.graph import Value
from ..context import Context
from ..errors import LayerProblem
from ..node import CaffeLayer
from ..table import importer


@importer("Dropout", does="passes its bottom on")
def dropout(c: Context, n: CaffeLayer) -> Value:
    return n[0]


@importer("Split", does="passes its bottom on to each top")
def split(c: Context, n: CaffeLayer) -> list[Value]:
    return [n[0]] * len(n.tops)


@importer("Flatten", does="dimensions axis to end_axis as one")
def flatten(c: Context, n: CaffeLayer) -> Value:
    p = n.proto.flatten_param
    first, last = n.axis(p.axis), n.axis(p.end_axis, what="end_axis")
    if first > last:
        raise LayerProblem(f"axis {p.axis} comes behind end_axis {p.end_axis}")
    c.refuse_batch(first, "flattening")
    return c.flatten(n[0], first, last)


@importer("Reshape", does="other dimensions for the same elements",
          notes="0 copies a dimension, -1 is inferred; with implicit batch, the prototxt's batch "
                "size in front means the batch")
def reshape(c: Context, n: CaffeLayer) -> Value:
    p, x = n.proto.reshape_param, n[0]
    if not p.HasField("shape"):
        raise LayerProblem("reshape_param needs shape { dim: … }")
    start = p.axis if p.axis >= 0 else x.rank + p.axis + 1
    end = x.rank if p.num_axes == -1 else start + p.num_axes
    if not 0 <= start <= end <= x.rank:
        raise LayerProblem(f"axis {p.axis} and num_axes {p.num_axes} reach beyond the {x.rank} "
                           "dimensions of the bottom")
    want: list[D.DimLike] = list(x.dims[:start])
    for i, d in enumerate(p.shape.dim):
        batch = c.implicit and start + i == 0 and d == c.batch
        if d == 0 or batch:
            if start + i >= x.rank:
                raise LayerProblem(f"dim {i} of its shape is 0, but the bottom has no dimension "
                                   f"{start + i} to copy")
            want.append(x.dims[start + i])
        else:
            want.append(d)
    want += x.dims[end:]
    return c.reshape(x, _checked(x, want))


def _checked(x: Value, want: list[D.DimLike]) -> list[int]:
    """Target dimensions as numbers: 0 where run time's size is copied, -1 where it is inferred."""
    if any(isinstance(d, int) and d < -1 for d in want) or want.count(-1) > 1:
        raise LayerProblem(f"its shape {want} has a negative size, or more than one -1")
    if x.is_static:
        total = int(D.product(int(d) for d in x.dims))
        known = int(D.product(int(d) for d in want if d != -1))
        if (total % known if -1 in want else total != known) if known else total:
            raise LayerProblem(f"a blob of shape {list(x.dims)} can't have shape {want}: "
                               f"{total} elements")
        return [int(d) if d != -1 else total // known for d in want]
    out = []
    for i, d in enumerate(want):
        if isinstance(d, int):
            out.append(d)
        elif i < x.rank and x.dims[i] == d:
            out.append(0)
        elif -1 not in want and -1 not in out:
            out.append(-1)
        else:
            raise LayerProblem(f"shape {want} of a blob {list(x.dims)} can't be worked out "
                               "before run time")
    return out


@importer("Permute", does="dimensions in another order")
def permute(c: Context, n: CaffeLayer) -> Value:
    order = list(n.proto.permute_param.order)
    rank = n[0].rank
    if len(set(order)) != len(order) or any(d >= rank for d in order):
        raise LayerProblem(f"order {order} must name dimensions 0 to {rank - 1}, each once")
    order += [d for d in range(rank) if d not in order]
    if order[0] != 0:
        c.refuse_batch(0, "moving the batch")
    return c.transpose(n[0], order)


@importer("Concat", inputs=(1, None), does="blobs behind each other along axis")
def concat(c: Context, n: CaffeLayer) -> Value:
    p = n.proto.concat_param
    axis = n.axis(p.concat_dim if p.HasField("concat_dim") and not p.HasField("axis") else p.axis)
    c.refuse_batch(axis, "concatenation")
    for i, x in enumerate(n.bottoms):
        if x.rank != n[0].rank or any(a != b for k, (a, b) in enumerate(
                zip(x.dims, n[0].dims, strict=True)) if k != axis):
            raise LayerProblem(f"bottom {i} has shape {list(x.dims)}, bottom 0 {list(n[0].dims)}; "
                               f"they may differ only along axis {axis}")
    if len(n) == 1:
        return n[0]
    return c.layer("add_concatenation", *(), inputs=[c.network._tensor(v) for v in n.bottoms],
                   then={"axis": axis - int(c.implicit)})


@importer("Slice", does="parts along axis, at slice_point or equal ones")
def slice_layer(c: Context, n: CaffeLayer) -> list[Value]:
    p = n.proto.slice_param
    axis = n.axis(p.slice_dim if p.HasField("slice_dim") and not p.HasField("axis") else p.axis)
    c.refuse_batch(axis, "slicing")
    size, count = n.size(axis, "slicing"), len(n.tops)
    points = list(p.slice_point)
    if not points:
        if size % count:
            raise LayerProblem(f"dimension {axis} of size {size} can't be cut into {count} equal "
                               "parts; give slice_point")
        points = [size // count * i for i in range(1, count)]
    if len(points) != count - 1:
        raise LayerProblem(f"has {len(points)} slice_point for {count} tops; {count - 1} are "
                           "needed")
    edges = [0, *points, size]
    if any(a >= b for a, b in itertools.pairwise(edges)):
        raise LayerProblem(f"slice_point {points} must rise between 0 and {size}")
    return [c.cut(n[0], axis, a, b) for a, b in itertools.pairwise(edges)]


@importer("Tile", does="copies behind each other along axis")
def tile(c: Context, n: CaffeLayer) -> Value:
    p = n.proto.tile_param
    axis = n.axis(p.axis)
    c.refuse_batch(axis, "tiling")
    if p.tiles < 1:
        raise LayerProblem("tile_param needs tiles, at least 1")
    return c.op("tile", n[0], c.ints([p.tiles if i == axis else 1 for i in range(n[0].rank)]))


@importer("Crop", inputs=2, does="the part of the first bottom that has the second's size")
def crop(c: Context, n: CaffeLayer) -> Value:
    p, x, ref = n.proto.crop_param, n[0], n[1]
    axis = n.axis(p.axis)
    if ref.rank != x.rank:
        raise LayerProblem(f"its bottoms have {x.rank} and {ref.rank} dimensions; both need the "
                           "same number")
    offsets = list(p.offset) or [0]
    if len(offsets) not in (1, x.rank - axis):
        raise LayerProblem(f"has {len(offsets)} offsets; give one, or one for each of the "
                           f"{x.rank - axis} cropped dimensions")
    for k, i in enumerate(range(axis, x.rank)):
        start = offsets[k if len(offsets) > 1 else 0]
        have, want = n[0].dims[i], ref.dims[i]
        if have == want and not start:
            continue
        c.refuse_batch(i, "cropping")
        if not isinstance(have, int) or not isinstance(want, int):
            raise LayerProblem(f"dimension {i} is known only at run time; it can't be cropped")
        if start + want > have:
            raise LayerProblem(f"offset {start} and size {want} reach beyond dimension {i} of "
                               f"size {have}")
        x = c.cut(x, i, start, start + want)
    return x


@importer("ShuffleChannel", does="channels of groups interleaved")
def shuffle_channel(c: Context, n: CaffeLayer) -> Value:
    group, x = n.proto.shuffle_channel_param.group, n[0]
    channels = n.size(1, "group")
    if not group or channels % group:
        raise LayerProblem(f"{channels} channels can't be split into {group} groups")
    rest = [n.size(i, "shuffling") for i in range(2, x.rank)]
    y = c.reshape(x, [0, group, channels // group, *rest])
    y = c.transpose(y, [0, 2, 1, *range(3, x.rank + 1)])
    return c.reshape(y, [0, channels, *rest])
