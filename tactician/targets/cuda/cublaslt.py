"""Tactic: matrix products and 1x1 convolutions through cuBLASLt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...ir.graph import Value
from ...ops.conv import conv_axes, kernel_extents
from ...regions.region import Region, is_slice, pitch
from ...tactics.kernel import Kernel, Launch
from ...tactics.tactic import Tactic, register_tactic
from . import cublaslt_call, libraries
from .cublaslt_call import Algorithm, Product
from .patterns import (
    ACC,
    Epilogue,
    NotCovered,
    Operand,
    Tree,
    logical,
    number,
    read_epilogue,
    static,
    terms,
)

_WORKSPACE = 32 << 20
_MOST = 6  # algorithms offered for each way of storing the weights
_FLOATS = ("f16", "bf16", "f32", "f64")
_F8 = ("f8e4m3", "f8e5m2")


@dataclass(frozen=True)
class Choice:
    """One way cuBLASLt can run a region.

    Attributes:
        turned: Whether constant weights are stored ``[n, k]`` rather than ``[k, n]``.
        index: Place in the heuristic's list; -1: the heuristic is asked when the plan is loaded.
        version: cuBLASLt's, which gives the list its meaning.
    """

    turned: bool
    index: int
    version: int

    def __str__(self) -> str:
        order = "nk" if self.turned else "kn"
        return f"{order} {self.index if self.index >= 0 else 'at load'} v{self.version}"


@dataclass(frozen=True)
class Matrix:
    """An operand of a product as stored.

    Attributes:
        value: The operand (a channels-last twin for convolutions).
        turned: Whether it is stored with the inner extent first (A) or last (B).
        ld: Elements from row to row.
        stride: Elements from matrix to matrix of the batch; 0: all use the same.
    """

    value: Value
    turned: bool
    ld: int
    stride: int = 0


class Problem:
    """A region as one product, or as a batch of them.

    Raises:
        NotCovered: If it is none that cuBLASLt does.
    """

    def __init__(self, region: Region):
        node = region.anchor
        if node is None:
            raise NotCovered("not a matrix product")
        self.region, self.node = region, node
        self.bias: Operand | None = None
        if node.op in ("matmul", "int_matmul"):
            self._matmul()
        elif node.op == "convolution":
            self._convolution()
        else:
            raise NotCovered("not a matrix product")
        if min(self.m, self.n, self.k, self.batch) < 1:
            raise NotCovered("an extent is zero")
        self.e = read_epilogue(region, self.bias)
        self._finish()

    # --- operands ----------------------------------------------------------------------------

    def _matmul(self) -> None:
        node = self.node
        va, vb = node.inputs[:2]
        assert va is not None and vb is not None
        if any(v is not None for v in node.inputs[2:]):
            raise NotCovered("has zero points")
        if va.rank < 2 or vb.rank < 2 or "vector" in (node.attrs.ta, node.attrs.tb):
            raise NotCovered("a product with a vector")
        a_dims, b_dims = static(va.dims, "a"), static(vb.dims, "b")
        ta, tb = node.attrs.ta == "transpose", node.attrs.tb == "transpose"
        self.m, self.k = a_dims[-2:][::-1] if ta else a_dims[-2:]
        self.n = b_dims[-2] if tb else b_dims[-1]
        lda, ldb = int(pitch(va)), int(pitch(vb))  # type: ignore[arg-type]
        batch = static(node.outputs[0].dims[:-2], "the result")
        self.batch = math.prod(batch)
        one_b = all(d == 1 for d in b_dims[:-2])
        folds = one_b and not ta and (self.batch == 1 or math.prod(a_dims[:-2]) == self.batch)
        if folds:
            # rows of all batches lie behind each other
            self.m, self.batch = self.m * self.batch, 1
            self.a, self.b = Matrix(va, ta, lda), Matrix(vb, tb, ldb)
        else:
            self.a = Matrix(va, ta, lda, self._stride(a_dims, batch, lda))
            self.b = Matrix(vb, tb, ldb, self._stride(b_dims, batch, ldb))
        self.folded = folds
        self.rank = len(node.outputs[0].dims)

    @staticmethod
    def _stride(dims: tuple[int, ...], batch: tuple[int, ...], ld: int) -> int:
        own = dims[:-2]
        if all(d == 1 for d in own):
            return 0
        if math.prod(own) != math.prod(batch) or (1,) * (len(batch) - len(own)) + own != batch:
            raise NotCovered("some batch dimensions are broadcast and some not")
        return dims[-2] * ld

    def _convolution(self) -> None:
        node, physical = self.node, self.region.physical
        x, w = node.inputs[:2]
        assert x is not None and w is not None
        bias = (*node.inputs, None)[2]
        axes = conv_axes(x.dims[2:], kernel_extents(w), node.attrs)
        plain = node.attrs.groups == 1 and all(
            (t.window, t.stride, t.pre, t.post) == (1, 1, 0, 0) for t in axes
        )
        if not plain:
            raise NotCovered("not a 1x1 convolution with stride 1")
        dims, y = static(x.dims, "the input"), node.outputs[0]
        sx = physical.get(x, x)
        for v in (sx, *self.region.outputs):
            if "logical" not in v.meta and any(d != 1 for d in logical(v).dims[2:]):
                raise NotCovered("operands are not stored channels-last")
        self.m, self.k = math.prod(dims) // dims[1], dims[1]
        self.n, self.batch, self.folded, self.rank = int(y.dims[1]), 1, True, len(dims)  # type: ignore
        ld = int(pitch(sx)) if "logical" in sx.meta else self.k  # type: ignore[arg-type]
        self.a, self.b = Matrix(sx, False, ld), Matrix(w, True, self.k)
        if bias is not None:
            along = tuple(self.n if d == 1 else 1 for d in range(self.rank))
            self.bias = Operand(bias, along, tuple(int(d == 1) for d in range(self.rank)))

    # --- epilogue ----------------------------------------------------------------------------

    def _finish(self) -> None:
        e, d = self.e, self.e.out.dtype.name
        t: Tree = e.tree
        integer = self.a.value.dtype.name == "i8"
        if t[0] == "saturate" and integer and d == "i8" and t[1][0] == "round":
            t = t[1][1]
        elif integer and d != "i32":
            raise NotCovered("sums of integers are scaled")
        self._types(d)
        act = ""
        if t[0] in ("relu", "gelu_tanh", "gelu_erf"):
            act, t = t[0][:4], t[1]
            # cuBLASLt's GELU is the tanh form: no further from erf's than rounding to 16 bits
            if e.tree[0] == "gelu_erf" and d not in ("f16", "bf16"):
                raise NotCovered("GELU by erf in f32")
        parts = terms(t)
        alpha = 1.0
        if parts is None:
            t, alpha, parts = self._scaled(t)
        self.residual: Operand | None = None
        self.bias_operand: Operand | None = None
        for x in parts[1:]:
            self._add(x)
        if integer and (act or parts[1:]):
            raise NotCovered("an epilogue on integers")
        names = [n for n, on in ((act, act), ("bias", self.bias_operand)) if on]
        lda, ldb = self.a.ld, self.b.ld
        self.product = Product(
            self.m, self.n, self.k, self.a.value.dtype.name, self.b.value.dtype.name, d,
            lda, ldb, self._row(e.out), ta=self.a.turned, tb=self.b.turned, batch=self.batch,
            stride_a=self.a.stride, stride_b=self.b.stride,
            stride_d=self.m * self._row(e.out), alpha=alpha, epilogue="_".join(names),
            add=self.residual is not None,
        )
        if self.residual is not None:
            row = self._row(self.residual.value)
            self.product = replace(self.product, ldc=row, stride_c=self.m * row)

    def _scaled(self, t: Tree) -> tuple[Tree, float, list[Tree]]:
        """alpha * sums, plus what is added."""
        if t[0] == "mul" and t[1] == ACC and number(t[2]) is not None:
            return t, float(t[2][1]), [ACC]
        if t[0] == "add":
            _, alpha, parts = self._scaled(t[1])
            return t, alpha, [*parts, t[2]]
        raise NotCovered(f"cuBLASLt has no epilogue for {t[0]}")

    def _types(self, d: str) -> None:
        a, b = self.a.value.dtype.name, self.b.value.dtype.name
        floats = a == b and a in _FLOATS and d == a
        wide = a == b and a in ("f16", "bf16") and d == "f32"
        f8 = a in _F8 and b in _F8 and d in ("f16", "bf16", "f32") and "f8e4m3" in (a, b)
        i8 = (a, b) == ("i8", "i8") and d in ("i32", "i8")
        if not (floats or wide or f8 or i8):
            raise NotCovered(f"no product of {a} and {b} in {d}")
        if f8 or i8:
            if self.a.turned or not (self.b.turned or self.b.value.const is not None):
                raise NotCovered("8-bit operands must both have the inner extent last")
            if self.k % 16 or self.n % 16:
                raise NotCovered("8-bit products need extents that are multiples of 16")

    def _add(self, x: Tree) -> None:
        if x[0] != "in":
            raise NotCovered(f"cuBLASLt doesn't add {x[0]}")
        o = self.e.operands[x[1]]
        channel = 1 if self.node.op == "convolution" else self.rank - 1
        shape = self.e.result
        if o.value.dtype is not self.e.out.dtype and o.value.const is None:
            raise NotCovered(f"adds {o.value.dtype} to a result of {self.e.out.dtype}")
        if o.dims == shape and sum(d > 1 for d in shape) > 1 and self.residual is None:
            if o.value.dtype is not self.e.out.dtype:
                raise NotCovered("adds a constant of another type")
            self._same_order(o)
            self.residual = o
        elif self.bias_operand is None and all(
            d == (self.n if k == channel else 1) for k, d in enumerate(o.dims)
        ):
            self.bias_operand = o
        else:
            raise NotCovered("adds something else than a bias along columns and one residual")

    def _same_order(self, o: Operand) -> None:
        last = "logical" in self.e.out.meta
        if last != ("logical" in o.value.meta) and any(d != 1 for d in self.e.result[2:]):
            raise NotCovered("the residual is stored in another layout")
        if len(o.value.dims) != self.rank:
            raise NotCovered("the residual has another rank")

    def _row(self, v: Value) -> int:
        """Elements from row to row of the result or the residual."""
        if self.node.op == "convolution" and "logical" not in v.meta:
            return self.n
        if is_slice(v) and not self.folded:
            raise NotCovered("a batch of results inside another value")
        return int(pitch(v))  # type: ignore[arg-type]

    # --- the product as it is called ---------------------------------------------------------

    def stored(self, turned: bool) -> Product:
        """The product with constant weights stored ``[n, k]`` or ``[k, n]``."""
        if self.b.value.const is None or turned == self.b.turned:
            return self.product
        ld = self.k if turned else self.n
        stride = self.k * self.n if self.b.stride else 0
        return replace(self.product, tb=turned, ldb=ld, stride_b=stride)

    def arguments(self, turned: bool) -> list[Value | np.ndarray[Any, Any]]:
        """What the call's pointers are, in order."""
        args: list[Value | np.ndarray[Any, Any]] = [self.a.value, self._weights(turned)]
        if self.residual is not None:
            args.append(self.residual.value)
        if self.bias_operand is not None:
            v = self.bias_operand.value
            if v.const is not None and v.dtype is not self.e.out.dtype:
                args.append(np.asarray(v.const).astype(self.e.out.dtype.np).reshape(-1))
            else:
                args.append(v)
        return [*args, self.e.out]

    def _weights(self, turned: bool) -> Value | np.ndarray[Any, Any]:
        const = self.b.value.const
        if const is None:
            return self.b.value
        w = np.asarray(const)
        if self.node.op == "convolution":
            w = w.reshape(self.n, self.k)
        if turned != self.b.turned:
            w = w.swapaxes(-1, -2)
        return np.ascontiguousarray(w)

    @property
    def epilogue(self) -> Epilogue:
        return self.e


