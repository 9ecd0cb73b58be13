"""Joins regions that follow one another where one kernel can do them: what one computes is then
used while it is still in registers."""

from __future__ import annotations

from collections.abc import Callable, Collection

from ..ir.graph import Value
from .fuse import Fusion
from .region import Region

Takes = Callable[[Region, Region], bool]
"""Whether a kernel can do two regions, the second of which reads the first's result."""


def join_pairs(
    fusion: Fusion, takes: Takes, heads: Takes, keep: Collection[Value] = ()
) -> Fusion:
    """Replaces regions by regions with `Region.parts`, in place.

    Args:
        takes: Asked for regions of which the second reads constants besides. The first's result
            is still written, since others may read it; but if the first has no anchor, only if
            others do.
        heads: Asked then for regions whose result only the next reads, a pair perhaps. It is not
            written at all.
        keep: Values that are read elsewhere: results of the graph.
    """
    fusion.regions = _pairs(fusion.regions, takes, {*keep, *fusion.bases()})
    fusion.regions = _headed(fusion.regions, heads)
    return fusion


def _readers(regions: list[Region]) -> dict[Value, list[Region]]:
    found: dict[Value, list[Region]] = {}
    for r in regions:
        for v in r.inputs:
            found.setdefault(v, []).append(r)
    return found


def _pairs(regions: list[Region], takes: Takes, keep: set[Value]) -> list[Region]:
    """Pairs run where the first did: the second needs nothing that is computed later."""
    readers = _readers(regions)
    joined: set[Region] = set()
    out: list[Region] = []
    for first in regions:
        if first in joined:
            continue
        second = None
        if len(first.outputs) == 1 and not first.parts:
            (y,) = first.outputs
            second = next((r for r in readers.get(y, ()) if r not in joined
                           and _follows(first, r) and takes(first, r)), None)  # fmt: skip
        if second is not None:
            joined.add(second)
            (y,) = first.outputs
            needed = first.anchor is not None or y in keep or readers[y] != [second]
            outputs = [*first.outputs, *second.outputs] if needed else second.outputs
            first = _together(first, second, outputs)
        out.append(first)
    return out


def _headed(regions: list[Region], heads: Takes) -> list[Region]:
    """Regions behind a head run where they did: the head may run later, as nobody else waits."""
    readers = _readers(regions)
    head_of: dict[Region, Region] = {}
    taken: set[Region] = set()
    for first in regions:
        if first.anchor is None or first.parts or len(first.outputs) != 1:
            continue
        (y,) = first.outputs
        behind = readers.get(y, [])
        if len(behind) == 1 and "logical" in y.meta and behind[0] not in head_of:
            rest = behind[0]
            if rest not in taken and first not in head_of and heads(first, rest):
                head_of[rest] = first
                taken.add(first)
    out = []
    for r in regions:
        if r in head_of:
            out.append(_together(head_of[r], r, r.outputs))
        elif r not in taken:
            out.append(r)
    return out


def _follows(first: Region, second: Region) -> bool:
    (y,) = first.outputs
    others = [v for v in second.inputs if v is not y]
    return second.anchor is not None and all(v.const is not None for v in others)


def _together(first: Region, second: Region, outputs: list[Value]) -> Region:
    made = set(first.outputs)
    return Region(
        [*first.nodes, *second.nodes], first.anchor or second.anchor,
        inputs=list(dict.fromkeys(
            [*first.inputs, *(v for v in second.inputs if v not in made)])),
        outputs=list(outputs), physical={**first.physical, **second.physical},
        parts=(first, second),
    )  # fmt: skip
