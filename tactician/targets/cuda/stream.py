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
from typing import Any

from ...ir import dims as D
from ...ir import dtypes as T
from ...ir.graph import Value
from ...regions.region import Region
from ...tactics.kernel import Kernel, Launch
from ...tactics.tactic import register_tactic
from . import cost
from .arch import Gpu
from .conv import Builder, ConvolutionTactic, rows
from .gemm import epilogue_bytes
from .product import Strided, Tile, Writer, loads_ahead
from .tile import pow2
from .windows import Mode, convolution_of, packed_weights

_WIDTH = 64  # columns of a product; lanes of a row have sixteen each
_CHANNELS = (32, 512)
_HELD = 2  # products whose factors and offsets a thread keeps in registers
_LEAST = 4  # steps that a block should have


@dataclass(frozen=True)
class StreamTile(Tile):
    """Steps of ``bm`` pixels and all ``bk`` channels.

    Attributes:
        wide: Products of 64 filters for each step.
    """

    wide: int = 1

    def __str__(self) -> str:
        return f"{self.bm}x{self.wide * _WIDTH}x{self.bk} w{self.warps} s{self.stages} " \
               f"stream{self.persistent}"  # fmt: skip

    @property
    def columns(self) -> int:
        return self.wide * _WIDTH


def in_registers(sums: str, t: Tile) -> str:
    """A block of sums ``[bm, 64]`` with rows and columns in the order of `row` and of neighbours:
    a renaming of registers."""
    tall = 16 * t.warps
    shape = f"({t.bm // tall}, {t.warps}, 2, 8, 8, 4, 2)"
    return (f"tl.reshape(tl.permute(tl.reshape({sums}, {shape}), (0, 2, 1, 3, 5, 4, 6)), "
            f"({t.bm}, {_WIDTH}))")  # fmt: skip


def row(t: Tile) -> str:
    """Which row of the product each row of `in_registers` is."""
    i, w = f"tl.arange(0, {t.bm})", t.warps
    return (f"({i} // {16 * w} * {16 * w} + {i} // 8 % {w} * 16 + {i} // {8 * w} % 2 * 8 "
            f"+ {i} % 8)")  # fmt: skip


def column() -> str:
    """Which filter each column of the product is."""
    i = f"tl.arange(0, {_WIDTH})"
    return f"({i} % 2 + {i} // 8 * 2 + {i} // 2 % 4 * 16)"


