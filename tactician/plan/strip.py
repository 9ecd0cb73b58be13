"""Plans without their weights: what `BuilderFlag.STRIP_PLAN` makes.

The network in such a plan keeps the types and shapes of the weights left out. Kernels' constants
are computed from weights, so none is kept: refitting builds the network again. Until then the
engine describes itself, but does not run.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ..ir.graph import Value
from .program import Program

Array = np.ndarray[Any, Any]


def without_weights(program: Program) -> Program:
    """A copy of a refittable program without the weights that can be given again."""
    assert program.network is not None and program.weights
    network, twin = program.network.clone()
    left_out: dict[str, int] = {}
    for v in twin:
        name = weights_name(v)
        if v.const is not None and name in program.weights:
            left_out[name] = int(v.const.nbytes)
            twin[v].const = hollow(v.const)
    nodes, copies = program.nodes.clone()
    for v in copies:
        if v.const is not None and v.const.size > 1:
            copies[v].const = hollow(v.const)
    return replace(
        program, network=network, nodes=nodes,
        constants=[hollow(c) for c in program.constants],
        settings={**program.settings, "stripped": left_out},
    )


def stripped(program: Program) -> dict[str, int]:
    """Names of the weights that a program lacks, with their bytes."""
    found: dict[str, int] = program.settings.get("stripped", {})
    return found


def weights_name(v: Value) -> str:
    """The name that weights have for refitting."""
    return str(v.meta.get("weights_name") or v.name)


def hollow(array: Array) -> Array:
    """An array of zeros that takes no memory."""
    return np.broadcast_to(np.zeros((), array.dtype), array.shape)
