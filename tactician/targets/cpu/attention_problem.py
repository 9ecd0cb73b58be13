"""Attention nodes as kernels see them: what they compute, and which are taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from llvmlite import ir

from ...ir import dims as D
from ...ir.dims import DimLike
from ...ir.graph import Node, Value
from ...regions.heads import Heads, attention_operands
from ...regions.region import Region
from .codegen import Gen, Num

LOG2E = 1.44269504
_LARGEST_HEAD = 512


@dataclass(frozen=True)
class Problem:
    """The numbers of an attention node without past keys."""

    node: Node
    q: Heads
    k: Heads
    v: Heads
    y: Heads
    mask: Value | None

    @staticmethod
    def of(node: Node) -> Problem:
        mask = node.inputs[3] if len(node.inputs) > 3 else None
        return Problem(node, *attention_operands(node), mask)

    @property
    def size(self) -> int:
        return int(self.q.size)  # type: ignore[arg-type]

    @property
    def v_size(self) -> int:
        return int(self.v.size)  # type: ignore[arg-type]

    @property
    def mask_moves(self) -> bool:
        """Whether the mask is different from query to query."""
        m = self.mask
        return m is not None and m.rank >= 2 and m.dims[-2] != 1

    @property
    def scale(self) -> float:
        scale = self.node.attrs.scale
        return float(1 / np.sqrt(self.size) if scale is None else scale)


def unsuited(region: Region, dtypes: Sequence[str]) -> str | None:
    """Why a region is no attention that blocks of queries and keys can do, or None.

    Args:
        dtypes: Names of the element types that are taken.
    """
    node = region.anchor
    if node is None or node.op != "attention":
        return "not attention"
    if region.stages or len(node.outputs) != 1 or not node.attrs.normalize:
        return "only the plain result can be had"
    if any(v is not None for v in node.inputs[4:]):
        return "past keys and lengths are not taken in"
    p = Problem.of(node)
    q, out = node.inputs[0], node.outputs[0]
    assert q is not None
    if q.dtype.name not in dtypes or out.dtype is not q.dtype:
        return f"no attention of {q.dtype}"
    sizes = (p.q.size, p.v.size, p.q.heads, p.k.heads)
    if not D.is_static(*sizes) or max(p.size, p.v_size) > _LARGEST_HEAD or 0 in sizes:
        return f"heads of {p.q.size} and {p.v.size} elements"
    if D.is_static(p.q.length) and int(p.q.length) <= 2:  # type: ignore[arg-type]
        return "so few queries are products of matrices and vectors"
    if any(d == 0 for d in (p.q.batch, p.q.length, p.k.length)):
        return "an extent is zero"
    return _refuse_mask(p)


def _refuse_mask(p: Problem) -> str | None:
    m = p.mask
    if m is None:
        return None
    if m.rank > 4 or m.dtype.name not in ("b1", "f32", "f16", "bf16"):
        return f"a mask of {m.dtype} and rank {m.rank}"
    full = (p.q.batch, p.q.heads, p.q.length, p.k.length)[4 - m.rank :]
    if m.dims[-1] != full[-1]:
        return "the mask is shorter than the keys"
    if any(d not in (1, f) for d, f in zip(m.dims[:-1], full[:-1], strict=True)):
        return "the mask's broadcasting is known only at run time"
    return None


def mask_rows(g: Gen, m: Value, pointer: ir.Value, batch: Num, head: Num) -> ir.Value:
    """Address of a mask's rows for one batch entry and head."""
    stride: DimLike = m.dims[-1] * (m.dims[-2] if m.rank >= 2 else 1)
    terms: list[tuple[Num, Num]] = []
    for d, index in zip(reversed(m.dims[:-2]), (head, batch), strict=False):
        if d != 1:
            terms.append((index, g.size(stride)))
        stride = stride * d
    return g.at(pointer, g.linear(terms), m.dtype.size)
