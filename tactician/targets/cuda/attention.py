"""Attention in one pass: scores stay in registers, the softmax is rescaled as keys go by.

A block takes ``bm`` queries of one head and walks over its keys, ``bn`` at a time. Blocks of keys
that every query of the block sees need no masks, so they have a loop of their own. Few queries
(decoding) share the keys between several blocks, of which the last to finish joins the parts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...ir import dims as D
from ...ir import dtypes as T
from ...ir.dims import DimLike
from ...ir.graph import Node, Value
from ...regions.heads import Heads, attention_operands
from ...regions.region import Region
from ...tactics.kernel import Kernel, Launch
from ...tactics.tactic import Tactic, register_tactic
from . import cost
from . import types as ty
from .code import LAUNCH
from .emit import Frame, is_wide
from .product import Writer, ceil_text, divides, precision

_LOG2E = math.log2(math.e)
_LARGEST_HEAD = 256


@dataclass(frozen=True)
class Tile:
    """Queries and keys of a step.

    Attributes:
        bm, bn: Queries of a block, keys of a step.
        warps, stages: Warps of a block; keys and values in flight.
        split: Blocks that share the keys.
        tma: Operands come through tensor descriptors.
    """

    bm: int
    bn: int
    warps: int = 4
    stages: int = 3
    split: int = 1
    tma: bool = False

    def __str__(self) -> str:
        parts = [f"{self.bm}x{self.bn} w{self.warps} s{self.stages}"]
        if self.split > 1:
            parts.append(f"split{self.split}")
        if self.tma:
            parts.append("tma")
        return " ".join(parts)


class _Builder:
    """Writes the kernel of one candidate."""

    def __init__(self, region: Region, t: Tile, device: Any):
        node = region.anchor
        assert node is not None
        self.region, self.t, self.device, self.node = region, t, device, node
        self.attrs = node.attrs
        self.q, self.k, self.v, self.y = attention_operands(node)
        inputs = (*node.inputs, *(None,) * 7)[:7]
        self.values, self.mask, self.lens = inputs[:3], inputs[3], inputs[6]
        values = [*region.inputs, *region.outputs]
        self.frame = Frame(wide=is_wide(values))
        self.dtype = values[0].dtype
        self.d = _block(self.q.size)
        self.dv = _block(self.v.size)
        self.how = precision(self.dtype, device.tf32)
        scale = self.attrs.scale
        self.scale = 1 / math.sqrt(int(self.q.size)) if scale is None else float(scale)  # type: ignore[arg-type]

    def build(self) -> Kernel:
        t, frame = self.t, self.frame
        w = Writer()
        self._place(w)
        self._operands(w)
        w(f"top = tl.full(({t.bm},), float('-inf'), tl.float32)",
          f"total = tl.zeros(({t.bm},), tl.float32)",
          f"acc = tl.zeros(({t.bm}, {self.dv}), tl.float32)")  # fmt: skip
        self._walk(w)
        blocks = D.ceil_div(self.q.length, t.bm) * self.q.batch * self.q.heads
        workspace: DimLike = 0
        w(LAUNCH)
        if t.split > 1:
            frame.workspace = frame.counters = True
            workspace = blocks * (t.split * t.bm * (self.dv + 2) * 4)
            self._join(w)
        else:
            self._store(w)
        grid = (blocks, t.split) if t.split > 1 else (blocks,)
        flops = self.q.batch * self.q.heads * self.q.length * self.k.length
        launch = Launch(
            frame.types, grid, t.warps, t.stages, workspace=workspace,
            counters=blocks if t.split > 1 else 0,
        )
        return Kernel(
            "attention", frame.source("attention", w.lines), frame.values, tuple(frame.dims),
            flops=flops * (2 * (int(self.q.size) + int(self.v.size))), launch=launch,  # type: ignore[arg-type]
            notes={"tile": str(t)},
        )

    # --- where things are ----------------------------------------------------------------

    def _place(self, w: Writer) -> None:
        t, size = self.t, self.frame.size
        blocks = ceil_text(self.frame, self.q.length, t.bm)
        w("pid = tl.program_id(0)")
        if blocks == "1":
            w("qb = 0", "bh = pid")
        elif self.attrs.causal:  # the longest rows first
            w(f"qb = {blocks} - 1 - pid % {blocks}", f"bh = pid // {blocks}")
        else:
            w(f"qb = pid % {blocks}", f"bh = pid // {blocks}")
        w(f"b = (bh // {size(self.q.heads)}).to(tl.int64)", f"h = bh % {size(self.q.heads)}",
          f"rm = qb * {t.bm} + tl.arange(0, {t.bm})", f"rn = tl.arange(0, {t.bn})")  # fmt: skip
        group = int(self.q.heads) // int(self.k.heads)  # type: ignore[arg-type]
        w(f"g = h // {group}" if group > 1 else "g = h")
        if self.lens is not None:
            w(f"keys = tl.minimum(tl.load({self.frame.pointer(self.lens)} + b).to(tl.int32), "
              f"{size(self.k.length)})", f"offset = keys - {size(self.q.length)}")  # fmt: skip
        else:
            w(f"keys = {size(self.k.length)}")

    @property
    def offset(self) -> str:
        """Keys before the first query, as an addend."""
        return " + offset" if self.lens is not None else ""

    def _base(self, at: int, x: Heads, head: str) -> str:
        value = self.values[at]
        assert value is not None
        image, step = (self.frame.size(s) for s in x.strides[:2])
        return f"{self.frame.pointer(value)} + b * {image} + {head} * {step}"

    def _operands(self, w: Writer) -> None:
        t, size = self.t, self.frame.size
        for name, at, x, head, rows, width in (
            ("q", 0, self.q, "h", t.bm, self.d), ("k", 1, self.k, "g", t.bn, self.d),
            ("v", 2, self.v, "g", t.bn, self.dv),
        ):  # fmt: skip
            base = self._base(at, x, head)
            if t.tma:
                w(f"{name}d = tl.make_tensor_descriptor({base}, shape=[{size(x.length)}, "
                  f"{size(x.size)}], strides=[{size(x.strides[2])}, 1], "
                  f"block_shape=[{rows}, {width}])")  # fmt: skip
            else:
                w(f"{name}p = {base}")
        w(f"rd = tl.arange(0, {self.d})", f"rv = tl.arange(0, {self.dv})")
        if t.tma:
            w(f"qt = qd.load([qb * {t.bm}, 0])")
            return
        masks = self._row_mask(), self._lane_mask("rd", self.q.size, self.d, "[None, :]")
        w(f"qt = tl.load(qp + rm[:, None] * {size(self.q.strides[2])} + rd[None, :]"
          f"{_mask(*masks)})")  # fmt: skip

    def _row_mask(self) -> str:
        if divides(self.t.bm, self.q.length):
            return ""
        return f"(rm < {self.frame.size(self.q.length)})[:, None]"

    def _lane_mask(self, lanes: str, size: DimLike, block: int, spread: str) -> str:
        return "" if size == block else f"({lanes} < {self.frame.size(size)}){spread}"

    # --- the walk over keys -----------------------------------------------------------------

    def _walk(self, w: Writer) -> None:
        """Loops over blocks of keys that need no masks, and over those that do."""
        t, a = self.t, self.attrs
        w("low = 0", "high = keys")
        if a.causal:
            w(f"high = tl.minimum(high, (qb + 1) * {t.bm}{self.offset})")
        if a.right >= 0:
            w(f"high = tl.minimum(high, (qb + 1) * {t.bm}{self.offset} + {a.right})")
        if a.left >= 0:
            w(f"low = tl.maximum(qb * {t.bm}{self.offset} - {a.left}, 0) // {t.bn} * {t.bn}")
        if a.causal or a.left >= 0 or a.right >= 0 or self.lens is not None:
            w("high = tl.maximum(high, low)")
        if t.split > 1:
            w("part = tl.program_id(1)",
              f"each = ((high - low + {t.bn - 1}) // {t.bn} + {t.split - 1}) // {t.split} * {t.bn}",
              "low = low + part * each", "high = tl.minimum(high, low + each)",
              "high = tl.maximum(high, low)")  # fmt: skip
        always = self.mask is not None or a.left >= 0 or a.right >= 0
        if always:
            self._loop(w, "low", "high", True)
            return
        if not a.causal and self.lens is None and t.split == 1 and not isinstance(
            self.k.length, D.Dim
        ):
            keys = int(self.k.length)
            whole = keys // t.bn * t.bn
            if whole:
                self._loop(w, "0", str(whole), False)
            if whole < keys:
                w(f"n = {whole}")
                left = _block(keys - whole)
                if not t.tma and left < t.bn:  # the last keys need a narrow step only
                    w(f"rn = tl.arange(0, {left})")
                self._step(w, True)
            return
        w(f"seen = low + (high - low) // {t.bn} * {t.bn}")
        if a.causal:
            w(f"seen = tl.minimum(seen, tl.maximum((qb * {t.bm} + 1{self.offset}) // {t.bn} * "
              f"{t.bn}, low))")  # fmt: skip
        self._loop(w, "low", "seen", False)
        self._loop(w, "seen", "high", True)

    def _loop(self, w: Writer, low: str, high: str, masked: bool) -> None:
        with w.block(f"for n in range({low}, {high}, {self.t.bn}):"):
            self._step(w, masked)

    def _step(self, w: Writer, masked: bool) -> None:
        t, a, size = self.t, self.attrs, self.frame.size
        how = f', input_precision="{self.how}"' if self.how else ""
        if t.tma:
            w("kt = kd.load([n, 0]).T")
        else:
            inside = "(n + rn < keys)[None, :]" if masked else ""
            lanes = self._lane_mask("rd", self.k.size, self.d, "[:, None]")
            w(f"kt = tl.load(kp + (n + rn)[None, :] * {size(self.k.strides[2])} + rd[:, None]"
              f"{_mask(inside, lanes)})")  # fmt: skip
        w(f"s = tl.dot(qt, kt{how})")
        factor = self.scale * _LOG2E
        if masked or a.softcap > 0:
            w(f"s = s * {self.scale!r}")
            if a.softcap > 0:  # tanh(x) = 1 - 2 / (exp(2 x) + 1)
                w(f"s = {a.softcap!r} - {2 * a.softcap!r} / "
                  f"(tl.exp2(s * {2 * _LOG2E / a.softcap!r}) + 1.0)")  # fmt: skip
            if masked:
                self._mask_scores(w)
            factor = _LOG2E
        # scores may be scaled after the maximum is taken only by a positive factor
        if factor < 0:
            w(f"s = s * {factor!r}")
            factor = 1.0
        w(f"peak = tl.maximum(top, tl.max(s, 1) * {factor!r})")
        shift = "peak"
        if masked:
            w("calm = tl.where(peak == float('-inf'), 0.0, peak)")
            shift = "calm"
        w(f"p = tl.exp2(s * {factor!r} - {shift}[:, None])", f"fade = tl.exp2(top - {shift})",
          "total = total * fade + tl.sum(p, 1)", "acc = acc * fade[:, None]")  # fmt: skip
        if t.tma:
            w("vt = vd.load([n, 0])")
        else:
            inside = "(n + rn < keys)[:, None]" if masked else ""
            lanes = self._lane_mask("rv", self.v.size, self.dv, "[None, :]")
            w(f"vt = tl.load(vp + (n + rn)[:, None] * {size(self.v.strides[2])} + rv[None, :]"
              f"{_mask(inside, lanes)})")  # fmt: skip
        w(f"acc = tl.dot(p.to({ty.tl_name(self.dtype)}), vt, acc{how})", "top = peak")

    def _mask_scores(self, w: Writer) -> None:
        a = self.attrs
        seen = ["(n + rn < keys)[None, :]"]
        key, place = "(n + rn)[None, :]", f"(rm{self.offset})[:, None]"
        if a.causal:
            seen.append(f"({key} <= {place})")
        if a.left >= 0:
            seen.append(f"({place} - {key} <= {a.left})")
        if a.right >= 0:
            seen.append(f"({key} - {place} <= {a.right})")
        if self.mask is not None:
            self._load_mask(w)
            if self.mask.dtype is T.b1:
                seen.append("(bias != 0)")
            else:
                w("s = s + bias.to(tl.float32)")
        w(f"s = tl.where({' & '.join(seen)}, s, float('-inf'))")

    def _load_mask(self, w: Writer) -> None:
        """``bias``: the mask at the block's queries and keys; keys past its end are not seen."""
        mask, size = self.mask, self.frame.size
        assert mask is not None
        terms, inside = [], []
        stride: DimLike = 1
        places = ["b", "h", "rm[:, None]", "(n + rn)[None, :]"]
        full = (self.q.batch, self.q.heads, self.q.length, self.k.length)
        for d, at, extent in list(zip(mask.dims[::-1], places[::-1], full[::-1], strict=False)):
            if d != 1 or (at == places[3] and extent != 1):
                terms.append(f"{at} * {size(stride)}")
                if at == places[3]:
                    inside.append(f"({at} < {size(d)}) & ({at} < keys)")
                elif at == places[2] and not divides(self.t.bm, self.q.length):
                    inside.append(f"({at} < {size(d)})")
            stride = stride * d
        other = "0" if mask.dtype is T.b1 else "float('-inf')"
        where = " + ".join(terms) or "0"
        masks = f", mask={' & '.join(inside)}, other={other}" if inside else ""
        w(f"bias = tl.load({self.frame.pointer(mask)} + {where}{masks})")

    # --- the end -------------------------------------------------------------------------

    def _join(self, w: Writer) -> None:
        """Joins the parts of split keys in the block that comes last."""
        t, dv = self.t, self.dv
        part = t.bm * (dv + 2)
        w("work = workspace.to(tl.pointer_type(tl.float32))",
          f"wp = work + pid.to(tl.int64) * {part * t.split}", f"ri = tl.arange(0, {t.bm})",
          f"cell = ri[:, None] * {dv} + rv[None, :]",
          f"here = wp + part * {part}",
          'tl.store(here + cell, acc, cache_modifier=".cg")',
          f'tl.store(here + {t.bm * dv} + ri, top, cache_modifier=".cg")',
          f'tl.store(here + {t.bm * (dv + 1)} + ri, total, cache_modifier=".cg")',
          "tl.debug_barrier()",
          'arrived = tl.atomic_add(counters + pid, 1, sem="acq_rel", scope="gpu")')  # fmt: skip
        with w.block(f"if arrived == {t.split - 1}:"):
            self._join_parts(w, part)
            self._store(w)

    def _join_parts(self, w: Writer, part: int) -> None:
        t, dv = self.t, self.dv
        w("tl.store(counters + pid, 0)", f"top = tl.full(({t.bm},), float('-inf'), tl.float32)",
          f"total = tl.zeros(({t.bm},), tl.float32)",
          f"acc = tl.zeros(({t.bm}, {dv}), tl.float32)")  # fmt: skip
        with w.block(f"for i in range({t.split}):"):
            w(f"there = wp + i * {part}",
              f'other = tl.load(there + {t.bm * dv} + ri, cache_modifier=".cg")',
              "peak = tl.maximum(top, other)",
              "calm = tl.where(peak == float('-inf'), 0.0, peak)",
              "fade = tl.exp2(top - calm)", "more = tl.exp2(other - calm)",
              f'total = total * fade + more * tl.load(there + {t.bm * (dv + 1)} + ri, '
              'cache_modifier=".cg")',
              'acc = acc * fade[:, None] + more[:, None] * tl.load(there + cell, '
              'cache_modifier=".cg")',
              "top = peak")  # fmt: skip

    def _store(self, w: Writer) -> None:
        size, y = self.frame.size, self.y
        out = self.frame.pointer(self.node.outputs[0])
        w("total = tl.where(total == 0.0, 1.0, total)", "acc = acc / total[:, None]")
        masks = self._row_mask(), self._lane_mask("rv", self.v.size, self.dv, "[None, :]")
        mask = " & ".join(m for m in masks if m)
        w(f"yp = {out} + b * {size(y.strides[0])} + h * {size(y.strides[1])}",
          f"tl.store(yp + rm[:, None] * {size(y.strides[2])} + rv[None, :], "
          f"acc.to({ty.tl_name(self.dtype)}){f', mask={mask}' if mask else ''})")  # fmt: skip


