"""Timing candidates on the GPU.

A candidate is timed as CUDA graphs of many launches, so that what the host does doesn't count.
Its constants take turns between copies that together exceed the level-2 cache: in a network,
weights come from memory, while activations were just written.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping
from typing import Any

import numpy as np

from ...ir import dims as D
from ...ir.graph import Value
from ...regions.region import Region
from ...support.errors import BuildError, ExecutionError, RefusedError
from ...tactics.kernel import Kernel
from ...tactics.tuner import UNWRITTEN, Bench, storage_of
from .code import Code
from .device import CudaDevice
from .driver import (
    Array,
    Call,
    Driver,
    Loaded,
    OutOfMemoryError,
    grid_of,
    scratch_needs,
)

_SAMPLE = 4 << 20  # bytes from either end of a result that are compared
_GRAPH_SECONDS = 3e-4  # of launches in one graph
_MOST_LAUNCHES = 48
_MOST_COPIES = 24
_REPLAYS = 5
# after these the GPU's context is lost, and with it all that was built
_STICKY = ("ILLEGAL_ADDRESS", "ILLEGAL_INSTRUCTION", "LAUNCH_FAILED", "MISALIGNED_ADDRESS",
           "LAUNCH_TIMEOUT", "HARDWARE_STACK", "INVALID_PC", "ASSERT", "ECC")


class TimingDevice(CudaDevice):
    """A GPU that is here."""

    can_time = True
    cross_checks = True

    def __init__(self, driver: Driver, *, tf32: bool = True):
        super().__init__(driver.gpu, mode=getattr(driver, "mode", ""), tf32=tf32)
        self.driver = driver
        self.libraries = not driver.is_host
        self._loaded: dict[str, Loaded] = {}
        driver.enter()

    def load(self, kernel: Kernel) -> Loaded:
        """A kernel, compiled and loaded.

        Raises:
            RefusedError: If it can't be.
        """
        symbol, code = self.start(kernel)
        found = self._loaded.get(symbol)
        if found is None:
            try:
                found = self.driver.load(Code.unpack(code.result()))
            except ExecutionError as e:
                self.failed[symbol] = str(e)
                raise RefusedError(str(e)) from None
            self._loaded[symbol] = found
        return found

    def bench(
        self, region: Region, arrays: dict[Value, Array], env: Mapping[str, int], seconds: float
    ) -> Bench:
        return GpuBench(self, region, arrays, env, seconds)


class GpuBench(Bench):
    """Runs a region's candidates on operands in device memory."""

    def __init__(
        self, device: TimingDevice, region: Region, arrays: dict[Value, Array],
        env: Mapping[str, int], seconds: float,
    ):
        super().__init__(device, region, arrays, env, seconds)
        self.driver = device.driver
        self._gpu = device
        self._taken: list[int] = []
        self._places: dict[int, tuple[Any, int]] = {}  # id of array -> (array, address)
        self.driver.enter()
        self._stream = self.driver.stream()
        self._ticks = (self.driver.event(), self.driver.event())

    def _take(self, nbytes: int) -> int:
        self._taken.append(self.driver.alloc(max(nbytes, 16)))
        return self._taken[-1]

    def _place(self, array: Array, whole: Array) -> int:
        """The device address of an operand; uploaded at first use."""
        found = self._places.get(id(array))
        if found is None:
            data = np.ascontiguousarray(whole)
            at = self._take(data.nbytes)
            self.driver.upload(at, data.ctypes.data, data.nbytes, self._stream)
            self.driver.synchronize(self._stream)
            found = self._places[id(array)] = (array, at)
        return found[1]

    def _operand(self, a: Value | Array) -> tuple[int, int, bool]:
        """(address, bytes, whether it is constant) of a kernel's argument."""
        if isinstance(a, Value):
            array = self.arrays[a]
            whole = storage_of(a, array)
            return self._place(array, whole), whole.nbytes, a.const is not None
        return self._place(a, a), a.nbytes, True

    def time(self, kernel: Kernel) -> float:
        try:
            return self._time(kernel)
        except OutOfMemoryError as e:
            raise RefusedError(str(e)) from None
        except ExecutionError as e:
            if any(word in str(e) for word in _STICKY):
                raise BuildError(
                    f"a kernel for {self.region.describe()} broke the GPU's context: "
                    f"{kernel.symbol}: {e}"
                ) from e
            raise RefusedError(str(e)) from None

    def _time(self, kernel: Kernel) -> float:
        launch = kernel.launch
        assert launch is not None
        loaded = self._gpu.load(kernel)
        grid = grid_of([D.evaluate(d, self.env) for d in launch.grid])
        dims = np.array([D.evaluate(d, self.env) for d in kernel.dims], np.int64)
        need, begin = scratch_needs(loaded.code, D.evaluate(launch.workspace, self.env), grid)
        mark = len(self._taken)
        at = self._take(need) if need else 0
        counters = 4 * D.evaluate(launch.counters, self.env)
        extra = np.array([at, self._take(counters) if counters else 0, at + begin, 0], np.int64)
        if counters:
            self.driver.fill(int(extra[1]), 0, counters, self._stream)
        operands = [self._operand(a) for a in kernel.args]
        first = np.array([at for at, _, _ in operands], np.int64)
        for v in self.region.outputs:
            whole = storage_of(v, self.arrays[v])
            at = self._place(self.arrays[v], whole)
            self.driver.fill(at, UNWRITTEN, whole.nbytes, self._stream)
        call = self.driver.prepare(loaded, first, dims, extra)
        self._run([call], grid)
        once = max(self._run([call], grid), 1e-6)
        launches = max(4, min(_MOST_LAUNCHES, int(_GRAPH_SECONDS / once)))
        calls = [
            self.driver.prepare(loaded, args, dims, extra)
            for args in self._rotated(operands, min(launches, _MOST_COPIES))
        ]
        try:
            return self._replay(calls, grid, launches, once)
        finally:
            self.driver.synchronize(self._stream)
            self._release(mark)

    def _release(self, mark: int) -> None:
        """Frees what was taken since; packed constants are the candidate's own."""
        gone = set(self._taken[mark:])
        keep = {id(a) for a in self.arrays.values()}
        for key, (_, at) in list(self._places.items()):
            if key in keep:
                gone.discard(at)
            elif at in gone:
                del self._places[key]
        for at in gone:
            self.driver.free(at)
        self._taken = [at for at in self._taken if at not in gone]

    def _rotated(self, operands: list[tuple[int, int, bool]], most: int) -> list[Array]:
        """Arguments of launches, with copies of the constants in turn."""
        constant = sum(n for _, n, const in operands if const)
        copies = min(most, -(-2 * self._gpu.gpu.l2 // constant)) if constant > 4096 else 1
        sets = []
        for k in range(copies):
            row = []
            for at, nbytes, const in operands:
                if const and k and nbytes > 4096:
                    twin = self._take(nbytes)
                    self.driver.copy(twin, at, nbytes, self._stream)
                    at = twin
                row.append(at)
            sets.append(np.array(row, np.int64))
        return sets

    def _run(self, calls: list[Call], grid: tuple[int, int, int]) -> float:
        begin, end = self._ticks
        self.driver.record(begin, self._stream)
        for call in calls:
            call.launch(grid, self._stream)
        self.driver.record(end, self._stream)
        self.driver.synchronize(self._stream)
        return self.driver.elapsed(begin, end) * 1e-3

    def _replay(
        self, calls: list[Call], grid: tuple[int, int, int], launches: int, once: float
    ) -> float:
        driver, stream = self.driver, self._stream
        begin, end = self._ticks
        driver.begin_capture(stream)
        try:
            for call in itertools.islice(itertools.cycle(calls), launches):
                call.launch(grid, stream)
        except BaseException:
            driver.abandon_capture(stream)
            raise
        graph = driver.end_capture(stream)
        times = []
        try:
            driver.launch_graph(graph, stream)
            replays = max(_REPLAYS, min(50, int(self.seconds / (once * launches))))
            for _ in range(replays):
                driver.record(begin, stream)
                driver.launch_graph(graph, stream)
                driver.record(end, stream)
                driver.synchronize(stream)
                times.append(driver.elapsed(begin, end) * 1e-3 / launches)
        finally:
            driver.drop_graph(graph)
        return statistics.median(times)

    def results(self, whole: bool) -> dict[Value, Array]:
        out = {}
        for v in self.region.outputs:
            array = self.arrays[v]
            storage = storage_of(v, array)
            at = self._place(array, storage)
            if whole or storage.nbytes <= 2 * _SAMPLE:
                got = self.driver.get(at, storage.shape, storage.dtype, self._stream)
                out[v] = got[..., : array.shape[-1]] if storage is not array else got
                continue
            size = storage.dtype.itemsize
            n = _SAMPLE // size
            tail = at + (storage.nbytes // size - n) * size
            parts = [self.driver.get(p, (n,), storage.dtype, self._stream) for p in (at, tail)]
            out[v] = np.concatenate(parts)
        return out

    def close(self) -> None:
        self.driver.synchronize(self._stream)
        for at in self._taken:
            self.driver.free(at)
        self._taken.clear()
        self._places.clear()
        self.driver.drop_stream(self._stream)
        for event in self._ticks:
            self.driver.drop_event(event)
