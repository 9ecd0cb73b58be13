"""Sizes, padding and strided views of sliding windows (convolution, pooling).

Padding modes, with ``span = (window - 1) * dilation + 1``:

- ``explicit_down``: ``floor((size + pre + post - span) / stride) + 1`` outputs.
- ``explicit_up``: the same rounded up.
- ``same_upper``, ``same_lower``: ``ceil(size / stride)`` outputs; whatever padding that needs is
  split evenly, the odd element after (upper) or before (lower). ``pre`` and ``post`` are unused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..ir import dims as D
from .registry import OpError

Array = np.ndarray[Any, Any]
PADDING_MODES = ("explicit_down", "explicit_up", "same_upper", "same_lower")


@dataclass(frozen=True)
class Axis:
    """How windows lie along one spatial dimension.

    Attributes:
        size: Input extent.
        out: Number of windows.
        pre, post: Padding before and after, resolved from the padding mode.
        window, stride, dilation: As in the op's attributes.
    """

    size: D.DimLike
    out: D.DimLike
    pre: D.DimLike
    post: D.DimLike
    window: int
    stride: int
    dilation: int

    @property
    def span(self) -> int:
        return (self.window - 1) * self.dilation + 1

    @property
    def past_end(self) -> bool:
        """Whether a window may reach past the end of the input."""
        over = (self.out - 1) * self.stride + self.span - self.pre - self.size
        if isinstance(over, int):
            return over > 0
        inside = self.size + (self.pre - self.span)
        return self.out != D.floor_div(inside, self.stride) + 1


def per_axis(name: str, given: Sequence[int], count: int, default: int) -> tuple[int, ...]:
    """A spatial attribute with one entry per spatial dimension; empty means the default.

    Raises:
        OpError: If the number of entries is wrong.
    """
    if not given:
        return (default,) * count
    if len(given) != count:
        raise OpError(
            f"{name} {tuple(given)} has {len(given)} entries, but there are {count} spatial "
            f"dimensions: give one entry for each"
        )
    return tuple(int(g) for g in given)


def resolve(
    sizes: Sequence[D.DimLike],
    window: Sequence[int],
    stride: Sequence[int],
    pre: Sequence[int],
    post: Sequence[int],
    dilation: Sequence[int],
    mode: str,
    *,
    clip_ceil: bool = False,
) -> list[Axis]:
    """Lays windows over spatial dimensions.

    Args:
        clip_ceil: Round up, but leave out windows that would start past the input and its
            leading padding (ONNX's ``ceil_mode``).

    Raises:
        OpError: If an attribute is out of range or a window exceeds its padded input.
    """
    if mode not in PADDING_MODES:
        raise OpError(f"padding_mode {mode!r} is not one of {', '.join(PADDING_MODES)}")
    n = len(sizes)
    window = per_axis("window", window, n, 1)
    stride = per_axis("stride", stride, n, 1)
    pre = per_axis("pre", pre, n, 0)
    post = per_axis("post", post, n, 0)
    dilation = per_axis("dilation", dilation, n, 1)
    for name, values in (("window", window), ("stride", stride), ("dilation", dilation)):
        if any(v < 1 for v in values):
            raise OpError(f"{name} {values} must be at least 1 in every dimension")
    return [
        _axis(sizes, k, window[k], stride[k], pre[k], post[k], dilation[k], mode, clip_ceil)
        for k in range(n)
    ]


def _axis(
    sizes: Sequence[D.DimLike], k: int, window: int, stride: int, pre: int, post: int,
    dilation: int, mode: str, clip_ceil: bool,
) -> Axis:
    size = sizes[k]
    span = (window - 1) * dilation + 1
    if mode.startswith("same"):
        out = D.ceil_div(size, stride)
        total = D.dim_max((out - 1) * stride + span - size, 0)
        half = D.floor_div(total, 2)
        before, after = (half, total - half) if mode == "same_upper" else (total - half, half)
        return Axis(size, out, before, after, window, stride, dilation)
    room = size + (pre + post - span)
    if not isinstance(room, D.Dim) and room < 0:
        raise OpError(
            f"spatial dimension {k} has {size} elements plus padding {pre} and {post}, less than "
            f"the window's reach of {span} (window {window}, dilation {dilation}): pad more or "
            f"use a smaller window"
        )
    if mode == "explicit_up" or clip_ceil:
        out = D.ceil_div(room, stride) + 1
        if clip_ceil:
            # the last window must start inside the input or its leading padding
            out = D.dim_min(out, D.floor_div(size + (pre - 1), stride) + 1)
    else:
        out = D.floor_div(room, stride) + 1
    return Axis(size, out, pre, post, window, stride, dilation)


def windows(x: Array, axes: Sequence[Axis], fill: Any) -> Array:
    """A view ``[..., *out, *window]`` over ``x [..., *sizes]``, padded with ``fill``."""
    lead = x.ndim - len(axes)
    pads, crops = [(0, 0)] * lead, [slice(None)] * lead
    for a in axes:
        reach = (int(a.out) - 1) * a.stride + a.span  # what the windows touch, padding included
        before, size = int(a.pre), int(a.size)
        crops.append(slice(max(-before, 0), max(min(size, reach - before), 0)))
        kept = len(range(size)[crops[-1]])
        pads.append((max(before, 0), max(reach - max(before, 0) - kept, 0)))
    padded = np.pad(x[tuple(crops)], pads, constant_values=fill)
    steps = padded.strides[lead:]
    return np.lib.stride_tricks.as_strided(
        padded,
        x.shape[:lead] + tuple(int(a.out) for a in axes) + tuple(a.window for a in axes),
        padded.strides[:lead]
        + tuple(s * a.stride for s, a in zip(steps, axes, strict=True))
        + tuple(s * a.dilation for s, a in zip(steps, axes, strict=True)),
        writeable=False,
    )