def _mask(*terms: str) -> str:
    kept = " & ".join(t for t in terms if t)
    return f", mask={kept}, other=0.0" if kept else ""


def _block(size: DimLike) -> int:
    """The power of two that holds a head's elements."""
    return max(16, 1 << (int(size) - 1).bit_length())  # type: ignore[arg-type]


def refuse(node: Node | None) -> str | None:
    """Why the kernel can't do an attention node, or None."""
    if node is None or node.op != "attention":
        return "not attention"
    a = node.attrs
    if a.outputs != 1 or not a.normalize:
        return "it also gives scores or present keys"
    if any(v is not None for v in node.inputs[4:6]):
        return "past keys are joined first"
    q, k, v, _ = attention_operands(node)
    if node.inputs[0].dtype not in (T.f16, T.bf16, T.f32):  # type: ignore[union-attr]
        return f"no attention of {node.inputs[0].dtype}"  # type: ignore[union-attr]
    if not D.is_static(q.size, v.size, q.heads, k.heads):
        return "head sizes and counts must be fixed"
    if max(int(q.size), int(v.size)) > _LARGEST_HEAD:  # type: ignore[arg-type]
        return f"heads of more than {_LARGEST_HEAD} elements"
    if any(d == 0 for x in (q, k, v) for d in (x.batch, x.heads, x.length, x.size)):
        return "an extent is zero"
    return _refuse_extras(node)


