"""The tactic interface and registry.

A tactic is one way of doing one kind of region on one target. Targets declare theirs with
``@register_tactic``; the autotuner asks all of them.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, ClassVar, TypeVar

from ..regions.region import Region
from .kernel import Kernel


class Tactic:
    """Base class of tactics.

    Attributes:
        name: Shown in reports and part of the timing cache key.
        target: Name of the target whose device it builds for.
        source: Name of the `TacticSource` that switches it off, or "" if none does.
        priority: Order of trial, and the choice at optimization level 0 (higher first).
        approximate: Whether results may have more rounding error than plain sums. Where numpy
            would take too long to check them, they are compared with another tactic's.
        joins: Whether it does regions with parts. Only such tactics are asked for them.
        timed: Whether its kernels can be timed by themselves; those that need others before them,
            or find sizes, can't. Regions that only such tactics do get the first candidate.
    """

    name: ClassVar[str]
    target: ClassVar[str]
    source: ClassVar[str] = ""
    priority: ClassVar[int] = 0
    approximate: ClassVar[bool] = False
    joins: ClassVar[bool] = False
    timed: ClassVar[bool] = True

    def wants_channels_last(self, region: Region, device: Any) -> bool:
        """Whether it could do the region if operands were stored channels-last. Only tactics
        that say so are asked for regions whose operands are."""
        return False

    def takes_pair(self, first: Region, second: Region, device: Any) -> bool:
        """Whether one kernel could do two regions of which the second reads the first's result."""
        return False

    def takes_head(self, first: Region, rest: Region, device: Any) -> bool:
        """Whether one kernel could do a region and one behind it, perhaps a pair, that alone reads
        its result."""
        return False

    def refuse(self, region: Region, device: Any) -> str | None:
        """Why it can't do the region, or None if it can."""
        raise NotImplementedError

    def candidates(self, region: Region, device: Any) -> Sequence[Hashable]:
        """Variants worth timing, most promising first; their ``str`` names them in reports."""
        return ("default",)

    def build(self, region: Region, candidate: Any, device: Any) -> Kernel:
        """The kernel of one candidate."""
        raise NotImplementedError


_TACTICS: dict[str, dict[str, Tactic]] = {}
_T = TypeVar("_T", bound=type[Tactic])


def register_tactic(cls: _T) -> _T:
    """Class decorator: makes the tactic known to the autotuner of its target."""
    known = _TACTICS.setdefault(cls.target, {})
    if cls.name in known:
        raise ValueError(f"tactic {cls.name!r} of target {cls.target!r} is declared twice")
    known[cls.name] = cls()
    return cls


def tactics_for(target: str) -> list[Tactic]:
    """All tactics of a target, highest priority first."""
    return sorted(_TACTICS.get(target, {}).values(), key=lambda t: (-t.priority, t.name))
