"""Contractions on tile registers: what of the first operand each tile holds, and packed weights.

The inner dimension is cut into steps of at most 64 bytes, the width of a tile. A tile of the first
operand is a few neighbouring pixels of a row, so its rows are equally far apart, at one step of
one tap. It is loaded from the operand itself, or from a copy that has what surrounds the image and
whole steps of channels (`Reading.copied`). Where channels are few, neighbouring taps of a row are
one run of bytes. Where rows are too short to fill tiles the copy has, for every tap, the pixels
that the outputs meet there, one behind the other (`gathered`): tiles then go through all of them.
A copy of pixels that are counted through lies as tiles are loaded, line behind line
(`Reading.tiled`): rows far apart would compete for few places of the first cache.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from ...ir import dims as D
from .bf16_conv import Bf16Problem
from .conv_common import own_or_by_channel
from .int_problem import IntProblem
from .tile_ir import ROW_BYTES, ROWS

Array = np.ndarray[Any, Any]
_FEWER = 0.75  # of the rows of tiles, where gathering pays
_MOST_GATHERED = 1 << 20  # bytes
_FAR = 1 << 19  # bytes
_FEW_STEPS = 8
_LANE = 4  # bytes that meet in one element of the sums


class TileBytes(IntProblem):
    """An integer contraction whose taps are kept apart.

    Attributes:
        gathered: Whether its pixels are gathered for every tap, and so can be counted through.
        tiled: Whether pixels are copied into the form of tiles.
    """

    few = 0
    gathered = tiled = False

    @property
    def kind(self) -> str:
        """The products (`tile_ir.PRODUCTS`)."""
        return ("i8" if self.x_signed else "u8") + ("i8" if self._signed else "u8")

    @property
    def _signed(self) -> bool:
        return bool(self.weights.size == 0 or self.weights.min() < 0)

    @property
    def representable(self) -> bool:
        """Whether weights, zero points subtracted, are bytes."""
        w = self.weights
        return bool(w.size == 0 or (w.min() >= -128 and w.max() <= 127) or
                    (w.min() >= 0 and w.max() <= 255))

    def stored_weights(self, w: Array) -> Array:
        """Weights as they lie in memory, in u8 or u16."""
        return w.astype(np.int8 if self._signed else np.uint8).view(np.uint8)

    def starts(self) -> Array:
        """What the sums of each channel begin with, or are to be multiplied with the zero point
        first."""
        sums = self.weights.sum(axis=(1, 2), dtype=np.int64)
        zero = self.x_zero if isinstance(self.x_zero, int) else 1
        return (-sums * zero).astype(np.int32)


class TileFloats(Bf16Problem):
    """The same in bf16."""

    few = 0
    gathered = tiled = False
    kind = "bf16"
    representable = True

    def stored_weights(self, w: Array) -> Array:
        """See `TileBytes`."""
        import ml_dtypes

        return w.astype(ml_dtypes.bfloat16).view(np.uint16)

    def starts(self) -> Array:
        """See `TileBytes`: the bias."""
        return np.zeros(self.k, np.float32) if self.bias is None else self.bias


@dataclass(frozen=True)
class Reading:
    """How tiles of the first operand are read.

    Attributes:
        copied: From a copy (see the module's text).
        merged: A row of taps is one run of bytes.
        steps: Steps of the inner dimension at each tap (or row of taps).
        width: Bytes of a step.
        pixel: Bytes from a pixel to its neighbour.
        group: Bytes from a pixel's first channel of a group to that of the next group.
        beyond: Bytes behind its own that the last step of a run reads.
        tiled: The copy has the tiles of one step after the other, each as one piece; what is
            between pixels and groups does not count then.
    """

    copied: bool
    merged: bool
    steps: int
    width: int
    pixel: int
    group: int
    beyond: int = 0
    tiled: bool = False


Problem: Any = TileBytes | TileFloats


def reading(p: Any) -> Reading:
    """The way that takes the fewest steps; without a copy where one does not help."""
    size = p.x.dtype.size
    if p.gathered or p.tiled:
        return replace(_copied(p, p.c * size, 0), tiled=p.groups == 1)
    channels, taps, last = p.c * size, p.weights.shape[2], p.axes[-1]
    run = last.window * channels if last.window > 1 and last.dilation == 1 and p.groups == 1 else 0
    copied = _copied(p, channels, run)
    if p.padded or any(a.pre for a in p.axes):
        return copied
    for merged, length in ((True, run), (False, channels)):
        if merged != copied.merged or (merged and p.pitch != p.c):
            continue
        split = _even(length)
        most = copied.steps * (1.0 if taps > 1 else 1.5)
        if split is not None and split[0] <= most:
            return Reading(False, merged, *split, p.pitch * size, channels)
    return copied


def _even(length: int) -> tuple[int, int] | None:
    """The fewest steps of whole elements of sums that cover a run exactly, and their bytes."""
    least = -(-length // ROW_BYTES)
    for steps in range(least, 2 * least + 1):
        if length % steps == 0 and length // steps % _LANE == 0:
            return steps, length // steps
    return None


def _copied(p: Any, channels: int, run: int) -> Reading:
    steps = -(-channels // ROW_BYTES)
    if run and -(-run // ROW_BYTES) < p.axes[-1].window * steps:
        count = -(-run // ROW_BYTES)
        width = -(-run // (count * _LANE)) * _LANE
        return Reading(True, True, count, width, channels, channels, count * width - run)
    width = ROW_BYTES if steps > 1 else -(-channels // _LANE) * _LANE
    return Reading(True, False, steps, width, p.groups * steps * width, steps * width)


@dataclass(frozen=True)
class Blocks:
    """A candidate: ``ms`` by ``nt`` tiles of sums at a time; a work item is ``rows`` rows of tiles
    and one panel of ``nt`` tiles' columns.

    Attributes:
        channels_first: Items of one panel follow each other; else all panels of the same rows do.
        gathered: See the module's text.
        ahead: The next panel of weights is asked for while one is multiplied.
        tiled: Pixels that are counted through are copied into the form of tiles.
    """

    ms: int
    nt: int
    rows: int
    channels_first: bool
    gathered: bool = False
    ahead: bool = False
    tiled: bool = False
    name: ClassVar[str] = "tiles"

    @property
    def nr(self) -> int:
        """Columns of a panel."""
        return self.nt * ROWS

    def __str__(self) -> str:
        more = "g" * self.gathered + "t" * self.tiled + "a" * self.ahead
        return f"{self.ms * ROWS}x{self.nr}{'k' if self.channels_first else 'r'}{self.rows}{more}"


def pack(p: Any, r: Reading, nt: int) -> Array:
    """Weights as ``[panel][starts | taps][steps][tile][rows of a tile][64 bytes]``, in bytes; every
    row of a panel is a multiple of 64 bytes."""
    size, group = p.x.dtype.size, p.group
    panels = -(-p.k // (nt * ROWS))
    taps = p.weights.shape[2]
    w = p.weights.transpose(0, 2, 1)  # [k, tap, channel]
    if r.merged:
        w = w.reshape(p.k, taps // p.axes[-1].window, -1)
    inner = r.steps * r.width // size
    full = np.zeros((panels * nt * ROWS, w.shape[1], inner), w.dtype)
    full[: p.k, :, : w.shape[2]] = w
    parts = full.reshape(panels, nt, ROWS, w.shape[1], r.steps, r.width // _LANE, group)
    order = np.ascontiguousarray(parts.transpose(0, 3, 4, 1, 5, 2, 6))
    body = np.ascontiguousarray(p.stored_weights(order)).view(np.uint8).reshape(panels, -1)
    start = p.starts()
    head = np.zeros(panels * nt * ROWS, start.dtype)
    head[: p.k] = start
    return np.ascontiguousarray(
        np.concatenate([head.view(np.uint8).reshape(panels, -1), body], axis=1)
    )


def may_gather(p: Any) -> bool:
    """Whether gathering is possible, and fills tiles so much better that a copy pays."""
    rows = tile_rows(p)
    pixels = p.images * D.product(a.out for a in p.axes)
    if p.flat or not isinstance(rows, int) or not isinstance(pixels, int):
        return False
    if not own_or_by_channel(p.stage, p.out) or not all(isinstance(d, int) for d in p.x_dims):
        return False
    size = p.weights.shape[2] * pixels * p.groups * p.c * p.x.dtype.size
    return -(-pixels // ROWS) <= _FEWER * rows and size <= _MOST_GATHERED


def row_of_tiles(p: Any) -> D.DimLike:
    """Pixels that tiles are cut from: of a row, or of all images where they can be counted."""
    if not p.flat:
        return p.axes[-1].out
    return p.images * D.product(a.out for a in p.axes)


def tile_rows(p: Any) -> D.DimLike:
    """How many rows of tiles there are altogether."""
    each = D.ceil_div(row_of_tiles(p), ROWS)
    return each if p.flat else p.images * D.product(a.out for a in p.axes[:-1]) * each


def gather(p: Any) -> None:
    """Makes the problem one whose pixels are gathered."""
    p.gathered = p.flat = True


def tile_height(p: Any) -> int:
    """Pixels of a tile, where rows are known: as even as can be."""
    row = int(row_of_tiles(p))  # type: ignore[arg-type]
    return -(-row // -(-row // ROWS))


def writes_far(p: Any) -> bool:
    """Whether the result is too large to stay in a cache near the core from run to run, and its
    sums are made of few steps, which storing may take longer than."""
    pixels = p.images * D.product(a.out for a in p.axes)
    if not isinstance(pixels, int) or p.c * p.x.dtype.size * p.shape.taps > _FEW_STEPS * ROW_BYTES:
        return False
    return pixels * p.k * p.out.dtype.size > _FAR
