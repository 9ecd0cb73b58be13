"""Two convolutions of single taps in one kernel: ``y = f(x w1), z = g(y w2)``.

A block takes some pixels through both. The channels of ``y`` are computed in chunks: each chunk's
sums become ``y`` (with all that follows the first convolution, such as a residual), are written,
and are multiplied with their rows of ``w2`` while they are in registers. So ``y``, the largest
tensor of a bottleneck, is written but not read back.

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
from .emit import Emitter, Frame, is_wide
from .epilogue import Index, epilogue, result_of
from .product import Tile as Blocks
from .product import Writer, divides
from .windows import Convolution, Mode, Positions, convolution_of

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
        self.first, self.second = region.parts
        self.a, self.b = convolution_of(self.first), convolution_of(self.second)
        values = [*region.inputs, *region.outputs]
        self.frame = Frame(wide=is_wide(values))
        self.inner, self.out = _block(self.a.channels), _block(self.b.filters)

    def build(self) -> Kernel:
        a, b, t, frame, w = self.a, self.b, self.t, self.frame, Writer()
        size = frame.size
        w("pid = tl.program_id(0)", f"rm = pid * {t.rows} + tl.arange(0, {t.rows})",
          f"rk = tl.arange(0, {self.inner})", f"rq = tl.arange(0, {self.out})")  # fmt: skip
        self.positions = Positions(frame, a, frame.wide)
        self.positions.begin(w, Blocks(t.rows, t.chunk, 16))
        self.masks = {} if divides(t.rows, a.rows) else {0: f"(rm < {size(a.rows)})[:, None]"}
        pixel = a.x_space[-1] if any(d != 1 for d in a.outs) else a.x_image
        inside = "" if a.channels == self.inner else (
            f", mask=(rk < {a.channels})[None, :], other=0.0")
        w(f"rp = {'rm' if not self.masks else f'tl.where(rm < {size(a.rows)}, rm, 0)'}"
          f"{'.to(tl.int64)' if frame.wide else ''}",
          f"xt = tl.load({frame.pointer(a.stored)} + (rp * {size(pixel)})[:, None] "
          f"+ rk[None, :]{inside})",
          f"out = tl.zeros(({t.rows}, {self.out}), tl.float32)")  # fmt: skip
        w1 = frame.array(_packed(a, a.filters, self.inner))
        w2 = frame.array(_packed(b, self.out, a.filters))
        head = f"for n in tl.range(0, {a.filters}, {t.chunk}, num_stages={t.stages}):"
        with w.block(head):
            w(f"rn = n + tl.arange(0, {t.chunk})",
              f"wt = tl.load({w1} + rn[None, :] * {self.inner} + rk[:, None])",
              f"vt = tl.load({w2} + rq[None, :] * {a.filters} + rn[:, None])",
              "acc = tl.dot(xt, wt)")  # fmt: skip
            if a.bias is not None:
                w(f"acc += tl.load({frame.pointer(a.bias)} + rn).to(tl.float32)[None, :]")
            y = self._stages(w)
            w(f"out = tl.dot({y}.to({ty.tl_name(a.x.dtype)}), vt, out)")
        self._finish(w)
        flops = a.rows * (2 * a.filters * (a.channels + b.filters))
        return Kernel(
            "pair", frame.source("pair", w.lines), frame.values, tuple(frame.dims), flops=flops,
            launch=Launch(frame.types, (D.ceil_div(a.rows, t.rows),), t.warps, t.stages),
            notes={"tile": str(t)},
        )

    def _index(self, region: Region, channel: str) -> list[Index]:
        place = [Index(f"{n}[:, None]", (0,)) for n in self.positions.names]
        last = Index(f"{channel}[None, :]", (1,))
        if "logical" in result_of(region).meta:
            return [*place, last]
        return [place[0], last, *place[1:]]

    def _stages(self, w: Writer) -> str:
        """The first region's stages on ``acc``; returns the name of the chunk of its result."""
        region, t = self.first, self.t
        result = result_of(region)
        em = Emitter(self.frame, self.masks, (t.rows, t.chunk), prefix="e")
        em.bind_result(result, "acc", frozenset((0, 1)), ty.register(result.dtype))
        variables = E.iter_vars(result.dims)
        for v, i in zip(variables, self._index(region, "rn"), strict=True):
            em.bind(v, i.text, i.axes)
        last = em.lowerer.lower(E.load(result, variables))
        made: Value = result
        for stage in region.stages:
            last = em.lowerer.lower(stage.expr, dict(zip(stage.vars, variables, strict=True)))
            made = stage.out
            if stage is not region.stages[-1]:
                x = em.emit(last)
                em.bind_result(stage.out, x.text, x.axes, x.dt)
        # what is stored has the precision of y, and so has what the second product reads
        x = em.emit(last)
        em.store(made, em.lowerer.flat(made, variables), x=x)
        w(*em.lines)
        return x.text

    def _finish(self, w: Writer) -> None:
        b, frame = self.b, self.frame
        masks = dict(self.masks)
        inside = ""
        if b.filters != self.out:
            masks[1] = f"(rq < {b.filters})[None, :]"
            inside = f", mask=rq < {b.filters}, other=0.0"
        if b.bias is not None:
            bias = f"tl.load({frame.pointer(b.bias)} + rq{inside})"
            w(f"out += {bias}.to(tl.float32)[None, :]")
        index = self._index(self.second, "rq")
        w(*epilogue(self.second, frame, "out", index, masks, (self.t.rows, self.out), prefix="f"))


