"""Which steps of a schedule may run at the same time: pure functions.

Steps are given in an order in which they may run one after the other. Two of them are ordered if
one writes what the other reads or writes; everything else may happen at once, on several streams.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

Span = tuple[int, int]
"""First byte, and the one after the last."""


@dataclass(frozen=True)
class Access:
    """Memory that a step reads and writes."""

    reads: tuple[Span, ...]
    writes: tuple[Span, ...]


@dataclass
class Lane:
    """Where a step runs.

    Attributes:
        stream: Its stream; 0 is the caller's.
        waits: Steps on other streams that it waits for; -1: what was there before all steps.
    """

    stream: int
    waits: list[int] = field(default_factory=list)


def dependencies(steps: Sequence[Access]) -> list[list[int]]:
    """For each step, those before it that it must come after. Of a chain only the last is named
    where that is plain: writers hide what came before them in the same bytes."""
    found: list[list[int]] = []
    for i, step in enumerate(steps):
        need: list[int] = []
        hidden: set[int] = set()
        for k in range(i - 1, -1, -1):
            if k in hidden:
                continue
            other = steps[k]
            if _meet(step.reads, other.writes) or _meet(step.writes, other.reads) or _meet(
                step.writes, other.writes
            ):
                need.append(k)
                hidden |= _before(found, k)
        found.append(need)
    return found


def _before(found: list[list[int]], k: int) -> set[int]:
    """All steps that step ``k`` comes after."""
    seen: set[int] = set()
    waiting = [k]
    while waiting:
        for d in found[waiting.pop()]:
            if d not in seen:
                seen.add(d)
                waiting.append(d)
    return seen


def _meet(a: Sequence[Span], b: Sequence[Span]) -> bool:
    return any(x[0] < y[1] and y[0] < x[1] for x in a for y in b)


def lanes(steps: Sequence[Access], streams: int) -> list[Lane]:
    """Spreads steps over streams.

    A step goes on where the last step that it needs ran, if nobody else has gone on there; a
    further one branches off to a stream that has nothing left to do for others.

    Args:
        streams: Streams in all, the caller's included.
    """
    needs = dependencies(steps)
    tails = [-1] * streams  # last step of each stream
    out: list[Lane] = []
    for i, need in enumerate(needs):
        lane = Lane(_stream_for(need, needs, tails))
        tail = tails[lane.stream]
        own = _before(needs, tail) | {tail} if tail >= 0 else set()
        for k in need:
            if out[k].stream != lane.stream and k not in own:
                lane.waits.append(k)
        if tail < 0 and lane.stream and not lane.waits:
            lane.waits.append(-1)
        # a stream's own order is a dependency as well
        if tail >= 0 and tail not in need and tail not in _before_all(needs, need):
            need.append(tail)
        tails[lane.stream] = i
        out.append(lane)
    return out


def _before_all(needs: list[list[int]], of: Sequence[int]) -> set[int]:
    return {x for k in of for x in (k, *_before(needs, k))}


def _stream_for(need: Sequence[int], needs: list[list[int]], tails: Sequence[int]) -> int:
    going_on = [s for s, tail in enumerate(tails) if tail in need]
    if going_on:
        return going_on[0]
    if tails[0] < 0:
        return 0
    done = _before_all(needs, need)
    free = [s for s, tail in enumerate(tails) if s and (tail < 0 or tail in done)]
    return free[0] if free else 0


def is_straight(places: Sequence[Lane]) -> bool:
    """Whether all steps run on the caller's stream."""
    return all(p.stream == 0 for p in places)


def tails(places: Sequence[Lane]) -> list[int]:
    """The last step on each stream but the caller's: what a run must wait for at its end."""
    last = {p.stream: i for i, p in enumerate(places)}
    last.pop(0, None)
    return sorted(last.values())
