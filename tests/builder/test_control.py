"""If and Loop inside the native schedule, against onnxruntime."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import tactician

ort = pytest.importorskip("onnxruntime")
F, I, B = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
RNG = np.random.default_rng(0)


def info(name, kind=F, shape=()):
    return helper.make_tensor_value_info(name, kind, list(shape))


def model(nodes, inputs, outputs, **constants):
    weights = [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, weights)
    m = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(m)
    return m.SerializeToString()


def body(nodes, inputs, outputs):
    return helper.make_graph(nodes, "body", inputs, outputs)


def check(data, *feeds, native=True):
    """Every feed gives what onnxruntime gives; returns the engine."""
    engine = tactician.build(data)
    session = ort.InferenceSession(data)
    for feed in feeds:
        for want, (name, got) in zip(session.run(None, feed), engine(feed).items(), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6, err_msg=name)
    tactics = {s.info.get("tactic") for s in steps(engine)}
    assert ("reference" not in tactics) == native
    return engine


def steps(engine):
    return engine.cuda_engine._core.program.steps


def branch(op, outer="x", out="b"):
    return body([helper.make_node(op, [outer], [out])], [], [info(out, F, (4,))])


X = RNG.standard_normal(4).astype("f4")
BOTH = [{"c": np.array(v), "x": X} for v in (True, False)]


def test_if():
    node = helper.make_node(
        "If", ["c"], ["y"], then_branch=branch("Exp"), else_branch=branch("Neg")
    )
    check(model([node], [info("c", B), info("x", F, (4,))], [info("y", F, (4,))]), *BOTH)


def test_if_between_other_layers():
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("If", ["c"], ["y"], then_branch=branch("Exp", "r"),
                         else_branch=branch("Neg", "r")),
        helper.make_node("Add", ["y", "r"], ["z"]),
    ]
    check(model(nodes, [info("c", B), info("x", F, (4,))], [info("z", F, (4,))]), *BOTH)


def test_branch_that_passes_a_value_through():
    then = body([helper.make_node("Identity", ["x"], ["b"])], [], [info("b", F, (4,))])
    node = helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=branch("Neg"))
    check(model([node], [info("c", B), info("x", F, (4,))], [info("y", F, (4,))]), *BOTH)


def test_nested_if():
    inner = helper.make_node("If", ["d"], ["i"], then_branch=branch("Exp", out="e"),
                             else_branch=branch("Abs", out="f"))
    outer = body([inner, helper.make_node("Neg", ["i"], ["b"])], [], [info("b", F, (4,))])
    node = helper.make_node("If", ["c"], ["y"], then_branch=outer, else_branch=branch("Sqrt", "p"))
    nodes = [helper.make_node("Abs", ["x"], ["p"]), node]
    feeds = [{"c": np.array(c), "d": np.array(d), "x": X} for c in (True, False)
             for d in (True, False)]
    check(model(nodes, [info("c", B), info("d", B), info("x", F, (4,))],
                [info("y", F, (4,))]), *feeds)


def loop(nodes, carried, outputs, scans=(), cond="keep"):
    """A loop body: carried names map to (name in, name out, shape)."""
    ins = [info("i", I), info("go", B)] + [info(a, F, s) for a, _, s in carried]
    outs = [info(cond, B)] + [info(b, F, s) for _, b, s in carried]
    outs += [info(name, F, s) for name, s in scans]
    if cond == "keep":
        nodes = [helper.make_node("Identity", ["go"], ["keep"]), *nodes]
    return body(nodes, ins, outs)


@pytest.mark.parametrize("trips", [0, 1, 5])
def test_loop_with_scan(trips):
    nodes = [
        helper.make_node("Add", ["s", "x"], ["t"]),
        helper.make_node("Mul", ["t", "x"], ["row"]),
    ]
    graph = loop(nodes, [("s", "t", (4,))], ["y"], scans=[("row", (4,))])
    node = helper.make_node("Loop", ["n", "", "x"], ["y", "rows"], body=graph)
    data = model([node], [info("x", F, (4,))], [info("y", F, (4,)), info("rows", F, (trips, 4))],
                 n=np.int64(trips))
    check(data, {"x": X})


def test_trip_count_from_an_input():
    nodes = [helper.make_node("Mul", ["s", "half"], ["t"])]
    node = helper.make_node("Loop", ["n", "", "x"], ["y"],
                            body=loop(nodes, [("s", "t", (4,))], ["y"]))
    data = model([node], [info("n", I), info("x", F, (4,))], [info("y", F, (4,))],
                 half=np.float32(0.5))
    check(data, *({"n": np.array(n), "x": X} for n in (0, 1, 7)))


def test_carried_values_that_swap():
    nodes = [helper.make_node("Add", ["a", "b"], ["c"]),
             helper.make_node("Identity", ["b"], ["d"])]
    graph = loop(nodes, [("a", "d", (4,)), ("b", "c", (4,))], ["u", "v"])
    node = helper.make_node("Loop", ["n", "", "x", "x"], ["u", "v"], body=graph)
    check(model([node], [info("x", F, (4,))], [info("u", F, (4,)), info("v", F, (4,))],
                n=np.int64(6)), {"x": X})


def test_loop_that_ends_by_its_condition():
    nodes = [
        helper.make_node("Add", ["s", "one"], ["t"]),
        helper.make_node("ReduceMax", ["t"], ["m"], keepdims=0),
        helper.make_node("Less", ["m", "limit"], ["more"]),
    ]
    graph = loop(nodes, [("s", "t", (4,))], ["y"], cond="more")
    node = helper.make_node("Loop", ["n", "start", "x"], ["y"], body=graph)
    data = model([node], [info("x", F, (4,)), info("limit", F)], [info("y", F, (4,))],
                 n=np.int64(100), one=np.float32(1), start=np.array(True))
    check(data, *({"x": X, "limit": np.array(v, "f4")} for v in (-9.0, 3.0, 8.5)))


def test_if_inside_a_loop():
    nodes = [
        helper.make_node("Mod", ["i", "two"], ["odd"]),
        helper.make_node("Cast", ["odd"], ["flag"], to=B),
        helper.make_node("If", ["flag"], ["t"], then_branch=branch("Exp", "s"),
                         else_branch=branch("Neg", "s")),
    ]
    node = helper.make_node("Loop", ["n", "", "x"], ["y"],
                            body=loop(nodes, [("s", "t", (4,))], ["y"]))
    check(model([node], [info("x", F, (4,))], [info("y", F, (4,))], n=np.int64(3),
                two=np.int64(2)), {"x": X})


def test_growing_results_stay_with_the_reference():
    nodes = [helper.make_node("Concat", ["s", "x"], ["t"], axis=0)]
    ins = [info("i", I), info("go", B), info("s", F, (None,))]
    graph = body([helper.make_node("Identity", ["go"], ["keep"]), *nodes], ins,
                 [info("keep", B), info("t", F, (None,))])
    node = helper.make_node("Loop", ["n", "", "x"], ["y"], body=graph)
    data = model([node], [info("x", F, (4,))], [info("y", F, (None,))], n=np.int64(3))
    check(data, {"x": X}, native=False)


def carry_loop(moves, more=(), trips=4, shape=(4,), nodes=()):
    """A loop whose carried values are each other's former ones: ``moves`` maps new to old."""
    count = len(moves)
    nodes = [*nodes, *(helper.make_node("Identity", [f"a{moves[k]}"], [f"b{k}"])
                       for k in range(count))]
    carried = [(f"a{k}", f"b{k}", shape) for k in range(count)]
    outs = [f"y{k}" for k in range(count)]
    node = helper.make_node("Loop", ["n", "", *(f"x{k}" for k in range(count))], outs,
                            body=loop(nodes, carried, outs))
    data = model([node, *more], [info(f"x{k}", F, shape) for k in range(count)],
                 [info(f"z{k}" if more else f"y{k}", F, (2, 2) if more else shape)
                  for k in range(count)], n=np.int64(trips), two=np.array([2, 2]))
    check(data, {f"x{k}": RNG.standard_normal(shape).astype("f4") for k in range(count)})


