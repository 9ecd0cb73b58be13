"""How attention on vectors is blocked: register tiles, panels of queries, blocks of keys."""

from __future__ import annotations

from dataclasses import dataclass

from ...ir import dims as D
from .attention_problem import Problem
from .isa import Isa


@dataclass(frozen=True)
class Blocking:
    """How attention is blocked.

    Attributes:
        keys: Keys of a register tile of scores.
        vectors: Vectors of queries of a panel.
        block: Most keys between two corrections of the result.
        copies: Whether keys and values of a head are copied first.
    """

    keys: int
    vectors: int
    block: int
    copies: bool = False

    def __str__(self) -> str:
        return f"{self.keys}x{self.vectors}, {self.block} keys{' copied' if self.copies else ''}"


def blockings(p: Problem, isa: Isa) -> list[Blocking]:
    """Blockings worth timing, the likely best first."""
    lanes = isa.lanes(32)
    many = isa.vector_registers >= 32
    tiles = [(8, 2), (6, 4), (8, 3)] if many else [(6, 2), (4, 3)]
    if D.is_static(p.q.length):
        vectors = -(-int(p.q.length) // lanes)  # type: ignore[arg-type]
        tiles = [(mr if nv <= vectors else 8, min(nv, vectors)) for mr, nv in tiles]
    blocks = [512, 256]
    if D.is_static(p.k.length):
        keys = int(p.k.length)  # type: ignore[arg-type]
        blocks = [keys] if keys <= 256 else [512, 256] if keys > 512 else [keys, 256]
    length = p.q.length
    panels = -(-length // (tiles[0][1] * lanes)) if isinstance(length, int) else 1
    ways = [(True, tiles), (False, tiles[:1])] if panels > 2 else [(False, tiles)]
    if not isinstance(length, int):
        ways.append((True, tiles[:1]))
    out = [Blocking(*tile, block, c) for c, some in ways for block in blocks for tile in some]
    return list(dict.fromkeys(out))


def value_rows(isa: Isa, width: int, vectors: int) -> int:
    """Queries of the second product's register tile, with so many vectors of values."""
    room = isa.vector_registers - 1
    return max(rt for rt in (1, 2, 4, 6, 8) if width % rt == 0 and vectors * (rt + 1) <= room)


def value_vectors(isa: Isa, width: int, vectors: int) -> int:
    """Vectors of values of that tile: those that take the fewest loads."""

    def loads(nv: int) -> float:
        rt = value_rows(isa, width, nv)
        return (vectors + -(-vectors // nv) * rt) / rt

    return min(range(1, min(4, vectors) + 1), key=loads)
