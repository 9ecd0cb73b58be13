"""Engines and contexts on programs made by hand, run in numpy."""

import threading

import numpy as np
import pytest
from handmade import exp_sum_program, reference_program

import tactician as trt
import tactician.driver as cuda
from tactician.ir import dims as D
from tactician.ir.dtypes import f32, i64
from tactician.ir.graph import Graph, SymbolInfo
from tactician.ops import emit, get
from tactician.plan.format import write_plan
from tactician.plan.program import Profile
from tactician.support.errors import ExecutionError, PlanError


class Log(trt.ILogger):
    def __init__(self):
        super().__init__()
        self.lines = []

    def log(self, severity, msg):
        self.lines.append((severity, msg))

    @property
    def errors(self):
        return "\n".join(m for s, m in self.lines if s <= trt.ILogger.ERROR)


@pytest.fixture
def log():
    return Log()


def load(program, log):
    return trt.Runtime(log).deserialize_cuda_engine(bytes(write_plan(program)))


def expected(x):
    return np.exp(x) + np.arange(3, dtype=np.float32)


X = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)


def test_execute_v2(log):
    engine = load(exp_sum_program(), log)
    context = engine.create_execution_context()
    y = np.zeros_like(X)
    bindings = [X.ctypes.data, y.ctypes.data]
    for _ in range(2):
        y[:] = 0
        assert context.execute_v2(bindings) is True
        np.testing.assert_allclose(y, expected(X), rtol=1e-6)
    other = np.zeros_like(X)
    bindings[1] = other.ctypes.data  # the same list, changed in place
    assert context.execute_v2(bindings=bindings) and np.array_equal(other, y)
    assert not log.errors


def test_classic_program(log):
    """The steps of a program of version 7."""
    with load(exp_sum_program(), log) as engine, engine.create_execution_context() as context:
        h_in = cuda.pagelocked_empty(trt.volume(engine.get_binding_shape(0)), np.float32)
        h_out = cuda.pagelocked_empty(trt.volume(engine.get_binding_shape(1)), np.float32)
        d_in, d_out = cuda.mem_alloc(h_in.nbytes), cuda.mem_alloc(h_out.nbytes)
        stream = cuda.Stream()
        np.copyto(h_in, X.ravel())
        cuda.memcpy_htod_async(d_in, h_in, stream)
        assert context.execute_async(
            bindings=[int(d_in), int(d_out)], stream_handle=stream.handle
        )
        cuda.memcpy_dtoh_async(h_out, d_out, stream)
        stream.synchronize()
    np.testing.assert_allclose(h_out.reshape(2, 3), expected(X), rtol=1e-6)


def test_tensor_api(log):
    engine = load(exp_sum_program(), log)
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    assert names == ["x", "y"]
    assert engine.get_tensor_mode("x") == trt.TensorIOMode.INPUT
    assert engine.get_tensor_mode("y") == trt.TensorIOMode.OUTPUT
    assert engine.get_tensor_mode("z") == trt.TensorIOMode.NONE
    assert engine.get_tensor_shape("y") == (2, 3)
    assert engine.get_tensor_dtype("x") == trt.DataType.FLOAT
    context = engine.create_execution_context()
    y = np.zeros_like(X)
    assert context.set_tensor_address("x", X.ctypes.data)
    assert context.set_tensor_address("y", y.ctypes.data)
    stream = cuda.Stream()
    assert context.execute_async_v3(stream_handle=stream.handle)
    stream.synchronize()
    np.testing.assert_allclose(y, expected(X), rtol=1e-6)
    y[:] = 0
    assert context.execute_async_v3(0) and y.any()
    assert context.get_tensor_address("y") == y.ctypes.data
    assert context.get_tensor_strides("y") == (3, 1)


def test_null_target_runs_nothing(log):
    program = exp_sum_program()
    program.target = "null"
    context, y = load(program, log).create_execution_context(), np.zeros_like(X)
    assert context.execute_v2([X.ctypes.data, y.ctypes.data]) and not y.any()


