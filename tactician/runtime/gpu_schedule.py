"""A program made ready to run on a GPU.

Straight stretches of kernels and copies are *segments*. A segment runs as a CUDA graph once its
addresses were seen twice, by plain launches before that and where sizes depend on data. The host
does the rest: branches and loops (it reads their conditions), plugins, steps in numpy, debug
tensors.
"""

from __future__ import annotations

import contextlib
import weakref
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..ir.dtypes import DType
from ..plan.program import ARENA, CONST, DYNAMIC, INPUT, OUTPUT, SIZES
from ..support import logger as log
from ..support.errors import ExecutionError
from ..targets.cuda.code import grid_of, scratch_needs
from ..targets.cuda.driver import Call, Driver
from .buffers import Array, array_at
from .gpu_lanes import Lanes
from .gpu_memory import DeviceBlock
from .gpu_plugins import DevicePlugins
from .layout import Extents, Layout
from .schedule import _JUMPS, Schedule, Watch

if TYPE_CHECKING:
    from .core import EngineCore

_GRAPHS = 16  # graphs kept per segment: sets of addresses
_SEEN = 256


class Graph:
    """A captured segment; the driver's graph goes with the object."""

    def __init__(self, driver: Driver, handle: Any):
        self.handle = handle
        weakref.finalize(self, _drop, driver, handle)


def _drop(driver: Driver, handle: Any) -> None:
    with contextlib.suppress(Exception):  # the driver may be gone when a process ends
        driver.drop_graph(handle)


@dataclass
class Segment:
    """Steps between two points where the host has to act.

    Attributes:
        first, end: Its records.
        steps: Its steps.
        graphable: Whether sizes are known before a run.
        free: Tensors with memory of their own whose address may change.
        graphs: Graph by the addresses of these.
    """

    first: int
    end: int
    steps: list[int]
    graphable: bool
    free: tuple[int, ...]
    graphs: OrderedDict[tuple[int, ...], Graph] = field(default_factory=OrderedDict)
    seen: set[tuple[int, ...]] = field(default_factory=set)


