"""Counting n-grams of integers."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..ir import dtypes as T
from ..ir.graph import Node, TensorType
from .registry import Kind, Op, OpError, register


@dataclass(frozen=True, eq=False)
class TfIdfAttrs:
    """ONNX's TfIdfVectorizer.

    Attributes:
        mode: TF (counts), IDF (weight where the n-gram occurs) or TFIDF (counts times weight).
        min_length, max_length: Lengths of n-grams that count.
        max_skip: Largest number of elements skipped between two of an n-gram.
        counts: Where the n-grams of each length begin in ``ngrams``.
        indexes: Output position of each n-gram.
        ngrams: All n-grams, one after the other, by length.
        weights: One per n-gram, for IDF and TFIDF; empty: 1.
    """

    mode: str = "TF"
    min_length: int = 1
    max_length: int = 1
    max_skip: int = 0
    counts: tuple[int, ...] = ()
    indexes: tuple[int, ...] = ()
    ngrams: np.ndarray[Any, Any] = field(default_factory=lambda: np.zeros(0, np.int64))
    weights: tuple[float, ...] = ()


def _pool(a: TfIdfAttrs) -> dict[tuple[int, ...], int]:
    """Number of each n-gram in the order of the pool."""
    pool: dict[tuple[int, ...], int] = {}
    bounds = [*a.counts, len(a.ngrams)]
    for length, (start, end) in enumerate(itertools.pairwise(bounds), start=1):
        for at in range(start, end, length):
            pool[tuple(int(v) for v in a.ngrams[at : at + length])] = len(pool)
    return pool


@register
class TfIdf(Op):
    """Vector of n-gram counts of an integer sequence (or of each row of a matrix)."""

    name = "tf_idf"
    kind = Kind.OPAQUE
    Attrs = TfIdfAttrs

    def infer(self, node: Node) -> Sequence[TensorType]:
        (x,), a = node.present_inputs(), node.attrs
        if not x.dtype.is_int or x.rank not in (1, 2):
            raise OpError(f"needs integers of rank 1 or 2, not {x}")
        if a.mode not in ("TF", "IDF", "TFIDF"):
            raise OpError(f"mode is {a.mode!r}; expected TF, IDF or TFIDF")
        return [TensorType(T.f32, (*x.dims[:-1], max(a.indexes, default=-1) + 1))]

    def reference(self, node: Node, *inputs: Any) -> Any:
        x, a = inputs[0], node.attrs
        pool = _pool(a)
        width = max(a.indexes, default=-1) + 1
        rows = [self._row(r, a, pool, width) for r in np.atleast_2d(x)]
        return np.stack(rows).reshape(*x.shape[:-1], width) if rows else np.zeros((0, width))

    def _row(self, row: Any, a: TfIdfAttrs, pool: dict[tuple[int, ...], int], width: int) -> Any:
        found: Counter[int] = Counter()
        for length in range(a.min_length, a.max_length + 1):
            for skip in range(a.max_skip + 1 if length > 1 else 1):
                reach = (length - 1) * (skip + 1)
                for at in range(len(row) - reach):
                    gram = tuple(int(v) for v in row[at : at + reach + 1 : skip + 1])
                    if gram in pool:
                        found[pool[gram]] += 1
        out = np.zeros(width, np.float32)
        for k, count in found.items():
            weight = a.weights[k] if a.weights else 1.0
            out[a.indexes[k]] = {"TF": count, "IDF": weight, "TFIDF": count * weight}[a.mode]
        return out
