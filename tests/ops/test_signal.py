"""dft, stft, mel_weight_matrix and det against numpy, torch and ONNX."""

import numpy as np
import pytest
import torch
from ort_oracle import onnx_reference, ort_run
from run_op import build, close, run_op

from tactician.ops import OpError

rng = np.random.default_rng(10)


def normal(*shape):
    return rng.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("axis", [None, 0, 1, -3])
@pytest.mark.parametrize("length", [None, 5, 9])
@pytest.mark.parametrize("inverse,onesided,parts", [
    (False, False, 1), (False, False, 2), (False, True, 1), (True, False, 2), (True, True, 2),
])  # fmt: skip
def test_dft(axis, length, inverse, onesided, parts):
    x = normal(7, 3, 6, parts)
    inputs = [x, None if length is None else np.array(length),
              None if axis is None else np.array(axis)]
    got = run_op("dft", inputs, const=[1, 2], slack=5, inverse=inverse, onesided=onesided)
    signal = x[..., 0] + (1j * x[..., 1] if parts == 2 else 0)
    at = 2 if axis is None else axis % 4
    f = {(False, False): np.fft.fft, (False, True): lambda v, **k: np.fft.rfft(v.real, **k),
         (True, False): np.fft.ifft, (True, True): np.fft.irfft}[inverse, onesided]
    want = f(signal, n=length, axis=at)
    both = inverse and onesided
    want = want[..., None] if both else np.stack([want.real, want.imag], -1)
    close(got, want.astype(np.float32), slack=5)


def test_dft_keeps_dynamic_batch():
    run_op("dft", [normal(3, 8, 1)], dynamic={0: (0,)}, slack=5, onesided=True)


def test_one_sided_complex_is_refused():
    with pytest.raises(OpError, match="real"):
        build("dft", [normal(3, 8, 2)], onesided=True)


@pytest.mark.parametrize("onesided,parts", [(True, 1), (False, 1), (False, 2)])
@pytest.mark.parametrize("window", [False, True])
def test_stft(onesided, parts, window):
    x = normal(2, 50, parts)
    w = np.hanning(16).astype(np.float32) if window else None
    length = None if window else np.array(16)
    got = run_op("stft", [x, np.array(5), w, length], const=[1, 2, 3], dynamic={0: (0, 1)},
                 slack=5, onesided=onesided)
    signal = torch.from_numpy(x[..., 0] if parts == 1 else x[..., 0] + 1j * x[..., 1])
    want = torch.stft(signal, 16, 5, window=None if w is None else torch.from_numpy(w),
                      center=False, onesided=onesided, return_complex=True)
    close(got, torch.view_as_real(want.transpose(1, 2)).numpy(), slack=5)


@pytest.mark.parametrize("bins,length,rate,low,high", [
    (8, 16, 8192, 0.0, 4096.0), (40, 512, 16000, 20.0, 7600.0), (3, 8, 44100, 100.0, 20000.0),
])  # fmt: skip
def test_mel_weights(bins, length, rate, low, high):
    inputs = [np.array(v) for v in (bins, length, rate)]
    inputs += [np.array(v, np.float32) for v in (low, high)]
    got = run_op("mel_weight_matrix", inputs, const=[0, 1, 2, 3, 4], native=False)
    (want,) = onnx_reference("MelWeightMatrix", inputs)
    close(got, want)
    close(got, ort_run("MelWeightMatrix", inputs)[0])


@pytest.mark.parametrize("shape", [(3, 3), (2, 4, 5, 5), (1, 1)])
def test_det(shape):
    x = normal(*shape)
    close(run_op("det", [x], native=False), torch.linalg.det(torch.from_numpy(x)).numpy(), slack=5)


def test_det_refuses():
    with pytest.raises(OpError, match="square"):
        build("det", [normal(2, 3)])
