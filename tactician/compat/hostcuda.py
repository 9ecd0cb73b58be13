"""CUDA's memory, streams and events on the host: what the runtime API, the driver API and the
ctypes library share. Functions raise `CudaError` with CUDA's number of what went wrong."""

from __future__ import annotations

import bisect
import ctypes
import threading
from typing import Any

import numpy as np

from ..runtime.buffers import aligned_block, array_at, copy_bytes
from ..runtime.streams import Event, Stream, default_stream_barrier, event_of, stream_of
from ..support import logger as log
from ..support.errors import TacticianError

SUCCESS, INVALID_VALUE, OUT_OF_MEMORY = 0, 1, 2
INVALID_DEVICE, INVALID_HANDLE, NOT_READY = 101, 400, 600
LAUNCH_FAILURE, NOT_SUPPORTED = 719, 801


class CudaError(Exception):
    """A failed call.

    Attributes:
        code: CUDA's number for it.
    """

    def __init__(self, code: int, message: str):
        super().__init__(message)
        self.code = code


class Heap:
    """Blocks of memory by address.

    Args:
        what: What the blocks are, for messages.
    """

    def __init__(self, what: str):
        self.what = what
        self._lock = threading.Lock()
        self._blocks: dict[int, Any] = {}
        self._sizes: dict[int, int] = {}
        self._order: list[int] = []

    def allocate(self, nbytes: int) -> int:
        """Address of a new block; 0 for no bytes, as CUDA gives."""
        if nbytes < 0:
            raise CudaError(INVALID_VALUE, f"{self.what}: {nbytes} bytes")
        if nbytes == 0:
            return 0
        try:
            block = aligned_block(nbytes, 4096 if nbytes >= 4096 else 256)
        except (MemoryError, ValueError, OverflowError) as e:
            raise CudaError(OUT_OF_MEMORY, f"{self.what}: no memory for {nbytes} bytes") from e
        address = int(block.ctypes.data)
        self.add(address, nbytes, block)
        return address

    def add(self, address: int, nbytes: int, block: Any = None) -> None:
        """Notes memory that someone else allocated."""
        with self._lock:
            if address in self._blocks:
                raise CudaError(INVALID_VALUE, f"{self.what} at {address:#x} is known already")
            self._blocks[address] = block
            self._sizes[address] = nbytes
            bisect.insort(self._order, address)

    def free(self, address: int) -> None:
        """Gives a block back; nothing happens for 0."""
        if address == 0:
            return
        with self._lock:
            if address not in self._blocks:
                raise CudaError(INVALID_VALUE, f"no {self.what} was allocated at {address:#x}")
            block = self._blocks.pop(address)
            del self._sizes[address]
            self._order.remove(address)
        del block

    def room(self, address: int) -> int | None:
        """Bytes from an address to the end of its block; None if it is in none."""
        with self._lock:
            k = bisect.bisect_right(self._order, address) - 1
            if k < 0:
                return None
            start = self._order[k]
            left = start + self._sizes[start] - address
            return left if left > 0 else None


device = Heap("device memory")
pinned = Heap("page-locked memory")
_streams: dict[int, Stream] = {}
_events: dict[int, Event] = {}


def address_of(x: Any) -> int:
    """The address that an argument means: a number, an array, a buffer, a ctypes object."""
    if x is None:
        return 0
    if isinstance(x, int):
        return int(x)
    if isinstance(x, np.ndarray):
        return int(x.ctypes.data)
    for name in ("data_ptr", "getPtr"):
        if hasattr(x, name):
            return int(getattr(x, name)())
    if isinstance(x, ctypes.c_void_p):
        return int(x.value or 0)
    if isinstance(x, (ctypes._Pointer, ctypes.Array)):
        return int(ctypes.cast(x, ctypes.c_void_p).value or 0)
    if hasattr(x, "__int__"):
        return int(x)
    try:
        return int(np.frombuffer(x, np.uint8).ctypes.data)
    except (TypeError, ValueError, BufferError) as e:
        raise CudaError(INVALID_VALUE, f"{type(x).__name__} is no address: {e}") from e


def _check_range(address: int, nbytes: int, what: str) -> None:
    if not address:
        raise CudaError(INVALID_VALUE, f"{what}: null pointer for {nbytes} bytes")
    for heap in (device, pinned):
        room = heap.room(address)
        if room is not None and room < nbytes:
            raise CudaError(INVALID_VALUE,
                            f"{what}: {nbytes} bytes at {address:#x}, but its block of {heap.what}"
                            f" ends after {room}")


