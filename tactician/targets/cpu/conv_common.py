"""What the convolution tactics share: the problem's numbers and the epilogue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

from llvmlite import ir

from ...ir import dims as D
from ...ir import expr as E
from ...ir.dtypes import bf16, f16, f32
from ...ir.graph import Node, Value
from ...ops.conv import conv_axes, kernel_extents
from ...regions.region import Region, is_slice, pitch
from . import affine as A
from . import vecmath as V
from .conv_ir import I32, I64, PTR, ConvShape, lane_mask
from .emitter import Emitter, Shifted


def stored_last(v: Value) -> bool:
    """Whether the channels of a value are neighbours in memory."""
    return "logical" in v.meta or v.dims[1] == 1 or all(d == 1 for d in v.dims[2:])


def stored_otherwise(region: Region) -> str | None:
    """What a convolution reads or writes that is not stored channels-last, as a reason."""
    assert region.anchor is not None
    x = region.anchor.inputs[0]
    assert x is not None
    if not all(map(stored_last, region.outputs)):
        return "the result is not stored channels-last"
    if x not in region.physical and not stored_last(x):
        return "the input is not stored channels-last"
    return None


def unsuited(region: Region, device: Any) -> str | None:
    """Why no channels-last kernel can do the region whatever its layouts, or None."""
    node = region.anchor
    if node is None or node.op != "convolution":
        return "not a convolution"
    x, w = node.inputs[0], node.inputs[1]
    assert x is not None and w is not None
    if x.dtype not in (f32, f16, bf16) or w.const is None:
        return "needs floats of at most 32 bits and constant weights"
    if not isinstance(x.dims[1], int):
        return "the number of channels must be fixed"
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None and bias.const is None:
        return "the bias must be constant"
    groups = node.attrs.groups
    lanes = device.isa.lanes(32)
    per_group = int(w.dims[0]) // groups  # type: ignore[arg-type]
    if groups > 1 and per_group % lanes and not is_depthwise(node):
        return f"{per_group} channels per group are no multiple of {lanes}"
    if len(region.outputs) != 1:
        return "the epilogue has more than one result"
    axes = conv_axes(x.dims[2:], kernel_extents(w), node.attrs)
    if not all(isinstance(a.pre, int) for a in axes):
        return "the padding depends on a size known only at run time"
    return None


def is_depthwise(node: Node) -> bool:
    """Whether every channel is convolved with a window of its own."""
    x, w = node.inputs[0], node.inputs[1]
    assert x is not None and w is not None
    return 1 < node.attrs.groups == x.dims[1] == w.dims[0]


class Problem:
    """The convolution's numbers, as the code generator needs them."""

    def __init__(self, region: Region):
        self.region = region
        node = region.anchor
        assert node is not None
        self.node: Node = node
        x, w = node.inputs[0], node.inputs[1]
        assert x is not None and w is not None and w.const is not None
        self.x, self.w, self.y = x, w, node.outputs[0]
        self.bias = node.inputs[2] if len(node.inputs) > 2 else None
        self.groups = node.attrs.groups
        self.images = x.dims[0]
        axes = conv_axes(x.dims[2:], kernel_extents(w), node.attrs)
        # Register tiles lie along the last axis: a trailing axis of one position goes first,
        # which changes neither memory nor the order of taps.
        self.order = sorted(range(len(axes)), key=lambda d: not single(axes[d]))
        self.axes = [axes[d] for d in self.order]
        self.x_dims = [x.dims[2 + d] for d in self.order]
        window = tuple(a.window for a in self.axes)
        self.k = int(w.dims[0])  # type: ignore[arg-type]
        self.c = int(w.dims[1])  # type: ignore[arg-type]
        self.channels = int(x.dims[1])  # type: ignore[arg-type]
        one = self.channels == 1 or all(d == 1 for d in x.dims[2:])  # either layout
        last = one or x in region.physical
        space = D.product(x.dims[2:])
        self.x_channel = 1 if last else int(space)  # type: ignore[arg-type]
        stored = region.physical.get(x, x)
        # channels of a pixel in memory: more than its own where it is a slice of wider pixels
        self.pitch = int(pitch(stored)) if is_slice(stored) else self.channels  # type: ignore[arg-type]
        self.x_pixel = self.pitch if last else 1
        self.shape = ConvShape(
            c=self.c,
            k=self.k,
            window=window,
            stride=tuple(a.stride for a in self.axes),
            dilation=tuple(a.dilation for a in self.axes),
            pre=tuple(_static(a.pre) for a in self.axes),
            x_channel=self.x_channel,
            x_pixel=self.x_pixel,
            depthwise=is_depthwise(node),
            dtype=x.dtype,
            past=tuple(a.past_end for a in self.axes),
        )
        self.stage = region.stages[-1] if region.stages else None
        self.out = region.outputs[0]
        plain = self.shape.taps == 1 and set(self.shape.stride) == {1}
        # whether pixels can be counted through all images and rows, where channels come last
        self.countable = (
            plain and not any(self.shape.pre) and own_or_by_channel(self.stage, self.out)
            and all(a.out == a.size for a in self.axes)
        )
        self.flat = self.countable and last
        # then the pixel that is counted is the image: an axis of extent 1 can't count
        self.by_image = self.flat and all(a.out == 1 for a in self.axes) and x.dims[0] != 1


