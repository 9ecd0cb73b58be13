"""Joins regions that follow one another where one kernel can do both: what the first computes is
then used while it is still in registers."""

from __future__ import annotations

from collections.abc import Callable

from .fuse import Fusion
from .region import Region


def join_pairs(fusion: Fusion, takes: Callable[[Region, Region], bool]) -> Fusion:
    """Replaces pairs of regions by regions with `Region.parts`, in place.

    The second region reads the result of the first and constants besides; it then runs where the
    first did. The first's result is still written: others may read it.

    Args:
        takes: Whether a kernel can do both.
    """
    readers: dict[object, list[Region]] = {}
    for r in fusion.regions:
        for v in r.inputs:
            readers.setdefault(v, []).append(r)
    joined: set[Region] = set()
    out: list[Region] = []
    for first in fusion.regions:
        if first in joined:
            continue
        second = None
        if first.anchor is not None and len(first.outputs) == 1:
            (y,) = first.outputs
            second = next((r for r in readers.get(y, ()) if r not in joined
                           and _follows(first, r) and takes(first, r)), None)  # fmt: skip
        if second is None:
            out.append(first)
            continue
        joined.add(second)
        out.append(_together(first, second))
    fusion.regions = out
    return fusion


def _follows(first: Region, second: Region) -> bool:
    (y,) = first.outputs
    others = [v for v in second.inputs if v is not y]
    return second.anchor is not None and all(v.const is not None for v in others)


def _together(first: Region, second: Region) -> Region:
    made = set(first.outputs)
    return Region(
        [*first.nodes, *second.nodes], first.anchor,
        inputs=list(dict.fromkeys(
            [*first.inputs, *(v for v in second.inputs if v not in made)])),
        outputs=[*first.outputs, *second.outputs],
        physical={**first.physical, **second.physical}, parts=(first, second),
    )  # fmt: skip