def room(t: StreamTile, added: int, gpu: Gpu) -> int:
    """Blocks that a multiprocessor has room for; ``added``: bytes of residuals for each sum."""
    copies = t.stages * t.bm * t.bk + (t.stages - 1) * t.bm * t.columns * added
    shared = t.columns * t.bk + copies + 1024
    if shared > gpu.shared:
        return 0
    held = 32 * t.wide if t.wide <= _HELD else 16
    registers = (t.bm * _WIDTH // (32 * t.warps) + held + 64) * 32 * t.warps
    return min(gpu.shared_sm // shared, gpu.registers // registers)


class _Builder(Builder):
    t: StreamTile
    in_place = True

    def build(self) -> Kernel:
        c, t, frame, w = self.c, self.t, self.frame, Writer()
        self.data = packed_weights(c, t.bk, T.i8, 16)
        self.shift_w, self.beside, self.runtime_sums = 0, False, False
        a = rows(frame, c, "0" if self.zeros[0] is None else "zx", "")
        b = Strided(frame, self.data, T.i8, False, c.filters, t.bk, self.data.shape[2], 1, "",
                    self.data.size)  # fmt: skip
        beside = c.filters // t.columns
        w("pid = tl.program_id(0)", f"rk = tl.arange(0, {t.bk})",
          f"first = (pid % {beside}) * {t.columns}" if beside > 1 else "first = 0")  # fmt: skip
        for k in range(t.wide):
            w(f"rn = first + {k * _WIDTH} + {column()}",
              f"c{k} = first + {k * _WIDTH} + tl.arange(0, {_WIDTH})")  # fmt: skip
            b.setup(w, t, "0")
            w(f"w{k} = {b.load(w, t)}")
        ends = [self._ends(k) for k in range(t.wide)]
        for k, (ahead, _) in enumerate(ends):
            if t.wide <= _HELD:
                w(*ahead)
            else:
                ends[k] = [], ahead + ends[k][1]
        steps = D.ceil_div(c.rows, t.bm)
        with w.block(
            f"for tm in tl.range(pid // {beside}, {frame.size(steps)}, "
            f"tl.num_programs(0) // {beside}, num_stages={t.stages}):"
        ):
            self._step(w, a, [lines for _, lines in ends])
        source = frame.source("stream", w.lines)
        blocks = self.device.sms * t.persistent // beside
        grid = (D.dim_min(steps, max(1, blocks)) * beside,)
        return Kernel(
            "stream", source, frame.values, tuple(frame.dims),
            flops=c.rows * (2 * c.filters * c.channels),
            launch=Launch(frame.types, grid, t.warps, t.stages), notes={"tile": str(t)},
        )  # fmt: skip

    def _ends(self, k: int) -> tuple[list[str], list[str]]:
        """What becomes of the sums of a product: loads of constants, and the rest."""
        w, self.prefix, self.channel = Writer(), f"e{k}_", f"c{k}"
        self._finish(w, "sums")
        fixed = [f"p{n}" for n, a in enumerate(self.frame.values)
                 if not isinstance(a, Value) or a.const is not None]  # fmt: skip
        return loads_ahead(w.lines, fixed)

    def _step(self, w: Writer, a: Any, ends: list[list[str]]) -> None:
        t = self.t
        w(f"rm = tm * {t.bm} + tl.arange(0, {t.bm})")
        if self.zeros[0] is not None:
            w(f"zx = tl.load({self.frame.pointer(self.zeros[0])})")
        if self.c.mode is not Mode.PLAIN:  # pixels that are left out lie between
            self.positions.begin(w, t)
            w("it = 0")
        a.setup(w, t, "0")
        pixels = a.load(w, t)
        w(f"rm = tm * {t.bm} + {row(t)}")
        self.positions.begin(w, t)
        for k, lines in enumerate(ends):
            w(f"sums = tl.dot({pixels}, w{k}, out_dtype=tl.int32)",
              f"sums = {in_registers('sums', t)}", *lines)  # fmt: skip


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
        apart = all(a.div == 1 and a.always_inside for a in c.axes)
        if c.taps > 1 or c.groups != 1 or not c.last or not (c.mode is Mode.PLAIN or apart):
            return "not a product of pixels and filters"
        pointed = any(v is not None for v in node.inputs[3:])
        if c.w.const is None or c.w.dtype is not T.i8 or pointed:
            return "weights are no constant signed bytes without a zero point"
        low, high = _CHANNELS
        if pow2(c.channels) != c.channels or not low <= c.channels <= high:
            return f"{c.channels} channels are no power of two from {low} to {high}"
        if c.filters % _WIDTH:
            return f"{c.filters} filters are no multiple of {_WIDTH}"
        if any(v.dtype.size > 2 for v in region.outputs):
            return "results have more than two bytes"
        return None

    def candidates(self, region: Region, device: Any) -> Sequence[StreamTile]:
        c = convolution_of(region)
        added = epilogue_bytes(region) - 1
        found = []
        for bm, wide, warps, stages in (
            (64, 2, 4, 3), (64, 1, 4, 3), (64, 4, 4, 3), (128, 2, 8, 3), (128, 1, 4, 3),
            (64, 2, 4, 2), (64, 1, 4, 4), (128, 4, 8, 2), (64, 1, 4, 2),
        ):  # fmt: skip
            t = StreamTile(bm, _WIDTH, c.channels, warps, stages, group=1, wide=wide)
            if c.filters % t.columns:
                continue
            steps = -(-cost.known(c.rows) // bm) * (c.filters // t.columns)
            most = min(room(t, added, device.gpu), steps // (_LEAST * device.sms))
            if most:
                found.append(replace(t, persistent=most))
        found.sort(key=lambda t: t.persistent * t.warps < 8)  # too few to hide each other's waits
        return found or [StreamTile(64, _WIDTH, c.channels, 4, 2, persistent=1)]

    def build(self, region: Region, candidate: Any, device: Any) -> Kernel:
        return _Builder(region, candidate, device).build()

