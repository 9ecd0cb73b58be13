"""Loop nests as Triton kernels: stages of ops against their references in Triton's interpreter,
and representative kernels as machine code for three generations of GPUs."""

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("triton")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "ops"))
from run_op import build, close

from tactician import ops
from tactician.ops import get
from tactician.targets.cuda.device import CudaDevice
from tactician.targets.cuda.loops import build_loops
from tactician.testing.triton_stages import run_triton_stages

rng = np.random.default_rng(5)


def f(*shape):
    return rng.standard_normal(shape).astype(np.float32)


def half(*shape):
    return f(*shape).astype(np.float16)


BY_WINDOW = {"window": (3, 3), "stride": (2, 2), "pre": (1, 1), "post": (1, 1)}
CASES = [
    ("unary", [f(3, 40)], {"fn": "tanh"}, "points"),
    ("binary", [f(3, 1, 5), f(4, 1)], {"fn": "mod"}, "points"),
    ("binary", [np.array([-2.0, 3, 3]), np.array([3.0, -2, 2])], {"fn": "pow"}, "points"),
    ("activation", [half(7, 9)], {"fn": "gelu_erf"}, "points"),
    ("cast", [f(4, 9) * 300], {"to": "i8", "saturate": True}, "points"),
    ("transpose", [f(2, 33, 18)], {"perm": (0, 2, 1)}, "points"),
    ("gather", [f(9, 17), np.array([[1, 8], [0, 3]])], {"axis": 0}, "points"),
    ("pooling", [f(1, 3, 9, 8)], {"fn": "max", **BY_WINDOW}, "points"),
    ("pooling", [f(1, 2, 5, 5)], {"fn": "max", "window": (1, 1), "stride": (2, 2)}, "points"),
    ("lrn", [f(1, 6, 3, 4)], {}, "points"),
    ("reduce", [f(3, 70)], {"fn": "sum", "axes": (1,)}, "rows"),
    ("reduce", [f(2, 40, 9)], {"fn": "max", "axes": (1,)}, "rows"),
    ("reduce", [f(1, 20000)], {"fn": "mean", "axes": (1,)}, "split"),
    ("reduce", [f(300, 70)], {"fn": "sum", "axes": (0,)}, "rows"),
    ("argreduce", [f(2, 50)], {"axis": 1, "fn": "max", "last": True}, "rows"),
    ("softmax", [half(6, 77)], {"axes": (1,)}, "rows"),
    ("softmax", [f(1, 20000)], {"axes": (1,)}, "pieces"),
    ("normalization", [half(5, 768), half(1, 768), half(1, 768)], {"axes": (1,)}, "rows"),
    ("normalization", [f(2, 6, 5, 4), f(1, 6, 1, 1)], {"axes": (2, 3), "groups": 3}, "rows"),
]  # fmt: skip


@pytest.mark.parametrize("op,inputs,attrs,mode", CASES, ids=[f"{c[0]}-{k}" for k, c in
                                                             enumerate(CASES)])
def test_stages_as_a_kernel(op, inputs, attrs, mode):
    if "to" in attrs:
        from tactician.ir.dtypes import dtype

        attrs = {**attrs, "to": dtype(attrs["to"])}
    node = build(op, inputs, [], **attrs)
    kernel = build_loops(get(op).stages(node), node.outputs)
    assert any(t.startswith(mode) for t in kernel.notes["tiles"]), kernel.notes
    got = run_triton_stages(node, *inputs)
    for a, b in zip(got, ops.evaluate(node, *inputs), strict=True):
        close(a, b, slack=5)


def test_nan_wins():
    x = f(3, 40)
    x[1, 7] = np.nan
    node = build("reduce", [x], [], fn="max", axes=(1,))
    (got,) = run_triton_stages(node, x)
    assert np.isnan(got).tolist() == [[False], [True], [False]] or np.isnan(
        got.ravel()).tolist() == [False, True, False]


def largest(x, window, stride, pre, post, dilation):
    """Max pooling by numpy: of the image with the least there is around it."""
    least = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
    around = [(0, 0), (0, 0), *zip(pre, post, strict=True)]
    x = np.pad(x, around, constant_values=least)
    wide = [(k - 1) * d + 1 for k, d in zip(window, dilation, strict=True)]
    views = np.lib.stride_tricks.sliding_window_view(x, wide, (2, 3))
    return views[:, :, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]].max((4, 5))


@pytest.mark.parametrize("dtype", ["i1", "u1", "f2"])
@pytest.mark.parametrize(
    ("size", "window", "stride", "pre", "post", "dilation", "guarded"),
    [((9, 8), (3, 3), (2, 2), (1, 1), (1, 1), (1, 1), False),
     ((7, 9), (3, 2), (1, 3), (0, 1), (2, 0), (1, 1), False),
     ((6, 6), (2, 2), (1, 1), (2, 0), (0, 0), (1, 1), True),  # windows of nothing
     ((9, 9), (3, 3), (1, 1), (1, 1), (1, 1), (2, 2), True)],
    ids=["3x3/2", "uneven", "outside", "dilated"],
)  # fmt: skip
def test_windows_are_clamped(size, window, stride, pre, post, dilation, guarded, dtype):
    low = 0 if dtype == "u1" else -128
    x = rng.integers(low, low + 256, (2, 5, *size)).astype(dtype)
    attrs = {"window": window, "stride": stride, "pre": pre, "post": post, "dilation": dilation}
    node = build("pooling", [x], [], fn="max", **attrs)
    kernel = build_loops(get("pooling").stages(node), node.outputs, pairs=True)
    assert (" >= " in kernel.source) == guarded
    assert ("_max_" in kernel.source) == (dtype != "f2")
    (got,) = run_triton_stages(node, x)
    np.testing.assert_array_equal(got, largest(x, window, stride, pre, post, dilation))


COMPILED = [
    ("transpose", [half(1, 64, 96)], {"perm": (0, 2, 1)}),
    ("reduce", [f(1, 20000)], {"fn": "sum", "axes": (1,)}),
    ("normalization", [half(4, 768), half(1, 768), half(1, 768)], {"axes": (1,)}),
]


@pytest.mark.parametrize("arch", [80, 90, 100])
@pytest.mark.parametrize("op,inputs,attrs", COMPILED, ids=[c[0] for c in COMPILED])
def test_machine_code(op, inputs, attrs, arch):
    node = build(op, inputs, [], **attrs)
    kernel = build_loops(get(op).stages(node), node.outputs)
    _, blob = CudaDevice(f"sm_{arch}").compile(kernel)
    assert b"\x7fELF" in blob
