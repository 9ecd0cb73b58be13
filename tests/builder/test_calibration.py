"""INT8 calibration and dynamic ranges: thresholds, the cache, and what engines make of them."""

import numpy as np
import pytest
from conftest import shared_path
from networks import Log
from test_lenet import DATA, held_out

import tactician as trt
from tactician.builder.calibration import Histogram, read_cache, threshold, write_cache
from tactician.runtime.easy import Engine

RNG = np.random.default_rng(0)
BASES = [trt.IInt8EntropyCalibrator2, trt.IInt8EntropyCalibrator, trt.IInt8MinMaxCalibrator,
         trt.IInt8LegacyCalibrator]  # fmt: skip


def calibrator(batches, base=trt.IInt8EntropyCalibrator2, cache=None):
    class Calibrator(base):
        def __init__(self):
            base.__init__(self)
            self.rest, self.asked, self.cache = iter(batches), 0, cache

        def get_batch_size(self):
            return len(batches[0])

        def get_batch(self, names):
            self.asked += 1
            self.held = next(self.rest, None)
            return None if self.held is None else [self.held.ctypes.data]

        def read_calibration_cache(self):
            return self.cache

        def write_calibration_cache(self, cache):
            self.cache = cache.tobytes()  # a memoryview, as TensorRT gives

    return Calibrator()


def configured(builder, calibration=None, flags=(trt.BuilderFlag.INT8,)):
    config = builder.create_builder_config()
    config.builder_optimization_level = 0
    for flag in flags:
        config.set_flag(flag)
    config.int8_calibrator = calibration
    return config


def engine(builder, network, config):
    built = builder.build_engine_with_config(network, config)
    return None if built is None else Engine(built)


def ops(e):
    return [op for s in e.cuda_engine._program.steps for op in s.info.get("ops", ())]


# --- thresholds and the cache ---------------------------------------------------------------------


def collected(*arrays):
    h = Histogram()
    for a in arrays:
        h.add(np.asarray(a, "f4"))
    return h


def test_histograms_widen():
    x = RNG.standard_normal(10000)
    h = collected(x, x * 10, [np.nan, np.inf], [])
    assert h.counts.sum() == 20000 and h.largest == np.float32(np.abs(x * 10).max())
    assert h.width * 2048 >= h.largest
    edges = h.width * np.arange(2049)
    want = np.histogram(np.abs(np.concatenate([x, x * 10])), edges)[0]
    assert np.abs(np.cumsum(h.counts) - np.cumsum(want)).max() < 20


@pytest.mark.parametrize("algorithm,low,high", [
    ("MinMaxCalibration", 99, 101), ("EntropyCalibration2", 2.5, 10),
    ("EntropyCalibration", 2.5, 10), ("LegacyCalibration", 3, 6)])  # fmt: skip
def test_thresholds_of_a_normal_distribution_with_an_outlier(algorithm, low, high):
    h = collected(RNG.standard_normal(200000), np.array([100.0]))
    assert low < threshold(h, algorithm) < high


def test_thresholds_of_nothing_and_of_few_values():
    assert threshold(collected(np.zeros(5)), "EntropyCalibration2") == 0
    assert threshold(collected([1.0, -3.0]), "EntropyCalibration2") == 3


def test_cache_is_tensorrts():
    ranges = {"input": 1.0, "a: b": 127.0, "(Unnamed Layer* 0) [Convolution]_output": 0.5}
    text = write_cache(ranges, "EntropyCalibration2")
    lines = text.decode().splitlines()
    assert lines[0].startswith("TRT-10") and lines[0].endswith("-EntropyCalibration2")
    assert lines[1:3] == ["input: 3c010204", "a: b: 3f800000"]
    assert read_cache(text) == pytest.approx(ranges, rel=1e-6)
    assert read_cache(b"TRT-8601-EntropyCalibration2\ndata: 3c010a14\n")["data"] == \
        pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize("data", [b"", b"input: 3c010204\n", b"TRT-8601-X\nname: 3c0102\n"])
def test_what_is_no_cache(data):
    with pytest.raises(ValueError):
        read_cache(data)


# --- accuracy on real weights ---------------------------------------------------------------------


def from_onnx(path, calibration=None, shape=None, flags=(trt.BuilderFlag.INT8,)):
    builder = trt.Builder(Log())
    network = builder.create_network(1)
    parser = trt.OnnxParser(network, builder.logger)
    assert parser.parse_from_file(str(path))
    config = configured(builder, calibration, flags if calibration else ())
    profile = builder.create_optimization_profile()
    name = network.get_input(0).name
    if -1 in tuple(network.get_input(0).shape):
        profile.set_shape(name, shape, shape, shape)
        config.add_optimization_profile(profile)
        config.set_calibration_profile(profile)
    return engine(builder, network, config), name