def _refuse_extras(node: Node) -> str | None:
    inputs: tuple[Value | None, ...] = (*node.inputs, *(None,) * 7)[:7]
    mask, lens = inputs[3], inputs[6]
    q = attention_operands(node)[0]
    if mask is not None:
        if not (mask.dtype is T.b1 or mask.dtype in (T.f16, T.bf16, T.f32)):
            return f"masks of {mask.dtype}"
        full = (q.batch, q.heads, q.length)[-(mask.rank - 1) :] if mask.rank > 1 else ()
        for d, f in zip(mask.dims[:-1], full, strict=False):
            if isinstance(d, D.Dim) and d != f:
                return "a mask's size known only at run time may be broadcast"
    if lens is not None and D.product(lens.dims) != q.batch:
        return "lengths must be given for each of the batch"
    return None


def tiles(node: Node, gpu: Any) -> list[Tile]:
    """Tiles worth timing, the likely best first.

    Floors on an H100: 4 * S² * D operations per head at 798 TFLOP/s; S 2048, 16 heads, batch 4:
    D 64 21.5 µs, D 128 43 µs (cuDNN reaches 60 to 75% of that).
    """
    q, k, v, _ = attention_operands(node)
    value = node.inputs[0]
    assert value is not None
    rows, keys = cost.known(q.length), cost.known(k.length)
    heads = cost.known(q.batch) * cost.known(q.heads)
    width = max(_block(q.size), _block(v.size))
    if value.dtype is T.f32:
        shapes = [Tile(64, 32, 4, 2), Tile(32, 32, 4, 2), Tile(16, 32, 4, 2)]
        return _fill(shapes, rows, keys, heads, gpu) if width <= 128 else [Tile(16, 16, 4, 2)]
    if width > 128:
        shapes = [Tile(64, 64, 8, 2), Tile(64, 32, 4, 2), Tile(16, 64, 4, 2)]
        return _fill(shapes, rows, keys, heads, gpu)
    shapes = [
        Tile(128, 128, 8, 2), Tile(128, 64, 8, 3), Tile(128, 64, 4, 3), Tile(64, 64, 4, 3),
        Tile(64, 128, 4, 2), Tile(32, 64, 4, 3), Tile(16, 64, 4, 3), Tile(16, 128, 4, 3),
    ]
    if gpu.arch >= 90 and rows >= 512 and _describable(node):
        # with four warps and little memory two blocks share a multiprocessor: one multiplies while
        # the other is at its softmax
        shapes = [Tile(128, 128, 8, 2, tma=True), Tile(128, 64, 4, 2, tma=True),
                  Tile(128, 64, 8, 3, tma=True), Tile(64, 64, 4, 3, tma=True),
                  Tile(128, 128, 8, 3, tma=True), Tile(128, 64, 4, 3, tma=True),
                  *shapes]  # fmt: skip
    return _fill(shapes, rows, keys, heads, gpu)


