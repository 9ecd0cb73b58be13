"""The same in the spelling of TensorRT 10: tensors have names, work is enqueued."""

from __future__ import annotations

import digits
import numpy as np

import tactician as trt
from tactician import driver as cuda

TRT_LOGGER = trt.Logger(trt.Logger.WARNING)


def main() -> None:
    builder = trt.Builder(TRT_LOGGER)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, TRT_LOGGER)
    assert parser.parse_from_file(str(digits.MODEL))
    network.get_input(0).shape = (4, 1, 28, 28)
    plan = builder.build_serialized_network(network, builder.create_builder_config())
    engine = trt.Runtime(TRT_LOGGER).deserialize_cuda_engine(plan)
    context = engine.create_execution_context()

    images, labels = digits.load(4)
    stream = cuda.Stream()
    host, device = {}, {}
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        dtype = trt.nptype(engine.get_tensor_dtype(name))
        host[name] = np.zeros(tuple(engine.get_tensor_shape(name)), dtype)
        device[name] = cuda.mem_alloc(host[name].nbytes)
        context.set_tensor_address(name, int(device[name]))
        print(engine.get_tensor_mode(name).name, name, host[name].shape, dtype.__name__)

    host["image"][...] = images
    cuda.memcpy_htod_async(device["image"], host["image"], stream)
    assert context.execute_async_v3(stream_handle=stream.handle)
    cuda.memcpy_dtoh_async(host["probabilities"], device["probabilities"], stream)
    stream.synchronize()
    digits.check(host["probabilities"], labels)


if __name__ == "__main__":
    main()