def stream(handle: Any) -> Stream | None:
    """The stream of a handle; None for the default streams (0, 1 legacy, 2 per thread)."""
    number = address_of(handle)
    if number == 0 or (number in (1, 2) and number not in _streams):
        return None
    try:
        return stream_of(number)
    except TacticianError as e:
        raise CudaError(INVALID_HANDLE, str(e)) from e


def _submit(work: Any, handle: Any, wait: bool) -> None:
    target = stream(handle)
    if target is None:
        default_stream_barrier()
        work()
    else:
        target.submit(work)
        if wait:
            synchronize(handle)


def copy(dst: Any, src: Any, nbytes: int, handle: Any = 0) -> None:
    """Copies, in a stream's order. As with CUDA, ordinary host memory is read at the call, and
    written when the call returns."""
    to, of = address_of(dst), address_of(src)
    if nbytes == 0:
        return
    _check_range(to, nbytes, "copy to")
    _check_range(of, nbytes, "copy from")
    known = [device.room(p) is not None or pinned.room(p) is not None for p in (of, to)]
    staged: Any = None
    if not known[0] and stream(handle) is not None:
        staged = array_at(of, (nbytes,), np.uint8).copy()
        of = int(staged.ctypes.data)

    def work(keep: Any = (staged, dst, src)) -> None:
        copy_bytes(to, of, nbytes)

    _submit(work, handle, wait=not known[1])


def fill(dst: Any, value: int, count: int, dtype: Any = np.uint8, handle: Any = 0) -> None:
    """Sets ``count`` elements, in a stream's order."""
    to, kind = address_of(dst), np.dtype(dtype)
    if count == 0:
        return
    _check_range(to, count * kind.itemsize, "memset")
    number = int(value) & (256**kind.itemsize - 1)

    def work() -> None:
        array_at(to, (count,), kind)[...] = number

    _submit(work, handle, wait=False)


def new_stream(flags: int = 0) -> int:
    """Handle of a new stream."""
    made = Stream(int(flags))
    while made.handle <= 2:  # handles 1 and 2 name CUDA's default streams
        made = Stream(int(flags))
    _streams[made.handle] = made
    return made.handle


def destroy_stream(handle: Any) -> None:
    """Frees a stream; its work still gets done."""
    number = address_of(handle)
    if _streams.pop(number, None) is None:
        raise CudaError(INVALID_HANDLE, f"no stream has the handle {number}")


def synchronize(handle: Any) -> None:
    """Waits for a stream's work."""
    target = stream(handle)
    if target is None:
        default_stream_barrier()
        return
    try:
        target.synchronize()
    except TacticianError as e:
        log.error(str(e))
        raise CudaError(LAUNCH_FAILURE, str(e)) from e


def synchronize_all() -> None:
    """Waits for the work of all streams and gives the first error."""
    default_stream_barrier()
    for handle in list(_streams):
        synchronize(handle)


def query(handle: Any) -> None:
    """Raises NOT_READY while a stream has work."""
    target = stream(handle)
    if target is not None and not target.is_done():
        raise CudaError(NOT_READY, "the stream is busy")


def new_event(flags: int = 0) -> int:
    """Handle of a new event."""
    made = Event(int(flags))
    _events[made.handle] = made
    return made.handle


def event(handle: Any) -> Event:
    """The event of a handle."""
    try:
        return event_of(address_of(handle))
    except TacticianError as e:
        raise CudaError(INVALID_HANDLE, str(e)) from e


def destroy_event(handle: Any) -> None:
    """Frees an event."""
    if _events.pop(address_of(handle), None) is None:
        raise CudaError(INVALID_HANDLE, f"no event has the handle {handle}")


def query_event(handle: Any) -> None:
    """Raises NOT_READY until an event took place."""
    if not event(handle).query():
        raise CudaError(NOT_READY, "the event has not taken place")


def elapsed(start: Any, end: Any) -> float:
    """Milliseconds between two events."""
    first, last = event(start), event(end)
    for e in (first, last):
        if not e.query():
            raise CudaError(NOT_READY, "the event has not taken place")
    try:
        return last.time_since(first)
    except TacticianError as e:
        raise CudaError(INVALID_HANDLE, str(e)) from e


def wait_event(handle: Any, on: Any) -> None:
    """Makes a stream wait for an event."""
    target = stream(handle)
    if target is None:
        event(on).synchronize()
    else:
        target.wait_for_event(event(on))


def check_device(number: Any) -> int:
    """The number of a device; there is only 0."""
    if int(number) != 0:
        raise CudaError(INVALID_DEVICE, f"invalid device {number}: the host is device 0, alone")
    return 0
