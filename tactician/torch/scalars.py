"""Numbers that data decide (``tensor.item()``), and what Python computes with them."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import torch

from ..ir import dtypes as T
from ..ir.graph import Value
from .context import Context, Operand
from .table import AtenProblem

aten = torch.ops.aten
SCALARS = {aten._local_scalar_dense.default, aten.item.default}
_BINARY = {operator.add: "add", operator.sub: "sub", operator.mul: "mul", operator.truediv: "div",
           operator.pow: "pow", getattr(torch, "sym_max", max): "max",
           getattr(torch, "sym_min", min): "min"}
_UNARY = {operator.neg: "neg", operator.abs: "abs", math.sqrt: "sqrt", math.exp: "exp",
          math.log: "log", math.floor: "floor", math.ceil: "ceil"}
_UNARY.update({getattr(torch, f"_sym_{n}"): n for n in ("sqrt", "exp", "log", "sin", "cos", "tanh")
               if hasattr(torch, f"_sym_{n}")})


def float_call(c: Context, node: Any, args: Sequence[Any]) -> Value:
    """A call of Python on numbers, whose result is a float, as a scalar of f64.

    Raises:
        AtenProblem: If the function isn't known.
    """
    values = [_wide(c, a) for a in args]
    if node.target is torch.sym_float:
        return values[0]
    if node.target in _BINARY:
        return c.binary(_BINARY[node.target], *values)
    if node.target in _UNARY:
        return c.unary(_UNARY[node.target], *values)
    raise AtenProblem(f"{getattr(node.target, '__name__', node.target)} of a number that depends "
                      "on data or sizes")


def _wide(c: Context, x: Operand) -> Value:
    return c.value(x, T.f64)
