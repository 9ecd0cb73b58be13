"""Packed sequences: the tokens of several sequences one after the other, without padding.

Attention on them is attention of one long sequence in which queries see the keys of their own
sequence only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...ir import dims as D
from ...ir import dtypes as T
from ...ir.graph import Value
from ...ops import OpError
from ..enums import AttentionIOForm, CausalMaskKind
from ..layer import Emitter

_PACKED = AttentionIOForm.PACKED_NHD


def per_batch(e: Emitter, x: Value) -> Value:
    """Integers [batch] as [batch, 1, 1, 1]."""
    return e.value("reshape", e.value("cast", x, to=T.i64), e.ints([-1, 1, 1, 1]),
                   zero_copies=False)


def length_of(e: Emitter, x: Value, axis: int) -> Value:
    """The size of a dimension, as a scalar."""
    size = e.value("gather", e.value("shape", x), e.ints([axis]), axis=0, batch_dims=0)
    return e.value("reshape", size, e.const(np.zeros(0, np.int64)), zero_copies=False)


def upto(e: Emitter, count: Value) -> Value:
    """0, 1, 2 … before a scalar."""
    return e.value("range", e.const(np.zeros((), np.int64)), count,
                   e.const(np.ones((), np.int64)))


def counting(e: Emitter, x: Value, axis: int) -> Value:
    """0, 1, 2 … up to the size of a dimension."""
    return upto(e, length_of(e, x, axis))


def _binary(e: Emitter, fn: str, a: Value, b: Value) -> Value:
    return e.value("binary", a, b, fn=fn)


def _gather(e: Emitter, x: Value, at: Value, axis: int = 0) -> Value:
    return e.value("gather", x, at, axis=axis, batch_dims=0)


def _column(e: Emitter, x: Value) -> Value:
    return e.value("unsqueeze", x, e.ints([1]))


def _row(e: Emitter, x: Value) -> Value:
    return e.value("unsqueeze", x, e.ints([0]))


def _between(e: Emitter, x: Value, last: Value) -> Value:
    """Integers brought between 0 and ``last - 1``."""
    top = _binary(e, "sub", last, e.const(np.ones((), np.int64)))
    return _binary(e, "max", _binary(e, "min", x, top), e.const(np.zeros((), np.int64)))


def running(e: Emitter, lengths: Value | None, what: str) -> tuple[Value, Value, Value]:
    """Where packed sequences begin, where they end, and how long they are; i64 [sequences] each.

    Args:
        e: Adds nodes.
        lengths: Running sum of the lengths [sequences + 1].
        what: The attribute that gives them.
    """
    if lengths is None or lengths.rank != 1 or not lengths.dtype.is_int:
        raise OpError(f"the form PACKED_NHD needs {what}, the running sum of the sequences' "
                      f"lengths as INT32 [sequences + 1]; got {lengths!r}")
    wide, one = e.value("cast", lengths, to=T.i64), e.ints([1])
    begins, ends = (e.value("strided_slice", wide, e.ints([a]), e.ints([b]), e.ints([0]), one)
                    for a, b in ((0, -1), (1, 2**31 - 1)))
    return begins, ends, _binary(e, "sub", ends, begins)


@dataclass(frozen=True)
class Tokens:
    """Queries, or keys and values, as those of one sequence.

    Attributes:
        form: How they came.
        source: Queries or keys as they came.
        number: Which sequence a token belongs to; beyond all of them: their count. i64 [tokens].
        safe: The same, but never beyond.
        place: Its place in its sequence, i64 [tokens].
        valid: Whether it is no padding, b1 [tokens].
        lengths: Tokens of each sequence, i64 [sequences].
    """

    form: AttentionIOForm
    source: Value
    number: Value
    safe: Value
    place: Value
    valid: Value
    lengths: Value

    def joined(self, e: Emitter, x: Value) -> Value:
        """``x``, which has the form of the source, as [1, heads, tokens, size]."""
        if self.form is _PACKED:
            return _row(e, e.value("transpose", x, perm=(1, 0, 2)))
        heads, size = x.dims[1], x.dims[3]
        if not D.is_static(heads, size):
            raise OpError(f"heads and head size of {x!r} must be known where sequences are packed")
        turned = e.value("transpose", x, perm=(1, 0, 2, 3))
        return e.value("reshape", turned, e.ints([1, int(heads), -1, int(size)]),
                       zero_copies=False)

    def parted(self, e: Emitter, y: Value) -> Value:
        """[1, heads, tokens, size] in the form of the source."""
        if self.form is _PACKED:
            return e.value("transpose", e.value("squeeze", y, e.ints([0])), perm=(1, 0, 2))
        shape = e.value("shape", self.source)
        sizes = [_gather(e, shape, e.ints([i])) for i in (1, 0, 2)]
        target = e.value("concat", *sizes, e.ints([-1]), axis=0)
        parts = e.value("reshape", y, target, zero_copies=False)
        return e.value("transpose", parts, perm=(1, 0, 2, 3))


def tokens(e: Emitter, x: Value, form: AttentionIOForm, lengths: Value | None,
           what: str) -> Tokens:
    """Where the tokens of queries or keys belong.

    Args:
        e: Adds nodes.
        x: Queries or keys.
        form: Their form.
        lengths: Running lengths where packed, else lengths of each sequence or None.
        what: The attribute that gives the lengths.

    Raises:
        OpError: If shapes don't fit.
    """
    rank = 3 if form is _PACKED else 4
    if x.rank != rank:
        raise OpError(f"the form {form.name} needs "
                      f"{'[tokens, heads, size]' if rank == 3 else '[batch, heads, length, size]'}"
                      f", got {x!r}")
    if form is _PACKED:
        begins, ends, sizes = running(e, lengths, what)
        at = counting(e, x, 0)
        past = e.value("cast", _binary(e, "ge", _column(e, at), _row(e, ends)), to=T.i64)
        number = e.value("reduce", past, fn="sum", axes=(1,), keepdims=False)
        count = length_of(e, ends, 0)
        safe = _between(e, number, count)
        place = _binary(e, "sub", at, _gather(e, begins, safe))
        return Tokens(form, x, number, safe, place, _binary(e, "lt", number, count), sizes)
    batch, length = length_of(e, x, 0), length_of(e, x, 2)
    at = upto(e, _binary(e, "mul", batch, length))
    number = _binary(e, "floordiv", at, length)
    place = _binary(e, "sub", at, _binary(e, "mul", number, length))
    if lengths is None:
        one = e.value("reshape", batch, e.ints([1]), zero_copies=False)
        sizes = e.value("expand", length, one)
    else:
        sizes = e.value("reshape", e.value("cast", lengths, to=T.i64), e.ints([-1]),
                        zero_copies=False)
    valid = _binary(e, "lt", place, _gather(e, sizes, number))
    return Tokens(form, x, number, number, place, valid, sizes)


def mask_of(e: Emitter, q: Tokens, k: Tokens, kind: CausalMaskKind, given: Value | None) -> Value:
    """Which keys queries see, or what is added to the scores: [1, 1 or heads, queries, keys].

    Args:
        e: Adds nodes.
        q: The queries.
        k: The keys.
        kind: How a causal mask is aligned within a sequence.
        given: A mask [1 or sequences, 1 or heads, queries, keys] by places within the sequences.
    """
    seen = _binary(e, "and", _binary(e, "eq", _column(e, q.number), _row(e, k.number)),
                   _row(e, k.valid))
    if kind is not CausalMaskKind.NONE:
        last = q.place
        if kind is CausalMaskKind.LOWER_RIGHT:
            apart = _binary(e, "sub", k.lengths, q.lengths)
            last = _binary(e, "add", last, _gather(e, apart, q.safe))
        seen = _binary(e, "and", seen, _binary(e, "le", _row(e, k.place), _column(e, last)))
    seen = e.value("unsqueeze", seen, e.ints([0, 1]))
    return both(e, seen, None if given is None else _spread(e, q, k, given))


def before(e: Emitter, q: Value, k: Value) -> Value:
    """Which keys [batch, heads, length, size] stand at or before queries: [queries, keys]."""
    return _binary(e, "le", _row(e, counting(e, k, 2)), _column(e, counting(e, q, 2)))


def both(e: Emitter, seen: Value, mask: Value | None) -> Value:
    """What ``seen`` and a mask, boolean or added, both let queries see."""
    if mask is None:
        return seen
    if mask.dtype.kind == "b":
        return _binary(e, "and", seen, mask)
    return e.value("select", seen, mask, e.const(np.asarray(-np.inf, mask.dtype.np)))


def _spread(e: Emitter, q: Tokens, k: Tokens, mask: Value) -> Value:
    """A mask by places within sequences for all pairs of tokens: [1, 1 or heads, queries, keys]."""
    if mask.rank != 4:
        raise OpError(f"a mask of packed sequences must be [1 or batch, 1 or heads, queries, "
                      f"keys], by places within the sequences; got {mask!r}")
    turned = e.value("transpose", mask, perm=(1, 0, 2, 3))
    flat = e.value("reshape", turned, e.ints([0, -1]), zero_copies=True)
    rows, columns = length_of(e, mask, 2), length_of(e, mask, 3)

    def inside(place: Value, axis: int, size: Value) -> Value | None:
        return None if mask.dims[axis] == 1 else _between(e, place, size)

    row, column = inside(q.place, 2, rows), inside(k.place, 3, columns)
    first = None if mask.dims[0] == 1 else _binary(e, "mul", q.safe, rows)
    lines = _sum(e, [first, row])
    zero = e.const(np.zeros((), np.int64))
    lines = _binary(e, "mul", q.safe, zero) if lines is None else lines
    column = _binary(e, "mul", k.safe, zero) if column is None else column
    at = _binary(e, "add", _column(e, _binary(e, "mul", lines, columns)), _row(e, column))
    return _row(e, _gather(e, flat, at, axis=1))


def _sum(e: Emitter, parts: Sequence[Value | None]) -> Value | None:
    found = [p for p in parts if p is not None]
    return None if not found else found[0] if len(found) == 1 else _binary(e, "add", *found)


def write_packed(e: Emitter, cache: Value, new: Value, start: Value,
                 lengths: Value | None) -> Value:
    """A cache [sequences, heads, length, size] in which packed tokens [tokens, heads, size] take
    the places from ``start`` [sequences] on.

    Raises:
        OpError: If shapes don't fit.
    """
    if cache.rank != 4 or new.rank != 3 or start.rank != 1:
        raise OpError(f"the form PACKED_NHD needs a cache [batch, heads, length, size], an update "
                      f"[tokens, heads, size] and indices [batch], got {cache!r}, {new!r}, "
                      f"{start!r}")
    begins, _, sizes = running(e, lengths, "update_lengths")
    ahead = _binary(e, "sub", _row(e, counting(e, cache, 2)),
                    _column(e, e.value("cast", start, to=T.i64)))
    covered = _binary(e, "and", _binary(e, "ge", ahead, e.const(np.zeros((), np.int64))),
                      _binary(e, "lt", ahead, _column(e, sizes)))
    source = _between(e, _binary(e, "add", ahead, _column(e, begins)), length_of(e, new, 0))
    moved = e.value("transpose", _gather(e, new, source), perm=(0, 2, 1, 3))
    return e.value("select", e.value("unsqueeze", covered, e.ints([1, 3])), moved, cache)
