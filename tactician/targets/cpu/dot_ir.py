"""LLVM IR of convolution on channels-last tensors with dot products: the tile of `conv_ir` for
operands of which several fill a lane (four bytes, or two bf16).

Packed weights are ``[K / nr][nr starts | taps][groups of channels][nr]``. A panel begins with what
the sums start from: for integers minus the sums of its columns, times the input's zero point;
else the bias. Taps outside the input read the zero point, so that every tap counts alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir

from . import vecmath as V
from .conv_ir import PTR, ConvShape, Loop, Store, Tile, joined
from .dot_guard import Guard
from .dots import Products
from .vecmath import I8, I16, I32, I64

Zero = Callable[[ir.IRBuilder, Any], ir.Value]
_LINE = 64  # bytes of a cache line
_WHOLE = 4  # up to so many groups are all unrolled


class DotMicroKernel:
    """Emits the internal function that computes one tile; see `conv_ir.MicroKernel`.

    Args:
        dot: How products are made.
        run: 0, or taps of the last axis that lie behind each other in memory and are one run.
        ahead: Lines of the weights needed next that each turn of the inner loop asks for.
    """

    def __init__(
        self, module: ir.Module, shape: ConvShape, tile: Tile, dot: Products, mr: int,
        channels: int, name: str, run: int = 0, ahead: int = 0,
    ):  # fmt: skip
        self.lines = ahead
        self.shape, self.tile, self.dot, self.mr, self.channels = shape, tile, dot, mr, channels
        self.run = run
        self.nv = -(-channels // tile.lanes)
        self.rank = r = len(shape.window)
        self.vt = ir.VectorType(dot.acc, tile.lanes)
        self.xt = ir.IntType(8 * dot.size)
        types = [PTR] * 5 + [I64] * (4 * r + 2) + [PTR]
        self.fn = ir.Function(module, ir.FunctionType(ir.VoidType(), types), name)
        self.fn.linkage = "internal"
        self.fn.attributes.add("noinline")
        a = self.fn.args
        self.x, self.w, self.zeros, self.args, self.dims = a[:5]
        self.strides, self.sizes, self.origins = (a[5 + i * r : 5 + (i + 1) * r] for i in range(3))
        self.image, self.pixel, self.k = a[5 + 3 * r], a[6 + 3 * r : 6 + 4 * r], a[6 + 4 * r]
        self.ahead = a[7 + 4 * r]
        self.groups = -(-shape.c // dot.group)
        self.group_bytes = tile.nr * dot.weight_bytes
        self.tap_bytes = self.groups * self.group_bytes
        self.guard: Guard | None = None

    def build(self, zero: Zero | None, store: Store, before: Any = None) -> None:
        """Emits the body.

        Args:
            zero: Loads the input's zero point, as it counts in registers, from the kernel's
                arguments; None if the packed weights allow for it.
            store: Writes the tile.
            before: Emits what comes before the products (from this object and a builder).
        """
        b = ir.IRBuilder(self.fn.append_basic_block("entry"))
        start = []
        for j in range(self.nv):
            at = b.gep(self.w, [I64(4 * j * self.tile.lanes)], source_etype=I8)
            start.append(b.load(at, align=4, typ=self.vt))
        if zero is not None:
            scale = V.splat(b, zero(b, self.args), self.tile.lanes)
            start = [b.mul(x, scale) for x in start]
        if before is not None:
            before(self, b)
        self.begin = w = b.gep(self.w, [I64(4 * self.tile.nr)], source_etype=I8)
        if self.dot.guarded:
            limit = b.gep(w, [I64(self.tap_bytes * self.shape.taps)], source_etype=I8)
            self.guard = Guard(self, limit)
        if self.run:
            acc = self._runs(b, w, start * self.mr)
        else:
            acc = self._taps(b, 0, self.x, w, start * self.mr, None)
        store(self, b, acc)  # type: ignore[arg-type]
        b.ret_void()

    def _runs(self, b: ir.IRBuilder, w: Any, acc: list[Any]) -> list[Any]:
        """All runs of the window; without a look at each of them where the columns are inside."""
        at, step = self.origins[-1], self.shape.stride[-1]
        last = b.add(at, I64((self.mr - 1) * step + self._reach))
        fits = b.and_(b.icmp_signed(">=", at, I64(0)), b.icmp_signed("<", last, self.sizes[-1]))
        yes, no = b.append_basic_block("inside"), b.append_basic_block("edge")
        join = b.append_basic_block("end")
        b.cbranch(fits, yes, no)
        b.position_at_end(no)
        slow = self._taps(b, 0, self.x, w, acc, None)
        slow_end = b.block
        b.branch(join)
        b.position_at_end(yes)
        fast = self._rows_of_runs(b, w, acc)
        fast_end = b.block
        b.branch(join)
        b.position_at_end(join)
        return joined(b, (fast, fast_end), (slow, slow_end))

    def _rows_of_runs(self, b: ir.IRBuilder, w: Any, acc: list[Any]) -> list[Any]:
        """Rows outside the input are read from the zeros, which are as long as a tile needs."""
        count = self.shape.taps
        with Loop(b, I64(0), I64(count), carried=acc) as loop:
            loop.next(self._row_of_runs(b, w, loop.index, list(loop.carried)))
        return list(loop.results)

    def _row_of_runs(self, b: ir.IRBuilder, w: Any, number: Any, acc: list[Any]) -> list[Any]:
        s = self.shape
        offset = b.mul(self.origins[-1], I64(s.x_pixel))
        weights = b.gep(w, [b.mul(number, I64(self.tap_bytes))], source_etype=I8)
        inside: Any = None
        for d in reversed(range(self.rank - 1)):
            tap, number = b.srem(number, I64(s.window[d])), b.sdiv(number, I64(s.window[d]))
            at = b.add(self.origins[d], b.mul(tap, I64(s.dilation[d])))
            offset = b.add(offset, b.mul(at, self.strides[d]))
            here = b.icmp_unsigned("<", at, self.sizes[d])
            inside = here if inside is None else b.and_(inside, here)
        row = b.gep(self.x, [offset], source_etype=self.xt)
        if inside is not None:
            row = b.select(inside, row, self.zeros)
        apart = s.x_pixel * s.stride[-1]
        rows = [b.gep(row, [I64(apart * i)], source_etype=self.xt) for i in range(self.mr)]
        return self._channels(b, rows, weights, acc, padded=True)

    def _taps(
        self, b: ir.IRBuilder, d: int, x: Any, w: Any, acc: list[Any], inside: Any
    ) -> list[Any]:
        """Loops over the window along spatial dimension ``d`` and those inside it. ``inside``
        tells whether the row so far lies in the input; None: it does."""
        s = self.shape
        step = self.tap_bytes
        for n in s.window[d + 1 :]:
            step *= n
        if s.window[d] == 1:
            return self._tap(b, d, x, w, acc, self.origins[d], inside)
        with Loop(b, I64(0), I64(s.window[d]), carried=acc) as loop:
            at = b.add(self.origins[d], b.mul(loop.index, I64(s.dilation[d])))
            weights = b.gep(w, [b.mul(loop.index, I64(step))], source_etype=I8)
            loop.next(self._tap(b, d, x, weights, list(loop.carried), at, inside))
        return list(loop.results)

    def _tap(
        self, b: ir.IRBuilder, d: int, x: Any, w: Any, acc: list[Any], at: Any, inside: Any
    ) -> list[Any]:
        if d == self.rank - 1:
            return self._row_tap(b, x, w, acc, at, inside)
        s = self.shape
        if not s.inside(d):
            here = b.icmp_unsigned("<", at, self.sizes[d])
            inside = here if inside is None else b.and_(inside, here)
        row = b.gep(x, [b.mul(at, self.strides[d])], source_etype=self.xt)
        return self._taps(b, d + 1, row, w, acc, inside)

    def _row_tap(
        self, b: ir.IRBuilder, x: Any, w: Any, acc: list[Any], at: Any, inside: Any
    ) -> list[Any]:
        """One tap, or one run of taps, along the last dimension."""
        s = self.shape
        pixel, size, step = I64(s.x_pixel), self.sizes[-1], s.stride[-1]
        always = s.inside() and not self.run
        if always and inside is None:
            return self._channels(b, self._rows_apart(b, x, at, pixel, step), w, acc)
        fits = inside
        if not always:
            last = b.add(at, I64((self.mr - 1) * step + self._reach))
            fits = b.and_(b.icmp_signed(">=", at, I64(0)), b.icmp_signed("<", last, size))
            fits = fits if inside is None else b.and_(fits, inside)
        yes, no = b.append_basic_block("interior"), b.append_basic_block("border")
        join = b.append_basic_block("join")
        b.cbranch(fits, yes, no)
        b.position_at_end(no)
        pointers = self._border(b, x, at, inside)
        slow = self._channels(b, pointers, w, acc, padded=bool(self.run))
        slow_end = b.block
        b.branch(join)
        b.position_at_end(yes)
        rows = self._rows_apart(b, x, at, pixel, step)
        fast = self._channels(b, rows, w, acc, padded=bool(self.run))
        fast_end = b.block
        b.branch(join)
        b.position_at_end(join)
        return joined(b, (fast, fast_end), (slow, slow_end))

    def _border(self, b: ir.IRBuilder, x: Any, at: Any, inside: Any) -> list[Any]:
        """Where the pixels' channels are for a tap of which some lie outside the input."""
        s = self.shape

        def place(pos: Any) -> Any:
            ok = b.icmp_unsigned("<", pos, self.sizes[-1])
            ok = ok if inside is None else b.and_(ok, inside)
            real = b.gep(x, [b.mul(pos, I64(s.x_pixel))], source_etype=self.xt)
            return b.select(ok, real, self.zeros)

        positions = [b.add(at, I64(i * s.stride[-1])) for i in range(self.mr)]
        return [(self._run_at(b, x, p, inside) if self.run else place(p)) for p in positions]

    @property
    def _reach(self) -> int:
        """Pixels behind the first that a run reads, up to a whole group."""
        if not self.run:
            return 0
        return -(-self.groups * self.dot.group // (self.shape.c // self.run)) - 1

    def _run_at(self, b: ir.IRBuilder, x: Any, pos: Any, inside: Any) -> Any:
        """Where a run lies: in the input, or, if it is not all there, in a copy."""
        size = self.sizes[-1]
        fits = b.and_(
            b.icmp_signed(">=", pos, I64(0)),
            b.icmp_signed("<", b.add(pos, I64(self._reach)), size),
        )
        real = b.gep(x, [b.mul(pos, I64(self.shape.x_pixel))], source_etype=self.xt)
        if inside is not None:  # a row outside is all zeros
            real = b.select(inside, real, self.zeros)
            fits = b.or_(fits, b.not_(inside))
        buffer = V.entry_alloca(b, ir.ArrayType(self.xt, self.groups * self.dot.group))
        direct = b.block
        with b.if_then(b.not_(fits), likely=False):
            b.call(self._copy(b.module), [x, pos, size, self.zeros, buffer])
            copied = b.block
        out = b.phi(PTR)
        out.add_incoming(real, direct)
        out.add_incoming(buffer, copied)
        return out

    def _copy(self, module: ir.Module) -> ir.Function:
        """The function that copies a run element by element, zeros where there is no pixel."""
        name = f"copy_{self.run}"
        if name in module.globals:
            return module.globals[name]
        t = self.xt
        fn = ir.Function(module, ir.FunctionType(ir.VoidType(), [PTR, I64, I64, PTR, PTR]), name)
        fn.linkage = "internal"
        fn.attributes.add("noinline")
        x, first, size, zeros, to = fn.args
        b = ir.IRBuilder(fn.append_basic_block("entry"))
        count = self.shape.c // self.run
        for n in range(self.run):
            pos = b.add(first, I64(n))
            real = b.gep(x, [b.mul(pos, I64(self.shape.x_pixel))], source_etype=t)
            source = b.select(b.icmp_unsigned("<", pos, size), real, zeros)
            for c in range(count):
                one = b.load(b.gep(source, [I64(c)], source_etype=t), typ=t)
                b.store(one, b.gep(to, [I64(n * count + c)], source_etype=t))
        for k in range(self.shape.c, self.groups * self.dot.group):
            b.store(t(0), b.gep(to, [I64(k)], source_etype=t))
        b.ret_void()
        return fn

    def _rows_apart(self, b: ir.IRBuilder, x: Any, at: Any, pixel: Any, step: int) -> list[Any]:
        base = b.gep(x, [b.mul(at, pixel)], source_etype=self.xt)
        apart = self.shape.x_pixel * step
        return [b.gep(base, [I64(apart * i)], source_etype=self.xt) for i in range(self.mr)]

    def _channels(
        self, b: ir.IRBuilder, rows: Sequence[Any], w: Any, acc: list[Any], padded: bool = False
    ) -> list[Any]:
        """Adds the products over all input channels of one tap.

        Args:
            rows: Where each pixel's channels begin.
            padded: Whether rows may be read up to whole groups.
        """
        if self.guard is not None:
            return self.guard.channels(b, rows, w, acc)
        whole, tail = divmod(self.shape.c, self.dot.group)
        if padded and tail:
            whole, tail = whole + 1, 0
        acc = list(acc)
        looped = 0
        unroll = self.tile.unroll
        most = _WHOLE if not self.run else 2 * _WHOLE
        if whole > (most if unroll > 1 else 1):
            looped = whole - whole % unroll
            far = self.far(b, w)
            with Loop(b, I64(0), I64(looped), unroll, carried=acc) as loop:
                sums = list(loop.carried)
                self.request(b, far, loop.index)
                for u in range(unroll):
                    sums = self.group(b, rows, w, b.add(loop.index, I64(u)), self.dot.group, sums)
                loop.next(sums)
            acc = list(loop.results)
        for g in range(looped, whole):
            V.fence(b)
            acc = self.group(b, rows, w, I64(g), self.dot.group, acc)
        if tail:
            acc = self.group(b, rows, w, I64(whole), tail, acc)
        return acc

    def weights_at(self, b: ir.IRBuilder, w: Any, g: Any) -> list[Any]:
        """Where the weights of a group are, by vector."""
        panel = b.gep(w, [b.mul(g, I64(self.group_bytes))], source_etype=I8)
        unit = self.tile.lanes * self.dot.weight_bytes
        return [b.gep(panel, [I64(j * unit)], source_etype=I8) for j in range(self.nv)]

    def far(self, b: ir.IRBuilder, w: Any) -> Any:
        """Which of the weights needed next to ask for while those at ``w`` are used."""
        if not self.lines:
            return None
        used = b.sub(b.ptrtoint(w, I64), b.ptrtoint(self.begin, I64))
        turns = b.sdiv(used, I64(self.group_bytes * self.tile.unroll))
        return b.gep(self.ahead, [b.mul(turns, I64(_LINE * self.lines))], source_etype=I8)

    def request(self, b: ir.IRBuilder, far: Any, group: Any) -> None:
        """Asks for the share of the turn that begins with a group; ``far`` is from `far`."""
        if far is None:
            return
        step = b.mul(group, I64(_LINE * self.lines // self.tile.unroll))
        for n in range(self.lines):
            at = b.gep(far, [b.add(step, I64(_LINE * n))], source_etype=I8)
            V.prefetch(b, at, level=2)

    def group(
        self, b: ir.IRBuilder, rows: Sequence[Any], w: Any, g: Any, count: int, acc: list[Any]
    ) -> list[Any]:
        """The products of ``count`` neighbouring channels."""
        acc, dot = list(acc), self.dot
        weights = [dot.weights(b, at) for at in self.weights_at(b, w, g)]
        at = b.mul(g, I64(4))
        for i, row in enumerate(rows):
            here = b.gep(row, [at], source_etype=I8)
            x = dot.spread(b, load_group(b, here, count * dot.size))
            for j in range(self.nv):
                n = i * self.nv + j
                acc[n] = dot.products(b, acc[n], x, weights[j])
        return acc


def load_group(b: ir.IRBuilder, at: Any, count: int) -> ir.Value:
    """``count`` bytes as an i32, the rest zero; nothing beyond them is read."""
    if count == 4:
        return b.load(at, align=1, typ=I32)
    total: Any = None
    done = 0
    while done < count:
        t = I16 if count - done >= 2 else I8
        part = b.zext(b.load(b.gep(at, [I64(done)], source_etype=I8), align=1, typ=t), I32)
        part = b.shl(part, I32(8 * done)) if done else part
        total = part if total is None else b.or_(total, part)
        done += t.width // 8
    return total
