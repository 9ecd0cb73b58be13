"""Tactics: convolutions and matrix products with constant weights on tile registers (AMX).

Floor per layer: a product of full tiles, 16 rows by 16 columns by 64 bytes, every 16 cycles: 2048
operations a cycle in bf16, 4096 in bytes.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any

from ...ir import dims as D
from ...ir import expr as E
from ...regions.region import Region
from ...tactics.kernel import Kernel
from ...tactics.tactic import Tactic, register_tactic
from . import bf16_conv, int_problem
from .conv_common import stored_otherwise
from .tile_builder import TileBuilder
from .tile_ir import ROW_BYTES, ROWS
from .tile_problem import (
    Blocks,
    TileBytes,
    TileFloats,
    gather,
    may_gather,
    reading,
    row_of_tiles,
    tile_rows,
    writes_far,
)

_SHAPES = ((2, 2), (4, 1), (1, 4), (2, 1), (1, 2), (1, 1))
_ASSUMED = 256  # rows of tiles where only the run knows
_LATENCY = 52  # cycles from a product of full tiles to one that adds to the same sums
_L2_LINES = 0.75  # lines a cycle that come from the second cache
_STREAMED = 1 << 18  # bytes of weights that no cache near the core keeps from run to run
_READ_OFTEN = 8  # panels
_MOST_ROWS = 16  # of tiles in a work item


class _TileTactic(Tactic):
    """What the tactics of both kinds of numbers share."""

    target = "cpu"
    anchors: tuple[str, str]  # a convolution's op, and a product's
    problem: type

    def _unsuited(self, region: Region, device: Any) -> str | None:
        """Why numbers of this kind can't be multiplied so, whatever the layouts."""
        raise NotImplementedError

    def wants_channels_last(self, region: Region, device: Any) -> bool:
        conv = region.anchor is not None and region.anchor.op == self.anchors[0]
        return conv and device.isa.amx and self._why(region, device) is None

    def refuse(self, region: Region, device: Any) -> str | None:
        if not device.isa.amx:
            return "the CPU has no tiles, or does not let this process use them"
        why = self._why(region, device)
        if why is not None:
            return why
        assert region.anchor is not None
        return stored_otherwise(region) if region.anchor.op == self.anchors[0] else None

    def _why(self, region: Region, device: Any) -> str | None:
        why = self._unsuited(region, device)
        if why is not None:
            return why
        p = self.problem(region)
        if p.depthwise:
            return "channels do not meet"
        if p.groups > 1 and (p.k // p.groups) % ROWS:
            return f"{p.k // p.groups} channels per group are no multiple of {ROWS}"
        if not p.representable:
            return "weights, zero points subtracted, are no bytes"
        if any(int(a.pre) < 0 for a in p.axes):
            return "the padding is negative"
        if p.images * D.product(a.out for a in p.axes) == 1:
            return "one row of a tile would be used"
        return None

    def candidates(self, region: Region, device: Any) -> Sequence[Hashable]:
        return blocks(self.problem(region), device)

    def build(self, region: Region, candidate: Any, device: Any) -> Kernel:
        return TileBuilder(self.problem(region), candidate, device.isa, self.name).build()


@register_tactic
class TiledBf16(_TileTactic):
    """Convolution of bf16 channels-last tensors, and matrix products, with constant weights."""

    name = "amx_bf16"
    priority = 60
    anchors = ("convolution", "matmul")
    problem = TileFloats

    def _unsuited(self, region: Region, device: Any) -> str | None:
        return bf16_conv.unsuited(region, device, device.isa.amx)


@register_tactic
class TiledBytes(_TileTactic):
    """Convolution of 8-bit channels-last tensors, and matrix products, with constant weights."""

    name = "amx_int8"
    priority = 60
    anchors = ("int_conv", "int_matmul")
    problem = TileBytes

    def _unsuited(self, region: Region, device: Any) -> str | None:
        return int_problem.unsuited(region, device)


# --- choosing blocks ----------------------------------------------------------------------------


def blocks(p: Any, device: Any) -> list[Blocks]:
    """Blocks of tiles that suit the problem, the most promising first."""
    rows, columns = tile_rows(p), -(-p.k // ROWS)
    per_group = p.k // p.groups // ROWS
    count = rows if isinstance(rows, int) else _ASSUMED
    late = _late(p)

    def shapes() -> list[tuple[int, int]]:
        fit = [
            (ms, nt) for ms, nt in _SHAPES
            if ms <= count and nt <= columns and not (p.groups > 1 and per_group % nt)
        ]  # fmt: skip
        return sorted(fit, key=lambda s: cycles(p, count, *s))

    def made(shape: tuple[int, int], first: bool, gathered: bool = False) -> Blocks:
        ms, nt = shape
        size = _rows_of(p, count, ms, nt, device.threads)
        streamed = first and isinstance(rows, int) and p.weights.size * p.x.dtype.size > _STREAMED
        return Blocks(ms, nt, size, first, gathered, streamed)

    plain = shapes()
    choices = [made(plain[0], late), made(plain[0], not late)]
    choices += [made(s, late) for s in plain[1:3]]
    if choices[0].ahead:
        choices.append(replace(choices[0], ahead=False))
    if p.flat and p.groups == 1 and isinstance(rows, int) and _read_often(p, choices[0].nt):
        choices.insert(1, replace(choices[0], tiled=True))
    if p.flat and isinstance(rows, int) and not late and (
        _reads_beside(p) or writes_far(p)
    ):
        choices.insert(0, replace(made(plain[0], False), rows=plain[0][0]))
    if may_gather(p):
        gather(p)
        rows = tile_rows(p)
        count = int(rows)  # type: ignore[arg-type]
        choices = [*(made(s, late, True) for s in shapes()[:3]), *choices[:2]]
    return choices


def cycles(p: Any, rows: int, ms: int, nt: int) -> float:
    """Modelled cycles of all products, per step of the inner dimension."""
    width = row_of_tiles(p)
    height = -(-width // -(-width // ROWS)) if isinstance(width, int) else ROWS

    def block(m: int) -> float:
        r = reading(p)
        loads = m * height + nt * r.width / 4
        latency = _LATENCY - ROWS + height
        return max(m * nt * height, latency, loads / 2, nt * r.width / 4 / _L2_LINES)

    whole, rest = divmod(rows, ms)
    panels = -(-p.k // (nt * ROWS))
    return panels * (whole * block(ms) + rest * block(1))


def _rows_of(p: Any, rows: int, ms: int, nt: int, threads: int) -> int:
    """Rows of tiles of a work item: many, but so that every thread gets several items."""
    panels = -(-p.k // (nt * ROWS))
    wanted = 4 * threads if threads > 1 else 1
    most = max(1, rows * panels // wanted)
    most = min(most, _MOST_ROWS, rows)
    return rows if most == rows else max(ms, most // ms * ms)


def _reads_beside(p: Any) -> bool:
    """Whether the epilogue reads something as large as the result, a residual say."""
    if p.stage is None:
        return False
    return any(
        ld.value.const is None and ld.value is not p.finish.source and ld.value.dims == p.out.dims
        for ld in E.loads(p.stage.expr)
    )


def _read_often(p: Any, nt: int) -> bool:
    """Whether tiles of pixels are loaded often enough to copy them into one piece first."""
    return p.k >= _READ_OFTEN * nt * ROWS and p.pitch * p.x.dtype.size > ROW_BYTES


def _late(p: Any) -> bool:
    """Whether weights are larger than the image: then they should be read once."""
    pixels = D.product(p.x_dims)
    return not isinstance(pixels, int) or p.weights.size > pixels * p.channels