def test_bindings_api(log):
    engine = load(exp_sum_program(), log)
    assert list(engine) == ["x", "y"] and len(engine) == engine.num_bindings == 2
    assert engine[0] == "x" and engine["y"] == 1 == engine.get_binding_index("y")
    assert [engine.binding_is_input(n) for n in engine] == [True, False]
    assert engine.get_binding_dtype("x") == trt.DataType.FLOAT
    assert engine.get_binding_format(0) == trt.TensorFormat.LINEAR
    assert engine.get_binding_bytes_per_component(0) == 4 and engine.max_batch_size == 1
    assert engine.get_location(1) == trt.TensorLocation.DEVICE
    with pytest.raises(IndexError):
        engine[2]
    assert engine.get_binding_index("nope") == -1 and "nope" in log.errors


def test_dynamic_shapes(log):
    engine = load(exp_sum_program("n"), log)
    assert engine.get_tensor_shape("x") == (-1, 3)
    assert engine.get_tensor_profile_shape("x", 0) == [(1, 3), (4, 3), (8, 3)]
    context = engine.create_execution_context()
    assert context.infer_shapes() == ["x"] and not context.all_binding_shapes_specified
    assert context.get_tensor_shape("y") == (-1, 3)
    for n in (2, 8, 1, 2):
        x = np.random.default_rng(n).standard_normal((n, 3)).astype(np.float32)
        y = np.zeros_like(x)
        assert context.set_input_shape("x", x.shape)
        assert context.get_tensor_shape("y") == (n, 3) and context.infer_shapes() == []
        assert context.execute_v2([x.ctypes.data, y.ctypes.data])
        np.testing.assert_allclose(y, expected(x), rtol=1e-6)
    assert context.get_max_output_size("y") == 24
    assert context.all_binding_shapes_specified and not log.errors
    assert context.set_binding_shape(0, (4, 3)) and context.get_binding_shape(1) == (4, 3)
    assert engine.device_memory_size >= 8 * 3 * 4


@pytest.mark.parametrize("shape, reason", [
    ((9, 3), "goes from (1, 3) to (8, 3)"), ((0, 3), "dimension 0 is 0"),
    ((2, 4), "dimension 1 is 3 in the network"), ((2,), "2 dimensions"), (("a", 3), "'x'"),
    ((-1, 3), "must be given"),
])
def test_wrong_shapes(log, shape, reason):
    context = load(exp_sum_program("n"), log).create_execution_context()
    assert context.set_input_shape("x", shape) is False
    assert reason in log.errors


@pytest.mark.parametrize("use, reason", [
    (lambda c: c.execute_v2([1]), "expected 2 bindings (x, y), got 1"),
    (lambda c: c.execute_v2([0, 64]), "the address of input 'x' is not set"),
    (lambda c: c.execute_v2([64, 0]), "the address of output 'y' is not set"),
    (lambda c: c.execute_v2([None, 64]), "bindings must be addresses"),
    (lambda c: c.execute_async_v3(0), "set_tensor_address"),
    (lambda c: c.execute_async_v3(12345678), "belongs to no stream"),
    (lambda c: c.execute_async_v2([64, 64], 12345678), "belongs to no stream"),
    (lambda c: c.set_tensor_address("q", 1), "no input or output 'q'; it has 'x', 'y'"),
    (lambda c: c.set_tensor_address("x", "here"), "no address"),
    (lambda c: c.set_tensor_address("x", -1), "negative"),
    (lambda c: c.set_input_shape("y", (2, 3)), "no input 'y'"),
    (lambda c: c.set_output_allocator("x", None), "no output 'x'"),
    (lambda c: c.set_optimization_profile_async(1, 0), "profile 1 of 1"),
    (lambda c: c.report_to_profiler(), "set a profiler"),
    (lambda c: c.set_input_consumed_event(99999999), "no event"),
    (lambda c: c.set_tensor_debug_state("x", True), "no debug tensor"),
])
def test_wrong_use_is_logged(log, use, reason):
    class Recorder:
        errors = []

        def report_error(self, code, desc):
            self.errors.append((code, desc))

    context = load(exp_sum_program(), log).create_execution_context()
    context.error_recorder = Recorder()
    assert use(context) is False
    assert reason in log.errors and reason in Recorder.errors[-1][1]


