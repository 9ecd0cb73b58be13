"""CUDA's driver API (``cuda.bindings.driver``, ``cuda.cuda``) on host memory: what programs around
TensorRT use. Functions return tuples that begin with a `CUresult`."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Any

import numpy as np

from ..runtime import driver
from . import cudart
from . import hostcuda as host


class CUresult(IntEnum):
    """Results of calls."""

    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_NOT_INITIALIZED = 3
    CUDA_ERROR_NO_DEVICE = 100
    CUDA_ERROR_INVALID_DEVICE = 101
    CUDA_ERROR_INVALID_CONTEXT = 201
    CUDA_ERROR_INVALID_HANDLE = 400
    CUDA_ERROR_NOT_READY = 600
    CUDA_ERROR_LAUNCH_FAILED = 719
    CUDA_ERROR_NOT_SUPPORTED = 801
    CUDA_ERROR_UNKNOWN = 999


class CUdevice_attribute(IntEnum):
    """What `cuDeviceGetAttribute` can tell."""

    CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT = 16
    CU_DEVICE_ATTRIBUTE_INTEGRATED = 18
    CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING = 41
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76


class CUstream_flags(IntEnum):
    """Flags of streams; all streams order themselves with the default stream."""

    CU_STREAM_DEFAULT = 0
    CU_STREAM_NON_BLOCKING = 1


class CUevent_flags(IntEnum):
    """Flags of events."""

    CU_EVENT_DEFAULT = 0
    CU_EVENT_BLOCKING_SYNC = 1
    CU_EVENT_DISABLE_TIMING = 2


class CUdeviceptr(cudart._Handle):
    """An address in device memory."""


class CUdevice(cudart._Handle):
    """A device."""


class CUcontext(cudart._Handle):
    """A context."""


class CUstream(cudart.cudaStream_t):
    """A stream."""


class CUevent(cudart.cudaEvent_t):
    """An event."""


_CONTEXT = 1  # the only context there is
_current: list[int] = []


def _result(code: int) -> CUresult:
    try:
        return CUresult(code)
    except ValueError:
        return CUresult.CUDA_ERROR_UNKNOWN


def _via(function: Callable[..., Any], make: Callable[[Any], Any] | None = None,
         doc: str = "") -> Callable[..., Any]:
    """A driver function that is a runtime function, its result made by ``make``."""

    def call(*args: Any, **kwargs: Any) -> tuple[Any, ...]:
        error, *out = function(*args, **kwargs)
        return (_result(int(error)),
                *[x if x is None or make is None else make(x) for x in out])

    call.__doc__ = doc or f"As `{getattr(function, '__name__', 'the runtime')}`."
    return call


def _copy(dst: Any, src: Any, count: int, stream: Any = 0) -> tuple[Any, ...]:
    return cudart.cudaMemcpyAsync(dst, src, count, 4, stream)


def _set(dtype: Any) -> Callable[..., Any]:
    @cudart._call(0)
    def fill(dst: Any, value: int, count: int, stream: Any = 0) -> None:
        host.fill(dst, value, int(count), dtype, stream)

    return fill


cuMemAlloc = _via(cudart.cudaMalloc, CUdeviceptr)
cuMemAllocAsync = _via(cudart.cudaMallocAsync, CUdeviceptr)
cuMemAllocManaged = _via(cudart.cudaMallocManaged, CUdeviceptr)
cuMemFree = _via(cudart.cudaFree)
cuMemFreeAsync = _via(cudart.cudaFreeAsync)
cuMemAllocHost = _via(cudart.cudaMallocHost)
cuMemHostAlloc = _via(cudart.cudaHostAlloc)
cuMemFreeHost = _via(cudart.cudaFreeHost)
cuMemHostRegister = _via(cudart.cudaHostRegister)
cuMemHostUnregister = _via(cudart.cudaHostUnregister)
cuMemcpyHtoD = cuMemcpyDtoH = cuMemcpyDtoD = cuMemcpy = _via(_copy)
cuMemcpyHtoDAsync = cuMemcpyDtoHAsync = cuMemcpyDtoDAsync = cuMemcpyAsync = _via(_copy)
cuMemsetD8 = cuMemsetD8Async = _via(_set(np.uint8))
cuMemsetD16 = cuMemsetD16Async = _via(_set(np.uint16))
cuMemsetD32 = cuMemsetD32Async = _via(_set(np.uint32))
cuMemGetInfo = _via(cudart.cudaMemGetInfo)
cuStreamCreate = _via(cudart.cudaStreamCreateWithFlags, CUstream)
cuStreamCreateWithPriority = _via(cudart.cudaStreamCreateWithPriority, CUstream)
cuStreamDestroy = _via(cudart.cudaStreamDestroy)
cuStreamSynchronize = _via(cudart.cudaStreamSynchronize)
cuStreamQuery = _via(cudart.cudaStreamQuery)
cuStreamWaitEvent = _via(cudart.cudaStreamWaitEvent)
cuEventCreate = _via(cudart.cudaEventCreateWithFlags, CUevent)
cuEventRecord = _via(cudart.cudaEventRecord)
cuEventSynchronize = _via(cudart.cudaEventSynchronize)
cuEventQuery = _via(cudart.cudaEventQuery)
cuEventElapsedTime = _via(cudart.cudaEventElapsedTime)
cuEventDestroy = _via(cudart.cudaEventDestroy)
cuCtxSynchronize = _via(cudart.cudaDeviceSynchronize)
cuDeviceGetCount = _via(cudart.cudaGetDeviceCount)
cuDeviceGetAttribute = _via(cudart.cudaDeviceGetAttribute)
cuDriverGetVersion = _via(cudart.cudaDriverGetVersion)
cuModuleLoadData = _via(cudart._refused("cuModuleLoadData", 1))
cuModuleGetFunction = _via(cudart._refused("cuModuleGetFunction", 1))
cuLaunchKernel = _via(cudart._refused("cuLaunchKernel", 0))


@_via
@cudart._call(0)
def cuInit(Flags: int = 0) -> None:
    """There is no driver to initialize."""


@_via
@cudart._call(1)
def cuDeviceGet(ordinal: int) -> CUdevice:
    """Device 0."""
    return CUdevice(host.check_device(ordinal))


@_via
@cudart._call(1)
def cuDeviceGetName(length: int, dev: Any) -> bytes:
    """The processor's name."""
    host.check_device(dev)
    return driver.Device(0).name().encode()[: int(length)]