def _describable(node: Node) -> bool:
    """Whether descriptors can address queries, keys and values."""
    value = node.inputs[0]
    assert value is not None
    for x in attention_operands(node)[:3]:
        if not D.is_static(*x.strides, x.size):
            return False
        if any(int(s) * value.dtype.size % 16 for s in x.strides[:3]):  # type: ignore[arg-type]
            return False
    return True


def _fill(shapes: list[Tile], rows: int, keys: int, heads: int, gpu: Any) -> list[Tile]:
    """Orders tiles by how well they fill the device; few blocks share the keys."""
    fitting = [t for t in shapes if t.bm <= max(16, 2 * rows - 1) and t.bn < 2 * keys]
    fitting = fitting or shapes[-1:]

    def idle(t: Tile) -> tuple[bool, float]:
        blocks = heads * -(-rows // t.bm)
        wasted = -(-rows // t.bm) * t.bm / rows
        waves = -(-blocks // gpu.sms) * gpu.sms / blocks  # the last wave is not full
        return blocks < gpu.sms, wasted * min(waves, 4.0)

    order = sorted(fitting, key=lambda t: idle(t)[0])
    if all(idle(t)[0] for t in fitting):  # too few blocks whatever the tile: the smallest ones
        order = sorted(fitting, key=lambda t: t.bm)
    out: list[Tile] = []
    for t in order:
        blocks = heads * -(-rows // t.bm)
        parts = min(gpu.sms // max(1, blocks), keys // (2 * t.bn), 16)
        if parts >= 2:
            out.append(Tile(t.bm, t.bn, t.warps, t.stages, parts, t.tma))
        out.append(t)
    return out


@register_tactic
class Attention(Tactic):
    """Attention with masks, windows, softcap, grouped heads and lengths."""

    name = "attention"
    target = "cuda"
    priority = 50

    def refuse(self, region: Region, device: Any) -> str | None:
        return refuse(region.anchor)

    def candidates(self, region: Region, device: Any) -> Sequence[Tile]:
        assert region.anchor is not None
        return tiles(region.anchor, device.gpu)

    def build(self, region: Region, candidate: Any, device: Any) -> Kernel:
        return _Builder(region, candidate, device).build()
