"""Convolutions as products: rows are positions of the result, the inner extent runs over window
positions and channels, and tiles of rows are gathered from the image as it lies in memory.

A step of the product covers channels of one window position where there are enough of them
(`Mode.TAPS`), else ``bk`` pairs of both in the order that suits the image's layout
(`Mode.PAIRS_LAST`, `Mode.PAIRS_FIRST`). Images that already are the matrix (`Mode.PLAIN`) are
read like one.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...ir import dims as D
from ...ir.dims import DimLike
from ...ir.dtypes import DType, i8
from ...ir.graph import Node, Value
from ...ops._windows import Axis
from ...ops.conv import conv_axes, deconv_axes, kernel_extents
from ...regions.region import Region, pitch
from .emit import Frame
from .epilogue import Index
from .product import Tile, Writer, converted, divides, unravel, wide

_FEW = 16  # channels up to which a step covers several window positions


class Mode(enum.Enum):
    """How steps of the product run over window positions and channels; see the module's text."""

    PLAIN = "plain"
    TAPS = "taps"
    PAIRS_LAST = "pairs, channels fastest"
    PAIRS_FIRST = "pairs, positions fastest"


@dataclass(frozen=True)
class WindowAxis:
    """Where window position ``t`` of output ``o`` falls: ``(o * mult + base + t * step) / div``,
    if that is whole and inside ``size``.

    Outputs of a deconvolution that lie ``stride`` apart use the same window positions. With
    ``phases`` above 1, outputs are counted within such a class: ``o`` of phase ``p`` stands for
    ``o * phases + p``, and its window falls on ``o + (p + base) // phases - t``.
    """

    mult: int
    base: DimLike
    step: int
    div: int
    taps: int
    size: DimLike
    out: DimLike
    phases: int = 1
    whole: DimLike = 0  # outputs of all phases

    @property
    def always_inside(self) -> bool:
        """Whether no window reaches outside."""
        if self.div != 1 or not D.is_static(self.base, self.size, self.out):
            return False
        if self.phases > 1:
            low = int(self.base) // self.phases - (self.taps - 1)  # type: ignore[arg-type]
            high = int(self.out) - 1 + (self.phases - 1 + int(self.base)) // self.phases  # type: ignore[arg-type]
            return low >= 0 and high < int(self.size)  # type: ignore[arg-type]
        first = int(self.base) + min(0, (self.taps - 1) * self.step)  # type: ignore[arg-type]
        last = (int(self.out) - 1) * self.mult + int(self.base)  # type: ignore[arg-type]
        last += max(0, (self.taps - 1) * self.step)
        return first >= 0 and last < int(self.size)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Convolution:
    """A convolution's numbers.

    Attributes:
        x, w, bias: Operands of the node (``x`` as the graph has it, not as it is stored).
        stored: ``x`` as it is stored.
        images: Extent of the batch.
        groups, filters, channels: Groups, and output and input channels of each.
        axes: One per spatial dimension.
        x_channel, x_image, x_space: Elements between neighbouring channels, images, and positions
            along each axis.
        transposed: Whether it is a deconvolution, with weights ``[C, K/groups, …]``.
        lead: Window positions along the last axis that were put before the others, with weights
            of zero, so that windows begin at even places.
        paired: Whether they do, and hold an even number of positions.
    """

    x: Value
    w: Value
    bias: Value | None
    stored: Value
    images: DimLike
    groups: int
    filters: int
    channels: int
    axes: tuple[WindowAxis, ...]
    x_channel: DimLike
    x_image: DimLike
    x_space: tuple[DimLike, ...]
    transposed: bool
    lead: int = 0
    paired: bool = False

    @property
    def taps(self) -> int:
        return int(np.prod([a.taps for a in self.axes], dtype=np.int64))

    @property
    def outs(self) -> tuple[DimLike, ...]:
        return tuple(a.out for a in self.axes)

    @property
    def phases(self) -> int:
        """Classes of outputs, each a product of its own."""
        return int(np.prod([a.phases for a in self.axes], dtype=np.int64))

    @property
    def rows(self) -> DimLike:
        """Outputs of a phase, all images."""
        return self.images * D.product(self.outs)

    @property
    def last(self) -> bool:
        """Whether channels are neighbours in memory."""
        return self.x_channel == 1

    @property
    def mode(self) -> Mode:
        """How steps run by nature of the problem."""
        if self.w.const is None:
            return Mode.PAIRS_FIRST
        plain = all(
            (a.taps, a.mult, a.div) == (1, 1, 1) and a.base == 0 and a.size == a.out
            for a in self.axes
        )
        if plain and self.last:
            return Mode.PLAIN
        if self.taps == 1 or self.channels > _FEW:
            return Mode.TAPS
        return Mode.PAIRS_LAST if self.last else Mode.PAIRS_FIRST

    def inner(self, bk: int) -> int:
        """The inner extent that steps of ``bk`` cover, padding included."""
        if self.mode is Mode.TAPS:
            return self.taps * self.padded(bk)
        return self.taps * self.channels

    def padded(self, bk: int) -> int:
        """Channels filled up to whole steps."""
        return -(-self.channels // bk) * bk


def convolution_of(
    region: Region, phases: bool = True, paired: bool = True
) -> Convolution:
    """The numbers of a region whose anchor is a `convolution`, `deconvolution` or `int_conv`.

    Args:
        phases: Whether outputs of deconvolutions may be counted in classes.
        paired: Whether windows may be made to begin at even places.
    """
    node = region.anchor
    assert node is not None
    x, w = node.inputs[:2]
    assert x is not None and w is not None
    bias = None if node.op == "int_conv" else (*node.inputs, None)[2]
    transposed = node.op == "deconvolution"
    groups = node.attrs.groups
    axes = []
    for a in (deconv_axes if transposed else conv_axes)(x.dims[2:], kernel_extents(w), node.attrs):
        if transposed:
            axes.append(_spread_axis(a, phases and w.const is not None))
        else:
            pre = a.pre * -1
            axes.append(WindowAxis(a.stride, pre, a.dilation, 1, a.window, a.size, a.out))
    first, second = int(w.dims[0]), int(w.dims[1])  # type: ignore[arg-type]
    filters, channels = (second, first // groups) if transposed else (first // groups, second)
    stored = region.physical.get(x, x)
    sizes = x.dims[2:]
    space: list[DimLike] = []
    if stored is not x:
        unit = pitch(stored)
        space = [D.product(sizes[d + 1 :]) * unit for d in range(len(sizes))]
        strides: tuple[DimLike, DimLike] = (1, D.product(sizes) * unit)
    else:
        space = [D.product(sizes[d + 1 :]) for d in range(len(sizes))]
        strides = (D.product(sizes), D.product(x.dims[1:]))
        if all(d == 1 for d in sizes):
            strides = (1, x.dims[1])
        elif x.dims[1] == 1:
            strides = (1, strides[1])
    c = Convolution(
        x, w, bias, stored, x.dims[0], groups, filters, channels, tuple(axes), *strides,
        tuple(space), transposed,
    )  # fmt: skip
    # what a weight's zero point takes from window positions put in front would be too much
    plain = node.op != "int_conv" or (w.dtype is i8 and (*node.inputs, None, None)[3] is None)
    return _paired(c) if plain and paired else c


def _spread_axis(a: Axis, phases: bool) -> WindowAxis:
    """An axis of a deconvolution."""
    suits = phases and a.stride > 1 and a.dilation == 1 and isinstance(a.pre, int) and a.pre >= 0
    if not suits:
        return WindowAxis(1, a.pre, -a.dilation, a.stride, a.window, a.size, a.out)
    taps, out = -(-a.window // a.stride), D.ceil_div(a.out, a.stride)
    return WindowAxis(1, a.pre, -1, 1, taps, a.size, out, a.stride, a.out)


def _paired(c: Convolution) -> Convolution:
    """With windows of few channels, stored one after the other, that begin at even places: pairs
    of elements are then loaded at once (2-byte elements by asynchronous copies, which take no
    less than 4 bytes)."""
    a = c.axes[-1]
    far = (*c.x_space[:-1], c.x_image, c.x_channel * c.channels)
    suits = (
        c.mode is Mode.PAIRS_FIRST and c.w.const is not None and c.x.dtype.size <= 2
        and c.x_space[-1] == 1 and (a.step, a.div) == (1, 1) and a.mult % 2 == 0 and a.taps > 2
        and not isinstance(a.base, D.Dim) and not isinstance(a.size, D.Dim) and a.size % 2 == 0
        and all(not isinstance(d, D.Dim) and d % 2 == 0 for d in far)
    )
    if not suits:
        return c
    lead = int(a.base) % 2  # type: ignore[arg-type]
    taps = -(-(a.taps + lead) // 4) * 4
    last = replace(a, base=a.base - lead, taps=taps)
    return replace(c, axes=(*c.axes[:-1], last), lead=lead, paired=True)


def packed_weights(c: Convolution, bk: int, dtype: DType, row_unit: int) -> np.ndarray[Any, Any]:
    """Constant weights as ``[groups, filters, row]`` in the order of the product's steps, rows
    filled up with zeros to a multiple of ``row_unit`` elements."""
    if c.phases > 1:
        return _packed_phases(c, bk, dtype, row_unit)
    w = np.asarray(c.w.const)
    more = c.axes[-1].taps - w.shape[-1]
    if more:
        w = np.pad(w, [(0, 0)] * (w.ndim - 1) + [(c.lead, more - c.lead)])
    if c.transposed:
        w = w.reshape(c.groups, c.channels, c.filters, c.taps).transpose(0, 2, 1, 3)
    else:
        w = w.reshape(c.groups, c.filters, c.channels, c.taps)
    if c.mode is not Mode.PAIRS_FIRST:
        w = w.swapaxes(2, 3)
    if c.mode is Mode.TAPS:
        w = np.pad(w, ((0, 0), (0, 0), (0, 0), (0, c.padded(bk) - c.channels)))
    w = w.reshape(c.groups, c.filters, -1)
    return np.ascontiguousarray(np.pad(w, ((0, 0), (0, 0), (0, -w.shape[2] % row_unit))), dtype.np)


def _packed_phases(
    c: Convolution, bk: int, dtype: DType, row_unit: int
) -> np.ndarray[Any, Any]:
    """Weights of a deconvolution as ``[groups * phases, filters, row]``: each phase has the window
    positions that reach its outputs, the nearest first."""
    w = np.asarray(c.w.const)
    window = w.shape[2:]
    w = w.reshape(c.groups, c.channels, c.filters, *window).swapaxes(1, 2)
    taps = tuple(a.taps for a in c.axes)
    out = np.zeros((c.groups, c.phases, *w.shape[1:3], *taps), w.dtype)
    for k, phase in enumerate(np.ndindex(*(a.phases for a in c.axes))):
        parts: list[Any] = [slice(None)] * 3
        for p, a in zip(phase, c.axes, strict=True):
            if a.phases > 1:
                parts.append(slice((p + int(a.base)) % a.phases, None, a.phases))  # type: ignore[arg-type]
            else:
                parts.append(slice(None))
        found = w[tuple(parts)]
        corner: list[Any] = [slice(n) for n in found.shape[3:]]
        out[(slice(None), k, ..., *corner)] = found
    out = out.reshape(c.groups * c.phases, c.filters, c.channels, c.taps)
    if c.mode is not Mode.PAIRS_FIRST:
        out = out.swapaxes(2, 3)
    if c.mode is Mode.TAPS:
        out = np.pad(out, ((0, 0), (0, 0), (0, 0), (0, c.padded(bk) - c.channels)))
    rows = out.reshape(c.groups * c.phases, c.filters, -1)
    rows = np.pad(rows, ((0, 0), (0, 0), (0, -rows.shape[2] % row_unit)))
    return np.ascontiguousarray(rows, dtype.np)


class Positions:
    """Names for the positions of a block's rows: ``on`` (image), ``o0``, ``o1``, … (place)."""

    def __init__(self, frame: Frame, c: Convolution, big: bool):
        self.frame, self.c, self.big = frame, c, big

    def begin(self, w: Writer, t: Tile) -> None:
        rows = "rm"
        if not divides(t.bm, self.c.rows):  # rows past the end repeat the first
            rows = f"tl.where(rm < {self.frame.size(self.c.rows)}, rm, 0)"
        w(f"ro = {rows}{'.to(tl.int64)' if self.big else ''}")
        at = unravel(self.frame, "ro", (self.c.images, *self.c.outs))
        at = [text if text != "0" else "ro * 0" for text in at]
        w(f"on = {at[0]}")
        phases = unravel(self.frame, f"(z % {self.c.phases})", tuple(a.phases for a in self.c.axes))
        for d, a in enumerate(self.c.axes):
            if a.phases == 1:
                w(f"o{d} = {at[1 + d]}")
            else:
                w(f"i{d} = {at[1 + d]}", f"g{d} = {phases[d]}",
                  f"o{d} = i{d} * {a.phases} + g{d}")  # fmt: skip

    def inside(self, t: Tile) -> list[str]:
        """Where a block's rows stand for outputs: vectors that must all be true."""
        c, size = self.c, self.frame.size
        found = [
            f"(o{d} < {size(a.whole)})" for d, a in enumerate(c.axes)
            if a.phases > 1 and not divides(a.phases, a.whole)
        ]  # the last outputs of a phase may not exist
        return found if divides(t.bm, c.rows) else [*found, f"(rm < {size(c.rows)})"]

    @property
    def index(self) -> list[Index]:
        """The image and the place along each axis."""
        flat = "ro[:, None]" if self.c.phases == 1 else ""
        return [Index(f"{n}[:, None]", (0,), flat) for n in self.names]

    @property
    def names(self) -> list[str]:
        return ["on", *(f"o{d}" for d in range(len(self.c.axes)))]


@dataclass
class Windows:
    """The rows of the product: windows of the image.

    Attributes:
        frame: The kernel's parameters.
        c: The convolution.
        dtype: Of the image's elements.
        other: What elements outside count as.
        convert: Applied to each tile: a format with one place, or "".
    """

    frame: Frame
    c: Convolution
    dtype: DType
    other: str = "0.0"
    convert: str = ""

    def setup(self, w: Writer, t: Tile, first: str) -> None:
        c, size = self.c, self.frame.size
        if t.turned:
            self._setup_turned(w, t)
            return
        terms = [f"on * {size(c.x_image)}"]
        for d, a in enumerate(c.axes):
            base = "" if a.base == 0 else f" + {size(a.base)}"
            if a.phases > 1:
                w(f"h{d} = i{d}" + (f" + (g{d}{base}) // {a.phases}" if base else ""))
            else:
                w(f"h{d} = o{d}{f' * {a.mult}' if a.mult != 1 else ''}{base}")
            if a.div == 1:
                terms.append(f"h{d} * {size(c.x_space[d])}")
        w(f"hb = {' + '.join(terms)}")
        start = self.frame.pointer(c.stored)
        if c.groups > 1:
            group = "z" if c.phases == 1 else f"(z // {c.phases})"
            cast = ".to(tl.int64)" if self._wide() else ""
            start += f" + {group}{cast} * {size(c.x_channel * c.channels)}"
        along = ""
        if c.mode is Mode.TAPS and not self._far_channels():
            along = f" + (rk * {size(c.x_channel)})[None, :]"
        w(f"ap = {start} + hb[:, None]{along}")

    def _wide(self) -> bool:
        return wide(self.c.images * self.c.x_image)

    def _far_channels(self) -> bool:
        """Whether channels may be so far apart that their offsets need 64 bits."""
        return self._wide() and not self.c.last

    def _setup_turned(self, w: Writer, t: Tile) -> None:
        """Pairs of neighbouring elements, of all rows: these are neighbours in memory as well."""
        c, size = self.c, self.frame.size
        rows = f"tm * {t.bm} + rj // 2"
        if not divides(t.bm, c.rows):
            rows = f"tl.where({rows} < {size(c.rows)}, {rows}, 0)"
        w(f"rj = tl.arange(0, {2 * t.bm})", f"rp = ({rows}){'.to(tl.int64)' * self._wide()}")
        image, *places = unravel(self.frame, "rp", (c.images, *c.outs))
        terms = [f"{image} * {size(c.x_image)}", "rj % 2"]
        for d, (a, at) in enumerate(zip(c.axes, places, strict=True)):
            w(f"h{d} = {at if at != '0' else 'rp * 0'} * {a.mult} + {size(a.base)}")
            terms.append(f"h{d} * {size(c.x_space[d])}")
        start = self.frame.pointer(c.stored)
        if c.groups > 1:
            start += f" + z{'.to(tl.int64)' * self._wide()} * {size(c.x_channel * c.channels)}"
        w(f"ap = {start} + ({' + '.join(terms)})[None, :]", f"rq = tl.arange(0, {t.bk // 2})")

    def _load_turned(self, w: Writer, t: Tile) -> str:
        c, size = self.c, self.frame.size
        w(f"kk = it * {t.bk} + 2 * rq")
        along, masks, unit = [], [], 1
        for d, a in reversed(list(enumerate(c.axes))):
            w(f"s{d} = (kk // {unit}) % {a.taps}")
            along.append(f"s{d} * {size(c.x_space[d] * a.step)}")
            if not a.always_inside:
                at = f"(h{d}[None, :] + (s{d} * {a.step})[:, None])"
                masks.append(self._inside(at, a))
            unit *= a.taps
        if c.channels > 1:
            along.append(f"(kk // {unit}) * {size(c.x_channel)}")
        if (c.taps * c.channels) % t.bk:
            masks.append(f"(kk < {c.taps * c.channels})[:, None]")
        name = self._named(w, f"ap + ({' + '.join(along)})[:, None]", masks)
        w(f"{name} = tl.reshape({name}, ({t.bk // 2}, {t.bm}, 2))",
          f"{name} = tl.reshape(tl.permute({name}, (1, 0, 2)), ({t.bm}, {t.bk}))")  # fmt: skip
        return name

    def load(self, w: Writer, t: Tile) -> str:
        if t.turned:
            return self._load_turned(w, t)
        return (self._load_taps if self.c.mode is Mode.TAPS else self._load_pairs)(w, t)

    def _load_taps(self, w: Writer, t: Tile) -> str:
        c, size = self.c, self.frame.size
        per_tap = c.padded(t.bk) // t.bk
        if c.taps == 1:
            tap, c0 = "0", f"it * {t.bk}"
        elif per_tap == 1:
            tap, c0 = "it", "0"
        else:
            tap, c0 = f"(it // {per_tap})", f"(it % {per_tap}) * {t.bk}"
        steps = unravel(self.frame, tap, tuple(a.taps for a in c.axes))
        inside, moved, fixed = [], [], []
        if self._far_channels():
            fixed = [f"((({c0}) + rk).to(tl.int64) * {size(c.x_channel)})[None, :]"]
        elif c0 != "0":
            fixed = [f"{c0} * {size(c.x_channel)}"]
        for d, a in enumerate(c.axes):
            at = f"h{d}" if steps[d] == "0" else f"(h{d} + {steps[d]} * {a.step})"
            if a.div != 1:
                w(f"q{d} = {at}")
                inside.append(f"(q{d} >= 0) & (q{d} % {a.div} == 0)")
                inside.append(f"(q{d} // {a.div} < {size(a.size)})")
                moved.append(f"(q{d} // {a.div}) * {size(c.x_space[d])}")
                continue
            if steps[d] != "0":
                fixed.append(f"{steps[d]} * {size(c.x_space[d] * a.step)}")
            if not a.always_inside:
                inside.append(self._inside(at, a))
        mask = [f"({' & '.join(inside)})[:, None]"] if inside else []
        if c.channels % t.bk:
            mask.append(f"(({c0}) + rk < {c.channels})[None, :]")
        address = "ap" + "".join(f" + ({x})[:, None]" for x in moved)
        address += f" + ({' + '.join(fixed) or '0'})"
        if t.near:
            address = f"tl.max_contiguous({address}, (1, {8 // self.dtype.size}))"
        return self._named(w, address, mask)

    def _inside(self, at: str, a: WindowAxis) -> str:
        return f"({at} >= 0) & ({at} < {self.frame.size(a.size)})"

    def _load_pairs(self, w: Writer, t: Tile) -> str:
        c, size = self.c, self.frame.size
        total = c.taps * c.channels
        w(f"kk = it * {t.bk} + rk")
        unit = c.channels if c.mode is Mode.PAIRS_LAST else 1
        channel = f"(kk % {unit})" if unit > 1 else f"(kk // {c.taps})"
        if c.channels == 1:
            channel = "0"
        steps = []
        for a in c.axes[::-1]:
            at = f"(kk // {unit})" if unit > 1 else "kk"
            steps.append("0" if a.taps == 1 else f"({at} % {a.taps})")
            unit *= a.taps
        steps = steps[::-1]
        along = [] if channel == "0" else [
            f"{channel}{'.to(tl.int64)' if self._wide() else ''} * {size(c.x_channel)}"]
        mask, moved = [], []
        for d, a in enumerate(c.axes):
            at = f"h{d}[:, None]"
            if steps[d] != "0":
                w(f"s{d} = {steps[d]}")
                at = f"(h{d}[:, None] + (s{d} * {a.step})[None, :])"
            if a.div != 1:
                w(f"q{d} = {at}")
                mask.append(f"(q{d} >= 0) & (q{d} % {a.div} == 0)")
                mask.append(f"(q{d} // {a.div} < {size(a.size)})")
                moved.append(f"(q{d} // {a.div}) * {size(c.x_space[d])}")
                continue
            if steps[d] != "0":
                along.append(f"s{d} * {size(c.x_space[d] * a.step)}")
            if not a.always_inside:
                mask.append(self._inside(at, a))
        if total % t.bk:
            mask.append(f"(kk < {total})[None, :]")
        w(f"ko = {' + '.join(along) or 'kk * 0'}")
        return self._named(w, " + ".join(["ap", "ko[None, :]", *moved]), mask)

    def _named(self, w: Writer, address: str, masks: list[str]) -> str:
        mask = f", mask={' & '.join(masks)}, other={self.other}" if masks else ""
        w(f"at = tl.load({address}{mask})")
        if self.convert:
            w(f"at = {self.convert.format('at')}")
        return "at"

    def advance(self, w: Writer, t: Tile) -> None:
        pass


@dataclass
class RunTimeWeights:
    """The columns of the product where weights are known only at run time: pairs of channel and
    window position, positions fastest."""

    frame: Frame
    c: Convolution
    dtype: DType
    other: str = "0.0"
    convert: str = ""

    def setup(self, w: Writer, t: Tile, first: str) -> None:
        c, size = self.c, self.frame.size
        w(f"bi = tl.where(rn < {c.filters}, rn, 0)")
        group = c.channels * c.filters * c.taps
        base = f"{self.frame.pointer(c.w)} + z * {size(group)}"
        stride = c.taps if c.transposed else c.channels * c.taps
        w(f"bp = {base} + (bi * {stride})[None, :]")

    def load(self, w: Writer, t: Tile) -> str:
        c = self.c
        w(f"kw = it * {t.bk} + rk")
        along = "kw"
        if c.transposed:
            along = f"((kw // {c.taps}) * {c.filters * c.taps} + kw % {c.taps})"
        inside, mask = [f"(kw < {c.taps * c.channels})[:, None]"], ""
        if c.taps * c.channels % t.bk:
            mask = f", mask={inside[0]}, other={self.other}"
        w(f"bt = tl.load(bp + {along}[:, None]{mask})")
        if self.convert:
            w(f"bt = {converted(self.convert, 'bt', inside if mask else ())}")
        return "bt"

    def advance(self, w: Writer, t: Tile) -> None:
        pass


def is_depthwise(node: Node) -> bool:
    """Whether every input channel has filters of its own."""
    x, w = node.inputs[:2]
    assert x is not None and w is not None
    return node.attrs.groups > 1 and node.attrs.groups == x.dims[1]
