"""Timing candidates on the GPU, in a process of their own.

A kernel that reads memory it may not takes its process's whole context with it. So candidates run
in a child process: what breaks there is one candidate, refused, and a new child goes on.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import pickle
import re
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ...ir import dims as D
from ...ir.graph import Value
from ...regions.region import Region
from ...support import logger as log
from ...support.errors import RefusedError
from ...tactics.kernel import Kernel
from ...tactics.tuner import Bench, storage_of
from .code import grid_of
from .compiler import compiler
from .device import CudaDevice
from .driver import Array, Driver
from .measure import Broken, Measurer, Own, Part, Zeros

TIMEOUT = 60.0  # seconds that one candidate may take


class TimingDevice(CudaDevice):
    """A GPU that is here.

    Args:
        driver: The GPU; candidates run in a child process, or here for one on host memory.
    """

    can_time = True
    cross_checks = True

    def __init__(self, driver: Driver, *, tf32: bool = True):
        super().__init__(driver.gpu, mode=getattr(driver, "mode", ""), tf32=tf32)
        self.driver = driver
        self.libraries = not driver.is_host
        self._process: Local | Process | None = None
        driver.enter()
        if not driver.is_host:
            compiler().warm()

    def _measurer(self) -> Local | Process:
        if self._process is None:
            self._process = Local(self.driver) if self.driver.is_host else Process()
        return self._process

    def attempt(self, payload: bytes) -> str:
        """Runs a call of cuDNN once, where it can do no harm; why that failed, or ""."""
        try:
            with exclusive():
                return str(self._measurer().ask("attempt", payload))
        except RefusedError as e:
            return str(e)
        except Broken as e:
            self._measurer().restart()
            return str(e)

    def bench(
        self, region: Region, arrays: dict[Value, Array], env: Mapping[str, int], seconds: float
    ) -> Bench:
        self._measurer()
        assert self._process is not None
        try:
            return GpuBench(self, region, arrays, env, seconds, self._process)
        except Broken as e:
            log.warning(f"kernels are timed in this process: the one for that does not run: {e}")
            self._process.restart()
            self._process = Local(self.driver)
            return GpuBench(self, region, arrays, env, seconds, self._process)


class GpuBench(Bench):
    """Runs a region's candidates on operands in device memory."""

    def __init__(
        self, device: CudaDevice, region: Region, arrays: dict[Value, Array],
        env: Mapping[str, int], seconds: float, process: Local | Process,
    ):
        super().__init__(device, region, arrays, env, seconds)
        self._cuda, self._process = device, process
        self._keys = {v: k for k, v in enumerate(arrays)}
        self._open()

    def _open(self) -> None:
        outputs = set(self.region.outputs)
        given: list[Any] = []
        for v, array in self.arrays.items():
            whole = storage_of(v, array)
            out = v in outputs
            given.append(Zeros(whole.shape, whole.dtype) if out else np.ascontiguousarray(whole))
        outs = [self._keys[v] for v in self.region.outputs]
        consts = [k for v, k in self._keys.items() if v.const is not None]
        with exclusive():
            self._process.ask("open", given, outs, consts, self.seconds)

    def time(self, kernel: Kernel) -> float:
        chain = (*kernel.before, kernel)
        started = [self._cuda.start(k) for k in chain]
        symbol = started[-1][0]
        own: dict[Value, Own] = {}
        parts = [self._part(k, own, code.result()) for k, (_, code) in zip(chain, started,
                                                                           strict=True)]
        try:
            with exclusive():
                return float(self._process.ask("time", parts))
        except Broken as e:
            self._cuda.failed[symbol] = str(e)
            self._process.restart()
            self._open()
            raise RefusedError(str(e)) from None

    def _part(self, kernel: Kernel, own: dict[Value, Own], blob: bytes) -> Part:
        launch, env = kernel.launch, self.env
        assert launch is not None
        args: list[Any] = []
        for a in kernel.args:
            if isinstance(a, Value) and a not in self._keys:  # memory of the kernels' own
                nbytes = D.evaluate(a.numel, env) * a.dtype.size
                a = own.setdefault(a, Own(len(own), nbytes))  # type: ignore[assignment]
            args.append(self._keys[a] if isinstance(a, Value) else a)
        return Part(
            blob, args, grid_of([D.evaluate(d, env) for d in launch.grid]),
            [D.evaluate(d, env) for d in kernel.dims], D.evaluate(launch.workspace, env),
            D.evaluate(launch.counters, env),
        )

    def results(self, whole: bool) -> dict[Value, Array]:
        got = self._process.ask("results", whole)
        out = {}
        for v, array in zip(self.region.outputs, got, strict=True):
            mine = self.arrays[v]
            is_whole = array.ndim == mine.ndim and storage_of(v, mine) is not mine
            out[v] = array[..., : mine.shape[-1]] if is_whole else array
        return out

    def close(self) -> None:
        self._process.ask("close")


@contextlib.contextmanager
def exclusive() -> Iterator[None]:
    """Keeps other processes of this machine from timing on the same GPUs meanwhile."""
    user = os.getuid() if hasattr(os, "getuid") else 0
    seen = re.sub(r"\W+", "_", os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    path = os.path.join(tempfile.gettempdir(), f"tactician-timing-{user}{seen and '-' + seen}.lock")
    try:
        import fcntl

        file = open(path, "w")  # noqa: SIM115 (closed below)
    except (ImportError, OSError):
        yield
        return
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Local:
    """A measurer in this process."""

    def __init__(self, driver: Driver):
        self._measurer = Measurer(driver)

    def ask(self, what: str, *args: Any) -> Any:
        return getattr(self._measurer, what)(*args)

    def restart(self) -> None:
        self._measurer = Measurer(self._measurer.driver)


class Process:
    """A measurer in a child process."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        atexit.register(self.restart)

    def _started(self) -> subprocess.Popen[bytes]:
        if self._child is None:
            env = {**os.environ, "PYTHONPATH": os.pathsep.join(p or "." for p in sys.path)}
            self._child = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", "tactician.targets.cuda.measure"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env,
            )
        return self._child

    def ask(self, what: str, *args: Any) -> Any:
        """The measurer's answer.

        Raises:
            RefusedError: If it refuses the kernel.
            Broken: If it died or hung; `restart` then.
        """
        child = self._started()
        assert child.stdin is not None and child.stdout is not None
        timer = threading.Timer(TIMEOUT, child.kill)
        timer.daemon = True
        timer.start()
        try:
            data = pickle.dumps((what, args), protocol=5)
            child.stdin.write(struct.pack("<Q", len(data)))
            child.stdin.write(data)
            child.stdin.flush()
            head = child.stdout.read(8)
            if len(head) < 8:
                raise EOFError
            status, value = pickle.loads(child.stdout.read(struct.unpack("<Q", head)[0]))
        except (OSError, EOFError, pickle.UnpicklingError):
            raise Broken(f"the kernel crashed its process, or ran over {TIMEOUT:.0f} s") from None
        finally:
            timer.cancel()
        if status == "refused":
            raise RefusedError(value)
        if status == "broken":
            raise Broken(value)
        return value

    def restart(self) -> None:
        """Ends the child; the next question starts another."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.wait()
            for stream in (child.stdin, child.stdout):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()


