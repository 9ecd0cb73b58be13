"""Kernels that search, scan and scatter: against numpy in Triton's interpreter, and as machine
code for three generations of GPUs."""

import numpy as np
import pytest
from search_kit import check, compile_for, kernel_of, node_of

from tactician.ir import dims as D
from tactician.ir.dtypes import dtype
from tactician.ir.graph import Graph
from tactician.ops import emit, evaluate
from tactician.ops.interpreter import run_graph
from tactician.passes import split_topk

rng = np.random.default_rng(3)


def f(*shape):
    return rng.standard_normal(shape).astype(np.float32)


def with_nans(*shape):
    x = np.round(f(*shape), 1)
    x.reshape(-1)[[3, 11, 12]] = np.nan
    return x


def i64(*values):
    return np.array(values, np.int64)


# --- top-k --------------------------------------------------------------------------------


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_topk_keeps_the_order_of_equal_elements(largest, axis):
    x = with_nans(3, 70 if axis == 1 else 9, 5)
    check("topk", "topk", [x, i64(3)], const=(1,), axis=axis, largest=largest)


@pytest.mark.parametrize("kind", ["f2", "f8", "i8", "i4", "u1", "i1"])
def test_topk_of_all_of_a_line(kind):
    x = rng.integers(0, 20, (2, 70)).astype(kind)
    check("topk", "topk", [x, i64(70)], const=(1,), axis=1, largest=False)


def test_topk_of_lines_longer_than_a_block_and_one_result_only():
    x = rng.integers(0, 90, (1, 300)).astype("i4")
    check("topk", "topk", [x, i64(7)], const=(1,), axis=1, wanted=[1])


def test_topk_of_symbolic_lines():
    x = f(3, 40, 2)
    check("topk", "topk", [x, i64(3)], const=(1,), dims={0: (3, D.sym("n"), 2)}, env={"n": 40},
          axis=1)  # fmt: skip


# --- running sums -------------------------------------------------------------------------


@pytest.mark.parametrize("fn", ["sum", "prod"])
@pytest.mark.parametrize("exclusive, reverse", [(False, False), (True, False), (True, True)])
def test_cumulative_along_an_axis_known_late(fn, exclusive, reverse):
    x = f(3, 5, 2)
    for axis in (0, 1, -1):
        check("cumulative", "cumulative", [x, np.array(axis)], fn=fn, exclusive=exclusive,
              reverse=reverse)  # fmt: skip


@pytest.mark.parametrize("kind", ["f2", "f8", "i8", "i4", "i1", "u1"])
def test_cumulative_of_types(kind):
    x = rng.integers(0, 9, (3, 2100)).astype(kind)
    check("cumulative", "cumulative", [x, np.array(1)], const=(1,), fn="sum")


def test_cumulative_across_lines():
    x = f(1500, 3)
    check("cumulative", "cumulative", [x, np.array(0)], const=(1,), fn="sum", exclusive=True)
    check("cumulative", "cumulative", [x, np.array(0)], const=(1,), fn="sum", reverse=True,
          dims={0: (D.sym("n"), 3)}, env={"n": 1500})  # fmt: skip


# --- scatter ------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["none", "add", "mul", "min", "max"])
def test_scatter_with_duplicates(reduction):
    x = f(3, 7, 5)
    for axis in (0, 1, 2):
        idx = rng.integers(-3, 3, (2, 4, 3))
        check("scatter", "scatter_elements", [x, idx, f(*idx.shape)], axis=axis,
              reduction=reduction)  # fmt: skip
    idx = rng.integers(-3, 3, (6, 2)).astype("i4")
    check("scatter", "scatter_nd", [x, idx, f(6, 5)], reduction=reduction)
    whole = (x * 9).astype("i4"), idx, (f(6, 5) * 9).astype("i4")
    check("scatter", "scatter_nd", list(whole), reduction=reduction)


def test_scatter_of_short_floats_sums_in_f32():
    x, idx = f(4, 6).astype("f2"), np.zeros((90, 1), np.int64)
    check("scatter", "scatter_nd", [x, idx, f(90, 6).astype("f2")], reduction="add")


def test_scatter_of_nothing_and_of_symbolic_sizes():
    x = f(4, 6)
    check("scatter", "scatter_nd", [x, np.zeros((0, 1), np.int64), f(0, 6)])
    sizes = {0: (D.sym("n"), 6), 1: (D.sym("k"), 1), 2: (D.sym("k"), 6)}
    check("scatter", "scatter_nd", [x, i64(3, 1, 3)[:, None], f(3, 6)], dims=sizes,
          env={"n": 4, "k": 3})  # fmt: skip


# --- sizes that depend on data ------------------------------------------------------------


@pytest.mark.parametrize("share", [0, 0.2, 1])
@pytest.mark.parametrize("shape", [(3, 50, 30), (7,), (1, 3)])
def test_non_zero(share, shape):
    x = (rng.random(shape) < share).astype("f4")
    check("selection", "non_zero", [x])
    check("selection", "non_zero", [x != 0])


def test_non_zero_of_symbolic_sizes():
    x = (rng.random((5, 9)) < 0.4).astype("i8")
    check("selection", "non_zero", [x], dims={0: (D.sym("a"), D.sym("b"))}, env={"a": 5, "b": 9})


@pytest.mark.parametrize("axis", [None, 0, 1, 2])
@pytest.mark.parametrize("const", [(), (1,)])
def test_compress(axis, const):
    x = f(3, 7, 5)
    cond = rng.random(9 if axis is None else (3, 6, 5)[axis]) < 0.5  # may be shorter
    check("selection", "compress", [x, cond], const=const, axis=axis)


