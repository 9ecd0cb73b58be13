"""CUDA's driver as the runtime, the tuner and `tactician.driver` use it.

`CudaDriver` talks to a GPU through ``cuda.bindings``; `host.HostDriver` has the same methods on
host memory. Streams, events and graphs are integers, as programs pass them.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...support.errors import ExecutionError, PlanError, RefusedError, TacticianError
from .arch import Gpu, gpu_of
from .code import ALIGNMENT, CUBIN, LIBRARY, Code
from .edges import close_early

Array = np.ndarray[Any, Any]


class DriverError(ExecutionError):
    """A call of the driver failed."""


class NoGpuError(TacticianError):
    """There is no driver, or no GPU that can be used; the message says which."""


class OutOfMemoryError(DriverError, MemoryError):
    """The GPU has too little memory."""


@dataclass
class Loaded:
    """A kernel ready to be called.

    Attributes:
        code: What it was loaded from.
        handle: The driver's function, or the library's call.
    """

    code: Code
    handle: Any
    keep: Any = None


class Call(ABC):
    """One step's launch with settled places of its arguments, whose values may change."""

    @abstractmethod
    def launch(self, grid: tuple[int, int, int], stream: int) -> None:
        """Queues the kernel on a stream."""

    def launch_after(self, grid: tuple[int, int, int], stream: int) -> None:
        """The same on a stream that has just waited for others: nothing overlaps."""
        self.launch(grid, stream)


class Driver(ABC):
    """What a GPU does, see the module.

    Attributes:
        gpu: What is known of it.
        is_host: Whether device memory is host memory.
    """

    gpu: Gpu
    is_host: bool = False

    # memory
    @abstractmethod
    def alloc(self, nbytes: int) -> int:
        """Device memory at a multiple of 256; raises `OutOfMemoryError`."""

    @abstractmethod
    def free(self, address: int) -> None: ...

    @abstractmethod
    def upload(self, to: int, source: int, nbytes: int, stream: int = 0) -> None:
        """Queues a copy from host memory; pageable memory is read before it returns."""

    @abstractmethod
    def download(self, to: int, source: int, nbytes: int, stream: int = 0) -> None:
        """Queues a copy to host memory."""

    @abstractmethod
    def copy(self, to: int, source: int, nbytes: int, stream: int = 0) -> None:
        """Queues a copy within device memory."""

    @abstractmethod
    def fill(self, to: int, byte: int, nbytes: int, stream: int = 0) -> None:
        """Queues setting bytes."""

    @abstractmethod
    def pinned(self, nbytes: int) -> Array:
        """Page-locked host memory, as bytes; freed with the array."""

    @abstractmethod
    def memory(self) -> tuple[int, int]:
        """(free, total) bytes."""

    # kernels
    @abstractmethod
    def load(self, code: Code) -> Loaded: ...

    @abstractmethod
    def prepare(self, kernel: Loaded, args: Array, dims: Array, extra: Array) -> Call:
        """A call whose pointers and integers are in int64 arrays, read at each launch.

        Args:
            extra: Addresses of what is no argument: the workspace, counters, Triton's global
                scratch and its profile scratch.
        """

    # streams, events, graphs
    @abstractmethod
    def stream(self, flags: int = 1) -> int:
        """A new stream that does not wait for the default stream (``flags`` 1)."""

    @abstractmethod
    def drop_stream(self, stream: int) -> None: ...

    @abstractmethod
    def synchronize(self, stream: int = 0) -> None: ...

    @abstractmethod
    def is_done(self, stream: int) -> bool: ...

    @abstractmethod
    def event(self, timing: bool = True) -> int: ...

    @abstractmethod
    def drop_event(self, event: int) -> None: ...

    @abstractmethod
    def record(self, event: int, stream: int = 0) -> None: ...

    @abstractmethod
    def wait_event(self, stream: int, event: int) -> None: ...

    @abstractmethod
    def event_synchronize(self, event: int) -> None: ...

    @abstractmethod
    def event_done(self, event: int) -> bool: ...

    @abstractmethod
    def elapsed(self, first: int, second: int) -> float:
        """Milliseconds between two events."""

    @abstractmethod
    def begin_capture(self, stream: int) -> None: ...

    @abstractmethod
    def end_capture(self, stream: int) -> Any:
        """What was queued since, as a graph to launch. Raises if it can't be one."""

    @abstractmethod
    def abandon_capture(self, stream: int) -> None: ...

    @abstractmethod
    def launch_graph(self, graph: Any, stream: int) -> None: ...

    @abstractmethod
    def drop_graph(self, graph: Any) -> None: ...

    def enter(self) -> None:  # noqa: B027 - a driver without contexts has nothing to do
        """Makes the GPU current on this thread."""

    # helpers
    def put(self, array: Array, stream: int = 0) -> int:
        """New device memory with an array's contents."""
        at = self.alloc(max(array.nbytes, 1))
        self.upload(at, array.ctypes.data, array.nbytes, stream)
        return at

    def get(self, address: int, shape: Sequence[int], dtype: Any, stream: int = 0) -> Array:
        """A host array with a copy of device memory; waits for the stream."""
        out: Array = np.empty(shape, dtype)
        self.download(out.ctypes.data, address, out.nbytes, stream)
        self.synchronize(stream)
        return out


