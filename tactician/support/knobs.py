"""Environment knobs, each declared once.

| variable | meaning |
| --- | --- |
| ``TACTICIAN_DEBUG`` | on stderr: 1 plan summary, 2 time of each step run, 3 tactic tables, 4 graphs, 5 LLVM text |
| ``TACTICIAN_CHECK`` | 1: verify the graph after each pass |
| ``TACTICIAN_ONNX_BACKEND`` | ``engine`` (default) or ``reference``: what `onnx_backend` runs models with |
| ``TACTICIAN_DEVICE`` | ``cpu`` or ``gpu``: the default device (else a GPU where one can be used) |
| ``TACTICIAN_GPU`` | GPU that builds for CUDA are for where there is none: ``sm_90``, ``H100``, …; ``interpreter`` and ``null`` run such engines on the host |
| ``TACTICIAN_KERNEL_CACHE`` | folder of compiled GPU kernels (default ``~/.cache/tactician/kernels``); ``off``: keep none |
| ``TACTICIAN_ENGINE_CACHE`` | folder of engines that ``torch.compile`` made (default ``~/.cache/tactician/engines``); ``off``: keep none |
| ``TACTICIAN_OVERLAP`` | 0: a GPU kernel is launched only when the one before it has ended (from compute capability 9.0 on it is launched earlier, and waits on the device) |
| ``TACTICIAN_OPTIMIZATION_LEVEL`` | ``builder_optimization_level``, 0 to 5, of programs that set none (default 3) |
| ``TACTICIAN_COMPILE_PROCESSES`` | processes that compile GPU kernels (default: all processors) |
| ``TACTICIAN_LIBRARY_PATH`` | folders with cuDNN and cuBLASLt, before those of the Python wheels (separated by ``:``) |
| ``NVIDIA_TF32_OVERRIDE`` | 0: no product is rounded to TF32, whatever ``BuilderFlag.TF32`` says; as for all of NVIDIA's libraries |
"""  # noqa: E501

from __future__ import annotations

import os


def onnx_backend() -> str:
    """What `tactician.onnx_backend` runs models with."""
    return os.environ.get("TACTICIAN_ONNX_BACKEND", "") or "engine"


def debug_level() -> int:
    """The rung of the debug ladder, 0 to 5; text that is no number counts as 1."""
    text = os.environ.get("TACTICIAN_DEBUG", "0") or "0"
    try:
        return max(0, min(5, int(text)))
    except ValueError:
        return 1


def default_device() -> str:
    """``cpu``, ``gpu`` or "" (whatever is there).

    Raises:
        ValueError: If it is something else.
    """
    text = os.environ.get("TACTICIAN_DEVICE", "").lower()
    if text == "cuda":
        text = "gpu"
    if text not in ("", "cpu", "gpu"):
        raise ValueError(f"TACTICIAN_DEVICE is {text!r}; it can be cpu or gpu")
    return text


def gpu() -> str:
    """The GPU to build for where there is none, or "": see the table."""
    return os.environ.get("TACTICIAN_GPU", "").strip()


def no_tf32() -> bool:
    """Whether the variable of NVIDIA's that rules TF32 out, for TensorRT as for cuBLAS, is set."""
    return os.environ.get("NVIDIA_TF32_OVERRIDE", "").strip() == "0"


def kernel_cache() -> str:
    """Folder of the cache of compiled GPU kernels, or "" for none."""
    return _cache("TACTICIAN_KERNEL_CACHE", "kernels")


def engine_cache() -> str:
    """Folder of the cache of engines that ``torch.compile`` made, or "" for none."""
    return _cache("TACTICIAN_ENGINE_CACHE", "engines")


def _cache(variable: str, name: str) -> str:
    text = os.environ.get(variable, "")
    if text.lower() in ("off", "0", "none"):
        return ""
    if text:
        return os.path.expanduser(text)
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(base, "tactician", name)


def optimization_level() -> int:
    """The builder's optimization level where a program sets none.

    Raises:
        ValueError: If it is no number from 0 to 5.
    """
    text = os.environ.get("TACTICIAN_OPTIMIZATION_LEVEL", "").strip() or "3"
    if text not in ("0", "1", "2", "3", "4", "5"):
        raise ValueError(f"TACTICIAN_OPTIMIZATION_LEVEL is {text!r}; it goes from 0 to 5")
    return int(text)


def compile_processes() -> int:
    """Processes that compile GPU kernels; 0: as many as there are processors."""
    text = os.environ.get("TACTICIAN_COMPILE_PROCESSES", "0") or "0"
    try:
        return max(0, int(text))
    except ValueError:
        return 0


def library_path() -> list[str]:
    """Folders to look for NVIDIA's libraries in first."""
    return [p for p in os.environ.get("TACTICIAN_LIBRARY_PATH", "").split(os.pathsep) if p]


def overlap() -> bool:
    """Whether GPU kernels are launched before the kernels ahead of them have ended; they wait for
    these on the device."""
    return os.environ.get("TACTICIAN_OVERLAP", "1") != "0"
