"""Weights that stay in host memory and come to the GPU ahead of the kernels that read them.

What a budget leaves no room for lies in page-locked memory. A context has two staging areas: while
a kernel reads one, the weights of the next kernel that has any come into the other on a stream of
their own. Events order both; in a CUDA graph they become its edges.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..plan.program import CONST, Program
from ..targets.cuda.code import ALIGNMENT
from ..targets.cuda.driver import Driver
from .buffers import Array
from .gpu_memory import DeviceBlock
from .layout import ProgramInfo

_AREAS = 2


def room(array: Array) -> int:
    """Bytes of device memory that a constant takes."""
    return -(-max(array.nbytes, 1) // ALIGNMENT) * ALIGNMENT


def readers(program: Program, info: ProgramInfo) -> dict[int, list[int]]:
    """The constants that can be streamed, by the kernel that reads them.

    These are read by one step, and that is a kernel.

    Returns:
        Indices into ``program.constants`` by the step's index, both ascending.
    """
    users: dict[int, set[int]] = {}  # by address: equal constants are one in a plan
    refs: dict[int, set[int]] = {}
    barred: set[int] = set()
    for i, step in enumerate(program.steps):
        for t in {info.owner[t][0] for t in (*step.args, *step.inputs)}:
            tensor = program.tensors[t]
            if tensor.kind != CONST or not program.constants[tensor.ref].nbytes:
                continue
            at = int(program.constants[tensor.ref].ctypes.data)
            users.setdefault(at, set()).add(i)
            refs.setdefault(at, set()).add(tensor.ref)
            if step.kind != "kernel":
                barred.add(at)
    out: dict[int, list[int]] = {}
    for at, steps in users.items():
        if len(steps) == 1 and len(refs[at]) == 1 and at not in barred:
            out.setdefault(next(iter(steps)), []).extend(refs[at])
    return {i: sorted(out[i]) for i in sorted(out)}


def choose(program: Program, by_step: dict[int, list[int]], budget: int) -> set[int]:
    """Which constants are streamed, so that the others take no more than ``budget`` bytes.

    They are spread over the run, so that copies have time; among the rest the smallest that make
    it fit.
    """
    sizes = {ref: room(program.constants[ref]) for refs in by_step.values() for ref in refs}
    total = sum(sizes.values())
    if budget >= total:
        return set()
    share, due = (total - budget) / total, 0.0
    chosen: set[int] = set()
    for ref, size in sizes.items():
        due += share * size
        if due >= size / 2:
            chosen.add(ref)
            due -= size
    over = sum(n for r, n in sizes.items() if r not in chosen) - budget
    for ref, size in sorted(sizes.items(), key=lambda x: x[1]):
        if over > 0 and ref not in chosen and size >= over:
            chosen.add(ref)
            over -= size
    for ref, size in sorted(sizes.items(), key=lambda x: -x[1]):
        if over > 0 and ref not in chosen:
            chosen.add(ref)
            over -= size
    return chosen


@dataclass(frozen=True)
class Piece:
    """A constant of a kernel.

    Attributes:
        ref: Its index in the program.
        source: Address in page-locked memory.
        offset: Where it lies in the staging area.
        nbytes: Its size.
    """

    ref: int
    source: int
    offset: int
    nbytes: int


class Streaming:
    """What an engine streams.

    Args:
        driver: The device.
        program: The program.
        by_step: See `readers`.
        chosen: The constants.

    Attributes:
        pieces: What each step reads.
        area: Which staging area that goes to.
        area_bytes: Bytes of one.
    """

    def __init__(self, driver: Driver, program: Program, by_step: dict[int, list[int]],
                 chosen: set[int]):
        total = sum(room(program.constants[r]) for r in chosen)
        self._host = driver.pinned(total)
        self.pieces: dict[int, tuple[Piece, ...]] = {}
        self.area: dict[int, int] = {}
        self.area_bytes = begin = 0
        base = int(self._host.ctypes.data)
        for i, refs in by_step.items():
            at, pieces = 0, []
            for ref in (r for r in refs if r in chosen):
                array = np.ascontiguousarray(program.constants[ref])
                self._host[begin : begin + array.nbytes] = array.reshape(-1).view(np.uint8)
                pieces.append(Piece(ref, base + begin, at, array.nbytes))
                at, begin = at + room(array), begin + room(array)
            if pieces:
                self.area[i] = len(self.area) % _AREAS
                self.pieces[i] = tuple(pieces)
                self.area_bytes = max(self.area_bytes, at)

    @property
    def scratch(self) -> int:
        """Bytes of both staging areas."""
        return self.area_bytes * min(_AREAS, len(self.area))


class Stager:
    """The staging areas of a context.

    Args:
        driver: The device.
        streaming: What is streamed.

    Attributes:
        address: Where each constant is when its kernel runs.
    """

    def __init__(self, driver: Driver, streaming: Streaming):
        self._driver, self._plan = driver, streaming
        self._block = DeviceBlock(driver, streaming.scratch)
        self._stream = driver.stream()
        events = [driver.event(timing=False) for _ in range(1 + 2 * _AREAS)]
        self._begun, self._loaded, self._done = events[0], events[1:3], events[3:]
        weakref.finalize(self, _drop, driver, self._stream, events)
        self.address = {
            p.ref: self._base(i) + p.offset for i, pieces in streaming.pieces.items()
            for p in pieces
        }

    def _base(self, step: int) -> int:
        return self._block.address + self._plan.area[step] * self._plan.area_bytes

    def loads(self, step: int) -> bool:
        """Whether a step reads streamed weights."""
        return step in self._plan.pieces

    def load(self, step: int, stream: int) -> None:
        """Queues the copies of a step's weights."""
        base = self._base(step)
        for p in self._plan.pieces[step]:
            self._driver.upload(base + p.offset, p.source, p.nbytes, stream)

    def run(self, steps: Sequence[int], stream: int) -> Run:
        """The copies of steps that run one after the other on a stream; queues the first."""
        return Run(self, [i for i in steps if i in self._plan.pieces], stream)


class Run:
    """Copies beside a stretch of steps; see `Stager.run`."""

    def __init__(self, stager: Stager, loading: list[int], stream: int):
        self._s, self._loading, self._stream = stager, loading, stream
        self._next = 0
        if loading:
            d = stager._driver
            d.record(stager._begun, stream)  # what ran before may still read the areas
            d.wait_event(stager._stream, stager._begun)
            for _ in range(_AREAS):
                self._copy_next()

    def _copy_next(self) -> None:
        if self._next < len(self._loading):
            s, step = self._s, self._loading[self._next]
            s.load(step, s._stream)
            s._driver.record(s._loaded[s._plan.area[step]], s._stream)
            self._next += 1

    def before(self, step: int) -> bool:
        """Lets the stream wait for a step's weights; whether it has any."""
        s = self._s
        if not s.loads(step):
            return False
        s._driver.wait_event(self._stream, s._loaded[s._plan.area[step]])
        return True

    def after(self, step: int) -> None:
        """Once a step is queued: its area may be filled again when it is done."""
        s = self._s
        if s.loads(step) and self._next < len(self._loading):
            done = s._done[s._plan.area[step]]
            s._driver.record(done, self._stream)
            s._driver.wait_event(s._stream, done)
            self._copy_next()


def _drop(driver: Driver, stream: int, events: Sequence[int]) -> None:
    with contextlib.suppress(Exception):  # the driver may be gone when a process ends
        driver.drop_stream(stream)
        for event in events:
            driver.drop_event(event)
