"""Convolutions with one input channel per group: no product of matrices, limited by memory.

A block computes positions by channels, in the order that runs along memory, and walks over the
window. Floors on an H100: 144 channels, 3x3, 56x56, batch 32, f16: 19 µs by bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...ir import dims as D
from ...ir import dtypes as T
from ...ir.graph import Value
from ...regions.region import Region
from ...tactics.kernel import Kernel, Launch
from ...tactics.tactic import register_tactic
from . import cost
from .conv import ConvolutionTactic
from .emit import Frame, is_wide
from .epilogue import Index, epilogue, result_of
from .gemm import acc_dtype
from .product import Tile as Blocks
from .product import Writer, acc_type, ceil_text, divides, unravel, wide
from .windows import Convolution, Positions, convolution_of

_UNROLLED = 64  # window positions written out one by one


@dataclass(frozen=True)
class Tile:
    """Positions and channels of a block."""

    positions: int
    channels: int
    warps: int = 4

    def __str__(self) -> str:
        return f"{self.positions}x{self.channels} w{self.warps}"


class _Builder:
    """Writes the kernel of one candidate."""

    def __init__(self, region: Region, t: Tile):
        node = region.anchor
        assert node is not None
        self.region, self.t = region, t
        self.c = convolution_of(region, phases=False)
        self.frame = Frame(wide=is_wide([*region.inputs, *region.outputs]))
        self.zeros: tuple[Value | None, ...] = (None, None)
        if node.op == "int_conv":
            self.zeros = (*node.inputs[2:4], None, None)[:2]
        self.acc = acc_type(self.c.x.dtype)

    def build(self) -> Kernel:
        c, t, frame = self.c, self.t, self.frame
        count = c.groups * c.filters
        w = Writer()
        columns = ceil_text(frame, count, t.channels)
        w("pid = tl.program_id(0)", f"tm = pid // {columns}",
          f"rm = tm * {t.positions} + tl.arange(0, {t.positions})",
          f"rn = (pid % {columns}) * {t.channels} + tl.arange(0, {t.channels})")  # fmt: skip
        Positions(frame, c, frame.wide).begin(w, Blocks(t.positions, t.channels, 1))
        if not c.last:  # channels before positions, so that neighbours are done together
            w.lines[1] = f"tm = pid % {ceil_text(frame, c.rows, t.positions)}"
            w.lines[3] = w.lines[3].replace(
                f"(pid % {columns})", f"(pid // {ceil_text(frame, c.rows, t.positions)})"
            )
        self._begin(w, count)
        w(f"acc = tl.zeros(({t.positions}, {t.channels}), tl.{self.acc})")
        self._walk(w)
        self._finish(w, count)
        blocks = D.ceil_div(c.rows, t.positions) * -(-count // t.channels)
        return Kernel(
            "depthwise", frame.source("depthwise", w.lines), frame.values, tuple(frame.dims),
            flops=c.rows * (2 * count * c.taps),
            launch=Launch(frame.types, (blocks,), t.warps, 2), notes={"tile": str(t)},
        )  # fmt: skip

    def _begin(self, w: Writer, count: int) -> None:
        c, size = self.c, self.frame.size
        self.inside_n = "" if divides(self.t.channels, count) else f"rn < {count}"
        channel = "rn" if not self.inside_n else f"tl.where({self.inside_n}, rn, 0)"
        w(f"rc = {channel}")
        source = "rc" if c.filters == 1 else f"(rc // {c.filters})"
        far = wide(c.images * c.x_image) and not c.last
        terms = [f"on * {size(c.x_image)}"]
        for d, a in enumerate(c.axes):
            base = "" if a.base == 0 else f" + {size(a.base)}"
            w(f"h{d} = o{d}{f' * {a.mult}' if a.mult != 1 else ''}{base}")
            if a.div == 1:
                terms.append(f"h{d} * {size(c.x_space[d])}")
        along = f"{source}{'.to(tl.int64)' if far else ''} * {size(c.x_channel)}"
        w(f"xp = {self.frame.pointer(c.stored)} + ({' + '.join(terms)})[:, None] "
          f"+ ({along})[None, :]")  # fmt: skip
        if c.w.const is not None:
            w(f"wp = {self.frame.array(_packed(c))} + rc")
        else:
            w(f"wp = {self.frame.pointer(c.w)} + rc * {c.taps}")
        for name, z in zip(("zx", "zw"), self.zeros, strict=True):
            if z is not None:
                at = "" if z.numel == 1 else " + rc"
                w(f"{name} = tl.load({self.frame.pointer(z)}{at}).to(tl.int32)"
                  + ("" if z.numel == 1 else "[None, :]"))  # fmt: skip

    def _walk(self, w: Writer) -> None:
        c = self.c
        if c.taps <= _UNROLLED:
            for tap in range(c.taps):
                self._tap(w, tap, str(tap))
            return
        with w.block(f"for tap in range({c.taps}):"):
            self._tap(w, None, "tap")

    def _tap(self, w: Writer, tap: int | None, text: str) -> None:
        c, size = self.c, self.frame.size
        taps = tuple(a.taps for a in c.axes)
        if tap is None:
            steps = unravel(self.frame, text, taps)
        else:
            steps = [str(int(i)) for i in np.unravel_index(tap, taps)]
        inside, fixed, moved = [], [], []
        for d, a in enumerate(c.axes):
            at = f"h{d}" if steps[d] == "0" else f"(h{d} + {steps[d]} * {a.step})"
            if a.div != 1:
                inside.append(f"({at} >= 0) & ({at} % {a.div} == 0)")
                inside.append(f"({at} // {a.div} < {size(a.size)})")
                moved.append(f"({at} // {a.div}) * {size(c.x_space[d])}")
                continue
            if steps[d] != "0":
                fixed.append(f"{steps[d]} * {size(c.x_space[d] * a.step)}")
            if not a.always_inside:
                inside.append(f"({at} >= 0) & ({at} < {size(a.size)})")
        address = " + ".join(["xp", *fixed, *(f"({m})[:, None]" for m in moved)])
        mask = f", mask=({' & '.join(inside)})[:, None], other=0" if inside else ""
        stride = c.groups * c.filters if c.w.const is not None else 1
        w(f"x = tl.load({address}{mask}).to(tl.{self.acc})",
          f"f = tl.load(wp + {text} * {stride}).to(tl.{self.acc})[None, :]")  # fmt: skip
        if self.zeros[0] is not None:
            w("x = x - zx")
            if inside:
                w(f"x = tl.where(({' & '.join(inside)})[:, None], x, 0)")
        if self.zeros[1] is not None:
            w("f = f - zw")
        w("acc += x * f")

    def _finish(self, w: Writer, count: int) -> None:
        c, t, frame = self.c, self.t, self.frame
        if c.bias is not None:
            bias = f"tl.load({frame.pointer(c.bias)} + rc)"
            w(f"acc += {bias}.to(tl.{self.acc})[None, :]")
        masks: dict[int, str] = {}
        if not divides(t.positions, c.rows):
            masks[0] = f"(rm < {frame.size(c.rows)})[:, None]"
        if self.inside_n:
            masks[1] = f"({self.inside_n})[None, :]"
        names = ["on", *(f"o{d}" for d in range(len(c.axes)))]
        place = [Index(f"{n}[:, None]", (0,)) for n in names]
        index = [place[0], Index("rc[None, :]", (1,)), *place[1:]]
        if "logical" in result_of(self.region).meta:
            index = [*place, index[1]]
        shape = (t.positions, t.channels)
        w(*epilogue(self.region, frame, "acc", index, masks, shape, acc_dtype(c.x.dtype)))


def _packed(c: Convolution) -> np.ndarray[Any, Any]:
    """Constant weights as ``[window position, channel]``."""
    w = np.asarray(c.w.const).reshape(-1, c.taps)
    return np.ascontiguousarray(w.T)


@register_tactic
class Depthwise(ConvolutionTactic):
    """Convolution with one input channel per group."""

    name = "depthwise"
    priority = 60

    def refuse_more(self, region: Region) -> str | None:
        c = convolution_of(region)
        if c.channels != 1 or c.groups == 1:
            return "groups have several input channels"
        if c.x.dtype in (T.f8e4m3, T.f8e5m2):
            return "8-bit floats"
        return None

    def candidates(self, region: Region, device: Any) -> Sequence[Tile]:
        c = convolution_of(region)
        count, rows = c.groups * c.filters, cost.known(c.rows)
        if not c.last:
            return [Tile(256, 1), Tile(128, 1), Tile(512, 1), Tile(64, 4), Tile(1024, 1, 8)]
        shapes = [Tile(32, 64), Tile(16, 64), Tile(64, 64), Tile(16, 128), Tile(64, 32),
                  Tile(8, 64), Tile(32, 32), Tile(128, 16), Tile(32, 128, 8)]  # fmt: skip
        fitting = [t for t in shapes if t.channels < 2 * count] or [Tile(128, 16)]

        def blocks(t: Tile) -> int:
            return -(-rows // t.positions) * -(-count // t.channels)

        def idle(t: Tile) -> float:
            lanes = -(-count // t.channels) * t.channels / count
            return lanes * max(1.0, 4 * device.sms / blocks(t))

        return sorted(fitting, key=idle)

    def build(self, region: Region, candidate: Any, device: Any) -> Kernel:
        return _Builder(region, candidate).build()
