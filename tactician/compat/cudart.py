"""CUDA's runtime API (``cuda.bindings.runtime``, ``cuda.cudart``) on host memory.

The part that programs around TensorRT use. Functions return tuples that begin with a
`cudaError_t`. Kernels, graphs and textures are not there: those calls return
``cudaErrorNotSupported``.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from enum import IntEnum
from functools import wraps
from typing import Any

from ..runtime import driver
from . import hostcuda as host


class cudaError_t(IntEnum):
    """Results of calls."""

    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInitializationError = 3
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorInvalidDevice = 101
    cudaErrorInvalidResourceHandle = 400
    cudaErrorNotReady = 600
    cudaErrorIllegalAddress = 700
    cudaErrorLaunchFailure = 719
    cudaErrorNotPermitted = 800
    cudaErrorNotSupported = 801
    cudaErrorUnknown = 999


class cudaMemcpyKind(IntEnum):
    """Directions of copies."""

    cudaMemcpyHostToHost = 0
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3
    cudaMemcpyDefault = 4


class cudaDeviceAttr(IntEnum):
    """What `cudaDeviceGetAttribute` can tell."""

    cudaDevAttrMaxThreadsPerBlock = 1
    cudaDevAttrMaxSharedMemoryPerBlock = 8
    cudaDevAttrWarpSize = 10
    cudaDevAttrClockRate = 13
    cudaDevAttrMultiProcessorCount = 16
    cudaDevAttrIntegrated = 18
    cudaDevAttrCanMapHostMemory = 19
    cudaDevAttrL2CacheSize = 38
    cudaDevAttrUnifiedAddressing = 41
    cudaDevAttrComputeCapabilityMajor = 75
    cudaDevAttrComputeCapabilityMinor = 76
    cudaDevAttrManagedMemory = 83
    cudaDevAttrMemoryPoolsSupported = 115


class cudaStreamCaptureMode(IntEnum):
    """Modes of recording graphs, which are not supported."""

    cudaStreamCaptureModeGlobal = 0
    cudaStreamCaptureModeThreadLocal = 1
    cudaStreamCaptureModeRelaxed = 2


class _Handle:
    """A number that stands for something of CUDA's."""

    def __init__(self, init_value: Any = 0):
        self._value = int(init_value)

    def getPtr(self) -> int:
        return self._value

    def __int__(self) -> int:
        return self._value

    __index__ = __int__

    def __eq__(self, other: object) -> bool:
        return int(other) == self._value if isinstance(other, (_Handle, int)) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._value)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._value:#x}>"


class cudaStream_t(_Handle):
    """A stream."""


class cudaEvent_t(_Handle):
    """An event."""


class cudaDeviceProp:
    """Properties of the host as a device.

    Attributes:
        name: The processor's name.
        totalGlobalMem: Bytes of memory.
        major, minor: Compute capability: 0.0, no CUDA device.
        multiProcessorCount: Number of cores.
    """

    def __init__(self) -> None:
        self.name = driver.Device(0).name().encode()
        self.totalGlobalMem = driver.mem_get_info()[1]
        self.major, self.minor = driver.Device(0).compute_capability()
        self.multiProcessorCount = os.cpu_count() or 1
        self.warpSize = 1
        self.maxThreadsPerBlock = 1
        self.sharedMemPerBlock = 0
        self.l2CacheSize = 0
        self.integrated = self.canMapHostMemory = self.unifiedAddressing = 1
        self.managedMemory = 1
        self.pciBusID = self.pciDeviceID = self.pciDomainID = 0


_FLAGS = {
    "cudaStreamDefault": 0, "cudaStreamNonBlocking": 1, "cudaEventDefault": 0,
    "cudaEventBlockingSync": 1, "cudaEventDisableTiming": 2, "cudaEventInterprocess": 4,
    "cudaHostAllocDefault": 0, "cudaHostAllocPortable": 1, "cudaHostAllocMapped": 2,
    "cudaHostAllocWriteCombined": 4, "cudaHostRegisterDefault": 0, "cudaMemAttachGlobal": 1,
    "cudaMemAttachHost": 2, "cudaDeviceScheduleAuto": 0, "cudaStreamLegacy": 1,
    "cudaStreamPerThread": 2, "CUDART_VERSION": 12080,
}  # fmt: skip
globals().update(_FLAGS)
_last = cudaError_t.cudaSuccess


def _error(code: int) -> cudaError_t:
    global _last
    try:
        found = cudaError_t(code)
    except ValueError:
        found = cudaError_t.cudaErrorUnknown
    if found not in (cudaError_t.cudaSuccess, cudaError_t.cudaErrorNotReady):
        _last = found
    return found


