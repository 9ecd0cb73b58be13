"""Running sums, scatter and top-k as native kernels, against the ops' numpy references."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "ops"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from native_stages import device, sizes
from stage_checks import make, same

from tactician.ops import evaluate
from tactician.regions.region import Region
from tactician.targets.cpu.sequential import SequentialTactic

RNG = np.random.default_rng(0)


def f(*shape, dtype=np.float32):
    return RNG.normal(size=shape).astype(dtype)


def run(op, *arrays, const=(), dynamic=False, **attrs):
    node = make(op, *arrays, const=const, dynamic=dynamic, **attrs)
    region = Region([node], anchor=node, outputs=list(node.outputs))
    tactic = SequentialTactic()
    why = tactic.refuse(region, device())
    assert why is None, why
    kernel = tactic.build(region, 2, device())
    memory = dict(zip(node.inputs, arrays, strict=True))
    memory.update({v: np.full(w.shape, 99, w.dtype) for v, w in
                   zip(node.outputs, evaluate(node, *arrays), strict=True)})
    given = [np.ascontiguousarray(memory[a]) for a in kernel.args]
    device().run_kernel(kernel, given, sizes(node, arrays))
    results = dict(zip(kernel.args, given, strict=True))
    return [results[v] for v in node.outputs]


def check(op, *arrays, const=(), both=True, **attrs):
    for dynamic in (False, True) if both else (False,):
        wanted = evaluate(make(op, *arrays, const=const, **attrs), *arrays)
        for a, b in zip(run(op, *arrays, const=const, dynamic=dynamic, **attrs), wanted,
                        strict=True):  # fmt: skip
            same(a, b, 1e-5, 1e-5)


@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_cumulative(axis, reverse, exclusive):
    axis = np.array(axis)
    check("cumulative", f(4, 5, 37), axis, const=(1,), reverse=reverse, exclusive=exclusive)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int64, np.int32])
@pytest.mark.parametrize("fn", ["sum", "prod"])
def test_cumulative_types(fn, dtype):
    x = RNG.integers(1, 3, (3, 6)).astype(dtype)
    check("cumulative", x, np.array([1]), const=(1,), fn=fn)


@pytest.mark.parametrize("reduction", ["none", "add", "mul", "min", "max"])
@pytest.mark.parametrize("axis", [0, 1])
def test_scatter_elements(axis, reduction):
    x, upd = f(6, 40), f(3, 20)
    idx = RNG.permuted(np.tile(np.arange(-6 if axis == 0 else -40, x.shape[axis]), 9))[:60]
    if reduction == "none":  # duplicates would have no defined order in the reference
        idx = (np.arange(60) * 7 % 40 if axis else np.arange(60) // 20).reshape(3, 20)
    idx = np.clip(idx.reshape(3, 20), -x.shape[axis], x.shape[axis] - 1)
    check("scatter_elements", x, idx, upd, axis=axis, reduction=reduction)


@pytest.mark.parametrize("reduction", ["none", "add", "max"])
def test_scatter_nd(reduction):
    idx = np.array([[0, 2], [3, -1], [1, 1]])
    check("scatter_nd", f(4, 5, 33), idx, f(3, 33), both=False, reduction=reduction)
    check("scatter_nd", f(4, 5), idx, f(3), both=False, reduction=reduction)
    check("scatter_nd", f(4, 5, 2, 3), idx[:, :1], f(3, 5, 2, 3), both=False, reduction=reduction)


def test_scatter_leaves_out_what_is_out_of_range():
    x, idx = np.zeros((2, 4), np.float32), np.array([[0, 3, 1, 0]])
    node = make("scatter_elements", x, idx, np.ones((1, 4), np.float32), axis=0)
    region = Region([node], anchor=node, outputs=list(node.outputs))
    kernel = SequentialTactic().build(region, 2, device())
    out = np.empty_like(x)
    memory = dict(zip(node.inputs, (x, np.array([[0, 30, 1, -9]]), np.ones((1, 4), np.float32)),
                      strict=True))  # fmt: skip
    memory[node.output] = out
    device().run_kernel(kernel, [memory[a] for a in kernel.args], {})
    assert out.tolist() == [[1, 0, 0, 0], [0, 0, 1, 0]]


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("k", [1, 5, 33])
def test_topk(k, largest):
    x = RNG.integers(0, 9, (3, 33)).astype(np.float32)
    x[1, 4] = np.nan
    x[2, 3:9] = np.inf
    check("topk", x, np.array([k]), const=(1,), axis=1, largest=largest)
    check("topk", f(33, 4), np.array([k]), const=(1,), axis=0, largest=largest)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int32, np.uint8, np.int64])
def test_topk_types(dtype):
    check("topk", RNG.integers(0, 50, (2, 3, 20)).astype(dtype), np.array([4]), const=(1,), axis=2)
