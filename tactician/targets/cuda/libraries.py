"""NVIDIA's libraries as sources of kernels: finding them, their versions, and calls by payload.

A library call is a `Launch` with ``library`` and ``payload``. The payload alone says everything:
`open_call` makes a call object of it in any process that has the library. Libraries are found in
the directories of ``TACTICIAN_LIBRARY_PATH``, in the official Python wheels, and where the
system's loader looks.
"""

from __future__ import annotations

import ctypes
import functools
import json
import struct
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ...support import knobs
from ...support.errors import RefusedError, TacticianError


class LibraryMissing(TacticianError):
    """A library that a plan or a tactic needs is not installed, or too old."""


class LibraryError(RefusedError):
    """A library refused a call; the message has its own words."""


class Call(Protocol):
    """One library call, ready to run.

    Attributes:
        workspace: Bytes of device memory that ``launch`` is given.
    """

    workspace: int

    def launch(self, pointers: Sequence[int], workspace_ptr: int, stream: int) -> None:
        """Enqueues the work; it may be recorded into a CUDA graph.

        Args:
            pointers: Device addresses, in the order of the kernel's arguments.
            workspace_ptr: Device address of ``workspace`` bytes, 256-byte aligned (0 if none).
            stream: The stream's handle.
        """


@dataclass(frozen=True)
class Library:
    """What is needed to find one library.

    Attributes:
        name: As `Launch.library` has it.
        title: As people know it.
        files: File names, newest first.
        folders: Folders of wheels below ``site-packages/nvidia``.
        package: The pip package to install.
        version_symbol: Function that returns the version.
    """

    name: str
    title: str
    files: tuple[str, ...]
    folders: tuple[str, ...]
    package: str
    version_symbol: str


LIBRARIES: dict[str, Library] = {
    lib.name: lib
    for lib in (
        Library("cudnn", "cuDNN", ("libcudnn.so.9",), ("cudnn/lib",), "nvidia-cudnn-cu13",
                "cudnnGetVersion"),
        Library("cublaslt", "cuBLASLt", ("libcublasLt.so.13", "libcublasLt.so.12"),
                ("cu13/lib", "cublas/lib"), "nvidia-cublas", "cublasLtGetVersion"),
    )
}  # fmt: skip

_lock = threading.Lock()
_loaded: dict[str, Any] = {}


def _places(lib: Library) -> list[str]:
    """Paths worth trying; a bare file name asks the system's loader."""
    folders = [Path(p) for p in knobs.library_path()]
    for site in sys.path:
        folders += [Path(site) / "nvidia" / f for f in lib.folders]
    found = [str(d / f) for d in folders for f in lib.files if (d / f).is_file()]
    return [*dict.fromkeys(found), *lib.files]


def load(name: str) -> Any:
    """The library as a ``ctypes.CDLL``, loaded once.

    Raises:
        LibraryMissing: If it is nowhere; names the pip package.
    """
    with _lock:
        if name not in _loaded:
            _loaded[name] = _open(LIBRARIES[name])
        return _loaded[name]


def _open(lib: Library) -> Any:
    reasons = []
    for path in _places(lib):
        try:
            return ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
        except OSError as e:
            reasons.append(str(e))
    raise LibraryMissing(
        f"{lib.title} is not installed ({reasons[0] if reasons else 'no file'}): run "
        f"'pip install {lib.package}', or set TACTICIAN_LIBRARY_PATH to its folder"
    )


@functools.cache
def preload_compilers() -> None:
    """cuDNN compiles some kernels while planning and looks for NVRTC (and for cuBLASLt) by name
    only: having them in the process makes the wheels' copies found."""
    names = ("libnvrtc-builtins.so.13.*", "libnvrtc.so.13", "libcublasLt.so.13")
    for site in sys.path:
        for folder in ("nvidia/cu13/lib", "nvidia/cuda_nvrtc/lib"):
            for name in names:
                for path in sorted((Path(site) / folder).glob(name)):
                    try:
                        ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
                    except OSError:
                        continue