def test_shape_not_set(log):
    context = load(exp_sum_program("n"), log).create_execution_context()
    assert context.execute_v2([64, 64]) is False
    assert "the shape (or, for shape inputs, address) of 'x' is not set" in log.errors


def test_failing_layer(log, monkeypatch):
    def boom(self, node, *inputs):
        raise KeyError("boom")

    monkeypatch.setattr(type(get("unary")), "reference", boom)
    context = load(exp_sum_program(), log).create_execution_context()
    y = np.zeros_like(X)
    with pytest.raises(ExecutionError, match=r"layer 'exp' \[unary\] failed: KeyError: 'boom'"):
        context.execute_v2([X.ctypes.data, y.ctypes.data])
    stream = cuda.Stream()
    assert context.execute_async_v2([X.ctypes.data, y.ctypes.data], stream.handle)
    with pytest.raises(ExecutionError, match="layer 'exp'"):
        stream.synchronize()
    assert "layer 'exp'" in log.errors


def test_many_contexts_and_threads(log):
    engine = load(exp_sum_program("n"), log)
    wrong = []

    def work(seed):
        context = engine.create_execution_context()
        rng = np.random.default_rng(seed)
        for _ in range(50):
            x = rng.standard_normal((rng.integers(1, 9), 3)).astype(np.float32)
            y = np.zeros_like(x)
            context.set_input_shape("x", x.shape)
            context.execute_v2([x.ctypes.data, y.ctypes.data])
            if not np.allclose(y, expected(x), rtol=1e-5):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_queued_runs_keep_their_own_addresses_and_shapes(log):
    engine = load(exp_sum_program("n"), log)
    context, stream, gate = engine.create_execution_context(), cuda.Stream(), threading.Event()
    stream.submit(lambda: gate.wait(10))
    xs = [np.full((n, 3), n / 10, np.float32) for n in (1, 5, 3)]
    ys = [np.zeros_like(x) for x in xs]
    for x, y in zip(xs, ys, strict=True):
        context.set_input_shape("x", x.shape)
        context.set_tensor_address("x", x.ctypes.data)
        context.set_tensor_address("y", y.ctypes.data)
        assert context.execute_async_v3(stream.handle)
    assert not any(y.any() for y in ys)
    gate.set()
    stream.synchronize()
    for x, y in zip(xs, ys, strict=True):
        np.testing.assert_allclose(y, expected(x), rtol=1e-6)


def test_synchronous_run_after_queued_ones(log):
    """No deadlock, and in order: the default stream waits for the others."""
    context = load(exp_sum_program(), log).create_execution_context()
    stream, y, z = cuda.Stream(), np.zeros_like(X), np.zeros_like(X)
    stream.submit(lambda: threading.Event().wait(0.05))
    assert context.execute_async_v2([X.ctypes.data, y.ctypes.data], stream.handle)
    assert context.execute_v2([y.ctypes.data, z.ctypes.data])
    np.testing.assert_allclose(z, expected(expected(X)), rtol=1e-5)


def test_input_consumed_event(log):
    context = load(exp_sum_program(), log).create_execution_context()
    y, event, stream = np.zeros_like(X), cuda.Event(), cuda.Stream()
    assert context.set_input_consumed_event(event.handle)
    assert context.get_input_consumed_event() == event.handle
    context.set_tensor_address("x", X.ctypes.data)
    context.set_tensor_address("y", y.ctypes.data)
    assert context.execute_async_v3(stream.handle)
    event.synchronize()
    assert y.any()


