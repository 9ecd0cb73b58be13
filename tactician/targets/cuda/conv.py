"""Convolutions and deconvolutions on tensor cores, in either layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ...ir import dims as D
from ...ir import dtypes as T
from ...ir.dtypes import DType
from ...ir.graph import Value
from ...regions.region import Region, is_slice
from ...tactics.kernel import Kernel
from ...tactics.tactic import Tactic, register_tactic
from . import cost
from .emit import Frame, is_wide
from .epilogue import Index, epilogue, refuse_epilogue, result_of
from .gemm import (
    DESCRIPTOR_FLOPS,
    Side,
    acc_dtype,
    bytes_beside,
    epilogue_bytes,
    kernel_of,
    refuse_types,
)  # fmt: skip
from .product import Operand, Product, Strided, Tile, Writer, acc_type, precision, to_tf32
from .windows import (
    Convolution,
    Mode,
    Positions,
    RunTimeWeights,
    Windows,
    convolution_of,
    packed_weights,
)  # fmt: skip

CONVOLUTIONS = ("convolution", "deconvolution", "int_conv")


def refuse(region: Region, device: Any) -> str | None:
    """Why no convolution kernel can do the region."""
    node = region.anchor
    if node is None or node.op not in CONVOLUTIONS:
        return "not a convolution"
    x, w = node.inputs[:2]
    assert x is not None and w is not None
    why = refuse_types(x.dtype, w.dtype, device.arch)
    if why is not None:
        return why
    if not D.is_static(*w.dims) or not all(w.dims):
        return f"weights {w.dims} must have known, non-zero extents"
    if not isinstance(x.dims[1], int):
        return "the number of channels must be fixed"
    c = convolution_of(region)
    if any(d == 0 for d in (c.images, *c.outs)):
        return "an extent is zero"
    return refuse_epilogue(region)


def columns(
    frame: Frame, c: Convolution, t: Tile, dtype: DType, tf32: bool = False
) -> tuple[Operand, np.ndarray[Any, Any] | None, int]:
    """The weights' side, packed weights if they are constant, and what was taken from them.

    Args:
        tf32: Whether factors are used as TF32.
    """
    if c.w.const is None:
        shift = 128 if dtype is T.u8 else 0
        other = "0.0" if dtype.is_float else "0"
        return RunTimeWeights(frame, c, dtype, other, Side(shift).convert), None, shift
    shift = 0
    if dtype is T.u8:  # constants are brought to i8 once
        v = Value("signed", T.i8, c.w.shape)
        v.const = (np.asarray(c.w.const).astype(np.int16) - 128).astype(np.int8)
        c, dtype, shift = replace(c, w=v), T.i8, 128
    data = packed_weights(c, t.bk, dtype, max(1, 16 // dtype.size))
    data = to_tf32(data) if tf32 else data
    row = data.shape[2]
    offset = f"z * {c.filters * row}" if c.groups * c.phases > 1 else ""
    aligned = c.filters * row * dtype.size % 16 == 0
    side = Strided(
        frame, data, dtype, False, c.filters, c.inner(t.bk), row, 1, offset, data.size, aligned,
        other="0.0" if dtype.is_float else "0",
    )  # fmt: skip
    return side, data, shift


def rows(frame: Frame, c: Convolution, other: str, convert: str) -> Operand:
    """The image's side."""
    if c.mode is not Mode.PLAIN:
        return Windows(frame, c, c.x.dtype, other, convert)
    unit = c.x_space[-1] if c.outs[-1] != 1 else c.x_image
    if any(d != 1 for d in c.outs[:-1]):
        unit = c.x_space[-1]
    group = "z" if c.phases == 1 else f"(z // {c.phases})"
    offset = f"{group} * {c.channels}" if c.groups > 1 else ""
    aligned = not is_slice(c.stored) and c.channels * c.x.dtype.size % 16 == 0
    return Strided(
        frame, c.stored, c.x.dtype, True, c.rows, c.channels, unit, 1, offset,
        c.images * c.x_image, aligned, convert, other,
    )  # fmt: skip


