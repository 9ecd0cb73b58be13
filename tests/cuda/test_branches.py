"""Independent steps on several streams: what is ordered, and what a recorded graph computes."""

import numpy as np
import pytest
from onnx import TensorProto as T
from onnx import helper as h

import tactician
from tactician.builder import aux_streams
from tactician.memory.branches import Access, dependencies, is_straight, lanes, tails
from tactician.targets.cuda.host import host_driver

pytest.importorskip("triton", reason="the CUDA target needs Triton")

rng = np.random.default_rng(4)


def span(k):
    return (10 * k, 10 * k + 10)


def happens_before(places):
    """For each step, all steps that are certain to have ended when it begins."""
    ended, last = [], {}
    for i, p in enumerate(places):
        mine = set()
        for k in [*p.waits, *([last[p.stream]] if p.stream in last else [])]:
            if k >= 0:
                mine |= {k} | ended[k]
        ended.append(mine)
        last[p.stream] = i
    return ended


@pytest.mark.parametrize("streams", [1, 2, 3])
@pytest.mark.parametrize("seed", range(20))
def test_conflicts_are_ordered(streams, seed):
    pick = np.random.default_rng(seed)
    steps = [
        Access(tuple(span(k) for k in pick.integers(0, 9, pick.integers(0, 3))),
               tuple(span(k) for k in pick.integers(0, 9, pick.integers(1, 3))))
        for _ in range(25)
    ]
    places = lanes(steps, streams)
    assert all(0 <= p.stream < streams for p in places)
    ended = happens_before(places)
    conflicts = 0
    for i, a in enumerate(steps):
        for k, b in enumerate(steps[:i]):
            if {*a.writes} & {*b.writes, *b.reads} or {*a.reads} & {*b.writes}:
                assert k in ended[i], (i, k)
                conflicts += 1
    assert conflicts
    if streams == 1:
        assert is_straight(places) and not tails(places)


def test_a_residual_block_runs_on_two_streams():
    x, a, b, c, y = map(span, range(5))
    steps = [Access((x,), (a,)), Access((a,), (b,)), Access((x,), (c,)), Access((b, c), (y,))]
    assert dependencies(steps) == [[], [0], [], [2, 1]]
    places = lanes(steps, 2)
    assert [p.stream for p in places] == [0, 0, 1, 0]
    assert places[2].waits == [-1] and places[3].waits == [2]
    assert tails(places) == [2]


def test_parts_of_memory_that_meet():
    whole, part = Access((), ((0, 100),)), Access(((40, 50),), ((200, 201),))
    assert dependencies([whole, part, whole]) == [[], [0], [1]]


def network():
    """Two branches that meet: ``relu(x w1) w2 + softmax(x w3)``."""
    def weights(name, shape):
        values = (rng.standard_normal(shape) / 4).astype(np.float32)
        return h.make_tensor(name, T.FLOAT, shape, values.reshape(-1)), values

    tensors, w = zip(*(weights(f"w{k}", (32, 32)) for k in range(3)), strict=True)
    nodes = [
        h.make_node("MatMul", ["x", "w0"], ["a"]), h.make_node("Relu", ["a"], ["b"]),
        h.make_node("MatMul", ["x", "w2"], ["c"]), h.make_node("Softmax", ["c"], ["d"]),
        h.make_node("MatMul", ["b", "w1"], ["e"]), h.make_node("Add", ["e", "d"], ["y"]),
    ]
    value = h.make_tensor_value_info
    graph = h.make_graph(nodes, "g", [value("x", T.FLOAT, [16, 32])],
                         [value("y", T.FLOAT, [16, 32])], tensors)
    opsets = [h.make_opsetid("", 17)]
    return h.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString(), w


def test_a_graph_with_branches(monkeypatch):
    monkeypatch.setenv("TACTICIAN_GPU", "interpreter")
    driver = host_driver("interpreter", 90)
    data, (w0, w1, w2) = network()
    engine = tactician.build(data, device="gpu", level=0, tf32=False)
    engine.cuda_engine._program.settings["aux_streams"] = 2
    assert engine.cuda_engine.num_aux_streams == 2
    context = engine.cuda_engine.create_execution_context()
    x = rng.standard_normal((16, 32)).astype(np.float32)
    at, out = driver.put(x), driver.alloc(x.nbytes)
    context.set_tensor_address("x", at)
    context.set_tensor_address("y", out)
    e = np.exp(x @ w2 - (x @ w2).max(1, keepdims=True))
    want = np.maximum(x @ w0, 0) @ w1 + e / e.sum(1, keepdims=True)
    for _ in range(3):
        driver.fill(out, 0x7F, x.nbytes)
        assert context.execute_async_v3(0)
        assert np.allclose(driver.get(out, x.shape, "f4"), want, atol=1e-5)
    assert context._current.has_branches


@pytest.mark.parametrize(("times", "chosen"), [([2.0, 1.0], 1), ([2.0, 1.99], 0), ([], 0)])
def test_streams_are_chosen_by_time(monkeypatch, times, chosen):
    monkeypatch.setenv("TACTICIAN_GPU", "interpreter")
    engine = tactician.build(network()[0], device="gpu", level=0)
    program = engine.cuda_engine._program
    driver = host_driver("interpreter", 90)
    program.settings["aux_streams"] = 1
    assert aux_streams._timed(engine.cuda_engine, driver, True) > 0
    monkeypatch.setattr(aux_streams, "_times", lambda program, most: times)
    aux_streams.choose_streams(program, -1, None)
    assert program.settings["aux_streams"] == chosen
    aux_streams.choose_streams(program, 0, None)
    assert engine.cuda_engine.num_aux_streams == chosen


def test_a_chain_has_no_branches(monkeypatch):
    monkeypatch.setenv("TACTICIAN_GPU", "interpreter")
    x, y, z = (h.make_tensor_value_info(n, T.FLOAT, [4, 40]) for n in "xyz")
    nodes = [h.make_node("Softmax", ["x"], ["a"], axis=0), h.make_node("Softmax", ["a"], ["y"]),
             h.make_node("CumSum", ["y", "one"], ["z"])]
    one = h.make_tensor("one", T.INT64, [], [1])
    model = h.make_model(h.make_graph(nodes, "g", [x], [y, z], [one]),
                         opset_imports=[h.make_opsetid("", 17)], ir_version=8)
    engine = tactician.build(model.SerializeToString(), device="gpu", level=0)
    engine.cuda_engine._program.settings["aux_streams"] = 1
    driver = host_driver("interpreter", 90)
    assert aux_streams._timed(engine.cuda_engine, driver, True) is None
