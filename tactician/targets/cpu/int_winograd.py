"""Tactic: Winograd convolution of 8-bit tensors.

Where the CPU has no dot products of bytes it multiplies pairs of s16, and the results are exact
(`winograd_int`). Where it has, or weights are too large for that, everything between input and sums
is f32: sums differ from exact ones by some 1e-6 of their range, far less than a step of the result
where that is quantized.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import ir

from ...ir.graph import Value
from ...regions.region import Region
from ...tactics.kernel import Kernel
from ...tactics.tactic import Tactic, register_tactic
from . import int_problem, winograd_int
from .conv_common import Epilogue, stored_last
from .int_depthwise import load_bytes
from .int_dot import Dot, methods
from .int_problem import IntProblem
from .vecmath import F32, I8, I32
from .winograd import Array, Builder, best_blockings, direct_cycles, unsuited_window
from .winograd_int import SIZES, WholeParts, WholeWinograd
from .winograd_ir import Parts, Winograd

# Products that each method makes while f32 makes one, at the least
_SPEED = {"dot": 4.0, "maddubs": 1.6, "guarded": 1.5, "madd": 1.2}
_PAIR_SPEED = 0.8  # instructions for pairs that are done while f32 does one, at the least


@register_tactic
class IntWinograd(Tactic):
    """Convolution of 8-bit channels-last tensors with constant 3x3 windows."""

    name = "int_winograd"
    target = "cpu"
    priority = 45
    approximate = True

    def wants_channels_last(self, region: Region, device: Any) -> bool:
        return _refused(region, device) is None

    def refuse(self, region: Region, device: Any) -> str | None:
        why = _refused(region, device)
        if why is not None:
            return why
        assert region.anchor is not None
        if not all(map(stored_last, region.outputs)):
            return "the result is not stored channels-last"
        if region.anchor.inputs[0] not in region.physical:
            return "the input is not stored channels-last"
        if not self.candidates(region, device):
            return "products of integers take about as many cycles by the model"
        return None

    def candidates(self, region: Region, device: Any) -> Sequence[Winograd]:
        p: Any = IntProblem(region)
        known = methods(device.isa, p.x_signed, p.weights)
        speed = _SPEED[known[0].name] if known else 1.0
        direct = direct_cycles(p, device) / speed
        if device.isa.int8_dot or device.isa.intrinsic("madd_s16") is None:
            return best_blockings(p, device, direct)
        sizes = [m for m in SIZES if winograd_int.refuse(m, p.weights, p.x_signed) is None]
        if not sizes:
            return best_blockings(p, device, direct)
        p.c = -(-p.c // 2)  # pairs
        found = best_blockings(p, device, direct * _PAIR_SPEED, sizes)
        return [WholeWinograd(w.m, w.tiles, w.mr, w.nv, w.lanes, w.groups) for w in found]

    def build(self, region: Region, candidate: Any, device: Any) -> Kernel:
        p, isa = IntProblem(region), device.isa
        if isinstance(candidate, WholeWinograd):
            return _WholeBuilder(p, candidate, isa).build()
        return _Builder(p, candidate, isa.fingerprint).build()


def _refused(region: Region, device: Any) -> str | None:
    why = int_problem.unsuited(region, device)
    if why is not None:
        return why
    node = region.anchor
    assert node is not None
    if node.op != "int_conv":
        return "not a convolution"
    out = region.outputs[0].dtype
    if not region.stages or (out.is_int and out.bits > 8):
        return "the result is wanted exactly"
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    if zero is not None and zero.const is None:
        return "the zero point is known only at run time"
    return unsuited_window(node)


class _Builder(Builder):
    """Builds the kernel of one candidate."""

    symbol = "int_winograd"
    x_type = I8

    def __init__(self, problem: IntProblem, candidate: Winograd, isa: str):
        super().__init__(problem, candidate, isa)  # type: ignore[arg-type]

    @property
    def _problem(self) -> IntProblem:
        p: Any = self.p
        return p  # type: ignore[no-any-return]

    def _constants(self) -> tuple[Array, Array | None, Array, list[Value]]:
        p = self._problem
        assert isinstance(p.x_zero, int)
        weights = p.weights.reshape(p.k, p.c, 3, 3).astype(np.float32)
        sums = p.weights.sum(axis=(1, 2), dtype=np.int64)
        bias = (-p.x_zero * sums).astype(np.float32) if p.x_zero else None
        operands = [v for v in p.finish.values() if v is not self.x]
        return weights, bias, np.full(p.c, p.x_zero, self.x.dtype.np), operands

    def _epilogue(self) -> Epilogue:
        made = int_problem.epilogue(self._problem, self.args, self.sizes)
        self.args = int_problem.arguments(self._problem, self.args)
        self.variant = self._problem.finish.variant
        return made

    def _parts(self) -> Parts:
        p, lanes = self._problem, self.w.lanes
        wide, floats = ir.VectorType(I32, lanes), ir.VectorType(F32, lanes)

        def read(b: ir.IRBuilder, at: Any, count: int) -> Any:
            x = load_bytes(b, at, lanes, count)
            return b.sitofp(b.sext(x, wide) if p.x_signed else b.zext(x, wide), floats)

        return Parts(self.module, self.w, p.c, p.k, p.pitch, self.s, I8, read)


class _WholeBuilder(_Builder):
    """The same in integers."""

    symbol = "int_winograd_s16"

    def __init__(self, problem: IntProblem, candidate: WholeWinograd, isa: Any):
        self.dot = Dot("madd", candidate.lanes, problem.x_signed, isa)
        super().__init__(problem, candidate, isa.fingerprint)
        self.module.isa = isa  # conversions of types ask it

    def _depth(self) -> int:
        return -(-self.p.c // 2)

    def _pack(self, weights: Array) -> Array:
        return winograd_int.pack(self._problem.weights, self.w)

    def _constants(self) -> tuple[Array, Array | None, Array, list[Value]]:
        weights, bias, outside, operands = super()._constants()
        self.bias = np.zeros(self.bias.shape, np.int32)
        if bias is not None:
            p = self._problem
            bias = (-int(p.x_zero) * p.weights.sum(axis=(1, 2), dtype=np.int64)).astype(np.int32)  # type: ignore[arg-type]
        return weights, bias, outside, operands

    def _parts(self) -> Parts:
        p, group = self._problem, self.per_group * self.w.nr
        return WholeParts(
            self.module, self.w, p.c, p.k, p.pitch, self.s, group, self.dot, p.x_signed
        )
