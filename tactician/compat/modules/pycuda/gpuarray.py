"""``import pycuda.gpuarray``: arrays in device memory, as far as programs carry data in them."""

from typing import Any

import numpy as np

from tactician import driver


class GPUArray:
    """An array in device memory.

    Attributes:
        shape, dtype, size, nbytes: As of numpy arrays.
        gpudata, ptr: The memory, and its address.
    """

    def __init__(self, shape: Any, dtype: Any, allocator: Any = driver.mem_alloc,
                 gpudata: Any = None):
        self.shape = (int(shape),) if np.ndim(shape) == 0 else tuple(int(d) for d in shape)
        self.dtype = np.dtype(dtype)
        self.size = int(np.prod(self.shape, dtype=np.int64))
        self.nbytes = self.size * self.dtype.itemsize
        self.gpudata = allocator(max(self.nbytes, 1)) if gpudata is None else gpudata

    @property
    def ptr(self) -> int:
        """Address of the first element."""
        return int(self.gpudata)

    def set(self, ary: Any) -> None:
        """Copies a host array of the same shape in.

        Raises:
            ValueError: If shape or type differ.
        """
        host = np.ascontiguousarray(ary)
        if host.shape != self.shape or host.dtype != self.dtype:
            raise ValueError(f"cannot set {self.dtype}{self.shape} to {host.dtype}{host.shape}")
        if host.size:
            driver.memcpy_htod(self.gpudata, host)

    def get(self, ary: Any = None) -> Any:
        """A host copy (in ``ary`` if given)."""
        out = np.empty(self.shape, self.dtype) if ary is None else ary
        if self.size:
            driver.memcpy_dtoh(out, self.gpudata)
        return out

    def fill(self, value: Any) -> "GPUArray":
        """Sets all elements."""
        self.set(np.full(self.shape, value, self.dtype))
        return self

    def __len__(self) -> int:
        return self.shape[0]


def to_gpu(ary: Any, allocator: Any = driver.mem_alloc) -> GPUArray:
    """A copy of a host array in device memory."""
    host = np.asarray(ary)
    out = GPUArray(host.shape, host.dtype, allocator)
    out.set(host)
    return out


def empty(shape: Any, dtype: Any, allocator: Any = driver.mem_alloc) -> GPUArray:
    """An uninitialized array."""
    return GPUArray(shape, dtype, allocator)


def zeros(shape: Any, dtype: Any, allocator: Any = driver.mem_alloc) -> GPUArray:
    """An array of zeros."""
    return GPUArray(shape, dtype, allocator).fill(0)
