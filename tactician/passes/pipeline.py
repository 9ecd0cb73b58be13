"""The standard pipeline."""

from __future__ import annotations

from collections.abc import Callable

from ..ir.graph import Graph
from .cse import CommonSubexpressions
from .dce import DeadCode
from .decompose import Decompose
from .find_norm import FindNorm
from .fold import FoldConstants
from .fold_affine import FoldAffine
from .fold_transpose import FoldTranspose
from .manager import PassManager, PassTrace
from .move_transposes import MoveTransposes
from .simplify import Simplify
from .subpixel import Subpixel


def optimize(
    graph: Graph, trace: PassTrace | None = None, dump: Callable[[str, Graph], None] | None = None
) -> None:
    """Optimizes ``graph`` in place, independently of the target."""
    graph.toposort()
    PassManager([DeadCode(), FoldConstants(), Decompose()]).run(graph, trace, dump)
    rounds = PassManager(
        [
            FoldConstants(),
            Simplify(),
            CommonSubexpressions(),
            MoveTransposes(),
            FoldTranspose(),
            FindNorm(),
            FoldAffine(),
            DeadCode(),
        ],
        max_rounds=4,
    )
    rounds.run(graph, trace, dump)
    PassManager([Subpixel()]).run(graph, trace, dump)
    graph.toposort()
