"""Matrix products on tensor cores, and products with few rows or columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...ir import dims as D
from ...ir import dtypes as T
from ...ir.dims import DimLike
from ...ir.dtypes import DType
from ...ir.graph import Node, Value
from ...regions.region import Region
from ...tactics.kernel import Kernel, Launch
from ...tactics.tactic import Tactic, register_tactic
from . import cost, matrix
from .emit import Frame, is_wide
from .epilogue import Index, epilogue, refuse_epilogue
from .product import (
    Product,
    Strided,
    Tile,
    Writer,
    acc_type,
    ceil_text,
    divides,
    precision,
    to_tf32,
    unravel,
    wide,
)  # fmt: skip

_FLOATS = (T.f16, T.bf16, T.f32, T.f64, T.f8e4m3, T.f8e5m2)
_INTS = (T.i8, T.u8)
DESCRIPTOR_FLOPS = 2e10  # from here on descriptors and specialized warps pay
_FEW = 4  # rows that products of a matrix and single vectors take


def acc_dtype(dtype: DType) -> DType:
    """Type of the sums."""
    return {"int32": T.i32, "float64": T.f64}.get(acc_type(dtype), T.f32)


def extents_known(p: matrix.Problem) -> bool:
    """Whether no extent is known to be zero."""
    return all(isinstance(d, D.Dim) or d > 0 for d in (*p.batch, p.m, p.n, p.k))


def refuse_types(a: DType, b: DType, arch: int) -> str | None:
    """Why there is no product of these types."""
    if a in _INTS and b in _INTS:
        return None
    if a not in _FLOATS or a is not b:
        return f"no matrix product of {a} and {b}"
    if a.bits == 8 and arch < 89:
        return f"sm_{arch} has no products of 8-bit floats"
    return None


class Coordinates:
    """Index blocks of a product's result, one per dimension, and what masks them."""

    def __init__(self, frame: Frame, p: matrix.Problem, t: Tile, big: bool):
        self.frame, self.p = frame, p
        cast = ".to(tl.int64)" if big else ""
        self.batch = unravel(frame, f"z{cast}", p.batch)
        rows = unravel(frame, f"rm{cast}", p.rows)
        cols = unravel(frame, f"rn{cast}", p.cols)
        self.index = [Index(x) for x in self.batch]
        self.index += [Index("0") if x == "0" else Index(f"({x})[:, None]", (0,)) for x in rows]
        self.index += [Index("0") if x == "0" else Index(f"({x})[None, :]", (1,)) for x in cols]
        self.masks: dict[int, str] = {}
        if not divides(t.bm, p.m):
            self.masks[0] = f"(rm < {frame.size(p.m)})[:, None]"
        if not divides(t.bn, p.n):
            self.masks[1] = f"(rn < {frame.size(p.n)})[None, :]"


@dataclass(frozen=True)
class Side:
    """How an integer operand becomes i8: u8 loses 128, and so does its zero point."""

    shift: int

    @property
    def convert(self) -> str:
        return "({0} ^ 128).to(tl.int8, bitcast=True)" if self.shift else ""


def operand(
    frame: Frame, x: matrix.Matrix, rows: bool, batch: tuple[DimLike, ...],
) -> tuple[Strided, int]:
    """An operand of the kernel, and what was taken from its elements (128 from u8)."""
    shift = 128 if x.dtype is T.u8 else 0
    if shift and isinstance(x.value, Value) and x.value.const is not None:
        raise ValueError("constants are brought to i8 before")
    coordinates = unravel(frame, "z.to(tl.int64)" if wide(x.elements) else "z", batch)
    offset = matrix.broadcast_offset(coordinates, batch, x, frame.size)
    aligned = not offset or (
        not isinstance(x.size, D.Dim) and int(x.size) * x.dtype.size % 16 == 0
    )
    side = Strided(
        frame, x.value, x.dtype, rows, x.free, x.inner, x.stride, x.k_stride, offset, x.elements,
        aligned, Side(shift).convert, "0.0" if x.dtype.is_float else "0",
    )  # fmt: skip
    return side, shift


def as_signed(x: matrix.Matrix) -> tuple[matrix.Matrix, int]:
    """A constant operand with i8 elements, and what was taken from them."""
    if x.dtype is not T.u8 or not isinstance(x.value, Value) or x.value.const is None:
        return matrix.packed(x), 0
    data = (np.asarray(x.value.const).astype(np.int16) - 128).astype(np.int8)
    v = Value("signed", T.i8, data.shape)
    v.const = data
    return matrix.packed(replace(x, value=v, dtype=T.i8)), 128


