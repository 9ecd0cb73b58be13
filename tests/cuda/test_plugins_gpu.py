"""Plugins in engines for CUDA get device addresses and the stream; here the device's memory is
the host's, so that they may compute with numpy."""

from __future__ import annotations

import ctypes
import time

import numpy as np
import pytest

pytest.importorskip("triton", reason="the CUDA target compiles with Triton")

import tactician as trt
import tactician.plugin as trtp
from tactician.support.errors import ExecutionError
from tactician.targets.cuda.foreign import ForeignKernels
from tactician.targets.cuda.host import host_driver

X = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
SEEN: list[tuple[str, tuple[int, ...], int]] = []


def at(address: int, shape, dtype=np.float32) -> np.ndarray:
    count = int(np.prod(shape))
    raw = (ctypes.c_byte * max(count * np.dtype(dtype).itemsize, 1)).from_address(int(address))
    return np.frombuffer(raw, dtype, count).reshape(shape)


@pytest.fixture(autouse=True)
def driver(monkeypatch):
    monkeypatch.setenv("TACTICIAN_GPU", "interpreter")
    monkeypatch.setenv("TACTICIAN_DEVICE", "gpu")
    SEEN.clear()
    return host_driver("interpreter", 90)


class Base(trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuildV2, trt.IPluginV3OneRuntime):
    def __init__(self, fields=None):
        for base in Base.__mro__[1:5]:
            base.__init__(self)
        self.plugin_name, self.plugin_version, self.plugin_namespace = type(self).__name__, "1", ""
        self.num_outputs = 1

    def get_capability_interface(self, type):
        return self

    def get_output_data_types(self, types):
        return types[:1]

    def get_output_shapes(self, inputs, shape_inputs, builder):
        return [inputs[0]]

    def clone(self):
        twin = type(self)()
        twin.__dict__.update(self.__dict__)
        return twin

    def attach_to_context(self, context):
        return self.clone()


class Twice(Base):
    """Notes where it was called."""

    def on_shape_change(self, ins, outs):
        SEEN.append(("shape", tuple(ins[0].dims), 0))

    def get_workspace_size(self, ins, outs):
        return 64

    def enqueue(self, ins, outs, inputs, outputs, workspace, stream):
        SEEN.append(("call", (*inputs, *outputs, workspace), stream))
        at(outputs[0], outs[0].dims)[...] = 2 * at(inputs[0], ins[0].dims)


def build(make, shape=(4, 6), profile=None, plugin_of=trt.INetworkDefinition.add_plugin_v3):
    """An engine: relu, the plugin, minus one on its first output."""
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    net, config = builder.create_network(0), builder.create_builder_config()
    x = net.add_input("x", trt.float32, shape)
    relu = net.add_activation(x, trt.ActivationType.RELU).get_output(0)
    layer = make(net, relu)
    neg = net.add_unary(layer.get_output(0), trt.UnaryOperation.NEG).get_output(0)
    neg.name = "y"
    net.mark_output(neg)
    if profile:
        p = builder.create_optimization_profile()
        p.set_shape("x", *profile)
        config.add_optimization_profile(p)
    config.builder_optimization_level = 0
    plan = builder.build_serialized_network(net, config)
    assert plan is not None
    return trt.Runtime(trt.Logger(trt.Logger.ERROR)).deserialize_cuda_engine(plan)


def registered(monkeypatch, *classes):
    for cls in classes:
        made = type("C", (trt.IPluginCreatorV3One,), {
            "name": cls.__name__, "plugin_version": "1", "plugin_namespace": "",
            "field_names": trt.PluginFieldCollection([]),
            "create_plugin": lambda self, name, fields, phase, cls=cls: cls(fields)})()
        registry = trt.get_plugin_registry()
        assert registry.register_creator(made, "")
        yield_back.append((registry, made))


yield_back: list = []


@pytest.fixture(autouse=True)
def forget():
    yield
    while yield_back:
        registry, made = yield_back.pop()
        registry.deregister_creator(made)


