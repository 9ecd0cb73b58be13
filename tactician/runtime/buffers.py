"""Host memory as the CPU target's device memory: aligned blocks and arrays at addresses."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

ALIGNMENT = 64
Array = np.ndarray[Any, Any]


def aligned_block(nbytes: int, alignment: int = ALIGNMENT) -> Array:
    """A byte array that starts at a multiple of ``alignment``; uninitialized."""
    raw = np.empty(nbytes + alignment, np.uint8)
    start = -raw.ctypes.data % alignment
    return raw[start : start + nbytes]


def aligned_copy(array: Array) -> Array:
    """The array itself if its data is aligned and contiguous, else an aligned copy."""
    if array.flags.c_contiguous and array.ctypes.data % ALIGNMENT == 0:
        return array
    block = aligned_block(array.nbytes).view(array.dtype).reshape(array.shape)
    block[...] = array
    return block


def array_at(address: int, shape: Sequence[int], dtype: Any) -> Array:
    """A writable array over memory that someone else keeps alive.

    Raises:
        ValueError: If the address is null and the array is not empty.
    """
    dtype = np.dtype(dtype)
    nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if nbytes == 0:
        return np.empty(shape, dtype)
    if not address:
        raise ValueError("null address")
    raw = (ctypes.c_uint8 * nbytes).from_address(address)
    return np.frombuffer(raw, np.uint8).view(dtype).reshape(shape)


def copy_bytes(dst: int, src: int, nbytes: int) -> None:
    """``memmove`` without the GIL."""
    if nbytes:
        ctypes.memmove(dst, src, nbytes)


def weakly(method: Callable[..., Any]) -> Callable[..., Any]:
    """A bound method that doesn't keep its object alive, so that memory is freed at once."""
    ref = weakref.WeakMethod(method)

    def call(*args: Any) -> Any:
        return ref()(*args)  # type: ignore[misc]

    return call
