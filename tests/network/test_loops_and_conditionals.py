"""Loops and conditionals: lowered, run on numpy, compared with plain Python."""

import numpy as np
import pytest
from netkit import add_inputs, const, f32, network, run

import tactician as trt
from tactician.ir.verify import verify
from tactician.support.errors import UsageError

E, L, T = trt.ElementWiseOperation, trt.LoopOutput, trt.TripLimit


def ew(net, a, b, op):
    return net.add_elementwise(a, b, op).get_output(0)


def counted(net, count):
    loop = net.add_loop()
    limit = loop.add_trip_limit(const(net, np.int32(count)), T.COUNT)
    assert limit.kind is T.COUNT and limit.loop is loop and limit.num_outputs == 0
    return loop


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("axis, reverse", [(0, False), (0, True), (1, False), (1, True)])
def test_running_sums(axis, reverse, dynamic):
    x = f32(3, 5)
    net = network()
    (t,) = add_inputs(net, [x], dynamic)
    n = x.shape[axis]
    loop = counted(net, n)
    step = loop.add_iterator(t, axis, reverse).get_output(0)
    total = loop.add_recurrence(const(net, np.zeros(x.shape[1 - axis], np.float32)))
    after = ew(net, total.get_output(0), step, E.SUM)
    total.set_input(1, after)
    outs = [loop.add_loop_output(total.get_output(0), L.LAST_VALUE),
            loop.add_loop_output(after, L.CONCATENATE, 0),
            loop.add_loop_output(after, L.REVERSE, 1),
            loop.add_loop_output(total.get_output(0), L.CONCATENATE, 1)]
    outs[1].set_input(1, const(net, np.int32(n)))
    for o in outs:
        net.mark_output(o.get_output(0))
    assert net.check() == []
    verify(net.lower_control())
    last, sums, back, before = run(net, [x])
    rows = np.moveaxis(x, axis, 0)[::-1 if reverse else 1]
    want = np.cumsum(rows, 0)
    np.testing.assert_allclose(last, want[-1], rtol=1e-5)
    np.testing.assert_allclose(sums, want, rtol=1e-5)
    np.testing.assert_allclose(back, want[::-1].T, rtol=1e-5)
    np.testing.assert_allclose(before[:, 1:], want[:-1].T, rtol=1e-5)


@pytest.mark.parametrize("start", [3.0, 64.0, 300.0])
@pytest.mark.parametrize("most", [None, 2])
def test_while(start, most):
    net = network()
    x = net.add_input("x", trt.float32, ())
    loop = net.add_loop() if most is None else counted(net, most)
    state = loop.add_recurrence(x)
    value = state.get_output(0)
    state.set_input(1, ew(net, value, const(net, np.float32(2)), E.PROD))
    loop.add_trip_limit(ew(net, value, const(net, np.float32(100)), E.LESS), T.WHILE)
    net.mark_output(loop.add_loop_output(value, L.LAST_VALUE).get_output(0))
    (y,) = run(net, [np.float32(start)])
    want, n = start, 0
    while want < 100 and (most is None or n < most):
        want, n = 2 * want, n + 1
    assert y == want


def test_two_states_and_no_iterations():
    net = network()
    a, b = (net.add_input(n, trt.int32, ()) for n in "ab")
    count = net.add_input("n", trt.int32, ())
    loop = net.add_loop()
    loop.add_trip_limit(count, T.COUNT)
    old, new = loop.add_recurrence(a), loop.add_recurrence(b)
    both = ew(net, old.get_output(0), new.get_output(0), E.SUM)
    old.set_input(1, new.get_output(0))
    new.set_input(1, both)
    net.mark_output(loop.add_loop_output(old.get_output(0), L.LAST_VALUE).get_output(0))
    assert [run(net, [0, 1, n])[0] for n in (0, 1, 2, 7)] == [0, 1, 1, 13]


def test_nested_loops_build_a_table():
    net = network()
    x = net.add_input("x", trt.float32, (3, 4))
    outer = counted(net, 3)
    row = outer.add_iterator(x).get_output(0)
    inner = counted(net, 4)
    cell = inner.add_iterator(row).get_output(0)
    scale = const(net, np.float32(10))
    scaled = ew(net, cell, scale, E.PROD)
    cells = inner.add_loop_output(scaled, L.CONCATENATE).get_output(0)
    net.mark_output(outer.add_loop_output(cells, L.CONCATENATE).get_output(0))
    a = f32(3, 4)
    np.testing.assert_allclose(run(net, [a])[0], 10 * a, rtol=1e-6)
    graph = net.lower_control()
    assert [n.op for n in graph.nodes].count("loop") == 1
    (outer_body,) = next(n for n in graph.nodes if n.op == "loop").subgraphs
    assert [n.op for n in outer_body.nodes].count("loop") == 1


def branches(net, x, cond):
    choice = net.add_if_conditional()
    choice.set_condition(cond)
    v = choice.add_input(x).get_output(0)
    neg = net.add_unary(v, trt.UnaryOperation.NEG).get_output(0)
    add = ew(net, v, const(net, np.ones((2, 3), np.float32)), E.SUM)
    return choice, choice.add_output(neg, add).get_output(0)