def test_profiler(log):
    seen = []

    class Profiler:
        def report_layer_time(self, layer_name, ms):
            seen.append((layer_name, ms))

    context = load(exp_sum_program(), log).create_execution_context()
    context.profiler = Profiler()
    y = np.zeros_like(X)
    bindings = [X.ctypes.data, y.ctypes.data]
    assert context.execute_v2(bindings)
    assert [n for n, _ in seen] == ["exp", "add"] and all(ms >= 0 for _, ms in seen)
    context.enqueue_emits_profile = False
    assert context.execute_v2(bindings) and len(seen) == 2
    assert context.report_to_profiler() and len(seen) == 4


def test_debug_listener(log):
    shown = {}

    class Listener:
        def process_debug_tensor(self, addr, location, type, shape, name, stream):
            shown[name] = (cuda.from_device(addr, tuple(shape), np.float32), type, tuple(shape))

    program = exp_sum_program()
    name = program.tensors[program.steps[0].outputs[0]].name
    program.settings["debug_tensors"] = (name,)
    engine = load(program, log)
    context = engine.create_execution_context()
    assert engine.is_debug_tensor(name) and not engine.is_debug_tensor("x")
    assert context.set_debug_listener(Listener())
    y = np.zeros_like(X)
    bindings = [X.ctypes.data, y.ctypes.data]
    assert context.execute_v2(bindings) and not shown
    assert context.set_tensor_debug_state(name, True) and context.get_debug_state(name)
    assert context.execute_v2(bindings)
    np.testing.assert_allclose(shown[name][0], np.exp(X), rtol=1e-6)
    assert shown[name][1:] == (trt.DataType.FLOAT, (2, 3))


class Allocator:
    def __init__(self):
        super().__init__()
        self.blocks, self.shapes, self.calls = {}, {}, 0

    def reallocate_output(self, tensor_name, memory, size, alignment):
        self.calls += 1
        self.blocks[tensor_name] = cuda.mem_alloc(max(size, 1))
        return int(self.blocks[tensor_name])

    def notify_shape(self, tensor_name, shape):
        self.shapes[tensor_name] = tuple(shape)


def test_output_allocator(log):
    context = load(exp_sum_program("n"), log).create_execution_context()
    allocator = Allocator()
    assert context.set_output_allocator("y", allocator)
    assert context.get_output_allocator("y") is allocator
    for n in (2, 5):
        x = np.ones((n, 3), np.float32)
        context.set_input_shape("x", x.shape)
        context.set_tensor_address("x", x.ctypes.data)
        assert context.execute_async_v3(0)
        assert allocator.shapes == {"y": (n, 3)}
        got = cuda.from_device(allocator.blocks["y"], (n, 3), np.float32)
        np.testing.assert_allclose(got, expected(x), rtol=1e-6)


def non_zero_program():
    """out = gather(x, flat indices of x's non-zeros) + 1, of a size that x's contents decide."""
    g = Graph("dds")
    x = g.add_input("x", f32, (D.sym("n"),))
    g.symbols["n"] = SymbolInfo("n", "dim", "x", 0)
    found = emit(g, "non_zero", [x], "find")
    squeezed = emit(g, "squeeze", [found.output, g.constant(np.array([0]))], "flat").output
    taken = emit(g, "gather", [x, squeezed], "take", axis=0).output
    y = emit(g, "binary", [taken, g.constant(np.float32(1).reshape(1))], "plus", fn="add").output
    y.name, squeezed.name = "y", "where"
    for s in {s for v in g.values() for d in v.dims for s in D.symbols(d)}:
        if s.startswith("%") and s not in g.symbols:
            g.symbols[s] = SymbolInfo(s, "data", s[1:].split(".")[0], 0, 0, D.sym("n"))
    g.outputs = [y, squeezed]
    return reference_program(g, [Profile({"x": ((1,), (4,), (100,))})])


