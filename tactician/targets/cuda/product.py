"""The blocked product that matrix products and convolutions share, as Triton text.

A block of threads sums ``bm`` rows by ``bn`` columns over steps of ``bk``. Operands say how their
tiles are addressed (`Strided` here, windows of images in `conv_windows`), the region's epilogue
says what becomes of the sums. Sums that would leave most of the device idle are split over the
inner dimension: parts go to the workspace, and the block that comes last adds them in order, so
results don't depend on timing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from ...ir import dims as D
from ...ir.dims import DimLike
from ...ir.dtypes import DType, f8e4m3, f8e5m2, f32, f64
from ...ir.graph import Value
from ...support.errors import RefusedError
from .code import EARLY, LAUNCH, WAIT
from .emit import Frame

_WIDE = 1 << 31  # elements from which on offsets need 64 bits
_IN_LOOP = {"acc", "sa", "sb"}  # sums, known only behind the loop
_FIXED = -1  # a line that is no plain assignment stays where it is
_FEW_TILES = 264  # blocks up to which most of the constants are read by one of them


@dataclass(frozen=True)
class Tile:
    """How a product is cut up.

    Attributes:
        bm, bn, bk: Rows, columns and inner extent of a step.
        warps, stages: Warps of a block; tiles in flight.
        split: Blocks that share the inner dimension.
        group: Tiles of rows whose columns are done together, for the second-level cache.
        tma: Tiles come through tensor descriptors (Hopper's copy engine).
        persistent: Blocks per multiprocessor that take tile after tile; 0: a block for each tile.
        turned: Neighbouring threads load neighbouring rows (`windows.Windows`), where these are
            closer together in memory than a row's elements.
        near: Windows come through the first-level cache, which has most of their elements from
            their neighbours (copies of 16 bytes go around it).
    """

    bm: int
    bn: int
    bk: int
    warps: int = 4
    stages: int = 3
    split: int = 1
    group: int = 8
    tma: bool = False
    persistent: int = 0
    turned: bool = False
    near: bool = False

    def __str__(self) -> str:
        parts = [f"{self.bm}x{self.bn}x{self.bk} w{self.warps} s{self.stages}"]
        if self.split > 1:
            parts.append(f"split{self.split}")
        if self.tma:
            parts.append("tma")
        if self.persistent:
            parts.append(f"persistent{self.persistent}")
        if self.turned:
            parts.append("turned")
        if self.near:
            parts.append("near")
        return " ".join(parts)


class Writer:
    """Lines of Triton text at the depth of the current block."""

    def __init__(self, depth: int = 0):
        self.lines: list[str] = []
        self.depth = depth

    def __call__(self, *lines: str) -> None:
        self.lines += ["    " * self.depth + line for line in lines]

    @contextmanager
    def block(self, head: str) -> Iterator[None]:
        """The body of ``head``, such as ``for i in range(4):``."""
        self(head)
        self.depth += 1
        yield
        self.depth -= 1


def ceil_text(frame: Frame, d: DimLike, unit: int) -> str:
    """``ceil(d / unit)``."""
    if isinstance(d, D.Dim):
        return f"(({frame.size(d)} + {unit - 1}) // {unit})"
    return str(-(-int(d) // unit))


def _address(frame: Frame, source: Value | np.ndarray[Any, Any]) -> str:
    return frame.pointer(source) if isinstance(source, Value) else frame.array(source)


def divides(unit: int, d: DimLike) -> bool:
    """Whether a size is certain to be a multiple of ``unit``."""
    return not isinstance(d, D.Dim) and int(d) % unit == 0


def wide(elements: DimLike) -> bool:
    """Whether offsets into so many elements may not fit 32 bits."""
    return isinstance(elements, D.Dim) or int(elements) >= _WIDE


def unravel(frame: Frame, flat: str, dims: tuple[DimLike, ...]) -> list[str]:
    """Row-major indices of a flat index, as text; the first takes what is left."""
    out: list[str] = []
    for k in range(len(dims) - 1, 0, -1):
        if not isinstance(dims[k], D.Dim) and dims[k] == 1:
            out.append("0")
            continue
        size = frame.size(dims[k])
        rest = D.product(dims[:k])
        alone = not isinstance(rest, D.Dim) and rest == 1
        out.append(flat if alone else f"({flat} % {size})")
        flat = "0" if alone else f"({flat} // {size})"
    if dims:
        first = dims[0]
        out.append("0" if not isinstance(first, D.Dim) and first == 1 else flat)
    return out[::-1]


class Operand(Protocol):
    """One side of a product. Names in its text start with ``a`` (rows) or ``b`` (columns)."""

    dtype: DType

    def setup(self, w: Writer, t: Tile, first: str) -> None:
        """Lines before the loop over steps, which starts at step ``first``."""

    def load(self, w: Writer, t: Tile) -> str:
        """Lines for step ``it``; returns the tile's text, ``[bm, bk]`` or ``[bk, bn]``."""

    def advance(self, w: Writer, t: Tile) -> None:
        """Lines after each step."""


@dataclass
class Strided:
    """A matrix in memory.

    Attributes:
        frame: The kernel's parameters.
        source: Value or constant.
        dtype: Its element type.
        rows: Whether it is the operand whose rows are the product's.
        free, inner: Extents.
        stride, k_stride: Elements between neighbours along them.
        offset: Text of the first element's offset for the block's batch, or "".
        elements: Elements in all, which decides how wide offsets are.
        aligned: Whether every batch starts at a multiple of 16 bytes.
        convert: Applied to each tile: a format with one place, or "".
        other: What elements outside count as where nothing is converted.
    """

    frame: Frame
    source: Value | np.ndarray[Any, Any]
    dtype: DType
    rows: bool
    free: DimLike
    inner: DimLike
    stride: DimLike
    k_stride: DimLike
    offset: str = ""
    elements: DimLike = 0
    aligned: bool = True
    convert: str = ""
    other: str = "0"

    @property
    def prefix(self) -> str:
        return "a" if self.rows else "b"

    def _block(self, t: Tile) -> int:
        return t.bm if self.rows else t.bn

    def _spread(self, along: str, inner: bool) -> str:
        """A vector along the inner or the free dimension as a part of the tile."""
        return f"{along}[None, :]" if inner == self.rows else f"{along}[:, None]"

    def _base(self) -> str:
        pointer = _address(self.frame, self.source)
        return f"{pointer} + {self.offset}" if self.offset else pointer

    @property
    def is_constant(self) -> bool:
        """Whether its contents are in the plan."""
        return not isinstance(self.source, Value) or self.source.const is not None

    def descriptor_fits(self) -> bool:
        """Whether the copy engine can read it."""
        far, near = (self.stride, self.k_stride) if self.k_stride == 1 else (
            self.k_stride, self.stride)  # fmt: skip
        if near != 1 or not self.aligned or self.convert:
            return False
        return not isinstance(far, D.Dim) and int(far) * self.dtype.size % 16 == 0

    def setup(self, w: Writer, t: Tile, first: str) -> None:
        p, size = self.prefix, self.frame.size
        if t.tma:
            free, inner, unit = size(self.free), size(self.inner), self._block(t)
            if self.k_stride == 1:
                shape, far, block = f"{free}, {inner}", self.stride, f"{unit}, {t.bk}"
            else:
                shape, far, block = f"{inner}, {free}", self.k_stride, f"{t.bk}, {unit}"
            w(f"{p}d = tl.make_tensor_descriptor({self._base()}, shape=[{shape}], "
              f"strides=[{size(far)}, 1], block_shape=[{block}])")
            return
        at = "rm" if self.rows else "rn"
        w(f"{p}i = {at}")
        if not self._masks_free(t) and not divides(self._block(t), self.free):
            w(f"{p}i = tl.where({at} < {size(self.free)}, {at}, 0)")
        if wide(self.elements):
            w(f"{p}i = {p}i.to(tl.int64)")
        along = f"{p}i * {size(self.stride)}" if self.stride != 1 else f"{p}i"
        step = f"{first} * {t.bk} + rk" if first != "0" else "rk"
        inner = f"({step}) * {size(self.k_stride)}" if self.k_stride != 1 else f"({step})"
        if wide(self.elements) and self.k_stride != 1:
            inner = f"({step}).to(tl.int64) * {size(self.k_stride)}"
        w(f"{p}p = {self._base()} + {self._spread(f'({along})', False)} "
          f"+ {self._spread(f'({inner})', True)}")

    def _masks_free(self, t: Tile) -> bool:
        """Whether tiles at the edge leave elements out rather than repeat the first line, which
        would break up lines that run along the free dimension."""
        return self.stride == 1 and self.k_stride != 1

    def load(self, w: Writer, t: Tile) -> str:
        p = self.prefix
        if t.tma:
            at = f"tm * {t.bm}" if self.rows else f"tn * {t.bn}"
            if self.k_stride == 1:
                tile = f"{p}d.load([{at}, it * {t.bk}])"
                return self._named(w, tile if self.rows else f"{tile}.T")
            tile = f"{p}d.load([it * {t.bk}, {at}])"
            return self._named(w, f"{tile}.T" if self.rows else tile)
        masks = []
        if self._masks_free(t) and not divides(self._block(t), self.free):
            at = "rm" if self.rows else "rn"
            masks.append(self._spread(f"({at} < {self.frame.size(self.free)})", False))
        if not divides(t.bk, self.inner):
            inside = f"(rk < {self.frame.size(self.inner)} - it * {t.bk})"
            masks.append(self._spread(inside, True))
        mask = f", mask={' & '.join(masks)}, other={self.other}" if masks else ""
        return self._named(w, f"tl.load({p}p{mask})", masks)

    def _named(self, w: Writer, tile: str, masks: Sequence[str] = ()) -> str:
        name = f"{self.prefix}t"
        w(f"{name} = {tile}")
        if self.convert:
            w(f"{name} = {converted(self.convert, name, masks)}")
        return name

    def advance(self, w: Writer, t: Tile) -> None:
        if t.tma:
            return
        step = f"{t.bk}" if self.k_stride == 1 else f"{t.bk} * {self.frame.size(self.k_stride)}"
        w(f"{self.prefix}p += {step}")


def again(line: str, name: str, own: str) -> str:
    """A line that loads or changes a tile, for a copy of the tile. Loads ask for another cache,
    or they would be taken for the same one."""
    line = re.sub(rf"\b{name}\b", own, line)
    at = line.find("tl.load(")
    if at < 0:
        return line
    end = at + len("tl.load")
    depth = 1
    while depth:
        end += 1
        depth += {"(": 1, ")": -1}.get(line[end], 0)
    return f"{line[:end]}, cache_modifier='.ca'{line[end:]}"


def converted(convert: str, name: str, masks: Sequence[str]) -> str:
    """A tile's elements converted; those outside become 0. (That can't be left to the load: 128
    for bytes outside is stored wrongly by Triton 3.6, which extends the sign.)"""
    text = convert.format(name)
    return f"tl.where({' & '.join(masks)}, {text}, 0)" if masks else text


Epilogue = Callable[[Writer, str], None]
"""Writes what becomes of the block of sums of the given name."""


@dataclass
class Product:
    """A product to be written.

    Attributes:
        frame: Parameters.
        a, b: Operands.
        m, n, k: Extents; ``k`` counts what steps of ``bk`` cover.
        batch: Products side by side.
        acc: Type of the sums: f32, f64 or i32.
        precision: Of f32 factors: ``tf32``, ``tf32x3`` or ``ieee``; "" for other types.
        epilogue: What becomes of the sums.
        begin: Lines at the start that operands and epilogue rely on; they know ``z`` (the batch).
        each: Lines after each step, with the names of both tiles.
        early: Pointers (parameters) whose blocks the epilogue loads, to be asked for ahead of the
            sums: with few steps the wait for them would be most of the block's time.
    """

    frame: Frame
    a: Operand
    b: Operand
    m: DimLike
    n: DimLike
    k: DimLike
    batch: DimLike
    acc: str
    precision: str
    epilogue: Epilogue
    begin: Callable[[Writer], None] | None = None
    each: Callable[[Writer, str, str], None] | None = None
    extra: list[str] = field(default_factory=list)  # sums kept beside the product
    early: Sequence[str] = ()

    def write(self, symbol: str, t: Tile, sms: int) -> str:
        """The function's text."""
        w = Writer()
        if t.persistent:
            self._persistent(w, t, sms)
        else:
            w("pid = tl.program_id(0)")
            self._tile(w, t)
        self.frame.workspace = self.frame.counters = t.split > 1
        return self.frame.source(symbol, w.lines)

    def tiles(self, t: Tile) -> DimLike:
        """Blocks of sums in all."""
        return self.batch * D.ceil_div(self.m, t.bm) * D.ceil_div(self.n, t.bn)

    def grid(self, t: Tile, sms: int) -> tuple[DimLike, ...]:
        """Blocks of threads."""
        tiles = self.tiles(t)
        if t.persistent:
            return (D.dim_min(tiles, sms * t.persistent),)
        return (tiles, t.split) if t.split > 1 else (tiles,)

    def workspace(self, t: Tile) -> tuple[DimLike, DimLike]:
        """Bytes of workspace, and counters."""
        if t.split == 1:
            return 0, 0
        return self.tiles(t) * (t.split * t.bm * t.bn * 4), self.tiles(t)

    def _persistent(self, w: Writer, t: Tile, sms: int) -> None:
        count = self.frame.size(self.tiles(t))
        with w.block(f"for pid in tl.range(tl.program_id(0), {count}, tl.num_programs(0)):"):
            self._tile(w, t)

    def _tile(self, w: Writer, t: Tile) -> None:
        self._place(w, t)
        w(f"rm = tm * {t.bm} + tl.arange(0, {t.bm})", f"rn = tn * {t.bn} + tl.arange(0, {t.bn})",
          f"rk = tl.arange(0, {t.bk})")  # fmt: skip
        mark = len(w.lines)
        if self.begin is not None:
            self.begin(w)
        reads = any("tl.load(" in line for line in w.lines[mark:])
        first, last = self._steps(w, t)
        if not reads:  # what it reads (a zero point) may be written by a kernel ahead
            self._before_others(w, t, first)
        self.a.setup(w, t, first)
        self.b.setup(w, t, first)
        ending = Writer(w.depth)
        if t.split == 1:
            self.epilogue(ending, "acc")
            ahead, ending.lines = loads_ahead(ending.lines, self.early)
            w.lines += ahead
        w(f"acc = tl.zeros(({t.bm}, {t.bn}), tl.{self.acc})", *self.extra)
        with w.block(f"for it in range({first}, {last}):"):
            x = self.a.load(w, t)
            y = self.b.load(w, t)
            w(f"acc = {self._dot(x, y, t)}")
            if self.each is not None:
                self._beside(w, t)
            self.a.advance(w, t)
            self.b.advance(w, t)
        if not t.persistent:
            w(LAUNCH)
        if t.split > 1:
            self._join(w, t)
        w.lines += ending.lines

    def _beside(self, w: Writer, t: Tile) -> None:
        """The lines of ``each``, on tiles that are loaded for them again: Triton keeps one buffer
        too few for a tile that something else than the product reads, and would overwrite it
        while the product, which ends a step later, still reads it (seen with Triton 3.6 on
        H200s: sums that were different from run to run).

        Raises:
            RefusedError: If tiles come by descriptors, of which equal loads become one.
        """
        assert self.each is not None
        if t.tma:
            raise RefusedError("sums beside a product need tiles that are loaded by addresses")
        names = []
        for side in (self.a, self.b):
            lines = Writer(w.depth)
            name = side.load(lines, t)
            own = f"{name}s"
            names.append((own, [again(line, name, own) for line in lines.lines]))
        sums = Writer(w.depth)
        self.each(sums, names[0][0], names[1][0])
        for own, loads in names:
            if any(re.search(rf"\b{own}\b", line) for line in sums.lines):
                w.lines += loads
        w.lines += sums.lines

    def _before_others(self, w: Writer, t: Tile, first: str) -> None:
        """What a block can do before the kernels ahead of it have ended (see `code.overlapped`):
        ask for its constants, if they are so few that nobody else may have done that."""
        b = self.b
        fixed = not any(isinstance(d, D.Dim) for d in (self.m, self.n, self.k, self.batch))
        if t.persistent or not fixed or not isinstance(b, Strided) or not b.is_constant:
            return
        line = 128 // b.dtype.size
        inner = -(-int(self.k) // (t.bk * t.split)) * t.bk  # type: ignore[arg-type]
        lines = 1 << (-(-inner // line) - 1).bit_length()
        few = self.tiles(t) * t.split <= _FEW_TILES  # type: ignore[operator]
        if b.offset or b.k_stride != 1 or not few or lines * t.bn > 64 * 32 * t.warps:
            return
        last = int(b.inner) - 1  # type: ignore[arg-type]
        begin = f"{first} * {t.bk} + " if first != "0" else ""
        w(f"{EARLY}ek = tl.minimum({begin}tl.arange(0, {lines}) * {line}, {last})",
          f"{EARLY}en = tl.minimum(rn, {int(b.free) - 1})[:, None] * {b.stride} + ek[None, :]",  # type: ignore[arg-type]
          f"{EARLY}tl.inline_asm_elementwise('prefetch.global.L2 [$1]; mov.u32 $0, 0;', '=r,l', "
          f"[({_address(self.frame, b.source)} + en).to(tl.int64)], dtype=tl.int32, "
          "is_pure=False, pack=1)",
          WAIT)  # fmt: skip

    def _dot(self, x: str, y: str, t: Tile) -> str:
        how = ""
        if self.precision:
            how = f', input_precision="{self.precision}"'
        if self.acc != "float32":
            how += f", out_dtype=tl.{self.acc}"
        if self.a.dtype in (f8e4m3, f8e5m2):
            how += f", max_num_imprecise_acc={t.bk}"  # Hopper's own sums keep 14 bits
        return f"tl.dot({x}, {y}, acc{how})"

    def _place(self, w: Writer, t: Tile) -> None:
        """Which tile the block does: ``tm``, ``tn`` and the batch ``z``."""
        frame = self.frame
        rows, cols = ceil_text(frame, self.m, t.bm), ceil_text(frame, self.n, t.bn)
        if self.batch == 1:
            w("z = 0", "pt = pid")
        elif rows == cols == "1":
            w("z = pid", "pt = 0")
        else:
            w(f"z = pid // ({rows} * {cols})", f"pt = pid % ({rows} * {cols})")
        if cols == "1":
            w("tm = pt", "tn = 0")
        elif rows == "1":
            w("tm = 0", "tn = pt")
        elif t.group == 1:
            w(f"tm = pt // {cols}", f"tn = pt % {cols}")
        else:
            w(f"band = pt // ({t.group} * {cols})",
              f"height = tl.minimum({rows} - band * {t.group}, {t.group})",
              f"tm = band * {t.group} + (pt % ({t.group} * {cols})) % height",
              f"tn = (pt % ({t.group} * {cols})) // height")  # fmt: skip

    def _steps(self, w: Writer, t: Tile) -> tuple[str, str]:
        total = ceil_text(self.frame, self.k, t.bk)
        if t.split == 1:
            return "0", total
        each = ceil_text(self.frame, D.ceil_div(self.k, t.bk), t.split)
        w("part = tl.program_id(1)", f"first = part * {each}",
          f"last = tl.minimum(first + {each}, {total})")  # fmt: skip
        return "first", "last"

    def _join(self, w: Writer, t: Tile) -> None:
        """Adds the parts of a split sum up, in order, in the block that comes last."""
        size = t.bm * t.bn
        place = "pid.to(tl.int64)" if wide(self.tiles(t) * (size * t.split)) else "pid"
        w(f"work = workspace.to(tl.pointer_type(tl.{self.acc}))",
          f"wp = work + {place} * {size * t.split} + tl.arange(0, {t.bm})[:, None] * {t.bn} "
          f"+ tl.arange(0, {t.bn})[None, :]",
          f'tl.store(wp + part * {size}, acc, cache_modifier=".cg")',
          "tl.debug_barrier()",  # all of the block's stores come before its arrival
          'arrived = tl.atomic_add(counters + pid, 1, sem="acq_rel", scope="gpu")')  # fmt: skip
        with w.block(f"if arrived == {t.split - 1}:"):
            w("tl.store(counters + pid, 0)",
              f"total = tl.zeros(({t.bm}, {t.bn}), tl.{self.acc})")  # fmt: skip
            few = size // (32 * t.warps) * t.split <= 128  # registers of a thread
            with w.block(f"for i in {'tl.static_range' if few else 'range'}({t.split}):"):
                w(f'total += tl.load(wp + i * {size}, cache_modifier=".cg")')
            self.epilogue(w, "total")


_NAME = re.compile(r"[A-Za-z_]\w*")


def loads_ahead(lines: list[str], pointers: Sequence[str]) -> tuple[list[str], list[str]]:
    """Lines that load from ``pointers``, with those they need, and the others."""
    if not pointers or not lines:
        return [], lines
    depth = _depth(lines[0])
    made: dict[str, int] = {}
    needs: list[set[str]] = []
    for k, line in enumerate(lines):
        name, equals, text = line.strip().partition(" = ")
        plain = bool(equals) and name.isidentifier() and name not in made and _depth(line) == depth
        made[name] = k if plain else _FIXED
        needs.append(set(_NAME.findall(text if equals else line)))

    def reach(k: int) -> set[int] | None:
        """The lines that line ``k`` needs and itself, if all of them can be moved."""
        found = {k}
        for name in needs[k] & (made.keys() | _IN_LOOP):
            more = None if name in _IN_LOOP or made[name] == _FIXED else reach(made[name])
            if more is None:
                return None
            found |= more
        return found

    moved: set[int] = set()
    for k, line in enumerate(lines):
        if any(line.partition(" = ")[2].startswith(f"tl.load({p} +") for p in pointers):
            moved |= reach(k) or set()
    return [lines[k] for k in sorted(moved)], [x for k, x in enumerate(lines) if k not in moved]


def _depth(line: str) -> int:
    return len(line) - len(line.lstrip())


def acc_type(dtype: DType) -> str:
    """The type sums of products of a type have."""
    return "int32" if dtype.is_int else "float64" if dtype is f64 else "float32"


def to_tf32(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """32-bit floats with the nearest mantissas of 10 bits (halves go away from zero). The tensor
    cores of Triton's products leave bits out instead, which makes every factor smaller: constants
    are rounded when kernels are built, activations are not."""
    x = np.ascontiguousarray(x, np.float32)
    largest = np.uint32(0x7F7FE000)
    bits = x.view(np.uint32)
    size = np.minimum((bits & np.uint32(0x7FFFFFFF)) + np.uint32(0x1000), largest)
    rounded = (bits & np.uint32(0x80000000)) | (size & np.uint32(0xFFFFE000))
    return np.where(np.isfinite(x), rounded, bits).view(np.float32)


def precision(dtype: DType, tf32: bool) -> str:
    """``input_precision`` of `tl.dot` for factors of a type."""
    if dtype is not f32:
        return ""
    return "tf32" if tf32 else "tf32x3"
