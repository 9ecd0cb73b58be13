"""INT8 where it is faster than FP32, by time."""

import numpy as np
import pytest
from networks import Log

import tactician as trt
from tactician.builder.mixed import Mixed
from tactician.runtime.easy import Engine

RNG = np.random.default_rng(0)
X = RNG.standard_normal((1, 3, 20, 20)).astype("f4")


def network_of(builder):
    """Two convolutions and a product, whose operands have ranges."""
    network = builder.create_network(0)
    rng = np.random.default_rng(3)
    x = network.add_input("x", trt.float32, (1, 3, 20, 20))
    x.dynamic_range = (-4, 4)
    y = x
    for name, c, k in (("first", 3, 32), ("second", 32, 16)):
        w = (rng.standard_normal((k, c, 3, 3)) / c).astype("f4")
        y = network.add_convolution_nd(y, k, (3, 3), w, np.ones(k, "f4"))
        y.name = name
        y = network.add_activation(y.get_output(0), trt.ActivationType.RELU).get_output(0)
        y.dynamic_range = (-9, 9)
    w = network.add_constant((16, 24), rng.standard_normal((16, 24)).astype("f4")).get_output(0)
    y = network.add_shuffle(y)
    y.reshape_dims = (256, 16)
    y = network.add_matrix_multiply(
        y.get_output(0), trt.MatrixOperation.NONE, w, trt.MatrixOperation.NONE
    )
    y.name = "third"
    network.mark_output(y.get_output(0))
    return network


def built(level, cache=None, flags=(trt.BuilderFlag.INT8,)):
    log = Log()
    builder = trt.Builder(log)
    config = builder.create_builder_config()
    config.builder_optimization_level = level
    for flag in flags:
        config.set_flag(flag)
    if cache is not None:
        config.set_timing_cache(config.create_timing_cache(cache), False)
    engine = builder.build_engine_with_config(network_of(builder), config)
    assert engine is not None, log.errors
    kept = b"" if cache is None else bytes(config.get_timing_cache().serialize())
    return Engine(engine), kept, log


def contractions(engine):
    return [
        op for s in engine.cuda_engine._program.steps for op in s.info.get("ops", ())
        if op in ("int_conv", "convolution", "int_matmul", "matmul")
    ]


def run(engine):
    return next(iter(engine({"x": X}).values()))


@pytest.mark.parametrize("slow", ["first", "second", "third"])
def test_what_is_slower_in_integers_stays(monkeypatch, slow):
    """The other layers are quantized all the same, and the log has the times."""
    def times(self, graph, whole):
        (node,) = (n for n in graph.nodes if n.op in (
            "int_conv", "convolution", "int_matmul", "matmul"))
        return 20.0 if node.op.startswith("int") and node.name == slow else 10.0

    monkeypatch.setattr(Mixed, "_microseconds", times)
    engine, _, log = built(1)
    found = contractions(engine)
    assert len(found) == 3 and sum(op.startswith("int") for op in found) == 2
    assert not found[["first", "second", "third"].index(slow)].startswith("int")
    said = [m for _, m in log.lines if "10.0 µs in FP32 and 20.0 µs in INT8" in m]
    assert len(said) == 1 and slow in said[0]
    want = run(built(0, flags=())[0])
    assert np.abs(run(engine) - want).max() < 0.05 * np.abs(want).max()


def test_times_are_measured_and_kept(monkeypatch):
    found = []
    measure = Mixed._microseconds

    def watched(self, graph, whole):
        found.append(measure(self, graph, whole))
        return found[-1]

    monkeypatch.setattr(Mixed, "_microseconds", watched)
    first, cache, _ = built(3, b"")
    assert len(found) == 6 and all(t is not None and t > 0 for t in found)
    before = list(found)
    found.clear()
    second, _, _ = built(3, cache)
    assert found == before
    assert contractions(second) == contractions(first)
    np.testing.assert_array_equal(run(first), run(second))


def test_level_0_measures_nothing(monkeypatch):
    monkeypatch.setattr(Mixed, "_microseconds", lambda *_: pytest.fail("timed"))
    assert contractions(built(0)[0]) == ["int_conv", "int_conv", "int_matmul"]
