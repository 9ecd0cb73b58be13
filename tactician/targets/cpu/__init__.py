"""The CPU target: LLVM code generated from Python."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

_loaded = False


def load_tactics() -> None:
    """Imports every module of this folder that declares tactics (its name says which: they call
    `register_tactic` when imported). Safe to call often."""
    global _loaded
    if _loaded:
        return
    for module in iter_modules(__path__):
        if not module.name.startswith("_"):
            import_module(f"{__name__}.{module.name}")
    _loaded = True