def go(engine, driver, x, context=None):
    context = context or engine.create_execution_context()
    context.set_input_shape("x", x.shape)
    context.set_tensor_address("x", driver.put(x))
    y = driver.alloc(4 * int(np.prod(x.shape)))
    context.set_tensor_address("y", y)
    assert context.execute_async_v3(0)
    return driver.get(y, x.shape, np.float32), context


def test_addresses_stream_and_shapes(driver, monkeypatch):
    registered(monkeypatch, Twice)
    engine = build(lambda net, x: net.add_plugin_v3([x], [], Twice()), (-1, 6),
                   [(1, 6), (4, 6), (8, 6)])
    SEEN.clear()
    y, context = go(engine, driver, X)
    np.testing.assert_array_equal(y, -2 * np.maximum(X, 0))
    more = np.concatenate([X, X])
    for x in (X, more, more):
        y, _ = go(engine, driver, x, context)
        np.testing.assert_array_equal(y, -2 * np.maximum(x, 0))
    assert [s[1] for s in SEEN if s[0] == "shape"] == [(4, 6), (8, 6)]
    calls = [s for s in SEEN if s[0] == "call"]
    assert len(calls) == 4 and all(s[2] == 0 for s in calls)
    blocks = sorted((a, a + b.nbytes) for a, b in driver._blocks.items())
    assert all(any(a <= p < e for a, e in blocks) for p in calls[-1][1])  # device memory


class Positive(Base):
    """Rows of the positive elements: their count is known when it ran."""

    def __init__(self, fields=None):
        super().__init__(fields)
        self.num_outputs = 2

    def get_output_data_types(self, types):
        return [types[0], trt.int64]

    def get_output_shapes(self, inputs, shape_inputs, builder):
        most = builder.operation(trt.DimensionOperation.PROD, inputs[0][0], inputs[0][1])
        n = builder.declare_size_tensor(1, builder.constant(4), most)
        return [trt.DimsExprs([n]), trt.DimsExprs(0)]

    def enqueue(self, ins, outs, inputs, outputs, workspace, stream):
        x = at(inputs[0], ins[0].dims)
        found = x[x > 0]
        at(outputs[0], outs[0].dims).reshape(-1)[:found.size] = found
        at(outputs[1], (), np.int64)[...] += found.size  # it is zero before each run


class Allocator(trt.IOutputAllocator):
    def __init__(self, driver):
        super().__init__()
        self.driver, self.shape, self.address = driver, None, 0

    def reallocate_output_async(self, name, memory, size, alignment, stream):
        self.address = self.driver.alloc(max(size, 1))
        return self.address

    def notify_shape(self, name, shape):
        self.shape = tuple(shape)


def test_sizes_that_depend_on_data(driver, monkeypatch):
    registered(monkeypatch, Positive)
    engine = build(lambda net, x: net.add_plugin_v3([x], [], Positive()))
    context = engine.create_execution_context()
    for x in (X, -np.abs(X), np.abs(X), X):
        context.set_tensor_address("x", driver.put(x))
        mine = Allocator(driver)
        context.set_output_allocator("y", mine)
        assert context.execute_async_v3(0)
        want = -x[x > 0]
        assert mine.shape == want.shape
        np.testing.assert_array_equal(driver.get(mine.address, want.shape, np.float32), want)


class InPlace(Base):
    """Adds 5 to its input; the output is that."""

    def get_aliased_input(self, index):
        return 0

    def enqueue(self, ins, outs, inputs, outputs, workspace, stream):
        at(inputs[0], ins[0].dims)[...] += 5


@pytest.mark.parametrize("where", ["interpreter", "cpu"])
def test_outputs_that_share_memory_with_inputs(driver, monkeypatch, where):
    registered(monkeypatch, InPlace)
    if where == "cpu":
        monkeypatch.setenv("TACTICIAN_DEVICE", "cpu")

    def twice(net, x):
        first = net.add_plugin_v3([x], [], InPlace())
        return net.add_plugin_v3([first.get_output(0)], [], InPlace())

    y, _ = go(build(twice), driver, X)
    np.testing.assert_allclose(y, -(np.maximum(X, 0) + 10), rtol=1e-6)