def use(name: str, library: Any) -> Callable[[], None]:
    """Puts ``library`` in the place of a real one (for tests); the result undoes it."""
    with _lock:
        before = _loaded.get(name)
        _loaded[name] = library
    version.cache_clear()

    def undo() -> None:
        with _lock:
            _loaded.pop(name, None)
            if before is not None:
                _loaded[name] = before
        version.cache_clear()

    return undo


@functools.cache
def version(name: str) -> int:
    """The installed version as the library counts it (cuDNN 9.19.1: 91901).

    Raises:
        LibraryMissing: If it is not installed.
    """
    fn = getattr(load(name), LIBRARIES[name].version_symbol)
    fn.restype = ctypes.c_size_t
    return int(fn())


def unavailable(name: str) -> str | None:
    """Why the library can't be used in this process, or None."""
    try:
        version(name)
    except LibraryMissing as e:
        return str(e)
    return None


def versions() -> dict[str, int]:
    """Installed libraries and their versions."""
    return {name: version(name) for name in LIBRARIES if unavailable(name) is None}


def require(needed: dict[str, int]) -> None:
    """Checks that libraries a plan was built with are here, in a fitting version.

    Args:
        needed: Name -> version at build time.

    Raises:
        LibraryMissing: If one is absent, older, or of another major version.
    """
    for name, built in needed.items():
        lib = LIBRARIES.get(name)
        if lib is None:
            raise LibraryMissing(f"the plan needs library {name!r}, which this version does not "
                                 f"know: it was made by a newer one")
        try:
            here = version(name)
        except LibraryMissing as e:
            raise LibraryMissing(f"the plan calls {lib.title} {built}: {e}") from None
        if here // 10000 != built // 10000 or here < built:
            raise LibraryMissing(
                f"the plan was built with {lib.title} {built}, but {here} is installed: run "
                f"'pip install -U {lib.package}', or build the plan again"
            )


# --- payloads and calls ---------------------------------------------------------------------

_MAGIC = b"TLC1"


def pack(head: dict[str, Any], blob: bytes = b"") -> bytes:
    """A payload: a JSON head and a binary tail."""
    text = json.dumps(head, sort_keys=True, separators=(",", ":")).encode()
    return _MAGIC + struct.pack("<I", len(text)) + text + blob


def unpack(payload: bytes) -> tuple[dict[str, Any], bytes]:
    """The head and tail of a payload.

    Raises:
        LibraryError: If it is damaged.
    """
    if payload[:4] != _MAGIC or len(payload) < 8:
        raise LibraryError("a library call's payload is damaged")
    (size,) = struct.unpack_from("<I", payload, 4)
    try:
        head = json.loads(payload[8 : 8 + size])
    except ValueError as e:
        raise LibraryError(f"a library call's payload is damaged: {e}") from None
    return head, payload[8 + size :]


def open_call(library: str, payload: bytes) -> Call:
    """The call that ``payload`` describes. The CUDA context it will run in must be current.

    Raises:
        LibraryMissing: If the library is not installed.
        LibraryError: If it refuses the call on this device.
    """
    if library == "cudnn":
        from .cudnn_call import CudnnCall

        return CudnnCall(payload)
    if library == "cublaslt":
        from .cublaslt_call import CublasLtCall

        return CublasLtCall(payload)
    raise LibraryMissing(f"there is no library {library!r}; known: {', '.join(LIBRARIES)}")


# --- the device -----------------------------------------------------------------------------


@functools.cache
def _driver() -> Any:
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    return cuda


def current_context() -> int:
    """Handle of the current CUDA context, 0 if there is none: what library handles belong to."""
    cuda = _driver()
    if cuda is None:
        return 0
    context = ctypes.c_void_p()
    if cuda.cuCtxGetCurrent(ctypes.byref(context)):
        return 0
    return context.value or 0


@functools.cache
def has_gpu() -> bool:
    """Whether this process can use a GPU."""
    cuda = _driver()
    count = ctypes.c_int()
    if cuda is None or cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)):
        return False
    return count.value > 0
