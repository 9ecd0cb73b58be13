"""Whether a candidate's results are right: against what numpy computed, or against the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..ir.graph import Value
from ..regions.region import Region
from ..support.tolerances import Tolerance, mismatch, tolerance

# Ops that round to a grid; results may be one step off.
_ROUNDING = frozenset({"quantize", "dynamic_quantize", "dynamic_quantize_linear"})
_ONE_STEP = Tolerance(0.0, 1.0)


def outvoted(
    region: Region, samples: Mapping[str, Mapping[Value, np.ndarray[Any, Any]]]
) -> dict[str, str]:
    """Candidates whose results differ from those that most candidates agree on, with what
    differs. Of two that disagree the second loses."""
    labels = list(samples)
    if not labels:
        return {}
    trusted, most = labels[0], 0
    for a in labels:
        agree = sum(wrong_outputs(region, samples[b], samples[a]) is None for b in labels)
        if agree > most:
            trusted, most = a, agree
        if 2 * most > len(labels):
            break
    found = {b: wrong_outputs(region, samples[b], samples[trusted]) for b in labels}
    return {b: f"{why} (against {trusted})" for b, why in found.items() if why is not None}


def _tolerance(region: Region, v: Value) -> Tolerance:
    """What a result may differ by: a wide one is no more exact than narrow ones on its way, which
    kernels may keep in registers unrounded."""
    made = [o.dtype for n in region.nodes for o in n.outputs if o.dtype.is_float]
    narrow = [d for d in made if 16 <= d.bits < v.dtype.bits]
    return tolerance(min(narrow, key=lambda d: d.bits).name if narrow else v.dtype.name)


def wrong_outputs(
    region: Region, arrays: Mapping[Value, np.ndarray[Any, Any]],
    expected: Mapping[Value, np.ndarray[Any, Any]] | None,
) -> str | None:
    """Why the outputs are wrong, or None. Without expectations any finite result passes."""
    if expected is None:
        return None
    rounds = any(n.op in _ROUNDING for n in region.nodes)
    for v, want in expected.items():
        # a sum in another order may fall on the other side of a rounding boundary
        tol = _ONE_STEP if rounds and v.dtype.is_int else _tolerance(region, v)
        if rounds and v.dtype.is_float:
            continue
        why = mismatch(arrays[v], want, tol)
        if why is not None:
            return f"accuracy: {why} in {v.name!r}"
    return None
