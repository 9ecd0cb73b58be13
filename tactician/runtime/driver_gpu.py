"""pycuda's driver names on a GPU: what `tactician.driver` is where a GPU is the default device.

Handles and pointers are CUDA's own, so those of torch, CuPy or cuda-python work here and these
work there. See `runtime.driver` for the same names on host memory.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..targets.cuda.driver import CudaDriver, DriverError, OutOfMemoryError, open_gpu
from .driver import Error as Error
from .driver import LogicError, MemoryError, RuntimeError, _host_bytes
from .driver import __all__ as _names
from .driver import ctx_flags as ctx_flags
from .driver import event_flags as event_flags
from .driver import host_alloc_flags as host_alloc_flags
from .driver import mem_attach_flags as mem_attach_flags

__all__ = list(_names)

Array = np.ndarray[Any, Any]


def _gpu() -> CudaDriver:
    driver = open_gpu(0)
    driver.enter()
    return driver


def _call(work: Any, *args: Any) -> Any:
    """A driver call with pycuda's errors."""
    try:
        return work(*args)
    except OutOfMemoryError as e:
        raise MemoryError(str(e)) from None
    except DriverError as e:
        raise RuntimeError(str(e)) from None


# --- memory -------------------------------------------------------------------------------


class DeviceAllocation:
    """A block of device memory. ``int(allocation)`` is its address. It is freed with the object,
    or by `free`.

    Attributes:
        size: Bytes.
    """

    def __init__(self, size: int):
        if size <= 0:
            raise LogicError(f"mem_alloc: {size} bytes; an allocation needs at least 1")
        driver = _gpu()
        self.size = size
        self._address: int = _call(driver.alloc, size)
        self._finalizer = weakref.finalize(self, driver.free, self._address)

    def free(self) -> None:
        """Gives the memory back; the allocation can't be used afterwards.

        Raises:
            LogicError: If it was freed before.
        """
        if not self._finalizer.alive:
            raise LogicError("free: the allocation was freed already")
        self._finalizer()

    def as_buffer(self, size: int, offset: int = 0) -> memoryview:
        """Device memory has no buffer that the host can use.

        Raises:
            LogicError: Always.
        """
        raise LogicError("as_buffer: the host can't access device memory; copy it (memcpy_dtoh)")

    def __int__(self) -> int:
        if not self._finalizer.alive:
            raise LogicError("the allocation was freed")
        return self._address

    __index__ = __int__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DeviceAllocation) and other._address == self._address

    def __hash__(self) -> int:
        return hash(self._address)

    def __repr__(self) -> str:
        state = f"{self.size} bytes at {self._address:#x}" if self._finalizer.alive else "freed"
        return f"<DeviceAllocation: {state}>"


class HostAllocation(np.ndarray):
    """Base of page-locked arrays."""


def mem_alloc(bytes: int) -> DeviceAllocation:
    """Allocates device memory."""
    return DeviceAllocation(int(bytes))


def mem_alloc_like(array: Array) -> DeviceAllocation:
    return mem_alloc(array.nbytes)


