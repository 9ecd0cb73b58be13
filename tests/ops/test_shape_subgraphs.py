"""Shape arithmetic of exported models disappears: contents are known symbolically."""

import numpy as np
import pytest

from tactician.ir import dims as D
from tactician.ir.dtypes import f32, i64
from tactician.ir.graph import Graph
from tactician.ops import emit, update

N, T = D.sym("n"), D.sym("t")


@pytest.fixture
def g() -> Graph:
    return Graph()


def ints(g, *values):
    return g.constant(np.array(values, np.int64))


def op(g, name, *inputs, **attrs):
    return emit(g, name, list(inputs), name, **attrs).outputs[0]


def test_shape_gather_unsqueeze_concat_reshape(g):
    x = g.add_input("x", f32, (N, T, 12, 64))
    shape = op(g, "shape", x)
    parts = [op(g, "unsqueeze", op(g, "gather", shape, g.constant(np.array(k))), ints(g, 0))
             for k in (0, 1)]
    target = op(g, "concat", *parts, ints(g, -1), axis=0)
    assert op(g, "reshape", x, target).shape == (N, T, 768)


def test_heads_from_division(g):
    x = g.add_input("x", f32, (N, T, 768))
    last = op(g, "strided_slice", op(g, "shape", x), ints(g, -1), ints(g, 2**63 - 1))
    heads = op(g, "binary", last, ints(g, 64), fn="div")
    batch = op(g, "strided_slice", op(g, "shape", x), ints(g, 0), ints(g, 2))
    y = op(g, "reshape", x, op(g, "concat", batch, heads, ints(g, 64)))
    assert y.shape == (N, T, 12, 64)


def test_expand_with_minus_one_replaced(g):
    """torch exports expand as where(shape == -1, ones, shape)."""
    x = g.add_input("x", f32, (1, T))
    y = g.add_input("y", f32, (N, 3))
    n = op(g, "strided_slice", op(g, "shape", y), ints(g, 0), ints(g, 1))
    shape = op(g, "concat", n, ints(g, -1))
    minus = op(g, "binary", shape, ints(g, -1), fn="eq")
    shape = op(g, "select", minus, ints(g, 1, 1), shape)
    assert op(g, "expand", x, shape).shape == (N, T)


def test_causal_mask_slice(g):
    """mask[:, :, s - t : s, :s] of a stored 1024 x 1024 mask."""
    s = D.sym("s")
    k = op(g, "shape", g.add_input("k", f32, (N, s)))
    q = op(g, "shape", g.add_input("q", f32, (N, T)))
    ks = op(g, "strided_slice", k, ints(g, 1), ints(g, 2))
    qs = op(g, "strided_slice", q, ints(g, 1), ints(g, 2))
    mask = g.constant(np.ones((1, 1, 1024, 1024), np.float32))
    start = op(g, "binary", ks, qs, fn="sub")
    rows = op(g, "strided_slice", mask, start, ks, ints(g, 2))
    node = emit(g, "strided_slice", [rows, ints(g, 0), ks, ints(g, 3)])
    assert node.output.shape == (1, 1, T, s)
    assert ("le", s, 1024) in node.meta["assumptions"]


def test_range_and_positions(g):
    x = g.add_input("x", f32, (N, T))
    length = op(g, "gather", op(g, "shape", x), g.constant(np.array(1)))
    r = op(g, "range", g.constant(np.array(0)), length, g.constant(np.array(1)))
    assert r.shape == (T,)
    assert op(g, "unsqueeze", r, ints(g, 0)).shape == (1, T)


