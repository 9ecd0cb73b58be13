"""The importer table: which function translates which type of Caffe layer.

An importer takes the context and the layer and returns the layer's tops::

    @importer("Sigmoid")
    def sigmoid(c: Context, n: CaffeLayer) -> Value:
        return c.layer("add_activation", n[0], type=ActivationType.SIGMOID)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING

from ...ir.graph import Value

if TYPE_CHECKING:
    from .context import Context
    from .node import CaffeLayer

Result = Value | Sequence[Value]
ImporterFn = Callable[["Context", "CaffeLayer"], Result]


@dataclass(frozen=True)
class Importer:
    """One row of the table.

    Attributes:
        type: The layer type as prototxts write it.
        fn: The function that builds the layer.
        family: The module it comes from.
        inputs: Least and greatest number of bottoms (None: any).
        does: What the layer computes, for the documentation.
        notes: Limits worth telling.
    """

    type: str
    fn: ImporterFn
    family: str
    inputs: tuple[int, int | None]
    does: str
    notes: str = ""


_TABLE: dict[str, Importer] = {}
_loaded = False


def importer(
    *types: str, inputs: int | tuple[int, int | None] = 1, does: str = "", notes: str = ""
) -> Callable[[ImporterFn], ImporterFn]:
    """Registers the decorated function for layer types of the same treatment."""

    def register(fn: ImporterFn) -> ImporterFn:
        bounds = (inputs, inputs) if isinstance(inputs, int) else inputs
        family = fn.__module__.rsplit(".", 1)[-1]
        for type in types:
            if type in _TABLE:
                raise ValueError(f"there are two importers of {type}")
            _TABLE[type] = Importer(type, fn, family, bounds, does, notes)
        return fn

    return register


def table() -> dict[str, Importer]:
    """Every registration, by layer type."""
    global _loaded
    if not _loaded:
        from . import importers

        for module in iter_modules(importers.__path__):
            import_module(f"{importers.__name__}.{module.name}")
        _loaded = True
    return _TABLE


# Layers that only training or testing needs. They are left out with their tops.
TRAIN_ONLY = frozenset("""
    Accuracy ContrastiveLoss EuclideanLoss HDF5Output HingeLoss InfogainLoss
    MultinomialLogisticLoss SigmoidCrossEntropyLoss Silence SmoothL1Loss MultiBoxLoss
    DetectionEvaluate
""".split())

# Layers that read files; their tops are missing unless an Input layer stands in for them.
DATA = frozenset("AnnotatedData Data HDF5Data ImageData WindowData".split())
