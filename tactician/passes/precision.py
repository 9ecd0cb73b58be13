"""Computes f32 networks in f16 or bf16 where that pays.

Contractions become narrow, and so does everything between them: values stay narrow from one
contraction to the next. What comes before the first contraction and after the last, and what is
numerically delicate, stays in f32; casts stand at the borders, one for each value at most, where
pointwise kernels take them in. Inputs and outputs of the network keep their types.

Sums, statistics and transcendental functions of narrow values are computed in f32 by all kernels
anyhow; a narrow type only rounds what goes through memory.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from ..ir import dtypes as T
from ..ir.dtypes import DType
from ..ir.graph import Graph, Node, Value
from ..ops import emit
from ..ops.registry import infer_node
from ..support.errors import BuildError
from .precision_rules import (
    Role,
    carries_range,
    data_operands,
    number_fits,
    role,
    why_too_large,
)

Constraints = Literal["none", "prefer", "obey"]
_NARROW = (T.f16, T.bf16)


@dataclass
class PrecisionReport:
    """What `choose_precisions` did.

    Attributes:
        narrowed: How many nodes compute in a narrow type now.
        kept: (layer, reason) of contractions that stay in f32.
    """

    narrowed: int = 0
    kept: list[tuple[str, str]] = field(default_factory=list)


def choose_precisions(
    graph: Graph, to: DType | None, constraints: Constraints = "none",
    allowed: frozenset[str] = frozenset(),
) -> PrecisionReport:
    """Rewrites an f32 graph in place so that it computes in a narrow type.

    Args:
        graph: In topological order, after other optimizations.
        to: ``f16`` or ``bf16``; None: only layers that ask for a type themselves
            (``node.meta["precision"]``).
        constraints: Whether layers' own precisions are hints, preferred, or must be obeyed.
        allowed: Names of the types that the build may use (its flags).

    Raises:
        BuildError: If a constraint has to be obeyed and can't, naming the layer.
    """
    report = PrecisionReport()
    _Chooser(graph, to, constraints, allowed, report).run()
    return report


class _Chooser:
    def __init__(
        self, graph: Graph, to: DType | None, constraints: Constraints,
        allowed: frozenset[str], report: PrecisionReport,
    ):
        self.graph = graph
        self.to = to
        self.constraints = constraints
        self.allowed = allowed
        self.report = report
        self.roles: dict[Node, Role] = {}
        self.types: dict[Node, DType] = {}  # nodes that will be narrow, and how
        self.leads: set[Value] = set()  # values that reach a contraction through followers
        self.logarithms: set[Value] = set()  # values that logarithms are taken of
        self.fragile: set[Value] = set()  # f32 values whose range or digits a cast may lose
        self.twins: dict[tuple[Value, DType], Value] = {}

    def run(self) -> None:
        for node in self.graph.nodes:
            for sub in node.subgraphs:
                _Chooser(sub, self.to, self.constraints, self.allowed, self.report).run()
        self.graph.toposort()
        self._find_logarithms()
        for node in self.graph.nodes:
            self._classify(node)
        self._look_ahead()
        for node in list(self.graph.nodes):
            self._place(node)
        self._keep_outputs()
        self.graph.toposort()

    # --- what each node is -------------------------------------------------------------------

    def _classify(self, node: Node) -> None:
        """Sets the role of a node, and the type of one that is an anchor."""
        wide = any(v.dtype is T.f32 for v in (*node.present_inputs(), *node.outputs))
        self.roles[node] = role(node) if wide else Role.KEEP
        asked = self._asked(node) if wide else None
        if asked is T.f32:
            self.roles[node] = Role.KEEP
        elif asked in _NARROW:
            self._ask_narrow(node, asked)
        elif self.roles[node] is Role.ANCHOR and self.to is not None:
            reason = self._misfit(node, self.to)
            if reason is None:
                self.types[node] = self.to
            else:
                self.roles[node] = Role.KEEP
                self.report.kept.append((node.name or node.op, reason))

    def _asked(self, node: Node) -> DType | None:
        """The precision a layer asks for, as far as it counts."""
        asked: DType | None = None if node.op == "cast" else node.meta.get("precision")
        if asked is None or asked is T.f32 or asked.kind != "f" or not node.outputs:
            return asked if asked is T.f32 and node.outputs else None
        if not any(v.dtype is T.f32 for v in node.outputs):
            return None
        if asked.name in self.allowed:
            return asked
        flag = {"f16": "FP16", "bf16": "BF16"}.get(asked.name)
        if flag is not None and self.constraints == "obey":
            raise BuildError(f"{node.describe()} has precision {asked}, but BuilderFlag.{flag} is "
                             "not set: set it, or reset the layer's precision")
        return None

    def _ask_narrow(self, node: Node, asked: DType) -> None:
        movable = self.roles[node] in (Role.ANCHOR, Role.FOLLOW, Role.MOVE)
        reason = self._misfit(node, asked) if movable else f"{node.op} is computed in FP32 only"
        if reason is None and (self.constraints != "none" or self.to is not None):
            self.types[node], self.roles[node] = asked, Role.ANCHOR
        elif reason is not None and self.constraints == "obey" and movable:
            raise BuildError(f"{node.describe()} can't have precision {asked}: {reason}")
        elif reason is not None:
            self.report.kept.append((node.name or node.op, reason))
            if self.roles[node] is Role.ANCHOR:
                self.roles[node] = Role.KEEP

    def _find_logarithms(self) -> None:
        """What rounds to zero, or leaks from a large neighbour, is not nothing to a logarithm."""
        for node in reversed(self.graph.nodes):
            log = node.op == "unary" and node.attrs.fn == "log"
            if log or (carries_range(node) and any(v in self.logarithms for v in node.outputs)):
                self.logarithms.update(v for _, v in data_operands(node))

    def _misfit(self, node: Node, to: DType) -> str | None:
        if any(v in self.logarithms for v in node.outputs):
            return "a logarithm of its result is taken, which shows small errors of small numbers"
        reasons = (why_too_large(v, to) for _, v in data_operands(node) if v.const is not None)
        return next((r for r in reasons if r is not None), None)

    def _look_ahead(self) -> None:
        for node in reversed(self.graph.nodes):
            r = self.roles[node]
            onward = r in (Role.FOLLOW, Role.MOVE) and any(v in self.leads for v in node.outputs)
            if node in self.types or onward:
                self.leads.update(v for _, v in data_operands(node))

    # --- rewriting, in order -----------------------------------------------------------------

    def _place(self, node: Node) -> None:
        to = self.types.get(node) or self._follow(node)
        if to is not None and self._narrow(node, to):
            self.report.narrowed += 1
            return
        if to is not None and self.constraints == "obey" and node.meta.get("precision") is to:
            raise BuildError(f"{node.describe()} can't have precision {to}: it does not take "
                             "operands of that type")
        for i, v in enumerate(node.inputs):
            # others read f32, whatever type an operand has become
            if v is not None and (v, T.f32) in self.twins and self.roles[node] is not Role.ANY:
                node.set_input(i, self._wide(v, node))
        if self._loses_range(node):
            self.fragile.update(v for v in node.outputs if v.dtype is T.f32)

    def _follow(self, node: Node) -> DType | None:
        """The narrow type that a node takes from its operands, if it does."""
        r = self.roles[node]
        if r not in (Role.FOLLOW, Role.MOVE) or not node.outputs:
            return None
        operands = [v for _, v in data_operands(node)]
        have = [self._type_of(v) for v in operands if v.const is None]
        found = next((t for t in have if t is not None), None)
        if found is None or node.outputs[0].dtype is not T.f32:
            return None
        on_the_way = any(v in self.leads for v in node.outputs)
        if r is Role.FOLLOW and not on_the_way:
            return None  # after the last contraction
        wide = [v for v, t in zip((v for v in operands if v.const is None), have, strict=True)
                if t is None]
        if any(v in self.fragile for v in wide) or (wide and not on_the_way):
            return None
        if any(v.const is not None and not number_fits(v, found) for v in operands):
            return None
        return found

    def _type_of(self, v: Value) -> DType | None:
        """The narrow type that a value has, or is needed in anyway."""
        if v.dtype in _NARROW:
            return v.dtype if (v, T.f32) in self.twins else None
        return next((t for t in _NARROW if (v, t) in self.twins), None)

    def _loses_range(self, node: Node) -> bool:
        """Whether the f32 result of a node should not be rounded to f16 before something has
        been made of it: results of delicate ops, and of numbers out of range."""
        r = self.roles[node]
        if r in (Role.FOLLOW, Role.MOVE):
            data = [v for _, v in data_operands(node)]
            if node.op == "binary" and node.attrs.fn == "div":
                return data[0] in self.fragile
            if node.op in ("normalization", "softmax", "masked_softmax"):
                return False
            return any(
                v in self.fragile if v.const is None else not number_fits(v, T.f16) for v in data
            )
        return r is Role.KEEP and node.op in ("unary", "binary", "reduce", "cumulative")

    def _narrow(self, node: Node, to: DType) -> bool:
        """Makes a node compute in ``to``; False (and nothing changed) if it can't."""
        before = list(node.inputs)
        operands = list(data_operands(node))
        if node in self.types:  # anchors end what was in question
            for i, v in operands:
                if v in self.fragile:
                    node.set_input(i, self._clamped(v, to, node))
        for i, operand in operands:
            if node.inputs[i] is operand:
                node.set_input(i, self._cast(operand, to, node))
        old = [(v.dtype, v.shape) for v in node.outputs]
        infer_node(node)
        changed = [v for v, (dt, _) in zip(node.outputs, old, strict=True) if v.dtype is not dt]
        same = [v.shape for v in node.outputs] == [s for _, s in old]
        if node.error or not same or any(v.dtype is not to for v in changed):
            node.error = None
            for i, operand_before in enumerate(before):
                node.set_input(i, operand_before)
            infer_node(node)
            return False
        for v in changed:
            self.twins[v, T.f32] = v  # made when someone needs it
        return bool(changed)

    def _cast(self, v: Value, to: DType, before: Node) -> Value:
        if v.dtype is to:
            return v
        if (v, to) not in self.twins:
            self.twins[v, to] = self._convert(v, to, before)
        return self.twins[v, to]

    def _wide(self, v: Value, before: Node | None) -> Value:
        """``v`` in f32."""
        if self.twins[v, T.f32] is v:
            self.twins[v, T.f32] = self._convert(v, T.f32, before)
        return self.twins[v, T.f32]

    def _convert(self, v: Value, to: DType, before: Node | None) -> Value:
        if v.const is not None:
            with np.errstate(all="ignore"):
                new = self.graph.constant(v.const.astype(to.np), v.name)
            new.meta = dict(v.meta)
            return new
        node = emit(self.graph, "cast", [v], f"{v.name} as {to}", before=before, to=to)
        self.roles[node] = Role.ANY
        node.output.meta = {k: m for k, m in v.meta.items() if k == "dynamic_range"}
        return node.output

    def _clamped(self, v: Value, to: DType, node: Node) -> Value:
        """A value of large range as a narrow one without infinities that were none."""
        if to is not T.f16:
            return v
        top = float(np.finfo(np.float16).max)
        clip = emit(self.graph, "activation", [v], f"{node.name} range", before=node, fn="clip",
                    alpha=-top, beta=top)
        self.roles[clip] = Role.KEEP
        return self._cast(clip.output, to, node)

    def _keep_outputs(self) -> None:
        """Graph outputs in their own type, under their own names."""
        for v in dict.fromkeys(self.graph.outputs):
            if (v, T.f32) not in self.twins:
                continue
            wide = self._wide(v, None)
            v.name, wide.name = f"{v.name} ({v.dtype})", v.name
            wide.meta = dict(v.meta)
            self.graph.outputs = [wide if o is v else o for o in self.graph.outputs]