def _factor(x: matrix.Matrix, how: str) -> matrix.Matrix:
    """An operand as the kernel multiplies it: constants as TF32 if that is what they become."""
    data = x.value.const if isinstance(x.value, Value) else x.value
    return x if how != "tf32" or data is None else replace(x, value=to_tf32(np.asarray(data)))


class ZeroPoints:
    """What zero points take from an integer product:
    ``sum (a - za)(b - zb) = sum a b - za sum b - zb sum a + k za zb``."""

    def __init__(self, frame: Frame, node: Node, p: matrix.Problem, b: matrix.Matrix,
                 shifts: tuple[int, int]):  # fmt: skip
        self.frame, self.node, self.p, self.shifts = frame, node, p, shifts
        zeros = (*node.inputs[2:4], None, None)[:2]
        self.za = zeros[0] if _matters(zeros[0], shifts[0]) else None
        self.zb = zeros[1] if _matters(zeros[1], shifts[1]) else None
        self.has_a = self.za is not None or (zeros[0] is None and shifts[0] > 0)
        self.has_b = self.zb is not None or (zeros[1] is None and shifts[1] > 0)
        self.sums: np.ndarray[Any, Any] | None = None
        if self.has_a and isinstance(b.value, np.ndarray) | _is_const(b.value):
            self.sums = _column_sums(b)

    @property
    def extra(self) -> tuple[bool, bool]:
        """Whether column sums of b and row sums of a are summed in the kernel."""
        return self.has_a and self.sums is None, self.has_b

    def each(self, w: Writer, x: str, y: str) -> None:
        cols, rows = self.extra
        if cols:
            w(f"sb += tl.sum({y}.to(tl.int32), 0)")
        if rows:
            w(f"sa += tl.sum({x}.to(tl.int32), 1)")

    def finish(self, w: Writer, acc: str, c: Coordinates) -> None:
        if not (self.has_a or self.has_b):
            return
        za = self._zero(w, self.za, self.shifts[0], c, True) if self.has_a else "0"
        zb = self._zero(w, self.zb, self.shifts[1], c, False) if self.has_b else "0"
        if self.has_a and self.sums is not None:
            address = self.frame.array(self.sums)
            at = "rn"
            if self.sums.shape[0] > 1:
                own = matrix.broadcast_offset(
                    c.batch, self.p.batch,
                    replace(self.p.b, size=self.p.n), self.frame.size)  # fmt: skip
                at = f"rn + {own}" if own else "rn"
            w(f"sb = tl.load({address} + {at}, mask=rn < {self.frame.size(self.p.n)}, other=0)")
        if self.has_a:
            w(f"{acc} = {acc} - {za} * sb[None, :]")
        if self.has_b:
            w(f"{acc} = {acc} - {zb} * sa[:, None]")
        if self.has_a and self.has_b:
            w(f"{acc} = {acc} + {za} * {zb} * {self.frame.size(self.p.k)}")

    def _zero(self, w: Writer, z: Value | None, shift: int, c: Coordinates, rows: bool) -> str:
        name = "za" if rows else "zb"
        if z is None:
            return f"(-{shift})"
        at, axes = self._place(z, c, rows)
        mask = [m for axis, m in c.masks.items() if axis in axes]
        w(f"{name} = tl.load({self.frame.pointer(z)} + {at}"
          + (f", mask={' & '.join(mask)}, other=0" if mask else "")
          + f").to(tl.int32) - {shift}")  # fmt: skip
        return name

    def _place(self, z: Value, c: Coordinates, rows: bool) -> tuple[str, set[int]]:
        """Offset of the zero point at the block's coordinates, and the axes it extends along."""
        if all(d == 1 for d in z.dims):
            return "0", set()
        if z.rank == 1:
            i = c.index[-2 if rows and self.p.cols else -1]
            return i.text, set(i.axes)
        terms: list[str] = []
        axes: set[int] = set()
        stride: DimLike = 1
        index = c.index[len(c.index) - z.rank :]
        for d, i in zip(reversed(z.dims), reversed(index), strict=True):
            if d != 1 and i.text != "0":
                terms.append(f"{i.text} * {self.frame.size(stride)}")
                axes |= set(i.axes)
            stride = stride * d
        return " + ".join(terms) or "0", axes


