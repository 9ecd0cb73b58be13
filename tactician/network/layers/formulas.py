"""Output size formulas of version 7: a network's own rules for the sizes of 2-D layers."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ...ir.dims import DimLike
from ...ops import OpError
from ...ops._windows import resolve
from ...ops.conv import deconv_axes
from ..core import NetworkCore
from ..values import DimsHW, dims

if TYPE_CHECKING:
    from ..layer import ILayer

POOLING, CONVOLUTION, DECONVOLUTION = "pooling", "convolution", "deconvolution"


class IOutputDimensionsFormula:
    """Computes output sizes of 2-D convolutions, deconvolutions or pooling; by default those of
    convolutions and pooling, rounded down."""

    def __init__(self) -> None:
        pass

    def compute(self, input_shape: Any, kernel_shape: Any, stride: Any, padding: Any,
                dilation: Any, layer_name: str) -> DimsHW:
        """Height and width of the output.

        Args:
            input_shape: Height and width of the input.
            kernel_shape: What a window reaches: its size with the dilation applied.
            stride, padding, dilation: The layer's; padding is that before.
            layer_name: The layer's name.
        """
        x, k, s, p = (dims(v, 2) for v in (input_shape, kernel_shape, stride, padding))
        return DimsHW([(x[i] + 2 * p[i] - k[i]) // s[i] + 1 for i in (0, 1)])


class FormulaProperties(NetworkCore):
    """Formulas a network holds (version 7)."""

    def _formula(self, kind: str, formula: Any) -> None:
        self._formulas[kind] = formula
        for layer in list(self._layers):
            if layer._impl._formula_kind == kind:
                layer._changed()

    pooling_output_dimensions_formula = property(
        lambda s: s._formulas.get(POOLING), lambda s, f: s._formula(POOLING, f),
        doc="`IOutputDimensionsFormula` of 2-D pooling, or None.")
    convolution_output_dimensions_formula = property(
        lambda s: s._formulas.get(CONVOLUTION), lambda s, f: s._formula(CONVOLUTION, f),
        doc="`IOutputDimensionsFormula` of 2-D convolutions, or None.")
    deconvolution_output_dimensions_formula = property(
        lambda s: s._formulas.get(DECONVOLUTION), lambda s, f: s._formula(DECONVOLUTION, f),
        doc="`IOutputDimensionsFormula` of 2-D deconvolutions, or None.")


def fitted(layer: ILayer, kind: str, sizes: Sequence[DimLike], window: Sequence[int],
           attrs: dict[str, Any]) -> dict[str, Any]:
    """The attributes of a layer's op, with the padding that the network's formula asks for.

    Args:
        layer: The layer.
        kind: Which formula is its.
        sizes: Spatial sizes of its input.
        window: Sizes of its window.
        attrs: Attributes with stride, pre, post, padding_mode and perhaps dilation and ceil.

    Raises:
        OpError: If the formula fails, or asks for sizes that no padding gives.
    """
    formula = layer._net._formulas.get(kind)
    if formula is None or len(window) != 2:
        return attrs
    if not all(isinstance(d, int) for d in sizes):
        raise OpError(f"the network's {kind}_output_dimensions_formula needs an input of fixed "
                      f"height and width, got {tuple(sizes)}; fix them, or use padding_mode")
    known = [int(d) for d in sizes]  # type: ignore[arg-type]
    dilation = attrs.get("dilation") or (1, 1)
    reach = [(k - 1) * d + 1 for k, d in zip(window, dilation, strict=True)]
    want = _asked(layer, formula, kind, known, reach, attrs, dilation)
    if kind == DECONVOLUTION:
        return _cut(known, window, attrs, want)
    return _padded(kind, known, window, reach, attrs, want)


def _asked(layer: ILayer, formula: Any, kind: str, sizes: Sequence[int], reach: Sequence[int],
           attrs: dict[str, Any], dilation: Sequence[int]) -> tuple[int, int]:
    name = f"the network's {kind}_output_dimensions_formula"
    args = (DimsHW(v) for v in (sizes, reach, attrs["stride"], attrs["pre"], dilation))
    try:
        found = dims(formula.compute(*args, layer.name), 2)
    except Exception as e:
        raise OpError(f"{name} failed: {type(e).__name__}: {e}") from e
    if len(found) != 2 or min(found) < 1:
        raise OpError(f"{name} gave {tuple(found)}; it must give a height and a width of at least "
                      f"1 for an input of {tuple(sizes)}")
    return found[0], found[1]


def _padded(kind: str, sizes: Sequence[int], window: Sequence[int], reach: Sequence[int],
            attrs: dict[str, Any], want: tuple[int, int]) -> dict[str, Any]:
    """Windows over an input: rounded otherwise if that is all, else padded otherwise behind."""
    stride, mode = attrs["stride"], attrs["padding_mode"]
    pre, post = attrs["pre"], attrs["post"]
    same = mode.startswith("same")
    ways = [(mode, bool(attrs.get("ceil")))]
    ways += [] if same else [("explicit_down", False), ("explicit_up", False)]
    for way, clip in ways:
        try:
            axes = resolve(sizes, window, stride, pre, post, attrs.get("dilation") or (), way,
                           clip_ceil=clip)
        except OpError:
            continue
        if tuple(a.out for a in axes) == want:
            return _with_mode(attrs, way, clip)
        if same:
            pre = tuple(int(a.pre) for a in axes)  # type: ignore[arg-type]
    starts = [(n - 1) * s - p for n, s, p in zip(want, stride, pre, strict=True)]
    if kind == POOLING and any(at >= n for at, n in zip(starts, sizes, strict=True)):
        raise OpError(f"the network's pooling_output_dimensions_formula gave {want}, but then the "
                      f"last window starts at {tuple(starts)}, behind an input of {tuple(sizes)}")
    post = tuple(at + r - n for at, r, n in zip(starts, reach, sizes, strict=True))
    return _with_mode(attrs, "explicit_down", False) | {"pre": pre, "post": post}


def _with_mode(attrs: dict[str, Any], mode: str, clip: bool) -> dict[str, Any]:
    return attrs | {"padding_mode": mode} | ({"ceil": clip} if "ceil" in attrs else {})


def _cut(sizes: Sequence[int], window: Sequence[int], attrs: dict[str, Any],
         want: tuple[int, int]) -> dict[str, Any]:
    """What is cut off behind the result of a deconvolution, or added."""
    given = {"stride": (), "pre": (), "post": (), "dilation": (), "output_padding": ()} | attrs
    axes = deconv_axes(sizes, window, SimpleNamespace(**given))
    post = tuple(int(a.post) + int(a.out) - n  # type: ignore[arg-type]
                 for a, n in zip(axes, want, strict=True))
    return attrs | {"padding_mode": "explicit_down", "post": post,
                    "pre": tuple(int(a.pre) for a in axes)}  # type: ignore[arg-type]
