"""`ITimingCache`: measured times of kernels, to be kept between builds."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from ..network.values import IHostMemory
from ..support import logger as log
from ..support.errors import UsageError

_FORMAT = "tactician timing cache"
_VERSION = 1


class TimingCacheKey:
    """Names what was measured: target, device, and a digest of the computation and sizes."""

    def __init__(self, text: str = ""):
        self._text = text

    @staticmethod
    def parse(text: str) -> TimingCacheKey:
        """A key from ``str(key)``."""
        return TimingCacheKey(str(text))

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return f"<TimingCacheKey {self._text}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TimingCacheKey) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)


class TimingCacheValue:
    """The choice for a key.

    Attributes:
        tacticHash: Stands for a tactic and its variant.
        timingMSec: Its time in milliseconds.
    """

    tacticHash: int
    timingMSec: float

    def __init__(self, tacticHash: int = 0, timingMSec: float = float("inf")):
        self.tacticHash = int(tacticHash)
        self.timingMSec = float(timingMSec)

    def __repr__(self) -> str:
        return f"<TimingCacheValue {self.tacticHash:#018x}: {self.timingMSec} ms>"


def tactic_hash(label: str) -> int:
    """The number that stands for a tactic's label in `TimingCacheValue`."""
    return int.from_bytes(hashlib.blake2b(label.encode(), digest_size=7).digest(), "big")


class ITimingCache:
    """Times of kernels by what they compute. Builds with equal caches make equal plans.

    Made by `IBuilderConfig.create_timing_cache`. The tuner reads and fills it while building.
    """

    def __init__(self, entries: dict[str, Any] | None = None):
        self.entries: dict[str, Any] = entries if entries is not None else {}

    @staticmethod
    def load(data: Any) -> ITimingCache:
        """A cache from `serialize`'s bytes; empty bytes give an empty cache.

        Raises:
            UsageError: If the bytes are something else, or of another version.
        """
        raw = bytes(data)
        if not raw:
            return ITimingCache()
        try:
            table = json.loads(raw)
        except ValueError:
            raise UsageError("the data is no tactician timing cache") from None
        if not isinstance(table, dict) or table.get("format") != _FORMAT:
            raise UsageError("the data is no tactician timing cache")
        if table.get("version") != _VERSION:
            raise UsageError(
                f"the timing cache has version {table.get('version')}, this tactician reads "
                f"{_VERSION}"
            )
        entries = table.get("entries")
        if not isinstance(entries, dict) or not all(map(_is_entry, entries.values())):
            raise UsageError("the timing cache is damaged: entries are not times of tactics")
        return ITimingCache(entries)

    def serialize(self) -> IHostMemory:
        """The cache as JSON; equal caches give equal bytes."""
        entries = {k: self.entries[k] for k in sorted(self.entries)}
        table = {"format": _FORMAT, "version": _VERSION, "entries": entries}
        # candidates keep their order, which plans report
        return IHostMemory(json.dumps(table, indent=1).encode())

    def combine(self, input_cache: ITimingCache, ignore_mismatch: bool) -> bool:
        """Takes over the other cache's entries where this one has none.

        Returns:
            False, and a warning says so, if both have entries, for no device that is the same;
            with ``ignore_mismatch`` they are combined (entries name their device, so neither
            misleads a build).
        """
        ours, theirs = (
            {k.rpartition("/")[0] for k in c.entries} for c in (self, input_cache)
        )
        if ours and theirs and not ours & theirs and not ignore_mismatch:
            log.warning("combine: the timing caches are of different devices: "
                        f"{', '.join(sorted(ours))} and {', '.join(sorted(theirs))}; "
                        "ignore_mismatch=True combines them")
            return False
        for key, entry in input_cache.entries.items():
            self.entries.setdefault(key, json.loads(json.dumps(entry)))
        return True

    def reset(self) -> bool:
        """Empties the cache."""
        self.entries.clear()
        return True

    def queryKeys(self) -> list[TimingCacheKey]:
        """All keys."""
        return [TimingCacheKey(k) for k in sorted(self.entries)]

    def query(self, key: TimingCacheKey) -> TimingCacheValue:
        """The fastest correct tactic for a key; hash 0 and infinite time if there is none."""
        times = self.entries.get(str(key), {}).get("times", {})
        known = [(us, label) for label, us in times.items() if us is not None]
        if not known:
            return TimingCacheValue()
        us, label = min(known)
        return TimingCacheValue(tactic_hash(label), us / 1e3)

    def update(self, key: TimingCacheKey, value: TimingCacheValue) -> bool:
        """Makes one of the key's tactics the choice of later builds."""
        times = self.entries.get(str(key), {}).get("times", {})
        label = next((t for t in times if tactic_hash(t) == value.tacticHash), None)
        if label is None:
            log.error(f"timing cache: {key} has no tactic with hash {value.tacticHash:#x}")
            return False
        self.entries[str(key)] = {"times": {label: round(value.timingMSec * 1e3, 3)}}
        return True

    def __len__(self) -> int:
        return len(self.entries)

    def __bool__(self) -> bool:
        return True


def _is_entry(entry: Any) -> bool:
    times = entry.get("times") if isinstance(entry, dict) else None
    return isinstance(times, dict) and all(
        t is None or isinstance(t, (int, float)) for t in times.values()
    )
