"""Inference as programs for TensorRT 5 do it: page-locked buffers, a stream, bindings.

With TensorRT the second import is `import pycuda.driver as cuda`.
"""

from __future__ import annotations

import digits
import numpy as np

import tactician as trt
from tactician import driver as cuda

TRT_LOGGER = trt.Logger(trt.Logger.WARNING)
EXPLICIT_BATCH = 1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)


def build() -> trt.ICudaEngine:
    """An engine of the shipped LeNet for one image."""
    with (
        trt.Builder(TRT_LOGGER) as builder,
        builder.create_network(EXPLICIT_BATCH) as network,
        trt.OnnxParser(network, TRT_LOGGER) as parser,
    ):
        builder.max_workspace_size = 1 << 28
        assert parser.parse(digits.MODEL.read_bytes())
        network.get_input(0).shape = (1, 1, 28, 28)
        return builder.build_cuda_engine(network)


def main() -> None:
    with build() as engine:
        # Page-locked memory on the host, memory on the device, a stream that orders the work.
        h_input = cuda.pagelocked_empty(trt.volume(engine.get_binding_shape(0)), dtype=np.float32)
        h_output = cuda.pagelocked_empty(trt.volume(engine.get_binding_shape(1)), dtype=np.float32)
        d_input = cuda.mem_alloc(h_input.nbytes)
        d_output = cuda.mem_alloc(h_output.nbytes)
        stream = cuda.Stream()

        images, labels = digits.load(10)
        results = []
        with engine.create_execution_context() as context:
            for image in images:
                np.copyto(h_input, image.ravel())
                cuda.memcpy_htod_async(d_input, h_input, stream)
                context.execute_async(
                    bindings=[int(d_input), int(d_output)], stream_handle=stream.handle
                )
                cuda.memcpy_dtoh_async(h_output, d_output, stream)
                stream.synchronize()
                results.append(h_output.copy())
        digits.check(np.array(results), labels)


if __name__ == "__main__":
    main()
