"""The one table of numeric tolerances, per element type.

``relative`` is to the largest magnitude of the expected output (its range), because summation
order differs between kernels; ``absolute`` covers outputs near zero.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class Tolerance(NamedTuple):
    """Largest accepted error: ``absolute + relative * max|expected|``."""

    relative: float
    absolute: float


TOLERANCES: dict[str, Tolerance] = {
    "f64": Tolerance(1e-9, 1e-12),
    "f32": Tolerance(1e-4, 1e-6),
    "f16": Tolerance(4e-3, 1e-4),
    "bf16": Tolerance(2e-2, 1e-3),
}
EXACT = Tolerance(0.0, 0.0)


def tolerance(dtype_name: str) -> Tolerance:
    """The tolerance of an element type; integers and booleans are exact."""
    return TOLERANCES.get(dtype_name, EXACT)


def mismatch(actual: Any, expected: Any, tol: Tolerance) -> str | None:
    """Why ``actual`` is not ``expected`` within ``tol``, or None if it is.

    NaNs must be in the same places; infinities must be equal.
    """
    a, e = np.asarray(actual), np.asarray(expected)
    if a.shape != e.shape:
        return f"shape {list(a.shape)} instead of {list(e.shape)}"
    if a.size == 0:
        return None
    if a.dtype.kind in "biu" and e.dtype.kind in "biu" and tol == EXACT:
        bad = int(np.count_nonzero(a != e))
        return f"{bad} of {a.size} elements differ" if bad else None
    wide = np.complex128 if a.dtype.kind == "c" else np.float64
    a, e = a.astype(wide), e.astype(wide)
    nan_a, nan_e = np.isnan(a), np.isnan(e)
    if (nan_a != nan_e).any():
        return f"{int((nan_a != nan_e).sum())} of {a.size} elements are NaN on one side only"
    finite = np.isfinite(e)
    off = ~finite & ~nan_e & (a != e)
    if off.any():
        return f"{int(off.sum())} infinite elements differ"
    if not finite.any():
        return None
    if not np.isfinite(a[finite]).all():
        return "elements are infinite that should not be"
    error = float(np.abs(a[finite] - e[finite]).max())
    limit = tol.absolute + tol.relative * float(np.abs(e[finite]).max())
    if error <= limit:
        return None
    return f"largest error {error:.3g} exceeds {limit:.3g}"