def _is_const(v: Any) -> bool:
    return isinstance(v, Value) and v.const is not None


def _matters(z: Value | None, shift: int) -> bool:
    """Whether a zero point is given and is not zero (after the shift)."""
    if z is None:
        return False
    return z.const is None or bool((np.asarray(z.const).astype(np.int64) != shift).any())


def _column_sums(b: matrix.Matrix) -> np.ndarray[Any, Any]:
    data = b.value if isinstance(b.value, np.ndarray) else np.asarray(b.value.const)
    free, inner = int(b.free), int(b.inner)  # type: ignore[arg-type]
    if b.k_stride == 1:
        sums = data.reshape(-1, free, int(b.stride))[:, :, :inner].astype(np.int32).sum(2)  # type: ignore[arg-type]
    else:
        sums = data.reshape(-1, inner, free).astype(np.int32).sum(1)
    return np.ascontiguousarray(sums.astype(np.int32))


# --- building ---------------------------------------------------------------------------------


def work_of(region: Region, p: matrix.Problem, tf32: bool) -> cost.Work:
    """The problem as the cost model sees it."""
    batch, m, n, k = (cost.known(d) for d in (D.product(p.batch), p.m, p.n, p.k))
    return cost.Work(
        m, n, k, batch, p.a.dtype, epilogue_bytes(region),
        float(cost.known(p.a.elements)) * p.a.dtype.size,
        float(cost.known(p.b.elements)) * p.b.dtype.size, tf32=tf32,
    )  # fmt: skip


def epilogue_bytes(region: Region) -> int:
    """Bytes moved for each sum: results, and operands of their size."""
    assert region.anchor is not None
    count = region.anchor.outputs[0].numel
    extra = sum(v.dtype.size for v in region.inputs
                if v not in region.anchor.inputs and v.numel == count)
    return extra + sum(v.dtype.size for v in region.outputs)


def build(region: Region, t: Tile, device: Any) -> Kernel:
    """The kernel of a region whose anchor is a `matmul` or `int_matmul`."""
    node = region.anchor
    assert node is not None
    p = matrix.problem(node)
    ma, shift_a = as_signed(p.a)
    mb, shift_b = as_signed(p.b)
    how = precision(p.a.dtype, device.tf32)
    p = replace(p, a=_factor(ma, how), b=_factor(mb, how))
    values = [*region.inputs, *region.outputs]
    frame = Frame(wide=is_wide(values))
    a, more_a = operand(frame, p.a, True, p.batch)
    b, more_b = operand(frame, p.b, False, p.batch)
    kind = acc_dtype(p.a.dtype)
    zeros = None
    if p.a.dtype.is_int:
        zeros = ZeroPoints(frame, node, p, p.b, (shift_a + more_a, shift_b + more_b))

    def finish(w: Writer, acc: str) -> None:
        c = Coordinates(frame, p, t, frame.wide)
        if zeros is not None:
            zeros.finish(w, acc, c)
        w(*epilogue(region, frame, acc, c.index, c.masks, (t.bm, t.bn), kind))

    extra = []
    if zeros is not None:
        cols, rows = zeros.extra
        extra += [f"sb = tl.zeros(({t.bn},), tl.int32)"] * cols
        extra += [f"sa = tl.zeros(({t.bm},), tl.int32)"] * rows
    product = Product(
        frame, a, b, p.m, p.n, p.k, D.product(p.batch), acc_type(p.a.dtype),
        how, finish, each=None if zeros is None else zeros.each, extra=extra,
        early=bytes_beside(region, frame),
    )  # fmt: skip
    return kernel_of(product, t, device, frame, "gemm")


def bytes_beside(region: Region, frame: Frame) -> list[str]:
    """Tensors of bytes that are added to the sums, element by element. (Wider ones would take too
    many registers while a block sums.)"""
    node = region.anchor
    assert node is not None
    count = node.outputs[0].numel
    return [frame.pointer(v) for v in region.inputs
            if v not in node.inputs and v.dtype.size == 1 and v.dtype.is_int and v.numel == count]


