"""The standard pipeline."""

from __future__ import annotations

from collections.abc import Callable

from ..ir.dtypes import DType
from ..ir.graph import Graph, Node
from .body_constants import BodyConstants
from .cse import CommonSubexpressions
from .dce import DeadCode
from .decompose import Decompose
from .early_transposes import EarlyTransposes
from .find_attention import FindAttention
from .find_gelu import FindGelu
from .find_norm import FindNorm
from .fold import FoldConstants
from .fold_affine import FoldAffine
from .fold_transpose import FoldTranspose
from .manager import PassManager, PassTrace
from .merge_siblings import MergeSiblings
from .move_quantize import MoveQuantize
from .move_transposes import MoveTransposes
from .precision import Constraints, PrecisionReport, choose_precisions
from .quantize_contractions import QuantizeContractions
from .quantized import is_quantized
from .simplify import Simplify
from .split_recurrent import SplitRecurrent
from .split_topk import SplitTopK
from .subpixel import Subpixel


def optimize(
    graph: Graph, trace: PassTrace | None = None, dump: Callable[[str, Graph], None] | None = None,
    takes: Callable[[Node], bool] | None = None,
) -> None:
    """Optimizes ``graph`` in place, independently of the target but for attention and
    quantized contractions.

    Args:
        takes: Whether the target has a tactic for an attention node or an integer contraction.
            None: attention is decomposed, and neither is looked for.
    """
    graph.toposort()
    quantized = takes is not None and is_quantized(graph)
    fold = FoldConstants(weights=not quantized)
    split = [] if takes is None else [SplitRecurrent(takes), SplitTopK(takes)]
    PassManager([DeadCode(), fold, *split, Decompose(takes)]).run(graph, trace, dump)
    BodyConstants().run(graph)
    if takes is not None and quantized:
        PassManager(
            [
                fold,
                Simplify(),
                CommonSubexpressions(),
                FoldTranspose(),
                MoveQuantize(),
                QuantizeContractions(takes),
                DeadCode(),
            ],
            max_rounds=6,
        ).run(graph, trace, dump)
    attention = [] if takes is None else [FindAttention(takes), MergeSiblings()]
    rounds = PassManager(
        [
            FoldConstants(),
            Simplify(),
            CommonSubexpressions(),
            *attention,
            MoveTransposes(),
            FoldTranspose(),
            FindNorm(),
            FindGelu(),
            FoldAffine(),
            DeadCode(),
        ],
        max_rounds=4,
    )
    rounds.run(graph, trace, dump)
    if takes is not None and PassManager([Decompose(takes)]).run(graph, trace, dump):
        rounds.run(graph, trace, dump)  # nodes whose types changed since
    PassManager([EarlyTransposes(), Subpixel(), DeadCode()]).run(graph, trace, dump)
    graph.toposort()


def narrow(
    graph: Graph, to: DType | None, constraints: Constraints = "none",
    allowed: frozenset[str] = frozenset(), trace: PassTrace | None = None,
    dump: Callable[[str, Graph], None] | None = None,
    takes: Callable[[Node], bool] | None = None,
) -> PrecisionReport:
    """Chooses precisions in an optimized graph (see `choose_precisions`) and tidies up.

    Attention that the target takes in a narrow type only (``takes``, see `optimize`) is found now.
    """
    report = choose_precisions(graph, to, constraints, allowed)
    if report.narrowed:
        if dump is not None:
            dump("precision", graph)
        attention = [] if takes is None else [FindAttention(takes), MergeSiblings()]
        tidy = [FoldConstants(), Simplify(), CommonSubexpressions(), *attention, DeadCode()]
        PassManager(tidy, max_rounds=2).run(graph, trace, dump)
        graph.toposort()
    return report