@pytest.mark.parametrize("ordered", [True, False])
def test_unique(ordered):
    check("unique", "unique", [rng.integers(0, 9, (4, 30))], sorted=ordered)
    check("unique", "unique", [with_nans(4, 6)], sorted=ordered)
    check("unique", "unique", [np.zeros((3, 3), "u1")], sorted=ordered, wanted=[0, 2])
    for axis in (0, 1, 2):
        x = rng.integers(0, 2, (5, 3, 2)).astype("f4")
        check("unique", "unique", [x], sorted=ordered, axis=axis)


def boxes(n):
    b = rng.random((2, n, 4)).astype("f4")
    b[..., 2:] += 0.1
    return b, np.round(rng.random((2, 3, n)), 1).astype("f4")


@pytest.mark.parametrize("const", [(), (2, 3, 4)])
@pytest.mark.parametrize("center", [False, True])
def test_nms(const, center):
    b, s = boxes(40)
    limits = [i64(5), np.array([0.3], "f4"), np.array([0.2], "f4")]
    check("nms", "nms", [b, s, *limits], const=const, center_box=center)


def test_nms_without_limits_or_results():
    b, s = boxes(30)
    check("nms", "nms", [b, s, i64(50)])
    check("nms", "nms", [b, s])
    check("nms", "nms", [b, s, i64(3), np.array([0.5], "f4"), np.array([9], "f4")])
    sizes = {0: (2, D.sym("s"), 4), 1: (2, 3, D.sym("s"))}
    check("nms", "nms", [b, s, i64(7), np.array([0.4], "f4")], dims=sizes, env={"s": 30})


# --- machine code -------------------------------------------------------------------------

WIDE = np.zeros((8, 1000), np.float32)
BOX = np.zeros((1, 5000, 4), np.float16), np.zeros((1, 2, 5000), np.float16), i64(5)
TEXTS = {
    "topk": lambda: ("topk", node_of("topk", [WIDE.astype("f2"), i64(5)], (1,), axis=0)),
    "cumulative": lambda: ("cumulative", node_of(
        "cumulative", [WIDE.astype("i1"), np.array(1)], fn="prod", exclusive=True)),
    "elements": lambda: ("scatter", node_of(
        "scatter_elements", [WIDE, np.zeros((8, 3), "i8"), WIDE[:, :3]], axis=1)),
    "nd": lambda: ("scatter", node_of(
        "scatter_nd", [WIDE, np.zeros((4, 2), "i4"), WIDE[0, :4]], reduction="max")),
    "non_zero": lambda: ("selection", node_of("non_zero", [WIDE != 0])),
    "compress": lambda: ("selection", node_of("compress", [WIDE, np.ones(8, bool)], axis=0)),
    "unique": lambda: ("unique", node_of("unique", [WIDE.astype("i8")], axis=1, sorted=False)),
    "nms": lambda: ("nms", node_of("nms", list(BOX), center_box=True)),
}  # fmt: skip


@pytest.mark.parametrize("name", TEXTS)
def test_machine_code(name):
    """For one generation here, for the others with the slow tests."""
    compile_for(kernel_of(*TEXTS[name]()), (90,))


@pytest.mark.slow
@pytest.mark.parametrize("name", TEXTS)
def test_machine_code_of_other_generations(name):
    compile_for(kernel_of(*TEXTS[name]()), (80, 100))


# --- lengths that depend on data ------------------------------------------------------------


@pytest.mark.parametrize("numbers", [
    (np.int64(3), np.int64(20), np.int64(4)), (np.int32(9), np.int32(-4), np.int32(-3)),
    (np.float32(0), np.float32(1), np.float32(0.3)), (np.int64(5), np.int64(2), np.int64(1)),
])  # fmt: skip
def test_range(numbers):
    check("lengths", "range", [np.asarray(x) for x in numbers])


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_one_hot(axis):
    onoff = np.array([2, 5], "f4")
    check("lengths", "one_hot", [rng.integers(-3, 3, (4, 3)), i64(3), onoff], axis=axis)
    floats = np.array([0, 1.5, -1, 2], "f4")
    check("lengths", "one_hot", [floats, np.array([3.0], "f4"), onoff.astype("i4")], axis=axis % 2)


@pytest.mark.parametrize("a, b", [("f4", "i4"), ("i2", "f2"), ("f8", "i8"), ("u1", "i1")])
def test_bit_cast(a, b):
    x = rng.integers(0, 90, (3, 5)).astype(a)
    check("bits", "bit_cast", [x], to=dtype(np.dtype(b)))


# --- long lines ---------------------------------------------------------------------------


@pytest.mark.parametrize("largest", [True, False])
def test_topk_of_long_lines_is_cut(largest, monkeypatch):
    monkeypatch.setattr(split_topk, "PIECE", 32)
    graph = Graph()
    x = graph.add_input("x", "f32", (2, 700))
    out = emit(graph, "topk", [x, graph.constant(i64(5))], "k", largest=largest, axis=1)
    graph.outputs = list(out.outputs)
    assert split_topk.SplitTopK(lambda n: not split_topk.pieces_of(n)).run(graph)
    longest = max(n.inputs[0].dims[-1] for n in graph.nodes if n.op == "topk")
    assert longest <= 64 and sum(n.op == "topk" for n in graph.nodes) == 3
    a = with_nans(2, 700)
    values, places = run_graph(graph, [a])
    node = node_of("topk", [a, i64(5)], (1,), largest=largest, axis=1)
    for got, want in zip((values, places), evaluate(node, a, i64(5)), strict=True):
        np.testing.assert_array_equal(got, want)
