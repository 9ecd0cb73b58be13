"""Triton text to machine code: in parallel processes, with a cache on disk."""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import importlib.metadata
import os
import pickle
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ...support import knobs
from ...support.errors import BuildError, PlanError, RefusedError
from ...tactics.kernel import Kernel
from . import worker as worker_file
from .code import CUBIN, FORMAT, Code, shared_of, symbol_of

TIMEOUT = 240.0  # seconds that one kernel may compile
_CACHE_BYTES = 2 << 30
# Runs a script without its folder on the path: modules beside it have names of the standard
# library's (PYTHONSAFEPATH is known from Python 3.11 on only).
_RUN = (
    "import sys; sys.path[:] = filter(None, sys.path); import runpy; "
    "runpy.run_path(sys.argv[1], run_name='__main__')"
)


class CompileError(RefusedError):
    """A kernel that Triton or ptxas refuses, or that takes more than the GPU has."""


@functools.cache
def triton_version() -> str:
    """The version of Triton that would compile, without importing it.

    Raises:
        BuildError: If there is none.
    """
    for name in ("triton", "pytorch-triton", "triton-windows"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    try:
        import triton

        return str(triton.__version__)
    except ImportError:
        raise BuildError(
            "the CUDA target compiles with Triton, which is not installed: "
            "pip install 'tactician[cuda]', or build for the CPU "
            "(config.default_device_type = DeviceType.CPU)"
        ) from None


def cpus() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Worker:
    """One compiling process; see `worker`. It ends when its stdin closes."""

    def __init__(self) -> None:
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        env.pop("TRITON_INTERPRET", None)
        env["PYTHONSAFEPATH"] = "1"
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", _RUN, str(Path(worker_file.__file__).resolve())],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env,
        )

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The reply to a request; raises `OSError` or `EOFError` if the process died."""
        assert self.process.stdin is not None and self.process.stdout is not None
        timer = threading.Timer(TIMEOUT, self.process.kill)
        timer.daemon = True
        timer.start()
        try:
            data = pickle.dumps(dict(request))
            self.process.stdin.write(struct.pack("<Q", len(data)) + data)
            self.process.stdin.flush()
            head = self.process.stdout.read(8)
            if len(head) < 8:
                raise EOFError
            (size,) = struct.unpack("<Q", head)
            reply = pickle.loads(self.process.stdout.read(size))
            return dict(reply)
        finally:
            timer.cancel()

    def close(self) -> None:
        """Ends the process."""
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        self.process.kill()
        self.process.wait()


class Compiler:
    """Compiles kernels on up to ``processes`` processes, which start when first needed."""

    def __init__(self, processes: int = 0):
        self.processes = processes or cpus()
        self._threads: ThreadPoolExecutor | None = None
        self._local = threading.local()
        self._workers: list[Worker] = []
        self._lock = threading.Lock()
        atexit.register(self.close)

    def start(self, kernel: Kernel, arch: int) -> Future[Code]:
        """Begins to compile a kernel; the future raises `CompileError` if that fails."""
        return self._submit(self.compile, kernel, arch)

    def _submit(self, work: Callable[..., Any], *args: Any) -> Future[Any]:
        with self._lock:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(self.processes, "tactician-triton")
            return self._threads.submit(work, *args)

    def warm(self) -> None:
        """Starts all processes, which then import Triton while the network is optimized."""
        if not self._workers:
            for _ in range(self.processes):
                self._submit(self._warm_one)

    def _warm_one(self) -> None:
        with contextlib.suppress(OSError, EOFError, pickle.UnpicklingError):
            self._worker().ask({"warm": True})

    def compile(self, kernel: Kernel, arch: int) -> Code:
        """Compiles a kernel in a process of the calling thread, or takes it from the cache.

        Raises:
            CompileError: Naming the kernel.
        """
        cache = disk_cache()
        key = cache_key(kernel, arch)
        found = cache.get(key) if cache is not None else None
        if found is not None:
            return found
        code = self._ask(kernel, arch)
        if cache is not None:
            cache.put(key, code)
        return code

    def _ask(self, kernel: Kernel, arch: int) -> Code:
        launch = kernel.launch
        assert launch is not None
        symbol = symbol_of(kernel)
        request = {
            "source": kernel.source, "symbol": kernel.symbol, "types": launch.types,
            "arch": arch, "warps": launch.warps, "stages": launch.stages,
            "options": dict(launch.options), "name": symbol,
        }
        reply: dict[str, Any] = {}
        for attempt in range(2):
            try:
                reply = self._worker().ask(request)
                break
            except (OSError, EOFError, pickle.UnpicklingError):
                self._drop_worker()
                if attempt:
                    raise CompileError(
                        f"the compiler crashed, or ran over {TIMEOUT:.0f} s, on {symbol}"
                    ) from None
        if "error" in reply:
            raise CompileError(f"{symbol}: {reply['error']}")
        body, entry = reply.pop("cubin"), reply.pop("entry")
        reply.pop("ptx")
        return Code(symbol, CUBIN, body, entry, arch, tuple(launch.types), **shared_of(kernel),
                    **reply)

    def _worker(self) -> Worker:
        found: Worker | None = getattr(self._local, "worker", None)
        if found is None or found.process.poll() is not None:
            found = self._local.worker = Worker()
            with self._lock:
                self._workers.append(found)
        return found

    def _drop_worker(self) -> None:
        found = getattr(self._local, "worker", None)
        if found is not None:
            found.close()
            self._local.worker = None
            with self._lock:
                if found in self._workers:
                    self._workers.remove(found)

    def close(self) -> None:
        """Ends all processes; what still compiles fails."""
        with self._lock:
            threads, self._threads = self._threads, None
            workers, self._workers = self._workers, []
        if threads is not None:
            threads.shutdown(wait=False, cancel_futures=True)
        for w in workers:
            w.close()


@functools.cache
def compiler() -> Compiler:
    """The process's compiler."""
    return Compiler(knobs.compile_processes())