def kernel_of(product: Product, t: Tile, device: Any, frame: Frame, symbol: str) -> Kernel:
    """The kernel of a written product."""
    source = product.write(symbol, t, device.sms)
    workspace, counters = product.workspace(t)
    flops = product.batch * product.m * product.n * product.k * 2
    launch = Launch(
        frame.types, product.grid(t, device.sms), t.warps, t.stages,
        workspace=workspace, counters=counters,
    )
    return Kernel(
        symbol, source, frame.values, tuple(frame.dims), flops=flops, launch=launch,
        notes={"tile": str(t)},
    )


def refuse(region: Region, device: Any) -> str | None:
    """Why no product kernel can do the region."""
    node = region.anchor
    if node is None or node.op not in ("matmul", "int_matmul"):
        return "not a matrix product"
    a, b = node.inputs[:2]
    assert a is not None and b is not None
    why = refuse_types(a.dtype, b.dtype, device.arch)
    if why is not None:
        return why
    p = matrix.problem(node)
    if not extents_known(p):
        return "an extent is zero"
    if matrix.broadcast_unknown(p):
        return "a batch size known only at run time may be broadcast"
    return refuse_epilogue(region)


@register_tactic
class Gemm(Tactic):
    """Matrix product on tensor cores with the region's epilogue; constants packed when built."""

    name = "gemm"
    target = "cuda"
    priority = 50

    def refuse(self, region: Region, device: Any) -> str | None:
        return refuse(region, device)

    def candidates(self, region: Region, device: Any) -> Sequence[Tile]:
        assert region.anchor is not None
        return tiles(region, device)

    def build(self, region: Region, candidate: Any, device: Any) -> Kernel:
        return build(region, candidate, device)


def tiles(region: Region, device: Any) -> list[Tile]:
    """Tiles worth timing, the likely best first."""
    assert region.anchor is not None
    p = matrix.problem(region.anchor)
    found = options(region, p, device)
    if _sums_beside(region):  # a split has no place for them
        found = [t for t in found if t.split == 1]
    return cost.best(found, work_of(region, p, device.tf32), device.gpu)


def options(region: Region, p: matrix.Problem, device: Any) -> list[Tile]:
    """All tiles that a product may want."""
    w = work_of(region, p, device.tf32)
    found = cost.product_tiles(w, device.gpu)
    heavy = 2.0 * w.m * w.n * w.k * w.batch > DESCRIPTOR_FLOPS
    if device.arch >= 90 and heavy and _describable(p) and not _sums_beside(region):
        found = [*cost.hopper_tiles(w), *found]
    return found


def _sums_beside(region: Region) -> bool:
    node = region.anchor
    assert node is not None
    return node.op == "int_matmul" and (
        len(node.inputs) > 3 or not _is_const(node.inputs[1]) or node.inputs[1].dtype is T.u8  # type: ignore[union-attr]
    )


def _describable(p: matrix.Problem) -> bool:
    """Whether descriptors can address both operands."""
    if p.a.dtype.size not in (1, 2) or p.a.dtype is T.u8 or p.b.dtype is T.u8:
        return False
    frame = Frame()
    return all(
        operand(frame, matrix.packed(x), rows, p.batch)[0].descriptor_fits()
        for x, rows in ((p.a, True), (p.b, False))
    )


# --- few rows ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Strip:
    """Lines of the matrix and inner elements that a block takes at a time."""

    lines: int
    step: int
    warps: int = 4

    def __str__(self) -> str:
        return f"{self.lines}x{self.step} w{self.warps}"


def _few_rows(node: Node) -> matrix.Problem | None:
    """The problem with few rows, turned if it has few columns; None if it has many of both."""
    p = matrix.problem(node)
    for q in (p, matrix.turned(p)):
        if not isinstance(q.m, D.Dim) and q.m <= _FEW and not (q.n == 1 and q.m != 1):
            return q
    return None


