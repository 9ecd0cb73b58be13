"""Arena planning: places tensors in one block so that tensors alive together don't overlap.

Pure functions over lifetimes; the compiler uses them for static shapes, contexts for others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

ALIGNMENT = 64
GPU_ALIGNMENT = 256


def alignment_for(target: str) -> int:
    """Bytes that tensors of a target's arena are aligned to."""
    return GPU_ALIGNMENT if target == "cuda" else ALIGNMENT


@dataclass(frozen=True)
class Lifetime:
    """Steps during which a tensor must keep its memory, both ends included."""

    first: int
    last: int

    def overlaps(self, other: Lifetime) -> bool:
        return self.first <= other.last and other.first <= self.last


def lifetimes(
    steps: Sequence[tuple[Iterable[int], Iterable[int]]],
    owner: Mapping[int, int],
    live_out: Iterable[int] = (),
    loops: Iterable[tuple[int, int]] = (),
) -> dict[int, Lifetime]:
    """Lifetimes of memory owners.

    Args:
        steps: (tensor ids read, tensor ids written) of each step.
        owner: Tensor id -> id of the arena tensor whose memory it uses; others are ignored.
        live_out: Tensors that stay alive after the last step.
        loops: (first, last) steps of loops. What is computed before a loop and read in it stays
            alive until the loop ends; what is written in it and read after is so from its start.
    """
    spans: dict[int, list[int]] = {}
    for i, (reads, writes) in enumerate(steps):
        for t in (*reads, *writes):
            if t in owner:
                span = spans.setdefault(owner[t], [i, i])
                span[1] = i
    for t in live_out:
        if t in owner and owner[t] in spans:
            spans[owner[t]][1] = len(steps)
    for first, last in sorted(loops, key=lambda r: r[1] - r[0]):  # inner loops first
        for span in spans.values():
            if span[0] < first <= span[1] <= last:
                span[1] = last
            elif first <= span[0] <= last < span[1]:
                span[0] = first
    return {t: Lifetime(a, b) for t, (a, b) in spans.items()}


def loops_of(jumps: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """(first, last) steps of loops, from (step, target) of jumps: those that go back."""
    return [(target, step) for step, target in jumps if 0 <= target <= step]


def plan_arena(
    sizes: Mapping[int, int], live: Mapping[int, Lifetime], alignment: int = ALIGNMENT
) -> tuple[dict[int, int], int]:
    """Offsets for every tensor and the arena's size, in bytes.

    Greedy by size: the largest tensors are placed first, each at the lowest offset where it
    overlaps no placed tensor that is alive at the same time (Pisarchyk & Lee, 2020).
    """
    placed: list[tuple[int, int, Lifetime]] = []  # offset, end, lifetime, sorted by offset
    offsets: dict[int, int] = {}
    total = 0
    for t in sorted(live, key=lambda t: (-sizes[t], live[t].first, t)):
        size = -(-max(sizes[t], 1) // alignment) * alignment
        offset = 0
        for start, end, span in placed:
            if not span.overlaps(live[t]):
                continue
            if offset + size <= start:
                break
            offset = max(offset, end)
        offsets[t] = offset
        placed.append((offset, offset + size, live[t]))
        placed.sort(key=lambda p: p[0])
        total = max(total, offset + size)
    return offsets, total