def test_sizes_that_depend_on_data(log):
    engine = load(non_zero_program(), log)
    context = engine.create_execution_context()
    allocator = Allocator()
    for name in ("y", "where"):
        assert context.set_output_allocator(name, allocator)
    for values in ([0, 3, 0, 5], [1, 2, 3, 4, 5], [0, 0], [7]):
        x = np.array(values, np.float32)
        assert context.set_input_shape("x", x.shape)
        assert context.get_tensor_shape("y") == (-1,)
        assert context.set_tensor_address("x", x.ctypes.data)
        assert context.execute_async_v3(0), log.errors
        where = np.flatnonzero(x)
        assert allocator.shapes == {"y": where.shape, "where": where.shape}
        got = cuda.from_device(allocator.blocks["y"], where.shape, np.float32)
        np.testing.assert_array_equal(got, x[where] + 1)
        assert context.get_tensor_shape("y") == where.shape
    assert context.get_max_output_size("y") == 4 and not log.errors


def test_data_dependent_output_in_a_large_enough_buffer(log):
    context = load(non_zero_program(), log).create_execution_context()
    x = np.array([0, 3, 0, 5], np.float32)
    y, where = np.zeros(4, np.float32), np.zeros(4, np.int64)
    context.set_input_shape("x", (4,))
    assert context.execute_v2([x.ctypes.data, y.ctypes.data, where.ctypes.data])
    assert y.tolist() == [4, 6, 0, 0] and where.tolist() == [1, 3, 0, 0]
    assert context.get_tensor_shape("where") == (2,)


def shape_input_program():
    """y = reshape(x, shape) where the shape is an input."""
    g = Graph("reshape")
    x = g.add_input("x", f32, (6,))
    s = g.add_input("s", i64, (2,))
    s.content = np.array([D.sym("s@0"), D.sym("s@1")], dtype=object)
    for i in range(2):
        g.symbols[f"s@{i}"] = SymbolInfo(f"s@{i}", "value", "s", i)
    y = emit(g, "reshape", [x, s], "re").output
    y = emit(g, "unary", [y], "neg", fn="neg").output
    y.name = "y"
    g.outputs = [y]
    p = reference_program(
        g, [Profile({"x": ((6,),) * 3, "s": ((2,),) * 3}, {"s": ((1, 1), (2, 3), (6, 6))})]
    )
    next(t for t in p.tensors if t.name == "s").is_shape = True
    return p


def test_shape_inputs(log):
    engine = load(shape_input_program(), log)
    assert engine.is_shape_inference_io("s") and engine.is_shape_binding(1)
    assert engine.get_tensor_location("s") == trt.TensorLocation.HOST
    assert engine.get_tensor_profile_values("s", 0) == [[1, 1], [2, 3], [6, 6]]
    context = engine.create_execution_context()
    x, s, y = np.arange(6, dtype=np.float32), np.array([2, 3]), np.zeros(6, np.float32)
    assert context.infer_shapes() == ["s"] and not context.all_shape_inputs_specified
    assert context.set_tensor_address("s", s.ctypes.data) and context.infer_shapes() == []
    assert context.get_tensor_shape("y") == (2, 3)
    s[:] = 6, 1  # read when shapes are computed, not when the address was set
    assert context.get_tensor_shape("y") == (6, 1)
    assert context.execute_v2([x.ctypes.data, s.ctypes.data, y.ctypes.data])
    assert np.array_equal(y, -x)


def test_shape_inputs_by_binding(log):
    context = load(shape_input_program(), log).create_execution_context()
    assert context.set_shape_input(1, [3, 2]) and context.get_shape(1) == [3, 2]
    assert context.get_binding_shape(2) == (3, 2)
    assert context.set_shape_input(1, [3]) is False and "at least 2 elements" in log.errors