def labels(built, x, batch):
    e, name = built
    parts = [next(iter(e({name: x[i : i + batch]}).values())) for i in range(0, len(x), batch)]
    return np.concatenate(parts).reshape(len(x), -1).argmax(1)


@pytest.mark.parametrize("base", BASES)
def test_digits_lose_less_than_a_point(base):
    images, truth = held_out()
    x = (images[:, None] / np.float32(255)).astype("f4")
    cal = calibrator([np.ascontiguousarray(x[i : i + 40]) for i in (0, 40, 80)], base)
    shape = (40, 1, 28, 28)
    quantized = from_onnx(DATA / "lenet_digits.onnx", cal, shape)
    assert cal.asked == 4 and ops(quantized[0]).count("int_conv") == 2
    plain = from_onnx(DATA / "lenet_digits.onnx", None, shape)
    rate = [(labels(e, x, 40) == truth).mean() for e in (plain, quantized)]
    assert rate[0] > 0.98 and rate[1] >= rate[0] - 0.01


def sure_spectrograms(path):
    """Patterns over time and frequency that the f32 model is sure of by onnxruntime, and what it
    takes them for: random ones, changed step by step into clearer ones."""
    ort = pytest.importorskip("onnxruntime")
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    name, rng = session.get_inputs()[0].name, np.random.default_rng(0)

    def believes(x):
        return np.concatenate([session.run(None, {name: row[None]})[0] for row in x])

    x = np.repeat(rng.standard_normal((3000, 1, 40)) * 2, 49, 1)
    x = np.clip(x + 0.3 * rng.standard_normal(x.shape), -5, 5).reshape(3000, -1).astype("f4")
    p = believes(x)
    kind = p.argmax(1)
    keep = np.concatenate([np.flatnonzero(kind), np.flatnonzero(kind == 0)[:40]])
    x, kind, best = x[keep], kind[keep], p[keep, kind[keep]]
    for _ in range(80):
        change = rng.standard_normal((len(x), 7, 8)).repeat(7, 1).repeat(5, 2)
        y = np.clip(x + 0.4 * change.reshape(x.shape), -5, 5).astype("f4")
        p = believes(y)[np.arange(len(x)), kind]
        better = p > best
        x[better], best[better] = y[better], p[better]
    return x[best > 0.7], kind[best > 0.7]


@pytest.fixture(scope="module")
def keywords():
    path = shared_path("models", "micro_kws_m_static_fp32.onnx")
    return (path, *sure_spectrograms(path))


@pytest.mark.parametrize("base", BASES)
def test_keyword_spotting_loses_less_than_a_point(keywords, base):
    path, x, kind = keywords
    assert len(x) > 60 and len(set(kind)) >= 7
    cal = calibrator([x[i : i + 1] for i in range(0, len(x), 2)], base)
    quantized = from_onnx(path, cal)
    assert [ops(quantized[0]).count(o) for o in ("int_conv", "int_matmul", "matmul")] == [3, 3, 0]
    assert (labels(quantized, x, 1) == kind).mean() >= 0.99


# --- how it is asked for --------------------------------------------------------------------------


def two_convolutions(builder, ranges=(), strong=False, middle=16):
    flag = trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    network = builder.create_network(1 << int(flag) if strong else 0)
    rng = np.random.default_rng(3)
    x = network.add_input("x", trt.float32, (1, 3, 12, 12))
    w = [rng.standard_normal(s).astype("f4") for s in ((middle, 3, 3, 3), (4, middle, 3, 3))]
    y = network.add_convolution_nd(x, middle, (3, 3), w[0], np.ones(middle, "f4"))
    y.name = "first"
    y = network.add_activation(y.get_output(0), trt.ActivationType.RELU)
    y.get_output(0).name = "h"
    if ranges:
        x.dynamic_range = (-ranges[0], ranges[0])
        y.get_output(0).set_dynamic_range(-ranges[1], ranges[1])
    y = network.add_convolution_nd(y.get_output(0), 4, (3, 3), w[1])
    y.name = "second"
    network.mark_output(y.get_output(0))
    return network


def run(e, x):
    return next(iter(e({"x": x}).values()))


X = RNG.standard_normal((1, 3, 12, 12)).astype("f4")


def test_dynamic_ranges_quantize():
    builder = trt.Builder(Log())
    plain = engine(builder, two_convolutions(builder), configured(builder, flags=()))
    quantized = engine(builder, two_convolutions(builder, (4.0, 20.0)), configured(builder))
    assert ops(quantized).count("int_conv") == 2
    want, got = run(plain, X), run(quantized, X)
    assert 1e-4 < np.abs(got - want).max() / np.abs(want).max() < 0.03


