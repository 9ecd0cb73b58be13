"""`OnnxParserRefitter`: new weights from a model of the same architecture."""

from __future__ import annotations

from typing import Any

import numpy as np
from models import Quiet, model, tensor, weights
from onnx import helper

import tactician as trt
from tactician.runtime.easy import Engine

node = helper.make_node
RNG = np.random.default_rng(3)


def network_model() -> Any:
    w = {"w": RNG.standard_normal((4, 3, 3, 3)), "fc": RNG.standard_normal((4, 5)),
         **{k: np.abs(RNG.standard_normal(4)) for k in ("scale", "bias", "mean", "var")}}
    return model([node("Conv", ["x", "w"], ["a"], name="conv"),
                  node("BatchNormalization", ["a", "scale", "bias", "mean", "var"], ["b"],
                       name="bn", epsilon=0.01),
                  node("Relu", ["b"], ["r"], name="relu"),
                  node("GlobalAveragePool", ["r"], ["p"], name="pool"),
                  node("Flatten", ["p"], ["f"], name="flat"),
                  node("MatMul", ["f", "fc"], ["y"], name="fc")],
                 [tensor("x", [2, 3, 8, 8])], [tensor("y", [2, 5])],
                 initializers=weights(**{k: v.astype(np.float32) for k, v in w.items()}))


def build(m: Any, refit: bool) -> Any:
    builder = trt.Builder(Quiet())
    network, config = builder.create_network(), builder.create_builder_config()
    assert trt.OnnxParser(network, Quiet()).parse(m.SerializeToString())
    config.builder_optimization_level = 0
    if refit:
        config.set_flag(trt.BuilderFlag.REFIT)
    plan = builder.build_serialized_network(network, config)
    return trt.Runtime(Quiet()).deserialize_cuda_engine(plan)


def test_refit() -> None:
    old, new = network_model(), network_model()
    x = RNG.standard_normal((2, 3, 8, 8)).astype(np.float32)
    engine = build(old, refit=True)
    before = Engine(engine)(x)["y"]
    refitter = trt.Refitter(engine, Quiet())
    parser = trt.OnnxParserRefitter(refitter, Quiet())
    assert parser.refit_from_bytes(new.SerializeToString()), parser.get_error(0)
    assert refitter.refit_cuda_engine()
    after, expected = Engine(engine)(x)["y"], Engine(build(new, refit=False))(x)["y"]
    assert np.abs(after - before).max() > 0.01
    np.testing.assert_allclose(after, expected, rtol=1e-5, atol=1e-5)


def test_refit_from_another_model_is_refused() -> None:
    other = model([node("Mul", ["x", "k"], ["y"])], [tensor("x", [2])], [tensor("y", [2])],
                  initializers=weights(k=np.float32([1, 2])))
    parser = trt.OnnxParserRefitter(trt.Refitter(build(network_model(), True), Quiet()), Quiet())
    assert not parser.refit_from_bytes(other.SerializeToString())
    assert "none of the engine's weights" in parser.get_error(0).desc()
    assert parser.num_errors == 1
    parser.clear_errors()
    assert not parser.refit_from_bytes(b"junk") and parser.num_errors == 1