def _build_strips(region: Region, s: Strip, device: Any) -> Kernel:
    node = region.anchor
    assert node is not None
    p = _few_rows(node)
    assert p is not None
    swapped = p.m != matrix.problem(node).m or p.a.value is not node.inputs[0]
    p = replace(p, a=matrix.packed(p.a), b=matrix.packed(p.b))
    values = [*region.inputs, *region.outputs]
    frame = Frame(wide=is_wide(values))
    w, size = Writer(), frame.size
    kind = acc_dtype(p.a.dtype)
    a, _ = operand(frame, p.a, True, p.batch)
    b, _ = operand(frame, p.b, False, p.batch)
    blocks = ceil_text(frame, p.n, s.lines)
    w("pid = tl.program_id(0)", f"z = pid // {blocks}",
      f"rn = (pid % {blocks}) * {s.lines} + tl.arange(0, {s.lines})",
      f"rk = tl.arange(0, {s.step})")  # fmt: skip
    line = "rn" if divides(s.lines, p.n) else f"tl.where(rn < {size(p.n)}, rn, 0)"
    if wide(p.b.elements):
        line = f"({line}).to(tl.int64)"
    base = f"{_pointer(frame, p.b.value)} + {b.offset or '0'}"
    w(f"bp = {base} + ({line} * {size(p.b.stride)})[:, None]",
      f"ap = {_pointer(frame, p.a.value)} + {a.offset or '0'}")  # fmt: skip
    rows = int(p.m)  # type: ignore[arg-type]
    acc = f"tl.{acc_type(p.a.dtype)}"
    w(*(f"acc{i} = tl.zeros(({s.lines}, {s.step}), {acc})" for i in range(rows)))
    with w.block(f"for it in range({ceil_text(frame, p.k, s.step)}):"):
        w(f"k = it * {s.step} + rk")
        tail = "" if divides(s.step, p.k) else f"k < {size(p.k)}"
        mask = f", mask=({tail})[None, :], other=0" if tail else ""
        w(f"y = tl.load(bp + (k * {size(p.b.k_stride)})[None, :]{mask}).to({acc})")
        for i in range(rows):
            at = f"{size(p.a.stride * i)} + k * {size(p.a.k_stride)}"
            mask = f", mask={tail}, other=0" if tail else ""
            w(f"acc{i} += y * tl.load(ap + {at}{mask}).to({acc})[None, :]")
    masks = {} if divides(s.lines, p.n) else {0: f"rn < {size(p.n)}"}
    batch = [Index(x) for x in unravel(frame, "z", p.batch)]
    cols = [Index(x, (0,)) if x != "0" else Index("0") for x in unravel(frame, "rn", p.cols)]
    for i in range(rows):
        place = [Index(x) for x in unravel(frame, str(i), p.rows)]
        index = [*batch, *cols, *place] if swapped else [*batch, *place, *cols]
        w(f"sum{i} = tl.sum(acc{i}, 1)")
        w(*epilogue(region, frame, f"sum{i}", index, masks, (s.lines,), kind, f"e{i}_"))
    source = frame.source("gemv", w.lines)
    grid = (D.product(p.batch) * D.ceil_div(p.n, s.lines),)
    return Kernel(
        "gemv", source, frame.values, tuple(frame.dims),
        flops=D.product(p.batch) * p.m * p.n * p.k * 2,
        launch=Launch(frame.types, grid, s.warps, 2), notes={"tile": str(s)},
    )  # fmt: skip


def _pointer(frame: Frame, v: Value | np.ndarray[Any, Any]) -> str:
    return frame.pointer(v) if isinstance(v, Value) else frame.array(v)


@register_tactic
class Gemv(Tactic):
    """Products with up to four rows or columns: limited by how fast the matrix is read."""

    name = "gemv"
    target = "cuda"
    priority = 55

    def refuse(self, region: Region, device: Any) -> str | None:
        why = refuse(region, device)
        if why is not None:
            return why
        node = region.anchor
        assert node is not None
        if node.op != "matmul":
            return "integer products go through tensor cores"
        return None if _few_rows(node) is not None else "both operands have many rows"

    def candidates(self, region: Region, device: Any) -> Sequence[Strip]:
        assert region.anchor is not None
        p = _few_rows(region.anchor)
        assert p is not None
        n, k = cost.known(p.n) * cost.known(D.product(p.batch)), cost.known(p.k)
        step = 1 << max(5, min(9, (k - 1).bit_length()))
        lines = 16
        while lines > 2 and -(-n // lines) < 2 * device.sms:
            lines //= 2
        out = [Strip(lines, step), Strip(lines * 2, step), Strip(max(1, lines // 2), step),
               Strip(lines, max(32, step // 2)), Strip(lines, step * 2, 8)]  # fmt: skip
        return list(dict.fromkeys(s for s in out if s.lines * s.step >= 128))

    def build(self, region: Region, candidate: Any, device: Any) -> Kernel:
        return _build_strips(region, candidate, device)

