"""Strided deconvolutions as convolutions at the input's resolution.

    'deconvolution(x, w, stride s) => depth_to_space(convolution(x, w by phase), s)'

An output position ``o`` sees, with ``q, r = divmod(o + pre, s)``, the taps ``r, r + s, r + 2 s, …``
at inputs ``q, q - 1, q - 2, …``: one small convolution per phase ``r``, all over the same inputs.
Their results are the channels of one convolution, which the shuffle lays side by side. No zeros
between pixels are ever multiplied, and the convolution kernels do the work.
"""

from __future__ import annotations

import numpy as np

from ..ir.graph import Graph, Node, Value
from ..ops import emit
from ..ops.conv import deconv_axes
from .manager import Pass


class Subpixel(Pass):
    """2-D deconvolutions with equal strides, constant weights and one group."""

    name = "subpixel"

    def run(self, graph: Graph) -> bool:
        changed = False
        for node in list(graph.nodes):
            if node.op == "deconvolution" and _suits(node):
                new = _rewrite(graph, node)
                graph.replace_uses(node.output, new)
                new.name = node.output.name
                new.meta.update(node.output.meta)
                graph.remove(node)
                changed = True
        return changed


def _suits(node: Node) -> bool:
    x, w = node.inputs[0], node.inputs[1]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    assert x is not None and w is not None
    stride = tuple(node.attrs.stride)
    return (
        x.rank == 4
        and w.const is not None
        and (bias is None or bias.const is not None)
        and node.attrs.groups == 1
        and len(stride) == 2
        and stride[0] == stride[1] > 1
        and all(d == 1 for d in node.attrs.dilation)
        and all(isinstance(d, int) and d > 0 for d in (*x.dims[1:], *node.output.dims[1:]))
    )


def _rewrite(graph: Graph, node: Node) -> Value:
    x, w = node.inputs[0], node.inputs[1]
    assert x is not None and w is not None and w.const is not None
    s = node.attrs.stride[0]
    window = w.const.shape[2:]
    axes = deconv_axes(x.dims[2:], window, node.attrs)
    taps = [-(-k // s) for k in window]
    post = []
    for axis, size, out, u in zip(axes, x.dims[2:], node.output.dims[2:], taps, strict=True):
        reach = (int(size) + u - 1) * s  # positions the shuffle yields
        missing = int(out) + int(axis.pre) - reach
        post.append(u - 1 + max(0, -(-missing // s)))
    inputs: list[Value | None] = [x, graph.constant(_phases(w.const, s, taps), w.name)]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None:
        assert bias.const is not None
        inputs.append(graph.constant(np.tile(bias.const, s * s), bias.name))
    pre = tuple(u - 1 for u in taps)
    y = emit(graph, "convolution", inputs, node.name, before=node, source=node.source,
             stride=(1, 1), pre=pre, post=tuple(post)).output
    y = emit(graph, "depth_to_space", [y], f"{node.name} (interleave)", before=node,
             block=s, mode="dcr").output
    starts = [int(a.pre) for a in axes]
    ends = [b + int(d) for b, d in zip(starts, node.output.dims[2:], strict=True)]
    if starts == [0, 0] and tuple(ends) == tuple(y.dims[2:]):
        return y
    ints = [graph.constant(np.array(v, np.int64)) for v in (starts, ends, [2, 3])]
    return emit(graph, "strided_slice", [y, *ints], f"{node.name} (cut)", before=node).output


def _phases(w: np.ndarray, s: int, taps: list[int]) -> np.ndarray:
    """Weights [C, K, kh, kw] as [s * s * K, C, th, tw], phase by phase, taps reversed."""
    c, k = w.shape[:2]
    padded = np.zeros((c, k, taps[0] * s, taps[1] * s), w.dtype)
    padded[:, :, : w.shape[2], : w.shape[3]] = w
    split = padded.reshape(c, k, taps[0], s, taps[1], s)[:, :, ::-1, :, ::-1]
    return np.ascontiguousarray(split.transpose(3, 5, 1, 0, 2, 4)).reshape(
        s * s * k, c, taps[0], taps[1]
    )
