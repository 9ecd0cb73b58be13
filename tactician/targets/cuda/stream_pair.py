"""Two convolutions of single taps on bytes as one stream (see `stream`): an expansion with its
residual, and the reduction that reads it.

What the first computes for some pixels is stored, and multiplied with the second's weights while
it is there, so the largest tensor of a bottleneck is not read back. Bytes that ResNet-50's on
56x56, batch 128, move: 231 MB by the first and 128 MB by the second apart, 257 MB together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ...ir import dtypes as T
from ...regions.region import Region
from ...tactics.kernel import Kernel
from ...tactics.tactic import Tactic, register_tactic
from . import cost
from .conv import Builder, rows
from .epilogue import result_of
from .gemm import epilogue_bytes
from .product import Writer
from .stream import WIDTH, Stream, StreamTile, column, ends, in_registers, room, row, written
from .windows import Convolution, Mode, Positions, convolution_of, packed_weights

_MOST = 256  # channels between the two, whose weights stay on both sides
_SHAPES = ((64, 4, 3), (64, 4, 2), (128, 8, 2), (128, 8, 3))


class _Second:
    """The reduction; sums of a step are ``s0``, ``s1``, … with 64 filters each."""

    def __init__(self, builder: Builder, first: Builder):
        c = builder.c
        builder.frame, builder.in_place = first.frame, True
        builder.positions = Positions(first.frame, c, first.frame.wide)
        builder.data = packed_weights(c, c.channels, T.i8, 16)
        self.builder, self.wide = builder, c.filters // WIDTH
        self.flops = c.rows * (2 * c.filters * c.channels)
        self.rest: list[list[str]] = []

    def weights(self, w: Writer, t: StreamTile) -> None:
        b = self.builder
        assert b.data is not None
        start, line = b.frame.array(b.data), b.c.channels
        for j in range(self.wide):
            w(f"d{j} = {j * WIDTH} + tl.arange(0, {WIDTH})",
              f"rn = {j * WIDTH} + {column()}")  # fmt: skip
            for k in range(t.wide):
                w(f"v{k}_{j} = tl.load({start} + (rn * {line})[None, :] + "
                  f"({k * WIDTH} + tl.arange(0, {WIDTH}))[:, None])")  # fmt: skip
            b.prefix, b.channel = f"f{j}_", f"d{j}"
            ahead, rest = ends(b, "sums")
            if self.wide == 1:
                w(*ahead)
            self.rest.append(rest if self.wide == 1 else ahead + rest)

    def begin(self, w: Writer, t: StreamTile) -> None:
        w(*(f"s{j} = tl.zeros(({t.bm}, {WIDTH}), tl.int32)" for j in range(self.wide)))

    def each(self, w: Writer, k: int, y: str) -> None:
        w(*(f"s{j} = tl.dot({y}, v{k}_{j}, s{j}, out_dtype=tl.int32)" for j in range(self.wide)))

    def end(self, w: Writer, t: StreamTile) -> None:
        w(f"ri = {row(t)}", f"rm = tm * {t.bm} + {row(t, 'ri')}")
        self.builder.positions.begin(w, t)
        zero = self.builder.zeros[0]
        if zero is not None:
            w(f"zx = tl.load({self.builder.frame.pointer(zero)})")
        for j, rest in enumerate(self.rest):
            w(f"sums = {in_registers(f's{j}', t)}", *rest)


def _held(second: Convolution) -> int:
    """Bytes of the second's weights."""
    return second.channels * second.filters


@register_tactic
class StreamPair(Tactic):
    """An expansion of bytes and the reduction behind it, both of single taps."""

    name = "stream_pair"
    target = "cuda"
    source = "JIT_CONVOLUTIONS"
    priority = 45
    joins = True

    def takes_pair(self, first: Region, second: Region, device: Any) -> bool:
        for part in (first, second):
            if part.parts or Stream().refuse_kind(part, device) is not None:
                return False
        a, b, y = convolution_of(first), convolution_of(second), first.outputs[0]
        last = first.stages[-1].out if first.stages else result_of(first)
        assert second.anchor is not None
        zero = (*second.anchor.inputs, None, None)[2]
        return (
            a.mode is b.mode is Mode.PLAIN and last is y and b.stored is y and y.dtype is T.i8
            and len(first.outputs) == 1 and a.rows == b.rows and b.filters <= 2 * WIDTH
            and a.filters <= _MOST and (zero is None or zero.const is not None)
            and bool(self._tiles(first, second, device))
        )

    def refuse(self, region: Region, device: Any) -> str | None:
        if len(region.parts) == 2 and self.takes_pair(region.parts[0], region.parts[1], device):
            return None
        return "not two convolutions of single taps on bytes"

    def candidates(self, region: Region, device: Any) -> Sequence[StreamTile]:
        first, second = region.parts
        return self._tiles(first, second, device)

    def _tiles(self, first: Region, second: Region, device: Any) -> list[StreamTile]:
        a, b = convolution_of(first), convolution_of(second)
        found = []
        for bm, warps, stages in _SHAPES:
            t = StreamTile(bm, WIDTH, a.channels, warps, stages, group=1, wide=a.filters // WIDTH)
            sums = bm * b.filters // (32 * warps)
            more = _held(b) + bm * WIDTH, sums + (32 if b.filters == WIDTH else 0)
            blocks = room(t, epilogue_bytes(first) - 1, device.gpu, *more)
            most = min(blocks, -(-cost.known(a.rows) // bm) // (4 * device.sms))
            if most * warps >= 8:
                found.append(replace(t, persistent=most))
        return found

    def build(self, region: Region, candidate: Any, device: Any) -> Kernel:
        first, second = (Builder(part, candidate, device) for part in region.parts)
        c, zero = first.c, first.zeros[0]
        a = rows(first.frame, c, "0" if zero is None else "zx", "")
        data = packed_weights(c, candidate.bk, T.i8, 16)
        behind = _Second(second, first)
        return written(first, candidate, a, data, "stream_pair", behind)

