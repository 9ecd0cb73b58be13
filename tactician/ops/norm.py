"""Normalizations: layer, instance, group, batch-free and RMS norm; local response norm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..ir import dims as D
from ..ir import expr as E
from ..ir.dtypes import DType, i64
from ..ir.expr import Expr, Stage, Var
from ..ir.graph import Node, TensorType, Value
from ._numeric import Array, accumulator, shape_text, widen
from ._shapes import operand
from .reduce import check_axes, size_as
from .registry import Kind, Op, OpError, register, temp


@dataclass(frozen=True)
class NormalizationAttrs:
    """
    Attributes:
        axes: Dimensions that statistics run over. With ``groups > 1`` dimension 1 (the channels)
            may be among them or not: statistics run over the channels of a group anyway.
        groups: Number of channel groups.
        epsilon: Added to the variance.
        rms: Divide by the root of the mean square; no mean is subtracted.
    """

    axes: tuple[int, ...] = ()
    groups: int = 1
    epsilon: float = 1e-5
    rms: bool = False


@register
class Normalization(Op):
    """``(x - mean) / sqrt(variance + epsilon) * scale + bias``: TensorRT's
    INormalizationLayer. ``scale`` and ``bias`` broadcast to ``x``; with groups they may also
    have one channel per group. Statistics are two-pass, f16 and bf16 in f32."""

    name = "normalization"
    kind = Kind.REDUCTION
    Attrs = NormalizationAttrs

    def infer(self, node: Node) -> Sequence[TensorType]:
        x, a = operand(node, 0), node.attrs
        if not x.dtype.is_float:
            raise OpError(f"x must be floating-point, not {shape_text(x)}: cast it first")
        axes = check_axes(x, a.axes)
        if a.groups < 1:
            raise OpError(f"groups is {a.groups}, but must be at least 1")
        if a.groups == 1 and not axes:
            raise OpError("axes is empty: name the dimensions that statistics run over")
        if a.groups > 1:
            if x.rank < 2 or 0 in axes:
                raise OpError(f"group normalization of {shape_text(x)} over axes {axes}: x must "
                              f"be [N, C, ...] and the axes spatial")
            if D.is_static(x.dims[1]) and D.modulo(x.dims[1], a.groups):
                raise OpError(f"{x.dims[1]} channels do not divide into {a.groups} groups")
        for what, v in zip(("scale", "bias"), node.inputs[1:], strict=False):
            if v is not None:
                _check_affine(what, v, x, a.groups)
        return [TensorType(x.dtype, x.dims)]

    def reference(self, node: Node, *inputs: Any) -> Any:
        x, a = widen(inputs[0]), node.attrs
        scale, bias = (None if i is None else widen(i) for i in (*inputs[1:], None, None)[:2])
        shape = x.shape
        axes = tuple(i % x.ndim for i in a.axes)
        if a.groups > 1:
            x = x.reshape(shape[0], a.groups, shape[1] // a.groups, *shape[2:])
            axes = (2, *(i + 1 for i in axes if i > 1))
        if not a.rms:
            x = x - np.mean(x, axis=axes, keepdims=True)
        variance = np.mean(x * x, axis=axes, keepdims=True)
        y = (x / np.sqrt(variance + np.asarray(a.epsilon, x.dtype))).reshape(shape)
        if scale is not None:
            y = y * _per_channel(scale, shape, a.groups)
        return y if bias is None else y + _per_channel(bias, shape, a.groups)

    def stages(self, node: Node) -> list[Stage] | None:
        return _normalization_stages(node)


def _check_affine(what: str, v: Value, x: Value, groups: int) -> None:
    missing = x.rank - v.rank
    for i, d in enumerate(v.dims):
        want = x.dims[i + missing] if i + missing >= 0 else None
        fits = want is not None and (d in (1, want) or not D.is_static(d, want))
        per_group = groups > 1 and i + missing == 1 and d == groups
        if missing < 0 or not (fits or per_group):
            raise OpError(
                f"{what} {shape_text(v)} does not broadcast to x {shape_text(x)}: each of its "
                f"dimensions must be 1 or that of x (reshape [C] to [1, C, 1, ...])"
            )


def _per_channel(v: Array, shape: tuple[int, ...], groups: int) -> Array:
    """One value per group becomes one per channel."""
    axis = v.ndim - len(shape) + 1
    if groups > 1 and axis >= 0 and v.shape[axis] == groups != shape[1]:
        return np.repeat(v, shape[1] // groups, axis=axis)
    return v


def _affine_load(v: Value, x: Value, ov: Sequence[Expr], groups: int, work: DType) -> Expr:
    missing, index = x.rank - v.rank, []
    for i, d in enumerate(v.dims):
        at = i + missing
        if d == 1 and x.dims[at] != 1:
            index.append(E.idx(0))
        elif groups > 1 and at == 1 and d == groups and x.dims[1] != groups:
            index.append(E.binary("floordiv", ov[1], E.idx(D.floor_div(x.dims[1], groups))))
        elif isinstance(d, D.Dim) and d != x.dims[at]:
            index.append(E.binary("mod", ov[at], E.idx(d)))  # itself if equal, 0 if d is 1
        else:
            index.append(ov[at])
    return E.cast(E.load(v, index), work)


class _Layout:
    """Where statistics live (``rows``) and how rows map to elements of x."""

    def __init__(self, x: Value, axes: tuple[int, ...], groups: int):
        self.x, self.groups = x, groups
        self.over = tuple(sorted(set(axes) | ({1} if groups > 1 else set())))
        self.kept = [i for i in range(x.rank) if i not in self.over]
        self.per_group = D.floor_div(x.dims[1], groups) if groups > 1 else 0
        # group statistics sit at [..., group], after the kept dimensions
        self.rows = tuple(x.dims[i] for i in self.kept) + ((groups,) if groups > 1 else ())
        extents = {i: self.per_group if groups > 1 and i == 1 else x.dims[i] for i in self.over}
        self.extents = extents
        self.count = D.product(extents.values())

    def element(self, row: Sequence[Expr]) -> tuple[list[Expr], list[Var]]:
        over = {i: Var(i64, f"r{i}", d) for i, d in self.extents.items()}
        index: list[Expr] = []
        for i in range(self.x.rank):
            if i not in over:
                index.append(row[self.kept.index(i)])
            elif self.groups > 1 and i == 1:
                index.append(E.add(E.mul(row[-1], E.idx(self.per_group)), over[i]))
            else:
                index.append(over[i])
        return index, list(over.values())

    def row_of(self, ov: Sequence[Expr]) -> list[Expr]:
        row = [ov[i] for i in self.kept]
        if self.groups > 1:
            row.append(E.binary("floordiv", ov[1], E.idx(self.per_group)))
        return row


def _normalization_stages(node: Node) -> list[Stage]:
    x, a, out = operand(node, 0), node.attrs, node.output
    work = accumulator(x.dtype)
    lay = _Layout(x, check_axes(x, a.axes), a.groups)
    count = size_as(lay.count, work)
    mean, var = (temp(node, s, work, lay.rows) for s in ("mean", "variance"))
    stages: list[Stage] = []

    def centred(index: Sequence[Expr], row: Sequence[Expr]) -> Expr:
        v = E.cast(E.load(x, index), work)
        return v if a.rms else E.sub(v, E.load(mean, row))

    if not a.rms:
        rv = E.iter_vars(lay.rows)
        index, over = lay.element(rv)
        total = E.reduce_("sum", over, E.cast(E.load(x, index), work))
        stages.append(Stage(mean, rv, E.div(total, count)))
    rv = E.iter_vars(lay.rows)
    index, over = lay.element(rv)
    v = centred(index, rv)
    stages.append(Stage(var, rv, E.div(E.reduce_("sum", over, E.mul(v, v)), count)))
    ov = E.iter_vars(out.dims)
    row = lay.row_of(ov)
    root = E.unary("sqrt", E.add(E.load(var, row), E.const(a.epsilon, work)))
    y = E.div(centred(ov, row), root)
    scale, bias = (*node.inputs[1:], None, None)[:2]
    if scale is not None:
        y = E.mul(y, _affine_load(scale, x, ov, a.groups, work))
    if bias is not None:
        y = E.add(y, _affine_load(bias, x, ov, a.groups, work))
    stages.append(Stage(out, ov, E.cast(y, out.dtype)))
    return stages


@dataclass(frozen=True)
class LrnAttrs:
    """
    Attributes:
        size: Channels in a window: ``(size - 1) // 2`` before, ``size // 2`` after.
        alpha, beta, k: As in the formula of `Lrn`.
    """

    size: int = 5
    alpha: float = 1e-4
    beta: float = 0.75
    k: float = 1.0


@register
class Lrn(Op):
    """``x / (k + alpha / size * sum(x² over neighbouring channels)) ** beta`` over dimension 1:
    TensorRT's ILRNLayer, ONNX's LRN."""

    name = "lrn"
    kind = Kind.REDUCTION
    Attrs = LrnAttrs

    def infer(self, node: Node) -> Sequence[TensorType]:
        x = operand(node, 0)
        if not x.dtype.is_float or x.rank < 2:
            raise OpError(f"x must be floating-point [N, C, ...], not {shape_text(x)}")
        if node.attrs.size < 1:
            raise OpError(f"size is {node.attrs.size}, but must be at least 1")
        return [TensorType(x.dtype, x.dims)]

    def reference(self, node: Node, *inputs: Any) -> Any:
        x, a = widen(inputs[0]), node.attrs
        pads = [(0, 0)] * x.ndim
        pads[1] = ((a.size - 1) // 2, a.size // 2)
        padded = np.pad(x * x, pads)
        total = sum(padded[:, s : s + x.shape[1]] for s in range(a.size))
        factor, k = np.asarray(a.alpha / a.size, x.dtype), np.asarray(a.k, x.dtype)
        return x / (k + factor * total) ** np.asarray(a.beta, x.dtype)

    def stages(self, node: Node) -> list[Stage] | None:
        x, a, out = operand(node, 0), node.attrs, node.output
        work = accumulator(x.dtype)
        ov, r = E.iter_vars(out.dims), Var(i64, "r", a.size)
        c = E.sub(E.add(ov[1], r), E.idx((a.size - 1) // 2))
        inside = E.logical_and(
            E.compare("ge", c, E.idx(0)), E.compare("lt", c, E.idx(x.dims[1]))
        )
        v = E.cast(E.load(x, [ov[0], c, *ov[2:]], inside, E.const(0.0, x.dtype)), work)
        total = E.reduce_("sum", (r,), E.mul(v, v))
        base = E.add(E.const(a.k, work), E.mul(E.const(a.alpha / a.size, work), total))
        power = E.binary("pow", base, E.const(a.beta, work))
        y = E.div(E.cast(E.load(x, ov), work), power)
        return [Stage(out, ov, E.cast(y, out.dtype))]
