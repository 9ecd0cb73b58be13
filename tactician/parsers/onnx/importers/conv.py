"""Convolutions and their like."""

from __future__ import annotations

from typing import Any

from ....ir import dims as D
from ....ir.graph import Value
from ..context import Context, require_ints
from ..errors import NodeProblem, Unsupported
from ..node import OnnxNode
from ..table import importer

PADDING_MODES = {"NOTSET": "explicit_down", "VALID": "explicit_down",
                 "SAME_UPPER": "same_upper", "SAME_LOWER": "same_lower"}


def spatial(n: OnnxNode, count: int) -> dict[str, Any]:
    """Stride, padding and dilation of ``count`` spatial dimensions."""
    auto = n.attr("auto_pad", "NOTSET") or "NOTSET"
    if auto not in PADDING_MODES:
        raise NodeProblem(f"auto_pad is {auto!r}; expected one of {', '.join(PADDING_MODES)}")
    pads = n.ints("pads", (0,) * (2 * count))
    stride, dilation = n.ints("strides", (1,) * count), n.ints("dilations", (1,) * count)
    if auto == "VALID":
        pads = (0,) * (2 * count)
    if len(pads) != 2 * count or len(stride) != count or len(dilation) != count:
        raise NodeProblem(
            f"{count} spatial dimensions need {count} strides, {count} dilations and {2 * count} "
            f"pads, not {list(stride)}, {list(dilation)} and {list(pads)}")
    return {"stride": stride, "pre": pads[:count], "post": pads[count:], "dilation": dilation,
            "padding_mode": PADDING_MODES[auto]}


def check_kernel(n: OnnxNode, w: Value) -> int:
    """The number of spatial dimensions; checks ``kernel_shape`` against the weights."""
    count = w.rank - 2
    kernel = n.ints("kernel_shape", ())
    if n[0].rank != w.rank or count < 1:
        raise NodeProblem(f"input of rank {n[0].rank} and weights of rank {w.rank}: both need "
                          "the same rank, 3 or more")
    if kernel and D.is_static(*w.dims[2:]) and tuple(kernel) != tuple(w.dims[2:]):
        raise NodeProblem(f"kernel_shape {list(kernel)} contradicts the weights' shape "
                          f"{list(w.dims)}")
    return count


@importer("Conv")
def conv(c: Context, n: OnnxNode) -> Value:
    x, w = n[0], n[1]
    count = check_kernel(n, w)
    return c.op("convolution", x, w, n.get(2), groups=n.attr("group", 1), **spatial(n, count))


@importer("ConvTranspose")
def conv_transpose(c: Context, n: OnnxNode) -> Value:
    x, w = n[0], n[1]
    count = check_kernel(n, w)
    where = spatial(n, count)
    out_pad = n.ints("output_padding", (0,) * count)
    if "output_shape" in n.attributes:
        where.update(_pads_for(n, x, w, where, out_pad))
    elif where["padding_mode"].startswith("same"):
        shape = []
        for d, s in zip(x.dims[2:], where["stride"], strict=True):
            shape.append(d * s)
        where.update(_pads_for(n, x, w, where, out_pad, shape))
    return c.op("deconvolution", x, w, n.get(2), groups=n.attr("group", 1),
                **{"output_padding": out_pad, **where})


def _pads_for(
    n: OnnxNode, x: Value, w: Value, where: dict[str, Any], out_pad: Any, shape: Any = None
) -> dict[str, Any]:
    """Padding that gives the output the shape asked for."""
    if shape is None:
        shape = n.ints("output_shape")
        count = w.rank - 2
        shape = shape[-count:]
    pre, post, extra = [], [], list(out_pad)
    for i, want in enumerate(shape):
        k = (w.dims[2 + i] - 1) * where["dilation"][i] + 1
        full = (x.dims[2 + i] - 1) * where["stride"][i] + out_pad[i] + k
        total = full - want
        if isinstance(total, D.Dim):
            raise Unsupported(f"output_shape {list(shape)} needs padding that depends on the "
                              f"input's size {list(x.dims)}", "UNSUPPORTED_NODE_DYNAMIC")
        if total < 0:  # the output is longer than the result: zeros go to its end
            extra[i] -= total
            total = 0
        small, large = total // 2, total - total // 2
        upper = where["padding_mode"] == "same_upper"
        pre.append(small if upper else large)
        post.append(large if upper else small)
    return {"pre": tuple(pre), "post": tuple(post), "padding_mode": "explicit_down",
            "output_padding": tuple(extra)}


@importer("DeformConv", since=19)
def deform_conv(c: Context, n: OnnxNode) -> Value:
    x, w = n[0], n[1]
    where = spatial(n, check_kernel(n, w))
    where.pop("padding_mode")
    return c.op("deform_conv", x, w, n[2], n.get(3), n.get(4), groups=n.attr("group", 1),
                offset_groups=n.attr("offset_group", 1), **where)


@importer("ConvInteger", since=10)
def conv_integer(c: Context, n: OnnxNode) -> Value:
    x, w = n[0], n[1]
    return c.op("int_conv", x, w, n.get(2), n.get(3), groups=n.attr("group", 1),
                **spatial(n, check_kernel(n, w)))


@importer("Col2Im", since=18)
def col2im(c: Context, n: OnnxNode) -> Value:
    block = require_ints(n[2], "block_shape")
    pads = n.ints("pads", (0,) * (2 * block.size))
    return c.op("col2im", n[0], c.index(n[1]), c.index(n[2]), pre=pads[: block.size],
                post=pads[block.size:], stride=n.ints("strides", (1,) * block.size),
                dilation=n.ints("dilations", (1,) * block.size))
