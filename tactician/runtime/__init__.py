"""Running plans: `Runtime`, `ICudaEngine`, `IExecutionContext`, streams, the driver's names."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_WHERE = {
    "Runtime": "runtime", "ICudaEngine": "engine", "IExecutionContext": "context",
    "EngineInspector": "inspector", "IRuntimeConfig": "config", "ISerializationConfig": "config",
    "Engine": "easy", "load": "easy",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
