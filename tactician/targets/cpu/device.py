"""The CPU as a device for the tuner and the builder: compiles, runs and times kernels."""

from __future__ import annotations

import ctypes
import hashlib
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...ir import dims as D
from ...tactics.kernel import Kernel
from .isa import Isa, physical_cores
from .toolchain import LinkedCode, Toolchain, link, toolchain

_KERNEL = ctypes.CFUNCTYPE(
    None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p
)


class CpuDevice:
    """This machine, or (for building only) another CPU described by its `Isa`.

    Attributes:
        target: ``cpu``.
        isa: What code may use.
        threads: Threads that engines will run with.
        fingerprint: Names the ISA; a plan runs only where it matches.
    """

    target = "cpu"

    def __init__(self, isa: Isa | None = None, threads: int = 0):
        self.isa = isa or Isa.host()
        self.threads = threads or physical_cores()
        self.toolchain: Toolchain = toolchain(self.isa)
        self._linked: dict[str, tuple[LinkedCode, Any]] = {}

    @property
    def fingerprint(self) -> str:
        return self.isa.fingerprint

    def compile(self, kernel: Kernel) -> tuple[str, bytes]:
        """Object code and the name of its function, which is unique to the source text."""
        symbol, text = unique_source(kernel)
        return symbol, self.toolchain.compile(text)

    def function(self, kernel: Kernel) -> Any:
        """The linked kernel as a ctypes function."""
        symbol, code = self.compile(kernel)
        if symbol not in self._linked:
            linked = link([code])
            self._linked[symbol] = linked, _KERNEL(linked.address(symbol))
        return self._linked[symbol][1]

    def run_kernel(
        self, kernel: Kernel, arrays: Sequence[np.ndarray[Any, Any]], env: Mapping[str, int]
    ) -> None:
        """Runs a kernel once on this thread; outputs are written into ``arrays``."""
        self._caller(kernel, arrays, env)()

    def time_kernel(
        self, kernel: Kernel, arrays: list[np.ndarray[Any, Any]], env: Mapping[str, int],
        seconds: float,
    ) -> float:
        """Best time of one run, in seconds; see `tactics.tuner.Device`."""
        call = self._caller(kernel, arrays, env)
        call()
        best, spent, runs = float("inf"), 0.0, 0
        while runs < 3 or (spent < seconds and runs < 10000):
            start = time.perf_counter()
            call()
            took = time.perf_counter() - start
            best, spent, runs = min(best, took), spent + took, runs + 1
        return best

    def _caller(
        self, kernel: Kernel, arrays: Sequence[np.ndarray[Any, Any]], env: Mapping[str, int]
    ) -> Any:
        function = self.function(kernel)
        args = (ctypes.c_void_p * max(len(arrays), 1))(*(a.ctypes.data for a in arrays))
        sizes = [D.evaluate(d, env) for d in kernel.dims]
        dims = (ctypes.c_int64 * max(len(sizes), 1))(*sizes)
        work = D.evaluate(kernel.work, env)
        scratch = np.empty(D.evaluate(kernel.scratch, env) + 64, np.uint8)
        base = -(-scratch.ctypes.data // 64) * 64
        keep = (arrays, scratch)

        def call() -> None:
            assert keep
            function(ctypes.addressof(args), ctypes.addressof(dims), 0, work, base)

        return call


def unique_source(kernel: Kernel) -> tuple[str, str]:
    """The kernel's text with its function renamed so that different kernels never collide."""
    stamp = hashlib.sha256(kernel.source.encode()).hexdigest()[:12]
    symbol = f"{kernel.symbol}_{stamp}"
    pattern = rf'@"?{re.escape(kernel.symbol)}"?(?![\w.$-])'
    return symbol, re.sub(pattern, f"@{symbol}", kernel.source)