def mem_alloc_pitch(width: int, height: int, access_size: int) -> tuple[DeviceAllocation, int]:
    """Memory for ``height`` rows of ``width`` bytes, each at a multiple of 256: (memory, bytes
    from row to row)."""
    pitch = -(-width // 256) * 256
    return mem_alloc(pitch * height), pitch


def mem_get_info() -> tuple[int, int]:
    """(free, total) bytes of the GPU's memory."""
    return _gpu().memory()


def pagelocked_empty(
    shape: int | Sequence[int], dtype: Any, order: str = "C", mem_flags: int = 0
) -> Array:
    """An uninitialized page-locked host array for asynchronous copies."""
    dims = (shape,) if isinstance(shape, (int, np.integer)) else tuple(shape)
    kind = np.dtype(dtype)
    nbytes = int(np.prod(dims, dtype=np.int64)) * kind.itemsize
    flat = _call(_gpu().pinned, nbytes)[:nbytes].view(kind)
    out: Array = flat.reshape(dims, order="F" if order == "F" else "C")
    return out


def pagelocked_zeros(
    shape: int | Sequence[int], dtype: Any, order: str = "C", mem_flags: int = 0
) -> Array:
    out = pagelocked_empty(shape, dtype, order, mem_flags)
    out[...] = 0
    return out


def pagelocked_empty_like(array: Array, mem_flags: int = 0) -> Array:
    return pagelocked_empty(array.shape, array.dtype, mem_flags=mem_flags)


def pagelocked_zeros_like(array: Array, mem_flags: int = 0) -> Array:
    return pagelocked_zeros(array.shape, array.dtype, mem_flags=mem_flags)


def register_host_memory(ary: Array, flags: int = 0) -> Array:
    """The same memory, page-locked from now on."""
    driver = _gpu()
    _call(driver.register, int(ary.ctypes.data), ary.nbytes)
    weakref.finalize(ary, driver.unregister, int(ary.ctypes.data))
    return ary


# Page-locked memory is mapped into the GPU's address space, so both sides may use it.
managed_empty = pagelocked_empty
managed_zeros = pagelocked_zeros
managed_empty_like = pagelocked_empty_like
managed_zeros_like = pagelocked_zeros_like


def aligned_empty(
    shape: int | Sequence[int], dtype: Any, order: str = "C", alignment: int = 4096
) -> Array:
    return pagelocked_empty(shape, dtype, order)


def aligned_zeros(
    shape: int | Sequence[int], dtype: Any, order: str = "C", alignment: int = 4096
) -> Array:
    return pagelocked_zeros(shape, dtype, order)


# --- copies -------------------------------------------------------------------------------


def _pointer(x: Any, nbytes: int, what: str) -> int:
    """Address of device memory that must hold ``nbytes``."""
    if isinstance(x, DeviceAllocation) and nbytes > x.size:
        raise LogicError(f"{what}: {nbytes} bytes do not fit an allocation of {x.size}")
    if not isinstance(x, DeviceAllocation):
        for name in ("gpudata", "ptr", "data_ptr"):
            x = getattr(x, name, x)
            x = x() if callable(x) else x
    interface = getattr(x, "__cuda_array_interface__", None)
    try:
        address = int(interface["data"][0] if interface else x)
    except TypeError:
        raise LogicError(
            f"{what}: {type(x).__name__} is no device pointer; pass a DeviceAllocation or an int"
        ) from None
    if address == 0 and nbytes:
        raise LogicError(f"{what}: null device pointer")
    return address


def handle_of(stream: Any) -> int:
    """The handle of a stream: ours, another library's, an integer; None is the default stream."""
    if stream is None:
        return 0
    for name in ("handle", "cuda_stream", "ptr"):
        if hasattr(stream, name):
            return int(getattr(stream, name))
    return int(stream)


def _to_device(dest: Any, src: Any, stream: Any, what: str, wait: bool) -> None:
    data = _host_bytes(src, what)
    driver, to = _gpu(), _pointer(dest, data.nbytes, what)
    _call(driver.upload, to, int(data.ctypes.data), data.nbytes, handle_of(stream))
    if wait:
        _call(driver.synchronize, handle_of(stream))


def _to_host(dest: Any, src: Any, stream: Any, what: str, wait: bool) -> None:
    data = _host_bytes(dest, what, writable=True)
    driver, at = _gpu(), _pointer(src, data.nbytes, what)
    _call(driver.download, int(data.ctypes.data), at, data.nbytes, handle_of(stream))
    if wait:
        _call(driver.synchronize, handle_of(stream))


def memcpy_htod(dest: Any, src: Any) -> None:
    """Copies a host array or buffer to device memory, after all queued work."""
    _to_device(dest, src, None, "memcpy_htod", True)


def memcpy_htod_async(dest: Any, src: Any, stream: Any = None) -> None:
    """Queues a copy from host to device. A page-locked source is read when the copy runs."""
    _to_device(dest, src, stream, "memcpy_htod_async", False)


def memcpy_dtoh(dest: Any, src: Any) -> None:
    """Copies device memory into a host array (as many bytes as that has)."""
    _to_host(dest, src, None, "memcpy_dtoh", True)


def memcpy_dtoh_async(dest: Any, src: Any, stream: Any = None) -> None:
    """Queues a copy from device to host; the array is valid after synchronizing."""
    _to_host(dest, src, stream, "memcpy_dtoh_async", False)


def memcpy_dtod_async(dest: Any, src: Any, size: int, stream: Any = None) -> None:
    """Queues a copy of ``size`` bytes within device memory."""
    to, at = _pointer(dest, size, "memcpy_dtod"), _pointer(src, size, "memcpy_dtod")
    _call(_gpu().copy, to, at, size, handle_of(stream))


def memcpy_dtod(dest: Any, src: Any, size: int) -> None:
    memcpy_dtod_async(dest, src, size)
    _call(_gpu().synchronize)


def _memset(dest: Any, value: int, count: int, width: int, stream: Any, wait: bool) -> None:
    driver, to = _gpu(), _pointer(dest, count * width, "memset")
    _call(driver.fill_words, to, value, width, count, handle_of(stream))
    if wait:
        _call(driver.synchronize, handle_of(stream))


def memset_d8(dest: Any, data: int, size: int) -> None:
    _memset(dest, data, size, 1, None, True)


def memset_d16(dest: Any, data: int, size: int) -> None:
    _memset(dest, data, size, 2, None, True)


def memset_d32(dest: Any, data: int, size: int) -> None:
    _memset(dest, data, size, 4, None, True)


def memset_d8_async(dest: Any, data: int, size: int, stream: Any = None) -> None:
    _memset(dest, data, size, 1, stream, False)


def memset_d16_async(dest: Any, data: int, size: int, stream: Any = None) -> None:
    _memset(dest, data, size, 2, stream, False)


def memset_d32_async(dest: Any, data: int, size: int, stream: Any = None) -> None:
    _memset(dest, data, size, 4, stream, False)


def to_device(bf_obj: Any) -> DeviceAllocation:
    """Device memory with a copy of a host array or buffer."""
    data = _host_bytes(np.ascontiguousarray(bf_obj), "to_device")
    out = mem_alloc(max(data.nbytes, 1))
    memcpy_htod(out, data)
    return out


def from_device(devptr: Any, shape: Any, dtype: Any, order: str = "C") -> Array:
    """A host array with a copy of device memory."""
    out: Array = np.empty(shape, dtype, order)  # type: ignore[call-overload]
    memcpy_dtoh(out, devptr)
    return out


def from_device_like(devptr: Any, other_ary: Array) -> Array:
    return from_device(devptr, other_ary.shape, other_ary.dtype)


# --- streams and events -------------------------------------------------------------------


class Stream:
    """A CUDA stream.

    Args:
        flags: 0, or 1 for a stream that does not wait for the default stream.

    Attributes:
        handle: CUDA's handle, which `IExecutionContext.execute_async_v3` takes.
    """

    def __init__(self, flags: int = 0):
        driver = _gpu()
        self.flags = flags
        self.handle: int = _call(driver.stream, flags)
        weakref.finalize(self, driver.drop_stream, self.handle)

    def synchronize(self) -> None:
        """Waits until all queued work is done.

        Raises:
            RuntimeError: If some of it failed.
        """
        _call(_gpu().synchronize, self.handle)

    def is_done(self) -> bool:
        """Whether all queued work is done."""
        return bool(_call(_gpu().is_done, self.handle))

    def wait_for_event(self, event: Event) -> None:
        """Makes work queued from now on wait for the last recording of ``event``."""
        _call(_gpu().wait_event, self.handle, int(event))

    def __int__(self) -> int:
        return self.handle

    __index__ = __int__

    def __repr__(self) -> str:
        return f"<Stream {self.handle:#x}>"


class Event:
    """A point in a stream's work."""

    def __init__(self, flags: int = 0):
        driver = _gpu()
        self.flags = flags
        self.handle: int = _call(driver.event, not flags & 2)
        weakref.finalize(self, driver.drop_event, self.handle)

    def record(self, stream: Any = None) -> Event:
        """Takes place when the work queued on ``stream`` so far is done."""
        _call(_gpu().record, self.handle, handle_of(stream))
        return self

    def synchronize(self) -> Event:
        """Waits for the last recording."""
        _call(_gpu().event_synchronize, self.handle)
        return self

    def query(self) -> bool:
        """Whether the last recording has taken place."""
        return bool(_call(_gpu().event_done, self.handle))

    def time_since(self, event: Event) -> float:
        """Milliseconds from ``event`` to this one; both must have taken place."""
        return float(_call(_gpu().elapsed, event.handle, self.handle))

    def time_till(self, event: Event) -> float:
        """Milliseconds from this event to ``event``."""
        return event.time_since(self)

    def __int__(self) -> int:
        return self.handle

    __index__ = __int__


# --- device and context -------------------------------------------------------------------


class Device:
    """A GPU."""

    def __init__(self, number: int = 0):
        if not 0 <= number < self.count():
            raise LogicError(f"invalid device {number}: there are {self.count()}")
        self.number = number
        self._driver = open_gpu(number)

    @staticmethod
    def count() -> int:
        from ..targets.cuda.driver import device_count

        return device_count()

    def name(self) -> str:
        return self._driver.name

    def compute_capability(self) -> tuple[int, int]:
        return divmod(self._driver.gpu.arch, 10)

    def total_memory(self) -> int:
        return self._driver.gpu.memory

    def pci_bus_id(self) -> str:
        return str(_call(self._driver.pci_bus_id))

    def make_context(self, flags: int = 0) -> Context:
        context = Context(self)
        context.push()
        return context

    def retain_primary_context(self) -> Context:
        return Context(self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and other.number == self.number

    def __hash__(self) -> int:
        return self.number


class Context:
    """pycuda's context: always the GPU's primary one, which other libraries use too."""

    _stack: list[Context] = []

    def __init__(self, device: Device | None = None):
        self._device = device or Device()

    def push(self) -> None:
        self._device._driver.enter()
        Context._stack.append(self)

    @staticmethod
    def pop() -> None:
        if not Context._stack:
            raise LogicError("Context.pop: no context is current")
        Context._stack.pop()

    def detach(self) -> None:
        if self in Context._stack:
            Context._stack.remove(self)

    @staticmethod
    def get_current() -> Context | None:
        return Context._stack[-1] if Context._stack else None

    @staticmethod
    def get_device() -> Device:
        return Context._stack[-1]._device if Context._stack else Device()

    @staticmethod
    def synchronize() -> None:
        """Waits for all work on the GPU."""
        _call(_gpu().synchronize_all)


def init(flags: int = 0) -> None:
    """Starts the driver."""
    _gpu()


def get_version() -> tuple[int, int, int]:
    """Version of CUDA that the driver supports."""
    number = get_driver_version()
    return number // 1000, number % 1000 // 10, 0


def get_driver_version() -> int:
    """The same as one number, such as 13000."""
    return int(_gpu().driver_version())
