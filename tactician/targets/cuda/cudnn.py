"""Tactics: convolutions and transposed convolutions with fused epilogues through cuDNN."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...ir import dims as D
from ...ir.graph import Value
from ...ops.conv import conv_axes, deconv_axes, kernel_extents
from ...regions.region import Region, pitch
from ...tactics.kernel import Kernel, Launch
from ...tactics.tactic import Tactic, register_tactic
from . import cudnn_call, cudnn_ops, libraries
from .cudnn_graph import GraphSpec
from .patterns import (
    Epilogue,
    NotCovered,
    Operand,
    logical,
    logical_strides,
    read_epilogue,
    static,
)

_AHEAD = 8  # candidates of a region compiled ahead of being asked for
_FLOATS = ("f16", "bf16", "f32")


@dataclass(frozen=True)
class Choice:
    """One way cuDNN can run a region.

    Attributes:
        first: What is added to the sums first: ``bias`` or ``residual``.
        index: Place in the heuristics' list.
        version: cuDNN's, which gives the list its meaning.
    """

    first: str
    index: int
    version: int

    def __str__(self) -> str:
        return f"{self.first} {self.index} v{self.version}"


def channels_last(dims: Sequence[int], pixel: int) -> tuple[int, ...]:
    """Strides of (N, C, spatial…) stored channels-last with ``pixel`` elements per position."""
    strides = [0] * len(dims)
    strides[1], step = 1, pixel
    for d in (*range(len(dims) - 1, 1, -1), 0):
        strides[d] = step
        step *= dims[d]
    return tuple(strides)


def _square(values: Sequence[Any], fill: Any) -> tuple[Any, ...]:
    """Spatial attributes of at least two dimensions: cuDNN has no 1-D convolutions."""
    return (*(fill,) * (2 - len(values)), *values)


def _spread(values: Sequence[int], fill: int) -> tuple[int, ...]:
    """(N, C, W) as (N, C, 1, W)."""
    return (*values[:2], fill, *values[2:]) if len(values) == 3 else tuple(values)


class Problem:
    """A convolution region as cuDNN sees it.

    Raises:
        NotCovered: If it is none cuDNN is asked to do.
    """

    def __init__(self, region: Region):
        node = region.anchor
        if node is None or node.op not in ("convolution", "deconvolution", "int_conv"):
            raise NotCovered("not a convolution")
        self.region, self.node = region, node
        x, w = node.inputs[:2]
        assert x is not None and w is not None
        self.x, self.w = x, w
        if w.const is None:
            raise NotCovered("needs constant weights")
        if len(x.dims) > 5:
            raise NotCovered("has more than three spatial dimensions")
        self.transposed = node.op == "deconvolution"
        self.integer = node.op == "int_conv"
        self._types()
        self.bias = None if self.integer else (*node.inputs, None)[2]
        self.x_dims = static(x.dims, "the input")
        self.y_dims = static(node.outputs[0].dims, "the result")
        self._geometry()

    def _types(self) -> None:
        names = (self.x.dtype.name, self.w.dtype.name)
        if self.integer:
            zeros = [v for v in self.node.inputs[2:] if v is not None]
            if names != ("i8", "i8") or zeros:
                raise NotCovered("cuDNN takes i8 without zero points only")
        elif names[0] != names[1] or names[0] not in _FLOATS:
            raise NotCovered(f"no convolution of {names[0]} with {names[1]}")

    def _geometry(self) -> None:
        a, w, x = self.node.attrs, self.w, self.x
        axes = (deconv_axes if self.transposed else conv_axes)(x.dims[2:], kernel_extents(w), a)
        pre = static([t.pre for t in axes], "padding")
        post = static([t.post for t in axes], "padding")
        if min((*pre, *post), default=0) < 0:
            raise NotCovered("negative padding")
        self.attrs = {
            "stride": _square([t.stride for t in axes], 1),
            "dilation": _square([t.dilation for t in axes], 1),
            "pre": _square(pre, 0),
            "post": _square(post, 0),
        }
        self.groups = a.groups
        if self.transposed and self.groups > 1:
            raise NotCovered("grouped transposed convolution")

    def stored_last(self, v: Value) -> bool:
        """Whether a value with logical (N, C, spatial…) has neighbouring channels."""
        plain = logical(v)
        if "logical" in v.meta or plain.dims[1] == 1:
            return True
        return all(d == 1 for d in plain.dims[2:])

    def strides(self, v: Value) -> tuple[int, ...]:
        """Strides by logical dimensions, of four or five of them."""
        dims = _spread(static(logical(v).dims, "an operand"), 1)
        if not self.stored_last(v):
            return _spread(logical_strides(v), 0)
        pixel = int(pitch(v)) if "logical" in v.meta else dims[1]  # type: ignore[arg-type]
        return channels_last(dims, pixel)

    def epilogue(self) -> Epilogue:
        bias = None
        if self.bias is not None:
            rank = len(self.y_dims)
            dims = tuple(self.y_dims[1] if d == 1 else 1 for d in range(rank))
            bias = Operand(self.bias, dims, tuple(int(d == 1) for d in range(rank)))
        return read_epilogue(self.region, bias)

    def weights(self) -> np.ndarray[Any, Any]:
        """Weights as cuDNN reads them: the window between output and input channels."""
        w = np.asarray(self.w.const)
        return np.ascontiguousarray(np.moveaxis(w, 1, -1))

    def graph(self, first: str) -> tuple[GraphSpec, list[Value | np.ndarray[Any, Any]]]:
        """The operation graph and what its pointers are.

        Args:
            first: See `Choice`.

        Raises:
            NotCovered: If the epilogue has something that cuDNN doesn't.
        """
        e = self.epilogue()
        x = self.region.physical.get(self.x, self.x)
        g = GraphSpec(compute="i32" if self.integer else "f32")
        dtype = self.x.dtype.name
        y_dims = _spread(self.y_dims, 1)
        tx = g.tensor(dtype, _spread(self.x_dims, 1), self.strides(x))
        w_dims = _spread(static(self.w.dims, "weights"), 1)
        tw = g.tensor(dtype, w_dims, channels_last(w_dims, w_dims[1]))
        y_strides = self.strides(e.out)
        acc = g.tensor(g.compute, y_dims, channels_last(y_dims, y_dims[1]), virtual=True)
        g.op("dgrad" if self.transposed else "conv", (tx, tw), acc, **self.attrs)
        operands = [self._operand(g, o, y_dims) for o in e.operands]
        tree = cudnn_ops.result_tree(e, e.out.dtype.name)
        tree = cudnn_ops.reorder(tree, [o.dims for o in e.operands], first)
        writer = cudnn_ops.Writer(g, acc, y_dims, g.find(acc).strides, operands)
        out = writer.emit(tree)
        if out in operands:
            raise NotCovered("the result is an operand")
        cudnn_ops.seal(g, out, e.out.dtype.name, y_strides)
        g.pointers = [tx, tw, *operands, out]
        args: list[Value | np.ndarray[Any, Any]] = [x, self.weights()]
        args += [*(o.value for o in e.operands), e.out]
        return g, args

    def _operand(self, g: GraphSpec, o: Operand, y_dims: tuple[int, ...]) -> int:
        dims = _spread(o.dims, 1)
        strides = list(_spread(o.strides, 0))
        if dims == y_dims and o.value.rank == len(self.y_dims) and self.stored_last(o.value):
            strides = list(self.strides(o.value))
        elif dims[1] == D.product(dims):  # by channel
            strides = list(channels_last(dims, dims[1]))
        if o.value.dtype.name not in (*_FLOATS, "i8", "i32"):
            raise NotCovered(f"an operand of type {o.value.dtype}")
        return g.tensor(o.value.dtype.name, dims, strides)


def _variants(p: Problem) -> list[str]:
    """Orders of the epilogue's additions that differ."""
    e = p.epilogue()
    full = [o for o in e.operands if sum(d > 1 for d in o.dims) > 1]
    return ["residual", "bias"] if full and len(e.operands) > len(full) else ["bias"]