class Builder:
    """Builds the kernel of one candidate."""

    tall = 1  # rows of the image that a row of the product covers
    prefix = "e"  # of the epilogue's names
    channel = "rn"  # name of the columns
    in_place = False  # whether sums lie where results are stored from

    def __init__(self, region: Region, t: Tile, device: Any):
        node = region.anchor
        assert node is not None
        self.region, self.t, self.device, self.node = region, t, device, node
        self.c = convolution_of(region)
        self.frame = Frame(wide=is_wide([*region.inputs, *region.outputs]))
        self.dtype = self.c.x.dtype
        self.shift = 128 if self.dtype is T.u8 else 0
        self.zeros = (None, None)
        if node.op == "int_conv":
            self.zeros = (*node.inputs[2:4], None, None)[:2]  # type: ignore[assignment]
        self.positions: Positions = Positions(self.frame, self.c, self.frame.wide)
        self.stored: dict[Value, str] = {}  # names of the blocks that `finish` stored
        self.data: np.ndarray[Any, Any] | None = None  # constant weights, packed
        self.shift_w = 0
        self.beside = self.runtime_sums = False  # sums of factors that the kernel counts as well

    def build(self) -> Kernel:
        c, t, frame = self.c, self.t, self.frame
        other = "0.0" if self.dtype.is_float else "0" if self.zeros[0] is None else "zx"
        a = rows(frame, c, other, Side(self.shift).convert)
        how = precision(self.dtype, self.device.tf32)
        b, self.data, self.shift_w = columns(frame, c, t, c.w.dtype, how == "tf32")
        self.beside = self.dtype.is_int and self._zero_matters(self.zeros[1], self.shift_w)
        self.runtime_sums = self.data is None and self.dtype.is_int and self._zero_matters(
            self.zeros[0], self.shift)  # fmt: skip
        extra = [f"sa = tl.zeros(({t.bm},), tl.int32)"] * self.beside
        extra += [f"sb = tl.zeros(({t.bn},), tl.int32)"] * self.runtime_sums
        product = Product(
            frame, a, b, c.rows, c.filters, c.inner(t.bk), c.groups * c.phases,
            acc_type(self.dtype), how, self.finish, self._begin,
            self._each if extra else None, extra, bytes_beside(self.region, frame),
        )  # fmt: skip
        name = "deconv" if c.transposed else "conv"
        return kernel_of(product, t, self.device, frame, name)

    def _zero_matters(self, z: Value | None, shift: int) -> bool:
        if z is None:
            return shift != 0
        return z.const is None or bool((np.asarray(z.const).astype(np.int64) != shift).any())

    def _begin(self, w: Writer) -> None:
        self.positions.begin(w, self.t)
        if self.zeros[0] is not None:
            w(f"zx = tl.load({self.frame.pointer(self.zeros[0])})")

    def _each(self, w: Writer, x: str, y: str) -> None:
        if self.beside:
            w(f"sa += tl.sum({x}.to(tl.int32), 1)")
        if self.runtime_sums:
            w(f"sb += tl.sum({y}.to(tl.int32), 0)")

    def finish(self, w: Writer, acc: str) -> None:
        """What becomes of a block of sums."""
        c, t, frame = self.c, self.t, self.frame
        channel = rn = self.channel
        if self.tall > 1:
            w(f"rc = {rn} % {c.filters}")
            channel = "rc"
        if c.groups > 1:
            group = "z" if c.phases == 1 else f"(z // {c.phases})"
            w(f"rc = {group} * {c.filters} + {rn}")
            channel = "rc"
        masks: dict[int, str] = {}
        inside = self.positions.inside(t)
        if inside:
            masks[0] = " & ".join(f"{x}[:, None]" for x in inside)
        columns = c.filters * self.tall
        if columns % t.bn:
            masks[1] = f"({rn} < {columns})[None, :]"
        real = f", mask={rn} < {columns}, other=0" if columns % t.bn else ""
        if c.bias is not None:
            bias = f"tl.load({frame.pointer(c.bias)} + {channel}{real})"
            w(f"{acc} += {bias}.to(tl.{acc_type(self.dtype)})[None, :]")
        if self.dtype.is_int:
            self._zero_points(w, acc, channel, real)
        place = self._place()
        index = [place[0], Index(f"{channel}[None, :]", (1,)), *place[1:]]
        if "logical" in result_of(self.region).meta:
            index = [*place, index[1]]
        w(*epilogue(self.region, frame, acc, index, masks, (t.bm, t.bn), acc_dtype(self.dtype),
                    self.prefix, self.in_place, self.stored))  # fmt: skip

    def _place(self) -> list[Index]:
        """The image and the position of each sum."""
        return self.positions.index

    def _zero_points(self, w: Writer, acc: str, channel: str, inside: str) -> None:
        """``sum (x - zx)(w - zw) = sum x w - zx sum w - zw (sum x - k zx)``: elements outside
        count as ``zx``."""
        zx, zw = self.zeros
        frame, c = self.frame, self.c
        has_x = self._zero_matters(zx, self.shift)
        w(f"zi = {'zx.to(tl.int32)' if zx is not None else '0'} - {self.shift}")
        if has_x and self.data is not None:
            sums = self.data.astype(np.int32).sum(2, dtype=np.int32).reshape(-1)
            w(f"sb = tl.load({frame.array(sums)} + {channel}{inside})")
        if has_x:
            w(f"{acc} = {acc} - zi * sb[None, :]")
        if not self.beside:
            return
        factor = f"-{self.shift_w}"
        if zw is not None:
            at = "" if zw.numel == 1 else f" + {channel}{inside}"
            w(f"zw = tl.load({frame.pointer(zw)}{at}).to(tl.int32) - {self.shift_w}")
            factor = "zw[None, :]" if at else "zw"
        steps = -(-c.inner(self.t.bk) // self.t.bk) * self.t.bk
        w(f"{acc} = {acc} - {factor} * (sa - zi * {steps})[:, None]")


def work_of(c: Convolution, region: Region, tf32: bool) -> cost.Work:
    """The convolution as the cost model sees it."""
    outs = cost.known(c.rows)
    size = c.x.dtype.size
    return cost.Work(
        outs, c.filters, c.channels * c.taps, c.groups * c.phases, c.x.dtype,
        epilogue_bytes(region), float(cost.known(c.x.numel)) * size,
        float(cost.known(c.w.numel)) * size, c.mode is not Mode.PLAIN, tf32,
    )  # fmt: skip


def tiles(region: Region, device: Any) -> list[Tile]:
    """Tiles worth timing, the likely best first."""
    c = convolution_of(region)
    w = work_of(c, region, device.tf32)
    order = (128, 64, 32) if cost.is_bytes(w) else (64, 128, 32)
    units = [u for u in order if c.mode is not Mode.TAPS or c.padded(u) <= c.channels * 1.3]
    scale = 2 // w.dtype.size if w.dtype.size < 2 else 1
    options = cost.product_tiles(w, device.gpu, [max(16, u // scale) for u in units] or (16,))
    if c.paired:
        options = [x for o in options for x in (replace(o, turned=True), o)]
    if c.mode is Mode.TAPS and c.taps > 1 and cost.is_bytes(w) and not cost.is_small(w, device.gpu):
        options = [x for o in options for x in (replace(o, near=True), o)]
    heavy = 2.0 * w.m * w.n * w.k > DESCRIPTOR_FLOPS
    if c.mode is Mode.PLAIN and device.arch >= 90 and heavy:
        frame = Frame()
        a, (b, _, _) = rows(frame, c, "0.0", ""), columns(frame, c, options[0], c.w.dtype)
        if w.dtype.size <= 2 and w.dtype is not T.u8 and all(
            isinstance(s, Strided) and s.descriptor_fits() for s in (a, b)
        ):
            options = [*cost.hopper_tiles(w), *options]
    node = region.anchor
    assert node is not None
    if node.op == "int_conv" and (len(node.inputs) > 3 or c.w.const is None or c.w.dtype is T.u8):
        options = [t for t in options if t.split == 1]  # sums beside the product
    return cost.best(options, w, device.gpu)


class ConvolutionTactic(Tactic):
    """What tactics for convolutions share."""

    target = "cuda"
    source = "JIT_CONVOLUTIONS"

    def wants_channels_last(self, region: Region, device: Any) -> bool:
        return self.refuse(region, device) is None

    def refuse(self, region: Region, device: Any) -> str | None:
        return refuse(region, device) or self.refuse_more(region)

    def refuse_more(self, region: Region) -> str | None:
        """Why this tactic can't do a convolution that others can, or None."""
        return None


@register_tactic
class Conv(ConvolutionTactic):
    """Convolution as a product of windows gathered on the way, with the region's epilogue."""

    name = "conv"
    priority = 50

    def candidates(self, region: Region, device: Any) -> Sequence[Tile]:
        return tiles(region, device)

    def build(self, region: Region, candidate: Any, device: Any) -> Kernel:
        return Builder(region, candidate, device).build()
