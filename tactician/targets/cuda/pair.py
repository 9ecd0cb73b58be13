"""Two convolutions of single taps in one kernel: ``y = f(x w1), z = g(y w2)``; with a convolution
of windows before them, a whole bottleneck.

A block takes some pixels through both. The channels of ``y`` are computed in chunks: each chunk's
sums become ``y`` (with all that follows the first convolution, such as a residual), are written,
and are multiplied with their rows of ``w2`` while they are in registers. So ``y``, the largest
tensor of a bottleneck, is written but not read back. A convolution before them computes all of
its channels for the block's pixels, which then are ``x`` without ever being written.

Floors on an H100, f16, batch 128: 64→256 (+ residual)→64 on 56x56 171 µs by bytes (apart 154 and
86); 128→512 (+ residual)→128 on 28x28 86 µs (77 and 43).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...ir import dims as D
from ...ir import dtypes as T
from ...ir import expr as E
from ...ir.graph import Value
from ...regions.region import Region
from ...tactics.kernel import Kernel, Launch
from ...tactics.tactic import Tactic, register_tactic
from . import conv, cost
from . import types as ty
from .code import LAUNCH
from .emit import Emitter, Frame, is_wide
from .epilogue import Index, epilogue, result_of
from .product import Operand, Strided, Writer, divides
from .product import Tile as Blocks
from .windows import (
    Convolution,
    Mode,
    Positions,
    Windows,
    convolution_of,
    packed_weights,
)  # fmt: skip

_MOST_INNER, _MOST_OUT = 256, 256


@dataclass(frozen=True)
class Tile:
    """Pixels of a block, and channels of ``y`` in a step."""

    rows: int
    chunk: int
    warps: int = 8
    stages: int = 2

    def __str__(self) -> str:
        return f"{self.rows}x{self.chunk} w{self.warps} s{self.stages}"


def _block(n: int) -> int:
    return max(16, 1 << (n - 1).bit_length())


def _packed(c: Convolution, rows: int, inner: int) -> np.ndarray[Any, Any]:
    """Weights ``[filters, channels]`` filled up with zeros."""
    w = np.asarray(c.w.const).reshape(c.filters, c.channels)
    padded = np.zeros((rows, inner), w.dtype)
    padded[: c.filters, : c.channels] = w
    return padded


class _Builder:
    def __init__(self, region: Region, t: Tile):
        self.region, self.t = region, t
        leaves = region.leaves()
        self.head = None if _is_plain(convolution_of(leaves[0])) else leaves.pop(0)
        self.first, self.second = leaves[0], leaves[1] if len(leaves) > 1 else None
        self.a = convolution_of(self.first)
        self.b = None if self.second is None else convolution_of(self.second)
        values = [*region.inputs, *region.outputs]
        self.frame = Frame(wide=is_wide(values))
        self.inner = _block(self.a.channels)
        self.out = 0 if self.b is None else _block(self.b.filters)

    def build(self) -> Kernel:
        a, b, t, frame, w = self.a, self.b, self.t, self.frame, Writer()
        w("pid = tl.program_id(0)", f"rm = pid * {t.rows} + tl.arange(0, {t.rows})",
          f"rc = tl.arange(0, {self.inner})")  # fmt: skip
        rows = a.rows if self.head is None else convolution_of(self.head).rows
        self.masks = {} if divides(t.rows, rows) else {0: f"(rm < {frame.size(rows)})[:, None]"}
        positions = a if self.head is None else convolution_of(self.head)
        self.positions = Positions(frame, positions, frame.wide)
        self.positions.begin(w, Blocks(t.rows, t.chunk, 16))
        if self.head is None:
            self._load_rows(w)
        else:
            self._sum_windows(w, self.head)
        w1 = frame.array(_packed(a, a.filters, self.inner))
        if b is not None:
            w2 = frame.array(_packed(b, self.out, a.filters))
            w(f"rq = tl.arange(0, {self.out})",
              f"out = tl.zeros(({t.rows}, {self.out}), tl.float32)")  # fmt: skip
        with w.block(f"for n in tl.range(0, {a.filters}, {t.chunk}, num_stages={t.stages}):"):
            w(f"rw = n + tl.arange(0, {t.chunk})",
              f"wt = tl.load({w1} + rw[None, :] * {self.inner} + rc[:, None])")  # fmt: skip
            if b is not None:
                w(f"vt = tl.load({w2} + rq[None, :] * {a.filters} + rw[:, None])")
            w("sums = tl.dot(xt, wt)")
            if a.bias is not None:
                w(f"sums += tl.load({frame.pointer(a.bias)} + rw).to(tl.float32)[None, :]")
            y = self._stages(w, self.first, "sums", "rw", t.chunk, "e", True)
            if b is not None:
                w(f"out = tl.dot({y}.to({ty.tl_name(a.x.dtype)}), vt, out)")
        w(LAUNCH)
        if b is not None:
            self._finish(w, b)
        flops = a.rows * (2 * a.filters * (a.channels + (0 if b is None else b.filters)))
        if self.head is not None:
            flops = flops + rows * (2 * positions.filters * positions.channels * positions.taps)
        return Kernel(
            "pair", frame.source("pair", w.lines), frame.values, tuple(frame.dims), flops=flops,
            launch=Launch(frame.types, (D.ceil_div(rows, t.rows),), t.warps, max(2, t.stages)),
            notes={"tile": str(t)},
        )

    def _load_rows(self, w: Writer) -> None:
        """``xt``: the block's pixels of the image."""
        a, frame = self.a, self.frame
        size = frame.size
        pixel = a.x_space[-1] if any(d != 1 for d in a.outs) else a.x_image
        inside = "" if a.channels == self.inner else (
            f", mask=(rc < {a.channels})[None, :], other=0.0")
        w(f"rp = {'rm' if not self.masks else f'tl.where(rm < {size(a.rows)}, rm, 0)'}"
          f"{'.to(tl.int64)' if frame.wide else ''}",
          f"xt = tl.load({frame.pointer(a.stored)} + (rp * {size(pixel)})[:, None] "
          f"+ rc[None, :]{inside})")  # fmt: skip

    def _sum_windows(self, w: Writer, head: Region) -> None:
        """``xt``: what the head computes at the block's pixels, all channels of it."""
        c, t, frame = convolution_of(head), self.t, self.frame
        bk = min(64, _block(c.channels))
        step = Blocks(t.rows, c.filters, bk, t.warps, 3)
        data = packed_weights(c, bk, c.x.dtype, 16 // c.x.dtype.size)
        images: Operand = Windows(frame, c, c.x.dtype)
        weights: Operand = Strided(frame, data, c.x.dtype, False, c.filters, c.inner(bk),
                                   data.shape[2], 1, "", data.size)  # fmt: skip
        w(f"rn = tl.arange(0, {c.filters})", f"rk = tl.arange(0, {bk})")
        images.setup(w, step, "0")
        weights.setup(w, step, "0")
        w(f"acc = tl.zeros(({t.rows}, {c.filters}), tl.float32)")
        with w.block(f"for it in tl.range(0, {c.inner(bk) // bk}, num_stages=3):"):
            x, y = images.load(w, step), weights.load(w, step)
            w(f"acc = tl.dot({x}, {y}, acc)")
            weights.advance(w, step)
        if c.bias is not None:
            w(f"acc += tl.load({frame.pointer(c.bias)} + rn).to(tl.float32)[None, :]")
        x = self._stages(w, head, "acc", "rn", c.filters, "u", False)
        w(f"xt = {x}.to({ty.tl_name(c.x.dtype)})")

    def _index(self, region: Region, channel: str) -> list[Index]:
        place = [Index(f"{n}[:, None]", (0,)) for n in self.positions.names]
        last = Index(f"{channel}[None, :]", (1,))
        if "logical" in result_of(region).meta:
            return [*place, last]
        return [place[0], last, *place[1:]]

    def _stages(
        self, w: Writer, region: Region, sums: str, channel: str, width: int, prefix: str,
        store: bool,
    ) -> str:
        """A region's stages on a block of sums; returns the name of the block of its result."""
        result = result_of(region)
        em = Emitter(self.frame, self.masks, (self.t.rows, width), prefix=prefix)
        em.bind_result(result, sums, frozenset((0, 1)), ty.register(result.dtype))
        variables = E.iter_vars(result.dims)
        for v, i in zip(variables, self._index(region, channel), strict=True):
            em.bind(v, i.text, i.axes)
        last = em.lowerer.lower(E.load(result, variables))
        made: Value = result
        for stage in region.stages:
            last = em.lowerer.lower(stage.expr, dict(zip(stage.vars, variables, strict=True)))
            made = stage.out
            if stage is not region.stages[-1]:
                x = em.emit(last)
                em.bind_result(stage.out, x.text, x.axes, x.dt)
        # what is stored has the precision of the result, and so has what the next product reads
        x = em.emit(last)
        if store:
            em.store(made, em.lowerer.flat(made, variables), x=x)
        w(*em.lines)
        return x.text

    def _finish(self, w: Writer, b: Convolution) -> None:
        frame, second = self.frame, self.second
        assert second is not None
        masks = dict(self.masks)
        inside = ""
        if b.filters != self.out:
            masks[1] = f"(rq < {b.filters})[None, :]"
            inside = f", mask=rq < {b.filters}, other=0.0"
        if b.bias is not None:
            bias = f"tl.load({frame.pointer(b.bias)} + rq{inside})"
            w(f"out += {bias}.to(tl.float32)[None, :]")
        index = self._index(second, "rq")
        w(*epilogue(second, frame, "out", index, masks, (self.t.rows, self.out), prefix="f"))


def _is_plain(c: Convolution) -> bool:
    """Whether the image is read as a matrix."""
    return c.mode is Mode.PLAIN and c.groups == 1 and c.x.dtype in (T.f16, T.bf16)


def _convolution(region: Region, device: Any) -> Convolution | None:
    node = region.anchor
    if node is None or node.op != "convolution" or region.parts:
        return None
    return None if conv.refuse(region, device) is not None else convolution_of(region)


def _ends_in(region: Region, y: Value) -> bool:
    """Whether a value is the last that the region computes."""
    return (region.stages[-1].out if region.stages else result_of(region)) is y


@register_tactic
class Pair(Tactic):
    """Two convolutions of single taps, the second on what the first leaves in registers; or a
    convolution and one or two of single taps behind it."""

    name = "pair"
    target = "cuda"
    source = "JIT_CONVOLUTIONS"
    priority = 50
    joins = True

    def takes_pair(self, first: Region, second: Region, device: Any) -> bool:
        a, b = _convolution(first, device), _convolution(second, device)
        if a is None or b is None or not (_is_plain(a) and _is_plain(b)):
            return False
        y = first.outputs[0]
        return (
            _ends_in(first, y) and b.stored is y and a.rows == b.rows and y.dtype is a.x.dtype
            and a.channels <= _MOST_INNER and b.filters <= _MOST_OUT and a.filters % 64 == 0
            and cost.known(a.rows) >= 16 * device.sms
        )

    def takes_head(self, first: Region, rest: Region, device: Any) -> bool:
        leaf = rest.leaves()[0]
        c, a = _convolution(first, device), _convolution(leaf, device)
        if c is None or a is None or not _is_plain(a):
            return False
        y = first.outputs[0]
        return (
            c.mode is Mode.TAPS and c.taps > 1 and c.groups == 1 and not c.transposed
            and c.x.dtype in (T.f16, T.bf16) and y.dtype is c.x.dtype and _ends_in(first, y)
            and a.stored is y and a.rows == c.rows and c.filters in (64, 128, 256)
            and a.filters % 64 == 0 and len(leaf.outputs) == 1
            and _ends_in(leaf, leaf.outputs[0]) and cost.known(c.rows) >= 16 * device.sms
        )

    def refuse(self, region: Region, device: Any) -> str | None:
        if not region.parts:
            return "one layer"
        if any(p.anchor is None or p.anchor.op != "convolution" for p in region.leaves()):
            return "not convolutions"
        return None

    def candidates(self, region: Region, device: Any) -> Sequence[Tile]:
        leaves = [convolution_of(p) for p in region.leaves()]
        wide = _block(leaves[-2].channels) + _block(leaves[-1].filters)
        rows = cost.known(leaves[0].rows)
        if not _is_plain(leaves[0]):
            return self._headed(leaves, rows, device)
        if wide > 256:
            return [Tile(64, 64, 8, 2), Tile(64, 32, 4, 2), Tile(128, 64, 8, 2)]
        shapes = [Tile(128, 64, 8, 3), Tile(128, 64, 8, 2), Tile(64, 64, 4, 3),
                  Tile(128, 64, 4, 2), Tile(256, 64, 8, 2), Tile(64, 64, 4, 2)]  # fmt: skip
        if rows < 128 * device.sms:
            shapes = [Tile(64, 64, 4, 3), Tile(32, 64, 4, 3), Tile(16, 64, 4, 3), *shapes[:1]]
        return shapes

    def _headed(self, leaves: list[Convolution], rows: int, device: Any) -> list[Tile]:
        if leaves[0].filters > 128:
            return [Tile(64, 64, 8, 2), Tile(64, 32, 8, 2)]
        shapes = [Tile(128, 64, 8, 2), Tile(128, 64, 8, 3), Tile(64, 64, 4, 2)]
        if rows < 128 * device.sms:
            shapes = [Tile(32, 64, 4, 2), Tile(64, 64, 4, 2), Tile(16, 64, 4, 2)]
        return shapes

    def build(self, region: Region, candidate: Any, device: Any) -> Kernel:
        return _Builder(region, candidate).build()