@pytest.mark.parametrize("taken", [True, False])
@pytest.mark.parametrize("dynamic", [False, True])
def test_conditional(taken, dynamic):
    x = f32(2, 3)
    net = network()
    (t,) = add_inputs(net, [x], dynamic)
    choice, y = branches(net, t, net.add_input("cond", trt.bool, ()))
    net.mark_output(y)
    assert net[1].type is trt.LayerType.CONDITIONAL_INPUT
    assert choice.set_condition(t) is None and "set already" in net._logger.errors[0]
    graph = net.lower_control()
    verify(graph)
    assert [n.op for n in graph.nodes] == ["if"]  # each branch has its own nodes
    np.testing.assert_allclose(run(net, [x, taken])[0], -x if taken else x + 1)


def test_conditional_inside_a_loop():
    x = f32(5)
    net = network()
    t = net.add_input("x", trt.float32, (5,))
    loop = counted(net, 5)
    v = loop.add_iterator(t).get_output(0)
    positive = ew(net, v, const(net, np.float32(0)), E.GREATER)
    choice = net.add_if_conditional()
    choice.set_condition(positive)
    inside = choice.add_input(v).get_output(0)
    result = choice.add_output(ew(net, inside, inside, E.PROD), inside).get_output(0)
    net.mark_output(loop.add_loop_output(result, L.CONCATENATE).get_output(0))
    np.testing.assert_allclose(run(net, [x])[0], np.where(x > 0, x * x, x), rtol=1e-6)


def test_loop_inside_a_branch():
    net = network()
    x, cond = net.add_input("x", trt.float32, ()), net.add_input("c", trt.bool, ())
    choice = net.add_if_conditional()
    choice.set_condition(cond)
    v = choice.add_input(x).get_output(0)
    loop = counted(net, 3)
    state = loop.add_recurrence(v)
    state.set_input(1, ew(net, state.get_output(0), v, E.PROD))
    power = loop.add_loop_output(state.get_output(0), L.LAST_VALUE).get_output(0)
    net.mark_output(choice.add_output(power, v).get_output(0))
    assert run(net, [np.float32(3), True])[0] == 81 and run(net, [np.float32(3), False])[0] == 3


def test_assertions_stay_in_the_body():
    net = network()
    x = net.add_input("x", trt.float32, (3,))
    loop = counted(net, 3)
    v = loop.add_iterator(x).get_output(0)
    net.add_assertion(ew(net, v, const(net, np.float32(5)), E.LESS), "too large")
    net.mark_output(loop.add_loop_output(v, L.CONCATENATE).get_output(0))
    assert run(net, [np.float32([1, 2, 3])])[0].tolist() == [1, 2, 3]
    with pytest.raises(AssertionError, match="too large"):
        run(net, [np.float32([1, 9, 3])])


def test_lowering_leaves_the_network_alone():
    net = network()
    t = net.add_input("x", trt.float32, (2, 3))
    _, y = branches(net, t, net.add_input("cond", trt.bool, ()))
    net.mark_output(y)
    before = str(net.graph)
    net.lower_control()
    assert str(net.graph) == before and net.num_layers == 6


def test_names_of_loops_are_kept():
    net = network()
    loop = counted(net, 2)
    loop.name = "scan"
    v = loop.add_iterator(net.add_input("x", trt.float32, (2,))).get_output(0)
    net.mark_output(loop.add_loop_output(v, L.CONCATENATE).get_output(0))
    assert [n.name for n in net.lower_control().nodes if n.op == "loop"] == ["scan"]


def no_limit(net, x):
    loop = net.add_loop()
    v = loop.add_iterator(x).get_output(0)
    net.mark_output(loop.add_loop_output(v, L.CONCATENATE).get_output(0))


def no_next(net, x):
    state = counted(net, 2).add_recurrence(x)
    net.mark_output(state.loop.add_loop_output(state.get_output(0), L.LAST_VALUE).get_output(0))


def no_condition(net, x):
    net.mark_output(net.add_if_conditional().add_output(x, x).get_output(0))


@pytest.mark.parametrize("build, says", [(no_limit, "trip limit"), (no_next, "set_input"),
                                         (no_condition, "condition")])
def test_incomplete_ones_are_named(build, says):
    net = network()
    build(net, net.add_input("x", trt.float32, (2,)))
    with pytest.raises(UsageError, match=says):
        net.lower_control()


@pytest.mark.parametrize("shape, dtype, kind, says", [
    ((2,), trt.int32, T.COUNT, "integer scalar"), ((), trt.float32, T.COUNT, "integer scalar"),
    ((), trt.int32, T.WHILE, "boolean scalar"),
])
def test_wrong_limits(shape, dtype, kind, says):
    net = network()
    net.add_loop().add_trip_limit(net.add_input("n", dtype, shape), kind)
    assert says in net._logger.errors[0]