@pytest.mark.parametrize("fn,expected", [
    ("add", N + 2), ("sub", N - 2), ("mul", N * 2), ("max", D.dim_max(N, 2)), ("div", N // 2),
    ("floordiv", N // 2), ("mod", N % 2), ("min", D.dim_min(N, 2)),
])  # fmt: skip
def test_arithmetic_is_known(g, fn, expected):
    n = op(g, "gather", op(g, "shape", g.add_input("x", f32, (N,))), g.constant(np.array(0)))
    assert op(g, "binary", n, g.constant(np.array(2)), fn=fn).known_ints()[()] == expected


def test_comparison_of_unknown_sizes_is_unknown(g):
    n = op(g, "shape", g.add_input("x", f32, (N,)))
    assert op(g, "binary", n, ints(g, 5), fn="lt").known_ints() is None
    assert op(g, "binary", n, ints(g, 0), fn="gt").known_ints()[0] == 1


def test_unknown_shape_gives_data_dependent_dims(g):
    x = g.add_input("x", f32, (N, 4))
    shape = g.add_input("s", i64, (3,))
    node = emit(g, "reshape", [x, shape])
    assert [str(d) for d in node.output.shape] == [f"%{node.id}.{k}" for k in range(3)]


def test_extremes_are_absorbed():
    assert D.dim_max(D.dim_min(N, 5), N) == N and D.dim_min(D.dim_max(N, 5), N) == N
    nested = D.dim_max(D.dim_max(N, T), D.dim_max(T, 3))
    assert nested == D.dim_max(3, N, T) and D.evaluate(nested, {"n": 2, "t": 1}) == 3
    assert D.parse_dim(str(nested)) == nested
    assert D.evaluate(D.dim_max(D.dim_min(N, 5), T), {"n": 9, "t": 1}) == 5


@pytest.mark.parametrize("dims,scale,fn,expected", [
    ((7, 9), 0.5, "floor", [3, 4]), ((7, 9), 0.5, "ceil", [4, 5]), ((7, 10), 0.7, None, [4, 7]),
    ((N, 3), 2.0, "floor", [N * 2, 6]), ((N * 4, 8), 0.5, "floor", None),
    ((N, T), 1.0, "round", [N, T]),
])  # fmt: skip
def test_sizes_computed_in_floats(g, dims, scale, fn, expected):
    """Shape, cast, times scale, floor, cast: what exporters make of a scale factor."""
    y = op(g, "cast", op(g, "shape", g.add_input("x", f32, dims)), to=f32)
    y = op(g, "binary", y, g.constant(np.float32(scale)), fn="mul")
    if fn is not None:
        y = op(g, "unary", y, fn=fn)
    assert y.known_ints() is None  # floats are no sizes
    got = op(g, "cast", y, to=i64).known_ints()
    assert (None if got is None else list(got)) == expected


@pytest.mark.parametrize("fn,expected", [(None, [N * 2, 3]), ("ceil", [N * 2, 4])])
def test_sizes_divided_in_floats(g, fn, expected):
    y = op(g, "cast", op(g, "shape", g.add_input("x", f32, (N * 6, 10))), to=f32)
    y = op(g, "binary", y, g.constant(np.float32(3)), fn="div")
    y = y if fn is None else op(g, "unary", y, fn=fn)
    assert list(op(g, "cast", y, to=i64).known_ints()) == expected


def test_division_by_zero_is_unknown(g):
    y = op(g, "cast", op(g, "shape", g.add_input("x", f32, (4,))), to=f32)
    y = op(g, "binary", y, g.constant(np.float32(0)), fn="div")
    assert op(g, "cast", y, to=i64).known_ints() is None


def test_float_content_follows_changes(g):
    x = g.add_input("x", f32, (4,))
    y = op(g, "cast", op(g, "shape", x), to=f32)
    z = op(g, "cast", op(g, "binary", y, g.constant(np.float32(0.5)), fn="mul"), to=i64)
    assert z.known_ints()[0] == 2
    x.shape = (8,)
    update(g.nodes[0])
    assert z.known_ints()[0] == 4
    x.shape = (N,)
    update(g.nodes[0])
    assert z.known_ints() is None


def test_exact_division_of_sums():
    a, b = N * 3 + T - 1, T * N + 2
    assert (a * b) // a == b and (a * b) // b == a and (a * b) % b == 0
    assert str((a * b + 1) // b).startswith("floordiv")
    assert D.evaluate((N * N + 5) // (N + 1), {"n": 4}) == 4


def test_merged_sizes_are_taken_apart(g):
    """[b, past + t] to [b * (past + t)] and back."""
    x = g.add_input("x", f32, (N, T + D.sym("past"), 8))
    flat = op(g, "reshape", x, ints(g, -1, 8))
    shape = op(g, "strided_slice", op(g, "shape", x), ints(g, 1), ints(g, 3))
    y = op(g, "reshape", flat, op(g, "concat", ints(g, -1), shape))
    assert y.shape == x.shape
