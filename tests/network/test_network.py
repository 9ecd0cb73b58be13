"""Networks: names, outputs, errors, and tensors as views."""

import json

import numpy as np
import pytest
from netkit import add_inputs, const, f32, network, run

import tactician as trt
from tactician.ops import OpError
from tests.conftest import shared_path

A = trt.ActivationType


def chain(net, n=3, shape=(-1, 4)):
    t = net.add_input("x", trt.float32, shape)
    for _ in range(n):
        t = net.add_activation(t, A.RELU).get_output(0)
    return t


def test_names_are_tensorrts():
    net = network()
    x = net.add_input("x", trt.float32, (2, 4, 8, 8))
    conv = net.add_convolution_nd(x, 2, (3, 3), f32(2, 4, 3, 3))
    act = net.add_activation(conv.get_output(0), A.RELU)
    topk = net.add_topk(act.get_output(0), trt.TopKOperation.MAX, 1, 2)
    assert conv.name == "(Unnamed Layer* 0) [Convolution]"
    assert act.get_output(0).name == "(Unnamed Layer* 1) [Activation]_output"
    assert topk.get_output(1).name == "(Unnamed Layer* 2) [TopK]_output_2"
    conv.name = "stem"
    assert net.graph.nodes[0].name == "stem" and net[0].name == "stem"
    assert net.name == "Unnamed Network 0"


def test_a_layer_is_listed_indexed_and_iterated():
    net = network()
    t = chain(net)
    assert net.num_layers == len(net) == 3 and net and net.get_layer(0).name in net[0].name
    assert [layer.type for layer in net] == [trt.LayerType.ACTIVATION] * 3
    assert net.get_layer(9) is None and "3 layers" in net._logger.errors[-1]
    with pytest.raises(IndexError):
        _ = net[3]
    layer = net[2]
    layer.__class__ = trt.IActivationLayer  # how programs cast down
    assert layer.type is A.RELU and layer == net[2] and layer.get_output(0) is t
    layer.type = A.TANH
    assert net.graph.nodes[2].attrs.fn == "tanh"


def test_tensors_have_identity():
    net = network()
    t = chain(net)
    assert t is net[2].get_output(0) and net[2].get_input(0) == net[1].get_output(0)
    net.mark_output(t)
    assert net.get_output(0) is t and t.is_network_output and net.num_outputs == 1
    net.unmark_output(t)
    assert net.num_outputs == 0 and net.get_output(0) is None and net[0].get_input(3) is None


def test_attributes_change_shapes_downstream():
    net = network()
    x = net.add_input("x", trt.float32, (-1, 4, 8, 8))
    conv = net.add_convolution_nd(x, 6, (3, 3), f32(6, 4, 3, 3))
    flat = net.add_shuffle(net.add_activation(conv.get_output(0), A.RELU).get_output(0))
    flat.reshape_dims = (0, -1)
    out = flat.get_output(0)
    assert out.shape == (-1, 6 * 36)
    conv.padding_nd = (1, 1)
    assert out.shape == (-1, 6 * 64) and conv.pre_padding == (1, 1) == conv.padding
    conv.stride = trt.DimsHW(2, 2)
    assert out.shape == (-1, 6 * 16) and conv.stride_nd == (2, 2)
    x.shape = (3, 4, 4, 4)
    assert out.shape == (3, 6 * 4)


def test_lists_are_copied():
    net = network()
    x = net.add_input("x", trt.float32, (4, 4))
    start = [0, 0]
    layer = net.add_slice(x, start, [2, 2], [1, 1])
    start[0] = 3
    assert layer.start == (0, 0) and layer.get_output(0).shape == (2, 2)


def test_later_layers_may_feed_earlier_ones():
    net = network()
    x = net.add_input("x", trt.float32, (2, 2))
    first = net.add_elementwise(x, x, trt.ElementWiseOperation.SUM)
    late = net.add_unary(x, trt.UnaryOperation.NEG)
    first.set_input(1, late.get_output(0))
    net.mark_output(first.get_output(0))
    assert not run(net, [f32(2, 2)])[0].any()


def test_an_invalid_layer_is_reported_when_it_is_used():
    net = network()
    x, y = (net.add_input(n, trt.float32, s) for n, s in (("x", (2, 3)), ("y", (4,))))
    layer = net.add_elementwise(x, y, trt.ElementWiseOperation.SUM)
    (error,) = net._logger.errors
    for part in ("(Unnamed Layer* 0) [ElementWise]", "x: f32[2, 3]", "y: f32[4]", "shuffle"):
        assert part in error
    with pytest.raises(ValueError, match="one rank"):
        tuple(layer.get_output(0).shape)
    assert any("one rank" in e for e in net.check())
    layer.set_input(1, x)
    assert layer.get_output(0).shape == (2, 3) and len(net.check()) == 1


