"""What a tile of dot products needs to know of its arithmetic."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from llvmlite import ir


class Products(Protocol):
    """How products of small numbers, several to a lane, are added up.

    Attributes:
        group: Neighbouring k that meet in one lane.
        size: Bytes of an element of the broadcast operand; ``group * size`` is 4.
        acc: Type of a lane of sums.
    """

    @property
    def group(self) -> int: ...

    @property
    def size(self) -> int: ...

    @property
    def acc(self) -> ir.Type: ...

    @property
    def guarded(self) -> bool:
        """Whether operands have to be held against a limit; see `dot_guard`."""

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights for one lane and group."""

    def pack(self, w: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Weights ``[..., columns, group]`` of one group as bytes in the order of `products`."""

    def spread(self, b: ir.IRBuilder, x: ir.Value) -> list[ir.Value]:
        """One group (an i32) in all lanes, as `products` takes it."""

    def weights(self, b: ir.IRBuilder, at: ir.Value) -> list[ir.Value]:
        """The weights of one vector of columns and one group."""

    def products(
        self, b: ir.IRBuilder, acc: ir.Value, x: list[ir.Value], w: list[ir.Value]
    ) -> ir.Value:
        """``acc`` plus the group's products."""
