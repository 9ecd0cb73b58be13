"""How many threads runs use: set for a build, a context, or left to the machine."""

import numpy as np
import pytest

import tactician as trt
from tactician.support.errors import UsageError
from tactician.targets.cpu.isa import physical_cores
from tactician.targets.cpu.native import Pool


class Log(trt.ILogger):
    def __init__(self):
        super().__init__()
        self.lines = []

    def log(self, severity, msg):
        self.lines.append(msg)


W = np.random.default_rng(0).standard_normal((256, 256)).astype(np.float32)


def product(threads=0, builder_threads=0):
    """An engine for ``tanh(x @ W)``."""
    builder = trt.Builder(Log())
    builder.max_threads = builder_threads
    network = builder.create_network()
    x = network.add_input("x", trt.float32, (256, 256))
    y = network.add_matrix_multiply(
        x, trt.MatrixOperation.NONE,
        network.add_constant(W.shape, W).get_output(0), trt.MatrixOperation.NONE,
    )
    y = network.add_activation(y.get_output(0), trt.ActivationType.TANH).get_output(0)
    y.name = "y"
    network.mark_output(y)
    config = builder.create_builder_config()
    config.default_device_type = trt.DeviceType.CPU
    config.builder_optimization_level = 0
    config.num_threads = threads
    plan = builder.build_serialized_network(network, config)
    return trt.Runtime(Log()).deserialize_cuda_engine(plan)


def run(context):
    x = np.random.default_rng(1).standard_normal((256, 256)).astype(np.float32)
    y = np.zeros_like(x)
    assert context.execute_v2([x.ctypes.data, y.ctypes.data])
    np.testing.assert_allclose(y, np.tanh(x.astype(np.float64) @ W), atol=1e-4)


def test_config_says_how_many():
    assert product(threads=1).create_execution_context().num_threads == 1
    assert product(threads=3, builder_threads=1).create_execution_context().num_threads == 3
    assert product(builder_threads=2).create_execution_context().num_threads == 2
    assert product().create_execution_context().num_threads == physical_cores()


def test_context_uses_as_many_as_it_says():
    engine = product(threads=1)
    pool = engine._core.pool = Pool(max_threads=4, spin_ns=1000)
    context = engine.create_execution_context()
    run(context)
    assert pool.workers == 0
    context.num_threads = 3
    run(context)
    assert (context.num_threads, pool.workers) == (3, 2)
    context.num_threads = 0
    assert context.num_threads == 1
    run(context)
    pool.close()


def test_runtime_config_makes_contexts_with_threads():
    engine = product(threads=1)
    config = engine.create_runtime_config()
    assert config.num_threads == 0
    config.num_threads = 2
    context = engine.create_execution_context(config)
    assert context.num_threads == 2
    run(context)
    assert engine.create_execution_context().num_threads == 1


def test_negative_numbers_are_refused():
    context = product(threads=1).create_execution_context()
    with pytest.raises(UsageError, match="num_threads is -1"):
        context.num_threads = -1


def test_times_are_kept_by_number_of_threads():
    from tactician.targets.cpu.device import CpuDevice

    assert CpuDevice(threads=1).conditions != CpuDevice(threads=2).conditions
