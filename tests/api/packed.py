"""Attention of packed sequences, one sequence at a time, in numpy."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

Q_LENS, K_LENS = (3, 1, 4), (5, 2, 4)
HEADS, GROUPS, SIZE = 4, 2, 8


def ends(lengths: Any) -> Any:
    """Running sum of lengths, as the API takes them."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


def alone(q: Any, k: Any, v: Any, seen: Any, add: Any) -> Any:
    """[heads, length, size] of one sequence; heads of q share those of k."""
    repeats = q.shape[0] // k.shape[0]
    k, v = np.repeat(k, repeats, 0).astype(float), np.repeat(v, repeats, 0)
    s = np.where(seen, q.astype(float) @ k.swapaxes(1, 2) + add, -np.inf)
    top = s.max(-1, keepdims=True)
    e = np.exp(s - np.where(np.isneginf(top), 0, top))  # a row that sees no key is 0
    return e / np.maximum(e.sum(-1, keepdims=True), 1e-30) @ v


def sequences(x: Any, lengths: Any, packed: bool) -> list[Any]:
    """Each sequence's tokens [heads, length, size] of a tensor in either form."""
    if packed:
        return [x[a:b].swapaxes(0, 1) for a, b in pairwise(ends(lengths))]
    return [x[i, :, :n] for i, n in enumerate(lengths)]


def wanted(q: Any, k: Any, v: Any, q_lens: Any, k_lens: Any, forms: tuple[bool, bool],
           shift: Any = None, mask: Any = None) -> list[Any]:
    """The attention of each sequence, [heads, length, size].

    Args:
        shift: From the lengths: how much further than its own place a query sees; None: all.
        mask: Boolean, or added, [1 or sequences, 1 or heads, queries, keys].
    """
    out = []
    triples = zip(sequences(q, q_lens, forms[0]), sequences(k, k_lens, forms[1]),
                  sequences(v, k_lens, forms[1]), strict=True)
    for i, (a, b, c) in enumerate(triples):
        rows, columns = np.arange(a.shape[1])[:, None], np.arange(b.shape[1])
        seen = np.ones((1, len(rows), len(columns)), bool)
        if shift is not None:
            seen = seen & (columns <= rows + shift(len(rows), len(columns)))
        add = 0.0
        if mask is not None:
            own = mask[min(i, len(mask) - 1)][:, :len(rows), :len(columns)]
            seen, add = (seen & own, 0.0) if mask.dtype == bool else (seen, own)
        out.append(alone(a, b, c, seen, add))
    return out
