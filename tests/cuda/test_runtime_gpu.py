"""Engines for CUDA on host memory: the launch sequence, graphs, tuning, plans, control flow."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper

pytest.importorskip("triton", reason="the CUDA target compiles with Triton")

import tactician
from tactician.support.errors import BuildError, ExecutionError, PlanError, RefusedError
from tactician.tactics.kernel import Kernel, Launch
from tactician.targets.cuda.arch import named_gpu
from tactician.targets.cuda.bench import Process, TimingDevice
from tactician.targets.cuda.code import Code
from tactician.targets.cuda.compiler import CompileError
from tactician.targets.cuda.device import CudaDevice, make_device
from tactician.targets.cuda.host import HostDriver, host_driver
from tactician.targets.cuda.measure import Broken, Part, Zeros

DOUBLE = """
@triton.jit
def double(x, y, n):
    o = tl.program_id(0) * 64 + tl.arange(0, 64)
    tl.store(y + o, tl.load(x + o, mask=o < n) * 2, mask=o < n)
"""
LAUNCH = Launch(("*fp32", "*fp32", "i32"), (2,), warps=1)


def model(nodes, feeds, weights=None, outs="y", dynamic=False):
    kinds = {"f": T.FLOAT, "i": T.INT64, "b": T.BOOL}
    ins = [
        h.make_tensor_value_info(
            n, kinds[a.dtype.kind], [f"{n}{k}" for k in range(a.ndim)] if dynamic else a.shape
        ) for n, a in feeds.items()
    ]
    consts = [numpy_helper.from_array(np.asarray(a), n) for n, a in (weights or {}).items()]
    g = h.make_graph(nodes, "g", ins, [onnx.ValueInfoProto(name=o) for o in outs.split()], consts)
    m = h.make_model(g, opset_imports=[h.make_opsetid("", 17)], ir_version=8)
    return m.SerializeToString()


X = np.random.default_rng(0).standard_normal((2, 6)).astype("f4")
RELU_ADD = [h.make_node("Relu", ["x"], ["a"]), h.make_node("Add", ["a", "w"], ["y"])]
SMALL = model(RELU_ADD, {"x": X}, {"w": np.float32(3)})


@pytest.fixture
def interpreter(monkeypatch):
    monkeypatch.setenv("TACTICIAN_GPU", "interpreter")
    return host_driver("interpreter", 90)


def build(data, **kw):
    return tactician.build(data, device="gpu", **({"level": 0} | kw))


def test_graphs_replay_and_follow_addresses(interpreter):
    engine = build(SMALL)
    context = engine.cuda_engine.create_execution_context()
    captures, graphs = interpreter.captures, interpreter.graph_launches
    blocks = [interpreter.put(X), interpreter.put(-X), interpreter.alloc(X.nbytes)]
    for k, at in enumerate([0, 0, 0, 1, 1, 1, 0]):
        context.set_tensor_address("x", blocks[at])
        context.set_tensor_address("y", blocks[2])
        assert context.execute_async_v3(0)
        want = np.maximum((X, -X)[at], 0) + 3
        assert np.array_equal(interpreter.get(blocks[2], X.shape, "f4"), want), k
    assert interpreter.captures - captures == 2
    assert interpreter.graph_launches - graphs == 5  # all but the first run at each address


def test_unaligned_addresses_are_refused(interpreter):
    context = build(SMALL).cuda_engine.create_execution_context()
    at = interpreter.put(X)
    with pytest.raises(ExecutionError, match="multiple of 16"):
        context.execute_v2([at + 4, at])


@pytest.mark.parametrize("shape", [(1, 5), (4, 33), (4, 5)])
def test_dynamic_shapes(interpreter, shape):
    x = np.ones(shape, "f4")
    engine = build(model([h.make_node("Softmax", ["x"], ["y"], axis=-1)], {"x": x}, dynamic=True))
    for _ in range(3):
        assert np.allclose(engine(x)["y"], 1 / shape[1])


@pytest.mark.parametrize("parts", [4, 9, 17])
def test_many_nests_in_a_kernel_keep_their_sizes_apart(interpreter, parts):
    x = np.random.default_rng(0).standard_normal((3, 5, 7)).astype("f4")
    nodes = [h.make_node("Concat", ["x"] * parts, ["y"], axis=1)]
    shapes = {"x": [(1, 2, 7), x.shape, x.shape]}
    engine = build(model(nodes, {"x": x}, dynamic=True), shapes=shapes)
    np.testing.assert_array_equal(engine(x)["y"], np.concatenate([x] * parts, 1))


def branch(op):
    return h.make_graph([h.make_node(op, ["x", "two"], ["o"])], op, [],
                        [h.make_tensor_value_info("o", T.FLOAT, [2, 6])])


def test_branches(interpreter):
    nodes = [
        h.make_node("ReduceSum", ["x"], ["s"], keepdims=0),
        h.make_node("Greater", ["s", "zero"], ["c"]),
        h.make_node("If", ["c"], ["y"], then_branch=branch("Mul"), else_branch=branch("Add")),
    ]
    engine = build(model(nodes, {"x": X}, {"two": np.float32(2), "zero": np.float32(0)}))
    for x in (abs(X), -abs(X), abs(X)):
        assert np.allclose(engine(x)["y"], x * 2 if x.sum() > 0 else x + 2)


def test_loops(interpreter):
    value = h.make_tensor_value_info
    body = h.make_graph(
        [h.make_node("Add", ["v", "x"], ["v2"]), h.make_node("Identity", ["c"], ["c2"]),
         h.make_node("Identity", ["v2"], ["s"])],
        "b", [value("i", T.INT64, []), value("c", T.BOOL, []), value("v", T.FLOAT, [2, 6])],
        [value("c2", T.BOOL, []), value("v2", T.FLOAT, [2, 6]), value("s", T.FLOAT, [2, 6])],
    )
    nodes = [h.make_node("Loop", ["n", "t", "x"], ["y0", "y1"], body=body)]
    data = model(nodes, {"x": X}, {"n": np.int64(3), "t": np.bool_(True)}, "y0 y1")
    engine = build(data)
    for _ in range(3):
        got = engine(X)
        assert np.allclose(got["y0"], 4 * X, atol=1e-6)
        assert np.allclose(got["y1"], X * np.array([2, 3, 4])[:, None, None], atol=1e-6)
    kinds = {s.kind for s in engine.cuda_engine._program.steps}
    assert "reference" not in kinds and "jump" in kinds


def test_sizes_that_depend_on_data(interpreter):
    nodes = [h.make_node("NonZero", ["x"], ["i"]), h.make_node("Cast", ["i"], ["j"], to=T.FLOAT),
             h.make_node("Neg", ["j"], ["y"])]
    engine = build(model(nodes, {"x": X}))
    for x in (X, (X > 0).astype("f4"), np.zeros_like(X)):
        assert np.array_equal(engine(x)["y"], -np.array(np.nonzero(x), "f4"))


def test_profiler_gets_times(interpreter):
    class Times(tactician.IProfiler):
        seen: dict = {}

        def report_layer_time(self, layer_name, ms):
            self.seen[layer_name] = ms

    context = build(SMALL).cuda_engine.create_execution_context()
    context.profiler = Times()
    assert context.execute_v2([interpreter.put(X), interpreter.alloc(X.nbytes)])
    assert Times.seen and all(ms > 0 for ms in Times.seen.values())


def test_bindings_queue_on_a_stream(interpreter):
    context = build(SMALL).cuda_engine.create_execution_context()
    context._on_gpu = True  # the driver's streams, as on a GPU
    x, y, stream = interpreter.put(X), interpreter.alloc(X.nbytes), interpreter.stream()
    done = interpreter.event(timing=False)
    for _ in range(3):
        interpreter.fill(y, 0, X.nbytes, stream)
        assert context.execute_async_v2([x, y], stream, done)
        interpreter.synchronize(stream)
        assert np.array_equal(interpreter.get(y, X.shape, "f4"), np.maximum(X, 0) + 3)


def test_plan_round_trip(interpreter):
    engine = build(SMALL)
    plan = bytes(engine.cuda_engine.serialize())
    assert np.array_equal(tactician.load(plan)(X)["y"], engine(X)["y"])


def _runs_sm90():
    from tactician.targets.cuda.driver import default_gpu

    gpu = default_gpu()
    return gpu is not None and gpu.gpu.arch == 90


@pytest.mark.parametrize("gpu", ["sm_80", "sm_90", "sm_100"])
def test_a_plan_for_a_named_gpu(gpu, monkeypatch):
    monkeypatch.setenv("TACTICIAN_GPU", gpu)
    plan = tactician.Builder(tactician.Logger())
    network = plan.create_network(1)
    x = network.add_input("x", tactician.float32, (2, 6))
    out = network.add_activation(x, tactician.ActivationType.RELU).get_output(0)
    network.mark_output(out)
    config = plan.create_builder_config()
    config.default_device_type = tactician.DeviceType.GPU
    data = bytes(plan.build_serialized_network(network, config))
    if not _runs_sm90() or gpu != "sm_90":
        monkeypatch.delenv("TACTICIAN_GPU")
        with pytest.raises(PlanError, match="compute capability"):
            tactician.load(data)
    monkeypatch.setenv("TACTICIAN_GPU", "null")  # the launch sequence without a GPU
    driver = host_driver("null", int(gpu[3:]))
    before = driver.launches
    engine = tactician.load(data)
    for _ in range(3):
        engine(X)
    assert driver.launches - before == 3
    symbol, grid, pointers, _ = driver.log[-1]
    assert symbol.startswith("loops") and grid[0] >= 1 and len(pointers) == 2


def test_tuning_measures_compares_and_caches(monkeypatch):
    monkeypatch.setenv("TACTICIAN_GPU", "interpreter")
    from tactician.builder import compile as compiling

    device = TimingDevice(HostDriver("interpreter", named_gpu("sm_90")))
    monkeypatch.setattr(compiling, "make_device", lambda settings: device)
    from tactician.targets.cuda import load_tactics

    load_tactics()
    step = build(SMALL, level=3).cuda_engine._program.steps[0]
    assert step.info["time_us"] > 0 and device.driver.captures > 0


def test_a_candidate_that_breaks_its_process_is_refused(monkeypatch):
    monkeypatch.setenv("TACTICIAN_GPU", "interpreter")
    process = Process()
    code = CudaDevice(mode="interpreter").compile(
        Kernel("double", DOUBLE, (), launch=LAUNCH)
    )[1]
    x = np.arange(100, dtype="f4")
    process.ask("open", [x, Zeros((100,), np.dtype("f4"))], [1], [], 0.0)
    assert process.ask("time", [Part(code, [0, 1], (2, 1, 1), [100], 0, 0)]) > 0
    assert np.array_equal(process.ask("results", True)[0], 2 * x)
    with pytest.raises(RefusedError):
        process.ask("time", [Part(code, [0], (2, 1, 1), [100], 0, 0)])
    process._child.kill()
    with pytest.raises(Broken):
        process.ask("results", True)
    process.restart()


@pytest.mark.parametrize("arch", [80, 90, 100])
def test_compiles(arch):
    kernel = Kernel("double", DOUBLE, (), launch=LAUNCH)
    _, blob = CudaDevice(f"sm_{arch}").compile(kernel)
    code = Code.unpack(blob)
    assert code.arch == arch and code.body[:4] == b"\x7fELF" and code.threads == 32
    assert len(code.types) == 3 and code.pack() == bytes(blob)


@pytest.mark.parametrize(
    ("source", "match"),
    [("def double(x, y, n):\n    pass", "arg_names"), ("x = 1", "define"),
     (DOUBLE.replace("* 2", "* nothing"), "nothing")],
)
def test_what_does_not_compile(source, match):
    with pytest.raises(CompileError, match=match):
        CudaDevice("sm_90").compile(Kernel("double", source, (), launch=LAUNCH))


@pytest.mark.parametrize("text", ["sm_90", "9.0", "90", "H100", "h100", "sm90a"])
def test_names_of_gpus(text):
    assert named_gpu(text).arch == 90


@pytest.mark.parametrize("text", ["sm_70", "GTX", "7.5"])
def test_gpus_that_are_none(text):
    with pytest.raises(BuildError):
        named_gpu(text)


def test_without_gpu_the_build_says_so(monkeypatch):
    if _runs_sm90():
        pytest.skip("there is a GPU")
    monkeypatch.delenv("TACTICIAN_GPU", raising=False)
    with pytest.raises(BuildError, match="GPU"):
        make_device()


@pytest.mark.parametrize("damage", [b"", b"TKC1", b"TKC1\5\0\0\0{}abc", b"x" * 50])
def test_damaged_code(damage):
    with pytest.raises(PlanError):
        Code.unpack(damage)


def test_sizes_found_by_kernels_need_no_step_in_numpy(interpreter):
    nodes = [
        h.make_node("NonZero", ["x"], ["i"]), h.make_node("Transpose", ["i"], ["t"]),
        h.make_node("GatherND", ["x", "t"], ["v"]), h.make_node("Neg", ["v"], ["y"]),
    ]
    engine = build(model(nodes, {"x": X}, outs="y i"))
    program = engine.cuda_engine._program
    kinds = [s.kind for s in program.steps]
    assert "reference" not in kinds and kinds.count("learn") == 1
    plan = tactician.load(bytes(engine.cuda_engine.serialize()))
    for e in (engine, plan):
        for x in (X, np.zeros_like(X), np.abs(X)):
            got = e(x)
            assert np.array_equal(got["y"], -x[np.nonzero(x)])
            assert np.array_equal(got["i"], np.nonzero(x))


def test_a_plan_that_learns_other_sizes_is_refused(interpreter):
    engine = build(model([h.make_node("NonZero", ["x"], ["y"])], {"x": X}))
    program = engine.cuda_engine._program
    step = next(s for s in program.steps if s.kind == "learn")
    step.dims = (*step.dims, *step.dims)
    from tactician.plan.check import check_program

    with pytest.raises(PlanError, match="sizes"):
        check_program(program)