def own_or_by_channel(stage: E.Stage | None, out: Value, last: bool = False) -> bool:
    """Whether epilogue operands are read at the pixel's own place or by channel only, so
    that pixels can be counted through all images and rows.

    Args:
        last: Channels are the last dimension anyway.
    """
    if stage is None:
        return True
    variables = stage.vars
    channel = variables[-1] if last or "logical" in out.meta else variables[1]
    for ld in E.loads(stage.expr):
        own = len(ld.index) == len(variables) and all(
            i is v for i, v in zip(ld.index, variables, strict=True)
        )
        by_channel = all(i is channel or isinstance(i, E.Const) for i in ld.index)
        if ld.guard is not None or not (own or by_channel):
            return False
    return not _bare_variables(stage.expr)


def single(a: Any) -> bool:
    """Whether an axis has one position and one tap, without padding."""
    return (a.size, a.out, a.window, a.pre) == (1, 1, 1, 0)


def _bare_variables(e: E.Expr) -> bool:
    """Whether an iteration variable is used otherwise than to address operands."""
    if isinstance(e, E.Load):
        return False
    return isinstance(e, E.Var) or any(_bare_variables(c) for c in E.children(e))


def _static(d: D.DimLike) -> int:
    if isinstance(d, D.Dim):
        raise ValueError(f"padding {d} depends on the input's size")
    return int(d)


class Sizes(Protocol):
    """Where a kernel finds run-time sizes."""

    def value(self, b: ir.IRBuilder, array: Any, d: D.DimLike) -> Any:
        """A dimension as an i64; ``array`` holds the kernel's scalar arguments."""


class RuntimeSizes:
    """Run-time sizes: symbolic dimensions become entries of the kernel's ``dims``."""

    def __init__(self) -> None:
        self.dims: list[D.Dim] = []

    def value(self, b: ir.IRBuilder, array: Any, d: D.DimLike) -> Any:
        if not isinstance(d, D.Dim):
            return I64(int(d))
        if d not in self.dims:
            self.dims.append(d)
        at = b.gep(array, [I64(self.dims.index(d))], source_etype=I64)
        return b.load(at, typ=I64)


Index: TypeAlias = "ir.Value | Shifted"