@functools.cache
def bindings() -> Any:
    """``cuda.bindings.driver``.

    Raises:
        NoGpuError: If it is not installed.
    """
    try:
        from cuda.bindings import driver
    except ImportError as e:
        raise NoGpuError(
            "the CUDA target needs cuda-bindings: pip install 'tactician[cuda]' "
            f"({type(e).__name__}: {e})"
        ) from None
    return driver


_HINTS = {
    "CUDA_ERROR_NO_DEVICE": "no GPU is visible to this process; see CUDA_VISIBLE_DEVICES",
    "CUDA_ERROR_OUT_OF_MEMORY": "the GPU has too little free memory",
    "CUDA_ERROR_ILLEGAL_ADDRESS": "a kernel read or wrote memory it may not; are all addresses "
    "device memory of this GPU and large enough?",
    "CUDA_ERROR_NO_BINARY_FOR_GPU": "the code is for another GPU; build the engine again here",
    "CUDA_ERROR_UNSUPPORTED_PTX_VERSION": "the driver is older than the compiler; update it",
    "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES": "the kernel takes more registers or shared memory "
    "than the GPU has",
    "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH": "the driver's parts have different versions",
}


def _error_text(result: Any) -> str:
    d = bindings()
    name = getattr(result, "name", str(result))
    try:
        text = d.cuGetErrorString(result)[1]
        text = text.decode() if isinstance(text, bytes) else str(text)
    except Exception:
        text = ""
    hint = _HINTS.get(name, "")
    return f"{name} ({text})" + (f": {hint}" if hint else "")


def _raise(what: str, result: Any) -> None:
    text = f"{what}: {_error_text(result)}"
    if getattr(result, "name", "") == "CUDA_ERROR_OUT_OF_MEMORY":
        raise OutOfMemoryError(text)
    raise DriverError(text)


def _do(what: str, reply: Any) -> Any:
    """The value of a driver call; raises `DriverError`."""
    if reply[0]:
        _raise(what, reply[0])
    return reply[1] if len(reply) > 1 else None


@functools.cache
def _init() -> int:
    """Starts the driver; returns the number of GPUs."""
    d = bindings()
    try:
        (result,) = d.cuInit(0)
    except Exception as e:  # the bindings find no libcuda
        raise NoGpuError(f"there is no CUDA driver here: {e}") from None
    if result:
        raise NoGpuError(f"the CUDA driver does not start: {_error_text(result)}")
    result, count = d.cuDeviceGetCount()
    if result or count == 0:
        raise NoGpuError("the CUDA driver sees no GPU; see CUDA_VISIBLE_DEVICES")
    return int(count)


def device_count() -> int:
    """GPUs that this process sees; 0 without driver."""
    try:
        return _init()
    except NoGpuError:
        return 0


