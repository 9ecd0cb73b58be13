"""Tensor names, cuda-python and page-locked buffers, as samples for TensorRT 10 are written."""

import ctypes
import sys

import numpy as np
import tensorrt as trt
from cuda.bindings import driver as cuda
from cuda.bindings import runtime as cudart


def check(result):
    err, *values = result
    if isinstance(err, cuda.CUresult):
        assert err == cuda.CUresult.CUDA_SUCCESS, err
    else:
        assert err == cudart.cudaError_t.cudaSuccess, err
    return values[0] if len(values) == 1 else tuple(values) if values else None


class HostDeviceMem:
    def __init__(self, size, dtype):
        dtype = np.dtype(dtype)
        self.nbytes = size * dtype.itemsize
        host = check(cudart.cudaMallocHost(self.nbytes))
        kind = ctypes.POINTER(np.ctypeslib.as_ctypes_type(dtype))
        self.host = np.ctypeslib.as_array(ctypes.cast(host, kind), (size,))
        self.device = check(cudart.cudaMalloc(self.nbytes))

    def free(self):
        check(cudart.cudaFree(self.device))
        check(cudart.cudaFreeHost(self.host.ctypes.data))


logger = trt.Logger(trt.Logger.ERROR)
builder = trt.Builder(logger)
network = builder.create_network(0)
parser = trt.OnnxParser(network, logger)
assert parser.parse_from_file(sys.argv[1])
config = builder.create_builder_config()
config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, 1 << 28)
profile = builder.create_optimization_profile()
profile.set_shape(network.get_input(0).name, (1, 1, 28, 28), (2, 1, 28, 28), (4, 1, 28, 28))
config.add_optimization_profile(profile)
runtime = trt.Runtime(logger)
engine = runtime.deserialize_cuda_engine(builder.build_serialized_network(network, config))

count = check(cudart.cudaGetDeviceCount())
assert count >= 1
check(cudart.cudaSetDevice(0))
stream = check(cudart.cudaStreamCreate())
start, end = check(cudart.cudaEventCreate()), check(cudart.cudaEventCreate())
context = engine.create_execution_context()
assert context.set_optimization_profile_async(0, stream)
buffers = {}
for i in range(engine.num_io_tensors):
    name = engine.get_tensor_name(i)
    shape = engine.get_tensor_profile_shape(name, 0)[2] \
        if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT else (4, 10)
    buffers[name] = HostDeviceMem(trt.volume(shape), trt.nptype(engine.get_tensor_dtype(name)))
    context.set_tensor_address(name, buffers[name].device)
[source] = [n for n in buffers if engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
[result] = [n for n in buffers if n != source]
x = np.random.default_rng(10).random((3, 1, 28, 28), np.float32)
context.set_input_shape(source, x.shape)
np.copyto(buffers[source].host[:x.size], x.ravel())

kind = cudart.cudaMemcpyKind
check(cudart.cudaEventRecord(start, stream))
check(cudart.cudaMemcpyAsync(buffers[source].device, buffers[source].host, x.nbytes,
                             kind.cudaMemcpyHostToDevice, stream))
assert context.execute_async_v3(stream_handle=stream)
check(cudart.cudaMemcpyAsync(buffers[result].host, buffers[result].device,
                             buffers[result].nbytes, kind.cudaMemcpyDeviceToHost, stream))
check(cudart.cudaEventRecord(end, stream))
check(cudart.cudaStreamSynchronize(stream))
assert check(cudart.cudaEventElapsedTime(start, end)) > 0
y = buffers[result].host.reshape(4, 10)[:3].copy()
np.testing.assert_allclose(y.sum(1), 1, rtol=1e-4)
np.save(sys.argv[2], y)
for b in buffers.values():
    b.free()
err, = cudart.cudaFree(12345)
assert err == cudart.cudaError_t.cudaErrorInvalidValue
check(cudart.cudaStreamDestroy(stream))
print("OK")
