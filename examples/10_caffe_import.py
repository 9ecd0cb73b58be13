"""A Caffe model with implicit batch, as programs for TensorRT 5 to 7 read it.

Up to release 8 `create_network()` meant implicit batch; the variable below says which release to
be like.
"""

from __future__ import annotations

import os

os.environ["TACTICIAN_TRT_VERSION"] = "7.2.2"

import digits
import numpy as np

import tactician as trt
from tactician import driver as cuda

TRT_LOGGER = trt.Logger(trt.Logger.WARNING)
DEPLOY = digits.MODEL.with_suffix(".prototxt")
WEIGHTS = digits.MODEL.with_suffix(".caffemodel")


def build() -> trt.ICudaEngine:
    """An engine of the shipped LeNet for up to 16 images."""
    with (
        trt.Builder(TRT_LOGGER) as builder,
        builder.create_network() as network,
        trt.CaffeParser() as parser,
    ):
        builder.max_batch_size = 16
        builder.max_workspace_size = 1 << 28
        tensors = parser.parse(
            deploy=str(DEPLOY), model=str(WEIGHTS), network=network, dtype=trt.float32
        )
        network.mark_output(tensors.find("probabilities"))
        return builder.build_cuda_engine(network)


def main() -> None:
    images, labels = digits.load(12)
    out = np.empty((len(images), 10), np.float32)
    with build() as engine, engine.create_execution_context() as context:
        print("one image is", tuple(engine.get_binding_shape("image")))
        d_input, d_output = cuda.mem_alloc(images.nbytes), cuda.mem_alloc(out.nbytes)
        cuda.memcpy_htod(d_input, images)
        assert context.execute(batch_size=len(images), bindings=[int(d_input), int(d_output)])
        cuda.memcpy_dtoh(out, d_output)
    digits.check(out, labels)


if __name__ == "__main__":
    main()
