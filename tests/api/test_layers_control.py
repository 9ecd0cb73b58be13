"""Loops and conditionals: kinds of outputs, nesting, trip counts that inputs decide."""

from __future__ import annotations

import numpy as np
import pytest
from apikit import Net, close, f32

import tactician as trt

E, O, T = trt.ElementWiseOperation, trt.LoopOutput, trt.TripLimit


def counted(net, count):
    loop = net.network.add_loop()
    loop.add_trip_limit(net.input(np.array(count, np.int32)), T.COUNT)
    return loop


class TestLoops:
    @pytest.mark.parametrize("reverse", [False, True])
    @pytest.mark.parametrize("kind, order", [(O.CONCATENATE, 1), (O.REVERSE, -1)])
    def test_running_sums_of_an_iterator(self, reverse, kind, order):
        x = f32(2, 4)
        net = Net()
        loop = counted(net, 4)
        loop.name = "sums"
        assert loop.name == "sums"
        iterator = loop.add_iterator(net.input(x), 0, False)
        iterator.axis, iterator.reverse = 1, reverse
        assert (iterator.axis, iterator.reverse) == (1, reverse)
        total = loop.add_recurrence(net.const(np.zeros(2, np.float32)))
        new = net.network.add_elementwise(total.get_output(0), iterator.get_output(0), E.SUM)
        total.set_input(1, new.get_output(0))
        scan = loop.add_loop_output(new.get_output(0), kind, 0)
        scan.axis = 1
        scan.set_input(1, net.const(np.int32(4)))
        last = loop.add_loop_output(total.get_output(0), O.LAST_VALUE)
        assert (scan.axis, scan.kind, last.kind) == (1, kind, O.LAST_VALUE)
        assert all(b.loop is loop or b.loop.name == "sums" for b in (iterator, total, scan))
        assert [type(b) for b in (iterator, total, scan)] == [
            trt.IIteratorLayer, trt.IRecurrenceLayer, trt.ILoopOutputLayer]
        steps, final = net.run(scan.get_output(0), last.get_output(0))
        sums = np.cumsum(x[:, ::-1] if reverse else x, 1)
        close(steps, sums[:, ::order])
        close(final, sums[:, -1])

    @pytest.mark.parametrize("count", [0, 1, 5])
    def test_trip_count_at_run_time(self, count):
        net = Net()
        limit = net.input(np.array(3, np.int32), "n")
        loop = net.network.add_loop()
        trips = loop.add_trip_limit(limit, T.COUNT)
        assert trips.kind == T.COUNT and type(trips) is trt.ITripLimitLayer
        x = loop.add_recurrence(net.input(f32(3), "x"))
        x.set_input(1, net.network.add_elementwise(
            x.get_output(0), net.const(np.full(3, 2, np.float32)), E.PROD).get_output(0))
        y = loop.add_loop_output(x.get_output(0), O.LAST_VALUE).get_output(0)
        profile = net.builder.create_optimization_profile()
        profile.set_shape_input("n", (0,), (3,), (8,))
        net.config.add_optimization_profile(profile)
        engine = trt.Engine(net.engine(y))
        close(engine(n=np.array(count, np.int32), x=f32(3))["y0"], f32(3) * 2.0**count)

    def test_while(self):
        """Doubles until something is at least 10."""
        net = Net()
        loop = net.network.add_loop()
        x = loop.add_recurrence(net.input(np.array([1, 3], np.float32)))
        worst = net.network.add_reduce(x.get_output(0), trt.ReduceOperation.MAX, 1, False)
        go_on = net.network.add_elementwise(
            worst.get_output(0), net.const(np.array(10, np.float32)), E.LESS)
        trips = loop.add_trip_limit(go_on.get_output(0), trt.TripLimit.WHILE)
        assert trips.kind == trt.TripLimit.WHILE
        x.set_input(1, net.network.add_elementwise(
            x.get_output(0), x.get_output(0), E.SUM).get_output(0))
        y = loop.add_loop_output(x.get_output(0), O.LAST_VALUE)
        close(net.run(y.get_output(0)), [4, 12])

    @pytest.mark.parametrize("outer, inner", [(2, 3), (3, 0), (1, 4)])
    def test_nested_with_scans(self, outer, inner):
        """Outer trips collect inner totals, whose trip count grows with the outer one."""
        net = Net()
        n, m = (net.input(np.array(c, np.int32), s) for c, s in ((outer, "n"), (inner, "m")))
        loop = net.network.add_loop()
        loop.add_trip_limit(n, T.COUNT)
        limit = loop.add_recurrence(m)
        x = loop.add_recurrence(net.input(f32(2), "x"))
        deep = net.network.add_loop()
        deep.add_trip_limit(limit.get_output(0), T.COUNT)
        y = deep.add_recurrence(x.get_output(0))
        y.set_input(1, net.network.add_elementwise(
            y.get_output(0), net.const(np.ones(2, np.float32)), E.SUM).get_output(0))
        total = deep.add_loop_output(y.get_output(0), O.LAST_VALUE).get_output(0)
        x.set_input(1, total)
        limit.set_input(1, net.network.add_elementwise(
            limit.get_output(0), net.const(np.int32(1)), E.SUM).get_output(0))
        scan = loop.add_loop_output(total, O.CONCATENATE, 0)
        scan.set_input(1, n)
        profile = net.builder.create_optimization_profile()
        for name in "nm":
            profile.set_shape_input(name, (0,), (3,), (8,))
        net.config.add_optimization_profile(profile)
        got = net.run(scan.get_output(0))
        want, value = [], f32(2)
        for i in range(outer):
            value = value + inner + i
            want.append(value)
        close(got, np.array(want))

    def test_incomplete_loops_are_named(self):
        net = Net()
        loop = net.network.add_loop()
        loop.name = "unbounded"
        x = loop.add_recurrence(net.input(f32(2)))
        x.set_input(1, x.get_output(0))
        y = loop.add_loop_output(x.get_output(0), O.LAST_VALUE)
        assert "unbounded" in net.fails(y.get_output(0))


