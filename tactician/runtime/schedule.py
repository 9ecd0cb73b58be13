"""A program made ready to run: tables of addresses and sizes that the native walker reads.

A `Schedule` belongs to one context and one `Layout`. Running it again costs one native call;
only addresses of inputs and outputs that changed are patched. Steps without native code run in
numpy through a callback from the walker, or from a loop here if no step has native code.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..ir import dims as D
from ..plan.program import ARENA, CONST, DYNAMIC, OUTPUT, SIZES
from ..support.errors import ExecutionError
from ..support.knobs import debug_level
from .buffers import Array, aligned_block, array_at, copy_bytes, weakly
from .layout import Extents, Layout, check_sizes

if TYPE_CHECKING:
    from .core import EngineCore

Allocate = Callable[[int, int], int]  # (output tensor, bytes) -> address
Watch = Callable[[int, Array], None]  # (tensor, contents)


class _MoreScratch(Exception):
    """A step needs more scratch memory than there is; the run goes on after it was found."""


def step_times(ticks: Array) -> Array:
    """Time between each record's stamp and the next one's in time; 0 for records that did not
    run. Records in loops count their last round."""
    ran = np.flatnonzero(ticks)
    order = ran[np.argsort(ticks[ran], kind="stable")]
    out = np.zeros(len(ticks) - 1, np.int64)
    out[order[:-1]] = np.diff(ticks[order])
    return out


class Schedule:
    """One context's tables for one layout.

    Args:
        core: The engine.
        layout: Sizes.
        arena: Address of ``layout.arena`` bytes, 64-byte aligned (0 if none are needed).
        keep: Kept alive with the schedule (the arena's owner).
        watched: Tensors to show to ``watch`` as soon as they are computed.
        threads: Threads that runs use; 0: as many as the engine.
    """

    def __init__(
        self, core: EngineCore, layout: Layout, arena: int, keep: Any = None,
        watched: Sequence[int] = (), watch: Watch | None = None, threads: int = 0,
    ):
        self.core, self.layout, self._keep = core, layout, keep
        self.threads = threads or core.threads
        self._program = core.program
        self._info = core.info
        self._steps = layout.steps
        self._watch = watch
        self.shapes = list(layout.shapes)
        self._known = layout.known
        self.allocate: dict[int, Allocate] = {}
        self.temporary: Callable[[int], int] | None = None  # bytes -> address
        self.ticks: Array | None = None
        self._address = self._base_addresses(arena)
        self._arrays: dict[int, Array] = {}
        self._todo_tensors: list[int] = []
        self._todo_steps: list[int] = []
        self._held: dict[int, Array] = {}
        self._lent: dict[int, tuple[int, int]] = {}  # from the program's allocator: address, bytes
        self._scratch = np.empty(0, np.uint8)
        self._scratch_stride = 0
        self._records: list[tuple[str, int]] = []
        for i, s in enumerate(self._steps):
            if self._program.target == "null":
                continue  # everything is prepared and nothing runs
            self._records.append(("step", i))
            self._records.extend(("watch", t) for t in s.outputs if t in watched)
        self._make_tables()
        self._late = bool(layout.late_tensors or layout.late_steps)
        self._native = core.native and any(s.kind == "kernel" for s in self._steps)
        self._launches: dict[bool, Any] = {}
        self._traced = debug_level() >= 2
        self._callback: Any = None
        self._grow_scratch(layout.scratch)

    # --- tables ---------------------------------------------------------------------------

    def _base_addresses(self, arena: int) -> list[int]:
        """Addresses of tensors that have their own memory; 0 while unknown."""
        out = [0] * len(self._program.tensors)
        self._sizes: dict[int, Array] = {}
        for i, t in enumerate(self._program.tensors):
            if t.kind == CONST:
                out[i] = self.core.constant_address[t.ref]
            elif t.kind == ARENA and i in self.layout.offsets:
                out[i] = arena + self.layout.offsets[i]
            elif t.kind == SIZES:
                block = aligned_block(max(len(t.content), 1) * t.dtype.size)
                self._sizes[i] = block[: len(t.content) * t.dtype.size].view(t.dtype.np)
                out[i] = block.ctypes.data
                self._fill_sizes(i)
        return out

    def _fill_sizes(self, i: int) -> bool:
        content = self._known.all(self._program.tensors[i].content)
        if content is not None:
            self._sizes[i][:] = content
        return content is not None

    def _make_tables(self) -> None:
        steps = self._steps
        self._args = np.zeros(sum(len(s.args) for s in steps) + 1, np.int64)
        self._dims = np.zeros(sum(len(s.dims) + 1 for s in steps) + 1, np.int64)
        self._table = np.zeros((len(self._records) + 1, 8), np.int64)
        self._dims_at: list[int] = []
        self._args_at: list[int] = []
        self._uses: dict[int, list[tuple[int, int]]] = {}  # owner -> [(argument, tensor)]
        arg = dim = 0
        places = {}
        for i, s in enumerate(steps):
            places[i] = (arg, dim)
            self._dims_at.append(dim)
            self._args_at.append(arg)
            for k, t in enumerate(s.args):
                self._uses.setdefault(self._info.owner[t][0], []).append((arg + k, t))
            arg += len(s.args)
            dim += len(s.dims) + 1
            self._fill_dims(i)
        for row, (kind, i) in zip(self._table, self._records, strict=False):
            if kind == "watch":
                row[0], row[6] = _CALLBACK, len(steps) + i
            else:
                self._fill_row(row, i, *places[i])
        self._branches = [  # (table row, argument) of tests
            (k, places[i][0]) for k, (kind, i) in enumerate(self._records)
            if kind == "step" and steps[i].kind == "jump_if_zero"
        ]
        self._patches: dict[int, list[tuple[int, int]]] = {}
        for owner, uses in self._uses.items():
            self._patches[owner] = [(a, self._offset(t)) for a, t in uses]
            if self._address[owner]:
                self._patch(owner)

    def _fill_row(self, row: Array, i: int, arg: int, dim: int) -> None:
        s = self._steps[i]
        args, dims = self._args.ctypes.data + 8 * arg, self._dims.ctypes.data + 8 * dim
        work = dims + 8 * len(s.dims)
        if s.kind in ("reference", "learn"):
            row[0], row[6] = _CALLBACK, i
        elif s.kind == "copy":
            row[0], row[1], row[2], row[4] = _COPY, args + 8, args, work
        elif s.kind in _JUMPS:
            row[0], row[6] = _JUMPS[s.kind], self._record_of(s.target)
        else:
            row[:6] = _KERNEL, self.core.code.get(s.symbol, 0), args, dims, work, s.grain
            row[7] = s.phase

    def _record_of(self, step: int) -> int:
        """Where the record of a step is; one past the last step is the end."""
        if step == len(self._steps):
            return len(self._records)
        return self._records.index(("step", step))

    def _fill_dims(self, i: int) -> bool:
        """Writes a step's scalar arguments; returns False while some are unknown."""
        s = self._steps[i]
        work: D.DimLike = s.work
        if s.kind == "copy":
            shape = self.shapes[s.args[0]]
            if shape is None:
                return False
            work = int(D.product(shape)) * self._program.tensors[s.args[0]].dtype.size  # type: ignore
        numbers = self._known.all((*s.dims, work))
        if numbers is None:
            return False
        at = self._dims_at[i]
        self._dims[at : at + len(numbers)] = numbers
        return True

    def _offset(self, t: int) -> int:
        return self._known.get(self._info.owner[t][1]) or 0

    def _patch(self, owner: int) -> None:
        base = self._address[owner]
        args = self._args
        patches = self._patches.get(owner, ())
        for at, offset in patches:
            args[at] = base + offset
        if self._branches:
            changed = {at for at, _ in patches}
            for row, at in self._branches:
                if at in changed:
                    self._table[row, 1] = args[at]

    # --- running --------------------------------------------------------------------------

    def bind(self, addresses: Mapping[int, int]) -> None:
        """Sets addresses of inputs and outputs (by tensor id)."""
        mine = self._address
        for i, address in addresses.items():
            if mine[i] != address:
                mine[i] = address
                self._patch(i)

    def bind_one(self, i: int, address: int) -> None:
        self._address[i] = address
        self._patch(i)

    def run(self, stream: int = 0) -> None:
        """Runs all steps with the addresses bound; GPUs queue them on a stream.

        Raises:
            ExecutionError: If a step fails, naming its layer.
        """
        if self._traced:
            self._trace(self.run_timed())
            return
        if self._late:
            self._forget()
        if self._native:
            self._run_native(False)
        else:
            self._run_python(None)

    def _trace(self, times: list[float]) -> None:
        """Rung 2 of the debug ladder: a line per step with its time and rates."""
        for i, (step, ms) in enumerate(zip(self._steps, times, strict=True)):
            flops = self._known.get(step.flops) or 0
            moved = sum(
                math.prod(shape) * self._program.tensors[t].dtype.size
                for t in {*step.inputs, *step.outputs} - {-1}
                if (shape := self.shapes[t]) is not None
            )
            rates = f"{flops / ms / 1e6:8.1f} GFLOP/s {moved / ms / 1e6:7.1f} GB/s" if ms else ""
            line = f"{i:4d} {ms * 1e3:10.1f} µs {rates:32s} {step.info.get('tactic', step.kind)}"
            print(f"{line} {step.name}", file=sys.stderr)

    def run_timed(self, stream: int = 0) -> list[float]:
        """Runs and returns milliseconds spent in each step."""
        if self._late:
            self._forget()
        if self.ticks is None:
            self.ticks = np.zeros(len(self._records) + 1, np.int64)
        self.ticks[:] = 0
        if self._native:
            self._run_native(True)
        else:
            self._run_python(self.ticks)
        spans = step_times(self.ticks) / 1e6
        times = [0.0] * len(self._steps)
        for ms, (kind, i) in zip(spans, self._records, strict=True):
            if kind == "step":
                times[i] = float(ms)
        return times

    def _run_native(self, timed: bool) -> None:
        start = 0
        while True:
            launch = self._launches.get(timed)
            if launch is None:
                launch = self._launches[timed] = self._prepare(timed)
            try:
                launch(start)
                return
            except _MoreScratch as e:
                self._launches.clear()
                start = int(e.args[0])

    def _prepare(self, timed: bool) -> Any:
        from ..targets.cpu.native import Callback

        if self._callback is None and any(r[0] == _CALLBACK for r in self._table.tolist()):
            self._callback = Callback(weakly(self._enter))
        return self.core.pool.prepare(
            self._table, self._callback, self.threads, self.ticks if timed else None,
            self._scratch.ctypes.data if self._scratch_stride else 0, self._scratch_stride,
        )

    def _grow_scratch(self, stride: int) -> bool:
        if stride <= self._scratch_stride:
            return False
        self._scratch = aligned_block(stride * self.threads)
        self._scratch_stride = stride
        return True

    def _run_python(self, ticks: Array | None) -> None:
        k = 0
        while k < len(self._records):
            kind, i = self._records[k]
            if ticks is not None:
                ticks[k] = time.perf_counter_ns()
            k += 1
            step = self._steps[i] if kind == "step" else None
            try:
                if step is not None and step.kind in _JUMPS:
                    if step.kind == "jump" or not self.array(step.args[0]).reshape(-1)[0]:
                        k = self._record_of(step.target)
                elif step is not None and step.kind == "copy":
                    src, dst = (self._at(t) for t in step.args)
                    copy_bytes(dst, src, int(self._dims[self._dims_at[i]]))
                else:
                    self._enter(i if step is not None else len(self._steps) + i)
            except _MoreScratch:
                continue
        if ticks is not None:
            ticks[len(self._records)] = time.perf_counter_ns()

    def _enter(self, ident: int) -> None:
        """A callback step: sizes, a reference step, or the showing of a watched tensor."""
        count = len(self._steps)
        if ident < count and self._steps[ident].kind == "learn":
            self._take_sizes(ident)
        elif ident < count:
            self._reference(ident)
        elif self._watch is not None:
            self._watch(ident - count, self.array(ident - count))

    def _take_sizes(self, i: int) -> None:
        """Learns the sizes that a kernel found."""
        step = self._steps[i]
        for d, n in zip(step.dims, self.array(step.inputs[0]).tolist(), strict=True):
            self._known.learn(str(d), n)
        if self._settle():
            raise _MoreScratch(self._records.index(("step", i)) + 1)

    def _reference(self, i: int) -> None:
        from ..ops.registry import evaluate

        step = self._steps[i]
        node = self._program.nodes.nodes[step.node]
        operands = [None if t < 0 else self.array(t) for t in step.inputs]
        try:
            results = evaluate(node, *operands)
        except Exception as e:
            raise ExecutionError(f"{node.describe()} failed: {type(e).__name__}: {e}") from e
        for t, result in zip(step.outputs, results, strict=True):
            self._store(t, result, node)
        if self._late and self._settle():
            raise _MoreScratch(self._records.index(("step", i)) + 1)

    # --- tensors --------------------------------------------------------------------------

    def _at(self, t: int) -> int:
        owner, _ = self._info.owner[t]
        return self._address[owner] + self._offset(t)

    def array(self, t: int) -> Array:
        """A tensor's contents as an array over its memory."""
        tensor = self._program.tensors[t]
        if tensor.kind == CONST:
            return self.core.constants[tensor.ref].reshape(self._shape(t))
        if tensor.kind == SIZES:
            return self._sizes[t].reshape(self._shape(t))
        address = self._at(t)
        found = self._arrays.get(t)
        shape = self._shape(t)
        if found is None or found.ctypes.data != address or found.shape != shape:
            found = self._arrays[t] = array_at(address, shape, tensor.dtype.np)
        return found

    def _shape(self, t: int) -> Extents:
        shape = self.shapes[t]
        if shape is None:
            name = self._program.tensors[t].name
            raise ExecutionError(f"tensor {name!r} is read before its shape is known")
        return shape

    def _store(self, t: int, result: Array, node: Any) -> None:
        """Puts a result into a tensor's memory; finds sizes that depend on data."""
        tensor = self._program.tensors[t]
        if self.shapes[t] is None:
            self._learn(tensor.shape, result.shape, node)
            self.shapes[t] = self._known.all(tensor.shape)
        if self.shapes[t] != result.shape:
            raise ExecutionError(
                f"{node.describe()} computed shape {result.shape} where {tensor.name!r} has "
                f"{self.shapes[t]}"
            )
        if tensor.kind == DYNAMIC:
            self._keep_result(t, result)
            return
        if tensor.kind == OUTPUT and t in self.allocate:
            self._allocate_output(t)
            # settled: settling it again would ask for new, empty memory
            self._todo_tensors = [u for u in self._todo_tensors if u != t]
        if result.size:
            self._write(t, result)

    def _write(self, t: int, result: Array) -> None:
        """Copies a result into a tensor's memory."""
        np.copyto(self.array(t), result)

    def _keep_result(self, t: int, result: Array) -> None:
        """Makes a result the memory of a tensor whose size it decides."""
        if self.temporary is not None:
            self._hold(t, result.nbytes)
            mine = array_at(self._address[t], result.shape, self._program.tensors[t].dtype.np)
            mine[...] = result
            self._arrays[t] = mine
            return
        own = result.base is None and result.flags.c_contiguous
        if not own or result.ctypes.data % 64:
            block = aligned_block(result.nbytes).view(self._program.tensors[t].dtype.np)
            block[:] = result.reshape(-1)
            result = block.reshape(result.shape)
        self._held[t] = self._arrays[t] = result
        self._address[t] = int(result.ctypes.data)
        self._patch(t)

    def _learn(self, shape: Sequence[D.DimLike], found: Sequence[int], node: Any) -> None:
        if len(shape) != len(found):
            raise ExecutionError(f"{node.describe()} computed shape {tuple(found)}, not {shape}")
        for d, n in zip(shape, found, strict=True):
            name = str(d)
            if name in self._info.data_symbols and name not in self._known.env:
                self._known.learn(name, int(n))

    def _forget(self) -> None:
        """Before a run: sizes that depend on data are unknown again."""
        self._known = self.layout.known.fork()
        self._todo_tensors = list(self.layout.late_tensors)
        self._todo_steps = list(self.layout.late_steps)
        for t in self._todo_tensors:
            self.shapes[t] = self.layout.shapes[t]
            if self._program.tensors[t].kind == DYNAMIC:
                self._address[t] = 0
        self._settle()

    def _settle(self) -> bool:
        """Sizes what is known by now; returns whether scratch memory had to grow."""
        grew = False
        for check in self._info.late_checks:
            check_sizes(check, self._known)
        waiting = []
        for t in self._todo_tensors:
            if not self._settle_tensor(t):
                waiting.append(t)
        self._todo_tensors = waiting
        steps = []
        for i in self._todo_steps:
            need = self._known.get(self._steps[i].scratch)
            if need is None or not self._fill_dims(i):
                steps.append(i)
            elif self._native:
                grew |= self._grow_scratch(-(-need // 64) * 64)
        self._todo_steps = steps
        return grew

    def _settle_tensor(self, t: int) -> bool:
        tensor = self._program.tensors[t]
        shape = self._known.all(tensor.shape)
        owner, offset = self._info.owner[t]
        if shape is None or self._known.get(offset) is None:
            return False
        self.shapes[t] = shape
        if tensor.kind == SIZES:
            return self._fill_sizes(t)
        if owner != t:
            self._patches[owner] = [
                (a, self._offset(u) if u == t else o)
                for (a, o), (_, u) in zip(
                    self._patches.get(owner, ()), self._uses.get(owner, ()), strict=True
                )
            ]
            if self._address[owner]:
                self._patch(owner)
        elif tensor.kind == DYNAMIC and not self._address[t]:
            nbytes = int(np.prod(shape, dtype=np.int64)) * tensor.dtype.size
            self._hold(t, nbytes)
        elif tensor.kind == OUTPUT and t in self.allocate:
            self._allocate_output(t)
        return True

    def _hold(self, t: int, nbytes: int) -> None:
        """Memory for a tensor whose size was found while running; it is kept for later runs."""
        if self.temporary is not None:
            address, room = self._lent.get(t, (0, -1))
            if room < nbytes:
                address = self.temporary(nbytes)
                self._lent[t] = address, nbytes
            self._address[t] = address
            self._patch(t)
            return
        block = self._held.get(t)
        if block is None or block.nbytes < nbytes or block.dtype != np.uint8:
            block = self._held[t] = aligned_block(max(nbytes + nbytes // 4, 64))
        self._address[t] = int(block.ctypes.data)
        self._patch(t)

    def _allocate_output(self, t: int) -> None:
        shape = self._shape(t)
        nbytes = int(np.prod(shape, dtype=np.int64)) * self._program.tensors[t].dtype.size
        address = self.allocate[t](t, nbytes)
        if address != self._address[t]:
            self._address[t] = address
            self._patch(t)


_KERNEL, _CALLBACK, _COPY = 1, 2, 5  # as in targets.cpu.native
_JUMPS = {"jump": 3, "jump_if_zero": 4}
