"""Tactic: fused attention through cuDNN."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...ir.graph import Value
from ...regions.heads import Heads, attention_operands
from ...regions.region import Region
from ...tactics.kernel import Kernel, Launch
from ...tactics.tactic import Tactic, register_tactic
from . import cudnn_call, libraries
from .cudnn_graph import GraphSpec
from .patterns import NotCovered, static

_OLDEST = 91300  # first cuDNN whose attention is one operation
FORMS = ("whole", "parts")
RUNTIME_MASKS = False  # what cuDNN makes of rows that see no key: see benchmarks/gpu_libs.py


@dataclass(frozen=True)
class Choice:
    """One way cuDNN can run attention.

    Attributes:
        form: ``whole`` (one operation) or ``parts`` (products and a softmax written out, which
            cuDNN fuses; masks need it).
        index: Place in the heuristics' list.
        version: cuDNN's, which gives the list its meaning.
    """

    form: str
    index: int
    version: int

    def __str__(self) -> str:
        return f"{self.form} {self.index} v{self.version}"


class Problem:
    """An attention region as cuDNN sees it.

    Raises:
        NotCovered: If cuDNN is not asked to do it.
    """

    def __init__(self, region: Region):
        node = region.anchor
        if node is None or node.op != "attention":
            raise NotCovered("not attention")
        a = node.attrs
        if region.stages or len(region.outputs) != 1 or a.outputs != 1:
            raise NotCovered("has more than the attention's result")
        if any(v is not None for v in node.inputs[4:]):
            raise NotCovered("has a past or lengths")
        if a.causal or a.left >= 0 or a.right >= 0 or a.softcap > 0 or not a.normalize:
            raise NotCovered("limits which keys are seen, or has no plain softmax")
        self.dtype = node.outputs[0].dtype.name
        if self.dtype not in ("f16", "bf16"):
            raise NotCovered(f"cuDNN has no attention in {self.dtype}")
        self.node = node
        self.q, self.k, self.v, self.y = attention_operands(node)
        sizes = (self.q.batch, self.q.heads, self.q.length, self.k.length, self.q.size)
        self.b, self.h, self.s, self.t, self.d = static(sizes, "attention")
        self.scale = 1 / math.sqrt(self.d) if a.scale is None else float(a.scale)
        self.mask = node.inputs[3] if len(node.inputs) > 3 else None
        if self.mask is not None:
            self._check_mask(self.mask)

    def _check_mask(self, mask: Value) -> None:
        # a row that sees no key must give 0, which adding infinities need not
        if mask.const is None and not RUNTIME_MASKS:
            raise NotCovered("a mask known only at run time may hide all keys from a query")
        if mask.dtype.name not in ("f16", "bf16", "f32"):
            raise NotCovered(f"a mask of {mask.dtype}")
        if mask.const is not None and np.isneginf(mask.const.astype(np.float32)).all(-1).any():
            raise NotCovered("the mask hides all keys from a query")
        dims = (1,) * (4 - mask.rank) + static(mask.dims, "the mask")
        full = (self.b, self.h, self.s, self.t)
        if dims[3] != self.t or any(d not in (1, f) for d, f in zip(dims, full, strict=True)):
            raise NotCovered("a mask for fewer keys")

    @property
    def forms(self) -> tuple[str, ...]:
        return FORMS if self.mask is None else ("parts",)

    def graph(self, form: str) -> GraphSpec:
        """The operation graph; its pointers are those of `arguments`."""
        g = GraphSpec()

        def tensor(h: Heads) -> int:
            dims = static((h.batch, h.heads, h.length, h.size), "attention")
            return g.tensor(self.dtype, dims, static(h.strides, "attention"))

        if form == "whole":
            tq, tk, tv = tensor(self.q), tensor(self.k), tensor(self.v)
            ts = g.tensor("f32", (1, 1, 1, 1), (1, 1, 1, 1), value=self.scale)
            ty = tensor(self.y)
            g.op("sdpa", (tq, tk, tv, ts), ty)
            g.pointers = [tq, tk, tv, ty]
            return g
        return self._parts(g, tensor)

    def _parts(self, g: GraphSpec, tensor: Callable[[Heads], int]) -> GraphSpec:
        k = self.k
        b, heads, n, d = static((k.batch, k.heads, k.length, k.size), "attention")
        sb, sh, sn, sd = static(k.strides, "attention")
        tq, tv = tensor(self.q), tensor(self.v)
        tk = g.tensor(self.dtype, (b, heads, d, n), (sb, sh, sd, sn))

        def inner(keys: int, dtype: str = "f32") -> int:
            dims = (self.b, self.h, self.s, keys)
            return g.tensor(dtype, dims, _contiguous(dims), virtual=True)

        scores = g.op("matmul", (tq, tk), inner(self.t))
        # by value cuDNN takes a factor for part of a dropout
        ts = g.tensor("f32", (1, 1, 1, 1), (1, 1, 1, 1))
        scores = g.op("pointwise", (scores, ts), inner(self.t), fn="mul")
        more = []
        if self.mask is not None:
            dims = (1,) * (4 - self.mask.rank) + static(self.mask.dims, "the mask")
            more = [g.tensor(self.mask.dtype.name, dims, _contiguous(dims))]
            scores = g.op("pointwise", (scores, more[0]), inner(self.t), fn="add")
        top = g.op("reduce", (scores,), inner(1), fn="max")
        shifted = g.op("pointwise", (scores, top), inner(self.t), fn="sub")
        e = g.op("pointwise", (shifted,), inner(self.t), fn="exp")
        total = g.op("reduce", (e,), inner(1), fn="sum")
        p = g.op("pointwise", (e, total), inner(self.t, self.dtype), fn="div")
        ty = g.op("matmul", (p, tv), tensor(self.y))
        g.pointers = [tq, tk, tv, ts, *more, ty]
        return g

    def arguments(self, form: str) -> list[Value | np.ndarray[Any, Any]]:
        """What the graph's pointers are, in order."""
        args: list[Any] = list(self.node.inputs[:3])
        if form == "parts":
            args.append(np.array([self.scale], np.float32))
            args += [] if self.mask is None else [self.mask]
        return [*args, self.node.outputs[0]]


