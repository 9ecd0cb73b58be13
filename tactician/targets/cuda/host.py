"""The driver's methods on host memory: kernels are interpreted, or (null) only recorded.

Engines for CUDA run on it in tests: everything but the machine code is what runs on a GPU.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import threading
import time
from typing import Any

import numpy as np

from ...support.errors import PlanError
from .arch import Gpu, gpu_of
from .code import ALIGNMENT, LIBRARY, TEXT, Code
from .driver import Array, Call, Driver, DriverError, Loaded

_KEPT = 4096


class HostDriver(Driver):
    """A GPU that isn't there.

    Args:
        mode: ``interpreter`` or ``null``.
        gpu: What it stands for.

    Attributes:
        log: What was launched: (symbol, grid, pointers, integers) of the last kernels.
        launches, graph_launches, captures: How often each happened.
    """

    is_host = True

    def __init__(self, mode: str, gpu: Gpu):
        self.mode, self.gpu = mode, gpu
        self.name = f"{mode} ({gpu.name})"
        self.log: list[tuple[str, tuple[int, int, int], tuple[int, ...], tuple[int, ...]]] = []
        self.launches = self.graph_launches = self.captures = 0
        self._blocks: dict[int, Array] = {}
        self._handles = itertools.count(1)
        self._events: dict[int, float] = {}
        self._recorded: dict[int, Any] = {}  # event -> graph it was recorded in
        self._capturing: dict[int, list[Any]] = {}
        self._lock = threading.RLock()

    # --- memory ---------------------------------------------------------------------------

    def alloc(self, nbytes: int) -> int:
        raw = np.zeros(max(nbytes, 1) + ALIGNMENT, np.uint8)
        at = int(raw.ctypes.data) + -int(raw.ctypes.data) % ALIGNMENT
        self._blocks[at] = raw
        return at

    def free(self, address: int) -> None:
        self._blocks.pop(address, None)

    def _do(self, stream: int, work: Any) -> None:
        """Work on a stream: done at once, or kept for the graph that is being captured."""
        with self._lock:
            if stream in self._capturing:
                self._capturing[stream].append(work)
            else:
                work()

    def upload(self, to: int, source: int, nbytes: int, stream: int = 0) -> None:
        self.copy(to, source, nbytes, stream)

    def download(self, to: int, source: int, nbytes: int, stream: int = 0) -> None:
        self.copy(to, source, nbytes, stream)

    def copy(self, to: int, source: int, nbytes: int, stream: int = 0) -> None:
        if nbytes:
            self._do(stream, functools.partial(ctypes.memmove, to, source, nbytes))

    def fill(self, to: int, byte: int, nbytes: int, stream: int = 0) -> None:
        if nbytes:
            self._do(stream, functools.partial(ctypes.memset, to, byte, nbytes))

    def pinned(self, nbytes: int) -> Array:
        return np.empty(nbytes, np.uint8)

    def memory(self) -> tuple[int, int]:
        return self.gpu.memory, self.gpu.memory

    # --- kernels --------------------------------------------------------------------------

    def load(self, code: Code) -> Loaded:
        if self.mode == "interpreter" and code.kind != TEXT:
            raise PlanError("the plan holds machine code for a GPU, which can't be interpreted")
        return Loaded(code, code.symbol)

    def prepare(self, kernel: Loaded, args: Array, dims: Array, extra: Array) -> Call:
        code = kernel.code
        given = len(args) + code.workspace + code.counters + len(dims)
        if code.kind != LIBRARY and given != len(code.types):
            raise PlanError(
                f"kernel {code.symbol} takes {len(code.types)} parameters, the plan gives it "
                f"{given}"
            )
        return _HostCall(self, kernel, args, dims, extra)

    def run(self, code: Code, grid: tuple[int, int, int], args: tuple[int, ...],
            dims: tuple[int, ...]) -> None:
        """Runs a kernel, or records that it would."""
        self.launches += 1
        self.log.append((code.symbol, grid, args, dims))
        del self.log[:-_KEPT]
        misaligned = [hex(a) for a in args if a % 16]
        if misaligned:
            raise DriverError(f"{code.symbol} got pointers that are not 16-byte aligned: "
                              f"{', '.join(misaligned)}")
        if self.mode == "interpreter":
            from .interpret import interpret

            text = code.body.decode()
            interpret(text, code.entry, code.types, grid, (*args, *dims), code.symbol,
                      together=code.cooperative)

    # --- streams and events ---------------------------------------------------------------

    def stream(self, flags: int = 1) -> int:
        return next(self._handles)

    def drop_stream(self, stream: int) -> None:
        self._capturing.pop(stream, None)

    def synchronize(self, stream: int = 0) -> None:
        if stream in self._capturing:
            raise DriverError("a stream that is being captured can't be waited for")

    def is_done(self, stream: int) -> bool:
        return True

    def event(self, timing: bool = True) -> int:
        return next(self._handles)

    def drop_event(self, event: int) -> None:
        self._events.pop(event, None)

    def record(self, event: int, stream: int = 0) -> None:
        with self._lock:
            self._recorded[event] = self._capturing.get(stream)
        self._do(stream, lambda: self._events.__setitem__(event, time.perf_counter()))

    def wait_event(self, stream: int, event: int) -> None:
        graph = self._recorded.get(event)
        if graph is None:
            return
        if self._capturing.get(stream, graph) is not graph:
            raise DriverError("a stream that is being captured can't wait for another graph")
        self._capturing[stream] = graph  # it joins in

    def event_synchronize(self, event: int) -> None:
        pass

    def event_done(self, event: int) -> bool:
        return True

    def elapsed(self, first: int, second: int) -> float:
        return (self._events[second] - self._events[first]) * 1e3

    # --- graphs ---------------------------------------------------------------------------

    def begin_capture(self, stream: int) -> None:
        if not stream or stream in self._capturing:
            raise DriverError("the default stream, or one that is captured, can't be captured")
        self._capturing[stream] = []

    def end_capture(self, stream: int) -> Any:
        self.captures += 1
        graph = self._capturing.pop(stream)
        for joined in [s for s, other in self._capturing.items() if other is graph]:
            del self._capturing[joined]
        return graph

    def abandon_capture(self, stream: int) -> None:
        self._capturing.pop(stream, None)

    def launch_graph(self, graph: Any, stream: int) -> None:
        self.graph_launches += 1
        for work in graph:
            self._do(stream, work)

    def drop_graph(self, graph: Any) -> None:
        pass


class _HostCall(Call):
    def __init__(self, driver: HostDriver, kernel: Loaded, args: Array, dims: Array,
                 extra: Array):
        self._driver, self._code, self._args, self._dims = driver, kernel.code, args, dims
        self._extra = extra

    def launch(self, grid: tuple[int, int, int], stream: int) -> None:
        if not grid[0] * grid[1] * grid[2]:
            return
        # as a GPU's driver does, arguments are taken now, also while capturing
        shared = [0] * self._code.workspace + [1] * self._code.counters
        args = (*self._args.tolist(), *(int(self._extra[k]) for k in shared))
        dims = tuple(self._dims.tolist())
        work = functools.partial(self._driver.run, self._code, grid, args, dims)
        self._driver._do(stream, work)


@functools.cache
def host_driver(mode: str, arch: int) -> HostDriver:
    """The stand-in for GPUs of a compute capability."""
    return HostDriver(mode, gpu_of(arch))
