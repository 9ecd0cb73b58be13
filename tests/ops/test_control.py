"""If, loop and plugin nodes."""

import numpy as np
import pytest

from tactician.ir import dims as D
from tactician.ir.dtypes import b1, f32, i64
from tactician.ir.graph import Graph, TensorType
from tactician.ops import OpError, all_ops, emit, evaluate, get, update
from tactician.ops import plugin as P

N = D.sym("n")


def branch(op, dims=(N,), **attrs):
    g = Graph("branch")
    x = g.add_input("x", f32, dims)
    g.outputs = [emit(g, op, [x], "body", **attrs).output]
    return g


def make_if(g, cond, x, yes, no):
    return emit(g, "if", [cond, x], "choice", subgraphs=[yes, no])


def test_if():
    g = Graph()
    cond, x = g.add_input("c", b1, ()), g.add_input("x", f32, (N,))
    node = make_if(g, cond, x, branch("unary", fn="neg"), branch("unary", fn="exp"))
    assert node.output.dims == (N,)
    a = np.array([1, 2], np.float32)
    assert evaluate(node, np.array(True), a)[0].tolist() == [-1, -2]
    np.testing.assert_allclose(evaluate(node, np.array(False), a)[0], np.exp(a))


def test_if_branches_of_different_sizes():
    g = Graph()
    cond, x = g.add_input("c", b1, ()), g.add_input("x", f32, (3, 4))
    twice = Graph()
    y = twice.add_input("x", f32, (3, 4))
    twice.outputs = [emit(twice, "concat", [y, y], axis=0).output]
    node = make_if(g, cond, x, branch("identity", (3, 4)), twice)
    rows, cols = node.output.dims
    assert str(rows).startswith(f"%{node.id}.") and cols == 4
    known = make_if(g, g.constant(np.array(False)), x, branch("identity", (3, 4)), twice)
    assert known.output.dims == (6, 4)


def test_if_branches_of_one_element():
    g = Graph()
    cond, x = g.add_input("c", b1, ()), g.add_input("x", f32, (1,))
    flat = Graph()
    v = flat.add_input("x", f32, (1,))
    flat.outputs = [emit(flat, "reshape", [v, flat.constant(np.zeros(0, np.int64))]).output]
    node = make_if(g, cond, x, branch("identity", (1,)), flat)
    assert node.output.dims == (1,)
    assert evaluate(node, np.array(False), np.ones(1, np.float32))[0].shape == (1,)


def test_if_that_squeezes_an_axis_of_unknown_size():
    """torch exports x.squeeze(-1) as if(shape(x)[-1] == 1, squeeze, identity)."""
    g, t = Graph(), D.sym("t")
    cond, x = g.add_input("c", b1, ()), g.add_input("x", f32, (N, 4, t))
    yes = Graph()
    v = yes.add_input("x", f32, (N, 4, t))
    yes.outputs = [emit(yes, "squeeze", [v, yes.constant(np.array([-1]))]).output]
    node = make_if(g, cond, x, yes, branch("identity", (N, 4, t)))
    assert node.output.dims == (N, 4) and ("eq", t, 1) in node.meta["assumptions"]
    assert evaluate(node, np.array(True), np.ones((2, 4, 1), np.float32))[0].shape == (2, 4)
    assert evaluate(node, np.array(False), np.ones((2, 4, 1), np.float32))[0].shape == (2, 4)
    with pytest.raises(ValueError, match="assumed to have size 1"):
        evaluate(node, np.array(False), np.ones((2, 4, 3), np.float32))


def test_if_refuses_different_types():
    g = Graph()
    cond, x = g.add_input("c", b1, ()), g.add_input("x", f32, (N,))
    with pytest.raises(OpError, match="one type and rank"):
        make_if(g, cond, x, branch("identity"), branch("unary", fn="isnan"))
    with pytest.raises(OpError, match="must be one bool"):
        make_if(g, x, x, branch("identity"), branch("identity"))


def loop_body(dims=(2,), step="add", cond_from_sum=False):
    """carried x -> x step c; scan: x."""
    g = Graph("body")
    g.add_input("i", i64, ())
    cond = g.add_input("cond", b1, ())
    x, c = g.add_input("x", f32, dims), g.add_input("c", f32, dims)
    if step == "add":
        y = emit(g, "binary", [x, c], fn="add").output
    else:
        y = emit(g, "concat", [x, c], axis=0).output
    if cond_from_sum:
        first = emit(g, "gather", [y, g.constant(np.array(0))]).output
        cond = emit(g, "binary", [first, g.constant(np.float32(4.5))], fn="lt").output
    g.outputs = [cond, y, x]
    return g


