"""Operands in the order the microkernel reads them: at build time in numpy, at run time in IR.

Rows (operand A) become tiles ``[tile][k][mr]``, columns (operand B) panels ``[panel][k][nr]``.
The last tile holds just the rows left; the last panel is as wide as the vectors that cover the
columns left, filled up with zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from llvmlite import ir

from ...ir.dtypes import DType
from . import convert
from . import vecmath as V
from .codegen import Gen, Num

if TYPE_CHECKING:
    from .contraction import Operand

Array = np.ndarray[Any, Any]


def pack_rows(a: Array, mr: int) -> Array:
    """``[batch, m, k]`` as tiles; returns ``[batch, m * k]``."""
    batch, m, k = a.shape
    whole = m - m % mr
    tiles = a[:, :whole].reshape(batch, whole // mr, mr, k).swapaxes(2, 3)
    rest = a[:, whole:].swapaxes(1, 2)
    parts = [tiles.reshape(batch, -1), rest.reshape(batch, -1)]
    return np.ascontiguousarray(np.concatenate(parts, axis=1))


def pack_columns(b: Array, nr: int, lanes: int) -> Array:
    """``[batch, k, n]`` as panels; returns ``[batch, packed_columns(n) * k]``."""
    batch, k, n = b.shape
    whole = n - n % nr
    panels = b[:, :, :whole].reshape(batch, k, whole // nr, nr).swapaxes(1, 2)
    rest = b[:, :, whole:]
    if n - whole:
        rest = np.pad(rest, ((0, 0), (0, 0), (0, -(n - whole) % lanes)))
    parts = [panels.reshape(batch, -1), rest.reshape(batch, -1)]
    return np.ascontiguousarray(np.concatenate(parts, axis=1))


def pack_windows(w: Array, bias: Array | None, nr: int) -> Array:
    """Weights of channels-last convolutions, ``[K, C, taps]``, as ``[K / nr][bias nr +][taps][C]
    [nr]`` in f32, zero where the last block has no channels. Written once, as memory is slow to
    touch for the first time."""
    k, c, taps = w.shape
    whole, rest = divmod(k, nr)
    blocks, head = whole + (rest > 0), 0 if bias is None else nr
    out = np.empty((blocks, head + taps * c * nr), np.float32)
    if rest:
        out[-1] = 0
    body = out[:, head:].reshape(blocks, taps, c, nr)  # a view
    body[:whole] = w[: whole * nr].reshape(whole, nr, c, taps).transpose(0, 3, 2, 1)
    body[whole:, :, :, :rest] = w[whole * nr :].transpose(2, 1, 0)
    if bias is not None:
        out[:whole, :nr] = bias[: whole * nr].reshape(whole, nr)
        out[whole:, :rest] = bias[whole * nr :]
    return out


def packed_columns(n: int, nr: int, lanes: int) -> int:
    """Columns that `pack_columns` stores for ``n``."""
    tail = n % nr
    return n - tail + -(-tail // lanes) * lanes


# --- at run time ----------------------------------------------------------------------------


def lane_count(lanes: int) -> int:
    """Lanes as `vecmath` counts them: 0 for a scalar."""
    return lanes if lanes > 1 else 0


def read(g: Gen, at: ir.Value, dtype: DType, acc: DType, lanes: int = 0) -> ir.Value:
    """An element or vector as the type of sums."""
    n = lane_count(lanes)
    x = convert.from_memory(g.b, g.load(convert.memory_type(dtype, n), at), dtype)
    return convert.cast(g.b, x, dtype, acc) if _register(dtype) != _register(acc) else x


def _register(dtype: DType) -> ir.Type:
    return convert.register_type(dtype)


def emit_rows(
    g: Gen, dest: ir.Value, base: ir.Value, a: Operand, acc: DType, i: Num, rows: Num, mr: int,
    k0: Num, count: Num,
) -> None:  # fmt: skip
    """Packs one tile of A: ``dest[k][r] = a[i + r, k0 + k]``; rows past ``rows`` repeat the
    last."""
    exact = isinstance(rows, int)
    size = a.dtype.size
    sources = []
    for r in range(mr):
        row = g.add(i, r if exact else g.min(r, g.sub(rows, 1)))
        sources.append(g.linear([(row, a.stride), (k0, a.k_stride)]))
    with g.loop(0, count) as k:
        line = g.at(dest, g.mul(k.index, mr), acc.size)
        along = g.mul(k.index, a.k_stride)
        for r, source in enumerate(sources):
            x = read(g, g.at(base, g.add(source, along), size), a.dtype, acc)
            g.store(x, g.at(line, r, acc.size))


def emit_columns(
    g: Gen, dest: ir.Value, base: ir.Value, b: Operand, acc: DType, j: Num, cols: Num, width: int,
    k0: Num, count: Num,
) -> None:  # fmt: skip
    """Packs one panel of B: ``dest[k][c] = b[k0 + k, j + c]``, zero from ``cols`` on."""
    unit = isinstance(b.stride, int) and b.stride == 1
    first = g.linear([(j, b.stride), (k0, b.k_stride)])
    source = g.at(base, first, b.dtype.size)
    if unit:
        _copy_rows(g, dest, source, b, acc, cols, width, count)
    else:
        _transpose_columns(g, dest, source, b, acc, cols, width, count)


def _copy_rows(
    g: Gen, dest: ir.Value, source: ir.Value, b: Operand, acc: DType, cols: Num, width: int,
    count: Num,
) -> None:  # fmt: skip
    lanes = g.isa.lanes(acc.bits)
    with g.loop(0, count) as k:
        line = g.at(dest, g.mul(k.index, width), acc.size)
        row = g.at(source, g.mul(k.index, b.k_stride), b.dtype.size)
        copy_line(g, line, row, b.dtype, acc, cols, width, lanes)


def copy_line(
    g: Gen, line: ir.Value, row: ir.Value, dtype: DType, acc: DType, cols: Num, width: int,
    lanes: int,
) -> None:  # fmt: skip
    """``width`` elements of which ``cols`` come from memory in order and the rest are zero."""
    vec = V.with_lanes(_register(acc), lanes if lanes > 1 else 0)
    if isinstance(cols, int):
        for at in range(0, cols - cols % lanes, lanes):
            x = read(g, g.at(row, at, dtype.size), dtype, acc, lanes)
            g.store(x, g.at(line, at, acc.size))
        done = cols - cols % lanes
        if done < width:
            x = V.const(vec, 0)
            for at in range(done, cols):
                y = read(g, g.at(row, at, dtype.size), dtype, acc)
                x = g.b.insert_element(x, y, V.I32(at - done)) if lanes > 1 else y
            g.store(x, g.at(line, done, acc.size))
            done += lanes
        for at in range(done, width, lanes):
            g.store(V.const(vec, 0), g.at(line, at, acc.size))
        return
    for at in range(0, width, lanes):
        g.store(V.const(vec, 0), g.at(line, at, acc.size))
    with g.loop(0, cols) as c:
        x = read(g, g.at(row, c.index, dtype.size), dtype, acc)
        g.store(x, g.at(line, c.index, acc.size))


def _transpose_columns(
    g: Gen, dest: ir.Value, source: ir.Value, b: Operand, acc: DType, cols: Num, width: int,
    count: Num,
) -> None:  # fmt: skip
    """Columns that are lines in memory: square blocks turned in registers, edges one by one."""
    lanes = g.isa.lanes(acc.bits)
    along = isinstance(b.k_stride, int) and b.k_stride == 1
    full = cols - cols % lanes if isinstance(cols, int) and along and lanes > 1 else 0
    square = g.sub(count, g.mod(count, lanes)) if full else 0
    size = b.dtype.size

    def scalars(k_from: Num, k_to: Num, c_from: Num, c_to: Num) -> None:
        if g.test("<", k_from, k_to) is False or g.test("<", c_from, c_to) is False:
            return
        with g.loop(c_from, c_to) as c, g.loop(k_from, k_to) as k:
            at = g.linear([(c.index, b.stride), (k.index, b.k_stride)])
            x = read(g, g.at(source, at, size), b.dtype, acc)
            g.store(x, g.at(dest, g.linear([(k.index, width), (c.index, 1)]), acc.size))

    if full and g.test(">", square, 0) is not False:
        with g.loop(0, full, lanes) as c, g.loop(0, square, lanes) as k:
            at = g.linear([(c.index, b.stride), (k.index, 1)])
            rows = []
            for r in range(lanes):
                here = g.at(source, g.add(at, g.mul(b.stride, r)), size)
                rows.append(read(g, here, b.dtype, acc, lanes))
            for r, x in enumerate(transpose(g.b, rows)):
                where = g.linear([(g.add(k.index, r), width), (c.index, 1)])
                g.store(x, g.at(dest, where, acc.size))
    scalars(square, count, 0, full)
    scalars(0, count, full, cols)
    if isinstance(cols, int) and cols == width:
        return
    zero = V.const(_register(acc), 0)
    with g.loop(0, count) as k, g.loop(cols, width) as c:
        g.store(zero, g.at(dest, g.linear([(k.index, width), (c.index, 1)]), acc.size))


def transpose(b: ir.IRBuilder, rows: list[ir.Value]) -> list[ir.Value]:
    """Transposes a square of as many vectors as they have lanes (a power of two)."""
    n = len(rows)
    step = 1
    while step < n:
        low = [i + (n if i & step else 0) - (step if i & step else 0) for i in range(n)]
        high = [x + step for x in low]
        out = list(rows)
        for i in range(n):
            if i & step:
                continue
            out[i] = _shuffle(b, rows[i], rows[i + step], low)
            out[i + step] = _shuffle(b, rows[i], rows[i + step], high)
        rows = out
        step *= 2
    return rows


def across(
    b: ir.IRBuilder, rows: list[ir.Value], join: Callable[[ir.Value, ir.Value], Any]
) -> ir.Value:
    """A vector whose lane ``n`` is what joins all lanes of row ``n``: the halves of two rows become
    one row, again and again. There are as many rows as lanes (a power of two)."""
    n = len(rows)
    t = ir.VectorType(V.I32, n)
    apart = n // 2
    while len(rows) > 1:
        low = [k for k in range(2 * n) if not k % n & apart]
        high = [k + apart for k in low]
        picks = [ir.Constant(t, [V.I32(k) for k in which]) for which in (low, high)]
        rows = [
            join(*(b.shuffle_vector(x, y, pick) for pick in picks))
            for x, y in zip(rows[::2], rows[1::2], strict=True)
        ]
        apart //= 2
    return rows[0]


def _shuffle(b: ir.IRBuilder, x: ir.Value, y: ir.Value, mask: list[int]) -> ir.Value:
    t = ir.VectorType(V.I32, len(mask))
    return b.shuffle_vector(x, y, ir.Constant(t, [V.I32(m) for m in mask]))