@register_tactic
class CudnnConvolution(Tactic):
    """Convolution, bias, residual and activation in one of cuDNN's kernels."""

    name = "cudnn_conv"
    target = "cuda"
    source = "CUDNN"
    priority = 70

    def wants_channels_last(self, region: Region, device: Any) -> bool:
        try:
            p = Problem(region)
        except NotCovered:
            return False
        return cudnn_call.usable(device) is None and not isinstance(p.x.dims[1], D.Dim)

    def refuse(self, region: Region, device: Any) -> str | None:
        reason = cudnn_call.usable(device)
        if reason is not None:
            return reason
        try:
            p = Problem(region)
            if 1 < p.groups == p.x_dims[1] == p.y_dims[1]:
                return "depthwise convolutions are slow in cuDNN"  # up to 50 times their floor
            x = region.physical.get(p.x, p.x)
            if not p.stored_last(x) or not all(map(p.stored_last, region.outputs)):
                return "operands are not stored channels-last"
            planner = cudnn_call.planner_for(device)
            for first in _variants(p):
                graph, _ = p.graph(first)
                if planner.configs(graph, device.tf32):
                    return None
        except (NotCovered, libraries.LibraryError) as e:
            return str(e)
        return "cuDNN has no engine for it"

    def candidates(self, region: Region, device: Any) -> Sequence[Choice]:
        p = Problem(region)
        version = libraries.version("cudnn")
        planner = cudnn_call.planner_for(device)
        lists = []
        for first in _variants(p):
            count = len(planner.configs(p.graph(first)[0], device.tf32))
            lists.append([Choice(first, i, version) for i in range(count)])
        longest = max(map(len, lists))
        return [c[i] for i in range(longest) for c in lists if i < len(c)]

    def build(self, region: Region, candidate: Choice, device: Any) -> Kernel:
        p = Problem(region)
        graph, args = p.graph(candidate.first)
        planner = cudnn_call.planner_for(device)
        if device.can_time and candidate.index == 1:
            # the second of a list: more of it will be measured
            variants = _variants(p)
            for first in variants:
                other = p.graph(first)[0]
                count = min(len(planner.configs(other, device.tf32)), _AHEAD // len(variants))
                planner.ahead(other, range(1, count), device.tf32)
        attempt = device.attempt if device.libraries else None
        payload, workspace = planner.payload(graph, candidate.index, device.tf32, attempt)
        taps = int(np.prod(static(p.w.dims[2:], "the window"), dtype=np.int64))
        points = p.x_dims if p.transposed else p.y_dims
        flops = 2 * int(np.prod(points)) * int(p.w.dims[1]) * taps  # type: ignore[arg-type]
        return Kernel(
            "cudnn_conv", "", tuple(args), flops=flops,
            launch=Launch(library="cudnn", payload=payload, workspace=workspace),
        )
