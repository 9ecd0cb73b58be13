"""Tactic: convolutions with few output channels, of which several output rows share a vector.

A vector of channels of one pixel is wasted in part where channels are fewer than lanes, and feeds
only one multiply-add per input that is read. Here a vector holds some channels of a pixel in each
of a few output rows: lane ``l`` belongs to channel ``l // share`` and to row ``l % share``. The
input is copied first, with what surrounds it, so that the numbers which these rows read lie side
by side: one load spreads them over a vector (`lanes_of_rows`). Along a row every input is read once
and multiplied at once with the weights of all taps that see it, which stay in registers
(`slide`). There are no borders: the copy has zeros there.

Floor per layer: ``2 * pixels * K * C * taps`` operations at the core's FMA peak.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ...ir import dims as D
from ...ir.dtypes import f32
from ...ops._windows import Axis
from ...ops.conv import conv_axes, kernel_extents
from ...regions.region import Region
from ...regions.signature import signature
from ...tactics.kernel import Kernel, SourceCache
from ...tactics.tactic import Tactic, register_tactic
from .conv_common import Problem, single, stored_last, unsuited
from .conv_rows_ir import Builder, Rows, Source, source_of
from .isa import Isa

_THREAD_FLOPS = 100_000  # see `conv_direct`
_FEW_VECTORS = 4  # that the channels fill at most,
_FEW, _FEWER = 64, 8  # unless so many come out at most of so few
_MOST_ROWS = 16  # rows of an item per sharing row, where the image is large
_MOST_COPIED = 3  # of the second cache's bytes, as a part: what an item may copy
_LATENCY = 4  # cycles from one multiply-add to the next on its sum
_PER_RESULT = 4  # cycles that a vector of results takes for each row in it
_PER_COPY = 2  # cycles that a copied vector takes
_PER_TILE = 30  # cycles of a tile's call
_WRITTEN_OUT = 400  # multiply-adds in the body of a tile's inner loop at most
_MOST = 4  # candidates
_SOURCES = SourceCache()


@register_tactic
class RowConvolution(Tactic):
    """Convolution of f32 tensors to few channels, channels-last, with constant weights."""

    name = "conv_rows"
    target = "cpu"
    priority = 45

    def wants_channels_last(self, region: Region, device: Any) -> bool:
        return _unsuited(region, device) is None

    def refuse(self, region: Region, device: Any) -> str | None:
        why = _unsuited(region, device)
        if why is not None:
            return why
        if not all(map(stored_last, region.outputs)):
            return "the result is not stored channels-last"
        p = Problem(region)
        if p.by_image or len(p.axes) > 2:
            return "needs one or two spatial dimensions"
        if p.x_channel == 1 and p.pitch != p.channels:
            return "pixels of the input are not side by side"
        return None if next(choices(p, device), None) else "a row of the input is too long to copy"

    def candidates(self, region: Region, device: Any) -> Sequence[Hashable]:
        p = Problem(region)
        ranked = sorted(choices(p, device), key=lambda t: _cycles(p, t, device))
        return ranked[:_MOST]

    def build(self, region: Region, candidate: Any, device: Any) -> Kernel:
        p = Problem(region)
        return kernel_of(Builder(p, candidate, device.isa, pack(p, candidate)), region, device)


def kernel_of(builder: Builder, region: Region, device: Any) -> Kernel:
    """What a builder builds."""
    p, t = builder.p, builder.t
    key = f"{device.isa.fingerprint} {t!r} {signature(region)}"
    source, dims = _SOURCES.get(key, builder.generate)
    flops = p.images * D.product(a.out for a in p.axes) * (2 * p.k * p.c * p.shape.taps)
    work = builder.work()
    item = D.floor_div(flops, work)
    size = item if isinstance(item, int) else 2 * t.rows * t.share * p.k * p.c * 64
    return Kernel(
        symbol=builder.symbol, source=source, args=tuple(builder.args), dims=dims, work=work,
        grain=max(1, _THREAD_FLOPS // max(size, 1)), flops=flops, scratch=builder.scratch(),
    )  # fmt: skip


def _unsuited(region: Region, device: Any) -> str | None:
    """Why no kernel of this kind can do the region whatever its layouts, or None."""
    why = unsuited(region, device)
    if why is not None:
        return why
    node = region.anchor
    assert node is not None
    x, w = node.inputs[0], node.inputs[1]
    assert x is not None and w is not None
    if x.dtype is not f32:
        return f"an input of {x.dtype}"
    if node.attrs.groups > 1:
        return "channels come in groups"
    lanes, (k, c) = device.isa.lanes(32), (int(d) for d in w.dims[:2])  # type: ignore[arg-type]
    if k > _FEW_VECTORS * lanes and (k > _FEW or c > _FEWER):
        return f"{k} channels fill many vectors"
    if lanes < 4 or k == 1:
        return "needs several channels and vectors of at least four"
    axes = [a for a in conv_axes(x.dims[2:], kernel_extents(w), node.attrs) if not single(a)]
    if len(axes) > 2:
        return "needs one or two spatial dimensions"
    if not axes or all(a.window == 1 for a in axes):
        return "a single tap does not pay for a copy of the input"
    return None


# --- candidates ------------------------------------------------------------------------------


def choices(p: Problem, device: Any) -> Iterator[Rows]:
    """All tiles that fit the machine, with rows for all threads."""
    for t in tiles(p, device.isa):
        rows = _rows(p, t, device)
        if rows:
            yield replace(t, rows=rows)


def tiles(p: Problem, isa: Isa) -> Iterator[Rows]:
    """All tiles that fit the registers, of items of one row."""
    lanes, room = isa.lanes(32), isa.vector_registers - 1
    row, column = _two(p)
    for share in _shares(row, lanes):
        vectors = -(-p.k * share // lanes)
        for nv in sorted({min(vectors, n) for n in (1, 2, 3, 4)}):
            for taps in _groups(column.window):
                for pixels in _widths(column.out, (room - 1 - taps * nv) // nv):
                    if pixels * taps * nv <= _WRITTEN_OUT:
                        yield Rows(share, pixels, nv, taps, lanes, 1)


def _shares(row: Axis, lanes: int) -> list[int]:
    """Numbers of rows that may share a vector, so that each has at least two lanes."""
    if row.out == 1:
        return [1]
    return [q for q in (1, 2, 4, 8) if 2 * q <= lanes]


def _groups(window: int) -> list[int]:
    """Numbers of taps that may be done at once: parts of a row of the window, about equal."""
    return sorted({-(-window // n) for n in range(1, window + 1)})


def _widths(width: D.DimLike, most: int) -> list[int]:
    """Pixels that register tiles may have: the most, and the fewest with which a row has as many
    tiles."""
    if most < 1:
        return []
    if not isinstance(width, int):
        return [most]
    fewest = -(-width // -(-width // most))
    return [fewest] if fewest <= most else []


def _rows(p: Problem, t: Rows, device: Any) -> int:
    """Rows of an item for each that shares a vector: so that all threads get about the same, and
    rows that several windows see are not copied too often; 0: none fit."""
    source = source_of(p, t)
    row, _ = _two(p)
    height = row.out
    one = source.row_bytes
    room = device.isa.l2 // _MOST_COPIED
    if not isinstance(one, int):
        return max(1, _MOST_ROWS // t.share)
    fit = [n for n in range(1, _MOST_ROWS * 2) if source.rows(n) * one <= room]
    if not isinstance(height, int) or not isinstance(p.images, int):
        return min(fit[-1], max(1, _MOST_ROWS // t.share)) if fit else 0
    fit = [n for n in fit if n == 1 or (n - 1) * t.share < height]
    if not fit:
        return 0
    compute, copy = row_cycles(p, t, device), copy_cycles(p, t)

    def busiest(n: int) -> float:
        items = p.images * -(-height // (n * t.share))
        return -(-items // device.threads) * (n * compute + source.rows(n) * copy)

    return min(reversed(fit), key=busiest)


def row_cycles(p: Problem, t: Rows, device: Any) -> float:
    """Modelled cycles of a row of register tiles of all channels."""
    _, column = _two(p)
    width = column.out if isinstance(column.out, int) else 4 * t.pixels
    tiles, total, wide = -(-width // t.pixels), 0.0, device.isa.vector_bits >= 512
    vectors = -(-p.k * t.share // t.lanes)
    blocks = [t.vectors] * (vectors // t.vectors)
    blocks += [vectors % t.vectors] if vectors % t.vectors else []
    for nv in blocks:
        cycles = 0.0
        for _, taps in t.groups(column.window):
            loads = len(t.places(taps, column)) + taps * nv
            products = t.pixels * nv * taps
            cycles += max(
                products / 2, loads / (1 if wide else 2), taps * _LATENCY, 4.0
            ) + 0.5
        steps = p.c * (p.shape.taps // column.window)
        total += tiles * (cycles * steps + _PER_RESULT * t.pixels * nv * t.share + _PER_TILE)
    return total


def copy_cycles(p: Problem, t: Rows) -> float:
    """Modelled cycles of a copied row."""
    source = source_of(p, t)
    if not source.copies or not isinstance(source.row_bytes, int):
        return 0.0
    return source.row_bytes / 4 / t.lanes * _PER_COPY


def _cycles(p: Problem, t: Rows, device: Any) -> float:
    """Modelled cycles of a thread that has most of the work."""
    row, _ = _two(p)
    height = row.out if isinstance(row.out, int) else 8 * t.rows * t.share
    images = p.images if isinstance(p.images, int) else 1
    source = source_of(p, t)
    items = images * -(-height // (t.rows * t.share))
    busiest = -(-items // device.threads)
    return busiest * (
        t.rows * row_cycles(p, t, device) + source.rows(t.rows) * copy_cycles(p, t)
    )


def _two(p: Problem) -> tuple[Axis, Axis]:
    return Source.axes(p)


# --- weights ---------------------------------------------------------------------------------


def pack(p: Problem, t: Rows) -> np.ndarray[Any, Any]:
    """Weights as ``[block][bias +][rows of the window][groups of taps][C][taps][vectors][lanes]``,
    zero-padded, every channel in as many lanes as rows share a vector."""
    w = p.w.const
    assert w is not None
    window = p.axes[-1].window
    channels = t.channels
    blocks = -(-p.k // channels)
    full = np.zeros((blocks * channels, p.c, p.shape.taps // window, window), np.float32)
    full[: p.k] = np.asarray(w, np.float32).reshape(p.k, p.c, -1, window)
    spread = np.repeat(full, t.share, axis=0).reshape(blocks, t.vectors, t.lanes, *full.shape[1:])
    parts = []
    for first, count in t.groups(window):
        part = spread[..., first : first + count]  # block, vector, lane, C, row, tap
        parts.append(part.transpose(0, 4, 3, 5, 1, 2).reshape(blocks, full.shape[2], -1))
    flat = np.concatenate(parts, axis=2).reshape(blocks, -1)
    if p.bias is not None:
        assert p.bias.const is not None
        bias = np.zeros(blocks * channels, np.float32)
        bias[: p.k] = p.bias.const
        flat = np.concatenate([np.repeat(bias, t.share).reshape(blocks, -1), flat], axis=1)
    return np.ascontiguousarray(flat)
