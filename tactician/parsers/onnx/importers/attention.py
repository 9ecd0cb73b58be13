"""Attention."""

from __future__ import annotations

from ....ir import dtypes as T
from ....ir.graph import Value
from ..context import Context
from ..node import OnnxNode
from ..table import importer
from ..types import dtype_of


@importer("Attention", since=23)
def attention(c: Context, n: OnnxNode) -> list[Value]:
    operands = [n[0], n[1], n[2], n.get(3), n.get(4), n.get(5)]
    narrow = [v.dtype for v in (n[0], n[1], n[2])]
    precision = n.attr("softmax_precision", 0)
    if precision and dtype_of(precision) is T.f64:  # all of it in f64: at least as exact
        operands = [v if v is None or v.dtype is T.b1 else c.cast(v, T.f64) for v in operands]
    q, k, v, mask, past_k, past_v = operands
    assert q is not None
    if mask is not None and mask.dtype is not T.b1:
        mask = c.cast(mask, q.dtype)
    lens = n.get(6)
    heads = (n.attr("q_num_heads", 0), n.attr("kv_num_heads", 0))
    outputs = c.ops(
        "attention", q, k, v, mask, past_k, past_v, None if lens is None else c.index(lens),
        scale=n.attr("scale", None), causal=n.flag("is_causal"), softcap=n.attr("softcap", 0.0),
        left=n.attr("left_window_size", -1), right=n.attr("right_window_size", -1),
        q_heads=heads[0] if q.rank == 3 else 0, kv_heads=heads[1] if q.rank == 3 else 0,
        outputs=4 if n.wants(3) else 3 if n.wants(1) or n.wants(2) else 1,
        scores=n.attr("qk_matmul_output_mode", 0))
    types = [narrow[0], narrow[1], narrow[2], narrow[0]]
    return [c.cast(y, dt) for y, dt in zip(outputs, types, strict=False)]
