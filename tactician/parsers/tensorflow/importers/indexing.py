"""Gathering, scattering, sorting, selecting boxes."""

from __future__ import annotations

from typing import Any

import numpy as np

from ....ir import dtypes as T
from ....ir.graph import Value
from ...onnx.errors import Unsupported
from ..context import Context, axis_of, require_ints
from ..node import TfNode
from ..table import importer


@importer("Gather", "ResourceGather")
def gather(c: Context, n: TfNode) -> Value:
    return c.op("gather", n[0], c.index(n[1]), axis=0)


@importer("GatherV2")
def gather_v2(c: Context, n: TfNode) -> Value:
    axis = axis_of(int(require_ints(n[2], "the axis").item()), n[0].rank)
    batch = n.attr("batch_dims", 0)
    return c.op("gather", n[0], c.index(n[1]), axis=axis,
                batch_dims=batch + n[1].rank if batch < 0 else batch)


@importer("GatherNd")
def gather_nd(c: Context, n: TfNode) -> Value:
    return c.op("gather_nd", n[0], c.index(n[1]))


@importer("ScatterNd")
def scatter_nd(c: Context, n: TfNode) -> Value:
    base = c.expand_new(c.like(0, n[1]), c.index(n[2]))
    return c.op("scatter_nd", base, c.index(n[0]), n[1], reduction="add")


_SCATTERS = {"TensorScatterUpdate": "none", "TensorScatterAdd": "add", "TensorScatterMax": "max",
             "TensorScatterMin": "min"}


@importer(*_SCATTERS)
def tensor_scatter(c: Context, n: TfNode) -> Value:
    return c.op("scatter_nd", n[0], c.index(n[1]), n[2], reduction=_SCATTERS[n.op])


@importer("OneHot")
def one_hot(c: Context, n: TfNode) -> Value:
    """TensorFlow's indices outside of the range give no 1 at all, so positions are compared."""
    idx, depth = c.index(n[0]), int(require_ints(n[1], "the depth").item())
    axis = axis_of(n.attr("axis", -1), idx.rank + 1)
    places = c.const(np.arange(depth).reshape([depth if k == axis else 1
                                               for k in range(idx.rank + 1)]), T.i64)
    hit = c.binary("eq", c.unsqueeze(idx, [axis]), places)
    return c.select(hit, n[2], n[3])


@importer("TopKV2", "TopK", outputs="values indices")
def top_k(c: Context, n: TfNode) -> list[Value]:
    x = n[0]
    k = c.scalar(c.index(n[1])) if len(n) > 1 else c.const(n.attr("k"), T.i64)
    values, where = c.ops("topk", x, c.reshape(k, (1,)), axis=x.rank - 1, largest=True,
                          sorted=n.attr("sorted", True))
    return [values, c.cast(where, n.dtype("index_type", T.i32))]


@importer("Where")
def where(c: Context, n: TfNode) -> Value:
    return c.transpose(c.op("non_zero", n[0]), (1, 0))


@importer("InvertPermutation")
def invert_permutation(c: Context, n: TfNode) -> Value:
    perm = require_ints(n[0], "the permutation").astype(np.int64)
    return c.const(np.argsort(perm), n[0].dtype)


_NMS = {"NonMaxSuppression": 1, "NonMaxSuppressionV2": 2, "NonMaxSuppressionV3": 3}


def _nms(c: Context, n: TfNode, version: int) -> Value:
    boxes, scores, most = n[0], n[1], n[2]
    iou = c.const(n.attr("iou_threshold", 0.5), T.f32) if version == 1 else c.scalar(n[3])
    least = c.scalar(n[4]) if version >= 3 else None
    picked = c.op("nms", c.unsqueeze(boxes, [0]), c.unsqueeze(scores, [0, 1]),
                  c.scalar(c.index(most)), iou, least)
    return c.squeeze(c.cut(picked, 1, 2, 3), [1])


@importer(*_NMS)
def nms(c: Context, n: TfNode) -> Value:
    return c.cast(_nms(c, n, _NMS[n.op]), T.i32)


def _padded(c: Context, n: TfNode, picked: Value) -> tuple[Value, Value]:
    """Indices, filled up with zeros if the node says so, and how many there are."""
    count = c.cast(c.scalar(c.shape_of(picked, [0])), T.i32)
    if n.attr("pad_to_max_output_size", False):
        missing = c.sub(c.vector(n[2]), c.shape_of(picked, [0]))
        picked = c.op("pad", picked, c.concat([c.ints([0]), missing]), mode="constant")
    return picked, count


@importer("NonMaxSuppressionV4", outputs="selected_indices valid_outputs")
def nms_v4(c: Context, n: TfNode) -> list[Value]:
    picked, count = _padded(c, n, _nms(c, n, 4))
    return [c.cast(picked, T.i32), count]


@importer("NonMaxSuppressionV5", outputs="selected_indices selected_scores valid_outputs",
          note="without soft NMS")
def nms_v5(c: Context, n: TfNode) -> list[Value]:
    sigma = n[5].const
    if sigma is None or float(sigma) != 0.0:
        raise Unsupported("soft_nms_sigma must be the constant 0: soft NMS is not supported")
    found = _nms(c, n, 5)
    scores: Any = c.op("gather", n[1], found, axis=0)
    picked, count = _padded(c, n, found)
    if picked is not found:
        missing = c.sub(c.shape_of(picked, [0]), c.shape_of(found, [0]))
        scores = c.op("pad", scores, c.concat([c.ints([0]), missing]), mode="constant")
    return [c.cast(picked, T.i32), scores, count]
