"""One engine for many batch sizes: an optimization profile says which."""

from __future__ import annotations

import digits
import numpy as np

import tactician as trt
from tactician import driver as cuda

TRT_LOGGER = trt.Logger(trt.Logger.WARNING)


def build() -> trt.ICudaEngine:
    """An engine for batches of 1 to 32, tuned for 8."""
    builder = trt.Builder(TRT_LOGGER)
    network = builder.create_network(0)
    assert trt.OnnxParser(network, TRT_LOGGER).parse_from_file(str(digits.MODEL))
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    profile.set_shape("image", (1, 1, 28, 28), (8, 1, 28, 28), (32, 1, 28, 28))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    return trt.Runtime(TRT_LOGGER).deserialize_cuda_engine(plan)


def main() -> None:
    engine = build()
    context = engine.create_execution_context()
    d_input = cuda.mem_alloc(32 * 28 * 28 * 4)
    d_output = cuda.mem_alloc(32 * 10 * 4)
    for batch in (1, 5, 32):
        images, labels = digits.load(batch)
        assert context.set_input_shape("image", images.shape)
        out = np.empty(tuple(context.get_tensor_shape("probabilities")), np.float32)
        cuda.memcpy_htod(d_input, images)
        assert context.execute_v2([int(d_input), int(d_output)])
        cuda.memcpy_dtoh(out, d_output)
        assert out.shape == (batch, 10)
        digits.check(out, labels)

    # What the profile does not allow is refused, with a message that says so.
    assert not context.set_input_shape("image", (33, 1, 28, 28))


if __name__ == "__main__":
    main()