@pytest.mark.parametrize("call, says", [
    (lambda n, x: n.add_activation(None, A.RELU), "None"),
    (lambda n, x: n.add_input("x", trt.float32, (1,)), "already"),
    (lambda n, x: n.add_input("z", trt.float32, (-2,)), "-2"),
    (lambda n, x: n.add_concatenation([x, None]), "None"),
])
def test_clearly_wrong_arguments_give_none(call, says):
    net = network()
    assert call(net, net.add_input("x", trt.float32, (2,))) is None
    assert says in net._logger.errors[0] and net.num_layers == 0 and net.num_inputs == 1


@pytest.mark.parametrize("call, says", [
    (lambda n, x: n.add_reduce(x, trt.ReduceOperation.SUM, 8, False), "bit mask"),
    (lambda n, x: n.add_convolution_nd(x, 2, (3, 3), f32(5)), "4 dimensions"),
    (lambda n, x: n.add_convolution_nd(x, 2, (3,), f32(5)), "5 weights"),
    (lambda n, x: n.add_convolution_nd(x, 2, (3,), None), "no kernel"),
    (lambda n, x: n.add_constant((3,), f32(2)), "3 weights"),
    (lambda n, x: n.add_shuffle(x).__setattr__("first_transpose", (0, 0, 1)), "permutation"),
    (lambda n, x: n.add_shuffle(x).__setattr__("reshape_dims", (5, -1)), "reshape"),
    (lambda n, x: n.add_slice(x, (0,), (1,), (1,)), "3 are needed"),
    (lambda n, x: n.add_resize(x), "scales"),
    (lambda n, x: n.add_fill((2, 2), trt.FillOperation.LINSPACE), "beta"),
])
def test_wrong_layers_are_named_at_the_check(call, says):
    net = network()
    call(net, net.add_input("x", trt.float32, (2, 3, 4)))
    errors = [e for e in net.check() if "no outputs" not in e]
    assert len(errors) == 1 and says in errors[0] and "(Unnamed Layer* 0)" in errors[0]


def test_wrong_types_raise():
    net, other = network(), network()
    x = other.add_input("x", trt.float32, (2,))
    with pytest.raises(TypeError, match="ITensor"):
        net.add_activation("x", A.RELU)
    with pytest.raises(ValueError, match="another network"):
        net.add_activation(x, A.RELU)
    with pytest.raises(ValueError):
        other.add_activation(x, 99)


def test_outputs():
    net = network()
    t = chain(net, 1)
    net.mark_output(t)
    net.mark_output(t)
    assert "already" in net._logger.errors[0] and net.num_outputs == 1
    net.mark_output(net.get_input(0))
    assert "input" in net._logger.errors[1]
    net.remove_tensor(t)
    assert net.num_outputs == 0
    net.remove_tensor(net.get_input(0))
    assert "still read" in net._logger.errors[-1]


def test_debug_tensors():
    net = network()
    t = chain(net, 1)
    assert net.mark_debug(t) and net.is_debug_tensor(t) and net.unmark_debug(t)
    assert not net.is_debug_tensor(t) and not net.unmark_debug(t)
    assert net.mark_unfused_tensors_as_debug_tensors()
    assert net.unmark_unfused_tensors_as_debug_tensors()


def test_shape_tensors():
    net = network()
    x = net.add_input("x", trt.float32, (-1, -1, 4))
    s = net.add_input("s", trt.int32, (2,))
    shape = net.add_shape(x).get_output(0)
    last = net.add_slice(shape, (1,), (2,), (1,)).get_output(0)
    reshape = net.add_shuffle(x)
    reshape.set_input(1, s)
    assert reshape.get_output(0).shape == (-1, -1)
    plain = net.add_input("ids", trt.int32, (2,))
    net.add_gather(x, plain, 0)
    assert s.is_shape_tensor and not s.is_execution_tensor and shape.dtype is trt.int64
    assert not plain.is_shape_tensor and plain.is_execution_tensor and not x.is_shape_tensor
    assert net.mark_output_for_shapes(last) and last.is_shape_tensor
    assert net.unmark_output_for_shapes(last) and not net.unmark_output_for_shapes(last)
    assert not net.mark_output_for_shapes(x)