def _plain(region: Region, device: Any) -> Convolution | None:
    """The region's convolution if it reads its image as a matrix."""
    node = region.anchor
    if node is None or node.op != "convolution" or conv.refuse(region, device) is not None:
        return None
    c = convolution_of(region)
    suits = c.mode is Mode.PLAIN and c.groups == 1 and c.x.dtype in (T.f16, T.bf16)
    return c if suits else None


@register_tactic
class Pair(Tactic):
    """Two convolutions of single taps, the second on what the first leaves in registers."""

    name = "pair"
    target = "cuda"
    source = "JIT_CONVOLUTIONS"
    priority = 50

    def takes_pair(self, first: Region, second: Region, device: Any) -> bool:
        a, b = _plain(first, device), _plain(second, device)
        if a is None or b is None or first.parts or second.parts:
            return False
        y = first.outputs[0]
        last = first.stages[-1].out if first.stages else result_of(first)
        return (
            last is y and b.stored is y and a.rows == b.rows and y.dtype is a.x.dtype
            and a.channels <= _MOST_INNER and b.filters <= _MOST_OUT and a.filters % 64 == 0
            and cost.known(a.rows) >= 16 * device.sms
        )

    def refuse(self, region: Region, device: Any) -> str | None:
        return "one layer"

    def candidates(self, region: Region, device: Any) -> Sequence[Tile]:
        a, b = (convolution_of(p) for p in region.parts)
        wide = _block(a.channels) + _block(b.filters)
        if wide > 256:
            return [Tile(64, 64, 8, 2), Tile(64, 32, 4, 2), Tile(128, 64, 8, 2)]
        shapes = [Tile(128, 64, 8, 3), Tile(128, 64, 8, 2), Tile(64, 64, 4, 3),
                  Tile(128, 64, 4, 2), Tile(256, 64, 8, 2), Tile(64, 64, 4, 2)]  # fmt: skip
        rows = cost.known(a.rows)
        if rows < 128 * device.sms:
            shapes = [Tile(64, 64, 4, 3), Tile(32, 64, 4, 3), Tile(16, 64, 4, 3), *shapes[:1]]
        return shapes

    def build(self, region: Region, candidate: Any, device: Any) -> Kernel:
        return _Builder(region, candidate).build()

