"""Which tiles a product should try, by a model of the device.

The model is coarse: it only has to bring the few tiles worth timing to the front. A block's step
costs the larger of its multiply-adds on the tensor cores and its bytes from the second-level
cache; blocks come in waves over the multiprocessors; all waves together cost at least the bytes
that memory has to deliver. Floors of the kernels this replaces are beside the candidates below.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ...ir import dims as D
from ...ir.dims import DimLike
from ...ir.dtypes import DType, f32, f64
from .arch import Gpu
from .product import Tile

_ASSUMED = 256  # what a size known only at run time is taken for
_START = 1.6e-6  # a block's way from launch to its first multiply-add, and its epilogue
_STEP_LATENCY = 0.5e-6  # from asking for a step's tiles to having them
_STEP = 0.09e-6  # a step however small: waiting, barrier, addresses
_ROUNDING = 14.0  # instructions that turn a sum into a byte (at most; 8 in streams' machine code)
_LANES = 128 * 1.7e9  # instructions that the lanes of a multiprocessor issue in a second
_JOIN = 3.0e-6  # parts to the cache, finding out which is last, and back (measured: 2 to 4)


@dataclass(frozen=True)
class Work:
    """A product as the model sees it.

    Attributes:
        m, n, k, batch: Extents (guesses where they are known only at run time).
        dtype: Of the factors.
        out_bytes: Bytes that the epilogue moves for each sum.
        a_bytes, b_bytes: Bytes of the operands in memory.
        gathers: Whether rows are windows of images, with addresses of their own.
        tf32: Whether f32 factors may be rounded to TF32.
    """

    m: int
    n: int
    k: int
    batch: int
    dtype: DType
    out_bytes: int
    a_bytes: float
    b_bytes: float
    gathers: bool = False
    tf32: bool = True


def known(d: DimLike) -> int:
    """A size, or a guess."""
    if not isinstance(d, D.Dim):
        return int(d)
    return max(_ASSUMED, D.evaluate(d, dict.fromkeys(D.symbols(d), 1)))


def shared_bytes(t: Tile, w: Work) -> int:
    """Shared memory of a block: the tiles in flight."""
    return (t.bm + t.bn) * t.bk * w.dtype.size * max(1, t.stages)


def fits(t: Tile, w: Work, gpu: Gpu) -> bool:
    """Whether the tile's block can run: shared memory, and registers for the sums."""
    if shared_bytes(t, w) + 1024 > gpu.shared:
        return False
    threads = 32 * t.warps
    sums = t.bm * t.bn // threads
    return sums <= 128 and t.bm * t.bn >= threads


