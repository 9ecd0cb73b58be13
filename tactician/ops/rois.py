"""Pooling over regions of interest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..ir import dims as D
from ..ir import expr as E
from ..ir.dtypes import DType, f32, f64, i64
from ..ir.expr import Expr, Stage, Var
from ..ir.graph import Node, TensorType, Value
from . import _shapes as S
from ._numeric import Array, operands, shape_text, widen
from .registry import Kind, Op, OpError, register


@dataclass(frozen=True)
class RoiAlignAttrs:
    """
    Attributes:
        mode: ``avg``, or ``max`` (the largest weighted corner of any sample, as ONNX has it).
        output_height, output_width: Bins per region.
        sampling_ratio: Samples per bin and dimension; 0 means one per input element.
        spatial_scale: Factor from region to input coordinates.
        half_pixel: Shift regions by half an element (and allow them to be smaller than one).
    """

    mode: str = "avg"
    output_height: int = 1
    output_width: int = 1
    sampling_ratio: int = 0
    spatial_scale: float = 1.0
    half_pixel: bool = True


@register
class RoiAlign(Op):
    """ONNX's RoiAlign: ``x [N, C, H, W]``, ``rois [R, 4]`` (x1 y1 x2 y2), ``batch [R]``;
    the result is ``[R, C, output_height, output_width]``."""

    name = "roi_align"
    kind = Kind.REDUCTION
    Attrs = RoiAlignAttrs

    def infer(self, node: Node) -> Sequence[TensorType]:
        x, rois, batch = operands(node, 3)
        a = node.attrs
        if a.mode not in ("avg", "max"):
            raise OpError(f"mode {a.mode!r} must be 'avg' or 'max'")
        if x.rank != 4 or rois.rank != 2 or batch.rank != 1 or rois.dims[1] != 4:
            raise OpError(f"x {shape_text(x)}, rois {shape_text(rois)} and batch "
                          f"{shape_text(batch)} must be [N, C, H, W], [R, 4] and [R]")
        if not x.dtype.is_float or not rois.dtype.is_float or not batch.dtype.is_int:
            raise OpError(f"x and rois must be floating-point and batch integer, but are "
                          f"{x.dtype}, {rois.dtype}, {batch.dtype}")
        count = S.unify(rois.dims[0], batch.dims[0], node, "numbers of regions and batch indices")
        return [TensorType(x.dtype, (count, x.dims[1], a.output_height, a.output_width))]

    def reference(self, node: Node, *inputs: Any) -> Any:
        x, rois, batch, a = widen(inputs[0]), widen(inputs[1]), inputs[2], node.attrs
        out = np.zeros((len(rois), x.shape[1], a.output_height, a.output_width), x.dtype)
        for k, (x1, y1, x2, y2) in enumerate(rois.astype(np.float64)):
            rows = _bin_weights(y1, y2, x.shape[2], a.output_height, a)
            cols = _bin_weights(x1, x2, x.shape[3], a.output_width, a)
            image = x[int(batch[k])]
            if a.mode == "avg":
                wy, wx = (w.mean(axis=1) if w.shape[1] else w.sum(axis=1) for w in (rows, cols))
                out[k] = np.einsum("ih,chw,jw->cij", wy, image, wx, optimize=True)
            else:
                out[k] = _largest_corner(image, rows, cols)
        return out

    def stages(self, node: Node) -> list[Stage] | None:
        return _roi_align_stages(node) if node.attrs.sampling_ratio > 0 else None


def _bin_weights(start: float, end: float, size: int, bins: int, a: RoiAlignAttrs) -> Array:
    """Linear interpolation weights ``[bins, samples, size]`` of one dimension of one region."""
    shift = 0.5 if a.half_pixel else 0.0
    start, end = start * a.spatial_scale - shift, end * a.spatial_scale - shift
    length = end - start if a.half_pixel else max(end - start, 1.0)
    samples = a.sampling_ratio if a.sampling_ratio > 0 else int(np.ceil(length / bins))
    step = length / bins
    at = start + np.arange(bins)[:, None] * step
    at = at + (np.arange(samples) + 0.5) * step / max(samples, 1)
    valid = (at >= -1.0) & (at <= size)
    at = np.clip(at, 0, size - 1)
    low = np.minimum(np.floor(at).astype(np.int64), size - 1)
    high = np.minimum(low + 1, size - 1)
    weights = np.zeros((bins, samples, size))
    i, j = np.indices(at.shape)
    np.add.at(weights, (i, j, low), np.where(valid, 1 - (at - low), 0))
    np.add.at(weights, (i, j, high), np.where(valid, at - low, 0))
    return weights


def _largest_corner(image: Array, rows: Array, cols: Array) -> Array:
    """max over samples and their four corners of weight * value; 0 for samples outside."""
    out = np.empty((image.shape[0], rows.shape[0], cols.shape[0]), image.dtype)
    for i, j in np.ndindex(rows.shape[0], cols.shape[0]):
        best: Any = None
        for wy, wx in ((p, q) for p in rows[i] for q in cols[j]):
            ys, xs = np.flatnonzero(wy), np.flatnonzero(wx)
            values = image[:, ys][:, :, xs] * (wy[ys][:, None] * wx[xs])
            # corners of zero weight count as 0
            full = values.shape[1] * values.shape[2] == 4
            peak = values.reshape(len(image), -1).max(axis=1, initial=-np.inf if full else 0)
            best = peak if best is None else np.maximum(best, peak)
        out[:, i, j] = 0 if best is None else best
    return out


def _roi_align_stages(node: Node) -> list[Stage]:
    x, rois, batch = operands(node, 3)
    a, out = node.attrs, node.output
    work = f64 if x.dtype is f64 else f32
    ov = E.iter_vars(out.dims)
    over = [Var(i64, f"s{k}", a.sampling_ratio) for k in range(2)]
    image = E.cast(E.load(batch, [ov[0]]), i64)
    spans = ((1, 3, a.output_height, x.dims[2]), (0, 2, a.output_width, x.dims[3]))
    valid: list[Expr] = []
    corners = []
    for k, (first, last, bins, size) in enumerate(spans):
        start, end = (_edge(rois, ov[0], c, a, work) for c in (first, last))
        low, high, w, inside = _sample(start, end, ov[2 + k], over[k], bins, size, a, work)
        valid += inside
        corners.append(((low, E.sub(E.const(1.0, work), w)), (high, w)))
    ok, zero = E.logical_and(*valid), E.const(0.0, work)
    total: Expr | None = None
    for y, wy in corners[0]:
        for p, wx in corners[1]:
            v = E.cast(E.load(x, [image, ov[1], y, p]), work)
            v = E.mul(E.mul(wy, wx), v)
            if total is None:
                total = v
            else:
                total = E.add(total, v) if a.mode == "avg" else E.binary("max", total, v)
    assert total is not None
    total = E.select(ok, total, zero)
    if a.mode == "max":
        return [Stage(out, ov, E.cast(E.reduce_("max", over, total), out.dtype))]
    mean = E.div(E.reduce_("sum", over, total), E.const(float(a.sampling_ratio**2), work))
    return [Stage(out, ov, E.cast(mean, out.dtype))]


def _edge(rois: Value, k: Expr, column: int, a: RoiAlignAttrs, work: DType) -> Expr:
    v = E.mul(E.cast(E.load(rois, [k, E.idx(column)]), work), E.const(a.spatial_scale, work))
    return E.sub(v, E.const(0.5 if a.half_pixel else 0.0, work))


def _sample(
    start: Expr, end: Expr, bin_: Expr, sample: Expr, bins: int, size: D.DimLike,
    a: RoiAlignAttrs, work: DType,
) -> tuple[Expr, Expr, Expr, list[Expr]]:
    """Lower and upper neighbour, the upper one's weight, and conditions for being inside."""
    length = E.sub(end, start)
    if not a.half_pixel:
        length = E.binary("max", length, E.const(1.0, work))
    step = E.div(length, E.const(float(bins), work))
    part = E.div(E.add(E.cast(sample, work), E.const(0.5, work)),
                 E.const(float(a.sampling_ratio), work))
    at = E.add(start, E.mul(step, E.add(E.cast(bin_, work), part)))
    n = E.cast(E.idx(size), work)
    inside = [E.compare("ge", at, E.const(-1.0, work)), E.compare("le", at, n)]
    at = E.binary("max", E.binary("min", at, E.sub(n, E.const(1.0, work))), E.const(0.0, work))
    floor = E.unary("floor", at)
    low = E.cast(floor, i64)
    high = E.binary("min", E.add(low, E.idx(1)), E.idx(size - 1))
    return low, high, E.sub(at, floor), inside


