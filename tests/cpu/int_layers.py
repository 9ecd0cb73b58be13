"""Convolutions of bytes for tests of kernels: a region, its operands, and exact results."""

import kernels
import numpy as np
from kernels import Graph, channels_last_region, emit

LIMITS = {"u8": (0, 255, np.uint8), "i8": (-128, 127, np.int8)}


def extremes(how, dtype, shape, seed=0):
    """Bytes that are ``most``, ``least``, ``either``, ``small`` or ``random``."""
    low, high, np_type = LIMITS[dtype]
    rng = np.random.default_rng(seed)
    if how in ("most", "least"):
        return np.full(shape, high if how == "most" else low, np_type)
    if how == "either":
        return rng.choice([low, high], shape).astype(np_type)
    if how == "small":
        return rng.integers(0, 20, shape).astype(np_type)
    return rng.integers(low, high + 1, shape).astype(np_type)


def convolved(x, w, zero, stride):
    """The exact result with windows centred at multiples of the stride, in numpy's s64."""
    x, w, pad = x.astype(np.int64) - zero, w.astype(np.int64), w.shape[2] // 2
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    high, wide = (n - 2 * pad for n in x.shape[2:])
    total = 0
    for i in range(w.shape[2]):
        for j in range(w.shape[3]):
            part = x[:, :, i : i + high : stride, j : j + wide : stride]
            total = total + np.einsum("nchw,kc->nkhw", part, w[:, :, i, j])
    return total


class Layer:
    """A convolution stored channels-last, whose sums are the result: as s32, or as f32 where the
    region has to have an epilogue (sums below 2**24 only).

    Attributes:
        region: What tactics take.
        x: The input; call `update` after a change.
        want: The exact result, ``[n, h, w, k]``.
    """

    def __init__(
        self, n, c, h, w_, k, window, dtype="u8", zero=None, stride=1, x="random", w="random",
        floats=False,
    ):  # fmt: skip
        g = Graph("t")
        pad = window // 2
        self.zero, self.stride = zero or 0, stride
        self.x = extremes(x, dtype, (n, c, h, w_))
        self.w = extremes(w, "i8", (k, c, window, window), seed=1)
        self.value = g.add_input("x", dtype, self.x.shape)
        inputs = [self.value, g.constant(self.w)]
        if zero is not None:
            inputs.append(g.constant(np.array(zero, LIMITS[dtype][2])))
        around = {"pre": (pad, pad), "post": (pad, pad)}
        y = emit(g, "int_conv", inputs, "conv", stride=(stride, stride), **around).output
        if floats:
            y = emit(g, "dequantize", [y, g.constant(np.float32(1))]).output
        g.outputs = [y]
        self.region = channels_last_region(g)
        self.update()

    def update(self):
        self.want = convolved(self.x, self.w, self.zero, self.stride).transpose(0, 2, 3, 1)

    def run(self, kernel, threads=1):
        """What a kernel computes, ``[n, h, w, k]``."""
        (out,) = self.region.outputs
        got, intact = kernels.guarded(tuple(out.dims), out.dtype.np)
        arrays = {out: got}
        for v in self.region.inputs:
            if v.const is None:
                stored = self.x.transpose(0, 2, 3, 1) if "logical" in v.meta else self.x
                arrays[v] = np.ascontiguousarray(stored)
        for a in kernel.args:
            if not isinstance(a, np.ndarray) and a.const is not None:
                arrays[a] = a.const
        kernels.run(kernel, arrays, threads=threads)
        intact()
        last = "logical" in out.meta or got.ndim != 4
        return got if last else got.transpose(0, 2, 3, 1)
