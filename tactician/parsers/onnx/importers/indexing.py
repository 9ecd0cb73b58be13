"""Gather, scatter and the like."""

from __future__ import annotations

import numpy as np

from ....ir import dtypes as T
from ....ir.graph import Value
from ..context import Context, axis_of
from ..errors import NodeProblem
from ..node import OnnxNode
from ..table import importer

_REDUCTIONS = ("none", "add", "mul", "min", "max")


def _reduction(n: OnnxNode) -> str:
    fn = n.attr("reduction", "none")
    if fn not in _REDUCTIONS:
        raise NodeProblem(f"reduction is {fn!r}; expected one of {', '.join(_REDUCTIONS)}")
    return fn


@importer("Gather")
def gather(c: Context, n: OnnxNode) -> Value:
    return c.op("gather", n[0], n[1], axis=axis_of(n.attr("axis", 0), n[0].rank))


@importer("GatherElements", since=11)
def gather_elements(c: Context, n: OnnxNode) -> Value:
    return c.op("gather_elements", n[0], n[1], axis=axis_of(n.attr("axis", 0), n[0].rank))


@importer("GatherND", since=11)
def gather_nd(c: Context, n: OnnxNode) -> Value:
    return c.op("gather_nd", n[0], n[1], batch_dims=n.attr("batch_dims", 0))


@importer("ScatterElements", since=11)
@importer("Scatter", since=9, until=10)
def scatter_elements(c: Context, n: OnnxNode) -> Value:
    return c.op("scatter_elements", n[0], n[1], n[2],
                axis=axis_of(n.attr("axis", 0), n[0].rank), reduction=_reduction(n))


@importer("ScatterND", since=11)
def scatter_nd(c: Context, n: OnnxNode) -> Value:
    return c.op("scatter_nd", n[0], n[1], n[2], reduction=_reduction(n))


@importer("OneHot", since=9)
def one_hot(c: Context, n: OnnxNode) -> Value:
    return c.op("one_hot", c.index(n[0]), c.index(n[1]), n[2],
                axis=axis_of(n.attr("axis", -1), n[0].rank + 1))


@importer("Compress", since=9)
def compress(c: Context, n: OnnxNode) -> Value:
    axis = n.attr("axis", None)
    return c.op("compress", n[0], n[1],
                axis=None if axis is None else axis_of(axis, n[0].rank))


@importer("TensorScatter", since=24)
def tensor_scatter(c: Context, n: OnnxNode) -> Value:
    """Writes ``update`` into ``past`` along an axis, from a start per batch item on."""
    past, update = n[0], n[1]
    mode = n.attr("mode", "linear")
    axis = axis_of(n.attr("axis", -2), past.rank)
    if axis == 0:
        raise NodeProblem("axis 0 is the batch; the sequence axis must be another one")
    if mode not in ("linear", "circular"):
        raise NodeProblem(f"mode is {mode!r}; expected linear or circular")
    length = c.shape_of(update, [axis])
    steps = c.op("range", c.const(0, T.i64), c.scalar(length), c.const(1, T.i64))
    shape = [1] * past.rank
    shape[axis] = -1
    where = c.reshape(steps, shape)
    if n.has(2):
        start = [1] * past.rank
        start[0] = -1
        where = c.add(where, c.reshape(c.index(n[2]), start))
    if mode == "circular":
        where = c.binary("mod", where, c.scalar(c.shape_of(past, [axis])))
    index = c.expand(where, c.shape(update))
    return c.op("scatter_elements", past, index, update, axis=axis, reduction="none")


@importer("TfIdfVectorizer", since=9, note="integer inputs only")
def tf_idf(c: Context, n: OnnxNode) -> Value:
    if not n[0].dtype.is_int:
        raise NodeProblem("TfIdfVectorizer of strings is not supported")
    ngrams = np.asarray(n.attr("pool_int64s"), np.int64)
    return c.op("tf_idf", n[0], mode=n.attr("mode"), min_length=n.attr("min_gram_length"),
                max_length=n.attr("max_gram_length"), max_skip=n.attr("max_skip_count"),
                counts=n.ints("ngram_counts"), indexes=n.ints("ngram_indexes"), ngrams=ngrams,
                weights=tuple(n.attr("weights", ())))
