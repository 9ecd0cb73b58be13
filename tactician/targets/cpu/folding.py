"""A builder that leaves out what needs no instruction.

LLVM would do the same, but reading and simplifying such instructions takes it, and writing them
takes Python, a good part of the time that a kernel takes to compile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir


class FoldingBuilder(ir.IRBuilder):  # type: ignore[misc]
    """An `IRBuilder` that computes with integers it knows: sums and products of constants, and
    those with 0 and 1; addresses at distance 0."""

    def add(self, lhs: Any, rhs: Any, name: str = "", flags: Sequence[str] = ()) -> Any:
        x, y = _known(lhs), _known(rhs)
        if x is not None and y is not None:
            return ir.Constant(lhs.type, x + y)
        if x == 0:
            return rhs
        return lhs if y == 0 else super().add(lhs, rhs, name, flags)

    def sub(self, lhs: Any, rhs: Any, name: str = "", flags: Sequence[str] = ()) -> Any:
        x, y = _known(lhs), _known(rhs)
        if x is not None and y is not None:
            return ir.Constant(lhs.type, x - y)
        return lhs if y == 0 else super().sub(lhs, rhs, name, flags)

    def mul(self, lhs: Any, rhs: Any, name: str = "", flags: Sequence[str] = ()) -> Any:
        x, y = _known(lhs), _known(rhs)
        if x is not None and y is not None:
            return ir.Constant(lhs.type, x * y)
        for factor, other in ((x, rhs), (y, lhs)):
            if factor == 1:
                return other
            if factor == 0:
                return ir.Constant(lhs.type, 0)
        return super().mul(lhs, rhs, name, flags)

    def gep(
        self, ptr: Any, indices: Sequence[Any], inbounds: bool = False, name: str = "",
        source_etype: Any = None,
    ) -> Any:
        if source_etype is not None and len(indices) == 1 and _known(indices[0]) == 0:
            return ptr
        return super().gep(ptr, indices, inbounds, name, source_etype)


def _known(x: Any) -> int | None:
    """A scalar integer constant, small enough that sums and products of two don't wrap."""
    if type(x) is not ir.Constant or not isinstance(x.constant, int):
        return None
    value = x.constant
    return value if isinstance(x.type, ir.IntType) and x.type.width == 64 and abs(value) < 1 << 31 \
        else None