@_via
@cudart._call(1)
def cuDeviceTotalMem(dev: Any) -> int:
    """Bytes of memory."""
    host.check_device(dev)
    return driver.mem_get_info()[1]


@_via
@cudart._call(2)
def cuDeviceComputeCapability(dev: Any) -> tuple[int, int]:
    """0.0: no CUDA device."""
    host.check_device(dev)
    return driver.Device(0).compute_capability()


@_via
@cudart._call(1)
def cuCtxCreate(*args: Any) -> CUcontext:
    """Makes the context current. Arguments end with flags and device."""
    host.check_device(args[-1] if args else 0)
    _current.append(_CONTEXT)
    return CUcontext(_CONTEXT)


@_via
@cudart._call(1)
def cuDevicePrimaryCtxRetain(dev: Any) -> CUcontext:
    """The context."""
    host.check_device(dev)
    return CUcontext(_CONTEXT)


@_via
@cudart._call(0)
def cuDevicePrimaryCtxRelease(dev: Any) -> None:
    """Nothing to free."""
    host.check_device(dev)


@_via
@cudart._call(0)
def cuCtxSetCurrent(ctx: Any) -> None:
    """Makes a context the current one."""
    _current[-1:] = [int(ctx)] if int(ctx) else []


@_via
@cudart._call(0)
def cuCtxPushCurrent(ctx: Any) -> None:
    """Makes a context the current one."""
    _current.append(int(ctx))


@_via
@cudart._call(1)
def cuCtxPopCurrent() -> CUcontext:
    """Undoes `cuCtxPushCurrent`."""
    if not _current:
        raise host.CudaError(201, "no context is current")
    return CUcontext(_current.pop())


@_via
@cudart._call(1)
def cuCtxGetCurrent() -> CUcontext:
    """The current context, or 0."""
    return CUcontext(_current[-1] if _current else 0)


@_via
@cudart._call(1)
def cuCtxGetDevice() -> CUdevice:
    """Device 0."""
    return CUdevice(0)


@_via
@cudart._call(0)
def cuCtxDestroy(ctx: Any) -> None:
    """Waits for all work; memory stays."""
    host.synchronize_all()
    if _current:
        _current.pop()


@_via
@cudart._call(1)
def cuGetErrorName(error: Any) -> bytes:
    """Name of a result."""
    return _result(int(error)).name.encode()


@_via
@cudart._call(1)
def cuGetErrorString(error: Any) -> bytes:
    """What a result means."""
    name = _result(int(error)).name.removeprefix("CUDA_").removeprefix("ERROR_")
    return name.lower().replace("_", " ").encode()


__all__ = [n for n in list(globals()) if n.startswith(("cu", "CU")) and n != "cudart"]
