"""Sequences whose length is known while parsing: they become lists and leave no trace."""

from __future__ import annotations

from typing import Any

from ....ir.graph import Value
from ..context import Context, axis_of, require_ints
from ..errors import NodeProblem
from ..node import OnnxNode
from ..table import importer
from .tensor import _split

_NOTE = "length known while parsing; not as input or output of the model"


def _items(n: OnnxNode) -> list[Value]:
    items: Any = n[0]
    if not isinstance(items, list):
        raise NodeProblem("its input is no sequence")
    return items


def _position(n: OnnxNode, i: int, length: int) -> int:
    at = require_ints(n[i], "position").reshape(-1)[0]
    if not isinstance(at, int) or not -length <= at < max(length, 1):
        raise NodeProblem(f"position {at} is out of range for a sequence of {length}")
    return at + length if at < 0 else at


@importer("SequenceConstruct", since=11, note=_NOTE)
def construct(c: Context, n: OnnxNode) -> Any:
    return [n.present()]


@importer("SequenceEmpty", since=11, note=_NOTE)
def empty(c: Context, n: OnnxNode) -> Any:
    n.ignore("dtype")
    return [[]]


@importer("SequenceAt", since=11, note=_NOTE)
def at(c: Context, n: OnnxNode) -> Value:
    items = _items(n)
    return c.op("identity", items[_position(n, 1, len(items))])


@importer("SequenceLength", since=11, note=_NOTE)
def length(c: Context, n: OnnxNode) -> Value:
    return c.const(len(_items(n)), c.named("i64"))


@importer("SequenceInsert", since=11, note=_NOTE)
def insert(c: Context, n: OnnxNode) -> Any:
    items = list(_items(n))
    where = len(items)
    if n.has(2):
        where = int(require_ints(n[2], "position").reshape(-1)[0])
        where = where + len(items) if where < 0 else where
        if not 0 <= where <= len(items):
            raise NodeProblem(f"position {where} is out of range for a sequence of {len(items)}")
    items.insert(where, n[1])
    return [items]


@importer("SequenceErase", since=11, note=_NOTE)
def erase(c: Context, n: OnnxNode) -> Any:
    items = list(_items(n))
    del items[_position(n, 1, len(items)) if n.has(1) else -1]
    return [items]


@importer("SplitToSequence", since=11, note=_NOTE)
def split_to_sequence(c: Context, n: OnnxNode) -> Any:
    x = n[0]
    axis = axis_of(n.attr("axis", 0), x.rank)
    extent = x.dims[axis]
    if not isinstance(extent, int):
        raise NodeProblem(f"axis {axis} has the symbolic extent {extent}, so the length of the "
                          "sequence is unknown", "UNSUPPORTED_NODE_DYNAMIC")
    keep = n.flag("keepdims", True)
    if not n.has(1):
        parts = _split(c, x, axis, [1] * extent)
        return [parts if keep else [c.squeeze(p, [axis]) for p in parts]]
    given = require_ints(n[1], "split")
    sizes = [int(s) for s in given.flat]
    if given.ndim == 0:
        sizes = [min(sizes[0], extent - i) for i in range(0, extent, sizes[0])]
    return [_split(c, x, axis, sizes)]


@importer("ConcatFromSequence", since=11, note=_NOTE)
def concat_from_sequence(c: Context, n: OnnxNode) -> Value:
    items = _items(n)
    if not items:
        raise NodeProblem("concatenates an empty sequence")
    new = n.flag("new_axis")
    axis = axis_of(n.attr("axis"), items[0].rank + new)
    if new:
        items = [c.unsqueeze(v, [axis]) for v in items]
    return c.op("concat", *items, axis=axis)


@importer("OptionalHasElement", since=15, note="of tensors and sequences known while parsing")
def has_element(c: Context, n: OnnxNode) -> Value:
    return c.const(n.has(0))


@importer("OptionalGetElement", since=15, note="of tensors and sequences known while parsing")
def get_element(c: Context, n: OnnxNode) -> Any:
    item: Any = n[0]
    return [item] if isinstance(item, list) else c.op("identity", item)
