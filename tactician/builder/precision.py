"""Applies the precisions that a build may use to its graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..ir import dtypes as T
from ..ir.graph import Graph, Node
from ..passes.manager import PassTrace
from ..passes.pipeline import narrow
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


def any_asks(graph: Graph) -> bool:
    """Whether a layer of the graph, or of a body in it, has a precision of its own."""
    return any(
        "precision" in n.meta or any(any_asks(g) for g in n.subgraphs) for n in graph.nodes
    )
