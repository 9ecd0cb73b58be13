"""Engines with native code: streams, threads, profiles, all at once."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest
from networks import Log

import tactician
import tactician as trt
import tactician.driver as cuda
from tactician.support.errors import PlanError

DATA = Path(tactician.__file__).parent / "data"


@pytest.fixture(scope="module")
def engine():
    return tactician.build(DATA / "lenet_digits.onnx", level=1, logger=Log())


@pytest.fixture(scope="module")
def digits(engine):
    """Images in the model's form, and what one synchronous run each gives."""
    with np.load(DATA / "digits_test.npz") as data:
        images = data["images"][:16]
    x = (images.astype(np.float32) / 255).reshape(16, 1, 28, 28)
    (out,) = engine.outputs
    return x, np.concatenate([engine(x[i : i + 1])[out] for i in range(16)])


def context_for(engine, rows=1):
    context = engine.cuda_engine.create_execution_context()
    name = engine.cuda_engine.get_tensor_name(0)
    assert context.set_input_shape(name, (rows, 1, 28, 28))
    return context


def test_batches_agree_with_single_images(engine, digits):
    x, expected = digits
    (out,) = engine.outputs
    for n in (2, 5, 16):
        np.testing.assert_allclose(engine(x[:n])[out], expected[:n], rtol=1e-4, atol=1e-5)


def test_streams_with_contexts_of_their_own(engine, digits):
    x, expected = digits
    work = []
    for k in range(4):
        stream, context = cuda.Stream(), context_for(engine)
        d_in, d_out = cuda.mem_alloc(x[:1].nbytes), cuda.mem_alloc(expected[:1].nbytes)
        results = []
        for i in range(k, 16, 4):
            h_in = cuda.register_host_memory(x[i].copy())
            h_out = cuda.pagelocked_zeros(expected.shape[1], np.float32)
            cuda.memcpy_htod_async(d_in, h_in, stream)
            assert context.execute_async_v2([int(d_in), int(d_out)], stream.handle)
            cuda.memcpy_dtoh_async(h_out, d_out, stream)
            results.append((i, h_in, h_out))
        work.append((stream, context, d_in, d_out, results))
    for stream, *_, results in work:
        stream.synchronize()
        for i, _, h_out in results:
            np.testing.assert_array_equal(h_out, expected[i])


def test_threads_with_contexts_of_their_own(engine, digits):
    x, expected = digits
    wrong = []

    def work(seed):
        context, y = context_for(engine), np.zeros_like(expected[:1])
        for i in np.random.default_rng(seed).integers(0, 16, 100):
            context.execute_v2([x[i].ctypes.data, y.ctypes.data])
            if not np.array_equal(y[0], expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(s,)) for s in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_threads_on_one_context_take_turns(engine, digits):
    x, expected = digits
    context, wrong = context_for(engine), []

    def work(seed):
        y = np.zeros_like(expected[:1])
        for i in np.random.default_rng(seed).integers(0, 16, 50):
            context.execute_v2([x[i].ctypes.data, y.ctypes.data])
            if not np.array_equal(y[0], expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(s,)) for s in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_python_goes_on_while_a_stream_runs(engine):
    """Native code releases the interpreter's lock: this thread moves on during one long run."""
    context, stream = context_for(engine, 2048), cuda.Stream()
    x = np.zeros((2048, 1, 28, 28), np.float32)
    y = np.zeros((2048, 10), np.float32)
    bindings = [x.ctypes.data, y.ctypes.data]
    assert context.execute_v2(bindings)  # everything is prepared
    best = 0
    for _ in range(5):
        context.execute_async_v2(bindings, stream.handle)
        count = 0
        while not stream.is_done():
            count += 1
            time.sleep(0)
        stream.synchronize()
        best = max(best, count)
    assert best > 20


def test_profiler_sees_every_step(engine, digits):
    class Profiler(trt.IProfiler):
        def __init__(self):
            super().__init__()
            self.seen = []

        def report_layer_time(self, layer_name, ms):
            self.seen.append((layer_name, ms))

    x, expected = digits
    context, y = context_for(engine), np.zeros_like(expected[:1])
    context.profiler = profiler = Profiler()
    assert context.execute_v2([x[3].ctypes.data, y.ctypes.data])
    assert len(profiler.seen) == engine.cuda_engine.num_layers
    assert 0 < sum(ms for _, ms in profiler.seen) < 1000
    np.testing.assert_array_equal(y[0], expected[3])


def test_arrays_at_odd_addresses(engine, digits):
    """Users' memory need not be aligned to more than its elements."""
    x, expected = digits
    raw = np.zeros(28 * 28 + 3, np.float32)
    odd = raw[3:]
    odd[:] = x[5].ravel()
    y = np.zeros(expected.shape[1] + 1, np.float32)[1:]
    context = context_for(engine)
    assert context.execute_v2([odd.ctypes.data, y.ctypes.data])
    np.testing.assert_array_equal(y, expected[5])


def test_contexts_outlive_their_engine(digits):
    x, expected = digits
    built = tactician.build(DATA / "lenet_digits.onnx", level=0, logger=Log())
    context, y = context_for(built), np.zeros_like(expected[:1])
    del built
    assert context.execute_v2([x[0].ctypes.data, y.ctypes.data])
    np.testing.assert_allclose(y[0], expected[0], rtol=1e-4, atol=1e-5)


def test_code_for_another_cpu_is_refused(engine):
    from tactician.plan.format import read_plan, write_plan

    program = read_plan(engine.cuda_engine.serialize())
    program.device = program.device.replace("x86_64", "aarch64") + "x"
    with pytest.raises(PlanError, match="Build the engine again on this machine"):
        tactician.load(bytes(write_plan(program)), logger=Log())


def test_missing_code_is_refused(engine):
    from tactician.plan.format import read_plan, write_plan

    program = read_plan(engine.cuda_engine.serialize())
    program.code = program.code[1:]
    with pytest.raises(PlanError, match="no function"):
        tactician.load(bytes(write_plan(program)), logger=Log())


@pytest.mark.parametrize("cut", [0, 16, 64, 200, 1000])
def test_damaged_code_with_right_checksums(engine, cut):
    from tactician.plan.format import read_plan, write_plan

    program = read_plan(engine.cuda_engine.serialize())
    program.code = [program.code[0][:cut], *program.code[1:]]
    with pytest.raises(PlanError):
        tactician.load(bytes(write_plan(program)), logger=Log())


def test_loading_compiles_nothing(engine, digits, tmp_path):
    import subprocess
    import sys

    x, expected = digits
    engine.save(tmp_path / "m.plan")
    np.save(tmp_path / "x.npy", x[:1])
    script = (
        "import numpy as np, tactician, tactician.targets.cpu.toolchain as toolchain\n"
        "toolchain._emit = None\n"
        "(y,) = tactician.load('m.plan')(np.load('x.npy')).values()\n"
        "np.save('y.npy', y)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path,
                   env={"PYTHONPATH": ":".join(p for p in sys.path if p)})
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy")[0], expected[0])