def test_user_managed_memory(log):
    engine = load(exp_sum_program(), log)
    context = engine.create_execution_context_without_device_memory()
    y = np.zeros_like(X)
    bindings = [X.ctypes.data, y.ctypes.data]
    assert context.execute_v2(bindings) is False and "set_device_memory" in log.errors
    assert context.update_device_memory_size_for_shapes() == engine.device_memory_size > 0
    memory = cuda.mem_alloc(engine.device_memory_size)
    context.device_memory = int(memory)
    assert context.execute_v2(bindings)
    np.testing.assert_allclose(y, expected(X), rtol=1e-6)
    with pytest.raises(ValueError, match="aligned"):
        context.set_device_memory(int(memory) + 4, 100)
    with pytest.raises(ValueError, match="its own memory"):
        engine.create_execution_context().device_memory = int(memory)


def test_runtime_allocator(log):
    class Gpu:
        held, freed = [], []

        def allocate(self, size, alignment, flags):
            self.held.append(cuda.mem_alloc(size))
            return int(self.held[-1])

        def deallocate(self, memory):
            self.freed.append(memory)
            return True

    runtime = trt.Runtime(log)
    runtime.gpu_allocator = allocator = Gpu()
    engine = runtime.deserialize_cuda_engine(bytes(write_plan(exp_sum_program())))
    context = engine.create_execution_context()
    y = np.zeros_like(X)
    assert context.execute_v2([X.ctypes.data, y.ctypes.data]) and y.any()
    assert len(allocator.held) == 1
    del context
    assert allocator.freed == [int(allocator.held[0])]


def test_profiles(log):
    program = exp_sum_program("n")
    program.profiles.append(Profile({"x": ((10, 3), (16, 3), (20, 3))}))
    engine = load(program, log)
    context = engine.create_execution_context()
    assert engine.num_optimization_profiles == 2 and engine.num_bindings == 4
    assert list(engine)[2:] == ["x [profile 1]", "y [profile 1]"]
    assert engine.get_profile_shape(1, "x") == [(10, 3), (16, 3), (20, 3)]
    assert context.set_input_shape("x", (2, 3))
    assert context.set_optimization_profile_async(1, 0)
    assert context.active_optimization_profile == 1 and context.infer_shapes() == ["x"]
    assert not context.set_input_shape("x", (2, 3)) and context.set_input_shape("x", (12, 3))
    x = np.ones((12, 3), np.float32)
    y = np.zeros_like(x)
    assert context.execute_v2([0, 0, x.ctypes.data, y.ctypes.data])
    np.testing.assert_allclose(y, expected(x), rtol=1e-6)


def test_implicit_batch(log):
    program = exp_sum_program("batch")
    program.implicit_batch = 8
    engine = load(program, log)
    assert engine.has_implicit_batch_dimension and engine.max_batch_size == 8
    assert engine.get_binding_shape(0) == (3,) and engine.get_binding_shape("y") == (3,)
    context = engine.create_execution_context()
    x, y = np.ones((8, 3), np.float32), np.zeros((8, 3), np.float32)
    assert context.execute(batch_size=2, bindings=[x.ctypes.data, y.ctypes.data])
    assert y[:2].any() and not y[2:].any()
    assert context.execute(8, [x.ctypes.data, y.ctypes.data])
    np.testing.assert_allclose(y, expected(x), rtol=1e-6)
    assert context.execute(9, [1, 1]) is False and "max_batch_size 8" in log.errors


