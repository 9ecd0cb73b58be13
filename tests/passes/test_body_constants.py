"""Constants that bodies of control flow capture."""

import numpy as np
import pytest

import tactician as trt
from tactician.ir.dtypes import f16
from tactician.ops.interpreter import run_graph
from tactician.passes.pipeline import narrow, optimize

W = np.random.default_rng(0).standard_normal((8, 8)).astype("f4") / 3


@pytest.fixture
def loop():
    """x @ W @ W @ W by a loop."""
    network = trt.Builder(trt.Logger(trt.Logger.ERROR)).create_network()
    x = network.add_input("x", trt.float32, (4, 8))
    w = network.add_constant((8, 8), W).get_output(0)
    loop = network.add_loop()
    trips = network.add_constant((), np.array(3, np.int32)).get_output(0)
    loop.add_trip_limit(trips, trt.TripLimit.COUNT)
    state = loop.add_recurrence(x)
    none = trt.MatrixOperation.NONE
    product = network.add_matrix_multiply(state.get_output(0), none, w, none)
    state.set_input(1, product.get_output(0))
    out = loop.add_loop_output(state.get_output(0), trt.LoopOutput.LAST_VALUE)
    network.mark_output(out.get_output(0))
    return network.lower_control()


def test_weights_become_the_bodys_own(loop):
    x = np.ones((4, 8), "f4")
    want = run_graph(loop, [x])[0]
    np.testing.assert_allclose(want, x @ W @ W @ W, rtol=1e-5)
    optimize(loop)
    body = next(n for n in loop.nodes if n.op == "loop").subgraphs[0]
    product = next(n for n in body.nodes if n.op == "matmul")
    assert product.inputs[1].const is not None
    narrow(loop, f16)
    assert [n.op for n in body.nodes].count("cast") == 2  # the state's, not the weights'
    np.testing.assert_allclose(run_graph(loop, [x])[0], want, rtol=1e-2, atol=1e-3)