class GpuSchedule(Schedule):
    """One context's tables for one layout, on a GPU; see `Schedule`.

    Attributes:
        stream: The stream that runs are queued on.
        debug_sync: Wait after every step, so that errors name their layer.
        host_steps: Steps done by the host in the last run.
        has_branches: Whether a graph has steps that run at the same time.
    """

    def __init__(
        self, core: EngineCore, layout: Layout, arena: int, keep: Any = None,
        watched: Sequence[int] = (), watch: Watch | None = None,
    ):
        assert core.gpu is not None
        self.driver: Driver = core.gpu.driver
        self.driver.enter()
        self.stream = 0
        self.debug_sync = False
        self.host_steps = 0
        self._gpu_code = core.gpu.code
        self._grids: list[tuple[int, int, int]] = [(0, 0, 0)] * len(core.program.steps)
        self._blocks: dict[int, DeviceBlock] = {}  # memory of sizes, mirrors, found sizes
        # workspace, counters, Triton's global and profile scratch of each step
        self._extra = np.zeros((len(core.program.steps) + 1, 4), np.int64)
        self._scratch_begin = [0] * len(core.program.steps)
        self._scratch_block: DeviceBlock | None = None
        self._host_io = core.host_tensors
        self._host_address: dict[int, int] = {}
        self._capture_stream = 0
        self._can_capture = True
        self._byte: Array | None = None
        self._found: Array | None = None
        self._events: list[int] = []
        self._plugins = DevicePlugins(self)
        more = int(core.program.settings.get("aux_streams", 0))
        self._lanes = Lanes(self, more) if more else None
        self.has_branches = False
        self._stager = core.gpu.stager(arena)
        super().__init__(core, layout, arena, keep, watched, watch)
        self._native = True  # kernels take their sizes from the tables
        self._calls: dict[int, Call] = {}
        for i, s in enumerate(self._program.steps):
            if s.kind == "kernel":
                at, dim = self._args_at[i], self._dims_at[i]
                self._calls[i] = self.driver.prepare(
                    self._gpu_code[s.symbol], self._args[at : at + len(s.args)],
                    self._dims[dim : dim + len(s.dims)], self._extra[i],
                )
        self._segments = self._find_segments()
        whole = self._segments.get(0)
        self._whole = whole if whole is not None and whole.end == len(self._records) else None
        self._simple = self._whole is not None and not self._late and not self._host_io

    # --- tables ---------------------------------------------------------------------------

    def _base_addresses(self, arena: int) -> list[int]:
        out = [0] * len(self._program.tensors)
        self._sizes: dict[int, Array] = {}
        assert self.core.gpu is not None
        for i, t in enumerate(self._program.tensors):
            if t.kind == CONST:
                out[i] = self.core.gpu.constant_address[t.ref]
                if self._stager is not None:
                    out[i] = self._stager.address.get(t.ref, out[i])
            elif t.kind == ARENA and i in self.layout.offsets:
                out[i] = arena + self.layout.offsets[i]
            elif t.kind == SIZES:
                self._sizes[i] = np.zeros(len(t.content), t.dtype.np)
                out[i] = self._block(i, max(self._sizes[i].nbytes, 1))
                self._address = out
                self._fill_sizes(i)
            elif i in self._host_io:
                out[i] = self._block(i, max(self.layout.nbytes[i], 1))
        return out

    def _block(self, key: int, nbytes: int) -> int:
        """Memory that belongs to a tensor, kept while it is large enough."""
        found = self._blocks.get(key)
        if found is None or found.nbytes < nbytes:
            found = self._blocks[key] = DeviceBlock(self.driver, nbytes)
        return found.address

    def _fill_sizes(self, i: int) -> bool:
        known = super()._fill_sizes(i)
        if known:
            array = self._sizes[i]
            self.driver.upload(self._address[i], array.ctypes.data, array.nbytes, self.stream)
        return known

    def _fill_row(self, row: Array, i: int, arg: int, dim: int) -> None:
        pass  # there is no native walker

    def _fill_dims(self, i: int) -> bool:
        step = self._program.steps[i]
        sizes = self._known.all((*step.grid, step.scratch, step.counters))
        if sizes is None or not super()._fill_dims(i):
            return False
        if step.kind == "kernel":
            *grid, workspace, counters = sizes
            self._grids[i] = grid_of(grid)
            code = self._gpu_code[step.symbol].code
            need, begin = scratch_needs(code, workspace, self._grids[i])
            self._scratch_begin[i] = begin
            self._grow_scratch(need)
            if self._scratch_block is not None:
                self._extra[i, 2] = self._scratch_block.address + begin
            if counters:
                self._extra[i, 1] = self._counters(i, 4 * counters)
        return True

    def _counters(self, i: int, nbytes: int) -> int:
        """The counters of a step, zero when new; each run leaves them so."""
        key = -1 - i
        had = self._blocks.get(key)
        address = self._block(key, nbytes)
        if self._blocks[key] is not had:
            self.driver.fill(address, 0, self._blocks[key].nbytes, self.stream)
            self.driver.synchronize(self.stream)
        return address

    def _grow_scratch(self, stride: int) -> bool:
        block = self._scratch_block
        if stride > 0 and (block is None or block.nbytes < stride):
            block = self._scratch_block = DeviceBlock(self.driver, stride)
            self._extra[:, 0] = block.address
            self._extra[:-1, 2] = block.address + np.array(self._scratch_begin, np.int64)
            for segment in getattr(self, "_segments", {}).values():
                segment.graphs.clear()
        return False

    def _find_segments(self) -> dict[int, Segment]:
        steps = self._program.steps
        straight = [
            kind == "step" and steps[i].kind in ("kernel", "copy") for kind, i in self._records
        ]
        targets = {
            self._record_of(steps[i].target) for kind, i in self._records
            if kind == "step" and steps[i].kind in _JUMPS
        }
        out: dict[int, Segment] = {}
        k = 0
        while k < len(straight):
            end = k + 1
            if straight[k]:
                while end < len(straight) and straight[end] and end not in targets:
                    end += 1
                out[k] = self._segment(k, end)
            k = end
        return out

    def _segment(self, first: int, end: int) -> Segment:
        members = [self._records[k][1] for k in range(first, end)]
        late_steps, late = set(self.layout.late_steps), set(self.layout.late_tensors)
        tensors = {t for i in members for t in self._program.steps[i].args}
        graphable = late_steps.isdisjoint(members) and late.isdisjoint(tensors)
        owners = {self._info.owner[t][0] for t in tensors}
        free = tuple(sorted(
            o for o in owners if self._program.tensors[o].kind in (INPUT, OUTPUT, DYNAMIC)
        ))
        return Segment(first, end, members, graphable, free)

    # --- addresses ------------------------------------------------------------------------

    def bind(self, addresses: Mapping[int, int]) -> None:
        """Sets addresses of inputs and outputs (by tensor id).

        Raises:
            ExecutionError: If one is not aligned to 16 bytes.
        """
        mine = self._address
        for i, address in addresses.items():
            if mine[i] != address:
                self.bind_one(i, address)

    def bind_one(self, i: int, address: int) -> None:
        if i in self._host_io:
            self._host_address[i] = address
            return
        if address % 16:
            name = self._program.tensors[i].name
            raise ExecutionError(
                f"the address {address:#x} of {name!r} is not a multiple of 16; kernels read 16 "
                "bytes at once. Device memory from an allocator is aligned; copy slices of it"
            )
        self._address[i] = address
        self._patch(i)

    # --- running --------------------------------------------------------------------------

    def run(self, stream: int = 0) -> None:
        """Queues all steps on a stream, with the addresses bound.

        Raises:
            ExecutionError: If a step fails, naming its layer.
        """
        self.driver.enter()
        self.stream = stream
        if self._traced:
            self._trace(self.run_timed(stream))
        elif self._simple and not self.debug_sync:
            assert self._whole is not None
            self._run_segment(self._whole)
        else:
            self._walk()

    def graph(self) -> Any:
        """The graph that does the whole run with the addresses bound, if there is one."""
        whole = self._whole
        if not self._simple or whole is None or self.debug_sync or self._traced:
            return None
        return whole.graphs.get(tuple([self._address[t] for t in whole.free]))

    def _run_segment(self, segment: Segment) -> None:
        if segment.graphable and self._can_capture:
            address = self._address
            key = tuple([address[t] for t in segment.free])
            found = segment.graphs.get(key)
            if found is None and key in segment.seen:
                found = self._capture(segment, key)
            if found is not None:
                self.driver.launch_graph(found.handle, self.stream)
                return
            if len(segment.seen) > _SEEN:
                segment.seen.clear()
            segment.seen.add(key)
        self._queue(segment.steps, self.stream)

    def _queue(self, steps: Sequence[int], stream: int) -> None:
        """Queues kernels and copies, and beside them what brings streamed weights."""
        if self._stager is None:
            for i in steps:
                self._launch(i, stream)
            return
        copies = self._stager.run(steps, stream)
        for i in steps:
            self._launch(i, stream, copies.before(i))
            copies.after(i)

    def _capture(self, segment: Segment, key: tuple[int, ...]) -> Graph | None:
        """The segment as a graph, or None if it can't be one."""
        if not self._capture_stream:
            self._capture_stream = self.driver.stream()
            weakref.finalize(self, self.driver.drop_stream, self._capture_stream)
        driver, stream = self.driver, self._capture_stream
        places = None
        if self._lanes is not None and self._stager is None:
            places = self._lanes.places(segment.steps)
        driver.begin_capture(stream)
        try:
            self.has_branches |= places is not None
            if places is not None and self._lanes is not None:
                self._lanes.record(segment.steps, places, stream)
            else:
                self._queue(segment.steps, stream)
        except ExecutionError as e:
            driver.abandon_capture(stream)
            self._no_graph(e)
            return None
        except BaseException:
            driver.abandon_capture(stream)
            raise
        try:
            graph = Graph(driver, driver.end_capture(stream))
        except ExecutionError as e:
            self._no_graph(e)
            return None
        segment.graphs[key] = graph
        while len(segment.graphs) > _GRAPHS:
            segment.graphs.popitem(last=False)
        return graph

    def _no_graph(self, error: ExecutionError) -> None:
        self._can_capture = False
        log.warning(f"{self._program.name!r} runs without CUDA graphs, more slowly: {error}")

    def scratch_of(self, i: int) -> bool:
        """Whether a kernel uses memory that others use as well."""
        step = self._program.steps[i]
        code = self._gpu_code[step.symbol].code
        return bool(self._known.get(step.scratch)) or code.global_scratch > 0

    def _launch(self, i: int, stream: int, joins: bool = False) -> None:
        step = self._program.steps[i]
        # only kernels can be overlapped
        joins = joins or (i > 0 and self._program.steps[i - 1].kind == "copy")
        try:
            if step.kind == "copy":
                source, target = (self._at(t) for t in step.args)
                self.driver.copy(target, source, int(self._dims[self._dims_at[i]]), stream)
            elif joins:
                self._calls[i].launch_after(self._grids[i], stream)
            else:
                self._calls[i].launch(self._grids[i], stream)
        except ExecutionError as e:
            raise ExecutionError(f"{step.name}: {e}") from e

    def _walk(self, events: list[tuple[int, int, int]] | None = None) -> None:
        """Runs records one after the other; segments at once unless steps are timed."""
        self._take_host_inputs()
        if self._late:
            self._forget()
        self.host_steps = 0
        singly = events is not None or self.debug_sync
        k = 0
        while k < len(self._records):
            kind, i = self._records[k]
            segment = self._segments.get(k)
            if segment is not None and not singly:
                self._run_segment(segment)
                k = segment.end
                continue
            begin = self._mark(events)
            at, k = k, self._step(k, kind, i)
            if events is not None:
                events.append((at, begin, self._mark(events)))
            if self.debug_sync:
                self._wait_for(kind, i)
        self._give_host_outputs()

    def _step(self, k: int, kind: str, i: int) -> int:
        """Runs one record; returns the next one's index."""
        step = self._program.steps[i] if kind == "step" else None
        if step is not None and step.kind in _JUMPS:
            if step.kind == "jump" or not self._condition(step.args[0]):
                return self._record_of(step.target)
        elif step is not None and step.kind in ("kernel", "copy"):
            streams = self._stager is not None and self._stager.loads(i)
            if streams and self._stager is not None:
                self._stager.load(i, self.stream)
            self._launch(i, self.stream, streams)
        elif step is not None and step.kind == "learn":
            self._learn_sizes(i)
        elif step is not None:
            if not self._plugins.run(i):
                self.host_steps += 1
                self._reference(i)
        elif self._watch is not None:
            self._watch(i, self.array(i))
        return k + 1

    def _learn_sizes(self, i: int) -> None:
        """Reads the sizes that a kernel found; what depends on them gets its memory now."""
        step = self._program.steps[i]
        nbytes = 8 * len(step.dims)
        if self._found is None or self._found.nbytes < nbytes:
            self._found = self.driver.pinned(max(nbytes, 64))
        self.driver.download(int(self._found.ctypes.data), self._at(step.args[0]), nbytes,
                             self.stream)
        self.driver.synchronize(self.stream)
        for d, n in zip(step.dims, self._found[:nbytes].view(np.int64).tolist(), strict=True):
            if str(d) not in self._known.env:
                self._known.learn(str(d), n)
        self._settle()

    def _settle(self) -> bool:
        super()._settle()
        return False  # scratch memory grows where it is; the walk goes on

    def _condition(self, t: int) -> bool:
        if self._byte is None:
            self._byte = self.driver.pinned(1)
        self.driver.download(int(self._byte.ctypes.data), self._at(t), 1, self.stream)
        self.driver.synchronize(self.stream)
        return bool(self._byte[0])

    def _wait_for(self, kind: str, i: int) -> None:
        try:
            self.driver.synchronize(self.stream)
        except ExecutionError as e:
            name = self._program.steps[i].name if kind == "step" else "a debug tensor"
            raise ExecutionError(f"{name}: {e}") from e

    def run_timed(self, stream: int = 0) -> list[float]:
        """Runs, waits, and returns milliseconds spent in each step (the last time it ran)."""
        self.driver.enter()
        self.stream = stream
        events: list[tuple[int, int, int]] = []
        self._used_events = 0
        self._walk(events)
        self.driver.synchronize(stream)
        times = [0.0] * len(self._program.steps)
        for k, begin, end in events:
            kind, i = self._records[k]
            if kind == "step":
                times[i] = self.driver.elapsed(begin, end)
        return times

    def _mark(self, events: list[Any] | None) -> int:
        """Records an event; 0 if nothing is timed."""
        if events is None:
            return 0
        if self._used_events == len(self._events):
            self._events.append(self.driver.event())
            weakref.finalize(self, self.driver.drop_event, self._events[-1])
        event = self._events[self._used_events]
        self._used_events += 1
        self.driver.record(event, self.stream)
        return event

    # --- what lies in host memory ---------------------------------------------------------

    def _take_host_inputs(self) -> None:
        for i in self._host_io:
            if self._program.tensors[i].kind == INPUT and i in self._host_address:
                nbytes = self.layout.nbytes[i]
                self.driver.upload(self._address[i], self._host_address[i], nbytes, self.stream)

    def _give_host_outputs(self) -> None:
        given = [
            i for i in self._host_io
            if self._program.tensors[i].kind == OUTPUT and self._host_address.get(i)
        ]
        for i in given:
            nbytes = int(np.prod(self._shape(i), dtype=np.int64)) * self._dtype(i).size
            self.driver.download(self._host_address[i], self._address[i], nbytes, self.stream)
        if given:
            self.driver.synchronize(self.stream)

    def _dtype(self, t: int) -> DType:
        return self._program.tensors[t].dtype

    # --- tensors --------------------------------------------------------------------------

    def array(self, t: int) -> Array:
        """A host copy of a tensor's contents; waits for what computes them."""
        tensor = self._program.tensors[t]
        shape: Extents = self._shape(t)
        if tensor.kind == CONST:
            return self.core.constants[tensor.ref].reshape(shape)
        if tensor.kind == SIZES:
            return self._sizes[t].reshape(shape)
        if t in self._host_io and tensor.kind == INPUT and t in self._host_address:
            return array_at(self._host_address[t], shape, tensor.dtype.np)
        return self.driver.get(self._at(t), shape, tensor.dtype.np, self.stream)

    def _write(self, t: int, result: Array) -> None:
        self._upload(self._at(t), result, t)

    def _upload(self, address: int, result: Array, t: int) -> None:
        array = np.ascontiguousarray(result, self._dtype(t).np)
        self.driver.upload(address, array.ctypes.data, array.nbytes, self.stream)
        self.driver.synchronize(self.stream)  # the array goes away

    def _keep_result(self, t: int, result: Array) -> None:
        self._hold(t, result.nbytes)
        self._upload(self._address[t], result, t)

    def _hold(self, t: int, nbytes: int) -> None:
        self._address[t] = self._block(t, max(nbytes + nbytes // 4, 256))
        self._patch(t)
