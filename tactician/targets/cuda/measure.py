"""Measures kernels on a device: what the child process of `bench` runs.

A candidate is timed as CUDA graphs of many launches, so that what the host does doesn't count.
Its constants take turns between copies that together exceed the level-2 cache: in a network,
weights come from memory, while activations were just written.
"""

from __future__ import annotations

import itertools
import os
import pickle
import statistics
import struct
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...support import knobs
from ...support.errors import ExecutionError, RefusedError, TacticianError
from ...tactics.tuner import UNWRITTEN
from .code import Code, scratch_needs
from .driver import Array, Call, Driver, Loaded, OutOfMemoryError

_SAMPLE = 1 << 20  # bytes from either end of a result that are compared
_GRAPH_SECONDS = 3e-4  # of launches in one graph
_MOST_LAUNCHES = 48
_MOST_COPIES = 24
_REPLAYS = 5
# after these the context is lost
_STICKY = ("ILLEGAL_ADDRESS", "ILLEGAL_INSTRUCTION", "LAUNCH_FAILED", "MISALIGNED_ADDRESS",
           "LAUNCH_TIMEOUT", "HARDWARE_STACK", "INVALID_PC", "ASSERT", "ECC",
           "CONTEXT_IS_DESTROYED")


class Broken(TacticianError):
    """A kernel took the context with it."""


@dataclass(frozen=True)
class Zeros:
    """An array of zeros, without them."""

    shape: tuple[int, ...]
    dtype: Any


@dataclass(frozen=True)
class Own:
    """Memory that a kernel and those ahead of it share."""

    number: int
    nbytes: int


@dataclass(frozen=True)
class Part:
    """A kernel to be timed, or one that runs ahead of it.

    Attributes:
        blob: See `code.Code`.
        args: Operands' numbers, arrays that are constants of this kernel alone, or its own memory.
        grid, dims: Blocks, and integer arguments.
        workspace, counters: See `tactics.kernel.Launch`.
    """

    blob: bytes
    args: list[int | Array | Own]
    grid: tuple[int, int, int]
    dims: list[int]
    workspace: int
    counters: int


Chain = list[tuple[Call, tuple[int, int, int]]]
"""The calls of a kernel and of those ahead of it, in order."""


