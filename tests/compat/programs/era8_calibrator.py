"""INT8 with a calibrator that feeds batches and keeps a cache (TensorRT 8)."""

import os
import sys

import numpy as np
import pycuda.autoinit  # noqa: F401
import pycuda.driver as cuda
import tensorrt as trt

LOGGER = trt.Logger(trt.Logger.ERROR)
CACHE = sys.argv[1]


class Calibrator(trt.IInt8EntropyCalibrator2):
    def __init__(self, batches, cache_file):
        trt.IInt8EntropyCalibrator2.__init__(self)
        self.batches = batches
        self.at = 0
        self.cache_file = cache_file
        self.device_input = cuda.mem_alloc(batches[0].nbytes)

    def get_batch_size(self):
        return len(self.batches[0])

    def get_batch(self, names):
        if self.at == len(self.batches):
            return None
        cuda.memcpy_htod(self.device_input, np.ascontiguousarray(self.batches[self.at]))
        self.at += 1
        return [int(self.device_input)]

    def read_calibration_cache(self):
        if os.path.exists(self.cache_file):
            with open(self.cache_file, "rb") as f:
                return f.read()

    def write_calibration_cache(self, cache):
        with open(self.cache_file, "wb") as f:
            f.write(cache)


rng = np.random.default_rng(8)
weights = rng.standard_normal((8, 3, 3, 3), np.float32)
batches = [rng.standard_normal((2, 3, 8, 8), np.float32) for _ in range(4)]


def build(calibrator):
    builder = trt.Builder(LOGGER)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH))
    x = network.add_input("x", trt.float32, (2, 3, 8, 8))
    y = network.add_convolution_nd(x, 8, (3, 3), weights, trt.Weights())
    y = network.add_activation(y.get_output(0), trt.ActivationType.RELU)
    y.get_output(0).name = "y"
    network.mark_output(y.get_output(0))
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, 1 << 24)
    config.set_flag(trt.BuilderFlag.INT8)
    config.int8_calibrator = calibrator
    return trt.Runtime(LOGGER).deserialize_cuda_engine(
        builder.build_serialized_network(network, config))


first = Calibrator(batches, CACHE)
engine = build(first)
assert first.at == len(batches), f"{first.at} of {len(batches)} batches were asked for"
assert os.path.getsize(CACHE) > 0
again = Calibrator(batches, CACHE)
build(again)
assert again.at == 0, "the cache was there, but batches were asked for"

x, y = batches[0], np.empty((2, 8, 6, 6), np.float32)
d_x, d_y = cuda.mem_alloc(x.nbytes), cuda.mem_alloc(y.nbytes)
cuda.memcpy_htod(d_x, x)
assert engine.create_execution_context().execute_v2([int(d_x), int(d_y)])
cuda.memcpy_dtoh(y, d_y)
want = np.zeros_like(y)
for i in range(3):
    for j in range(3):
        want += np.einsum("nchw,oc->nohw", x[:, :, i:i + 6, j:j + 6], weights[:, :, i, j])
want = np.maximum(want, 0)
error = np.abs(y - want).max() / want.max()
assert error < 0.05, error
print("OK")
