"""CUDA's runtime through ctypes in the ways that programs load it, without declared signatures."""

import ctypes
from ctypes import byref, c_float, c_int, c_size_t, c_void_p, cdll

import numpy as np

libs = [cdll.LoadLibrary("libcudart.so.12"), ctypes.CDLL("/usr/local/cuda/lib64/libcudart.so.11.0"),
        cdll["libcudart.so"], ctypes.CDLL("libcudart.so", mode=ctypes.RTLD_GLOBAL)]
lib = libs[0]

count, version, free, total = c_int(), c_int(), c_size_t(), c_size_t()
assert all(x.cudaGetDeviceCount(byref(count)) == 0 and count.value == 1 for x in libs)
assert lib.cudaSetDevice(0) == 0 and lib.cudaSetDevice(1) == 101  # cudaErrorInvalidDevice
assert lib.cudaGetLastError() == 101 and lib.cudaGetLastError() == 0
assert lib.cudaRuntimeGetVersion(byref(version)) == 0 and version.value >= 11000
assert lib.cudaMemGetInfo(byref(free), byref(total)) == 0 and 0 < free.value <= total.value
assert lib.cudaMalloc(None, 16) == 1  # nowhere to write the address to
lib.cudaGetErrorName.restype = ctypes.c_char_p
assert lib.cudaGetErrorName(2) == b"cudaErrorMemoryAllocation"

n = 1 << 12
device, locked, stream = c_void_p(), c_void_p(), c_void_p()
begin, end = c_void_p(), c_void_p()
assert lib.cudaMalloc(byref(device), n) == lib.cudaMallocHost(byref(locked), n) == 0
assert lib.cudaStreamCreateWithFlags(byref(stream), 1) == 0
assert lib.cudaEventCreate(byref(begin)) == lib.cudaEventCreate(byref(end)) == 0
assert lib.cudaEventRecord(begin, stream) == 0
assert lib.cudaMemsetAsync(device, 7, n, stream) == 0
assert lib.cudaMemcpyAsync(locked, device.value, n, 2, stream.value) == 0
assert lib.cudaEventRecord(end, stream) == lib.cudaEventSynchronize(end) == 0
ms = c_float(-1)
assert lib.cudaEventElapsedTime(byref(ms), begin, end) == 0 and ms.value >= 0
seen = np.ctypeslib.as_array(ctypes.cast(locked, ctypes.POINTER(ctypes.c_uint8)), (n,))
assert (seen == 7).all()
assert lib.cudaStreamQuery(stream) == 0 and lib.cudaDeviceSynchronize() == 0
assert lib.cudaEventDestroy(begin) == lib.cudaEventDestroy(end) == 0
assert lib.cudaStreamDestroy(stream) == 0 and lib.cudaStreamSynchronize(stream) == 400
assert lib.cudaFree(device) == lib.cudaFreeHost(locked) == 0 and lib.cudaFree(device) == 1
try:
    lib.cudaNoSuchFunction  # noqa: B018
except AttributeError as e:
    assert "cudaNoSuchFunction" in str(e)
else:
    raise AssertionError("a function that the runtime hasn't")
print("OK")
