"""An expansion of bytes and the reduction behind it in one kernel, against numpy."""

from types import SimpleNamespace

import numpy as np
import pytest
from contraction_kit import DEVICE, Graph, emit, guarded, ptx_of, run, stored

from tactician.ir.dtypes import i8
from tactician.regions.chain import join_pairs
from tactician.regions.fuse import fuse
from tactician.regions.layout import assign_layouts
from tactician.targets.cuda.conv import Conv
from tactician.targets.cuda.stream import StreamTile
from tactician.targets.cuda.stream_pair import StreamPair

rng = np.random.default_rng(6)
TACTIC = StreamPair()
FACTOR, STEP, LAST = np.float32(0.013), np.float32(0.031), np.float32(0.055)


class Network:
    """``q = quantize(relu(dequantize(conv(x, w)) + b + dequantize(z)))`` and
    ``r = quantize(relu(dequantize(conv(q, v)) + c))``, both read elsewhere."""

    def __init__(self, shape, between, filters, zero=None):
        self.g = g = Graph()
        self.x = g.add_input("x", i8, shape)
        self.given = {self.x: rng.integers(-128, 128, shape).astype(np.int8)}
        self.zero = zero
        self.w, self.v = (rng.integers(-127, 128, (k, c)).astype(np.int8)
                          for k, c in ((between, shape[1]), (filters, between)))  # fmt: skip
        self.scales = [rng.uniform(1e-4, 3e-4, n).astype(np.float32) for n in (between, filters)]
        self.bias = [rng.standard_normal(n).astype(np.float32) for n in (between, filters)]
        y = self._layer(self.x, self.w, 0, None)
        # what is added is a layer's result, so that it is stored like the others
        self.u = rng.integers(-127, 128, self.w.shape).astype(np.int8)
        operands = [self.x, g.constant(self.u[:, :, None, None])]
        z = emit(g, "int_conv", operands).output
        z = emit(g, "dequantize", [z, g.constant(np.float32(2e-4))]).output
        self.z = emit(g, "quantize", [z, g.constant(FACTOR)], to=i8).output
        z = emit(g, "dequantize", [self.z, g.constant(FACTOR)]).output
        y = emit(g, "binary", [y, z], fn="add").output
        self.q = self._rounded(y, STEP)
        self.r = self._rounded(self._layer(self.q, self.v, 1, zero), LAST)
        g.outputs = [self.q, self.r]

    def _layer(self, x, w, k, zero):
        g = self.g
        operands = [x, g.constant(w[:, :, None, None])]
        operands += [] if zero is None else [g.constant(np.int8(zero))]
        y = emit(g, "int_conv", operands).output
        y = emit(g, "dequantize", [y, g.constant(self.scales[k])], axis=1).output
        return emit(g, "binary", [y, g.constant(self.bias[k][:, None, None])], fn="add").output

    def _rounded(self, y, step):
        y = emit(self.g, "activation", [y], fn="relu").output
        return emit(self.g, "quantize", [y, self.g.constant(step)], to=i8).output

    def sums(self, x, w, k, zero):
        """Both layers' sums with their factors and offsets, by numpy."""
        total = np.einsum("nchw,kc->nkhw", x.astype(np.int64) - (zero or 0), w.astype(np.int64))
        return total * self.scales[k].astype(float)[:, None, None] + self.bias[k][:, None, None]

    def region(self):
        self.g.toposort()
        conv = Conv()
        wants = lambda r: conv.wants_channels_last(r, DEVICE)  # noqa: E731
        fusion = assign_layouts(self.g, fuse(self.g), wants, lambda r: True)
        takes = lambda a, b: TACTIC.takes_pair(a, b, DEVICE)  # noqa: E731
        regions = join_pairs(fusion, takes, lambda a, b: False, self.g.outputs).regions
        return next(r for r in regions if r.parts)


def near(got, want, step):
    scaled = np.maximum(want, 0) / float(step)
    off = np.abs(got.astype(int) - np.clip(np.rint(scaled), 0, 127))
    assert off.max() <= 1
    assert np.abs(scaled - np.floor(scaled) - 0.5)[off > 0].max(initial=0) < 2e-3  # halves only
    assert len(np.unique(got)) > 30


@pytest.mark.parametrize(
    ("shape", "between", "filters", "tile", "zero"),
    [((8, 64, 36, 30), 256, 64, StreamTile(64, 64, 64, 4, 3, wide=4, persistent=1), None),
     ((9, 32, 33, 31), 128, 128, StreamTile(128, 64, 32, 8, 2, wide=2, persistent=1), 5)],
    ids=["64-256-64", "32-128-128"],
)  # fmt: skip
def test_against_numpy(shape, between, filters, tile, zero):
    many, few = Network((160, *shape[1:]), between, filters, zero), Network(
        (2, shape[1], 9, 8), between, filters, zero)  # fmt: skip
    assert TACTIC.refuse(many.region(), DEVICE) is None and TACTIC.candidates(many.region(), DEVICE)
    try:  # small images as well, for the interpreter
        StreamPair._tiles, plain = (lambda *_: [tile]), StreamPair._tiles
        region = few.region()
    finally:
        StreamPair._tiles = plain
    assert set(region.parts[0].outputs) < set(region.outputs)
    kernel = TACTIC.build(region, tile, SimpleNamespace(sms=2, tf32=False))
    back = {twin: v for v, twin in region.physical.items()}
    shape = tuple(few.z.dims)
    given = {**few.given, few.z: rng.integers(-128, 128, shape).astype(np.int8)}
    arrays = {}
    for v in kernel.args:
        if isinstance(v, np.ndarray):
            continue
        if back.get(v, v) in given:
            arrays[v] = stored(v, given[back.get(v, v)])
        elif v.const is not None:
            arrays[v] = np.asarray(v.const)
    checks, made = [], {}
    for v in region.outputs:
        made[back.get(v, v)] = v
        arrays[v], check = guarded(tuple(int(d) for d in v.dims), np.int8)
        checks.append(check)
    run(kernel, arrays)
    for check in checks:
        check()
    q, r = (arrays[made[v]].transpose(0, 3, 1, 2) for v in (few.q, few.r))
    first = few.sums(few.given[few.x], few.w, 0, None)
    near(q, first + given[few.z].astype(float) * float(FACTOR), STEP)
    near(r, few.sums(q, few.v, 1, zero), LAST)


def test_results_stay_on_the_chip():
    region = Network((128, 64, 56, 56), 256, 64).region()
    tile = TACTIC.candidates(region, DEVICE)[0]
    text = ptx_of(TACTIC.build(region, tile, DEVICE))
    assert text.count("wgmma.mma_async") >= 16  # four products and what they are multiplied with


def test_what_is_refused():
    for shape, between, filters in [((64, 64, 40, 40), 512, 64), ((1, 64, 9, 9), 256, 64)]:
        with pytest.raises(StopIteration):
            Network(shape, between, filters).region()
