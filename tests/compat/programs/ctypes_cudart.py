"""CUDA's runtime through ctypes, with signatures that the program declares itself."""

import ctypes
import ctypes.util

import numpy as np
import tensorrt as trt

lib = ctypes.CDLL(ctypes.util.find_library("cudart") or "libcudart.so")
lib.cudaMalloc.argtypes = [ctypes.POINTER(ctypes.c_void_p), ctypes.c_size_t]
lib.cudaMalloc.restype = ctypes.c_int
lib.cudaMemcpy.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
lib.cudaGetErrorString.restype = ctypes.c_char_p


def malloc(nbytes):
    out = ctypes.c_void_p()
    assert lib.cudaMalloc(ctypes.byref(out), nbytes) == 0
    return out


logger = trt.Logger(trt.Logger.ERROR)
builder = trt.Builder(logger)
network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH))
x = network.add_input("x", trt.float32, (3, 4))
y = network.add_unary(x, trt.UnaryOperation.EXP).get_output(0)
y.name = "y"
network.mark_output(y)
plan = builder.build_serialized_network(network, builder.create_builder_config())
context = trt.Runtime(logger).deserialize_cuda_engine(plan).create_execution_context()

data = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
got = np.empty_like(data)
d_x, d_y, stream = malloc(data.nbytes), malloc(data.nbytes), ctypes.c_void_p()
assert lib.cudaStreamCreate(ctypes.byref(stream)) == 0
assert lib.cudaMemcpy(d_x, data.ctypes.data, data.nbytes, 1) == 0
context.set_tensor_address("x", d_x.value)
context.set_tensor_address("y", d_y.value)
assert context.execute_async_v3(stream.value)
assert lib.cudaStreamSynchronize(stream) == 0
assert lib.cudaMemcpy(got.ctypes.data, d_y, data.nbytes, 2) == 0
np.testing.assert_allclose(got, np.exp(data), rtol=1e-5)
assert lib.cudaMemcpy(d_x, data.ctypes.data, data.nbytes + 4096, 1) == 1  # past the block's end
assert b"invalid" in lib.cudaGetErrorString(1)
assert lib.cudaFree(d_x) == 0 and lib.cudaFree(d_y) == 0 and lib.cudaStreamDestroy(stream) == 0
print("OK")
