"""Tactic: fused attention through cuDNN."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ...regions.heads import Heads, attention_operands
from ...regions.region import Region
from ...tactics.kernel import Kernel, Launch
from ...tactics.tactic import Tactic, register_tactic
from . import cudnn_call, libraries
from .cudnn_graph import GraphSpec
from .patterns import NotCovered, static

_OLDEST = 91300  # first cuDNN whose attention is one operation


def _check(region: Region) -> None:
    node = region.anchor
    if node is None or node.op != "attention":
        raise NotCovered("not attention")
    a = node.attrs
    if region.stages or len(region.outputs) != 1 or a.outputs != 1:
        raise NotCovered("has more than the attention's result")
    if any(v is not None for v in node.inputs[3:]):
        raise NotCovered("has a mask, a past or lengths")
    if a.causal or a.left >= 0 or a.right >= 0 or a.softcap > 0 or not a.normalize:
        raise NotCovered("limits which keys are seen, or has no plain softmax")
    dtype = node.outputs[0].dtype.name
    if dtype not in ("f16", "bf16"):
        raise NotCovered(f"cuDNN has no attention in {dtype}")


def graph_of(region: Region) -> GraphSpec:
    """The operation graph of an attention region.

    Raises:
        NotCovered: If cuDNN is not asked to do it.
    """
    _check(region)
    node = region.anchor
    assert node is not None
    q, k, v, y = attention_operands(node)
    dtype = node.outputs[0].dtype.name
    g = GraphSpec()

    def tensor(h: Heads) -> int:
        dims = static((h.batch, h.heads, h.length, h.size), "attention")
        return g.tensor(dtype, dims, static(h.strides, "attention"))

    tq, tk, tv = tensor(q), tensor(k), tensor(v)
    size = int(q.size)  # type: ignore[arg-type]
    scale = 1 / math.sqrt(size) if node.attrs.scale is None else float(node.attrs.scale)
    ts = g.tensor("f32", (1, 1, 1, 1), (1, 1, 1, 1), value=scale)
    ty = tensor(y)
    g.op("sdpa", (tq, tk, tv, ts), ty)
    g.pointers = [tq, tk, tv, ty]
    return g


@register_tactic
class CudnnAttention(Tactic):
    """Scaled dot-product attention without masks in one kernel; heads may share keys."""

    name = "cudnn_attention"
    target = "cuda"
    source = "CUDNN"
    priority = 70

    def refuse(self, region: Region, device: Any) -> str | None:
        reason = cudnn_call.usable(device)
        if reason is not None:
            return reason
        if libraries.version("cudnn") < _OLDEST:
            return "needs cuDNN 9.13 or newer"
        try:
            if cudnn_call.planner_for(device).configs(graph_of(region)):
                return None
        except (NotCovered, libraries.LibraryError) as e:
            return str(e)
        return "cuDNN has no engine for it"

    def candidates(self, region: Region, device: Any) -> Sequence[str]:
        count = len(cudnn_call.planner_for(device).configs(graph_of(region)))
        return [f"{i} v{libraries.version('cudnn')}" for i in range(count)]

    def build(self, region: Region, candidate: str, device: Any) -> Kernel:
        g = graph_of(region)
        planner = cudnn_call.planner_for(device)
        payload, workspace = planner.payload(g, int(candidate.split()[0]))
        node = region.anchor
        assert node is not None
        q, k, _, _ = attention_operands(node)
        b, h, s, d = static((q.batch, q.heads, q.length, q.size), "attention")
        args = [*node.inputs[:3], node.outputs[0]]
        return Kernel(
            "cudnn_attention", "", tuple(v for v in args if v is not None),
            flops=4 * b * h * s * int(k.length) * d,  # type: ignore[arg-type]
            launch=Launch(library="cudnn", payload=payload, workspace=workspace),
        )