def test_inspector(log):
    import json

    engine = load(exp_sum_program("n"), log)
    inspector = engine.create_engine_inspector()
    whole = json.loads(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
    assert [la["Name"] for la in whole["Layers"]] == ["exp", "add"] and whole["Bindings"] == [
        "x", "y"]
    assert whole["Layers"][0]["Inputs"][0]["Dimensions"] == ["n", 3]
    assert whole["Engine"]["ReferenceSteps"] == 2
    context = engine.create_execution_context()
    context.set_input_shape("x", (5, 3))
    context.infer_shapes()
    inspector.execution_context = context
    layer = json.loads(inspector.get_layer_information(0, trt.LayerInformationFormat.JSON))
    assert layer["Inputs"][0]["Dimensions"] == [5, 3]
    text = inspector.get_engine_information(trt.LayerInformationFormat.ONELINE)
    assert text.splitlines()[0].startswith("exp [reference: reference] x[5, 3]:f32 ->")
    assert inspector.get_layer_information(7, trt.LayerInformationFormat.JSON) == ""


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview, lambda b: trt.IHostMemory(b)])
def test_buffers_that_hold_plans(log, wrap):
    source = wrap(bytes(write_plan(exp_sum_program())))
    engine = trt.Runtime(log).deserialize_cuda_engine(source)
    if isinstance(source, bytearray):
        source[:] = bytes(len(source))  # ours to change afterwards
    context, y = engine.create_execution_context(), np.zeros_like(X)
    assert context.execute_v2([X.ctypes.data, y.ctypes.data])
    np.testing.assert_allclose(y, expected(X), rtol=1e-6)
    assert engine.serialize() == bytes(write_plan(exp_sum_program()))


def readers():
    import ctypes
    import io

    class Returns:
        def __init__(self, data):
            super().__init__()
            self.f = io.BytesIO(data)

        def read(self, size):
            return self.f.read(min(size, 100))

    class Fills:
        def __init__(self, data):
            super().__init__()
            self.f = io.BytesIO(data)

        def read(self, destination, size):
            part = self.f.read(size)
            ctypes.memmove(destination, part, len(part))
            return len(part)

    class V2:
        def __init__(self, data):
            super().__init__()
            self.f = io.BytesIO(data)

        def read(self, num_bytes, stream):
            return self.f.read(num_bytes)

        def seek(self, offset, where):
            self.f.seek(offset, int(where))
            return True

    return [Returns, Fills, V2, io.BytesIO]


@pytest.mark.parametrize("i", range(4))
def test_stream_readers(log, i):
    plan = bytes(write_plan(exp_sum_program()))
    engine = trt.Runtime(log).deserialize_cuda_engine(readers()[i](plan))
    assert engine.name == "exp_sum"
    with pytest.raises(PlanError, match="truncated"):
        trt.Runtime(log).deserialize_cuda_engine(readers()[i](plan[:1000]))
    with pytest.raises(PlanError, match="not a tactician plan"):
        trt.Runtime(log).deserialize_cuda_engine(readers()[i](b"x" * 1000))


@pytest.mark.parametrize("plan, reason", [
    (None, "no plan"), (b"", "not a tactician plan"), (42, "neither a buffer"),
])
def test_what_is_no_plan(log, plan, reason):
    with pytest.raises(PlanError, match=reason):
        trt.Runtime(log).deserialize_cuda_engine(plan)
    assert reason in log.errors


def test_plan_for_another_cpu(log):
    program = exp_sum_program()
    program.target, program.device = "cpu", "x86_64-other-v512-000000000000"
    with pytest.raises(PlanError, match=r"built for the CPU x86_64-other.*this machine is"):
        load(program, log)
    program.target = "toaster"
    with pytest.raises(PlanError, match="target 'toaster'"):
        load(program, log)


def test_integers_that_no_size_depends_on_are_no_shape_tensors():
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    net = builder.create_network(0)
    x, i = net.add_input("x", trt.float32, (4, 3)), net.add_input("i", trt.int64, (2,))
    y = net.add_gather(x, i, 0).get_output(0)
    y.name = "y"
    net.mark_output(y)
    config = builder.create_builder_config()
    config.builder_optimization_level = 0
    engine = builder.build_engine_with_config(net, config)
    assert not engine.is_shape_inference_io("i")
    assert engine.get_tensor_location("i") == trt.TensorLocation.DEVICE
