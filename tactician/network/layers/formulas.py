"""Output size formulas of version 7."""

from __future__ import annotations

from typing import Any

from ...support import logger as log
from ..core import NetworkCore
from ..values import DimsHW, dims


class IOutputDimensionsFormula:
    """Computes output sizes of convolutions and pooling; by default as EXPLICIT_ROUND_DOWN.

    Networks keep the formulas they are given but warn that sizes follow from `PaddingMode`.
    """

    def __init__(self) -> None:
        pass

    def compute(self, input_dims: Any, kernel_size: Any, stride: Any, padding: Any, dilation: Any,
                layer_name: str) -> DimsHW:
        """Height and width of the output."""
        x, k, s, p, d = (dims(v, 2) for v in (input_dims, kernel_size, stride, padding, dilation))
        return DimsHW([(x[i] + 2 * p[i] - ((k[i] - 1) * d[i] + 1)) // s[i] + 1 for i in (0, 1)])


class FormulaProperties(NetworkCore):
    """Formulas a network holds (version 7)."""

    def _formula(self, kind: str, formula: Any) -> None:
        log.warning(f"{kind}_output_dimensions_formula is not used: output sizes follow from each"
                    " layer's padding_mode", self._logger)
        self._formulas[kind] = formula

    pooling_output_dimensions_formula = property(
        lambda s: s._formulas.get("pooling"), lambda s, f: s._formula("pooling", f),
        doc="Kept, not used.")
    convolution_output_dimensions_formula = property(
        lambda s: s._formulas.get("convolution"), lambda s, f: s._formula("convolution", f),
        doc="Kept, not used.")
    deconvolution_output_dimensions_formula = property(
        lambda s: s._formulas.get("deconvolution"), lambda s, f: s._formula("deconvolution", f),
        doc="Kept, not used.")