def cache_key(kernel: Kernel, arch: int) -> str:
    """Everything that machine code depends on."""
    text = f"{FORMAT}|{triton_version()}|{arch}|{symbol_of(kernel)}|{_worker_stamp()}"
    return hashlib.sha256(text.encode()).hexdigest()


@functools.cache
def _worker_stamp() -> str:
    return hashlib.sha256(Path(worker_file.__file__).read_bytes()).hexdigest()[:16]


class DiskCache:
    """Blobs by key in a folder; the oldest go when it grows too large."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._added = 0

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / key[2:]

    def get(self, key: str) -> Code | None:
        """The code, or None if it is not there or damaged."""
        path = self._path(key)
        try:
            data = path.read_bytes()
        except OSError:
            return None
        try:
            if hashlib.sha256(data[32:]).digest() != data[:32]:
                return None
            return Code.unpack(data[32:])
        except PlanError:
            return None

    def put(self, key: str, code: Code) -> None:
        """Adds code; failing to is no error."""
        path = self._path(key)
        blob = code.pack()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=path.parent)
            with os.fdopen(handle, "wb") as f:
                f.write(hashlib.sha256(blob).digest() + blob)
            os.replace(temporary, path)
        except OSError:
            return
        self._added += 1
        if self._added % 512 == 0:
            self._prune()

    def _prune(self) -> None:
        files = []
        for path in self.folder.glob("*/*"):
            try:
                stat = path.stat()
            except OSError:
                continue
            files.append((stat.st_mtime, stat.st_size, path))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= _CACHE_BYTES:
                break
            path.unlink(missing_ok=True)
            total -= size


@functools.cache
def _cache_at(folder: str) -> DiskCache:
    return DiskCache(Path(folder))


def disk_cache() -> DiskCache | None:
    """The cache that ``TACTICIAN_KERNEL_CACHE`` names; None if it is switched off."""
    folder = knobs.kernel_cache()
    return _cache_at(folder) if folder else None
