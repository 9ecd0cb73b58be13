"""Networks of zoo.py in Q/DQ form as GPUs like it: i8 activations without zero points.

Ranges come from a few random inputs; weights have one scale per channel.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx


def quantized(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with quantized convolutions, products, additions and pooling."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    value = model.graph.input[0]
    shape = [d.dim_value for d in value.type.tensor_type.shape.dim]
    rng = np.random.default_rng(1)
    feeds = [{value.name: rng.standard_normal(shape, dtype=np.float32)} for _ in range(4)]

    class Reader(CalibrationDataReader):
        def get_next(self) -> dict[str, Any] | None:
            return feeds.pop() if feeds else None

    with tempfile.TemporaryDirectory() as folder:
        plain, tidy, done = (Path(folder) / f"{n}.onnx" for n in ("plain", "tidy", "int8"))
        onnx.save(model, plain)
        quant_pre_process(plain, tidy, skip_symbolic_shape=True)
        quantize_static(
            tidy, done, Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QInt8, weight_type=QuantType.QInt8,
            extra_options={"ActivationSymmetric": True},
        )
        return onnx.load(done)


def with_batch(model: onnx.ModelProto, batch: int) -> onnx.ModelProto:
    """The model for another batch size: no constant of it may depend on the batch."""
    out = onnx.ModelProto()
    out.CopyFrom(model)
    del out.graph.value_info[:]
    for v in (*out.graph.input, *out.graph.output):
        v.type.tensor_type.shape.dim[0].dim_value = batch
    return out
