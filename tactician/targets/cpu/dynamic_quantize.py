"""Tactic: ONNX's DynamicQuantizeLinear in two phases that threads share.

First every item finds the range of its part, then, with the range of all, each quantizes its part.

Floor: the operand is read twice (the second time from the cache), the bytes are written once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir

from ...ir import dims as D
from ...ir import dtypes as T
from ...ir.graph import Value
from ...regions.region import Region, is_slice
from ...tactics.kernel import Kernel
from ...tactics.tactic import Tactic, register_tactic
from . import requantize
from . import vecmath as V
from .conv_common import RuntimeSizes, argument, least
from .conv_ir import PTR, Loop
from .printer import text_of
from .vecmath import F32, I8, I16, I64

_PART = 2048  # elements worth an item
_MOST_PARTS = 32
_THREAD = 8192  # elements worth a thread


@register_tactic
class DynamicQuantizeParts(Tactic):
    """``dynamic_quantize_linear`` of f32 by itself."""

    name = "dynamic_quantize"
    target = "cpu"
    priority = 40

    def refuse(self, region: Region, device: Any) -> str | None:
        if [n.op for n in region.nodes] != ["dynamic_quantize_linear"]:
            return "not a dynamic quantization by itself"
        x, outputs = region.nodes[0].inputs[0], region.nodes[0].outputs
        assert x is not None
        if x.dtype is not T.f32 or x.const is not None:
            return "the operand is not computed in f32"
        if set(region.outputs) != set(outputs) or list(region.inputs) != [x]:
            return "operands are stored otherwise, or results are not needed"
        if any(is_slice(v) or v in region.physical for v in (x, *outputs)):
            return "operands are stored channels-last"
        if 0 in x.dims or device.isa.lanes(32) < 2:
            return "there are no elements, or no vectors"
        return None

    def candidates(self, region: Region, device: Any) -> Sequence[str]:
        return ["two phases"]

    def build(self, region: Region, candidate: Any, device: Any) -> Kernel:
        x, outputs = region.nodes[0].inputs[0], region.nodes[0].outputs
        assert x is not None
        return _Builder(x, outputs, device.isa).build()


class _Builder:
    def __init__(self, x: Value, outputs: Sequence[Value], isa: Any):
        self.count = D.product(x.dims)
        many = self.count // _PART if isinstance(self.count, int) else 16
        self.parts = max(1, min(many, _MOST_PARTS))
        self.ranges = Value("ranges", T.f32, (2 * self.parts,))
        self.args = (x, *outputs, self.ranges)
        self.width = 4 * isa.lanes(32)
        self.vector = ir.VectorType(F32, self.width)
        self.sizes = RuntimeSizes()
        self.module = ir.Module("dynamic_quantize")
        self.module.isa = isa  # conversions of types ask it

    def build(self) -> Kernel:
        types = [PTR, PTR, I64, I64, PTR]
        fn = ir.Function(
            self.module, ir.FunctionType(ir.VoidType(), types), "dynamic_quantize"
        )
        args, dims, begin, end, _ = fn.args
        self.b = b = ir.IRBuilder(fn.append_basic_block("entry"))
        self.x, self.y, self.scale, self.zero, self.shared = (
            argument(b, args, i) for i in range(5)
        )
        n = self.sizes.value(b, dims, self.count)
        parts, w = self.parts, self.width
        # whole vectors to each part
        each = b.mul(b.sdiv(b.add(n, I64(parts * w - 1)), I64(parts * w)), I64(w))
        with Loop(b, begin, least(b, end, I64(parts))) as item:
            first = least(b, b.mul(item.index, each), n)
            self._range(item.index, first, least(b, b.add(first, each), n))
        second = b.select(b.icmp_signed(">", begin, I64(parts)), begin, I64(parts))
        with b.if_then(b.icmp_signed("<", second, end)):
            self._parameters(second)
            with Loop(b, second, end) as item:
                first = least(b, b.mul(b.sub(item.index, I64(parts)), each), n)
                self._quantize(first, least(b, b.add(first, each), n))
        b.ret_void()
        return Kernel(
            symbol="dynamic_quantize",
            source=text_of(self.module),
            args=self.args,
            dims=tuple(self.sizes.dims),
            work=2 * parts,
            phase=parts,
            grain=max(1, _THREAD // _PART),
        )

    def _whole(self, first: Any, last: Any) -> Any:
        """Where the elements behind the last whole vector begin."""
        b, w = self.b, I64(self.width)
        return b.add(first, b.mul(b.sdiv(b.sub(last, first), w), w))

    def _range(self, item: Any, first: Any, last: Any) -> None:
        """Writes the range of a part; zero is always in it."""
        b = self.b
        whole = self._whole(first, last)
        zero = ir.Constant(self.vector, None)
        with Loop(b, first, whole, self.width, carried=[zero, zero]) as loop:
            at = b.gep(self.x, [loop.index], source_etype=F32)
            loop.next(self._wider(list(loop.carried), b.load(at, align=4, typ=self.vector)))
        ends = [self._across(fn, v) for fn, v in zip(("fmin", "fmax"), loop.results, strict=True)]
        with Loop(b, whole, last, carried=ends) as loop:
            x = b.load(b.gep(self.x, [loop.index], source_etype=F32), typ=F32)
            loop.next(self._wider(list(loop.carried), x))
        for k, end in enumerate(loop.results):
            at = b.gep(self.shared, [b.add(b.mul(item, I64(2)), I64(k))], source_etype=F32)
            b.store(end, at)

    def _wider(self, ends: list[Any], x: Any, y: Any = None) -> list[Any]:
        """A range that holds ``x``, or the range from ``x`` to ``y``, too."""
        b, (low, high) = self.b, ends
        y = x if y is None else y
        return [
            b.select(b.fcmp_ordered("<", x, low), x, low),
            b.select(b.fcmp_ordered(">", y, high), y, high),
        ]

    def _across(self, fn: str, x: Any) -> Any:
        name = f"llvm.vector.reduce.{fn}.{V.type_suffix(x.type)}"
        return self.b.call(V.declare(self.module, name, F32, [x.type]), [x])

    def _parameters(self, item: Any) -> None:
        """Scale and zero point of all; the first item of the phase writes them."""
        b = self.b
        with Loop(b, I64(0), I64(self.parts), carried=[F32(0), F32(0)]) as loop:
            at = b.gep(self.shared, [b.mul(loop.index, I64(2))], source_etype=F32)
            low = b.load(at, typ=F32)
            high = b.load(b.gep(at, [I64(1)], source_etype=F32), typ=F32)
            loop.next(self._wider(list(loop.carried), low, high))
        low, high = loop.results
        scale = b.fdiv(b.fsub(high, low), F32(255.0))
        flat = b.fcmp_ordered("==", scale, F32(0.0))
        safe = b.select(flat, F32(1.0), scale)
        point = V.unary(b, "round", b.fneg(b.fdiv(low, safe)))
        point = b.select(b.fcmp_ordered(">", point, F32(255.0)), F32(255.0), point)
        self.point = b.fptosi(b.select(flat, F32(0.0), point), I16)
        self.divisor, self.inverse = safe, b.fdiv(F32(1.0), safe)
        with b.if_then(b.icmp_signed("==", item, I64(self.parts))):
            b.store(scale, self.scale)
            b.store(b.trunc(self.point, I8), self.zero)

    def _quantize(self, first: Any, last: Any) -> None:
        b = self.b
        whole = self._whole(first, last)
        with Loop(b, first, whole, self.width) as loop:
            at = b.gep(self.x, [loop.index], source_etype=F32)
            x = self._divided(b.load(at, align=4, typ=self.vector))
            q = requantize.emit(b, x, self.point, False, T.u8)
            b.store(q, b.gep(self.y, [loop.index], source_etype=I8), align=1)
        with Loop(b, whole, last) as loop:
            x = b.load(b.gep(self.x, [loop.index], source_etype=F32), typ=F32)
            pair = self._divided(V.splat(b, x, 2))
            q = requantize.emit(b, pair, self.point, False, T.u8)
            one = b.extract_element(q, V.I32(0))
            b.store(one, b.gep(self.y, [loop.index], source_etype=I8))

    def _divided(self, x: Any) -> Any:
        """Quotients by the scale, rounded as a division rounds them: products with the reciprocal
        fall on the other side of a half now and then, and one step of the remainder mends that."""
        b, lanes = self.b, x.type.count
        factor, divisor = V.splat(b, self.inverse, lanes), V.splat(b, self.divisor, lanes)
        near = b.fmul(x, factor)
        return V.fma(b, V.fma(b, b.fneg(near), divisor, x), factor, near)