class Tactics(Base):
    """Tactic 2 fails, 7 is slow, 9 is quick."""

    def get_valid_tactics(self):
        return [2, 7, 9]

    def set_tactic(self, tactic):
        self.tactic = tactic

    def enqueue(self, ins, outs, inputs, outputs, workspace, stream):
        if self.tactic == 2:
            raise RuntimeError("no such kernel")
        time.sleep(0.02 if self.tactic == 7 else 0)
        at(outputs[0], outs[0].dims)[...] = self.tactic
        SEEN.append(("tactic", (self.tactic,), 0))


def test_the_fastest_tactic_is_chosen(driver, monkeypatch):
    registered(monkeypatch, Tactics)
    engine = build(lambda net, x: net.add_plugin_v3([x], [], Tactics()))
    y, context = go(engine, driver, X)
    assert (y == -9).all() and {s[1] for s in SEEN} == {(7,), (9,)}
    SEEN.clear()
    go(engine, driver, X, context)
    go(engine, driver, X)  # another context asks no more
    assert [s[1] for s in SEEN] == [(9,), (9,)]


class Legacy(trt.IPluginV2DynamicExt):
    """Needs `initialize` before it is told shapes."""

    plugin_type, plugin_version, num_outputs = "Legacy", "1", 1

    def __init__(self):
        trt.IPluginV2DynamicExt.__init__(self)
        self.ready, self.shape = False, None

    def initialize(self):
        self.ready = True

    def get_output_datatype(self, index, types):
        return types[0]

    def get_output_dimensions(self, index, inputs, builder):
        return inputs[0]

    def configure_plugin(self, ins, outs):
        if self.ready:
            self.shape = tuple(ins[0].desc.dims)

    def supports_format_combination(self, pos, in_out, count):
        return in_out[pos].type == trt.float32

    def serialize(self):
        return b""

    def enqueue(self, ins, outs, inputs, outputs, workspace, stream):
        at(outputs[0], self.shape)[...] = at(inputs[0], self.shape) + 1


class Fixed(trt.IPluginV2):
    """Of a fixed shape."""

    plugin_type, plugin_version, num_outputs = "Fixed", "1", 1

    def get_output_shape(self, index, shapes):
        return shapes[0]

    def serialize(self):
        return b""

    def execute_async(self, batch, inputs, outputs, workspace, stream):
        SEEN.append(("fixed", (), stream))
        at(outputs[0], (4, 6))[...] = at(inputs[0], (4, 6)) + 1
        return 0


@pytest.mark.parametrize("cls", [Legacy, Fixed])
def test_version_2(driver, cls):
    made = type("C", (trt.IPluginCreator,), {
        "name": cls.__name__, "plugin_version": "1", "plugin_namespace": "",
        "field_names": trt.PluginFieldCollection([]),
        "deserialize_plugin": lambda self, name, data: cls()})()
    yield_back.append((trt.get_plugin_registry(), made))
    trt.get_plugin_registry().register_creator(made, "")
    engine = build(lambda net, x: net.add_plugin_v2([x], cls()))
    y, _ = go(engine, driver, X)
    np.testing.assert_allclose(y, -(np.maximum(X, 0) + 1), rtol=1e-6)


def test_failures_name_the_layer(driver, monkeypatch):
    class Broken(Base):
        def enqueue(self, *args):
            raise ValueError("out of order")

    registered(monkeypatch, Broken)

    def make(net, x):
        layer = net.add_plugin_v3([x], [], Broken())
        layer.name = "the broken one"
        return layer

    engine = build(make)
    with pytest.raises(ExecutionError, match=r"the broken one.*out of order"):
        go(engine, driver, X)


