"""Op declarations, one file per family. Importing this package registers them all."""

from importlib import import_module
from pkgutil import iter_modules

from .registry import (
    Kind,
    NoAttrs,
    Op,
    OpError,
    all_ops,
    create,
    emit,
    evaluate,
    get,
    infer_node,
    register,
    temp,
    update,
)

__all__ = [
    "Kind", "NoAttrs", "Op", "OpError", "all_ops", "create", "emit", "evaluate", "get",
    "infer_node", "register", "temp", "update",
]

for _module in iter_modules(__path__):
    if not _module.name.startswith("_") and _module.name not in ("registry", "interpreter"):
        import_module(f"{__name__}.{_module.name}")
