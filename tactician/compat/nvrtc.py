"""CUDA's run-time compiler (``cuda.bindings.nvrtc``) where there is no GPU: programs can import it
and read errors; it compiles nothing, as no device here runs CUDA code."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Any

from ..support import logger as log


class nvrtcResult(IntEnum):
    """Results of calls."""

    NVRTC_SUCCESS = 0
    NVRTC_ERROR_OUT_OF_MEMORY = 1
    NVRTC_ERROR_PROGRAM_CREATION_FAILURE = 2
    NVRTC_ERROR_INVALID_INPUT = 3
    NVRTC_ERROR_INVALID_PROGRAM = 4
    NVRTC_ERROR_INVALID_OPTION = 5
    NVRTC_ERROR_COMPILATION = 6
    NVRTC_ERROR_INTERNAL_ERROR = 11


class nvrtcProgram:
    """A program; there are none."""


def _refused(name: str, count: int) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> tuple[Any, ...]:
        log.error(f"{name}: CUDA code is not compiled here: there is no GPU that could run it")
        return (nvrtcResult.NVRTC_ERROR_PROGRAM_CREATION_FAILURE, *[None] * count)

    call.__name__, call.__doc__ = name, "Fails: there is no GPU."
    return call


nvrtcCreateProgram = _refused("nvrtcCreateProgram", 1)
nvrtcCompileProgram = _refused("nvrtcCompileProgram", 0)
nvrtcDestroyProgram = _refused("nvrtcDestroyProgram", 0)
nvrtcGetProgramLogSize = _refused("nvrtcGetProgramLogSize", 1)
nvrtcGetProgramLog = _refused("nvrtcGetProgramLog", 0)
nvrtcGetPTXSize = _refused("nvrtcGetPTXSize", 1)
nvrtcGetPTX = _refused("nvrtcGetPTX", 0)
nvrtcGetCUBINSize = _refused("nvrtcGetCUBINSize", 1)
nvrtcGetCUBIN = _refused("nvrtcGetCUBIN", 0)


def nvrtcVersion() -> tuple[nvrtcResult, int, int]:
    """The version of CUDA that is imitated: 12.8."""
    return nvrtcResult.NVRTC_SUCCESS, 12, 8


def nvrtcGetSupportedArchs() -> tuple[nvrtcResult, list[int]]:
    """No architecture."""
    return nvrtcResult.NVRTC_SUCCESS, []


def nvrtcGetErrorString(result: Any) -> tuple[nvrtcResult, bytes]:
    """Name of a result."""
    return nvrtcResult.NVRTC_SUCCESS, nvrtcResult(int(result)).name.encode()


__all__ = [n for n in list(globals()) if n.startswith("nvrtc")]