def test_shapes_computed_from_shapes_are_known():
    net = network()
    x = net.add_input("x", trt.float32, (-1, 3, 4))
    shape = net.add_shape(x).get_output(0)
    n = net.add_slice(shape, (0,), (1,), (1,)).get_output(0)
    twelve = const(net, np.array([12], np.int64))
    new = net.add_concatenation([n, twelve])
    reshape = net.add_shuffle(x)
    reshape.set_input(1, new.get_output(0))
    out = reshape.get_output(0)
    assert out.shape == (-1, 12) and out._v.shape[0] == x._v.shape[0]
    assert reshape.reshape_dims == ()


def test_named_dimensions_are_equal():
    net = network()
    x, y = (net.add_input(n, trt.float32, (-1, 3)) for n in "xy")
    x.set_dimension_name(0, "n")
    y.set_dimension_name(0, "n")
    total = net.add_elementwise(x, y, trt.ElementWiseOperation.SUM).get_output(0)
    assert x.get_dimension_name(0) == "n" and x.get_dimension_name(1) is None
    assert total._v.shape[0] == x._v.shape[0] == y._v.shape[0]


def test_tensor_hints():
    net = network()
    t = chain(net, 1)
    t.name, t.location = "y", trt.TensorLocation.HOST
    t.dynamic_range = (-2, 2)
    assert (t.name, t.location, t.dynamic_range) == ("y", trt.TensorLocation.HOST, (-2.0, 2.0))
    assert t.get_dynamic_range() == 2 and not t.set_dynamic_range(3, -3)
    t.reset_dynamic_range()
    t.allowed_formats = 1 << int(trt.TensorFormat.LINEAR)
    assert t.dynamic_range is None and t.allowed_formats == 1 and not t.broadcast_across_batch


def test_renaming_an_input_keeps_its_dimensions():
    net = network()
    t = chain(net)
    x = net.get_input(0)
    x.name = "image"
    assert {s.source for s in net.graph.symbols.values()} == {"image"} and t.shape == (-1, 4)


def test_output_types_and_precision():
    net = network()
    x = net.add_input("x", trt.float32, (2,))
    layer = net.add_identity(x)
    out = layer.get_output(0)
    net.mark_output(out)
    assert not layer.precision_is_set and not layer.output_type_is_set(0)
    layer.precision = trt.float16
    layer.set_output_type(0, trt.int32)
    assert layer.get_output(0) is out and out.dtype is trt.int32 and layer.precision_is_set
    assert run(net, [np.float32([1.9, -2])])[0].tolist() == [1, -2]
    layer.reset_output_type(0)
    layer.reset_precision()
    assert out.dtype is trt.float32 and not layer.precision_is_set and len(net.graph.nodes) == 1
    out.dtype = trt.float16
    assert layer.get_output_type(0) is trt.float16 is out.dtype


def test_weights_have_names():
    net = network()
    x = net.add_input("x", trt.float32, (1, 2, 4, 4))
    kernel = f32(3, 2, 3, 3)
    conv = net.add_convolution_nd(x, 3, (3, 3), trt.Weights(kernel))
    before = kernel.copy()
    kernel_view = kernel[:]
    assert net.set_weights_name(trt.Weights(kernel_view), "k")
    assert not net.set_weights_name(f32(9), "nothing")
    assert net.mark_weights_refittable("k") and net.are_weights_marked_refittable("k")
    assert not net.mark_weights_refittable("other") and net.unmark_weights_refittable("k")
    kernel[:] = 0
    np.testing.assert_array_equal(conv.kernel, before.reshape(-1))
    assert conv.bias.size == 0 and net.graph.nodes[0].inputs[1].name == "k"


def test_kernels_may_be_tensors():
    net = network()
    x, k = add_inputs(net, [f32(1, 2, 4, 4), f32(3, 2, 3, 3)])
    conv = net.add_convolution_nd(x, 3, (3, 3), trt.Weights())
    conv.set_input(1, k)
    assert conv.get_output(0).shape == (1, 3, 2, 2) and conv.num_inputs == 2


def test_add_op():
    net = network()
    x = net.add_input("x", trt.float32, (3, 3))
    (y,) = net.add_op("trilu", [x, None], name="low", upper=False)
    assert y.shape == (3, 3) and net.num_layers == 1 and net[0].type is trt.LayerType.OP
    with pytest.raises(OpError, match=r"'two'.*from node 7"):
        net.add_op("concat", [x, y, const(net, f32(2))], name="two", source="node 7", axis=0)
    assert len(net.graph.nodes) == 2


def test_shape_of_an_invalid_input_is_inferred_again():
    net = network()
    x = net.add_input("x", trt.float32, (2, 3))
    cut = net.add_slice(x, trt.Dims(), trt.Dims(), trt.Dims())
    act = net.add_activation(cut.get_output(0), A.RELU)
    for i, v in enumerate(([0, 1], [2, 2], [1, 1]), 1):
        cut.set_input(i, const(net, np.array(v, np.int32)))
    assert act.get_output(0).shape == (2, 2) and cut.start == ()


