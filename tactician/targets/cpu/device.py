"""The CPU as a device for the tuner and the builder: compiles, runs and times kernels."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import numpy as np

from ...ir import dims as D
from ...ir.graph import Value
from ...tactics.kernel import Kernel
from ...tactics.operands import aligned_zeros
from ...tactics.tuner import Device
from .isa import Isa, physical_cores
from .native import KERNEL, STEP_WORDS, aligned, compile_walker, default_pool
from .toolchain import LinkedCode, Toolchain, link, toolchain

_REPEATS = 4  # runs per launch while timing, so that the launch itself doesn't count
_COLD = 1 << 17  # bytes of constants that other layers have driven out of the nearer caches
_COPIES, _COPIED = 8, 32 << 20  # most copies of constants while timing, and their bytes


class CpuDevice(Device):
    """This machine, or (for building only) another CPU described by its `Isa`.

    Attributes:
        target: ``cpu``.
        isa: What code may use.
        threads: Threads that engines will run with.
        fingerprint: Names the ISA; a plan runs only where it matches.
        precisions: Where there are neither dot products nor tiles of bf16, it and f16 are
            converted to f32 in registers, which gains nothing.
    """

    target = "cpu"
    precisions = frozenset({"i8"})
    rounds = 3

    def __init__(self, isa: Isa | None = None, threads: int = 0):
        self.isa = isa or Isa.host()
        if self.isa.bf16_dot or self.isa.amx:
            self.precisions = frozenset({"i8", "bf16"})
        self.fingerprint = self.isa.fingerprint
        self.threads = threads or physical_cores()
        self.conditions = f" on {self.threads}"
        self.toolchain: Toolchain = toolchain(self.isa)
        self._linked: dict[str, tuple[LinkedCode, int]] = {}
        self._compiling: dict[str, Future[bytes]] = {}
        self._workers: ThreadPoolExecutor | None = None

    def start(self, kernel: Kernel) -> tuple[str, Future[bytes]]:
        """Begins to compile on another thread (LLVM does not hold the interpreter's lock).

        Returns:
            The name of the kernel's function, which is unique to the source text, and the object
            code to come.
        """
        symbol, text = unique_source(kernel)
        if symbol not in self._compiling:
            if self._workers is None:
                self._workers = ThreadPoolExecutor(physical_cores(), "tactician-compile")
                self._workers.submit(compile_walker)  # plans and timing need it, too
            self._compiling[symbol] = self._workers.submit(self.toolchain.compile, text)
        return symbol, self._compiling[symbol]

    def compile(self, kernel: Kernel) -> tuple[str, bytes]:
        """Like `start`, with the code at hand."""
        symbol, code = self.start(kernel)
        return symbol, code.result()

    def settle(self) -> None:
        """Waits until nothing compiles any more, so that timing is not disturbed."""
        wait(self._compiling.values())

    def function(self, kernel: Kernel) -> int:
        """The linked kernel's address."""
        symbol, code = self.compile(kernel)
        if symbol not in self._linked:
            linked = link([code])
            self._linked[symbol] = linked, linked.address(symbol)
        return self._linked[symbol][1]

    def run_kernel(
        self, kernel: Kernel, arrays: Sequence[np.ndarray[Any, Any]], env: Mapping[str, int]
    ) -> None:
        """Runs a kernel once; outputs are written into ``arrays``."""
        self._prepare(kernel, [arrays], env)[0]()

    def time_kernel(
        self, kernel: Kernel, arrays: list[np.ndarray[Any, Any]], env: Mapping[str, int],
        seconds: float, warm: bool = False,
    ) -> float:
        """Best time of one run, in seconds; see `tactics.tuner.Device`.

        Args:
            warm: Let constants stay in the cache from one run to the next. In a network other
                layers run between, so by default runs take turns with copies of them.
        """
        runs_of = [arrays] * _REPEATS if warm else _with_copies(kernel, arrays)
        launch, ticks = self._prepare(kernel, runs_of, env)
        best, spent, runs = float("inf"), 0.0, 0
        while runs < 2 or (spent < seconds and runs < 10000):
            launch()
            took = np.diff(ticks)
            best = min(best, float(took.min()) * 1e-9)
            spent += float(took.sum()) * 1e-9
            runs += 1
        return best

    def _prepare(
        self, kernel: Kernel, runs: Sequence[Sequence[np.ndarray[Any, Any]]],
        env: Mapping[str, int],
    ) -> tuple[Any, np.ndarray[Any, Any]]:
        """A launch of the kernel on some operands after others, and its time stamps."""
        repeats = len(runs)
        args = np.array([[a.ctypes.data for a in run] or [0] for run in runs], np.int64)
        sizes = [D.evaluate(d, env) for d in kernel.dims]
        dims = np.array([*sizes, D.evaluate(kernel.work, env)], np.int64)
        stride = -(-D.evaluate(kernel.scratch, env) // 64) * 64
        scratch = aligned(stride * self.threads + 64)
        steps = np.zeros((repeats + 1, STEP_WORDS), np.int64)
        steps[:repeats, 0] = KERNEL
        steps[:repeats, 1] = self.function(kernel)
        steps[:repeats, 2] = args.ctypes.data + args.strides[0] * np.arange(repeats)
        steps[:repeats, 3] = dims.ctypes.data
        steps[:repeats, 4] = dims.ctypes.data + 8 * len(sizes)
        steps[:repeats, 5] = kernel.grain
        steps[:repeats, 7] = kernel.phase
        ticks = np.zeros(repeats + 1, np.int64)
        launch = default_pool().prepare(
            steps, None, self.threads, ticks, scratch.ctypes.data, stride
        )
        keep = (runs, args, dims, scratch)

        def call() -> None:
            assert keep
            launch()

        return call, ticks


def _with_copies(
    kernel: Kernel, arrays: list[np.ndarray[Any, Any]]
) -> list[list[np.ndarray[Any, Any]]]:
    """Operands of several runs; each has its own copies of large constants."""
    large = [
        i for i, a in enumerate(kernel.args) if not isinstance(a, Value) and a.nbytes >= _COLD
    ]
    if not large:
        return [arrays] * _REPEATS
    copies = max(1, min(_COPIES, _COPIED // sum(arrays[i].nbytes for i in large)))
    runs = [arrays]
    for _ in range(copies - 1):
        run = list(arrays)
        for i in large:
            run[i] = aligned_zeros(run[i].shape, run[i].dtype)
            run[i][...] = arrays[i]
        runs.append(run)
    return runs


def unique_source(kernel: Kernel) -> tuple[str, str]:
    """The kernel's text with its function renamed so that different kernels never collide."""
    stamp = hashlib.sha256(kernel.source.encode()).hexdigest()[:12]
    symbol = f"{kernel.symbol}_{stamp}"
    pattern = rf'@"?{re.escape(kernel.symbol)}"?(?![\w.$-])'
    return symbol, re.sub(pattern, f"@{symbol}", kernel.source)
