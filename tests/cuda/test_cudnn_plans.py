"""The real cuDNN, where it is installed, plans for a GPU that is not there."""

import ctypes

import pytest

from tactician.targets.cuda import cudnn_call, cudnn_graph, libraries
from tactician.targets.cuda.arch import named_gpu

missing = libraries.unavailable("cudnn")
if missing is None:
    try:  # its engines are linked with the driver from cuDNN 9.2x on
        ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        missing = f"this cuDNN loads its engines only where there is a driver: {error}"
pytestmark = pytest.mark.skipif(missing is not None, reason=missing or "")


def convolution(residual=False, dt="f16"):
    def last(c, h):
        return (c * h * h, 1, c * h, c)

    g = cudnn_graph.GraphSpec()
    x, w = g.tensor(dt, (2, 64, 28, 28), last(64, 28)), g.tensor(dt, (32, 64, 3, 3), last(64, 3))
    shape = (2, 32, 28, 28)
    t = g.op("conv", (x, w), g.tensor("f32", shape, last(32, 28), virtual=True), stride=(1, 1),
             pre=(1, 1), post=(1, 1), dilation=(1, 1))
    g.pointers = [x, w]
    operands = [((1, 32, 1, 1), (32, 1, 32, 32))]
    if residual:
        operands.insert(0, (shape, last(32, 28)))
    for dims, strides in operands:
        g.pointers.append(g.tensor(dt, dims, strides))
        out = g.tensor("f32", shape, last(32, 28), virtual=True)
        t = g.op("pointwise", (t, g.pointers[-1]), out, fn="add")
    g.pointers.append(g.tensor(dt, shape, last(32, 28)))
    g.op("pointwise", (t,), g.pointers[-1], fn="relu")
    return g


@pytest.mark.parametrize("gpu", ["sm_80", "sm_90"])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("dt", ["f16", "f32"])
def test_plans_without_a_gpu(gpu, residual, dt):
    planner = cudnn_call.Planner(named_gpu(gpu))
    spec = convolution(residual, dt)
    assert planner.configs(spec), "no engine"
    payload, workspace = planner.payload(spec, 0)
    head, text = libraries.unpack(payload)
    assert head["version"] == libraries.version("cudnn") and workspace >= 0
    assert cudnn_graph.GraphSpec.from_json(head["graph"]) == spec
    again = cudnn_graph.load_plan(text.decode(), planner.device)
    assert again.workspace == workspace


def test_tf32_can_be_forbidden():
    planner = cudnn_call.Planner(named_gpu("sm_90"))
    spec = convolution(dt="f32")
    free, strict = planner.configs(spec, True), planner.configs(spec, False)
    assert strict and all(0 not in cudnn_graph.notes(c)[0] for c in strict)
    assert any(0 in cudnn_graph.notes(c)[0] for c in free)


def test_errors_have_cudnns_words():
    spec = convolution()
    spec.ops[0].attrs["stride"] = (3, 3)
    with pytest.raises(libraries.LibraryError, match="status"):
        cudnn_graph.operation_graph(spec)