def make_loop(g, body, trips, dims=(2,), cond=None):
    x, c = g.add_input("x", f32, dims), g.add_input("c", f32, dims)
    return emit(g, "loop", [trips, cond, x, c], "loop", subgraphs=[body], carried=1, scans=1)


def test_loop_counts():
    g = Graph()
    node = make_loop(g, loop_body(), g.constant(np.array(3)))
    assert [v.dims for v in node.outputs] == [(2,), (3, 2)]
    x, c = np.array([1, 2], np.float32), np.array([10, 20], np.float32)
    last, scan = evaluate(node, np.array(3), None, x, c)
    assert last.tolist() == [31, 62] and scan.tolist() == [[1, 2], [11, 22], [21, 42]]
    last, scan = evaluate(node, np.array(0), None, x, c)
    assert last.tolist() == [1, 2] and scan.shape == (0, 2)


def test_loop_ends_by_its_condition():
    g = Graph()
    node = make_loop(g, loop_body(cond_from_sum=True), None)
    assert str(node.outputs[1].dims[0]) == f"%{node.id}.0"
    x = np.ones(2, np.float32)
    last, scan = evaluate(node, None, None, x, x)
    assert last.tolist() == [5, 5] and scan.shape == (4, 2)
    trips = g.constant(np.array(9))
    bounded = make_loop(Graph(), loop_body(cond_from_sum=True), trips)
    assert bounded.meta["data_dims"][f"%{bounded.id}.0"] == 9


def test_loop_with_symbolic_trip_count():
    g = Graph()
    t = emit(g, "gather", [emit(g, "shape", [g.add_input("q", f32, (N,))]).output,
                           g.constant(np.array(0))]).output
    assert make_loop(g, loop_body(), t).outputs[1].dims == (N, 2)


def test_loop_with_growing_value():
    """A carried value that grows has an unknown size inside the loop and after it."""
    g = Graph()
    body = loop_body(dims=(2,), step="concat")
    body.outputs = body.outputs[:2]
    x, c = g.add_input("x", f32, (2,)), g.add_input("c", f32, (2,))
    trips = g.constant(np.array(3))
    node = emit(g, "loop", [trips, None, x, c], "loop", subgraphs=[body], carried=1)
    (size,) = node.output.dims
    assert isinstance(size, D.Dim) and size != body.inputs[2].dims[0]
    assert isinstance(body.inputs[2].dims[0], D.Dim)
    a = np.array([1, 2], np.float32)
    assert evaluate(node, np.array(3), None, a, a)[0].tolist() == [1, 2] * 4
    before = node.output.dims
    update(node)  # stable when inferred again
    assert node.output.dims == before and node.error is None


def test_loop_refuses():
    g = Graph()
    body = loop_body()
    body.outputs = body.outputs[:1]
    with pytest.raises(OpError, match="has 1 outputs"):
        make_loop(g, body, g.constant(np.array(3)))
    body = loop_body()
    axes = body.constant(np.array([0]))
    body.outputs[1] = emit(body, "unsqueeze", [body.outputs[1], axes]).output
    with pytest.raises(OpError, match="type and rank must stay"):
        make_loop(g, body, g.constant(np.array(3)))


class Doubler:
    def infer(self, node):
        if node.attrs.plugin != "Doubler":
            raise OpError(f"no plugin is called {node.attrs.plugin!r}")
        x = node.inputs[0]
        return [TensorType(x.dtype, x.dims)]

    def run(self, node, inputs):
        return [inputs[0] * 2]


@pytest.fixture
def runner():
    old = P._runner
    P.set_plugin_runner(Doubler())
    yield
    P.set_plugin_runner(old)


def test_plugin(runner):
    g = Graph()
    x = g.add_input("x", f32, (N,))
    node = emit(g, "plugin", [x], "layer", plugin="Doubler")
    assert node.output.dims == (N,)
    assert evaluate(node, np.ones(2, np.float32))[0].tolist() == [2, 2]
    assert not get("plugin").is_pure(node)
    with pytest.raises(OpError, match="no plugin is called 'Nobody'"):
        emit(g, "plugin", [x], "layer", plugin="Nobody")
    P.set_plugin_runner(None)
    with pytest.raises(OpError, match="::Doubler version 1 cannot be called"):
        emit(g, "plugin", [x], "layer", plugin="Doubler")


def test_every_op_has_a_kind_and_doc():
    for name, op in all_ops().items():
        assert op.kind and type(op).__doc__, name