def test_inputs_that_little_work_is_done_with_stay_floats():
    builder = trt.Builder(Log())
    network = two_convolutions(builder, (4.0, 20.0), middle=4)
    assert ops(engine(builder, network, configured(builder))).count("int_conv") == 1
    network = two_convolutions(builder, (4.0, 20.0), middle=4)
    network.get_layer(0).precision = trt.int8  # unless they are asked to
    assert ops(engine(builder, network, configured(builder))).count("int_conv") == 2


def test_a_cache_needs_no_batches():
    builder = trt.Builder(Log())
    cal = calibrator([X])
    first = engine(builder, two_convolutions(builder), configured(builder, cal))
    again = calibrator([X], cache=cal.cache)
    second = engine(builder, two_convolutions(builder), configured(builder, again))
    assert cal.asked == 2 and again.asked == 0
    np.testing.assert_array_equal(run(first, X), run(second, X))


def test_ranges_by_hand_go_before_calibrated_ones():
    builder = trt.Builder(Log())
    cal = calibrator([X])
    e = engine(builder, two_convolutions(builder, (0.5, 30.0)), configured(builder, cal))
    assert cal.asked == 0 and np.abs(run(e, X)).max() > 0  # nothing was left to calibrate


def test_layers_with_a_precision_stay_as_they_are():
    builder = trt.Builder(Log())
    network = two_convolutions(builder, (4.0, 20.0))
    network.get_layer(0).precision = trt.float32
    assert ops(engine(builder, network, configured(builder))).count("int_conv") == 1


def test_every_layer_may_ask_for_int8():
    builder = trt.Builder(Log())
    network = two_convolutions(builder, (4.0, 20.0))
    for layer in (network.get_layer(i) for i in range(network.num_layers)):
        layer.precision = trt.int8
        layer.set_output_type(0, trt.int8)
    flags = (trt.BuilderFlag.INT8, trt.BuilderFlag.PREFER_PRECISION_CONSTRAINTS)
    e = engine(builder, network, configured(builder, flags=flags))
    plain = engine(builder, two_convolutions(builder), configured(builder, flags=()))
    want = run(plain, X)
    assert ops(e).count("int_conv") == 2
    assert np.abs(run(e, X) - want).max() < 0.03 * np.abs(want).max()


def test_precisions_that_cannot_be_obeyed():
    builder = trt.Builder(Log())
    network = two_convolutions(builder)
    network.get_input(0).dynamic_range = (-4.0, 4.0)
    network.get_layer(2).precision = trt.int8
    config = configured(builder, flags=(trt.BuilderFlag.INT8,
                                        trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS))
    assert engine(builder, network, config) is None
    assert "'second'" in builder.logger.errors and "no dynamic range" in builder.logger.errors


@pytest.mark.parametrize("flags,strong,reason", [
    ((), False, "BuilderFlag.INT8 is not set"), ((trt.BuilderFlag.INT8,), True, "strongly typed"),
])  # fmt: skip
def test_calibrators_that_are_not_asked(flags, strong, reason):
    builder = trt.Builder(Log())
    cal = calibrator([X])
    network = two_convolutions(builder, strong=strong)
    assert engine(builder, network, configured(builder, cal, flags)) is not None
    assert cal.asked == 0 and reason in builder.logger.warnings


def test_int8_without_ranges_is_said():
    builder = trt.Builder(Log())
    assert engine(builder, two_convolutions(builder), configured(builder)) is not None
    assert "nothing is quantized" in builder.logger.warnings


@pytest.mark.parametrize("broken,text", [
    ("get_batch", "calibrator.get_batch failed"), ("none", "gave no batches"),
    ("count", "gave 2 addresses for 1 inputs"),
])  # fmt: skip
def test_broken_calibrators(broken, text):
    builder = trt.Builder(Log())
    cal = calibrator([X])

    def get_batch(names):
        if broken == "get_batch":
            raise OSError("no file")
        return None if broken == "none" else [X.ctypes.data] * 2

    cal.get_batch = get_batch
    assert engine(builder, two_convolutions(builder), configured(builder, cal)) is None
    assert text in builder.logger.errors


def test_engines_that_carry_their_network_are_quantized_again():
    builder = trt.Builder(Log())
    cal = calibrator([X])
    config = configured(builder, cal, (trt.BuilderFlag.INT8, trt.BuilderFlag.REFIT))
    network = two_convolutions(builder)
    built = builder.build_engine_with_config(network, config)
    before = run(Engine(built), X)
    refitter = trt.Refitter(built, builder.logger)
    rng = np.random.default_rng(3)
    w = rng.standard_normal((16, 3, 3, 3)).astype("f4")
    assert refitter.set_weights("first", trt.WeightsRole.KERNEL, trt.Weights(w * 0.5))
    assert refitter.refit_cuda_engine()
    after = Engine(built)
    assert ops(after).count("int_conv") == 2
    assert np.abs(run(after, X) - before).max() > 0.1
