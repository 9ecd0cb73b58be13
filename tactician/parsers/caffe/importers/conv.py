"""Convolutions and inner products."""

from __future__ import annotations

from typing import Any

import numpy as np

from ....ir.dtypes import i64
from ....ir.graph import Value
from ....network.values import Dims
from ..context import Context
from ..errors import LayerProblem
from ..node import CaffeLayer
from ..table import importer


def _windows(n: CaffeLayer) -> tuple[Any, dict[str, Any]]:
    """The layer's parameters and the attributes that both kinds of convolutions take."""
    p = n.proto.convolution_param
    if not p.num_output:
        raise LayerProblem("convolution_param needs num_output, at least 1")
    if n.axis(p.axis) != 1:
        raise LayerProblem(f"axis is {p.axis}; only convolutions over dimension 1 are supported: "
                           "permute the blob first")
    count = n[0].rank - 2
    if count < 1:
        raise LayerProblem(f"its bottom has {n[0].rank} dimensions; a convolution needs (num, "
                           "channels, spatial…)")
    kernel = n.spatial(p, "kernel_size", count, None)
    if not p.group or p.num_output % p.group or n.size(1, "group") % p.group:
        raise LayerProblem(f"{n.size(1, 'group')} channels and num_output {p.num_output} can't "
                           f"be split into {p.group} groups; both must be multiples of group")
    return p, {"kernel": kernel, "stride": n.spatial(p, "stride", count, 1),
               "pad": n.spatial(p, "pad", count, 0),
               "dilation": n.spatial(p, "dilation", count, 1)}


def _convolve(c: Context, n: CaffeLayer, method: str, p: Any, w: dict[str, Any],
              group: int, shape: tuple[int, ...]) -> Value:
    kernel = n.blob(0, shape, "weights")
    bias = n.blob(1, (p.num_output,), "bias") if p.bias_term else None
    return c.layer(method, n[0], num_output_maps=p.num_output, kernel_shape=w["kernel"],
                   kernel=kernel, bias=bias,
                   then={"stride_nd": Dims(w["stride"]), "padding_nd": Dims(w["pad"]),
                         "dilation_nd": Dims(w["dilation"]), "num_groups": group})


@importer("Convolution", does="convolution",
          notes="any number of spatial dimensions; groups, dilation; axis 1 only")
def convolution(c: Context, n: CaffeLayer) -> Value:
    p, w = _windows(n)
    shape = (p.num_output, n.size(1, "its weights") // p.group, *w["kernel"])
    return _convolve(c, n, "add_convolution_nd", p, w, p.group, shape)


@importer("ConvolutionDepthwise", "DepthwiseConvolution",
          does="convolution of each channel by itself")
def depthwise(c: Context, n: CaffeLayer) -> Value:
    p, w = _windows(n)
    channels = n.size(1, "its weights")
    if p.num_output % channels:
        raise LayerProblem(f"num_output {p.num_output} must be a multiple of the {channels} "
                           "channels")
    return _convolve(c, n, "add_convolution_nd", p, w, channels,
                     (p.num_output, 1, *w["kernel"]))


@importer("Deconvolution", does="transposed convolution", notes="as Convolution")
def deconvolution(c: Context, n: CaffeLayer) -> Value:
    p, w = _windows(n)
    shape = (n.size(1, "its weights"), p.num_output // p.group, *w["kernel"])
    return _convolve(c, n, "add_deconvolution_nd", p, w, p.group, shape)


@importer("InnerProduct", does="matrix product with the dimensions from `axis` on, flattened",
          notes="the result has Caffe's shape (num, num_output)")
def inner_product(c: Context, n: CaffeLayer) -> Value:
    p, x = n.proto.inner_product_param, n[0]
    if not p.num_output:
        raise LayerProblem("inner_product_param needs num_output, at least 1")
    axis = n.axis(p.axis)
    c.refuse_batch(axis, "an inner product")
    inner = 1
    for i in range(axis, x.rank):
        inner *= n.size(i, "its weights")
    shape = (inner, p.num_output) if p.transpose else (p.num_output, inner)
    kernel = n.blob(0, shape, "weights")
    if p.transpose:
        kernel = np.ascontiguousarray(kernel.T)
    bias = n.blob(1, (p.num_output,), "bias") if p.bias_term else None
    if axis == 1 and x.rank in (2, 4):
        if x.rank == 2:
            x = c.reshape(x, (0, inner, 1, 1))
        y = c.layer("add_fully_connected", x, num_outputs=p.num_output, kernel=kernel, bias=bias)
        return c.reshape(y, (0, p.num_output))
    flat = c.flatten(x, axis, x.rank - 1)
    y = c.op("matmul", flat, c.weights(kernel, "kernel"), ta="none", tb="transpose")
    return y if bias is None else c.binary("add", y, c.weights(bias, "bias"))


@importer("Embed", does="rows of a matrix by number")
def embed(c: Context, n: CaffeLayer) -> Value:
    p = n.proto.embed_param
    if not (p.num_output and p.input_dim):
        raise LayerProblem("embed_param needs num_output and input_dim")
    table = c.weights(n.blob(0, (p.input_dim, p.num_output), "weights"), "kernel")
    y = c.op("gather", table, c.op("cast", n[0], to=i64, saturate=False), axis=0)
    if p.bias_term:
        y = c.binary("add", y, c.weights(n.blob(1, (p.num_output,), "bias"), "bias"))
    return y