def _usable(device: Any) -> str | None:
    if getattr(device, "mode", ""):
        return "library calls run on a GPU only"
    return libraries.unavailable("cublaslt")


@register_tactic
class CublasLt(Tactic):
    """Products with bias, residual, ReLU or GELU by NVIDIA's GEMM kernels."""

    name = "cublaslt"
    target = "cuda"
    source = "CUBLAS_LT"
    priority = 65

    def wants_channels_last(self, region: Region, device: Any) -> bool:
        node = region.anchor
        if node is None or node.op != "convolution" or _usable(device) is not None:
            return False
        w = node.inputs[1]
        assert w is not None
        return node.attrs.groups == 1 and all(d == 1 for d in w.dims[2:]) and all(
            s == 1 for s in node.attrs.stride
        )

    def refuse(self, region: Region, device: Any) -> str | None:
        reason = _usable(device)
        if reason is not None:
            return reason
        try:
            p = Problem(region)
        except NotCovered as e:
            return str(e)
        if device.libraries and not self._found(p, device):
            return "cuBLASLt has no algorithm for it"
        return None

    def candidates(self, region: Region, device: Any) -> Sequence[Choice]:
        p = Problem(region)
        version = libraries.version("cublaslt")
        if not device.libraries:
            return [Choice(self._turned(p)[0], -1, version)]
        found = self._found(p, device)
        longest = max(map(len, found.values()))
        return [
            Choice(t, i, version) for i in range(longest) for t in found if i < len(found[t])
        ]

    @staticmethod
    def _turned(p: Problem) -> list[bool]:
        """Ways of storing the weights worth trying: constants may lie either way."""
        if p.b.value.const is None:
            return [p.b.turned]
        if p.product.a in ("i8", *_F8):
            return [True]
        return [True, False]

    def _found(self, p: Problem, device: Any) -> dict[bool, tuple[Algorithm, ...]]:
        out = {}
        for turned in self._turned(p):
            product = replace(p.stored(turned), tf32=bool(device.tf32))
            found = cublaslt_call.algorithms(product, _WORKSPACE, _MOST)
            if found:
                out[turned] = found
        return out

    def build(self, region: Region, candidate: Choice, device: Any) -> Kernel:
        p = Problem(region)
        product = replace(p.stored(candidate.turned), tf32=bool(device.tf32))
        algorithm, workspace = None, _WORKSPACE
        if candidate.index >= 0:
            found = cublaslt_call.algorithms(product, _WORKSPACE, _MOST)
            algorithm = found[candidate.index]
            workspace = algorithm.workspace
        return Kernel(
            "cublaslt", "", tuple(p.arguments(candidate.turned)),
            flops=2 * p.batch * p.m * p.n * p.k,
            launch=Launch(
                library="cublaslt", workspace=workspace,
                payload=cublaslt_call.payload(product, algorithm, workspace),
            ),
        )