def test_plugins_that_want_the_hosts_memory(driver, monkeypatch):
    class OnHost(Twice):
        host_memory = True

    registered(monkeypatch, OnHost)
    y, _ = go(build(lambda net, x: net.add_plugin_v3([x], [], OnHost())), driver, X)
    np.testing.assert_array_equal(y, -2 * np.maximum(X, 0))
    blocks = sorted((a, a + b.nbytes) for a, b in driver._blocks.items())
    addresses = next(s[1] for s in SEEN if s[0] == "call")
    assert not any(a <= p < e for p in addresses for a, e in blocks)


# --- quick plugins --------------------------------------------------------------------------


@trtp.register("gpukit::shift")
def describe_shift(x: trtp.TensorDesc, by: int) -> trtp.TensorDesc:
    return x.like()


@trtp.impl("gpukit::shift")
def shift(x, by: int, outputs, stream):
    assert not hasattr(x, "__array_interface__") and x.shape == (4, 6)
    face = x.__cuda_array_interface__
    assert face["typestr"] == "<f4" and face["version"] == 3
    whole = outputs[0].aliased((24,))
    assert whole.is_aliased() and whole.shape.numel() == 24
    at(whole.data_ptr, whole.shape)[...] = at(face["data"][0], (24,)) + by


@trtp.aot_impl("gpukit::shift")
def compile_shift(x, by: int, outputs, tactic):
    launch = trtp.KernelLaunchParams()
    launch.grid_x, launch.block_x = trtp.cdiv(x.shape_expr.numel(), 16), 32
    extra = trtp.SymIntExprs.from_tuple([trtp.SymInt32(by), trtp.SymInt32(x.numel())])
    return b"add_kernel", b"PTX", launch, extra


def test_quick_plugins_see_device_tensors(driver):
    engine = build(lambda net, x: net.add_plugin(trtp.op.gpukit.shift(x, by=3)))
    y, _ = go(engine, driver, X)
    np.testing.assert_allclose(y, -(np.maximum(X, 0) + 3), rtol=1e-6)


def test_compiled_kernels_are_launched(driver, monkeypatch):
    calls = []

    def load(self, image, name, shared=0):
        assert (image, name, shared) == (b"PTX", "add_kernel", 0)
        return "function"

    def launch(self, function, grid, block, shared, params, stream=0):
        source, by, count, to, *hidden = params
        assert function == "function" and [int(p) for p in hidden] == [0, 0]
        assert by.dtype == count.dtype == np.int32 and source.dtype == np.uint64
        calls.append((grid, block, stream))
        at(to, (int(count),))[...] = at(source, (int(count),)) + int(by)

    monkeypatch.setattr(ForeignKernels, "load_image", load)
    monkeypatch.setattr(ForeignKernels, "launch_function", launch)
    engine = build(lambda net, x: net.add_plugin(trtp.op.gpukit.shift(x, by=4), aot=True))
    y, _ = go(engine, driver, X)
    np.testing.assert_allclose(y, -(np.maximum(X, 0) + 4), rtol=1e-6)
    assert calls == [((2, 1, 1), (32, 1, 1), 0)]


def test_compiled_kernels_need_a_gpu(driver):
    engine = build(lambda net, x: net.add_plugin(trtp.op.gpukit.shift(x, by=4), aot=True))
    with pytest.raises(ExecutionError, match="compiled for a GPU, and there is none here"):
        go(engine, driver, X)


@trtp.register("gpukit::bump")
def describe_bump(x: trtp.TensorDesc, by: int) -> trtp.TensorDesc:
    return x.aliased()


@trtp.impl("gpukit::bump")
def bump(x, by: int, outputs, stream):
    at(x.data_ptr, x.shape)[...] += by


def test_quick_plugins_in_place(driver):
    def make(net, x):
        first = net.add_plugin(trtp.op.gpukit.bump(x, by=2))
        return net.add_plugin(trtp.op.gpukit.bump(first.get_output(0), by=4))

    y, _ = go(build(make), driver, X)
    np.testing.assert_allclose(y, -(np.maximum(X, 0) + 6), rtol=1e-6)
