"""Which ops may compute in f16 or bf16, and which of their operands change type with them."""

from __future__ import annotations

import enum
from collections.abc import Iterator

import numpy as np

from ..ir.dtypes import DType, bf16, f16, f32
from ..ir.graph import Node, Value

_F16_LARGEST = 65504.0
_F16_SMALLEST = 6.1e-5  # below lie subnormals, which lose digits


class Role(enum.Enum):
    """What an op is to the choice of precisions."""

    ANCHOR = "anchor"  # contractions: worth computing in a narrow type
    FOLLOW = "follow"  # computes in the type of its operands without harm
    MOVE = "move"  # only moves elements: exact in any type
    ANY = "any"  # takes a float of any type, and gives another type
    KEEP = "keep"  # numerically delicate, or without a narrow kernel: stays in f32


# Operands whose type is the result's; None: all.
_ANCHORS: dict[str, tuple[int, ...] | None] = {
    "matmul": (0, 1), "convolution": (0, 1, 2), "deconvolution": (0, 1, 2), "einsum": None,
    "attention": (0, 1, 2, 4, 5),
}
_MOVES: dict[str, tuple[int, ...] | None] = {
    "reshape": (0,), "squeeze": (0,), "unsqueeze": (0,), "identity": (0,), "transpose": (0,),
    "slice": (0, 4), "strided_slice": (0,), "concat": None, "pad": (0, 2), "expand": (0,),
    "tile": (0,), "depth_to_space": (0,), "space_to_depth": (0,), "reverse_sequence": (0,),
    "trilu": (0,), "gather": (0,), "gather_elements": (0,), "gather_nd": (0,),
}
_FOLLOWS: dict[str, tuple[int, ...]] = {
    "activation": (0,), "prelu": (0, 1), "scale": (0, 1, 2, 3), "select": (1, 2),
    "softmax": (0,), "masked_softmax": (0,), "normalization": (0,), "pooling": (0,),
    "resize": (0,), "rotary_embedding": (0,), "unary": (0,), "binary": (0, 1), "reduce": (0,),
}
_ANY = frozenset({"quantize", "shape", "non_zero"})
_UNARY = frozenset("neg abs sigmoid tanh erf sign".split())
_BINARY = frozenset("add sub mul div min max".split())
_REDUCE = frozenset("mean max min".split())


def role(node: Node) -> Role:
    """The role of a node that has f32 operands or results."""
    if node.op in _ANCHORS:
        return Role.ANCHOR
    if node.op in _MOVES:
        return Role.MOVE
    if node.op in _ANY:
        return Role.ANY
    if node.op == "cast":
        return Role.KEEP if node.attrs.to is f32 else Role.ANY
    return Role.FOLLOW if _follows(node) else Role.KEEP


def _follows(node: Node) -> bool:
    fn = getattr(node.attrs, "fn", "")
    if node.op == "unary":
        return fn in _UNARY
    if node.op == "binary":
        # squares overflow f16 early, and are mostly parts of a variance
        return fn in _BINARY and not (fn == "mul" and node.inputs[0] is node.inputs[1])
    if node.op == "reduce":
        return fn in _REDUCE
    if node.op == "pooling":
        return fn in ("max", "average", "max_average_blend")
    return node.op in _FOLLOWS


def carries_range(node: Node) -> bool:
    """Whether a node takes small numbers to small results. Filters do, contractions between
    activations need not."""
    if node.op in _ANCHORS:
        return True
    return node.op in ("unary", "binary", "reduce", "select", "scale", "pooling") or (
        node.op in _MOVES
    )


def data_operands(node: Node) -> Iterator[tuple[int, Value]]:
    """The operands that take the type the node computes in, with their positions."""
    table = {**_ANCHORS, **_MOVES, **_FOLLOWS}
    indices = table.get(node.op)
    for i, v in enumerate(node.inputs):
        if v is not None and v.dtype in (f32, f16, bf16) and (indices is None or i in indices):
            yield i, v


def number_fits(v: Value, to: DType) -> bool:
    """Whether a constant operand keeps its meaning in a narrow type: nothing overflows, and small
    numbers (an epsilon) don't drown in f16's subnormals."""
    assert v.const is not None
    if to is not f16 or not v.const.size:
        return True
    a = np.abs(v.const)
    top = float(a.max())
    return top <= _F16_LARGEST and (top == 0.0 or top >= _F16_SMALLEST)


def why_too_large(v: Value, to: DType) -> str | None:
    """Why constant weights don't fit a narrow type, or None."""
    assert v.const is not None
    if to is not f16 or not v.const.size:
        return None
    top = float(np.abs(v.const).max())
    if not top <= _F16_LARGEST:
        return f"its weights reach {top:.4g}, beyond FP16's {_F16_LARGEST:.0f}"
    if 0 < top < _F16_SMALLEST:
        return f"its weights are all below {top:.2g}, where FP16 loses digits"
    return None
