"""Weight streaming: weights in host memory that reach the GPU before the kernels that read them."""

from __future__ import annotations

import gc
from itertools import pairwise

import numpy as np
import pytest

pytest.importorskip("triton", reason="the CUDA target compiles with Triton")

import tactician as trt
from tactician.runtime.gpu_streaming import choose, room
from tactician.targets.cuda import host
from tactician.targets.cuda.host import host_driver

RNG = np.random.default_rng(0)
SIZES = (32, 64, 48, 96, 16, 80, 32)
WEIGHTS = [RNG.standard_normal(s).astype("f4") / 8 for s in pairwise(SIZES)]
X = RNG.standard_normal((4, SIZES[0])).astype("f4")
NONE = trt.MatrixOperation.NONE


@pytest.fixture(params=["interpreter"])
def driver(request, monkeypatch):
    monkeypatch.setenv("TACTICIAN_GPU", request.param)
    monkeypatch.setenv("TACTICIAN_DEVICE", "gpu")
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")  # constants would be rounded to TF32
    gc.collect()
    return host_driver(request.param, 90)


class Log(trt.ILogger):
    def __init__(self):
        trt.ILogger.__init__(self)
        self.lines = []

    def log(self, severity, msg):
        if severity <= trt.ILogger.WARNING:
            self.lines.append(msg)

    @property
    def text(self):
        return "\n".join(self.lines)


def want(x, weights=WEIGHTS):
    for w in weights:
        x = np.maximum(x @ w, 0)
    return x


def build(log, flags=(), dynamic=False, weights=WEIGHTS, body=None):
    builder = trt.Builder(log)
    net = builder.create_network(1)
    config = builder.create_builder_config()
    config.builder_optimization_level = 0
    for flag in (trt.BuilderFlag.WEIGHT_STREAMING, *flags):
        config.set_flag(flag)
    x = net.add_input("x", trt.float32, (-1 if dynamic else 4, SIZES[0]))
    if dynamic:
        profile = builder.create_optimization_profile()
        profile.set_shape("x", (1, SIZES[0]), (4, SIZES[0]), (9, SIZES[0]))
        config.add_optimization_profile(profile)
    for i, w in enumerate(weights):
        k = net.add_constant(w.shape, w)
        k.name = f"w{i}"
        x = net.add_matrix_multiply(x, NONE, k.get_output(0), NONE).get_output(0)
        x = net.add_activation(x, trt.ActivationType.RELU).get_output(0)
    if body is not None:
        x = body(net, x)
    x.name = "y"
    net.mark_output(x)
    plan = builder.build_serialized_network(net, config)
    assert plan is not None, log.text
    return bytes(plan)


def load(plan, log):
    engine = trt.Runtime(log).deserialize_cuda_engine(plan)
    assert engine is not None, log.text
    return engine


def run(context, driver, x=X, times=1, width=SIZES[-1], trips=None):
    """The result of the last of several runs."""
    assert context.set_input_shape("x", x.shape)
    if trips is not None:
        context.set_tensor_address("trips", trips.ctypes.data)
    out = driver.alloc(4 * len(x) * width)
    driver.fill(out, 0xFF, 4 * len(x) * width)
    at = driver.put(x)
    context.set_tensor_address("x", at)
    context.set_tensor_address("y", out)
    for _ in range(times):
        assert context.execute_async_v3(0)
    return driver.get(out, (len(x), width), "f4")


TOTAL = sum(room(w) for w in WEIGHTS)


