"""Quick plugins: ``import tactician.plugin as trtp``; see `tactician.network.plugins.quick`."""

from .network.plugins.exprs import KernelLaunchParams
from .network.plugins.quick import aot_impl, autotune, impl, op, register
from .network.plugins.quick_types import (
    AutoTuneCombination,
    Shape,
    ShapeExpr,
    ShapeExprs,
    SizeTensorDesc,
    SizeTensorShapeExpr,
    SymExprs,
    SymInt8,
    SymInt16,
    SymInt32,
    SymIntExprs,
    Tensor,
    TensorDesc,
    cdiv,
    from_shape_expr,
    max,
    min,
    size_tensor,
)

__all__ = [
    "AutoTuneCombination", "KernelLaunchParams", "Shape", "ShapeExpr", "ShapeExprs",
    "SizeTensorDesc", "SizeTensorShapeExpr", "SymExprs", "SymInt8", "SymInt16", "SymInt32",
    "SymIntExprs", "Tensor", "TensorDesc", "aot_impl", "autotune", "cdiv", "from_shape_expr",
    "impl", "max", "min", "op", "register", "size_tensor",
]