def test_implicit_batch():
    net = network(implicit_batch=True)
    x = net.add_input("data", trt.float32, (1, 6, 6))
    conv = net.add_convolution(x, 2, trt.DimsHW(3, 3), f32(2, 1, 3, 3))
    pool = net.add_pooling(conv.get_output(0), trt.PoolingType.MAX, (2, 2))
    pool.stride = (2, 2)
    fc = net.add_fully_connected(pool.get_output(0), 5, f32(5, 8))
    soft = net.add_softmax(fc.get_output(0))
    net.mark_output(soft.get_output(0))
    assert net.has_implicit_batch_dimension and x.shape == (1, 6, 6)
    assert (conv.get_output(0).shape, pool.get_output(0).shape) == ((2, 4, 4), (2, 2, 2))
    assert soft.get_output(0).shape == (5, 1, 1) and net.check() == []
    graph = net.lower_control()
    from tactician.ops.interpreter import run_graph

    (y,) = run_graph(graph, [f32(3, 1, 6, 6)])
    assert y.shape == (3, 5, 1, 1)
    np.testing.assert_allclose(y.sum((1, 2, 3)), 1, rtol=1e-5)
    assert net.add_input("bad", trt.float32, (-1,)) is None


def test_implicit_batch_follows_version(monkeypatch):
    assert not trt.INetworkDefinition(0).has_implicit_batch_dimension
    monkeypatch.setenv("TACTICIAN_TRT_VERSION", "8.6.1")
    assert trt.INetworkDefinition(0).has_implicit_batch_dimension
    assert not trt.INetworkDefinition(1).has_implicit_batch_dimension


def test_error_recorder_hears_of_errors():
    seen = []

    class Recorder(trt.IErrorRecorder):
        def __init__(self):
            trt.IErrorRecorder.__init__(self)

        def report_error(self, code, text):
            seen.append((code, text))
            return False

    net = network()
    net.error_recorder = Recorder()
    net.get_layer(4)
    assert seen[0][0] is trt.ErrorCodeTRT.INVALID_ARGUMENT


NETWORK_HALF = ("I*Layer", "INetworkDefinition", "ITensor", "ILoop", "IIfConditional", "Dims",
                "Weights", "Permutation", "IHostMemory", "Logger", "IPlugin", "PluginField",
                "IExprBuilder", "IDimensionExpr", "IGpu", "IStream", "IProfiler", "IInt8",
                "IAlgorithm", "IAttention", "IOutputAllocator", "IRNN", "IDebug", "IProgress")


@pytest.mark.parametrize("file", ["tensorrt10.json", "tensorrt11_additions.json", "legacy.json"])
def test_every_class_of_the_network_half_is_complete(file):
    missing = []
    for name, entry in json.loads(shared_path("api", file).read_text()).items():
        ours = any(name.startswith(p) or (p == "I*Layer" and name.endswith("Layer"))
                   for p in NETWORK_HALF)
        if not (isinstance(entry, dict) and entry.get("kind") == "class" and ours):
            continue
        cls = getattr(trt, name)
        known = {k for c in cls.__mro__ for k in vars(c).get("__annotations__", ())}
        missing += [f"{name}.{m}" for m in entry["members"]
                    if m not in known and not hasattr(cls, m)]
    assert not missing


def test_argument_names_match_the_inventory():
    import inspect
    import re

    wrong = []
    entry = json.loads(shared_path("api", "tensorrt10.json").read_text())["INetworkDefinition"]
    for method, signatures in entry["signatures"].items():
        if isinstance(signatures, str) or method == "add_plugin":
            continue
        want = {a for s in signatures for a in re.findall(r"(\w+): ", s.split("->")[0])}
        have = set(inspect.signature(getattr(trt.INetworkDefinition, method)).parameters)
        if not want <= have:
            wrong.append((method, want - have))
    assert not wrong


def test_a_shape_tensor_replaces_the_shape_and_what_it_assumed():
    net = network()
    x = net.add_input("x", trt.float32, (-1, 3))
    shuffle = net.add_shuffle(x)
    shuffle.reshape_dims = (1, 3, 1)  # holds for one size only
    sizes = net.add_concatenation([
        net.add_shape(x).get_output(0), const(net, np.int64([1]))]).get_output(0)
    shuffle.set_input(1, sizes)
    net.mark_output(shuffle.get_output(0))
    (node,) = [n for n in net.graph.nodes if n.op == "reshape"]
    assert not node.meta.get("assumptions") and shuffle.get_output(0).shape == (-1, 3, 1)
