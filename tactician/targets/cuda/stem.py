"""Convolutions of images with few channels, such as a network's first.

Windows of three channels are short runs in memory whichever way the image is stored, and gathering
them takes most of the time. So a first kernel writes the image padded, channels last, with 1, 2 or
4 of them: then each row of a window is one run that begins at an aligned address, and a block's
rows are gathered 8 or 16 bytes at a time, without masks. Windows of outputs one below the other
share most of their rows, so a row of the product may stand for two of them (its columns are the
filters of both, with zeros where a row is not theirs), which halves what is gathered for one.

ResNet-50's, 3 -> 64, 7x7/2 on 224x224, batch 128, on an H200, with one output a row: f16 193 µs
and 26 for the padding (gathered from planes: 253), i8 120 and 20 (238). Floors by bytes 57 and 28.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...ir import dims as D
from ...ir import dtypes as T
from ...ir import expr as E
from ...ir.dtypes import DType
from ...ir.graph import Value
from ...regions.region import Region
from ...tactics.kernel import Kernel, Launch
from ...tactics.tactic import register_tactic
from . import requantize
from . import types as ty
from .conv import Builder, ConvolutionTactic
from .emit import Emitter, Frame
from .epilogue import Index
from .gemm import Side, bytes_beside, epilogue_bytes, kernel_of
from .loops import pointwise_inlined, refusal
from .product import Product, Strided, Tile, Writer, acc_type, precision, wide
from .stream import Lines, StreamTile, fitting, written
from .tile import pow2
from .windows import Convolution, convolution_of

_MOST_CHANNELS = 4
_BLOCK = 1024  # pixels that a block pads


@dataclass(frozen=True)
class StemTile(Tile):
    """A tile of such a product.

    Attributes:
        tall: Outputs one below the other that a row of the product stands for.
    """

    tall: int = 1

    def __str__(self) -> str:
        return f"{super().__str__()} tall{self.tall}"


@dataclass(frozen=True)
class _Form:
    """The padded image and the product over it.

    Attributes:
        channels: Channels of the padded image.
        run: Elements that a row of a window takes, a power of two.
        rows: Rows of a product row's window, filled up to whole steps.
        height, width: Of the padded image.
    """

    channels: int
    run: int
    rows: int
    height: int
    width: int

    @property
    def line(self) -> int:
        """Elements of a row of the image."""
        return self.width * self.channels

    @property
    def inner(self) -> int:
        return self.rows * self.run


def _run(c: Convolution) -> int:
    return pow2(c.axes[-1].taps * pow2(c.channels))


def _form(c: Convolution, bk: int, tall: int) -> _Form:
    """How a convolution (with all of its outputs) is brought into this form."""
    channels, run = pow2(c.channels), _run(c)
    last = c.axes[-1]
    taps, step, outs = 1, 1, 1
    if len(c.axes) > 1:
        taps, step, outs = c.axes[0].taps, c.axes[0].mult, int(c.axes[0].out)  # type: ignore[arg-type]
    unit = max(1, bk // run)
    rows = -(-(taps + (tall - 1) * step) // unit) * unit
    width = (int(last.out) - 1) * last.mult + run // channels  # type: ignore[arg-type]
    whole = max(1, 16 // (channels * c.x.dtype.size))
    return _Form(channels, run, rows, (outs - tall) * step + rows, -(-width // whole) * whole)


def _weights(c: Convolution, f: _Form, tall: int, dtype: DType) -> np.ndarray[Any, Any]:
    """``[1, filters of each of the outputs, row]``."""
    w = np.asarray(c.w.const)
    w = w.reshape(c.filters, c.channels, -1, c.axes[-1].taps).transpose(0, 2, 3, 1)
    taps = w.shape[1]
    out = np.zeros((tall, c.filters, f.rows, f.run // f.channels, f.channels), dtype.np)
    for j in range(tall):
        first = j * c.axes[0].mult
        out[j, :, first : first + taps, : w.shape[2], : w.shape[3]] = w
    return np.ascontiguousarray(out.reshape(1, tall * c.filters, f.inner))


@dataclass
class _Rows:
    """The rows of the product: runs of the padded image."""

    frame: Frame
    c: Convolution
    f: _Form
    tall: int
    padded: Value
    dtype: DType

    def setup(self, w: Writer, t: Tile, first: str) -> None:
        f, c = self.f, self.c
        image = "on.to(tl.int64)" if _is_wide(c, f) else "on"
        step = c.axes[-1].mult * f.channels
        terms = [f"{image} * {f.height * f.line}", f"o{len(c.axes) - 1} * {step}"]
        if len(c.axes) > 1:
            terms.append(f"o0 * {self.tall * c.axes[0].mult * f.line}")
        along = "rk" if t.bk <= f.run else f"((rk // {f.run}) * {f.line} + rk % {f.run})"
        w(f"ap = {self.frame.pointer(self.padded)} + ({' + '.join(terms)})[:, None] "
          f"+ {along}[None, :]")  # fmt: skip

    def load(self, w: Writer, t: Tile) -> str:
        f = self.f
        if t.bk >= f.run:
            at = f"it * {t.bk // f.run * f.line}"
        else:
            at = f"((it * {t.bk}) // {f.run}) * {f.line} + (it * {t.bk}) % {f.run}"
        w(f"at = tl.load(ap + ({at}))")
        return "at"

    def advance(self, w: Writer, t: Tile) -> None:
        pass


class _Stem(Builder):
    def __init__(
        self, region: Region, t: StemTile | StreamTile, device: Any, maker: Region | None = None
    ):
        super().__init__(region, t, device)
        self.maker = maker  # of the image, if it is not read
        self.tall, self.whole = t.tall, _plain(region)
        self.form = _form(self.whole, t.bk, t.tall)
        axes = list(self.whole.axes)
        if t.tall > 1:
            axes[0] = replace(axes[0], out=int(axes[0].out) // t.tall)  # type: ignore[arg-type]
        self.c = replace(self.whole, axes=tuple(axes))
        self.positions.c = self.c
        dtype = T.i8 if self.dtype is T.u8 else self.dtype
        f = self.form
        self.padded = Value("padded", dtype, (self.c.images, f.height, f.width, f.channels))

    def build(self) -> Kernel:
        c, t, frame, f = self.c, self.t, self.frame, self.form
        dtype = self.padded.dtype
        self.data = _weights(self.whole, f, self.tall, dtype)
        a = _Rows(frame, c, f, self.tall, self.padded, dtype)
        if isinstance(t, StreamTile):
            lines = Lines(frame, c, frame.wide)
            self.positions = lines if lines.suits(t) else self.positions
            kernel = written(self, t, a, self.data, "stem")
            kernel.before = (self._pad(),)
            return kernel
        b = Strided(
            frame, self.data, dtype, False, c.filters * self.tall, f.inner, f.inner, 1, "",
            self.data.size, other="0.0" if dtype.is_float else "0",
        )  # fmt: skip
        product = Product(
            frame, a, b, c.rows, c.filters * self.tall, f.inner, 1, acc_type(self.dtype),
            precision(self.dtype, self.device.tf32), self.finish, self._begin,
            early=bytes_beside(self.region, frame),
        )  # fmt: skip
        kernel = kernel_of(product, t, self.device, frame, "stem")
        kernel.before = (self._pad(),)
        kernel.flops = self.whole.rows * (2 * c.filters * c.channels * c.taps)
        return kernel

    def _place(self) -> list[Index]:
        place = super()._place()
        if self.tall > 1:
            place = [replace(i, flat="") for i in place]
            below = f"(o0 * {self.tall})[:, None] + (rn // {self.c.filters})[None, :]"
            place[1] = Index(f"({below})", (0, 1))
        return place

    def _pad(self) -> Kernel:
        """Writes the padded image."""
        c, f, maker = self.whole, self.form, self.maker
        big = _is_wide(c, f)
        frame, w = Frame(big and maker is not None), Writer()
        size, count = frame.size, self.padded.numel // f.channels  # type: ignore[operator]
        w(f"rp = tl.program_id(0){'.to(tl.int64)' * big} * {_BLOCK} + tl.arange(0, {_BLOCK})",
          f"rc = tl.arange(0, {f.channels})",
          f"on = rp // {f.height * f.width}",
          f"x = rp % {f.width} + {size(c.axes[-1].base)}",
          f"ok = (rp < {size(count)}) & (x >= 0) & (x < {size(c.axes[-1].size)})")  # fmt: skip
        if len(c.axes) > 1:
            a = c.axes[0]
            w(f"y = (rp // {f.width}) % {f.height} + {size(a.base)}",
              f"ok &= (y >= 0) & (y < {size(a.size)})")  # fmt: skip
        masks = {0: "ok[:, None]"}
        if c.channels != f.channels:
            masks[1] = f"(rc < {c.channels})[None, :]"
        pixels, done = self._pixels(w, frame, masks)
        w(f"v = {pixels}")
        if not done:
            other = "0.0" if self.dtype.is_float else "0"
            if self.zeros[0] is not None:
                other = f"tl.load({frame.pointer(self.zeros[0])})"
            w(f"ok = {' & '.join(masks.values())}",
              f"v = tl.where(ok, v, {other}).to({ty.tl_name(c.x.dtype)})")  # fmt: skip
        if self.shift:
            w(f"v = {Side(self.shift).convert.format('v')}")
        w(f"tl.store({frame.pointer(self.padded)} + rp[:, None] * {f.channels} + rc[None, :], v, "
          f"mask=(rp < {size(count)})[:, None])")  # fmt: skip
        return Kernel(
            "pad", frame.source("pad", w.lines), frame.values, tuple(frame.dims),
            launch=Launch(frame.types, (D.ceil_div(count, _BLOCK),), 4, 1),
        )

    def _pixels(self, w: Writer, frame: Frame, masks: dict[int, str]) -> tuple[str, bool]:
        """The image at the places of a block, loaded or computed as it would have been, and
        whether it is right outside as well."""
        c, f, size = self.whole, self.form, frame.size
        if self.maker is None:
            at = f"on * {size(c.x_image)} + x * {size(c.x_space[-1])}"
            at += f" + y * {size(c.x_space[0])}" if len(c.axes) > 1 else ""
            return (f"tl.load({frame.pointer(c.stored)} + ({at})[:, None] + (rc * "
                    f"{size(c.x_channel)})[None, :], mask={' & '.join(masks.values())}, "
                    "other=0)"), False  # fmt: skip
        stage = _one_stage(self.maker)
        em = Emitter(frame, masks, (_BLOCK, f.channels), prefix="q")
        places = ["on", *["y"][: len(c.axes) - 1], "x"]
        index = [Index(f"{p}[:, None]", (0,)) for p in places]
        index.insert(len(index) if "logical" in c.stored.meta else 1, Index("rc[None, :]", (1,)))
        for v, i in zip(stage.vars, index, strict=True):
            em.bind(v, i.text, i.axes)
        pixels = em.emit(em.lowerer.lower(stage.expr))
        w(*em.lines)
        return pixels.text, _makes_zero(stage.expr, self.zeros[0])


def _makes_zero(e: E.Expr, zero: Value | None) -> bool:
    """Whether what is loaded as 0 becomes the zero point."""
    rounding = requantize.match(e)
    if rounding is None or (zero is not None and zero.const is None):
        return False
    x = rounding.x
    while isinstance(x, E.Cast) and x.dtype.is_float:
        x = x.x
    point = 0 if zero is None else int(np.asarray(zero.const).reshape(()))
    return isinstance(x, E.Load) and x.guard is None and rounding.zero == point


def _one_stage(maker: Region) -> E.Stage:
    """What computes each element of a region's result."""
    (stage,) = pointwise_inlined(maker.stages, maker.outputs)
    return stage


