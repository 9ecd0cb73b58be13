"""Layers that sample images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...ir.graph import Value
from ...ops import OpError
from ..core import NetworkCore
from ..enums import (
    InterpolationMode,
    LayerType,
    ResizeCoordinateTransformation,
    ResizeRoundMode,
    ResizeSelector,
    SampleMode,
)
from ..layer import Attr, Emitter, ILayer
from ..tensor import ITensor
from ..values import Dims
from .contraction import dims_attr

_NEAREST = {
    ResizeRoundMode.HALF_UP: "round_prefer_ceil", ResizeRoundMode.HALF_DOWN: "round_prefer_floor",
    ResizeRoundMode.FLOOR: "floor", ResizeRoundMode.CEIL: "ceil",
}


class IResizeLayer(ILayer):
    """Resizes by interpolation.

    Attributes:
        shape: The output's shape; input 1 overrides it.
        scales: Factors, one per dimension, instead of a shape.
        resize_mode: Interpolation.
        coordinate_transformation: How output coordinates map to input coordinates.
        selector_for_single_pixel: Coordinate of a single output pixel.
        nearest_rounding: Rounding of coordinates (NEAREST).
        cubic_coeff: Coefficient of the cubic kernel (CUBIC).
        exclude_outside: Whether weights outside the input are dropped (CUBIC).
    """

    _layer_type = LayerType.RESIZE
    _title = "Resize"
    _incomplete = True
    resize_mode = Attr(InterpolationMode, "Interpolation.")
    coordinate_transformation = Attr(ResizeCoordinateTransformation, "Mapping of coordinates.")
    selector_for_single_pixel = Attr(ResizeSelector, "Coordinate of a single output pixel.")
    nearest_rounding = Attr(ResizeRoundMode, "Rounding of coordinates.")
    cubic_coeff = Attr(float, "Coefficient of the cubic kernel.")
    exclude_outside = Attr(bool, "Whether weights outside are dropped.")

    @property
    def shape(self) -> Dims:
        """The output's shape; empty if scales or a tensor give it."""
        return self._state["shape"] or Dims()

    @shape.setter
    def shape(self, value: Any) -> None:
        self._state["shape"], self._state["scales"] = dims_attr(value), []
        del self._inputs[1:]
        self._changed()

    @property
    def scales(self) -> list[float]:
        """Factors, one per dimension; empty if a shape is set."""
        return list(self._state["scales"])

    @scales.setter
    def scales(self, value: Any) -> None:
        self._state["scales"], self._state["shape"] = [float(s) for s in value], None
        del self._inputs[1:]
        self._changed()

    @property
    def align_corners(self) -> bool:
        """Whether the coordinate transformation is ALIGN_CORNERS (version 7)."""
        return self.coordinate_transformation is ResizeCoordinateTransformation.ALIGN_CORNERS

    @align_corners.setter
    def align_corners(self, on: bool) -> None:
        kind = ResizeCoordinateTransformation
        self.coordinate_transformation = kind.ALIGN_CORNERS if on else kind.ASYMMETRIC

    def _max_inputs(self) -> int:
        return 1

    def _emit(self, e: Emitter) -> Sequence[Value]:
        s, x, off = self._state, self._x(), self._net._off
        axes = tuple(range(off, x.rank))
        sizes = scales = None
        if self._in(1) is not None:
            sizes = self._x(1)
        elif s["shape"] is not None:
            if len(s["shape"]) != len(axes):
                raise OpError(f"shape {s['shape']} needs {len(axes)} sizes for {x!r}")
            sizes = e.ints(tuple(s["shape"]))
        elif s["scales"]:
            if len(s["scales"]) != len(axes):
                raise OpError(f"scales {s['scales']} needs {len(axes)} factors for {x!r}")
            scales = e.const(np.asarray(s["scales"], np.float32))
        else:
            raise OpError("set its shape or scales, or give a shape with set_input(1, tensor)")
        kind = self.coordinate_transformation
        coordinate = kind.name.lower()
        if (kind is ResizeCoordinateTransformation.HALF_PIXEL
                and self.selector_for_single_pixel is ResizeSelector.UPPER):
            coordinate = "pytorch_half_pixel"
        return [e.value(
            "resize", x, sizes, scales, mode=self.resize_mode.name.lower(), coordinate=coordinate,
            nearest=_NEAREST[self.nearest_rounding], cubic_a=s["cubic_coeff"],
            exclude_outside=s["exclude_outside"], axes=axes if off else ())]


_SAMPLE = {SampleMode.FILL: "zeros", SampleMode.CLAMP: "border", SampleMode.REFLECT: "reflection"}


class IGridSampleLayer(ILayer):
    """Samples an image at the points of a grid.

    Attributes:
        interpolation_mode: Interpolation.
        align_corners: Whether -1 and 1 are the centers of the corner pixels (else their edges).
        sample_mode: What points outside the image give: FILL (0), CLAMP or REFLECT.
    """

    _layer_type = LayerType.GRID_SAMPLE
    _title = "GridSample"
    interpolation_mode = Attr(InterpolationMode, "Interpolation.")
    align_corners = Attr(bool, "What -1 and 1 mean.")
    sample_mode = Attr(SampleMode, "What points outside give.")

    def _emit(self, e: Emitter) -> Sequence[Value]:
        if self.sample_mode not in _SAMPLE:
            raise OpError(f"sample_mode {self.sample_mode.name} is not one of FILL, CLAMP, REFLECT")
        return [e.value("grid_sample", self._x(0), self._x(1), padding=_SAMPLE[self.sample_mode],
                        mode=self.interpolation_mode.name.lower(),
                        align_corners=self.align_corners)]


class ImageAdders(NetworkCore):
    """``add_*`` methods of layers that sample images."""

    def add_resize(self, input: ITensor) -> IResizeLayer:
        """Adds a resize; set the layer's shape or scales."""
        return self._add(
            IResizeLayer, [input], shape=None, scales=[], resize_mode=InterpolationMode.NEAREST,
            coordinate_transformation=ResizeCoordinateTransformation.ASYMMETRIC,
            selector_for_single_pixel=ResizeSelector.FORMULA,
            nearest_rounding=ResizeRoundMode.FLOOR, cubic_coeff=-0.75, exclude_outside=False)

    def add_grid_sample(self, input: ITensor, grid: ITensor) -> IGridSampleLayer:
        """Adds sampling at the points of a grid."""
        return self._add(IGridSampleLayer, [input, grid], align_corners=False,
                         interpolation_mode=InterpolationMode.LINEAR, sample_mode=SampleMode.FILL)
