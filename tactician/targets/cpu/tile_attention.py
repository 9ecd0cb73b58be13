"""Tactic: attention of bf16 on tile registers (AMX).

Floors per head: products of full tiles every 16 cycles, two of them for 16 queries and 16 keys at
heads of 64; and some 7 cycles for every 16 weights, which take a dozen vector instructions each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...regions.region import Region
from ...tactics.kernel import Kernel
from ...tactics.tactic import Tactic, register_tactic
from .attention_problem import Problem, unsuited
from .tile_attention_builder import STEP, TileAttention, Tiles, places
from .tile_ir import ROWS

_MOST_KEYS = 8192  # whose scores with a block of queries are kept


@register_tactic
class TiledAttention(Tactic):
    """Attention of bf16 on tile registers, with all scores of a block of queries at hand."""

    name = "amx_attention"
    target = "cpu"
    priority = 65

    def refuse(self, region: Region, device: Any) -> str | None:
        if not device.isa.amx:
            return "the CPU has no tiles, or does not let this process use them"
        why = unsuited(region, ("bf16",))
        if why is not None:
            return why
        assert region.anchor is not None
        keys = Problem.of(region.anchor).k.length
        if isinstance(keys, int) and keys > _MOST_KEYS:
            return f"scores with {keys} keys are more than the cache holds"
        return None

    def candidates(self, region: Region, device: Any) -> Sequence[Tiles]:
        assert region.anchor is not None
        return cuts(Problem.of(region.anchor))

    def build(self, region: Region, candidate: Any, device: Any) -> Kernel:
        assert region.anchor is not None
        return TileAttention(Problem.of(region.anchor), candidate, device.isa, self.name).kernel()


def cuts(p: Problem) -> list[Tiles]:
    """Cuts worth timing, the likely best first."""
    steps = -(-p.size // STEP)
    few = isinstance(p.q.length, int) and p.q.length <= ROWS
    wide = max((c for c in (4, 3, 2, 1) if places(1, c, steps)), default=4)
    narrow = max((c for c in (2, 1) if places(2, c, steps)), default=2)
    if few:
        return [Tiles(1, wide)]
    out = [Tiles(2, narrow), Tiles(2, 2), Tiles(1, wide)]
    if -(-p.v_size // ROWS) == 4:  # two columns of values beside either tile of queries
        out.insert(0, Tiles(2, narrow, True))
    return list(dict.fromkeys(out))
