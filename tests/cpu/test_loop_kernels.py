"""Loop kernels as the runtime calls them: any sizes, any split into work items, fused stages."""

import ctypes
import itertools
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from native_stages import device

from tactician.ir import dims as D
from tactician.ir import expr as E
from tactician.ir.dtypes import f16, f32, i64
from tactician.ir.graph import Graph, Value
from tactician.ops import emit, get
from tactician.regions.region import Region
from tactician.targets.cpu.loops import LoopCandidate, LoopTactic, build_loops, refusal

RNG = np.random.default_rng(0)
N, M = D.sym("n"), D.sym("m")


def f(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def run(kernel, memory, env, pieces=1):
    """Calls the kernel on ``pieces`` ranges of work items, last first."""
    call = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64,
                            ctypes.c_int64, ctypes.c_void_p)(device().function(kernel))  # fmt: skip
    arrays = [memory[v] for v in kernel.args]
    args = (ctypes.c_void_p * max(len(arrays), 1))(*(a.ctypes.data for a in arrays))
    sizes = [D.evaluate(d, env) for d in kernel.dims]
    dims = (ctypes.c_int64 * max(len(sizes), 1))(*sizes)
    scratch = np.empty(D.evaluate(kernel.scratch, env) + 64, np.uint8)
    base = -(-scratch.ctypes.data // 64) * 64
    work = D.evaluate(kernel.work, env)
    cuts = np.linspace(0, work, pieces + 1).astype(int)
    for low, high in reversed(list(itertools.pairwise(cuts))):
        call(ctypes.addressof(args), ctypes.addressof(dims), int(low), int(high), base)


def symbolic(op, **attrs):
    g = Graph()
    x = g.add_input("x", f32, (N, M))
    node = emit(g, op, [x], op, **attrs)
    return x, node, build_loops(get(op).stages(node), node.outputs, device().isa, LoopCandidate(2))


def softmax(x):
    e = np.exp(x - x.max(1, keepdims=True, initial=-np.inf))
    return e / e.sum(1, keepdims=True)


CASES = {
    "activation": ({"fn": "relu"}, lambda x: np.maximum(x, 0)),
    "softmax": ({"axes": (1,)}, softmax),
    "transpose": ({"perm": (1, 0)}, lambda x: x.T),
    "reduce": ({"fn": "sum", "axes": (0,), "keepdims": False}, lambda x: x.sum(0)),
}


@pytest.mark.parametrize("pieces", [1, 2, 7])
@pytest.mark.parametrize("op", CASES)
def test_one_kernel_for_all_sizes(op, pieces):
    attrs, reference = CASES[op]
    x, node, kernel = symbolic(op, **attrs)
    for n, m in [(3, 5), (1, 1), (0, 4), (4, 0), (70, 33), (2, 5000), (5000, 2)]:
        a = f(n, m)
        want = reference(a)
        out = np.full(want.shape, 7, np.float32)
        run(kernel, {x: a, node.output: out}, {"n": n, "m": m}, pieces)
        np.testing.assert_allclose(out, want, rtol=2e-5, atol=2e-4, err_msg=f"{n} x {m}")


def test_inlined_and_unrelated_stages_share_a_kernel():
    x, y = Value("x", f32, (6, 40)), Value("y", f32, (6, 40))
    mid, total, other = (Value(k, f32, s) for k, s in
                         (("mid", (6, 40)), ("total", (6,)), ("other", (13,))))  # fmt: skip
    v = E.iter_vars((6, 40))
    first = E.Stage(mid, v, E.mul(E.load(x, v), E.load(y, v)))
    i, r = E.Var(i64, "i", 6), E.Var(i64, "r", 40)
    body = E.inline(E.unary("exp", E.load(mid, [i, r])), first)
    second = E.Stage(total, (i,), E.reduce_("sum", (r,), body))
    k = E.Var(i64, "k", 13)
    third = E.Stage(other, (k,), E.cast(k, f32))
    kernel = build_loops([first, second, third], [total, other], device().isa, LoopCandidate(2))
    a, b = f(6, 40), f(6, 40)
    memory = {x: a, y: b, total: np.zeros(6, np.float32), other: np.zeros(13, np.float32)}
    run(kernel, memory, {}, 3)
    np.testing.assert_allclose(memory[total], np.exp(a * b).sum(1), rtol=1e-5)
    np.testing.assert_array_equal(memory[other], np.arange(13))


def test_intermediate_read_across_rows():
    """A value read at other indices than its own can't stay in the row: still right."""
    x, twice, out = (Value(k, f32, (5, 5)) for k in ("x", "twice", "out"))
    v = E.iter_vars((5, 5))
    first = E.Stage(twice, v, E.add(E.load(x, v), E.load(x, v)))
    w = E.iter_vars((5, 5))
    second = E.Stage(out, w, E.load(twice, [w[1], w[0]]))
    kernel = build_loops([first, second], [out], device().isa, LoopCandidate(2))
    a, y = f(5, 5), np.zeros((5, 5), np.float32)
    run(kernel, {x: a, out: y}, {}, 2)
    np.testing.assert_array_equal(y, 2 * a.T)


def test_exponentials_of_a_softmax_are_computed_once():
    g = Graph()
    x = g.add_input("x", f32, (4, 64))
    node = emit(g, "softmax", [x], "s", axes=(1,))
    kernel = build_loops(get("softmax").stages(node), node.outputs, device().isa, LoopCandidate(1))
    assert kernel.scratch >= 64 * 4
    assert kernel.source.count(" shl <") == 1  # one in each exponential


def test_refusals_name_the_reason():
    g = Graph()
    x = g.add_input("x", f32, (4, 4))
    node = emit(g, "matmul", [x, x], "m")
    tactic = LoopTactic()
    assert "not a loop nest" in tactic.refuse(Region([node], anchor=node), device())
    assert "nothing" in tactic.refuse(Region([node]), device())
    half = emit(g, "activation", [g.add_input("h", f16, (4,))], "h", fn="relu")
    assert "f16" in refusal(get("activation").stages(half), f16c=False)
