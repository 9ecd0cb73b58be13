"""torch's element types, tensors and symbolic integers as ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ..ir import dims as D
from ..ir import dtypes as T
from ..ir.dtypes import DType
from .table import AtenProblem

_DTYPES: dict[torch.dtype, DType] = {
    torch.float32: T.f32, torch.float16: T.f16, torch.bfloat16: T.bf16, torch.float64: T.f64,
    torch.int64: T.i64, torch.int32: T.i32, torch.int16: T.i16, torch.int8: T.i8,
    torch.uint8: T.u8, torch.bool: T.b1, torch.uint16: T.u16, torch.uint32: T.u32,
    torch.uint64: T.u64,
}  # fmt: skip
_TORCH = {ours: theirs for theirs, ours in _DTYPES.items()}


def dtype_of(dt: torch.dtype) -> DType:
    """Our element type; that of the parts for complex numbers.

    Raises:
        AtenProblem: If there is none.
    """
    try:
        return _DTYPES[dt.to_real() if dt.is_complex else dt]
    except KeyError:
        raise AtenProblem(f"element type {dt} is not supported") from None


def torch_dtype(dt: DType) -> torch.dtype:
    """torch's element type for ours."""
    return _TORCH[dt]


def to_numpy(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """A tensor as an array; the memory is shared where the tensor is a contiguous CPU tensor."""
    dt = dtype_of(tensor.dtype)
    t = tensor.detach().cpu().contiguous()
    if t.dtype is torch.bfloat16:
        return t.view(torch.int16).numpy().view(dt.np)
    return t.numpy()


def from_numpy(array: np.ndarray[Any, Any], dt: DType) -> torch.Tensor:
    """An array as a tensor that shares its memory."""
    if dt is T.bf16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


Known = Mapping[str, D.DimLike]
_NOTHING: Known = {}


def to_dim(x: Any, known: Known = _NOTHING) -> D.DimLike:
    """An ``int`` or ``SymInt`` as a dimension.

    Args:
        known: What torch's symbols of sizes that depend on data are, by name.

    Raises:
        AtenProblem: If its expression depends on other data or uses a function dimensions lack.
    """
    if not isinstance(x, torch.SymInt):
        return int(x)
    return from_sympy(x.node.expr, known)


def from_sympy(e: Any, known: Known = _NOTHING) -> D.DimLike:
    """A sympy integer expression as a dimension (see `to_dim`)."""
    if e.is_Integer:
        return int(e)
    if e.is_Symbol:
        if e.name in known:
            return known[e.name]
        if e.name.startswith("u"):
            raise AtenProblem(f"size {e.name} depends on the data of a tensor")
        return D.sym(e.name)
    kind = type(e).__name__
    if e.is_Pow and e.exp.is_Integer and e.exp > 0:
        return D.product([from_sympy(e.base, known)] * int(e.exp))
    args = [] if e.is_Pow else [from_sympy(a, known) for a in e.args]
    if e.is_Add:
        total: D.DimLike = 0
        for a in args:
            total = total + a
        return total
    if e.is_Mul:
        return D.product(args)
    two = {"FloorDiv": D.floor_div, "CleanDiv": D.floor_div, "Mod": D.modulo,
           "PythonMod": D.modulo}
    if kind in two:
        return two[kind](*args)
    if kind == "CeilDiv" or kind == "CeilToInt":
        return D.ceil_div(*args) if len(args) == 2 else args[0]
    if kind in ("Max", "Min"):
        return (D.dim_max if kind == "Max" else D.dim_min)(*args)
    raise AtenProblem(f"size {e} uses {kind}, which sizes can't hold")
