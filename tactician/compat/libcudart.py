"""``ctypes.CDLL("libcudart.so")`` on host memory, for programs that load CUDA's runtime themselves.

The library object's functions are real C function pointers with CUDA's signatures, so programs may
set ``argtypes``, take ``byref`` of results, or hand them to native code.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import re
from collections.abc import Callable
from ctypes import POINTER, c_char_p, c_float, c_int, c_size_t, c_uint, c_void_p
from typing import Any

REAL_CDLL = ctypes.CDLL
_REAL_LOADER = ctypes.cdll
_REAL_FIND = ctypes.util.find_library
_NAME = re.compile(r"(libcudart(-\w+)?\.so[.\d]*|cudart64_\d+\.dll|libcudart\.dylib|cudart)$")

# name -> (the runtime function's arguments by C type; results that are written through pointers)
_IN: dict[str, tuple[list[Any], list[Any]]] = {
    "cudaMalloc": ([c_size_t], [c_void_p]),
    "cudaMallocManaged": ([c_size_t, c_uint], [c_void_p]),
    "cudaMallocHost": ([c_size_t], [c_void_p]),
    "cudaHostAlloc": ([c_size_t, c_uint], [c_void_p]),
    "cudaMallocAsync": ([c_size_t, c_void_p], [c_void_p]),
    "cudaFree": ([c_void_p], []),
    "cudaFreeAsync": ([c_void_p, c_void_p], []),
    "cudaFreeHost": ([c_void_p], []),
    "cudaHostRegister": ([c_void_p, c_size_t, c_uint], []),
    "cudaHostUnregister": ([c_void_p], []),
    "cudaMemcpy": ([c_void_p, c_void_p, c_size_t, c_int], []),
    "cudaMemcpyAsync": ([c_void_p, c_void_p, c_size_t, c_int, c_void_p], []),
    "cudaMemset": ([c_void_p, c_int, c_size_t], []),
    "cudaMemsetAsync": ([c_void_p, c_int, c_size_t, c_void_p], []),
    "cudaMemGetInfo": ([], [c_size_t, c_size_t]),
    "cudaStreamCreate": ([], [c_void_p]),
    "cudaStreamCreateWithFlags": ([c_uint], [c_void_p]),
    "cudaStreamCreateWithPriority": ([c_uint, c_int], [c_void_p]),
    "cudaStreamDestroy": ([c_void_p], []),
    "cudaStreamSynchronize": ([c_void_p], []),
    "cudaStreamQuery": ([c_void_p], []),
    "cudaStreamWaitEvent": ([c_void_p, c_void_p, c_uint], []),
    "cudaEventCreate": ([], [c_void_p]),
    "cudaEventCreateWithFlags": ([c_uint], [c_void_p]),
    "cudaEventRecord": ([c_void_p, c_void_p], []),
    "cudaEventSynchronize": ([c_void_p], []),
    "cudaEventQuery": ([c_void_p], []),
    "cudaEventElapsedTime": ([c_void_p, c_void_p], [c_float]),
    "cudaEventDestroy": ([c_void_p], []),
    "cudaDeviceSynchronize": ([], []),
    "cudaDeviceReset": ([], []),
    "cudaGetDeviceCount": ([], [c_int]),
    "cudaGetDevice": ([], [c_int]),
    "cudaSetDevice": ([c_int], []),
    "cudaDeviceGetAttribute": ([c_int, c_int], [c_int]),
    "cudaRuntimeGetVersion": ([], [c_int]),
    "cudaDriverGetVersion": ([], [c_int]),
    "cudaGetLastError": ([], []),
    "cudaPeekAtLastError": ([], []),
    "cudaProfilerStart": ([], []),
    "cudaProfilerStop": ([], []),
}
_FIRST = {"cudaGetErrorName", "cudaGetErrorString"}  # functions that return text


def _native(name: str) -> Any:
    """A C function pointer that calls a function of `tactician.compat.cudart`."""
    from . import cudart

    function: Callable[..., Any] = getattr(cudart, name)
    if name in _FIRST:
        texts: dict[int, bytes] = {}

        def text(code: int) -> bytes:
            try:
                return texts.setdefault(code, function(code)[1])
            except ValueError:
                return b"unrecognized error code"

        # a c_char_p result of a callback would be freed at once: keep it, and give its address
        def address(code: int) -> int:
            return int(ctypes.cast(c_char_p(text(code)), c_void_p).value or 0)

        pointer = ctypes.CFUNCTYPE(c_void_p, c_int)(address)
        pointer.restype = c_char_p
        return pointer
    takes, gives = _IN[name]

    def call(*args: Any) -> int:
        results, values = args[:len(gives)], args[len(gives):]
        if not all(results):
            return 1  # cudaErrorInvalidValue: nowhere to write to
        error, *out = function(*[v or 0 for v in values])
        for p, value in zip(results, out, strict=True):
            if int(error) == 0:
                p[0] = int(value) if not isinstance(value, float) else value
        return int(error)

    return ctypes.CFUNCTYPE(c_int, *[POINTER(t) for t in gives], *takes)(call)


class CDLL(ctypes.CDLL):
    """``ctypes.CDLL``, except that CUDA's runtime library is the one of this module."""

    def __init__(self, name: Any, *args: Any, **kwargs: Any):
        self._is_cudart = is_cudart(name)
        if self._is_cudart:
            self._name, self._handle = str(name), 0
            return
        super().__init__(name, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if not self.__dict__.get("_is_cudart"):
            return super().__getattr__(name)
        if name not in _IN and name not in _FIRST:
            raise AttributeError(f"{self._name}: undefined symbol: {name}")
        function = _native(name)
        setattr(self, name, function)
        return function

    def __getitem__(self, name: Any) -> Any:
        return getattr(self, name) if self._is_cudart else super().__getitem__(name)


def is_cudart(name: Any) -> bool:
    """Whether a library's name is that of CUDA's runtime."""
    return isinstance(name, (str, os.PathLike)) and bool(
        _NAME.match(os.path.basename(os.fspath(name))))


def _find_library(name: str) -> str | None:
    return "libcudart.so" if name == "cudart" else _REAL_FIND(name)


def intercept() -> None:
    """Makes ctypes give the host's runtime for ``libcudart``."""
    ctypes.CDLL = CDLL  # type: ignore[misc]
    ctypes.cdll = ctypes.LibraryLoader(CDLL)
    ctypes.util.find_library = _find_library


def release() -> None:
    """Undoes `intercept`."""
    ctypes.CDLL = REAL_CDLL  # type: ignore[misc]
    ctypes.cdll = _REAL_LOADER
    ctypes.util.find_library = _REAL_FIND