@pytest.mark.parametrize("moves", [(1, 0), (5, 1, 2, 3, 4, 0), (1, 2, 3, 0), (3, 0, 1, 2),
                                   (1, 1, 0)], ids=str)
@pytest.mark.parametrize("trips", [1, 4])
def test_carried_values_that_change_places(moves, trips):
    carry_loop(moves, trips=trips)


def test_carried_values_that_change_places_in_outputs_of_another_shape():
    more = [helper.make_node("Reshape", [f"y{k}", "two"], [f"z{k}"]) for k in range(3)]
    carry_loop((2, 0, 1), more)


def test_condition_that_is_a_carried_value():
    """The condition of the next iteration is what the flag was before it changed."""
    ins = [info("i", I), info("go", B), info("f", B), info("s", F, (4,))]
    outs = [info("more", B), info("g", B), info("t", F, (4,))]
    nodes = [helper.make_node("Identity", ["f"], ["more"]), helper.make_node("Not", ["f"], ["g"]),
             helper.make_node("Add", ["s", "x"], ["t"])]
    node = helper.make_node("Loop", ["n", "", "flag", "x"], ["last", "y"],
                            body=body(nodes, ins, outs))
    data = model([node], [info("flag", B), info("x", F, (4,))],
                 [info("last", B), info("y", F, (4,))], n=np.int64(7))
    check(data, *({"flag": np.array(f), "x": X} for f in (True, False)))


def test_iteration_number_that_is_carried():
    ins = [info("i", I), info("go", B), info("k", I)]
    nodes = [helper.make_node("Identity", ["go"], ["more"]),
             helper.make_node("Identity", ["i"], ["j"])]
    node = helper.make_node("Loop", ["n", "", "start"], ["y"],
                            body=body(nodes, ins, [info("more", B), info("j", I)]))
    check(model([node], [info("start", I)], [info("y", I)], n=np.int64(3)),
          {"start": np.array(9)})
