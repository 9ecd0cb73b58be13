"""Independent steps on several streams, while a segment is recorded as a CUDA graph.

The graph gets the branches, so it runs on whatever stream it is launched on; streams of the
schedule's own only take part in recording.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..memory.branches import Access, Lane, Span, is_straight, lanes, tails
from ..plan.program import CONST

if TYPE_CHECKING:
    from .gpu_schedule import GpuSchedule


class Lanes:
    """Spreads the steps of a schedule over streams.

    Args:
        schedule: Whose steps.
        more: Streams besides the one that records.
    """

    def __init__(self, schedule: GpuSchedule, more: int):
        self._schedule = weakref.proxy(schedule)
        self._driver = schedule.driver
        self._more = more
        self._streams: list[int] = []
        self._events: list[int] = []

    def _access(self, i: int) -> Access:
        s = self._schedule
        step = s._program.steps[i]
        reads, writes = self._spans(step.inputs), self._spans(step.outputs)
        if step.kind == "kernel" and s.scratch_of(i):
            writes.append((0, 1))  # memory that such steps take turns with
        return Access(tuple(reads), tuple(writes))

    def _spans(self, tensors: Sequence[int]) -> list[Span]:
        s, out = self._schedule, []
        for t in tensors:
            owner = s._info.owner[t][0] if t >= 0 else -1
            if owner < 0 or s._program.tensors[owner].kind == CONST:
                continue
            at = s._address[owner]
            out.append((at, at + max(s.layout.nbytes[owner], 1)))
        return out

    def places(self, steps: Sequence[int]) -> list[Lane] | None:
        """Where each step runs; None if they all follow one another."""
        found = lanes([self._access(i) for i in steps], 1 + self._more)
        return None if is_straight(found) else found

    def record(self, steps: Sequence[int], places: Sequence[Lane], stream: int) -> None:
        """Launches steps on the stream that records and on others that join in."""
        driver = self._driver
        while len(self._streams) < self._more:
            self._streams.append(driver.stream())
            weakref.finalize(self, driver.drop_stream, self._streams[-1])
        streams = [stream, *self._streams]
        awaited = {k for p in places for k in p.waits} | set(tails(places))
        events = dict(zip(sorted(awaited), self._events_for(len(awaited)), strict=True))
        if -1 in events:
            driver.record(events[-1], stream)
        for n, (i, place) in enumerate(zip(steps, places, strict=True)):
            mine = streams[place.stream]
            for k in place.waits:
                driver.wait_event(mine, events[k])
            self._schedule._launch(i, mine, joins=bool(place.waits))
            if n in events:
                driver.record(events[n], mine)
        for k in tails(places):
            driver.wait_event(stream, events[k])

    def _events_for(self, count: int) -> list[int]:
        while len(self._events) < count:
            self._events.append(self._driver.event(timing=False))
            weakref.finalize(self, self._driver.drop_event, self._events[-1])
        return self._events[:count]