@functools.cache
def open_gpu(ordinal: int = 0) -> CudaDriver:
    """The driver of a GPU, made once.

    Raises:
        NoGpuError: If there is none, or it is too old.
    """
    count = _init()
    if not 0 <= ordinal < count:
        raise NoGpuError(f"there is no GPU {ordinal}: the driver sees {count}")
    return CudaDriver(ordinal)


class CudaDriver(Driver):
    """One GPU, through its primary context (which CUDA's runtime, torch and CuPy use too)."""

    def __init__(self, ordinal: int):
        d = self._d = bindings()
        self.ordinal = ordinal
        self._device = _do("cuDeviceGet", d.cuDeviceGet(ordinal))
        self._attributes = d.CUdevice_attribute
        major = self._attribute("COMPUTE_CAPABILITY_MAJOR")
        minor = self._attribute("COMPUTE_CAPABILITY_MINOR")
        name = _do("cuDeviceGetName", d.cuDeviceGetName(256, self._device))
        self.name = name.split(b"\0")[0].decode()
        try:
            known = gpu_of(10 * major + minor)
        except TacticianError as e:
            raise NoGpuError(f"GPU {ordinal} ({self.name}): {e}") from None
        self._context = _do("cuDevicePrimaryCtxRetain", d.cuDevicePrimaryCtxRetain(self._device))
        self._context_int = int(self._context)
        self.gpu = replace(
            known, name=self.name, sms=self._attribute("MULTIPROCESSOR_COUNT"),
            shared=self._attribute("MAX_SHARED_MEMORY_PER_BLOCK_OPTIN"),
            shared_sm=self._attribute("MAX_SHARED_MEMORY_PER_MULTIPROCESSOR"),
            l2=self._attribute("L2_CACHE_SIZE"),
            memory=int(_do("cuDeviceTotalMem", d.cuDeviceTotalMem(self._device))),
        )
        self._functions: set[int] = set()  # of kernels of ours
        self._fence = 0  # a byte that is cleared between kernels
        self._capturing = threading.local()
        self._streams: dict[int, Any] = {}
        self._default = d.CUstream(0)
        self._mode = d.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
        self.enter()

    def _attribute(self, name: str) -> int:
        which = getattr(self._attributes, f"CU_DEVICE_ATTRIBUTE_{name}")
        return int(_do("cuDeviceGetAttribute", self._d.cuDeviceGetAttribute(which, self._device)))

    def enter(self) -> None:
        d = self._d
        result, current = d.cuCtxGetCurrent()
        if result or int(current) != self._context_int:
            _do("cuCtxSetCurrent", d.cuCtxSetCurrent(self._context))

    def driver_version(self) -> int:
        """CUDA's version that the driver supports, such as 13000."""
        return int(_do("cuDriverGetVersion", self._d.cuDriverGetVersion()))

    def _of(self, stream: int) -> Any:
        """The bindings' object of a stream handle (made once: that takes a microsecond)."""
        found = self._streams.get(stream)
        if found is None:
            if len(self._streams) > 4096:
                self._streams.clear()
            found = self._streams[stream] = self._d.CUstream(stream)
        return found

    # --- memory ---------------------------------------------------------------------------

    def alloc(self, nbytes: int) -> int:
        self.enter()
        result, at = self._d.cuMemAlloc(max(int(nbytes), 1))
        if result:
            free, total = self.memory()
            _raise(f"allocating {nbytes} bytes ({free} of {total} are free)", result)
        return int(at)

    def free(self, address: int) -> None:
        self.enter()
        self._d.cuMemFree(address)

    def upload(self, to: int, source: int, nbytes: int, stream: int = 0) -> None:
        if nbytes:
            reply = self._d.cuMemcpyHtoDAsync(to, int(source), nbytes, self._of(stream))
            _do(f"copying {nbytes} bytes to the GPU", reply)

    def download(self, to: int, source: int, nbytes: int, stream: int = 0) -> None:
        if nbytes:
            reply = self._d.cuMemcpyDtoHAsync(int(to), source, nbytes, self._of(stream))
            _do(f"copying {nbytes} bytes from the GPU", reply)

    def copy(self, to: int, source: int, nbytes: int, stream: int = 0) -> None:
        if nbytes:
            reply = self._d.cuMemcpyDtoDAsync(to, source, nbytes, self._of(stream))
            _do(f"copying {nbytes} bytes within the GPU", reply)

    def fill(self, to: int, byte: int, nbytes: int, stream: int = 0) -> None:
        if nbytes:
            reply = self._d.cuMemsetD8Async(to, byte, nbytes, self._of(stream))
            _do("cuMemsetD8Async", reply)

    def pinned(self, nbytes: int) -> Array:
        self.enter()
        result, at = self._d.cuMemAllocHost(max(int(nbytes), 1))
        if result:
            _raise(f"allocating {nbytes} bytes of page-locked memory", result)
        return _PinnedBlock.array(self, int(at), int(nbytes))

    def fill_words(self, to: int, value: int, width: int, count: int, stream: int = 0) -> None:
        """Queues setting words of 1, 2 or 4 bytes."""
        fill = {1: self._d.cuMemsetD8Async, 2: self._d.cuMemsetD16Async,
                4: self._d.cuMemsetD32Async}[width]
        if count:
            _do("setting memory", fill(to, value, count, self._of(stream)))

    def register(self, address: int, nbytes: int) -> None:
        """Page-locks host memory."""
        _do("cuMemHostRegister", self._d.cuMemHostRegister(address, nbytes, 0))

    def unregister(self, address: int) -> None:
        """Undoes `register`."""
        self.enter()
        self._d.cuMemHostUnregister(address)

    def synchronize_all(self) -> None:
        """Waits for all work."""
        _do("waiting for the GPU", self._d.cuCtxSynchronize())

    def pci_bus_id(self) -> str:
        """The GPU's place on the bus."""
        raw = _do("cuDeviceGetPCIBusId", self._d.cuDeviceGetPCIBusId(32, self._device))
        return str(raw.split(b"\0")[0].decode())

    def free_pinned(self, address: int) -> None:
        """Frees what `pinned` got."""
        self.enter()
        self._d.cuMemFreeHost(address)

    def memory(self) -> tuple[int, int]:
        self.enter()
        result, free, total = self._d.cuMemGetInfo()
        if result:
            _raise("cuMemGetInfo", result)
        return int(free), int(total)

    # --- kernels --------------------------------------------------------------------------

    def load(self, code: Code) -> Loaded:
        self.enter()
        if code.kind == LIBRARY:
            return Loaded(code, open_library_call(code))
        if code.kind != CUBIN:
            raise PlanError("the plan was built for the interpreter; this is a GPU")
        d = self._d
        image = code.body
        module = _do(f"loading the code of {code.symbol}", d.cuModuleLoadData(image))
        function = _do(
            f"finding {code.entry} in its code", d.cuModuleGetFunction(module, code.entry.encode())
        )
        self._functions.add(int(function))
        attribute = d.CUfunction_attribute
        if code.shared > 48 << 10:
            which = attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            reply = d.cuFuncSetAttribute(function, which, code.shared)
            _do(f"{code.shared} bytes of shared memory for {code.symbol}", reply)
        if code.cluster > 8:
            which = attribute.CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED
            _do("cuFuncSetAttribute", d.cuFuncSetAttribute(function, which, 1))
        return Loaded(code, function, (module, image))

    def prepare(self, kernel: Loaded, args: Array, dims: Array, extra: Array) -> Call:
        if kernel.code.kind == LIBRARY:
            self._fence = self._fence or self.alloc(ALIGNMENT)
            return _LibraryCall(self, kernel, args, extra)
        return _KernelCall(self, kernel, args, dims, extra)

    # --- streams and events ---------------------------------------------------------------

    def stream(self, flags: int = 1) -> int:
        self.enter()
        return int(_do("cuStreamCreate", self._d.cuStreamCreate(flags)))

    def drop_stream(self, stream: int) -> None:
        self.enter()
        self._d.cuStreamDestroy(stream)
        self._streams.pop(stream, None)

    def synchronize(self, stream: int = 0) -> None:
        _do("waiting for the GPU", self._d.cuStreamSynchronize(self._of(stream)))

    def is_done(self, stream: int) -> bool:
        (result,) = self._d.cuStreamQuery(self._of(stream))
        if result and result.name != "CUDA_ERROR_NOT_READY":
            _raise("cuStreamQuery", result)
        return not result

    def event(self, timing: bool = True) -> int:
        self.enter()
        return int(_do("cuEventCreate", self._d.cuEventCreate(0 if timing else 2)))

    def drop_event(self, event: int) -> None:
        self.enter()
        self._d.cuEventDestroy(event)

    def record(self, event: int, stream: int = 0) -> None:
        _do("cuEventRecord", self._d.cuEventRecord(event, self._of(stream)))

    def wait_event(self, stream: int, event: int) -> None:
        _do("cuStreamWaitEvent", self._d.cuStreamWaitEvent(self._of(stream), event, 0))

    def event_synchronize(self, event: int) -> None:
        _do("waiting for the GPU", self._d.cuEventSynchronize(event))

    def event_done(self, event: int) -> bool:
        (result,) = self._d.cuEventQuery(event)
        if result and result.name != "CUDA_ERROR_NOT_READY":
            _raise("cuEventQuery", result)
        return not result

    def elapsed(self, first: int, second: int) -> float:
        return float(_do("cuEventElapsedTime", self._d.cuEventElapsedTime(first, second)))

    def fence(self, stream: int) -> None:
        """Puts something between two kernels on a stream at which neither begins early, see
        `edges`; what is captured here does without."""
        if self.gpu.arch < 90 or getattr(self._capturing, "on", False):
            return
        reply = self._d.cuMemsetD8Async(self._fence, 0, 1, self._of(stream))
        _do("cuMemsetD8Async", reply)

    # --- graphs ---------------------------------------------------------------------------

    def begin_capture(self, stream: int) -> None:
        _do("cuStreamBeginCapture", self._d.cuStreamBeginCapture(self._of(stream), self._mode))
        self._capturing.on = True

    def end_capture(self, stream: int) -> Any:
        d = self._d
        self._capturing.on = False
        graph = _do("capturing a graph", d.cuStreamEndCapture(self._of(stream)))
        try:
            if self.gpu.arch >= 90:  # older ones have no such launches
                close_early(d, graph, self._functions)
            return _do("instantiating a graph", d.cuGraphInstantiate(graph, 0))
        finally:
            d.cuGraphDestroy(graph)

    def abandon_capture(self, stream: int) -> None:
        self._capturing.on = False
        result, graph = self._d.cuStreamEndCapture(self._of(stream))
        if not result and int(graph):
            self._d.cuGraphDestroy(graph)

    def launch_graph(self, graph: Any, stream: int) -> None:
        (result,) = self._d.cuGraphLaunch(graph, self._of(stream))
        if result:
            _raise("launching a graph", result)

    def drop_graph(self, graph: Any) -> None:
        self.enter()
        self._d.cuGraphExecDestroy(graph)


