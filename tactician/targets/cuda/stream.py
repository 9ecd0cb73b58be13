"""Convolutions of single taps on bytes as streams: a block keeps the weights of some filters in
shared memory and takes pixels after pixels through them.

The bytes that such layers read and write take longer than their sums, so what counts is that
memory is always asked for what comes next. A step has all channels of some pixels and what is
added to their results; copies of the steps to come are under way while one is computed
(`tl.range` with stages).

Sums come out of the tensor cores with two neighbouring columns in a thread and the next two in
the next. Weights are read so that the sixteen columns that a thread has are neighbours in the
result, and rows are counted so that lanes and warps own what they store: results are then
rounded, joined and written sixteen bytes at a time where they are, without shared memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from ...ir import dims as D
from ...ir import dtypes as T
from ...ir.dims import DimLike
from ...ir.graph import Value
from ...regions.region import Region
from ...tactics.kernel import Kernel, Launch
from ...tactics.tactic import register_tactic
from . import cost
from .arch import Gpu
from .code import WAIT
from .conv import Builder, ConvolutionTactic, rows
from .emit import Frame
from .epilogue import Index
from .gemm import epilogue_bytes
from .product import Operand, Strided, Tile, Writer, loads_ahead, unravel
from .tile import pow2
from .windows import Convolution, Mode, Positions, convolution_of, packed_weights

WIDTH = 64  # columns of a product; lanes of a row have sixteen each
_CHANNELS = (32, 512)
HELD = 2  # products whose factors and offsets a thread keeps in registers
_LEAST = 4  # steps that a block should have


@dataclass(frozen=True)
class StreamTile(Tile):
    """Steps of ``bm`` pixels and all ``bk`` channels.

    Attributes:
        wide: Products of 64 filters for each step.
        taps: Window positions; ``bk`` are the channels of one.
    """

    wide: int = 1
    taps: int = 1
    tall = 1  # outputs that a row of the product stands for

    def __str__(self) -> str:
        return f"{self.bm}x{self.wide * WIDTH}x{self.bk} w{self.warps} s{self.stages} " \
               f"stream{self.persistent}{' near' * self.near}"  # fmt: skip

    @property
    def columns(self) -> int:
        return self.wide * WIDTH


def in_registers(sums: str, t: Tile) -> str:
    """A block of sums ``[bm, 64]`` with rows and columns in the order of `row` and of neighbours:
    a renaming of registers."""
    tall = 16 * t.warps
    shape = f"({t.bm // tall}, {t.warps}, 2, 8, 8, 4, 2)"
    return (f"tl.reshape(tl.permute(tl.reshape({sums}, {shape}), (0, 2, 1, 3, 5, 4, 6)), "
            f"({t.bm}, {WIDTH}))")  # fmt: skip


def row(t: Tile, i: str = "") -> str:
    """Which row of the product each row of `in_registers` is; ``i``: those of interest."""
    i, w = i or f"tl.arange(0, {t.bm})", t.warps
    return (f"({i} // {16 * w} * {16 * w} + {i} // 8 % {w} * 16 + {i} // {8 * w} % 2 * 8 "
            f"+ {i} % 8)")  # fmt: skip


def column() -> str:
    """Which filter each column of the product is."""
    i = f"tl.arange(0, {WIDTH})"
    return f"({i} % 2 + {i} // 8 * 2 + {i} // 2 % 4 * 16)"


def room(
    t: StreamTile, added: int, gpu: Gpu, more_shared: int = 0, more_registers: int = 0
) -> int:
    """Blocks that a multiprocessor has room for; ``added``: bytes of residuals for each sum."""
    inner = t.bk * t.taps
    copies = t.stages * t.bm * inner + (t.stages - 1) * t.bm * t.columns * added
    shared = t.columns * inner + copies + 1024 + more_shared
    if shared > gpu.shared:
        return 0
    held = 32 * t.wide if t.wide <= HELD else 16
    registers = (t.bm * WIDTH // (32 * t.warps) + held + 64 + more_registers) * 32 * t.warps
    return min(gpu.shared_sm // shared, gpu.registers // registers)


class Lines(Positions):
    """Where the rows of a step are that is (a part of) one line of results. Only the place within
    the line differs among rows, so none has to be divided out."""

    def __init__(self, frame: Frame, c: Convolution, big: bool):
        super().__init__(frame, c, big)
        self.width = int(c.outs[-1])  # type: ignore[arg-type]

    def parts(self, t: Tile) -> int:
        """Steps of a line."""
        return -(-self.width // t.bm)

    def suits(self, t: Tile) -> bool:
        """Whether lines nearly fill steps."""
        return self.width >= 0.8 * self.parts(t) * t.bm

    def steps(self, t: Tile) -> DimLike:
        return self.c.images * D.product(self.c.outs[:-1]) * self.parts(t)

    def begin_step(self, w: Writer, t: Tile, order: str, kept: bool) -> None:
        """Names the places of the step ``tm``; ``kept``: inside, so that they can be read."""
        parts, last = self.parts(t), len(self.c.axes) - 1
        step = "tl.cast(tm, tl.int64)" if self.big else "tm"
        line = f"({step} // {parts})" if parts > 1 else step
        at = unravel(self.frame, line, (self.c.images, *self.c.outs[:-1]))
        w(f"on = {at[0]}", *(f"o{d} = {text}" for d, text in enumerate(at[1:])))
        place = f"(tm % {parts}) * {t.bm} + {order}" if parts > 1 else order
        w(f"o{last} = {f'tl.minimum({place}, {self.width - 1})' if kept else place}")

    def inside(self, t: Tile) -> list[str]:
        last = len(self.c.axes) - 1
        return [] if self.width % t.bm == 0 else [f"(o{last} < {self.width})"]

    @property
    def index(self) -> list[Index]:
        *fixed, last = self.names
        return [*(Index(n) for n in fixed), Index(f"{last}[:, None]", (0,))]


def fitting(
    shapes: Sequence[tuple[int, int, int, int]], c: Convolution, bk: int, added: int, device: Any,
    taps: int = 1,
) -> list[StreamTile]:
    """Tiles of ``(bm, wide, warps, stages)`` that have room and enough to do; see `room`."""
    found = []
    for bm, wide, warps, stages in shapes:
        t = StreamTile(bm, WIDTH, bk, warps, stages, group=1, wide=wide, taps=taps)
        if c.filters % t.columns:
            continue
        steps = -(-cost.known(c.rows) // bm) * (c.filters // t.columns)
        most = min(room(t, added, device.gpu), steps // (_LEAST * device.sms))
        if most:
            found.append(replace(t, persistent=most))
    found.sort(key=lambda t: t.persistent * t.warps < 8)  # too few to hide each other's waits
    return list(dict.fromkeys(found))


class Behind(Protocol):
    """A convolution of the results of a stream, in the same kernel."""

    flops: DimLike

    def weights(self, w: Writer, t: StreamTile) -> None:
        """Lines at the start."""

    def begin(self, w: Writer, t: StreamTile) -> None:
        """Lines at the start of a step."""

    def each(self, w: Writer, k: int, y: str) -> None:
        """Lines behind the product ``k`` of a step, whose results are the block ``y``."""

    def end(self, w: Writer, t: StreamTile) -> None:
        """Lines at the end of a step."""


def written(
    builder: Builder, t: StreamTile, a: Operand, data: np.ndarray[Any, Any], symbol: str,
    second: Behind | None = None,
) -> Kernel:
    """The kernel of a convolution with packed weights ``[1, filters, bk]``; `a` gives a step's
    pixels. (Its names for where a pixel is come from ``builder.positions``.)"""
    c, frame, w = builder.c, builder.frame, Writer()
    builder.data, builder.in_place = data, True
    builder.shift_w, builder.beside, builder.runtime_sums = 0, False, False
    line = t.taps * t.bk
    b = Strided(frame, data, T.i8, False, c.filters, line, line, 1, "", data.size)
    beside = c.filters // t.columns
    w("pid = tl.program_id(0)", f"rk = tl.arange(0, {t.bk})",
      f"first = (pid % {beside}) * {t.columns}" if beside > 1 else "first = 0")  # fmt: skip
    for k in range(t.wide):
        w(f"rn = first + {k * WIDTH} + {column()}",
          f"c{k} = first + {k * WIDTH} + tl.arange(0, {WIDTH})")  # fmt: skip
        b.setup(w, t, "0")
        for i in range(t.taps):
            w(f"w{k}_{i} = {b.load(w, t)}")
            b.advance(w, t)
    if second is not None:
        second.weights(w, t)
    behind, made = [], []
    for k in range(t.wide):
        builder.prefix, builder.channel = f"e{k}_", f"c{k}"
        behind.append(ends(builder, "sums"))
        made.append(list(builder.stored.values())[-1:])
    for k, (ahead, rest) in enumerate(behind):
        if t.wide <= HELD:
            w(*ahead)
        else:
            behind[k] = [], ahead + rest
    w(WAIT)  # so far only constants were read
    p = builder.positions
    steps = p.steps(t) if isinstance(p, Lines) else D.ceil_div(c.rows, t.bm)
    with w.block(
        f"for tm in tl.range(pid // {beside}, {frame.size(steps)}, "
        f"tl.num_programs(0) // {beside}, num_stages={t.stages}):"
    ):
        _begin(w, builder, t, a)
        if second is not None:
            second.begin(w, t)
        for k, (_, rest) in enumerate(behind):
            for i in range(t.taps):
                w(f"sums = tl.dot(a{i}, w{k}_{i}, {'sums, ' * (i > 0)}out_dtype=tl.int32)")
            w(f"sums = {in_registers('sums', t)}", *rest)
            if second is not None:
                second.each(w, k, *made[k])
        if second is not None:
            second.end(w, t)
    blocks = builder.device.sms * t.persistent // beside
    grid = (D.dim_min(steps, max(1, blocks)) * beside,)
    return Kernel(
        symbol, frame.source(symbol, w.lines), frame.values, tuple(frame.dims),
        flops=c.rows * (2 * c.filters * c.channels * c.taps) + (second.flops if second else 0),
        launch=Launch(frame.types, grid, t.warps, t.stages), notes={"tile": str(t)},
    )  # fmt: skip


def ends(builder: Builder, sums: str) -> tuple[list[str], list[str]]:
    """What becomes of the sums of a product: loads of constants, and the rest."""
    w = Writer()
    builder.finish(w, sums)
    fixed = [f"p{n}" for n, a in enumerate(builder.frame.values)
             if not isinstance(a, Value) or a.const is not None]  # fmt: skip
    return loads_ahead(w.lines, fixed)


def _begin(w: Writer, builder: Builder, t: StreamTile, a: Operand) -> None:
    """Loads the pixels of the step ``tm`` as ``a0``, …; names where the rows of its sums are."""
    p, natural = builder.positions, f"tl.arange(0, {t.bm})"
    if builder.zeros[0] is not None:
        w(f"zx = tl.load({builder.frame.pointer(builder.zeros[0])})")
    if isinstance(p, Lines):
        p.begin_step(w, t, natural, True)
    else:
        w(f"rm = tm * {t.bm} + {natural}")
        if builder.c.mode is not Mode.PLAIN:
            p.begin(w, t)
    a.setup(w, t, "0")
    for i in range(t.taps):
        w(f"it = {i}")
        w(f"a{i} = {a.load(w, t)}")
    if isinstance(p, Lines):
        p.begin_step(w, t, row(t), False)
    else:
        w(f"rm = tm * {t.bm} + {row(t)}")
        p.begin(w, t)


@register_tactic
class Stream(ConvolutionTactic):
    """Convolution of single taps on bytes with few channels; weights stay, pixels pass."""

    name = "stream"
    priority = 45

    def refuse_more(self, region: Region) -> str | None:
        c, node = convolution_of(region), region.anchor
        assert node is not None
        if node.op != "int_conv" or c.x.dtype is not T.i8:
            return "not a convolution of signed bytes"
        if c.groups != 1 or not c.last or c.mode not in (Mode.PLAIN, Mode.TAPS):
            return "not a product of pixels and filters"
        if any(a.div != 1 for a in c.axes) or not D.is_static(*c.outs):
            return "not windows with known extents"
        pointed = any(v is not None for v in node.inputs[3:])
        if c.w.const is None or c.w.dtype is not T.i8 or pointed:
            return "weights are no constant signed bytes without a zero point"
        low, high = _CHANNELS
        if pow2(c.channels) != c.channels or not low <= c.channels <= high:
            return f"{c.channels} channels are no power of two from {low} to {high}"
        if c.filters % WIDTH:
            return f"{c.filters} filters are no multiple of {WIDTH}"
        if any(v.dtype.size > 4 for v in region.outputs):
            return "results have more than four bytes"
        return None

    def refuse_kind(self, region: Region, device: Any) -> str | None:
        """Why no stream can do the region, whatever its size."""
        return super().refuse(region, device)

    def refuse(self, region: Region, device: Any) -> str | None:
        why = self.refuse_kind(region, device)
        if why is None and not self.candidates(region, device):
            return "there are too few pixels, or there is no room for the weights"
        return why

    def _windows(self, region: Region, device: Any) -> list[StreamTile]:
        """Tiles of windows of several positions."""
        c = convolution_of(region)
        shapes = ((64, 1, 4, 2), (64, 2, 4, 2), (64, 1, 4, 3), (128, 1, 8, 2), (128, 2, 8, 2))
        found = fitting(shapes, c, c.channels, epilogue_bytes(region) - 1, device, c.taps)
        found = [t for t in found if t.persistent * t.warps >= 8]
        return [x for t in found for x in (replace(t, near=True), t)]

    def candidates(self, region: Region, device: Any) -> Sequence[StreamTile]:
        c = convolution_of(region)
        if c.taps > 1:
            return self._windows(region, device)
        shapes = [(64, 2, 4, 3), (64, 1, 4, 3), (64, 4, 4, 3), (128, 2, 8, 3), (128, 1, 4, 3),
                  (64, 2, 4, 2), (64, 1, 4, 4), (128, 4, 8, 2), (64, 1, 4, 2)]  # fmt: skip
        if c.channels >= 512:  # there is room for one block, or two small ones
            shapes = [(128, 2, 8, 2), (64, 1, 4, 2), (64, 2, 4, 2), *shapes]
        return fitting(shapes, c, c.channels, epilogue_bytes(region) - 1, device)

    def build(self, region: Region, candidate: Any, device: Any) -> Kernel:
        builder = Builder(region, candidate, device)
        c, zero = builder.c, builder.zeros[0]
        lines = Lines(builder.frame, c, builder.frame.wide)
        if c.taps > 1 and not c.axes[-1].always_inside and lines.suits(candidate):
            builder.positions = lines
        a = rows(builder.frame, c, "0" if zero is None else "zx", "")
        return written(builder, candidate, a, packed_weights(c, candidate.bk, T.i8, 16), "stream")

