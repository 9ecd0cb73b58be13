"""Elements along one axis of a tensor, and other text that the search kernels share.

Ops whose elements depend on their neighbours along an axis (top-k, running sums, …) see a tensor
as *lines*: element ``j`` of line ``row`` lies at ``base(row) + j * inner``.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from ...ir import dims as D
from ...ir import dtypes as T
from ...ir.dims import DimLike
from ...ir.dtypes import DType
from ...ir.graph import Value
from ...tactics.kernel import Kernel, Launch
from . import types as ty
from .emit import Frame


@dataclass(frozen=True)
class Lines:
    """A tensor's lines along an axis.

    Attributes:
        count: Lines.
        length: Elements of each.
        inner: Elements between neighbours of a line.
    """

    count: DimLike
    length: DimLike
    inner: DimLike

    @staticmethod
    def along(v: Value, axis: int) -> Lines:
        """Lines of a row-major tensor."""
        dims = v.dims
        inner = D.product(dims[axis + 1 :])
        return Lines(D.product(dims[:axis]) * inner, dims[axis], inner)

    def base(self, frame: Frame, row: str) -> str:
        """Text of the place of a line's first element."""
        size = frame.size
        if self.inner == 1:
            return f"({row}) * {size(self.length)}"
        inner = size(self.inner)
        return f"(({row}) // {inner} * {size(self.length * self.inner)} + ({row}) % {inner})"

    def step(self, frame: Frame, j: str) -> str:
        """Text of what element ``j`` adds to a line's base."""
        return j if self.inner == 1 else f"{j} * {frame.size(self.inner)}"


def refuse_types(values: list[Value], arch: int) -> str | None:
    """Why Triton can't load or store tensors of these types, or None."""
    for v in values:
        if not ty.supported(v.dtype):
            return f"element type {v.dtype} is not supported"
        if v.dtype is T.f8e4m3 and arch < 89:
            return f"element type {v.dtype} needs compute capability 8.9"
    return None


def loaded(text: str, dt: DType) -> str:
    """A loaded block as the type that arithmetic on it is done in; integers have 32 bits or 64."""
    if dt is T.b1:
        return f"{text}.to(tl.int32)"
    work = working(dt)
    return text if work is dt else f"{text}.to({ty.tl_name(work)})"


def working(dt: DType) -> DType:
    """The type that `loaded` gives."""
    if dt.is_float:
        return ty.register(dt)
    if dt.bits >= 64 or dt in (T.i32, T.u32):
        return dt
    return T.i32


def stored(text: str, dt: DType) -> str:
    """A block of `working` type as what is stored to a tensor."""
    if dt is T.b1:
        return f"({text} != 0).to(tl.int8)"
    return f"{text}.to({ty.tl_name(dt)})"


def named(kind: str, frame: Frame, body: list[str], launch: Launch, **kw: object) -> Kernel:
    """The kernel of a text; its symbol says what kind it is and holds a digest.

    Args:
        launch: How it runs; parameter types are filled in.
    """
    from dataclasses import replace

    source = frame.source("KERNEL", body)
    symbol = f"{kind}_{hashlib.sha256(source.encode()).hexdigest()[:10]}"
    source = source.replace("def KERNEL(", f"def {symbol}(")
    return Kernel(
        symbol, source, frame.values, tuple(frame.dims),
        launch=replace(launch, types=frame.types), **kw,  # type: ignore[arg-type]
    )


def pow2(n: DimLike, least: int, most: int, unknown: int = 0) -> int:
    """The power of two from ``n`` on, within bounds; sizes not known yet count as ``unknown``
    (``most`` if that is 0)."""
    if isinstance(n, D.Dim):
        return unknown or most
    return max(least, min(most, 1 << max(int(n) - 1, 0).bit_length()))
