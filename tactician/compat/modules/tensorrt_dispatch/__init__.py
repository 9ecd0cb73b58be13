"""``import tensorrt_dispatch``: the same as ``import tensorrt``."""

from typing import Any

import tactician as _tactician

__version__ = _tactician.__version__


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(_tactician, name)


def __dir__() -> list[str]:
    return [n for n in dir(_tactician) if n[0] != "_"]