@dataclass(frozen=True)
class MaxRoiPoolAttrs:
    """
    Attributes:
        output_height, output_width: Bins per region.
        spatial_scale: Factor from region to input coordinates.
    """

    output_height: int = 1
    output_width: int = 1
    spatial_scale: float = 1.0


@register
class MaxRoiPool(Op):
    """ONNX's MaxRoiPool: ``x [N, C, H, W]``, ``rois [R, 5]`` (batch x1 y1 x2 y2); whole-element
    bins, empty ones give 0."""

    name = "max_roi_pool"
    kind = Kind.OPAQUE
    Attrs = MaxRoiPoolAttrs

    def infer(self, node: Node) -> Sequence[TensorType]:
        x, rois = operands(node, 2)
        if x.rank != 4 or rois.rank != 2 or rois.dims[1] != 5 or not x.dtype.is_float:
            raise OpError(f"x {shape_text(x)} and rois {shape_text(rois)} must be floating-point "
                          f"[N, C, H, W] and [R, 5]")
        a = node.attrs
        shape = (rois.dims[0], x.dims[1], a.output_height, a.output_width)
        return [TensorType(x.dtype, shape)]

    def reference(self, node: Node, *inputs: Any) -> Any:
        x, rois, a = widen(inputs[0]), widen(inputs[1]), node.attrs
        out = np.zeros((len(rois), x.shape[1], a.output_height, a.output_width), x.dtype)
        for k, roi in enumerate(rois):
            image = x[int(roi[0])]
            scaled = roi[1:].astype(np.float64) * a.spatial_scale
            box = (np.sign(scaled) * np.floor(np.abs(scaled) + 0.5)).astype(np.int64)
            rows = _whole_bins(box[1], box[3], x.shape[2], a.output_height)
            cols = _whole_bins(box[0], box[2], x.shape[3], a.output_width)
            for i, (top, bottom) in enumerate(rows):
                for j, (left, right) in enumerate(cols):
                    if bottom > top and right > left:
                        out[k, :, i, j] = image[:, top:bottom, left:right].max(axis=(1, 2))
        return out


def _whole_bins(start: int, end: int, size: int, bins: int) -> list[tuple[int, int]]:
    length = max(end - start + 1, 1)
    edges = [(int(np.floor(i * length / bins)), int(np.ceil((i + 1) * length / bins)))
             for i in range(bins)]
    return [(min(max(p + start, 0), size), min(max(q + start, 0), size)) for p, q in edges]