def _is_wide(c: Convolution, f: _Form) -> bool:
    return wide(c.images * (f.height * f.line)) or wide(c.images * c.x_image)


def _plain(region: Region) -> Convolution:
    return convolution_of(region, paired=False)


def _streams(region: Region, c: Convolution, device: Any) -> list[StreamTile]:
    """Tiles that have whole windows of bytes in a step."""
    small = all(v.dtype.size <= 2 for v in region.outputs)
    if c.x.dtype.size > 1 or not small:
        return []
    rows = 1 if len(c.axes) == 1 else pow2(c.axes[0].taps)
    bk = rows * _run(c)
    if not 32 <= bk <= 512:
        return []
    shapes = ((128, 1, 4, 2), (64, 1, 4, 3), (128, 1, 4, 3), (64, 1, 4, 2))
    return fitting(shapes, c, bk, epilogue_bytes(region) - 1, device)[:2]


@register_tactic
class Stem(ConvolutionTactic):
    """Convolution of few channels on a padded copy of the image, with the region's epilogue."""

    name = "stem"
    priority = 30  # two kernels: only where it was seen to be faster
    joins = True

    def takes_pair(self, first: Region, second: Region, device: Any) -> bool:
        if first.anchor is not None or first.parts or len(first.outputs) != 1:
            return False
        if self.refuse(second, device) is not None or refusal(first.stages, first.outputs):
            return False
        (y,) = first.outputs
        return _plain(second).stored is y and not any(
            isinstance(e, E.Reduce) or "concat" in s.meta
            for s in first.stages for e in E.walk(s.expr)
        )

    def refuse(self, region: Region, device: Any) -> str | None:
        if not region.parts:
            return super().refuse(region, device)
        first, second = region.parts[0], region.parts[-1]
        return None if self.takes_pair(first, second, device) else "no image and its convolution"

    def refuse_more(self, region: Region) -> str | None:
        c = _plain(region)
        node = region.anchor
        assert node is not None
        if c.channels > _MOST_CHANNELS or c.groups != 1 or c.transposed:
            return "the image has many channels" if c.groups == 1 else "it has groups"
        if c.x.dtype.size > 2 or c.w.const is None or c.w.dtype is T.u8:
            return "its elements are not constants and images of one or two bytes"
        if node.op == "int_conv" and any(v is not None for v in node.inputs[3:]):
            return "weights have a zero point"
        if len(c.axes) > 2 or c.taps == 1 or not D.is_static(*c.outs, *c.x.dims[2:]):
            return "not windows of one or two axes with known extents"
        if any(a.step != 1 or a.div != 1 or isinstance(a.base, D.Dim) for a in c.axes):
            return "windows are dilated"
        form = _form(c, _run(c), 1)
        if c.axes[-1].mult * form.channels * c.x.dtype.size % 4:
            return "windows begin at odd addresses"
        if form.run > 256:
            return "windows are too wide"
        return None

    def candidates(self, region: Region, device: Any) -> Sequence[StemTile | StreamTile]:
        region = region.parts[-1] if region.parts else region
        c = _plain(region)
        run, found = max(16, _run(c)), []
        unit = max(run, 32 // c.x.dtype.size)
        two = len(c.axes) > 1 and int(c.axes[0].out) % 2 == 0 and c.axes[0].taps > 1  # type: ignore[arg-type]
        for bm, tall, warps, steps, stages in (
            (128, 2, 4, 1, 1), (128, 1, 4, 1, 1), (64, 2, 4, 1, 1), (128, 2, 8, 1, 1),
            (128, 2, 4, 2, 2), (64, 1, 4, 1, 1), (128, 2, 4, 8, 1), (128, 1, 4, 8, 1),
        ):  # fmt: skip
            columns = c.filters * tall
            bn = min(max(16, pow2(columns)), 128 if warps == 4 and bm == 128 else 256)
            if (tall > 1 and not two) or bm * bn // (32 * warps) > 128:
                continue
            bk = min(unit * steps, 512 // c.x.dtype.size)
            found.append(StemTile(bm, bn, bk, warps, stages, tall=tall))
        return [*_streams(region, c, device), *dict.fromkeys(found)]

    def build(self, region: Region, candidate: Any, device: Any) -> Kernel:
        if region.parts:
            maker, region = region.parts
            return _Stem(region, candidate, device, maker).build()
        return _Stem(region, candidate, device).build()
