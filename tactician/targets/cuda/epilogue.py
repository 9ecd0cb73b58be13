"""What follows a contraction: a region's stages on the block that holds the sums."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...ir import dtypes as T
from ...ir import expr as E
from ...ir.dtypes import DType
from ...ir.graph import Value
from ...regions.region import Region
from . import requantize
from . import types as ty
from .emit import Emitter, Frame


@dataclass(frozen=True)
class Index:
    """Where the elements of a block are along one dimension of the contraction's result.

    Attributes:
        text: The index block, such as ``rm[:, None]``, or a scalar.
        axes: The block axes it extends along, such as ``(0,)``; none for a scalar.
        flat: The joint index that this one was divided out of, together with all others that give
            the same, which are in the order of the dimensions; "" if there is none.
    """

    text: str
    axes: tuple[int, ...] = ()
    flat: str = ""


def result_of(region: Region) -> Value:
    """The value that stands for the anchor's output in the region's stages: its channels-last
    twin where it is stored so. An epilogue's indices follow this value's dimensions."""
    assert region.anchor is not None
    out = region.anchor.outputs[0]
    return region.physical.get(out, out)


def refuse_epilogue(region: Region) -> str | None:
    """Why the region's stages can't follow a contraction in its kernel, or None."""
    anchor = region.anchor
    if anchor is None or len(anchor.outputs) != 1:
        return "the anchor has several outputs"
    result = result_of(region)
    made = {result} | {s.out for s in region.stages}
    for s in region.stages:
        if s.out.shape != result.shape:
            return f"a stage computes {s.out}, not the shape of the contraction's result"
        for e in E.walk(s.expr):
            if isinstance(e, E.Reduce):
                return "a stage reduces"
            if not ty.supported(e.dtype):
                return f"element type {e.dtype} is not supported"
            if isinstance(e, E.Load) and not ty.supported(e.value.dtype):
                return f"element type {e.value.dtype} is not supported"
            if isinstance(e, E.Load) and e.value in made and not _own(e, s):
                return "a stage reads the contraction's result at another index"
    if not ty.supported(result.dtype):
        return f"element type {result.dtype} is not supported"
    return None


def epilogue(
    region: Region, frame: Frame, acc: str, index: Sequence[Index], masks: Mapping[int, str],
    shape: Sequence[int], acc_dtype: DType = T.f32, prefix: str = "e", in_place: bool = False,
    stored: dict[Value, str] | None = None,
) -> list[str]:
    """The lines that compute a region's stages and store its outputs.

    Args:
        region: With an anchor of one output.
        frame: The kernel's parameters: operands of the stages and outputs are added to it, and
            helper functions noted.
        acc: Name of the block of sums, of shape ``shape``.
        index: One per dimension of `result_of` ``(region)``.
        masks: Text of the mask along each block axis (``{0: "rm[:, None] < M", …}``), shaped to
            broadcast; axes that are always inside are left out.
        shape: The block's extents.
        acc_dtype: Type of the sums: f32, or i32 for integer products.
        prefix: Names that start with it (and a number) are used for intermediate results.
        in_place: Whether each thread has the sums of what it loads and stores.
        stored: Gets the names of blocks that stages store, as registers hold them.

    Returns:
        Lines without indentation.
    """
    result = result_of(region)
    em = Emitter(frame, masks, shape, prefix=prefix)
    em.in_place = in_place
    every = frozenset(range(len(shape)))
    register = ty.register(result.dtype)
    if register is not acc_dtype:
        name = em.name()
        em.line(f"{name} = {acc}.to({ty.tl_name(register)})")
        acc = name
    em.bind_result(result, acc, every, register)
    variables = E.iter_vars(result.dims)
    bind(em, variables, index)
    stages = requantize.joined(region.stages, frozenset(region.outputs))
    for stage in stages:
        env = dict(zip(stage.vars, variables, strict=True))
        lowered = em.lowerer.lower(stage.expr, env)
        if stage.out in region.outputs:
            em.store(stage.out, em.lowerer.flat(stage.out, variables), lowered)
            if stored is not None:
                stored[stage.out] = em.emit(lowered).text
        if stage is not stages[-1]:
            x = em.emit(lowered)
            em.bind_result(stage.out, x.text, x.axes, x.dt)
    if result in region.outputs:
        load = em.lowerer.lower(E.load(result, variables))
        em.store(result, em.lowerer.flat(result, variables), load)
    return em.lines


def bind(em: Emitter, variables: Sequence[E.Var], index: Sequence[Index]) -> None:
    """Gives the dimensions of a result their index blocks."""
    groups: dict[str, list[E.Var]] = {}
    for v, i in zip(variables, index, strict=True):
        if i.flat:
            groups.setdefault(i.flat, []).append(v)
        else:
            em.bind(v, i.text, i.axes)
    for flat, together in groups.items():
        em.bind_group(together, flat, (0,))


def _own(e: E.Load, s: E.Stage) -> bool:
    return e.guard is None and all(i is v for i, v in zip(e.index, s.vars, strict=True))