class Epilogue:
    """The region's stage on sums in registers, inside a function of the kernel.

    Args:
        problem: The convolution.
        operands: What the kernel's pointer arguments are, in order.
        sizes: Run-time sizes of the kernel.
    """

    def __init__(self, problem: Problem, operands: Sequence[Any], sizes: Sizes):
        self.p, self.operands, self.sizes = problem, operands, sizes
        self.stage = problem.stage or identity_stage(problem)
        self.source = problem.region.physical.get(problem.y, problem.y)
        self._pointers: dict[Value, Any] = {}

    def enter(self, b: ir.IRBuilder, args: Any) -> None:
        """Loads the operands' addresses; call it in the entry block of the function."""
        self._pointers = {
            v: argument(b, args, i) for i, v in enumerate(self.operands) if isinstance(v, Value)
        }

    def know(self, pointers: dict[Value, Any]) -> None:
        """Takes the operands' addresses as they are instead."""
        self._pointers = pointers

    def place(self, value: Value, address: Any) -> None:
        """Gives an operand, or the result, an address that is no argument of the kernel."""
        self._pointers[value] = address

    def at(self, b: ir.IRBuilder, dims: Any, image: Any, outer: Sequence[Any]) -> Emitter:
        """An emitter for pixels of which all coordinates but the last are known."""
        em = Emitter(
            b, pointer=self._pointers.__getitem__, size=lambda d: self.sizes.value(b, dims, d)
        )
        self._bind_outer(em, image, outer)
        return em

    def _bind_outer(self, em: Emitter, image: Any, outer: Sequence[Any]) -> None:
        if not self.p.by_image:
            em.bind(self.stage.vars[0], image)
        for v, x in zip(self._space()[:-1], outer, strict=True):
            em.bind(v, x)

    def bind_pixel(self, em: Emitter, x: Index) -> None:
        """Gives the last coordinate its value."""
        if self.p.by_image:
            em.bind(self.stage.vars[0], x)
            x = I64(0)
        em.bind(self._space()[-1], x)

    def _channel(self) -> E.Var | None:
        """The variable of channels, if there is one."""
        return self.stage.vars[-1 if self._last() else 1]

    def _space(self) -> tuple[E.Var, ...]:
        """Spatial variables in the order that the problem counts its axes."""
        variables = self.stage.vars
        space = variables[1:-1] if self._last() else variables[2:]
        return tuple(space[d] for d in self.p.order)

    def _last(self) -> bool:
        return "logical" in self.stage.out.meta

    def store(self, em: Emitter, x: Index, k: Index, sums: Any, count: int) -> None:
        """Computes and writes one vector of channels of a pixel.

        Args:
            em: From `at`.
            x: The pixel's last coordinate.
            k: The first channel.
            sums: A vector of them.
            count: How many of its lanes are channels.
        """
        em.push(em.builder)
        self.bind_pixel(em, x)
        self.bind_channels(em, k, sums.type.count)
        self.finish(em, sums, count)
        em.pop()

    def bind_channels(self, em: Emitter, k: Index, lanes: int) -> None:
        """Spreads the channels from ``k`` on over lanes."""
        channel = self._channel()
        if channel is not None:  # an extent of 1 is not spread
            em.bind(channel, k, width=0 if self.p.k == 1 else lanes)

    def finish(self, em: Emitter, sums: Any, count: int) -> None:
        """Like `store`, once pixel and channels are bound."""
        b, lanes = em.builder, sums.type.count
        if self.p.k == 1 or self._channel() is None:
            em.bind_result(self.source, b.extract_element(sums, I32(0)))
        else:
            em.bind_result(self.source, sums)
            em.mask = lane_mask(count, lanes) if count < lanes else None
        em.store(self.stage, em.emit(self.stage.expr))

    def store_pixels(self, em: Emitter, x: Index, sums: Any, count: int) -> None:
        """Like `store`, of neighbouring pixels of the only channel.

        Args:
            em: From `at`.
            x: The first pixel's last coordinate.
            sums: A vector with one lane per pixel.
            count: How many of its lanes are pixels.
        """
        lanes, channel = sums.type.count, self._channel()
        em.push(em.builder)
        em.bind(self._space()[-1], x, width=lanes)
        if channel is not None:
            em.bind(channel, I64(0))
        em.bind_result(self.source, sums)
        em.mask = lane_mask(count, lanes) if count < lanes else None
        em.store(self.stage, em.emit(self.stage.expr))
        em.pop()

    def touch(self, em: Emitter, x: Index, k: Index) -> None:
        """Asks for the lines that `store` will read and write for a vector of channels.

        Args:
            em: From `at`.
            x: The pixel's last coordinate.
            k: The first channel.
        """
        b, channel = em.builder, self._channel()
        em.push(b)
        self.bind_pixel(em, x)
        if channel is not None:
            em.bind(channel, k)
        index = [em.lowerer.lower(v) for v in self.stage.vars]
        at = em.lowerer.flat(self.stage.out, index)
        V.prefetch(b, em.place(self.stage.out, at), level=3, write=True)
        for ld in E.loads(self.stage.expr):
            own = len(ld.index) == len(self.stage.vars) and all(
                i is v for i, v in zip(ld.index, self.stage.vars, strict=True)
            )
            if own and ld.guard is None and ld.value is not self.source:
                load = em.lowerer.lower(ld)
                assert isinstance(load, A.FlatLoad)
                V.prefetch(b, em.place(load.value, load.at), level=3)
        em.pop()


def identity_stage(p: Problem) -> E.Stage:
    """The epilogue of a convolution without one."""
    source = p.region.physical.get(p.y, p.y)
    variables = E.iter_vars(p.out.dims)
    return E.Stage(p.out, variables, E.load(source, variables))


def argument(b: ir.IRBuilder, args: Any, i: int) -> Any:
    """The address of the kernel's i-th operand."""
    return b.load(b.gep(args, [I64(i)], source_etype=PTR), typ=PTR)


def least(b: ir.IRBuilder, x: Any, y: Any) -> Any:
    """The smaller of two signed integers."""
    return b.select(b.icmp_signed("<", x, y), x, y)