class TestConditionals:
    def build(self, net, value):
        x = net.input(f32(3), "x")
        branch = net.network.add_if_conditional()
        branch.name = "pick"
        condition = branch.set_condition(net.input(np.array(value), "c"))
        inside = branch.add_input(x)
        yes = net.network.add_unary(inside.get_output(0), trt.UnaryOperation.EXP).get_output(0)
        no = net.network.add_unary(inside.get_output(0), trt.UnaryOperation.NEG).get_output(0)
        out = branch.add_output(yes, no)
        assert branch.name == "pick"
        assert {b.conditional.name for b in (condition, inside, out)} == {"pick"}
        assert [type(b) for b in (condition, inside, out)] == [
            trt.IConditionLayer, trt.IIfConditionalInputLayer, trt.IIfConditionalOutputLayer]
        return out.get_output(0)

    @pytest.mark.parametrize("value", [True, False])
    def test_either_branch(self, value):
        net = Net()
        close(net.run(self.build(net, value)), np.exp(f32(3)) if value else -f32(3))

    @pytest.mark.parametrize("positive", [True, False])
    def test_inside_a_loop(self, positive):
        """Collatz: the condition changes from trip to trip."""
        net = Net()
        start = net.input(np.array(6 if positive else 7, np.int32))
        loop = counted(net, 5)
        x = loop.add_recurrence(start)
        n = x.get_output(0)
        two = net.const(np.int32(2))
        half = net.network.add_elementwise(n, two, E.FLOOR_DIV).get_output(0)
        twice = net.network.add_elementwise(half, two, E.PROD).get_output(0)
        even = net.network.add_elementwise(n, twice, E.EQUAL).get_output(0)
        branch = net.network.add_if_conditional()
        branch.set_condition(even)
        inner = branch.add_input(n).get_output(0)
        down = net.network.add_elementwise(inner, two, E.FLOOR_DIV).get_output(0)
        up = net.network.add_elementwise(inner, net.const(np.int32(3)), E.PROD).get_output(0)
        up = net.network.add_elementwise(up, net.const(np.int32(1)), E.SUM).get_output(0)
        new = branch.add_output(down, up).get_output(0)
        x.set_input(1, new)
        scan = loop.add_loop_output(new, O.CONCATENATE, 0)
        scan.set_input(1, net.const(np.int32(5)))
        n, want = 6 if positive else 7, []
        for _ in range(5):
            n = n // 2 if n % 2 == 0 else 3 * n + 1
            want.append(n)
        assert list(net.run(scan.get_output(0))) == want

    def test_without_condition(self):
        net = Net()
        x = net.input(f32(2))
        branch = net.network.add_if_conditional()
        branch.name = "undecided"
        a = branch.add_input(x).get_output(0)
        b = net.network.add_unary(a, trt.UnaryOperation.EXP).get_output(0)
        y = branch.add_output(b, a).get_output(0)
        assert "undecided" in net.fails(y)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_loops_run_as_kernels_whatever_integer_counts_trips(dtype):
    net = Net()
    loop = net.network.add_loop()
    loop.add_trip_limit(net.const(np.array(3, dtype)), T.COUNT)
    x, k = f32(4, 4), f32(4, 4, seed=1)
    state = loop.add_recurrence(net.input(x))
    none = trt.MatrixOperation.NONE
    y = net.network.add_matrix_multiply(state.get_output(0), none, net.const(k), none)
    state.set_input(1, y.get_output(0))
    last = loop.add_loop_output(state.get_output(0), O.LAST_VALUE).get_output(0)
    engine = net.engine(last)
    assert "reference" not in {s.kind for s in engine._program.steps}
    close(trt.Engine(engine)(net.feeds)["y0"], x @ k @ k @ k, 1e-4)