class _PinnedBlock:
    """Owner of page-locked memory, for arrays over it."""

    def __init__(self, driver: CudaDriver, address: int, nbytes: int):
        self._driver, self._address = driver, address
        self.__array_interface__ = {
            "shape": (nbytes,), "typestr": "|u1", "data": (address, False), "version": 3,
        }

    @staticmethod
    def array(driver: CudaDriver, address: int, nbytes: int) -> Array:
        return np.asarray(_PinnedBlock(driver, address, nbytes))

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # the process may be ending
            self._driver.free_pinned(self._address)


class _KernelCall(Call):
    """A kernel's launch. The driver reads parameters from arrays of the schedule."""

    def __init__(self, driver: CudaDriver, kernel: Loaded, args: Array, dims: Array,
                 extra: Array):
        code = kernel.code
        self._d, self._driver, self._kernel = driver._d, driver, kernel
        self._keep = (args, dims, extra)
        places = [args.ctypes.data + 8 * k for k in range(len(args))]
        places += [extra.ctypes.data] * code.workspace + [extra.ctypes.data + 8] * code.counters
        places += [dims.ctypes.data + 8 * k for k in range(len(dims))]
        if len(places) != len(code.types):
            raise PlanError(
                f"kernel {code.symbol} takes {len(code.types)} parameters, the plan gives it "
                f"{len(places)}"
            )
        places += [extra.ctypes.data + 16 + 8 * k for k in range(code.params - len(places))]
        self._params = np.array(places or [0], np.uint64)
        self._address = int(self._params.ctypes.data)
        self._config = self._make_config(code.pdl) if code.special else None

    def _make_config(self, overlaps: bool) -> Any:
        d, code = self._d, self._kernel.code
        ids = d.CUlaunchAttributeID
        attributes = []
        if overlaps:
            a = d.CUlaunchAttribute()
            a.id = ids.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
            a.value.programmaticStreamSerializationAllowed = 1
            attributes.append(a)
        if code.cluster > 1:
            a = d.CUlaunchAttribute()
            a.id = ids.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
            a.value.clusterDim.x = code.cluster
            a.value.clusterDim.y = a.value.clusterDim.z = 1
            attributes.append(a)
        if code.cooperative:
            a = d.CUlaunchAttribute()
            a.id = ids.CU_LAUNCH_ATTRIBUTE_COOPERATIVE
            a.value.cooperative = 1
            attributes.append(a)
        config = d.CUlaunchConfig()
        config.blockDimX, config.blockDimY, config.blockDimZ = code.threads, 1, 1
        config.sharedMemBytes = code.shared
        config.attrs = attributes
        config.numAttrs = len(attributes)
        return config

    def launch_after(self, grid: tuple[int, int, int], stream: int) -> None:
        config, code = self._config, self._kernel.code
        if code.pdl:
            self._config = self._make_config(False) if code.cluster > 1 else None
        try:
            self.launch(grid, stream)
        finally:
            self._config = config

    def launch(self, grid: tuple[int, int, int], stream: int) -> None:
        code = self._kernel.code
        x, y, z = grid
        if not x * y * z:
            return
        if self._config is None:
            (result,) = self._d.cuLaunchKernel(
                self._kernel.handle, x, y, z, code.threads, 1, 1, code.shared,
                self._driver._of(stream), self._address, 0,
            )
        else:
            config = self._config
            config.gridDimX, config.gridDimY, config.gridDimZ = x * code.cluster, y, z
            config.hStream = self._driver._of(stream)
            (result,) = self._d.cuLaunchKernelEx(config, self._kernel.handle, self._address, 0)
        if result:
            _raise(f"launching {code.symbol} on a grid of {grid}", result)


