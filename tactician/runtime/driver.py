"""pycuda's driver names on the CPU target, where device memory is host memory.

Programs written for TensorRT allocate with ``mem_alloc``, copy with ``memcpy_htod_async`` and
pass ``int(allocation)`` as a binding; with ``import tactician.driver as cuda`` they run as they
are. Everything here is exported as `tactician.driver`.
"""

from __future__ import annotations

import builtins
import os
import platform
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..support.errors import TacticianError
from .buffers import aligned_block, array_at, copy_bytes
from .streams import Event, Stream, default_stream_barrier, stream_of

__all__ = [
    "Context", "Device", "DeviceAllocation", "Error", "Event", "HostAllocation", "LogicError",
    "MemoryError", "RuntimeError", "Stream", "aligned_empty", "aligned_zeros", "ctx_flags",
    "event_flags", "from_device", "from_device_like", "get_driver_version", "get_version",
    "host_alloc_flags", "init", "managed_empty", "managed_empty_like", "managed_zeros",
    "managed_zeros_like", "mem_alloc", "mem_alloc_like", "mem_alloc_pitch", "mem_attach_flags",
    "mem_get_info", "memcpy_dtod", "memcpy_dtod_async", "memcpy_dtoh", "memcpy_dtoh_async",
    "memcpy_htod", "memcpy_htod_async", "memset_d8", "memset_d8_async", "memset_d16",
    "memset_d16_async", "memset_d32", "memset_d32_async", "pagelocked_empty",
    "pagelocked_empty_like", "pagelocked_zeros", "pagelocked_zeros_like", "register_host_memory",
    "to_device",
]  # fmt: skip

Array = np.ndarray[Any, Any]


class Error(TacticianError):
    """Base class of the driver's errors."""


class LogicError(Error):
    """An argument that can't be right: a null or freed pointer, a copy that is too large."""


class MemoryError(Error):
    """Not enough memory."""


class RuntimeError(Error):
    """A failure while running."""


# --- memory -------------------------------------------------------------------------------


class DeviceAllocation:
    """A block of device memory. ``int(allocation)`` is its address, which TensorRT's bindings
    take. It is freed with the object, or by `free`.

    Attributes:
        size: Bytes.
    """

    def __init__(self, size: int):
        if size <= 0:
            raise LogicError(f"mem_alloc: {size} bytes; an allocation needs at least 1")
        try:
            self._block: Array | None = aligned_block(size, 256)
        except (ValueError, OverflowError, builtins.MemoryError) as e:
            raise MemoryError(f"mem_alloc: out of memory ({size} bytes)") from e
        self.size = size
        self._address = int(self._block.ctypes.data)

    def free(self) -> None:
        """Gives the memory back; the allocation can't be used afterwards.

        Raises:
            LogicError: If it was freed before.
        """
        if self._block is None:
            raise LogicError("free: the allocation was freed already")
        self._block = None

    def as_buffer(self, size: int, offset: int = 0) -> memoryview:
        """A writable view of part of the memory."""
        if self._block is None or size < 0 or offset < 0 or offset + size > self.size:
            raise LogicError(
                f"as_buffer: {size} bytes at {offset} are not within the {self.size} allocated"
            )
        return self._block.data[offset : offset + size]

    def __int__(self) -> int:
        if self._block is None:
            raise LogicError("the allocation was freed")
        return self._address

    __index__ = __int__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DeviceAllocation) and other._address == self._address

    def __hash__(self) -> int:
        return hash(self._address)

    def __repr__(self) -> str:
        state = "freed" if self._block is None else f"{self.size} bytes at {self._address:#x}"
        return f"<DeviceAllocation: {state}>"