def _call(count: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Makes of a function with ``count`` results one that returns (error, results…)."""

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> tuple[Any, ...]:
            try:
                out = function(*args, **kwargs)
            except host.CudaError as e:
                return (_error(e.code), *[None] * count)
            return (cudaError_t.cudaSuccess, *((out,) if count == 1 else out or ()))

        return call

    return wrap


@_call(1)
def cudaMalloc(size: int) -> int:
    """Allocates device memory."""
    return host.device.allocate(int(size))


@_call(1)
def cudaMallocManaged(size: int, flags: int = 1) -> int:
    """Allocates memory that host and device share."""
    return host.device.allocate(int(size))


@_call(1)
def cudaMallocAsync(size: int, hStream: Any = 0) -> int:
    """Allocates device memory (at once)."""
    host.stream(hStream)
    return host.device.allocate(int(size))


@_call(0)
def cudaFree(devPtr: Any) -> None:
    """Frees device memory when the streams are done with it."""
    host.synchronize_all()
    host.device.free(host.address_of(devPtr))


@_call(0)
def cudaFreeAsync(devPtr: Any, hStream: Any = 0) -> None:
    """Frees device memory when the stream is done with it."""
    host.synchronize(hStream)
    host.device.free(host.address_of(devPtr))


@_call(1)
def cudaMallocHost(size: int) -> int:
    """Allocates page-locked host memory."""
    return host.pinned.allocate(int(size))


@_call(1)
def cudaHostAlloc(size: int, flags: int = 0) -> int:
    """Allocates page-locked host memory."""
    return host.pinned.allocate(int(size))


@_call(0)
def cudaFreeHost(ptr: Any) -> None:
    """Frees page-locked host memory."""
    host.synchronize_all()
    host.pinned.free(host.address_of(ptr))


@_call(0)
def cudaHostRegister(ptr: Any, size: int, flags: int = 0) -> None:
    """Makes ordinary memory page-locked: asynchronous copies read it when they run."""
    host.pinned.add(host.address_of(ptr), int(size))


@_call(0)
def cudaHostUnregister(ptr: Any) -> None:
    """Undoes `cudaHostRegister`."""
    host.pinned.free(host.address_of(ptr))


@_call(1)
def cudaHostGetDevicePointer(pHost: Any, flags: int = 0) -> int:
    """Device address of host memory: the same."""
    return host.address_of(pHost)


@_call(0)
def cudaMemcpy(dst: Any, src: Any, count: int, kind: Any) -> None:
    """Copies memory after everything queued."""
    host.copy(dst, src, int(count))


@_call(0)
def cudaMemcpyAsync(dst: Any, src: Any, count: int, kind: Any, stream: Any = 0) -> None:
    """Queues a copy."""
    host.copy(dst, src, int(count), stream)


@_call(0)
def cudaMemset(devPtr: Any, value: int, count: int) -> None:
    """Sets bytes."""
    host.fill(devPtr, value, int(count))


@_call(0)
def cudaMemsetAsync(devPtr: Any, value: int, count: int, stream: Any = 0) -> None:
    """Queues setting bytes."""
    host.fill(devPtr, value, int(count), handle=stream)


@_call(2)
def cudaMemGetInfo() -> tuple[int, int]:
    """(free, total) bytes of memory."""
    return driver.mem_get_info()


@_call(1)
def cudaStreamCreate() -> cudaStream_t:
    """A new stream."""
    return cudaStream_t(host.new_stream())


@_call(1)
def cudaStreamCreateWithFlags(flags: int) -> cudaStream_t:
    """A new stream."""
    return cudaStream_t(host.new_stream(flags))


@_call(1)
def cudaStreamCreateWithPriority(flags: int, priority: int) -> cudaStream_t:
    """A new stream; all have the same priority."""
    return cudaStream_t(host.new_stream(flags))


@_call(0)
def cudaStreamDestroy(stream: Any) -> None:
    """Frees a stream."""
    host.destroy_stream(stream)


@_call(0)
def cudaStreamSynchronize(stream: Any) -> None:
    """Waits for a stream."""
    host.synchronize(stream)


@_call(0)
def cudaStreamQuery(stream: Any) -> None:
    """Whether a stream is done, or cudaErrorNotReady."""
    host.query(stream)


@_call(0)
def cudaStreamWaitEvent(stream: Any, event: Any, flags: int = 0) -> None:
    """Makes a stream wait for an event."""
    host.wait_event(stream, event)


@_call(1)
def cudaEventCreate() -> cudaEvent_t:
    """A new event."""
    return cudaEvent_t(host.new_event())


@_call(1)
def cudaEventCreateWithFlags(flags: int) -> cudaEvent_t:
    """A new event."""
    return cudaEvent_t(host.new_event(flags))


@_call(0)
def cudaEventRecord(event: Any, stream: Any = 0) -> None:
    """Records an event in a stream."""
    host.event(event).record(host.stream(stream))


@_call(0)
def cudaEventSynchronize(event: Any) -> None:
    """Waits for an event."""
    host.event(event).synchronize()


@_call(0)
def cudaEventQuery(event: Any) -> None:
    """Whether an event took place, or cudaErrorNotReady."""
    host.query_event(event)


@_call(1)
def cudaEventElapsedTime(start: Any, end: Any) -> float:
    """Milliseconds between events."""
    return host.elapsed(start, end)


@_call(0)
def cudaEventDestroy(event: Any) -> None:
    """Frees an event."""
    host.destroy_event(event)


@_call(0)
def cudaDeviceSynchronize() -> None:
    """Waits for all streams."""
    host.synchronize_all()


@_call(0)
def cudaDeviceReset() -> None:
    """Waits for all streams; memory stays."""
    host.synchronize_all()


@_call(1)
def cudaGetDeviceCount() -> int:
    """One: the host."""
    return 1


@_call(1)
def cudaGetDevice() -> int:
    """Number 0."""
    return 0


@_call(0)
def cudaSetDevice(device: int) -> None:
    """Accepts device 0."""
    host.check_device(device)


@_call(0)
def cudaSetDeviceFlags(flags: int) -> None:
    """Accepts flags of scheduling, which change nothing on the host."""


@_call(1)
def cudaGetDeviceProperties(device: int) -> cudaDeviceProp:
    """Properties of the host."""
    host.check_device(device)
    return cudaDeviceProp()


@_call(1)
def cudaDeviceGetAttribute(attr: Any, device: int) -> int:
    """A property of the host; 0 for what it doesn't have."""
    host.check_device(device)
    attrs = cudaDeviceAttr
    return {
        attrs.cudaDevAttrMultiProcessorCount: os.cpu_count() or 1,
        attrs.cudaDevAttrMaxThreadsPerBlock: 1, attrs.cudaDevAttrWarpSize: 1,
        attrs.cudaDevAttrIntegrated: 1, attrs.cudaDevAttrCanMapHostMemory: 1,
        attrs.cudaDevAttrUnifiedAddressing: 1, attrs.cudaDevAttrManagedMemory: 1,
    }.get(attr, 0)  # fmt: skip


@_call(1)
def cudaDeviceGetPCIBusId(length: int, device: int) -> bytes:
    """A name for the host."""
    host.check_device(device)
    return b"0000:00:00.0"[: int(length)]


@_call(1)
def cudaRuntimeGetVersion() -> int:
    """The version of the API that this is modelled on."""
    return 12080


@_call(1)
def cudaDriverGetVersion() -> int:
    """The version of the API that this is modelled on."""
    return 12080


def cudaGetLastError() -> tuple[cudaError_t]:
    """The last error; forgets it."""
    global _last
    found, _last = _last, cudaError_t.cudaSuccess
    return (found,)


def cudaPeekAtLastError() -> tuple[cudaError_t]:
    """The last error."""
    return (_last,)


@_call(1)
def cudaGetErrorName(error: Any) -> bytes:
    """Name of an error."""
    return cudaError_t(int(error)).name.encode()


@_call(1)
def cudaGetErrorString(error: Any) -> bytes:
    """What an error means."""
    words = cudaError_t(int(error)).name.removeprefix("cuda").removeprefix("Error")
    text = "".join(f" {c.lower()}" if c.isupper() else c for c in words).strip()
    return (text or "no error").encode()


@_call(0)
def cudaProfilerStart() -> None:
    """No profiler listens."""


@_call(0)
def cudaProfilerStop() -> None:
    """No profiler listens."""


def _refused(name: str, count: int) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> tuple[Any, ...]:
        return (_error(host.NOT_SUPPORTED), *[None] * count)

    call.__name__ = name
    call.__doc__ = f"Not supported on {platform.machine()} hosts: returns the error that says so."
    return call


for _name, _count in {
    "cudaStreamBeginCapture": 0, "cudaStreamEndCapture": 1, "cudaGraphInstantiate": 1,
    "cudaGraphLaunch": 0, "cudaGraphDestroy": 0, "cudaGraphExecDestroy": 0,
    "cudaGraphCreate": 1, "cudaLaunchKernel": 0, "cudaIpcGetMemHandle": 1,
    "cudaIpcOpenMemHandle": 1, "cudaCreateTextureObject": 1,
}.items():  # fmt: skip
    globals()[_name] = _refused(_name, _count)

__all__ = [n for n in list(globals()) if n.startswith(("cuda", "CUDART"))]