class _LibraryCall(Call):
    """A call into a library."""

    def __init__(self, driver: CudaDriver, kernel: Loaded, args: Array, extra: Array):
        self._driver, self._kernel, self._args, self._extra = driver, kernel, args, extra

    def launch(self, grid: tuple[int, int, int], stream: int) -> None:
        self._driver.fence(stream)
        try:
            self._kernel.handle.launch(self._args.tolist(), int(self._extra[0]), stream)
        except RefusedError as e:
            raise DriverError(str(e)) from None


def open_library_call(code: Code) -> Any:
    """A library's call made ready in this process.

    Raises:
        PlanError: If the library is missing or can't make the call.
    """
    try:
        from .libraries import open_call
    except ImportError as e:
        raise PlanError(f"the plan calls {code.library}, which this installation lacks: {e}") \
            from None
    try:
        return open_call(code.library, code.body)
    except TacticianError:
        raise
    except Exception as e:
        raise PlanError(
            f"the plan calls {code.library}, which fails here: {type(e).__name__}: {e}"
        ) from e


_default_lock = threading.Lock()
_default: list[Any] = []


def default_gpu() -> CudaDriver | None:
    """The GPU that this process uses where nothing else is said, or None."""
    with _default_lock:
        if not _default:
            try:
                _default.append(open_gpu(0))
            except NoGpuError:
                _default.append(None)
        found: CudaDriver | None = _default[0]
        return found