class HostAllocation(np.ndarray):
    """Base of page-locked arrays. Asynchronous copies read and write them when they run; other
    host arrays are read at the call, as CUDA does with pageable memory."""


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
    """(free, total) bytes of the machine's memory."""
    page = os.sysconf("SC_PAGE_SIZE")
    total = page * os.sysconf("SC_PHYS_PAGES")
    free = page * os.sysconf("SC_AVPHYS_PAGES")
    try:
        with open("/proc/meminfo") as f:
            table = dict(line.split(":", 1) for line in f)
        free = int(table["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        pass  # not Linux: what sysconf says
    return free, total


def pagelocked_empty(
    shape: int | Sequence[int], dtype: Any, order: str = "C", mem_flags: int = 0
) -> Array:
    """An uninitialized host array for asynchronous copies, aligned to a page."""
    dims = (shape,) if isinstance(shape, (int, np.integer)) else tuple(shape)
    kind = np.dtype(dtype)
    nbytes = int(np.prod(dims, dtype=np.int64)) * kind.itemsize
    flat = aligned_block(nbytes, 4096).view(HostAllocation).view(kind)
    return flat.reshape(dims, order="F" if order == "F" else "C").view(np.ndarray)


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
    """The same memory as a page-locked array."""
    return ary.view(HostAllocation)


def managed_empty(
    shape: int | Sequence[int], dtype: Any, order: str = "C", mem_flags: int = 0
) -> Array:
    """An array that host and device share; on the CPU any array is."""
    return pagelocked_empty(shape, dtype, order)


def managed_zeros(
    shape: int | Sequence[int], dtype: Any, order: str = "C", mem_flags: int = 0
) -> Array:
    return pagelocked_zeros(shape, dtype, order)


def managed_empty_like(array: Array, mem_flags: int = 0) -> Array:
    return pagelocked_empty_like(array)


def managed_zeros_like(array: Array, mem_flags: int = 0) -> Array:
    return pagelocked_zeros_like(array)


def aligned_empty(
    shape: int | Sequence[int], dtype: Any, order: str = "C", alignment: int = 4096
) -> Array:
    return pagelocked_empty(shape, dtype, order)


def aligned_zeros(
    shape: int | Sequence[int], dtype: Any, order: str = "C", alignment: int = 4096
) -> Array:
    return pagelocked_zeros(shape, dtype, order)


# --- copies -------------------------------------------------------------------------------


def _is_pagelocked(array: Any) -> bool:
    while array is not None:
        if isinstance(array, HostAllocation):
            return True
        array = array.obj if isinstance(array, memoryview) else getattr(array, "base", None)
    return False


def _device_pointer(x: Any, nbytes: int, what: str) -> int:
    """Address of device memory that must hold ``nbytes``."""
    if isinstance(x, DeviceAllocation) and nbytes > x.size:
        raise LogicError(f"{what}: {nbytes} bytes do not fit an allocation of {x.size}")
    for name in ("gpudata", "ptr"):
        x = getattr(x, name, x) if not isinstance(x, DeviceAllocation) else x
    if hasattr(x, "data_ptr"):
        x = x.data_ptr()
    try:
        address = int(x)
    except TypeError:
        raise LogicError(
            f"{what}: {type(x).__name__} is no device pointer; pass a DeviceAllocation or an int"
        ) from None
    if address == 0 and nbytes:
        raise LogicError(f"{what}: null device pointer")
    return address


def _host_bytes(x: Any, what: str, *, writable: bool = False) -> Array:
    """Host memory as bytes, without copying."""
    if isinstance(x, np.ndarray):
        if not (x.flags.c_contiguous or x.flags.f_contiguous):
            raise LogicError(f"{what}: the host array is not contiguous; pass a copy of it")
        if writable and not x.flags.writeable:
            raise LogicError(f"{what}: the host array is read-only")
        flat = np.lib.stride_tricks.as_strided(x, (x.size,), (x.itemsize,), writeable=writable)
        return flat.view(np.uint8) if x.size else np.empty(0, np.uint8)
    try:
        view = memoryview(x).cast("B")
    except TypeError:
        raise LogicError(f"{what}: {type(x).__name__} is no host buffer") from None
    if writable and view.readonly:
        raise LogicError(f"{what}: the host buffer is read-only")
    return np.frombuffer(view, np.uint8)


def _submit(stream: Any, work: Any) -> None:
    target = stream_of(stream)
    if target is None:
        default_stream_barrier()
        work()
    else:
        target.submit(work)


def _copy_to_device(dest: Any, src: Any, stream: Any, what: str) -> None:
    data = _host_bytes(src, what)
    address = _device_pointer(dest, data.nbytes, what)
    if stream_of(stream) is not None and not _is_pagelocked(src):
        data = data.copy()  # pageable memory may change as soon as the call returns

    def work(keep: Any = dest) -> None:
        copy_bytes(address, data.ctypes.data, data.nbytes)

    _submit(stream, work)


def _copy_to_host(dest: Any, src: Any, stream: Any, what: str) -> None:
    data = _host_bytes(dest, what, writable=True)
    address = _device_pointer(src, data.nbytes, what)

    def work(keep: Any = src) -> None:
        copy_bytes(data.ctypes.data, address, data.nbytes)

    _submit(stream, work)


def memcpy_htod(dest: Any, src: Any) -> None:
    """Copies a host array or buffer to device memory, after all queued work."""
    _copy_to_device(dest, src, None, "memcpy_htod")


def memcpy_htod_async(dest: Any, src: Any, stream: Any = None) -> None:
    """Queues a copy from host to device. A page-locked source is read when the copy runs."""
    _copy_to_device(dest, src, stream, "memcpy_htod_async")


def memcpy_dtoh(dest: Any, src: Any) -> None:
    """Copies device memory into a host array (as many bytes as that has)."""
    _copy_to_host(dest, src, None, "memcpy_dtoh")


def memcpy_dtoh_async(dest: Any, src: Any, stream: Any = None) -> None:
    """Queues a copy from device to host; the array is valid after synchronizing."""
    _copy_to_host(dest, src, stream, "memcpy_dtoh_async")


def memcpy_dtod_async(dest: Any, src: Any, size: int, stream: Any = None) -> None:
    """Queues a copy of ``size`` bytes within device memory."""
    to = _device_pointer(dest, size, "memcpy_dtod")
    of = _device_pointer(src, size, "memcpy_dtod")

    def work(keep: Any = (dest, src)) -> None:
        copy_bytes(to, of, size)

    _submit(stream, work)


def memcpy_dtod(dest: Any, src: Any, size: int) -> None:
    memcpy_dtod_async(dest, src, size)


def _memset(dest: Any, value: int, count: int, kind: Any, stream: Any) -> None:
    nbytes = count * np.dtype(kind).itemsize
    address = _device_pointer(dest, nbytes, "memset")

    def work(keep: Any = dest) -> None:
        array_at(address, (count,), kind)[...] = value

    _submit(stream, work)


def memset_d8(dest: Any, data: int, size: int) -> None:
    _memset(dest, data, size, np.uint8, None)


def memset_d16(dest: Any, data: int, size: int) -> None:
    _memset(dest, data, size, np.uint16, None)


def memset_d32(dest: Any, data: int, size: int) -> None:
    _memset(dest, data, size, np.uint32, None)


def memset_d8_async(dest: Any, data: int, size: int, stream: Any = None) -> None:
    _memset(dest, data, size, np.uint8, stream)


def memset_d16_async(dest: Any, data: int, size: int, stream: Any = None) -> None:
    _memset(dest, data, size, np.uint16, stream)


def memset_d32_async(dest: Any, data: int, size: int, stream: Any = None) -> None:
    _memset(dest, data, size, np.uint32, stream)


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


# --- device and context -------------------------------------------------------------------


class host_alloc_flags:
    """Accepted and without effect: all memory is host memory."""

    PORTABLE, DEVICEMAP, WRITECOMBINED = 1, 2, 4


class mem_attach_flags:
    GLOBAL, HOST, SINGLE = 1, 2, 4


class event_flags:
    DEFAULT, BLOCKING_SYNC, DISABLE_TIMING, INTERPROCESS = 0, 1, 2, 4


class ctx_flags:
    SCHED_AUTO, SCHED_SPIN, SCHED_YIELD, SCHED_BLOCKING_SYNC = 0, 1, 2, 4
    MAP_HOST, LMEM_RESIZE_TO_MAX = 8, 16


class Device:
    """The CPU as pycuda's device 0."""

    def __init__(self, number: int = 0):
        if number != 0:
            raise LogicError(f"invalid device {number}: the CPU target has one device, number 0")

    @staticmethod
    def count() -> int:
        return 1

    def name(self) -> str:
        return platform.processor() or platform.machine()

    def compute_capability(self) -> tuple[int, int]:
        """(0, 0): not a CUDA device."""
        return 0, 0

    def total_memory(self) -> int:
        return mem_get_info()[1]

    def pci_bus_id(self) -> str:
        return "cpu:0"

    def make_context(self, flags: int = 0) -> Context:
        context = Context(self)
        context.push()
        return context

    def retain_primary_context(self) -> Context:
        return Context(self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device)

    def __hash__(self) -> int:
        return 0


class Context:
    """pycuda's context. The CPU needs none, so the stack is only bookkeeping."""

    _stack: list[Context] = []

    def __init__(self, device: Device | None = None):
        self._device = device or Device()

    def push(self) -> None:
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
        return Device()

    @staticmethod
    def synchronize() -> None:
        """Waits for all streams. Errors stay with their streams' ``synchronize``."""
        default_stream_barrier()


def init(flags: int = 0) -> None:
    """Does nothing: there is no driver to initialize."""


def get_version() -> tuple[int, int, int]:
    """(0, 0, 0): no CUDA."""
    return 0, 0, 0


def get_driver_version() -> int:
    """0: no CUDA driver."""
    return 0