def blocks_per_sm(t: Tile, w: Work, gpu: Gpu) -> int:
    """Blocks that share a multiprocessor."""
    by_shared = gpu.shared_sm // max(1, shared_bytes(t, w) + 1024)
    threads = 32 * t.warps
    sums = t.bm * t.bn // (32 * t.warps)
    registers = min(255, sums + 60) * threads
    return max(1, min(by_shared, gpu.registers // registers, 2048 // threads))


def seconds(t: Tile, w: Work, gpu: Gpu) -> float:
    """Modelled time of a product."""
    tiles = w.batch * -(-w.m // t.bm) * -(-w.n // t.bn)
    blocks = tiles * t.split
    steps = -(-w.k // (t.bk * t.split))
    together = min(blocks_per_sm(t, w, gpu), -(-blocks // gpu.sms))
    waves = -(-blocks // (gpu.sms * together))
    flops = 2.0 * t.bm * t.bn * t.bk
    peak = gpu.peak(_unit(w)) / gpu.sms * _efficiency(t, w, gpu)
    moved = (t.bm + t.bn) * t.bk * w.dtype.size
    l2 = 5.5e12 / 132 * (0.6 if w.gathers else 1.0)  # bytes per second of one multiprocessor
    busy = max(flops / peak, moved / l2) * together
    step = max(busy, _STEP, _STEP_LATENCY / max(1, t.stages - 1))
    out = t.bm * t.bn * w.out_bytes * together / (gpu.bandwidth / gpu.sms)
    if is_bytes(w):
        # what rounds and packs bytes takes longer than short sums: a block by itself waits for
        # its tiles, then computes, then writes; several fill each other's gaps
        rounding = t.bm * t.bn * _ROUNDING / _LANES
        each = max(busy / together, _STEP, _STEP_LATENCY / max(1, t.stages - 1))
        alone = _STEP_LATENCY + (steps - 1) * each + max(busy / together, _STEP)
        alone += _START + rounding + out / together
        total = waves * max(alone, steps * busy + together * rounding, out)
    else:
        total = waves * (steps * step + _START + out)
    floor = (w.a_bytes + w.b_bytes + float(w.m) * w.n * w.batch * w.out_bytes) / gpu.bandwidth
    total = max(total, floor)
    if t.split > 1:
        total += _JOIN + t.split * t.bm * t.bn * 4 / 60e9 + tiles * t.split * t.bm * t.bn * 4 / 4e12
    return total


def _unit(w: Work) -> str:
    if w.dtype is f32:
        return "tf32" if w.tf32 else "f32"
    return "f64" if w.dtype is f64 else w.dtype.name


def _efficiency(t: Tile, w: Work, gpu: Gpu) -> float:
    """Share of the peak that a tile's instructions can reach."""
    if gpu.arch >= 90 and t.warps >= 4 and t.bm >= 64:
        shape = min(t.bn, 256) / 128  # wider columns reread rows from shared memory less
        base = 0.55 + 0.25 * min(1.0, shape) + (0.05 if t.bm >= 128 else 0) + 0.1 * (t.bn >= 256)
        return min(0.9, base) + (0.05 if t.tma else 0.0)
    return 0.5 if t.bm >= 64 and t.bn >= 64 else 0.3


def best(tiles: Iterable[Tile], w: Work, gpu: Gpu, most: int = 16) -> list[Tile]:
    """The tiles that fit, fastest first; of near equals those that differ come first."""
    fitting = [t for t in dict.fromkeys(tiles) if fits(t, w, gpu)]
    timed = sorted(fitting, key=lambda t: seconds(t, w, gpu))
    kept: list[Tile] = []
    seen: dict[tuple[int, ...], int] = {}
    later: list[Tile] = []
    few = 2 if is_small(w, gpu) else 1  # small products hang on how deep they pipeline
    if is_bytes(w) and w.k <= 512 and not is_small(w, gpu):
        timed.sort(key=lambda t: _SHORT.index(x) if (x := (t.bm, t.bn, t.warps)) in _SHORT else 9)
    if is_bytes(w) and w.gathers and not is_small(w, gpu):
        known = {shape: k for k, shape in enumerate(_GATHERED)}
        timed.sort(key=lambda t: known.get((t.bm, t.bn, t.warps), len(known)))
    for t in timed:
        key = (t.bm, t.bn, t.split, int(t.tma), int(t.turned), int(t.near))
        seen[key] = seen.get(key, 0) + 1
        (kept if seen[key] <= few else later).append(t)
    return (kept + later)[:most]


def is_small(w: Work, gpu: Gpu) -> bool:
    """Whether a product has few blocks, so that latencies count more than throughput."""
    return w.batch * -(-w.m // 64) * -(-w.n // 64) <= 2 * gpu.sms


# Floors and what libraries reach on an H100 (µs; see docs/benchmarks.md): GEMM 8192³ f16 1378 by
# FLOPs; ResNet-50 at batch 1: 3x3x512 on 7x7 1.6 by bytes (cuDNN 11.2), 3x3x256 on 14x14 0.5
# (7.7), 1x1 256→1024 on 14x14 0.3 (3.2); at batch 32: 3x3x64 on 56x56 9.3 (24.8), 1x1 64→256
# 21.4 (27.6); BERT-base at batch 1: 768→768 0.8 (3.9), 768→3072 2.4 (4.8), 3072→768 2.4 (7.2).


def product_tiles(w: Work, gpu: Gpu, k_units: Sequence[int] = (64, 128, 32)) -> list[Tile]:
    """Tiles without descriptors that a product of this size may want."""
    if w.dtype is f64:
        return [Tile(32, 32, 16, 4, 2), Tile(16, 32, 16, 4, 2)]
    if w.dtype is f32:
        return _f32_tiles(w, gpu)
    scale = 2 // w.dtype.size if w.dtype.size < 2 else 1
    if is_small(w, gpu):
        return _small_tiles(w, gpu, [u * scale for u in k_units if u > 32] or [32])
    shapes = (
        (128, 256, 8), (256, 128, 8), (128, 128, 8), (128, 128, 4), (128, 64, 4), (64, 128, 4),
        (64, 256, 4), (256, 64, 8), (64, 64, 4), (128, 32, 4), (32, 128, 4), (64, 32, 4),
        (32, 64, 4), (32, 32, 4), (16, 64, 4), (16, 32, 4), (16, 128, 4), (128, 16, 4),
        (64, 16, 4),
    )  # fmt: skip
    out = []
    for bm, bn, warps in shapes:
        if _too_wide(bm, w.m) or _too_wide(bn, w.n):
            continue
        if is_bytes(w) and w.k <= 512 and (bm, bn, warps) == (128, 128, 8):
            continue  # half as fast as with four warps
        for bk in k_units:
            bk *= scale
            if bk > 32 and bk >= 2 * w.k:
                continue
            for stages in (3, 4, 5, 2):
                base = Tile(bm, bn, bk, warps, stages, group=1 if is_bytes(w) else 8)
                if -(-w.k // bk) < stages - 1:
                    continue
                out += [replace(base, split=s) for s in splits(base, w, gpu)]
    if is_bytes(w) and w.n >= 256 and w.k <= 64:  # whole lines of memory for each row
        out.append(Tile(32, 256, 32 * -(-w.k // 32), 4, 2, group=1))
    return out or [Tile(16, 16, 32, 4, 2), Tile(32, 32, 32, 4, 2)]


# The best tiles of short sums of bytes, in this order on the whole (the model puts larger ones
# first).
_SHORT = ((32, 256, 4), (128, 64, 4), (128, 128, 4), (64, 128, 4))


# The same for windows of bytes (3x3 of ResNet-50 on an H200, µs: 56x56, 64 filters 55 and 57 with
# the last two; 28x28, 128 filters 32, 37, 40).
_GATHERED = ((128, 128, 8), (256, 128, 8), (256, 64, 8), (128, 64, 4))


def is_bytes(w: Work) -> bool:
    """Whether factors are integers of 8 bits. Sums of few of them take less time than rounding
    and writing: blocks side by side then had better fill the same rows (expansions of
    ResNet-50 on an H200: 64 -> 256 104 to 100 µs, 128 -> 512 64 to 55, 256 -> 1024 43 to 36)."""
    return w.dtype.is_int and w.dtype.size == 1


# On an H100 the best tiles of ResNet-50's layers at batch 1 were 64x64 to 16x32 with four warps and
# steps of 64; steps of 32 lost everywhere, and splitting paid from an inner extent of 2304 on.
_SMALL = ((64, 64), (64, 32), (32, 64), (32, 32), (16, 64), (16, 32), (16, 128), (64, 128),
          (32, 128), (16, 16), (32, 16), (64, 16), (128, 64), (128, 32), (128, 16), (128, 128))


def _small_tiles(w: Work, gpu: Gpu, k_units: Sequence[int]) -> list[Tile]:
    """Tiles of products with few blocks: pipelines as deep as the inner extent allows."""
    out = []
    for bm, bn in _SMALL:
        if _too_wide(bm, w.m) or _too_wide(bn, w.n) or (bn == 16 < min(bm, w.n)):
            continue  # (narrow tiles were twice as slow as those turned)
        for bk in k_units:
            steps = -(-w.k // bk)
            for stages in (5, 8, 3) if bk <= min(k_units) else (3, 5):
                warps = 8 if bm * bn >= 128 * 128 else 4
                base = Tile(bm, bn, bk, warps, max(2, min(stages, steps + 1)))
                out += [replace(base, split=s) for s in splits(base, w, gpu)
                        if steps >= s * (base.stages - 1)]  # fmt: skip
    return out or [Tile(16, 16, min(k_units), 4, 2)]


def _too_wide(block: int, extent: int) -> bool:
    """Whether less than half of a block would be used (the smallest always may)."""
    return block > 16 and block >= 2 * max(extent, 1)


def splits(t: Tile, w: Work, gpu: Gpu) -> list[int]:
    """Into how many parts sums may be split so that the device fills up."""
    tiles = w.batch * -(-w.m // t.bm) * -(-w.n // t.bn)
    steps = -(-w.k // t.bk)
    out = [1]
    for s in (2, 3, 4, 6, 8, 12, 16):
        if tiles * s <= 2 * gpu.sms and steps >= 2 * s:
            out.append(s)
    return out


def _f32_tiles(w: Work, gpu: Gpu) -> list[Tile]:
    out = []
    for bm, bn, warps in ((128, 128, 8), (128, 64, 4), (64, 128, 4), (64, 64, 4), (64, 32, 4),
                          (32, 64, 4), (32, 32, 4), (16, 64, 4), (16, 32, 4)):  # fmt: skip
        if _too_wide(bm, w.m) or _too_wide(bn, w.n):
            continue
        for bk, stages in ((32, 3), (32, 4), (16, 4)):
            base = Tile(bm, bn, bk, warps, stages)
            out += [replace(base, split=s) for s in splits(base, w, gpu)]
    return out or [Tile(16, 16, 16, 4, 2)]


def hopper_tiles(w: Work) -> list[Tile]:
    """Tiles with descriptors, for sizes at which setting these up doesn't count.

    Triton can also give copying to warps of its own (``warp_specialize``), but descriptors made on
    the device are then used before these warps see them: wrong results on an H100 (Triton 3.6).
    """
    scale = 2 // w.dtype.size if w.dtype.size < 2 else 1
    shapes = (
        Tile(128, 256, 64 * scale, 8, 3, tma=True),
        Tile(128, 256, 64 * scale, 8, 4, tma=True),
        Tile(128, 128, 64 * scale, 4, 4, tma=True),
        Tile(256, 128, 64 * scale, 8, 3, tma=True),
        Tile(128, 128, 64 * scale, 8, 3, tma=True, persistent=1),
        Tile(128, 256, 64 * scale, 8, 3, tma=True, persistent=1),
    )
    return [t for t in shapes if w.m >= t.bm and w.n >= t.bn // 2 and w.k >= 4 * t.bk]
