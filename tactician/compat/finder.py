"""Finds the stand-in modules: files below ``modules/``, under the names that programs import."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import tactician

from ..support import logger as log
from ..support import version as versions
from ..targets.cuda.present import gpu_is_default
from . import libcudart

MODULES = Path(__file__).resolve().parent / "modules"
TENSORRT = ("tensorrt", "tensorrt_bindings", "tensorrt_lean", "tensorrt_dispatch")
TOOLS = ("uff", "graphsurgeon", "onnx_tensorrt", "torch_tensorrt")  # with TensorRT, or beside it
CUDA = ("pycuda", "cuda")


class Finder:
    """Import finder for the stand-ins.

    Args:
        names: Top-level names that it answers for.
    """

    def __init__(self, names: Iterable[str]):
        self.names = set(names)

    def find_spec(self, fullname: str, path: Sequence[str] | None = None,
                  target: ModuleType | None = None) -> importlib.machinery.ModuleSpec | None:
        """The spec of a stand-in, or None where another finder should look."""
        parts = fullname.split(".")
        if parts[0] not in self.names:
            return None
        base = MODULES.joinpath(*parts)
        if (base / "__init__.py").is_file():
            return importlib.util.spec_from_file_location(
                fullname, base / "__init__.py", submodule_search_locations=[str(base)])
        file = base.with_name(base.name + ".py")
        return importlib.util.spec_from_file_location(fullname, file) if file.is_file() else None

    def invalidate_caches(self) -> None:
        """Nothing is cached."""


_finder: Finder | None = None


def is_ours(module: Any) -> bool:
    """Whether a module is one of the stand-ins."""
    file = getattr(module, "__file__", None) or ""
    return Path(file).is_relative_to(MODULES)


def _really_installed(name: str) -> bool:
    loaded = sys.modules.get(name)
    if loaded is not None:
        return not is_ours(loaded)
    try:
        return importlib.machinery.PathFinder.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def has_cuda() -> bool:
    """Whether tactician runs engines on a CUDA device of this machine."""
    return gpu_is_default()


def install(*, shadow: bool = False, cuda: bool | None = None,
            version: str | None = None) -> tuple[str, ...]:
    """Makes imports of TensorRT and of CUDA's Python packages give tactician's.

    Args:
        shadow: Replace TensorRT and pycuda even where they are really installed.
        cuda: Whether CUDA's runtime (``cuda``, ``pycuda``, ``libcudart`` through ctypes) is
            replaced by one on host memory. By default where tactician has no CUDA device.
        version: TensorRT's version that programs see; ``TACTICIAN_TRT_VERSION`` or 10.13 if None.

    Returns:
        The top-level names that give tactician's now.

    Raises:
        ValueError: If ``version`` is not of the form 10.13 or 8.6.1.
    """
    global _finder
    if version is not None:
        if not all(part.isdigit() for part in version.split(".")):
            raise ValueError(f"version {version!r}: expected numbers and points, like 8.6 or 10.13")
        os.environ["TACTICIAN_TRT_VERSION"] = version
    tactician.__version__ = versions.tensorrt()
    replace_cuda = not has_cuda() if cuda is None else cuda
    names = {n for n in (*TENSORRT, *TOOLS) if shadow or not _really_installed(n)}
    if "tensorrt" not in names:
        log.warning("tensorrt is really installed and stays; install(shadow=True) or"
                    " `python -m tactician.compat --shadow` replaces it")
    if replace_cuda:
        names.update(CUDA)
        if has_cuda():  # engines must take the host memory that CUDA's stand-ins give out
            os.environ["TACTICIAN_DEVICE"] = "cpu"
    elif not _really_installed("pycuda"):
        names.add("pycuda")  # through `tactician.driver`, which is the GPU's then
    for name in [m for m in sys.modules if m.partition(".")[0] in names]:
        if not is_ours(sys.modules[name]) or version is not None:
            del sys.modules[name]  # imported before: the next import gives the stand-in
    if _finder is None:
        _finder = Finder(names)
    _finder.names |= names
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)  # type: ignore[arg-type]
    if replace_cuda:
        libcudart.intercept()
    return tuple(sorted(_finder.names))


def uninstall() -> None:
    """Undoes `install`; modules that were imported meanwhile stay with those who have them."""
    global _finder
    if _finder is None:
        return
    if _finder in sys.meta_path:
        sys.meta_path.remove(_finder)  # type: ignore[arg-type]
    for name in [n for n, m in sys.modules.items() if is_ours(m)]:
        del sys.modules[name]
    libcudart.release()
    _finder = None


def is_installed() -> bool:
    """Whether `install` is in effect."""
    return _finder is not None
