"""Building plans: `Builder`, `IBuilderConfig`, profiles, the timing cache, `build`."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_WHERE = {
    "Builder": "builder", "IBuilderConfig": "config", "IOptimizationProfile": "profile",
    "ITimingCache": "timing_cache", "TimingCacheKey": "timing_cache",
    "TimingCacheValue": "timing_cache", "Refitter": "refitter", "build": "easy",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