@pytest.mark.parametrize("budget", [0, 1, TOTAL // 3, TOTAL // 2, TOTAL - 256, TOTAL - 1])
def test_results_and_memory(driver, budget):
    log = Log()
    engine = load(build(log), log)
    assert engine.streamable_weights_size == TOTAL == engine.weight_streaming_budget_v2
    assert engine.weight_streaming_scratch_memory_size == 0 and not log.text
    whole = engine._core.gpu.weights.nbytes
    engine.weight_streaming_budget_v2 = budget
    assert engine.weight_streaming_budget_v2 == budget
    gpu = engine._core.gpu
    assert gpu.weights.nbytes - (whole - TOTAL) <= budget
    scratch = engine.weight_streaming_scratch_memory_size
    assert 0 < scratch <= 2 * max(room(w) for w in WEIGHTS)
    context = engine.create_execution_context()
    before, graphs = driver.captures, driver.graph_launches
    np.testing.assert_allclose(run(context, driver, times=4), want(X), rtol=1e-4, atol=1e-4)
    assert driver.captures > before and driver.graph_launches > graphs
    assert gpu.stager(context._arena_at)._block.nbytes == scratch


def test_budgets_that_cannot_be_set(driver):
    log = Log()
    engine = load(build(log), log)
    engine.weight_streaming_budget_v2 = -1
    assert "it can't be negative" in log.text
    context = engine.create_execution_context()
    engine.weight_streaming_budget_v2 = 0
    assert "has 1 execution contexts" in log.text
    assert engine.weight_streaming_budget_v2 == TOTAL
    del context
    gc.collect()
    engine.weight_streaming_budget_v2 = 0
    assert engine.weight_streaming_budget_v2 == 0
    engine.weight_streaming_budget_v2 = 2 * TOTAL
    assert engine.weight_streaming_budget_v2 == TOTAL
    assert engine.weight_streaming_scratch_memory_size == 0
    np.testing.assert_allclose(run(engine.create_execution_context(), driver), want(X), rtol=1e-4,
                               atol=1e-4)


def test_budgets_of_version_10_0(driver):
    log = Log()
    engine = load(build(log), log)
    assert engine.weight_streaming_budget == -1
    least = engine.minimum_weight_streaming_budget
    engine.weight_streaming_budget = least - 1
    assert "less than minimum_weight_streaming_budget" in log.text
    engine.weight_streaming_budget = least
    assert engine.weight_streaming_budget == least and engine.weight_streaming_budget_v2 == 0
    assert engine.weight_streaming_scratch_memory_size == least
    engine.weight_streaming_budget = 0  # all of it fits
    assert engine.weight_streaming_budget == 0
    assert engine.get_weight_streaming_automatic_budget() == TOTAL
    assert engine.weight_streaming_budget_v2 == TOTAL
    engine.weight_streaming_budget = -2
    assert "it can be -1, 0 or greater" in log.text


def test_the_automatic_budget_follows_free_memory(driver, monkeypatch):
    log = Log()
    engine = load(build(log), log)
    engine.weight_streaming_budget_v2 = 0
    monkeypatch.setattr(type(driver), "memory", lambda self: (30000, 1 << 30))
    budget = engine.get_weight_streaming_automatic_budget()
    assert budget == 27000 - engine.device_memory_size_v2 < TOTAL


def test_several_shapes_and_contexts(driver):
    log = Log()
    engine = load(build(log, dynamic=True), log)
    engine.weight_streaming_budget_v2 = TOTAL // 4
    contexts = [engine.create_execution_context() for _ in range(2)]
    for rows in (4, 1, 9, 4):
        x = RNG.standard_normal((rows, SIZES[0])).astype("f4")
        for context in contexts:
            np.testing.assert_allclose(run(context, driver, x, 3), want(x), rtol=1e-4, atol=1e-4)


def test_profiled_and_checked_runs_copy_in_line(driver):
    class Profiler(trt.IProfiler):
        def __init__(self):
            trt.IProfiler.__init__(self)
            self.times = {}

        def report_layer_time(self, layer_name, ms):
            self.times[layer_name] = ms

    log = Log()
    engine = load(build(log), log)
    engine.weight_streaming_budget_v2 = 0
    context = engine.create_execution_context()
    context.profiler = profiler = Profiler()
    np.testing.assert_allclose(run(context, driver, times=2), want(X), rtol=1e-4, atol=1e-4)
    assert len(profiler.times) >= len(WEIGHTS)
    context = engine.create_execution_context()
    context.debug_sync = True
    np.testing.assert_allclose(run(context, driver), want(X), rtol=1e-4, atol=1e-4)


def test_loops_stream_in_every_turn(driver):
    square = RNG.standard_normal((SIZES[-1],) * 2).astype("f4") / 4
    second = RNG.standard_normal((SIZES[-1],) * 2).astype("f4") / 4

    def body(net, x):
        loop = net.add_loop()
        trips = net.add_input("trips", trt.int32, ())
        loop.add_trip_limit(trips, trt.TripLimit.COUNT)
        state = loop.add_recurrence(x)
        y = state.get_output(0)
        for w in (square, second):
            k = net.add_constant(w.shape, w).get_output(0)
            y = net.add_matrix_multiply(y, NONE, k, NONE).get_output(0)
            y = net.add_activation(y, trt.ActivationType.TANH).get_output(0)
        state.set_input(1, y)
        return loop.add_loop_output(state.get_output(0), trt.LoopOutput.LAST_VALUE).get_output(0)

    log = Log()
    engine = load(build(log, body=body), log)
    assert engine.streamable_weights_size == TOTAL + room(square) + room(second)
    engine.weight_streaming_budget_v2 = 0
    y = want(X)
    for _ in range(3):
        y = np.tanh(np.tanh(y @ square) @ second)
    got = run(engine.create_execution_context(), driver, times=3, trips=np.array(3, np.int32))
    np.testing.assert_allclose(got, y, rtol=1e-3, atol=1e-4)


def test_refitting_keeps_the_budget(driver):
    log = Log()
    engine = load(build(log, (trt.BuilderFlag.REFIT,)), log)
    engine.weight_streaming_budget_v2 = budget = TOTAL // 4
    context = engine.create_execution_context()
    np.testing.assert_allclose(run(context, driver), want(X), rtol=1e-4, atol=1e-4)
    refitter = trt.Refitter(engine, log)
    assert refitter.set_weights("w0", trt.WeightsRole.CONSTANT, 2 * WEIGHTS[0])
    assert refitter.refit_cuda_engine()
    assert engine.weight_streaming_budget_v2 == budget
    assert engine.weight_streaming_scratch_memory_size > 0
    np.testing.assert_allclose(run(context, driver, times=3), 2 * want(X), rtol=1e-4, atol=1e-4)


def test_engines_built_without_the_flag_or_for_the_cpu(monkeypatch):
    log = Log()
    monkeypatch.setenv("TACTICIAN_DEVICE", "cpu")
    engine = load(build(log), log)
    assert "WEIGHT_STREAMING has no effect: a CPU reads weights where they lie" in log.text
    assert engine.streamable_weights_size == engine.weight_streaming_budget_v2 == 0
    engine.weight_streaming_budget_v2 = 5
    assert "no weights that can be streamed" in log.text


@pytest.mark.parametrize("share", [0, 0.1, 0.35, 0.5, 0.9, 0.999, 1])
def test_what_is_streamed_fits_every_budget_and_is_spread(share):
    class Program:
        constants = [np.zeros(n, np.uint8) for n in (300, 5000, 20, 90000, 700, 700, 4096, 1, 900)]

    by_step = {k: [k] for k in range(len(Program.constants))}
    total = sum(room(c) for c in Program.constants)
    budget = int(share * total)
    chosen = choose(Program, by_step, budget)
    kept = sum(room(c) for i, c in enumerate(Program.constants) if i not in chosen)
    assert kept <= budget and (share < 1 or not chosen)
    if share == 0:
        assert len(chosen) == len(Program.constants)
    if share == 0.999:
        assert len(chosen) == 1 and len(Program.constants[next(iter(chosen))]) <= 700


def test_events_order_copies_and_kernels(driver, monkeypatch):
    """Whatever else a GPU does at the same time: a kernel's weights are there before it starts,
    and stay until it has ended."""
    log = Log()
    engine = load(build(log), log)
    engine.weight_streaming_budget_v2 = 0
    context = engine.create_execution_context()
    seen = {}  # what each stream has waited for: stream -> {stream: number of the last op}
    recorded, counts, reads, writes = {}, {}, [], []

    def op(stream):
        counts[stream] = counts.get(stream, 0) + 1
        seen.setdefault(stream, {})[stream] = counts[stream]
        return stream, counts[stream]

    def before(first, stream):
        return seen.get(stream, {}).get(first[0], 0) >= first[1]

    def record(event, stream=0):
        op(stream)
        recorded[event] = dict(seen[stream])
        real_record(event, stream)

    def wait_event(stream, event):
        mine = seen.setdefault(stream, {})
        for s, n in recorded.get(event, {}).items():
            mine[s] = max(mine.get(s, 0), n)
        real_wait(stream, event)

    def upload(to, source, nbytes, stream=0):
        begin, end = area
        if begin <= to < end:
            for at, first in reads:
                if to <= at < to + nbytes:
                    assert before(first, stream), "overwritten while it is read"
            writes.append((to, to + nbytes, op(stream)))
            others.add(stream)
        real_upload(to, source, nbytes, stream)

    def launch(self, grid, stream):
        begin, end = area
        for at in self._args.tolist():
            if begin <= at < end:
                last = [w for a, b, w in writes if a <= at < b][-1]
                assert before(last, stream), "read before it is there"
                reads.append((at, op(stream)))
        real_launch(self, grid, stream)

    def begin_capture(stream):
        settle()
        real_begin(stream)

    def end_capture(stream):
        settle()
        return real_end(stream)

    def settle():
        """A graph is ordered in itself, and as a whole by the stream that it is launched on."""
        totals.extend([len(reads), len(writes)])
        places.append([a for a, _, _ in writes])
        reads.clear()
        writes.clear()

    totals, places = [], []
    real_begin, real_end = driver.begin_capture, driver.end_capture
    real_record, real_wait, real_upload = driver.record, driver.wait_event, driver.upload
    real_launch = host._HostCall.launch
    others = set()
    first = run(context, driver)  # makes the staging areas
    block = engine._core.gpu.stager(context._arena_at)._block
    area = block.address, block.address + block.nbytes
    monkeypatch.setattr(driver, "record", record)
    monkeypatch.setattr(driver, "wait_event", wait_event)
    monkeypatch.setattr(driver, "upload", upload)
    monkeypatch.setattr(driver, "begin_capture", begin_capture)
    monkeypatch.setattr(driver, "end_capture", end_capture)
    monkeypatch.setattr(host._HostCall, "launch", launch)
    np.testing.assert_array_equal(run(context, driver, -X, times=4), run(context, driver, -X))
    np.testing.assert_array_equal(run(context, driver), first)
    settle()
    k = len(WEIGHTS)
    assert set(totals) == {0, k} or sum(totals) >= 4 * k
    assert len(others) == 1 and 0 not in others, "copies have a stream of their own"
    # a copy runs beside the kernel before: areas take turns
    for row in (r for r in places if r):
        assert len(row) % k == 0 and row[0] != row[1]
        assert row[:k] == [row[0], row[1]] * (k // 2)
