"""Small things: values, interfaces with defaults, tensors, layers, loggers, enums as numbers."""

from __future__ import annotations

import numpy as np
import pytest
from api_usage import read_inventory, resolve
from apikit import Log, Net, f32

import tactician as trt


class TestAllocators:
    """Methods of versions 7 to 10.12 lead to each other."""

    class Counting(trt.IGpuAllocator):
        def __init__(self):
            trt.IGpuAllocator.__init__(self)
            self.freed = []

        def allocate(self, size, alignment, flags):
            return size + flags

        def deallocate(self, memory):
            self.freed.append(memory)
            return True

    def test_defaults(self):
        a = self.Counting()
        flag = 1 << int(trt.AllocatorFlag.RESIZABLE)
        assert a.allocate_async(64, 32, flag, 7) == 64 + flag
        assert a.deallocate_async(5, 7) and a.free(6) is None and a.freed == [5, 6]
        assert a.reallocate(64, 32, 128) is None
        info = a.interface_info
        assert (info.kind, info.major, info.minor) == ("Counting", 1, 0)
        assert a.api_language == trt.APILanguage.PYTHON and a.api_language != trt.APILanguage.CPP

    def test_async(self):
        class Async(trt.IGpuAsyncAllocator):
            def __init__(self):
                trt.IGpuAsyncAllocator.__init__(self)
                self.streams = []

            def allocate_async(self, size, alignment, flags, stream):
                self.streams.append(stream)
                return size

            def deallocate_async(self, memory, stream):
                self.streams.append(-stream)
                return True

        a = Async()
        assert a.allocate(8, 1, 0) == 8 and a.deallocate(8) and a.streams == [0, 0]
        assert a.allocate_async(8, 1, 0, 3) == 8 and a.deallocate_async(8, 3)
        assert a.streams == [0, 0, 3, -3]

    def test_async_allocators_serve_contexts(self):
        class Async(trt.IGpuAsyncAllocator):
            def __init__(self):
                trt.IGpuAsyncAllocator.__init__(self)
                self.blocks = {}

            def allocate_async(self, size, alignment, flags, stream):
                block = np.empty(size + alignment, np.uint8)
                address = block.ctypes.data + -block.ctypes.data % alignment
                self.blocks[address] = block
                return address

            def deallocate_async(self, memory, stream):
                return self.blocks.pop(memory, None) is not None

        net = Net()
        x = net.input(f32(4, 4), "x")
        s = net.network.add_softmax(x).get_output(0)
        y = net.network.add_softmax(s).get_output(0)
        plan = net.engine(y).serialize()
        runtime, allocator = trt.Runtime(Log()), Async()
        runtime.gpu_allocator = allocator
        engine = runtime.deserialize_cuda_engine(plan)
        context, out = engine.create_execution_context(), np.empty((4, 4), np.float32)
        assert context.execute_v2([net.feeds["x"].ctypes.data, out.ctypes.data])
        assert bool(allocator.blocks) is (engine.device_memory_size > 0)
        del context
        assert not allocator.blocks

    def test_what_must_be_implemented(self):
        with pytest.raises(NotImplementedError, match="allocate"):
            trt.IGpuAllocator().allocate(1, 1, 0)
        with pytest.raises(NotImplementedError, match="reallocate_output"):
            trt.IOutputAllocator().reallocate_output("x", 0, 1, 1)
        assert isinstance(trt.InterfaceInfo("x", 2, 3), trt.InterfaceInfo)
        assert isinstance(trt.IGpuAllocator(), trt.IVersionedInterface)


class TestNetwork:
    def test_creation_flags(self):
        log = Log()
        builder = trt.Builder(log)
        kinds = trt.NetworkDefinitionCreationFlag
        flags = 1 << kinds.EXPLICIT_BATCH | 1 << kinds.STRONGLY_TYPED
        network = builder.create_network(flags)
        assert network.flags == flags and network.builder is builder
        assert network.get_flag(kinds.STRONGLY_TYPED)
        assert not network.get_flag(kinds.PREFER_AOT_PYTHON_PLUGINS)
        assert not network.get_flag(kinds.PREFER_JIT_PYTHON_PLUGINS)
        assert not network.has_explicit_precision
        network.name = "mine"
        assert network.name == "mine" and network.num_layers == 0

    def test_layers_and_tensors(self):
        net = Net()
        x = net.input(f32(2, 3), "x")
        layer = net.network.add_unary(x, trt.UnaryOperation.EXP)
        layer.metadata = "from line 7"
        assert layer.metadata == "from line 7" and layer.num_ranks == 1
        layer.num_ranks = 2
        assert layer.num_ranks == 1 and "one device" in net.log.errors
        assert x.is_network_input and not layer.get_output(0).is_network_input
        assert layer.get_input(0) is x and (layer.num_inputs, layer.num_outputs) == (1, 1)
        assert layer.type == trt.LayerType.UNARY and net.network.get_layer(0) == layer

    def test_progress_of_a_build(self):
        class Monitor(trt.IProgressMonitor):
            def __init__(self, stop=None):
                trt.IProgressMonitor.__init__(self)
                self.open, self.steps, self.stop = [], 0, stop

            def phase_start(self, phase_name, parent_phase, num_steps):
                self.open.append(phase_name)

            def step_complete(self, phase_name, step):
                self.steps += 1
                return self.stop is None or self.steps < self.stop

            def phase_finish(self, phase_name):
                self.open.remove(phase_name)

        net = Net()
        y = net.network.add_unary(net.input(f32(2), "x"), trt.UnaryOperation.EXP).get_output(0)
        net.config.progress_monitor = whole = Monitor()
        net.engine(y)
        assert whole.steps > 0 and not whole.open
        net.config.progress_monitor = early = Monitor(stop=1)
        assert net.builder.build_serialized_network(net.network, net.config) is None
        assert early.steps == 1 and not early.open and "cancelled" in net.log.errors


@pytest.mark.parametrize("name", sorted(
    n for n in read_inventory() if isinstance(resolve(trt, n), type)
    and hasattr(resolve(trt, n), "__members__")))
def test_enums_are_like_bindings(name):
    """Values convert to int without being ints, and every name finds its value. (Members are
    looked up without using them, so that this counts for none.)"""
    kind = resolve(trt, name)
    for member in read_inventory()[name] - {"itemsize"}:
        value = kind.__members__[member]
        assert kind(int(value)) is value and not isinstance(value, int)
        assert str(value) == f"{kind.__name__}.{value.name}" and 1 << value == 1 << int(value)
        assert kind[member] is value and hash(value) == hash(int(value))


def test_sizes_of_types():
    sizes = {trt.float32: 4, trt.float16: 2, trt.bfloat16: 2, trt.int64: 8, trt.int32: 4,
             trt.int8: 1, trt.uint8: 1, trt.bool: 1, trt.fp8: 1, trt.e8m0: 1,
             trt.int4: 0.5, trt.fp4: 0.5}
    assert {t: t.itemsize for t in sizes} == sizes