class Measurer:
    """Operands of one region in device memory, and the timing of kernels on them."""

    def __init__(self, driver: Driver):
        self.driver = driver
        driver.enter()
        self._stream = driver.stream()
        self._ticks = (driver.event(), driver.event())
        self._loaded: dict[str, Loaded] = {}
        self._taken: list[int] = []
        self._operands: list[tuple[int, int, bool]] = []  # address, bytes, constant
        self._outputs: list[tuple[int, tuple[int, ...], Any]] = []
        self._seconds = 0.0

    def open(
        self, arrays: list[Array | Zeros], outputs: list[int], constants: list[int],
        seconds: float,
    ) -> None:
        """Takes a region's operands.

        Args:
            arrays: Contents; results are `Zeros`.
            outputs, constants: Which of them are results and constants.
            seconds: Time to spend on a kernel.
        """
        self.close()
        self._seconds = seconds
        for k, a in enumerate(arrays):
            nbytes = int(np.prod(a.shape, dtype=np.int64)) * np.dtype(a.dtype).itemsize
            at = self._take(nbytes)
            if isinstance(a, Zeros):
                self.driver.fill(at, 0, nbytes, self._stream)
            else:
                self.driver.upload(at, int(a.ctypes.data), nbytes, self._stream)
            self._operands.append((at, nbytes, k in constants))
        self._outputs = [(self._operands[k][0], arrays[k].shape, arrays[k].dtype) for k in outputs]
        self.driver.synchronize(self._stream)

    def _take(self, nbytes: int) -> int:
        self._taken.append(self.driver.alloc(max(nbytes, 256)))
        return self._taken[-1]

    def close(self) -> None:
        """Gives all memory back."""
        self.driver.synchronize(self._stream)
        for at in self._taken:
            self.driver.free(at)
        self._taken.clear()
        self._operands.clear()
        self._outputs = []

    def time(self, parts: list[Part]) -> float:
        """Seconds that a kernel (the last part) takes with those ahead of it; results are
        overwritten before.

        Raises:
            RefusedError: If it can't be launched.
            Broken: If the context is lost.
        """
        mark = len(self._taken)
        try:
            took = self._time(parts)
            self._release(mark)
            return took
        except OutOfMemoryError as e:
            self._release(mark)
            raise RefusedError(str(e)) from None
        except ExecutionError as e:
            if any(word in str(e) for word in _STICKY):
                raise Broken(str(e)) from None
            self._release(mark)
            raise RefusedError(str(e)) from None

    def attempt(self, payload: bytes) -> str:
        """Why a call of cuDNN fails, or "".

        Raises:
            Broken: If the context is lost.
        """
        from .cudnn_call import run_once

        why = run_once(payload, self.driver)
        if any(word in why for word in _STICKY):
            raise Broken(why)
        return why

    def _release(self, mark: int) -> None:
        self.driver.synchronize(self._stream)
        for at in self._taken[mark:]:
            self.driver.free(at)
        del self._taken[mark:]

    def _load(self, blob: bytes) -> Loaded:
        code = Code.unpack(blob)
        if code.symbol not in self._loaded:
            self._loaded[code.symbol] = self.driver.load(code)
        return self._loaded[code.symbol]

    def _time(self, parts: list[Part]) -> float:
        own: dict[int, tuple[int, int, bool]] = {}
        operands = [[self._operand(a, own) for a in p.args] for p in parts]
        prepared = [self._shared(p) for p in parts]
        for out, shape, dt in self._outputs:
            nbytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dt).itemsize
            self.driver.fill(out, UNWRITTEN, nbytes, self._stream)

        def chain(rows: list[Array]) -> Chain:
            return [
                (self.driver.prepare(loaded, row, np.array(p.dims, np.int64), extra), p.grid)
                for p, (loaded, extra), row in zip(parts, prepared, rows, strict=True)
            ]

        first = chain([np.array([a for a, _, _ in o], np.int64) for o in operands])
        self._run(first)
        once = max(self._run(first), 1e-6)
        launches = max(4, min(_MOST_LAUNCHES, int(_GRAPH_SECONDS / once)))
        chains = [chain(rows) for rows in self._rotated(operands, min(launches, _MOST_COPIES))]
        return self._replay(chains, launches, once)

    def _shared(self, p: Part) -> tuple[Loaded, Array]:
        """A part's code, and the addresses of its workspace, counters and scratch memory."""
        loaded = self._load(p.blob)
        need, begin = scratch_needs(loaded.code, p.workspace, p.grid)
        at = self._take(need) if need else 0
        count_at = self._take(4 * p.counters) if p.counters else 0
        if p.counters:
            self.driver.fill(count_at, 0, 4 * p.counters, self._stream)
        return loaded, np.array([at, count_at, at + begin, 0], np.int64)

    def _operand(
        self, a: int | Array | Own, own: dict[int, tuple[int, int, bool]]
    ) -> tuple[int, int, bool]:
        if isinstance(a, Own):
            if a.number not in own:
                own[a.number] = self._take(a.nbytes), a.nbytes, False
            return own[a.number]
        if not isinstance(a, np.ndarray):
            return self._operands[a]
        data = np.ascontiguousarray(a)
        at = self._take(data.nbytes)
        self.driver.upload(at, int(data.ctypes.data), data.nbytes, self._stream)
        self.driver.synchronize(self._stream)
        return at, data.nbytes, True

    def _rotated(
        self, operands: list[list[tuple[int, int, bool]]], most: int
    ) -> list[list[Array]]:
        """Arguments of launches, with copies of the constants in turn."""
        constant = sum(n for part in operands for _, n, const in part if const)
        copies = min(most, -(-2 * self.driver.gpu.l2 // constant)) if constant > 4096 else 1
        found = []
        for k in range(copies):
            rows = []
            for part in operands:
                row = []
                for at, nbytes, const in part:
                    if const and k and nbytes > 4096:
                        twin = self._take(nbytes)
                        self.driver.copy(twin, at, nbytes, self._stream)
                        at = twin
                    row.append(at)
                rows.append(np.array(row, np.int64))
            found.append(rows)
        return found

    def _run(self, chain: Chain) -> float:
        begin, end = self._ticks
        self.driver.record(begin, self._stream)
        for call, grid in chain:
            call.launch(grid, self._stream)
        self.driver.record(end, self._stream)
        self.driver.synchronize(self._stream)
        return self.driver.elapsed(begin, end) * 1e-3

    def _replay(self, chains: list[Chain], launches: int, once: float) -> float:
        driver, stream = self.driver, self._stream
        begin, end = self._ticks
        driver.begin_capture(stream)
        try:
            for chain in itertools.islice(itertools.cycle(chains), launches):
                for call, grid in chain:
                    call.launch(grid, stream)
        except BaseException:
            driver.abandon_capture(stream)
            raise
        graph = driver.end_capture(stream)
        times = []
        try:
            driver.launch_graph(graph, stream)
            replays = max(_REPLAYS, min(50, int(self._seconds / (once * launches))))
            for _ in range(replays):
                driver.record(begin, stream)
                driver.launch_graph(graph, stream)
                driver.record(end, stream)
                driver.synchronize(stream)
                times.append(driver.elapsed(begin, end) * 1e-3 / launches)
        finally:
            driver.drop_graph(graph)
        return statistics.median(times)

    def results(self, whole: bool) -> list[Array]:
        """What the last kernel wrote: all of it, or both ends as flat arrays if it is much."""
        out = []
        for at, shape, dt in self._outputs:
            size, count = np.dtype(dt).itemsize, int(np.prod(shape, dtype=np.int64))
            if whole or count * size <= 2 * _SAMPLE:
                out.append(self.driver.get(at, shape, dt, self._stream))
                continue
            n = _SAMPLE // size
            tail = at + (count - n) * size
            parts = [self.driver.get(p, (n,), dt, self._stream) for p in (at, tail)]
            out.append(np.concatenate(parts))
        return out


def serve() -> None:
    """Answers questions from stdin on stdout until stdin ends."""
    from .driver import open_gpu
    from .host import host_driver

    mode = knobs.gpu().partition(":")[0].lower()
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not get between replies
    on_host = mode in ("interpreter", "null")
    measurer = Measurer(host_driver(mode, 90) if on_host else open_gpu(0))
    while len(head := sys.stdin.buffer.read(8)) == 8:
        what, args = pickle.loads(sys.stdin.buffer.read(struct.unpack("<Q", head)[0]))
        try:
            reply = ("ok", getattr(measurer, what)(*args))
        except Broken as e:
            reply = ("broken", str(e))
        except RefusedError as e:
            reply = ("refused", str(e))
        except Exception as e:
            sticky = any(word in str(e) for word in _STICKY) or what != "time"
            reply = ("broken" if sticky else "refused", f"{type(e).__name__}: {e}")
        data = pickle.dumps(reply, protocol=5)
        replies.write(struct.pack("<Q", len(data)) + data)
        replies.flush()


if __name__ == "__main__":
    from tactician.targets.cuda import measure  # pickles name classes by their module

    measure.serve()
