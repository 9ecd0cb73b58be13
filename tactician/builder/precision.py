"""Applies the precisions that a build may use to its graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..ir import dtypes as T
from ..ir.graph import Graph, Node
from ..passes.implicit_quantize import Stays, quantize_by_ranges
from ..passes.manager import PassTrace
from ..passes.pipeline import narrow
from ..passes.quantized import is_quantized
from ..support import logger as log
from .settings import BuildSettings

_SHOWN = 5
_TITLES = {"f16": "FP16", "bf16": "BF16"}  # in order of preference


def apply_precisions(
    graph: Graph, settings: BuildSettings, device: Any, trace: PassTrace | None = None,
    dump: Callable[[str, Graph], None] | None = None,
    takes: Callable[[Node], bool] | None = None,
) -> None:
    """Lets an optimized graph compute in the narrow types that are allowed and fast on the device.

    Strongly typed networks are left alone. ``takes``: see `optimize`.

    Raises:
        BuildError: If a layer's precision must be obeyed and can't.
    """
    if settings.strongly_typed:
        return
    wanted = [name for name in _TITLES if name in settings.precisions]
    fast = [name for name in wanted if name in device.precisions]
    if wanted and not fast:
        log.info(
            f"{' and '.join(_TITLES[n] for n in wanted)} may be used, but is not faster on "
            f"{device.fingerprint}: layers compute in FP32 unless they ask for another type",
            settings.logger,
        )
    to = T.dtype(fast[0]) if fast else None
    if to is None and not any_asks(graph):
        return
    report = narrow(graph, to, settings.precision_constraints, settings.precisions, trace, dump,
                    takes)
    for layer, reason in report.kept[:_SHOWN]:
        log.info(f"layer {layer!r} stays in FP32: {reason}", settings.logger)
    if len(report.kept) > _SHOWN:
        log.info(f"{len(report.kept) - _SHOWN} further layers stay in FP32", settings.logger)
    if report.narrowed:
        log.verbose(f"{report.narrowed} operations compute in {to or 'their own types'}",
                    settings.logger)


def apply_ranges(
    graph: Graph, settings: BuildSettings, takes: Callable[[Node], bool],
    stays: Stays | None = None,
) -> bool:
    """Quantizes an optimized graph implicitly, where INT8 is allowed and tensors have ranges.

    Networks with quantize and dequantize layers are quantized by these alone. ``stays``: see
    `quantize_by_ranges`.

    Returns:
        Whether the graph changed (and should be optimized again).

    Raises:
        BuildError: If a layer's precision must be obeyed and can't.
    """
    if settings.strongly_typed or "i8" not in settings.precisions or is_quantized(graph):
        return False
    if not any("dynamic_range" in v.meta for v in graph.values()):
        log.warning("BuilderFlag.INT8 is set, but there are neither quantize and dequantize layers "
                    "nor a calibrator nor dynamic ranges: nothing is quantized", settings.logger)
        return False
    report = quantize_by_ranges(graph, takes, settings.precision_constraints == "obey", stays)
    for layer, reason in report.skipped[:_SHOWN]:
        log.info(f"layer {layer!r} is not quantized: {reason}", settings.logger)
    if len(report.skipped) > _SHOWN:
        log.info(f"{len(report.skipped) - _SHOWN} further layers are not quantized",
                 settings.logger)
    log.info(f"{len(report.quantized)} layers compute in INT8", settings.logger)
    return bool(report.quantized)


def any_asks(graph: Graph) -> bool:
    """Whether a layer of the graph, or of a body in it, has a precision of its own."""
    return any(
        "precision" in n.meta or any(any_asks(g) for g in n.subgraphs) for n in graph.nodes
    )
