"""Pairs of convolutions in one kernel: which are joined, and what they compute."""

import numpy as np
import pytest
from contraction_kit import DEVICE, Graph, close, emit, guarded, ptx_of, run, stored

from tactician.builder.compile import lay_out
from tactician.ops import evaluate
from tactician.regions.fuse import fuse
from tactician.targets.cuda import load_tactics, pair
from tactician.targets.cuda.device import CudaDevice
from tactician.targets.cuda.pair import Tile

rng = np.random.default_rng(5)
load_tactics()


def bottleneck(n=4, hw=24, narrow=32, wide=128, out=32, residual=True, bias=True, window=1):
    """The end of one bottleneck block and the start of the next; the sum is read again."""
    g = Graph()
    x = g.add_input("x", "f16", (n, narrow, hw, hw))
    r = g.add_input("r", "f16", (n, wide, hw, hw))

    def conv(v, k, act, add=None, window=1):
        w = rng.standard_normal((k, v.dims[1], window, window)) / np.sqrt(int(v.dims[1]))
        given = [v, g.constant(w.astype(np.float16))]
        if bias:
            given.append(g.constant(rng.standard_normal(k).astype(np.float16)))
        p = (window // 2,) * 2
        y = emit(g, "convolution", given, f"conv{k}", pre=p, post=p).output
        if add is not None:
            y = emit(g, "binary", [y, add], fn="add").output
        return emit(g, "activation", [y], fn="relu").output if act else y

    start = conv(x, narrow, True, window=3)
    rest = conv(r, wide, False)
    y = conv(start, wide, True, rest if residual else None)
    z = conv(y, out, True, window=window)
    last = conv(z, wide, False, window=3)
    g.outputs = [emit(g, "binary", [last, y], fn="add").output]
    g.toposort()
    return g, {x: rng.standard_normal(x.dims).astype(np.float16),
               r: rng.standard_normal(r.dims).astype(np.float16)}  # fmt: skip


def joined(g, device=DEVICE):
    return [r for r in lay_out(g, fuse(g), device, set()).regions if r.parts]


def check(g, inputs, region, tile):
    values = dict(inputs)
    for node in g.nodes:
        ins = [values.get(v, v.const) for v in node.inputs]
        values.update(zip(node.outputs, evaluate(node, *ins), strict=True))
    kernel = pair.Pair().build(region, tile, DEVICE)
    arrays, checks = {}, []
    for v in region.inputs:
        logical = v.meta.get("logical", v)
        arrays[v] = stored(v, np.asarray(values[logical] if v.const is None else v.const))
    for v in region.outputs:
        arrays[v], canaries = guarded(tuple(v.dims), v.dtype.np)
        checks.append(canaries)
    run(kernel, arrays)
    for canaries in checks:
        canaries()
    for v in region.outputs:
        close(arrays[v], stored(v, values[v.meta["logical"]]), 4e-3)


@pytest.mark.parametrize(
    ("attrs", "tile"),
    [({}, Tile(64, 64, 4, 2)), ({"residual": False, "bias": False}, Tile(128, 32, 4, 2)),
     ({"narrow": 24, "out": 40}, Tile(64, 64, 4, 2)), ({"n": 3, "hw": 27}, Tile(32, 64, 4, 3))],
    ids=str,
)  # fmt: skip
def test_both_results(attrs, tile):
    g, inputs = bottleneck(**attrs)
    (region,) = joined(g)
    assert len(region.outputs) == 2
    check(g, inputs, region, tile)


@pytest.mark.parametrize("attrs", [{}, {"residual": False, "bias": False}, {"out": 320}], ids=str)
def test_a_convolution_of_windows_before_them(attrs):
    g, inputs = bottleneck(n=4, hw=23, narrow=64, **attrs)
    region = joined(g)[0]
    leaves = 2 if "out" in attrs else 3  # the last has too many channels to be joined
    assert len(region.leaves()) == leaves and len(region.outputs) == leaves - 1
    check(g, inputs, region, Tile(128, 64, 8, 2))


def test_what_is_not_joined():
    assert not joined(bottleneck(window=3)[0])  # the second reads neighbours
    assert not joined(bottleneck(n=1, hw=8)[0])  # too few pixels
    assert not joined(bottleneck(out=320)[0])  # too many channels for registers


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_machine_code(arch):
    (region,) = joined(bottleneck(n=8, hw=56, narrow=64, wide=256, out=64)[0])
    device = CudaDevice(arch)
    kernel = pair.Pair().build(region, Tile(128, 64, 8, 2), device)
    assert len(device.compile(kernel)[1]) > 5_000
    if arch == "sm_90":
        assert ptx_of(kernel).count("wgmma.mma_async") >= 8
