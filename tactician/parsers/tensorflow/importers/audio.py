"""Spectrograms and cepstral coefficients: sums of products with constant tables."""

from __future__ import annotations

from typing import Any

import numpy as np

from ....ir import dtypes as T
from ....ir.graph import Value
from ...onnx.errors import NodeProblem
from ..context import Context, require_ints
from ..node import TfNode
from ..table import importer

_Array = np.ndarray[Any, Any]
_FLOOR = 1e-12  # least energy of a band, before its logarithm


@importer("AudioSpectrogram", note="window and hop are static; the transform is a convolution")
def audio_spectrogram(c: Context, n: TfNode) -> Value:
    """[samples, channels] → [channels, frames, frequencies]."""
    if n[0].rank != 2:
        raise NodeProblem(f"expected [samples, channels], got {n[0]!r}")
    window, hop = int(n.attr("window_size")), int(n.attr("stride"))
    if window < 2 or hop < 1:
        raise NodeProblem(f"window_size {window} must be at least 2, stride {hop} at least 1")
    basis = fourier_basis(window)
    x = c.unsqueeze(c.transpose(n[0], (1, 0)), [1])  # [channels, 1, samples]
    parts = c.op("convolution", x, c.const(basis, T.f32), stride=(hop,), pre=(0,), post=(0,),
                 dilation=(1,), groups=1, padding_mode="explicit_down")
    bins = basis.shape[0] // 2
    real, imaginary = c.cut(parts, 1, 0, bins), c.cut(parts, 1, bins, 2 * bins)
    energy = c.add(c.mul(real, real), c.mul(imaginary, imaginary))
    if not n.attr("magnitude_squared", False):
        energy = c.unary("sqrt", energy)
    return c.transpose(energy, (0, 2, 1))


@importer("Mfcc", note="the sample rate must be known")
def mfcc(c: Context, n: TfNode) -> Value:
    """[channels, frames, frequencies] → [channels, frames, coefficients]."""
    rate = int(np.asarray(require_ints(n[1], "the sample rate")))
    bins = n[0].dims[-1]
    if not isinstance(bins, int):
        raise NodeProblem("the number of frequencies must be static")
    bank = mel_filters(bins, rate, int(n.attr("filterbank_channel_count", 40)),
                       float(n.attr("lower_frequency_limit", 20.0)),
                       float(n.attr("upper_frequency_limit", 4000.0)))
    bands = c.matmul(c.unary("sqrt", n[0]), c.const(bank, T.f32))
    logs = c.unary("log", c.binary("max", bands, c.like(_FLOOR, bands)))
    table = cosines(bank.shape[1], int(n.attr("dct_coefficient_count", 13)))
    return c.matmul(logs, c.const(table, T.f32))


def fourier_basis(window: int) -> _Array:
    """Weights [2 * frequencies, 1, window]: real parts, then imaginary ones, of the discrete
    transform of a window shaped by a periodic Hann curve and filled up to a power of two."""
    length = 1 << (window - 1).bit_length()
    t = np.arange(window)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * t / window)
    angle = 2 * np.pi * np.outer(np.arange(length // 2 + 1), t) / length
    return np.concatenate([np.cos(angle) * hann, -np.sin(angle) * hann])[:, None, :]


def mel_filters(bins: int, rate: int, bands: int, low: float, high: float) -> _Array:
    """Weights [frequencies, bands] of overlapping triangles, evenly spaced in mels."""
    hz = 0.5 * rate / (bins - 1)
    if not 0 <= low < high:
        raise NodeProblem(f"frequency limits {low} and {high} must be ascending")
    edges = np.linspace(_mel(low), _mel(high), bands + 2)
    out = np.zeros((bins, bands))
    for i in range(int(1.5 + low / hz), min(int(high / hz), bins - 1) + 1):
        m = _mel(i * hz)
        below = int(np.searchsorted(edges[1:], m, side="left"))  # edges[below] < m <= the next
        if below > bands:
            continue
        share = (edges[below + 1] - m) / (edges[below + 1] - edges[below])
        if below > 0:
            out[i, below - 1] += share
        if below < bands:
            out[i, below] += 1 - share
    return out


def cosines(bands: int, count: int) -> _Array:
    """Weights [bands, coefficients] of the cosine transform."""
    if count > bands:
        raise NodeProblem(f"{count} coefficients cannot come of {bands} bands")
    angle = np.pi / bands * np.outer(np.arange(bands) + 0.5, np.arange(count))
    return np.sqrt(2 / bands) * np.cos(angle)


def _mel(hz: Any) -> Any:
    return 1127.0 * np.log1p(hz / 700.0)
