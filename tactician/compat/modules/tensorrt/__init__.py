"""``import tensorrt``: tactician's API under TensorRT's name."""

from typing import Any

import tactician as _tactician
from tactician import common_enter, common_exit  # noqa: F401

from . import tensorrt

__version__ = _tactician.__version__
_HIDDEN = frozenset("builder cli driver ir network ops parsers plan runtime support targets"
                    " testing load build compat".split())
__all__ = sorted(n for n in dir(_tactician) if n[0] != "_" and n not in _HIDDEN)
__all__ += ["tensorrt"]


def __getattr__(name: str) -> Any:
    if name == "plugin":
        from importlib import import_module

        return import_module(f"{__name__}.plugin")
    if name.startswith("__") or name in _HIDDEN:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(_tactician, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*__all__, "__version__", "plugin"})
