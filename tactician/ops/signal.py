"""Fourier transforms, mel weights, determinants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..ir import dims as D
from ..ir.dtypes import DType, f32
from ..ir.graph import Graph, Node, TensorType, Value
from ._numeric import Array, shape_text, widen
from ._shapes import axis_of, data_dims, operand, optional, scalar_int
from .registry import Kind, NoAttrs, Op, OpError, emit, register

_MATRIX_LIMIT = 1 << 22  # elements of a transform matrix worth storing


@dataclass(frozen=True)
class DftAttrs:
    """
    Attributes:
        inverse: The inverse transform, divided by its length.
        onesided: Forward: of a real signal, only the first ``length // 2 + 1`` frequencies.
            Inverse: those are given, and a real signal results.
    """

    inverse: bool = False
    onesided: bool = False


@register
class Dft(Op):
    """ONNX's DFT: ``x [..., 1]`` (real) or ``[..., 2]`` (complex), ``length?``, ``axis?`` (integer
    scalars; the axis is -2 if absent)."""

    name = "dft"
    kind = Kind.OPAQUE
    Attrs = DftAttrs

    def infer(self, node: Node) -> Sequence[TensorType]:
        x, a = operand(node, 0), node.attrs
        parts = _check_signal(x)
        if a.onesided and parts != (2 if a.inverse else 1):
            raise OpError(f"a one-sided {'inverse ' if a.inverse else ''}transform needs a "
                          f"{'complex' if a.inverse else 'real'} signal, but x is "
                          f"{shape_text(x)}")
        axis = _axis(node)
        out = list(x.dims)
        if axis is None:
            out[:-1] = data_dims(node, x.rank - 1)
        else:
            given = optional(node, 1)
            length = scalar_int(given)
            if given is None:
                n = x.dims[axis]
                length = (n - 1) * 2 if a.onesided and a.inverse else n
            if length is None:
                out[axis] = data_dims(node, 1)[0]
            elif a.onesided and not a.inverse:
                out[axis] = D.floor_div(length, 2) + 1
            else:
                out[axis] = length
        out[-1] = 1 if a.onesided and a.inverse else 2
        return [TensorType(x.dtype, tuple(out))]

    def reference(self, node: Node, *inputs: Any) -> Any:
        x, length, axis = (*inputs, None, None)[:3]
        x, a = widen(x), node.attrs
        axis = -2 if axis is None else int(np.asarray(axis).reshape(()))
        axis = axis_of(axis, x.ndim)
        n = x.shape[axis] if length is None else int(np.asarray(length).reshape(()))
        if length is None and a.onesided and a.inverse:
            n = 2 * (x.shape[axis] - 1)
        wide = x.astype(np.float64)
        signal = wide[..., 0] if x.shape[-1] == 1 else wide[..., 0] + 1j * wide[..., 1]
        if a.inverse:
            y = (np.fft.irfft if a.onesided else np.fft.ifft)(signal, n=n, axis=axis)
        else:
            y = (np.fft.rfft if a.onesided else np.fft.fft)(signal, n=n, axis=axis)
        return y[..., None] if a.onesided and a.inverse else np.stack([y.real, y.imag], axis=-1)

    def decompose(self, node: Node, graph: Graph) -> list[Value] | None:
        return _dft_as_matmul(node, graph)


def _check_signal(x: Value) -> int:
    parts = x.dims[-1] if x.rank >= 2 else 0
    if parts not in (1, 2) or not x.dtype.is_float:
        raise OpError(f"x {shape_text(x)} must be floating-point with a last dimension of 1 (real) "
                      f"or 2 (complex)")
    return int(parts)  # type: ignore[arg-type]


def _axis(node: Node) -> int | None:
    x, given = operand(node, 0), optional(node, 2)
    if given is None:
        return x.rank - 2
    known = scalar_int(given)
    if known is None or isinstance(known, D.Dim):
        return None
    axis = axis_of(known, x.rank)
    if axis == x.rank - 1:
        raise OpError(f"axis {known} of x {shape_text(x)} holds real and imaginary parts")
    return axis


def transform_matrix(
    rows: int, length: int, parts: int, inverse: bool, onesided: bool
) -> Array:
    """The transform as a matrix ``[rows * parts, outputs * parts']`` (f64) on interleaved real and
    imaginary parts; ``rows`` beyond ``length`` are ignored, missing ones are zeros."""
    eye = np.eye(rows)
    signal = np.stack([eye, 1j * eye], axis=1).reshape(-1, rows) if parts == 2 else eye
    if inverse and onesided:
        return np.fft.irfft(signal, n=length, axis=1)
    if inverse:
        y = np.fft.ifft(signal, n=length, axis=1)
    else:
        y = np.fft.fft(signal, n=length, axis=1)
        y = y[:, : length // 2 + 1] if onesided else y
    return np.stack([y.real, y.imag], axis=-1).reshape(len(signal), -1)


def _dft_as_matmul(node: Node, graph: Graph) -> list[Value] | None:
    """A product with a stored matrix, where lengths are known and the matrix is not too large."""
    x, a, out = operand(node, 0), node.attrs, node.output
    axis = _axis(node)
    if axis is None or not D.is_static(x.dims[axis], out.dims[axis], x.dims[-1]):
        return None
    rows, parts, count = int(x.dims[axis]), int(x.dims[-1]), int(out.dims[axis])  # type: ignore[arg-type]
    length = scalar_int(optional(node, 1))
    if length is None:
        length = 2 * (rows - 1) if a.inverse and a.onesided else rows
    if rows * parts * count * 2 > _MATRIX_LIMIT:
        return None
    matrix = transform_matrix(rows, int(length), parts, a.inverse, a.onesided)  # type: ignore[arg-type]
    front = [i for i in range(x.rank - 1) if i != axis]

    def make(op: str, inputs: Sequence[Value], part: str, **attrs: Any) -> Value:
        return emit(graph, op, inputs, f"{node.name}.{part}", before=node, **attrs).output

    def ints(values: Sequence[int]) -> Value:
        return graph.constant(np.array(values, np.int64), f"{node.name}.shape")

    y = make("transpose", [x], "signal", perm=(*front, axis, x.rank - 1))
    flat = [0] * len(front)
    y = make("reshape", [y, ints([*flat, rows * parts])], "interleaved", zero_copies=True)
    weights = graph.constant(matrix.astype(x.dtype.np), f"{node.name}.matrix")
    y = make("matmul", [y, weights], "transform")
    y = make("reshape", [y, ints([*flat, count, int(out.dims[-1])])], "parts", zero_copies=True)  # type: ignore[arg-type]
    back = [*range(axis), x.rank - 2, *range(axis, x.rank - 2), x.rank - 1]
    return [make("transpose", [y], "result", perm=tuple(back))]


@dataclass(frozen=True)
class StftAttrs:
    """
    Attributes:
        onesided: Of a real signal, only the first ``frame_length // 2 + 1`` frequencies.
    """

    onesided: bool = True


@register
class Stft(Op):
    """ONNX's STFT: ``signal [N, length, 1 or 2], step, window?, frame_length?``; the result is
    ``[N, frames, frequencies, 2]``."""

    name = "stft"
    kind = Kind.OPAQUE
    Attrs = StftAttrs

    def infer(self, node: Node) -> Sequence[TensorType]:
        x, step = operand(node, 0), scalar_int(operand(node, 1))
        if x.rank != 3:
            raise OpError(f"signal {shape_text(x)} must be [N, length, 1 or 2]")
        if _check_signal(x) == 2 and node.attrs.onesided:
            raise OpError(f"a one-sided transform needs a real signal, but x is {shape_text(x)}")
        length = _frame_length(node)
        if length is None or step is None:
            frames, bins = data_dims(node, 2)
            return [TensorType(x.dtype, (x.dims[0], frames, bins, 2))]
        if D.is_static(x.dims[1], length) and length > x.dims[1]:  # type: ignore[operator]
            raise OpError(f"frames of {length} do not fit in signal {shape_text(x)}")
        frames = D.floor_div(x.dims[1] - length, step) + 1
        bins = D.floor_div(length, 2) + 1 if node.attrs.onesided else length
        return [TensorType(x.dtype, (x.dims[0], frames, bins, 2))]

    def reference(self, node: Node, *inputs: Any) -> Any:
        x, step, window, length = (*inputs, None, None)[:4]
        x, step = widen(x), int(np.asarray(step).reshape(()))
        if length is None:
            n = x.shape[1] if window is None else len(window)
        else:
            n = int(np.asarray(length).reshape(()))
        wide = x.astype(np.float64)
        signal = wide[..., 0] if x.shape[-1] == 1 else wide[..., 0] + 1j * wide[..., 1]
        frames = np.lib.stride_tricks.sliding_window_view(signal, n, axis=1)[:, ::step]
        if window is not None:
            frames = frames * np.asarray(window, np.float64)
        y = (np.fft.rfft if node.attrs.onesided else np.fft.fft)(frames, axis=-1)
        return np.stack([y.real, y.imag], axis=-1)

    def decompose(self, node: Node, graph: Graph) -> list[Value] | None:
        return _stft_as_convolution(node, graph)


def _frame_length(node: Node) -> D.DimLike | None:
    x, window, given = operand(node, 0), optional(node, 2), optional(node, 3)
    if given is not None:
        return scalar_int(given)
    return x.dims[1] if window is None else window.dims[0]


def _stft_as_convolution(node: Node, graph: Graph) -> list[Value] | None:
    """Every frequency's real and imaginary part is one output channel."""
    x, step, window = operand(node, 0), scalar_int(operand(node, 1)), optional(node, 2)
    length = _frame_length(node)
    if step is None or length is None or not D.is_static(step, length, x.dims[2]):
        return None
    if window is not None and window.const is None:
        return None
    n, parts = int(length), int(x.dims[2])  # type: ignore[arg-type]
    if n * n * parts * 2 > _MATRIX_LIMIT:
        return None
    matrix = transform_matrix(n, n, parts, False, node.attrs.onesided).reshape(n, parts, -1)
    if window is not None:
        assert window.const is not None
        matrix = matrix * window.const.astype(np.float64)[:, None, None]
    weights = graph.constant(
        np.ascontiguousarray(matrix.transpose(2, 1, 0)).astype(x.dtype.np), f"{node.name}.kernels"
    )

    def make(op: str, inputs: Sequence[Value], part: str, **attrs: Any) -> Value:
        return emit(graph, op, inputs, f"{node.name}.{part}", before=node, **attrs).output

    y = make("transpose", [x], "channels", perm=(0, 2, 1))
    y = make("convolution", [y, weights], "frames", stride=(int(step),))  # type: ignore[arg-type]
    y = make("transpose", [y], "bins", perm=(0, 2, 1))
    shape = graph.constant(np.array([0, 0, -1, 2], np.int64), f"{node.name}.shape")
    return [make("reshape", [y, shape], "result", zero_copies=True)]


@dataclass(frozen=True)
class MelWeightMatrixAttrs:
    """
    Attributes:
        to: Type of the result.
    """

    to: DType = f32


@register
class MelWeightMatrix(Op):
    """ONNX's MelWeightMatrix: scalars ``bins, dft_length, sample_rate, lower_hertz,
    upper_hertz``; the result is ``[dft_length // 2 + 1, bins]``."""

    name = "mel_weight_matrix"
    kind = Kind.OPAQUE
    Attrs = MelWeightMatrixAttrs

    def infer(self, node: Node) -> Sequence[TensorType]:
        bins, length = scalar_int(node.inputs[0]), scalar_int(operand(node, 1))
        if bins is None or length is None:
            return [TensorType(node.attrs.to, data_dims(node, 2))]
        return [TensorType(node.attrs.to, (D.floor_div(length, 2) + 1, bins))]

    def reference(self, node: Node, *inputs: Any) -> Any:
        bins, length, rate = (int(np.asarray(i).reshape(())) for i in inputs[:3])
        low, high = (float(np.asarray(i).reshape(())) for i in inputs[3:5])
        mel_low, mel_high = (2595 * np.log10(1 + f / 700) for f in (low, high))
        # edges are spaced by 1 / (bins + 2) of the range, as ONNX's own reference has them
        mels = np.arange(bins + 2) * ((mel_high - mel_low) / (bins + 2)) + mel_low
        hertz = 700 * (10 ** (mels / 2595) - 1)
        edges = np.floor((length + 1) * hertz / rate).astype(np.int64)
        j = np.arange(length // 2 + 1)[:, None]
        left, peak, right = edges[:-2], edges[1:-1], edges[2:]
        rise = (j - left) / np.maximum(peak - left, 1)
        fall = (right - j) / np.maximum(right - peak, 1)
        y = np.where((j >= left) & (j <= peak) & (peak > left), rise, 0.0)
        y = np.where((peak == left) & (j == peak), 1.0, y)
        return np.where((j >= peak) & (j < right), fall, y)


@register
class Det(Op):
    """Determinants of the matrices in the last two dimensions: ONNX's Det."""

    name = "det"
    kind = Kind.OPAQUE
    Attrs = NoAttrs

    def infer(self, node: Node) -> Sequence[TensorType]:
        x = operand(node, 0)
        if x.rank < 2 or not x.dtype.is_float or (
            D.is_static(*x.dims[-2:]) and x.dims[-1] != x.dims[-2]
        ):
            raise OpError(f"x {shape_text(x)} must hold square floating-point matrices [..., M, M]")
        return [TensorType(x.dtype, x.dims[:-2])]

    def reference(self, node: Node, *inputs: Any) -> Any:
        return np.linalg.det(np.asarray(inputs[0]).astype(np.float64))
