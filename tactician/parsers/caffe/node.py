"""One Caffe layer as importers see it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...ir import dims as D
from ...ir.graph import Value
from .errors import LayerProblem

Array = np.ndarray[Any, Any]


class CaffeLayer:
    """A layer with its bottoms resolved.

    Attributes:
        proto: The ``LayerParameter``.
        line: Its line in the prototxt.
        bottoms: Values read.
        given: Its blobs in the caffemodel, or None if weights are to be made up.
        half: Whether weights are rounded to half precision.
        made: The weights that were made up, by number.
    """

    def __init__(self, proto: Any, line: int, bottoms: Sequence[Value],
                 given: Sequence[Array] | None, half: bool = False):
        self.proto = proto
        self.line = line
        self.bottoms = list(bottoms)
        self.given = given
        self.half = half
        self.made: dict[int, Array] = {}

    @property
    def name(self) -> str:
        return self.proto.name or next(iter(self.proto.top), "") or self.type

    @property
    def type(self) -> str:
        return self.proto.type

    @property
    def tops(self) -> list[str]:
        return list(self.proto.top)

    @property
    def source(self) -> str:
        return f"caffe layer '{self.name}' ({self.type}) at line {self.line}"

    def __getitem__(self, i: int) -> Value:
        return self.bottoms[i]

    def __len__(self) -> int:
        return len(self.bottoms)

    def axis(self, axis: int, rank: int | None = None, what: str = "axis") -> int:
        """A non-negative axis of the first bottom.

        Raises:
            LayerProblem: If it is out of range.
        """
        rank = self[0].rank if rank is None else rank
        if not -rank <= axis < rank:
            raise LayerProblem(f"{what} {axis} is out of range: the bottom has {rank} dimensions")
        return axis + rank if axis < 0 else axis

    def size(self, i: int, what: str) -> int:
        """Dimension ``i`` of the first bottom, which weights depend on.

        Raises:
            LayerProblem: If there is none, or it is known only at run time.
        """
        if i >= self[0].rank:
            raise LayerProblem(f"{what} needs dimension {i}, the bottom has {self[0].rank}")
        d = self[0].dims[i]
        if not isinstance(d, int):
            raise LayerProblem(f"{what} needs dimension {i}, which is known only at run time")
        return d

    # --- blobs --------------------------------------------------------------------------------

    @property
    def num_blobs(self) -> int | None:
        """How many blobs the caffemodel has for it; None without a caffemodel."""
        return None if self.given is None else len(self.given)

    def blob(self, i: int, shape: Sequence[int], what: str) -> Array:
        """Blob ``i`` as f32. Leading ones that old files have in shapes don't matter.

        Args:
            shape: What the layer expects.
            what: Its role, e.g. "weights".

        Raises:
            LayerProblem: If it is missing or has another shape.
        """
        want = tuple(int(d) for d in shape)
        if self.given is None:
            self.made[i] = self._made_up(i, want, what)
            return self.made[i]
        if i >= len(self.given):
            has = f"{len(self.given)} blobs" if self.given else "no blobs"
            raise LayerProblem(
                f"its {what} {want} are missing: the caffemodel has {has} for layer "
                f"{self.name!r}; give the caffemodel that belongs to this prototxt (layers are "
                "matched by name)")
        array = self.given[i]
        if not _same_shape(array.shape, want):
            raise LayerProblem(
                f"its {what} (blob {i}) have shape {array.shape} in the caffemodel, but the "
                f"prototxt asks for {want}; the two files don't belong together")
        array = array.reshape(want)
        if self.half:
            array = array.astype(np.float16)
        return np.ascontiguousarray(array, dtype=np.float32)

    def _made_up(self, i: int, shape: tuple[int, ...], what: str) -> Array:
        rng = np.random.default_rng([i, *self.name.encode()])
        if what in ("variance", "scale", "scale factor"):
            return rng.uniform(0.5, 1.5, shape).astype(np.float32)
        fan = max(int(np.prod(shape[1:])), 1)
        return (rng.standard_normal(shape) / np.sqrt(fan)).astype(np.float32)

    # --- windows ------------------------------------------------------------------------------

    def spatial(self, p: Any, field: str, count: int, default: int | None) -> tuple[int, ...]:
        """A repeated window field of a convolution, one number per spatial dimension; its
        ``_h`` and ``_w`` forms come first.

        Raises:
            LayerProblem: If it is missing or has the wrong number of entries.
        """
        short = field.split("_")[0]
        h, w = f"{short}_h", f"{short}_w"
        if h in p.DESCRIPTOR.fields_by_name and (p.HasField(h) or p.HasField(w)):
            if count != 2:
                raise LayerProblem(f"{h} and {w} are for two spatial dimensions, there are {count}")
            values = [getattr(p, h), getattr(p, w)]
        else:
            values = list(getattr(p, field))
        if not values and default is not None:
            values = [default]
        if not values:
            raise LayerProblem(f"needs {field}, or {h} and {w}")
        if len(values) not in (1, count):
            raise LayerProblem(f"{field} has {len(values)} entries; give one, or one for each of "
                               f"the {count} spatial dimensions")
        return tuple(values) if len(values) == count else tuple(values) * count


def _same_shape(have: tuple[int, ...], want: tuple[int, ...]) -> bool:
    """Whether shapes agree but for ones in front (legacy blobs always have four dimensions)."""
    if int(np.prod(have, dtype=object)) != int(np.prod(want, dtype=object)):
        return False

    def core(shape: tuple[int, ...]) -> tuple[int, ...]:
        k = 0
        while k < len(shape) and shape[k] == 1:
            k += 1
        return shape[k:]

    return core(have) == core(want) or len(want) <= 1 or len(have) <= 1


def describe(v: Value) -> str:
    """Name, type and shape of a blob."""
    shape = "?" if v.shape is None else ", ".join(map(str, v.dims))
    return f"{v.name}: {v.dtype}[{shape}]"


def static(*dims: D.DimLike) -> bool:
    return D.is_static(*dims)
