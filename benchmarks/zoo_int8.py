"""Networks of zoo.py quantized by onnxruntime's own tools, for measuring speed.

``NAME_int8`` is quantized statically: a Q/DQ model, u8 activations by s8 weights, one scale per
channel, calibrated on random inputs. ``NAME_dynamic`` is quantized dynamically: MatMulInteger on
activations whose scales are found while running.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx

Maker = Callable[[], onnx.ModelProto]
_SAMPLES = 4  # random inputs that ranges are taken from


class _Samples:
    """Random inputs, as onnxruntime's calibration reads them."""

    def __init__(self, model: onnx.ModelProto):
        rng = np.random.default_rng(1)
        value = model.graph.input[0]
        shape = [d.dim_value or 1 for d in value.type.tensor_type.shape.dim]
        self.items = [
            {value.name: rng.standard_normal(shape, dtype=np.float32)} for _ in range(_SAMPLES)
        ]

    def get_next(self) -> dict[str, np.ndarray[Any, Any]] | None:
        return self.items.pop() if self.items else None


def static(make: Maker) -> onnx.ModelProto:
    """The network in Q/DQ form."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(_Samples, CalibrationDataReader):
        pass

    model = make()
    with tempfile.TemporaryDirectory() as folder:
        plain, tidy, done = (Path(folder) / f"{n}.onnx" for n in ("plain", "tidy", "int8"))
        onnx.save(model, plain)
        quant_pre_process(plain, tidy, skip_symbolic_shape=True)
        quantize_static(
            tidy, done, Reader(model), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
        )
        return onnx.load(done)


def dynamic(make: Maker) -> onnx.ModelProto:
    """The network with dynamically quantized matrix products."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        plain, done = Path(folder) / "plain.onnx", Path(folder) / "int8.onnx"
        onnx.save(make(), plain)
        quantize_dynamic(plain, done, weight_type=QuantType.QInt8)
        return onnx.load(done)


def models(floats: dict[str, Maker]) -> dict[str, Maker]:
    """Makers of quantized networks by name, from those in floats."""
    found: dict[str, Maker] = {}
    for kind, make, names in (
        ("int8", static, ("resnet50", "mobilenet_v2", "mobilenet_v3", "efficientnet_b0")),
        ("dynamic", dynamic, ("bert_base", "lstm")),
    ):
        for name in names:
            found[f"{name}_{kind}"] = lambda make=make, name=name: make(floats[name])
    return found