def _contiguous(dims: Sequence[int]) -> tuple[int, ...]:
    out = [1]
    for d in reversed(dims[1:]):
        out.append(out[-1] * d)
    return tuple(reversed(out))


@register_tactic
class CudnnAttention(Tactic):
    """Scaled dot-product attention in one kernel; constant masks are added, heads may share
    keys."""

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
            if self.candidates(region, device):
                return None
        except (NotCovered, libraries.LibraryError) as e:
            return str(e)
        return "cuDNN has no engine for it"

    def candidates(self, region: Region, device: Any) -> Sequence[Choice]:
        p, version = Problem(region), libraries.version("cudnn")
        planner = cudnn_call.planner_for(device)
        return [
            Choice(form, i, version) for form in p.forms
            for i in range(len(planner.configs(p.graph(form))))
        ]

    def build(self, region: Region, candidate: Choice, device: Any) -> Kernel:
        p = Problem(region)
        planner = cudnn_call.planner_for(device)
        if device.can_time and candidate.index == 1:
            for form in p.forms:  # the second of a list: it will be measured as a whole
                other = p.graph(form)
                planner.ahead(other, range(len(planner.configs(other))))
        attempt = device.attempt if device.libraries else None
        payload, workspace = planner.payload(
            p.graph(candidate.form), candidate.index, attempt=attempt
        )
        return Kernel(
            "cudnn_attention", "", tuple(p.arguments(candidate.form)),
            flops=4 * p.b * p.h * p.s * p.t * p.d,
            launch=Launch(library="cudnn", payload=payload, workspace=workspace),
        )
