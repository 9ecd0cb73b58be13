"""A region: what one kernel does.

A fused unit is data, not a class per fusion: an optional anchor node that needs an algorithm
(contraction, sort, recurrence) and stages of the compute language around it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..ir import dims as D
from ..ir import expr as E
from ..ir.graph import Node, Value


def pitch(v: Value) -> D.DimLike:
    """Distance in elements between neighbours along the last dimension but one: the extent of the
    last, or more for a value that is a slice of another one's last dimension
    (``v.meta["slice_of"]``; see `regions.layout`)."""
    while "slice_of" in v.meta:
        v = v.meta["slice_of"]
    return v.dims[-1]


def is_slice(v: Value) -> bool:
    """Whether a value is stored inside another one, so that its rows lie apart."""
    return "slice_of" in v.meta


@dataclass(eq=False)
class Region:
    """One unit of work with one kernel.

    Attributes:
        nodes: The graph nodes it covers, in topological order.
        anchor: The contraction or opaque node, or None for a pure loop nest.
        stages: Computations in order. In a region with an anchor they are its epilogue: each
            reads the anchor's output (or an earlier stage's) only at its own index.
        inputs: Values read from memory, constants included, each once.
        outputs: Values written to memory: stage results or anchor outputs that are read
            outside the region. Everything else stays inside.
        physical: Operands of the anchor that are stored in another layout than row-major: value
            -> its physical twin (see `regions.layout`).
        reformat: Whether the region only changes a layout.
        parts: Regions that one kernel does together, the second reading the first's result, if
            the region is such a pair (see `regions.chain`); ``anchor`` is then the first's, and
            ``stages`` are those of the parts.
    """

    nodes: list[Node]
    anchor: Node | None = None
    stages: list[E.Stage] = field(default_factory=list)
    inputs: list[Value] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)
    physical: dict[Value, Value] = field(default_factory=dict)
    reformat: bool = False
    parts: tuple[Region, ...] = ()

    def leaves(self) -> list[Region]:
        """The regions it consists of: itself, or those of its parts."""
        return [x for p in self.parts for x in p.leaves()] if self.parts else [self]

    @property
    def name(self) -> str:
        """Layer names joined, as reports show it."""
        return " + ".join(dict.fromkeys(n.name or n.op for n in self.nodes))

    @property
    def result(self) -> Value:
        """The only output.

        Raises:
            ValueError: If there are several.
        """
        (value,) = self.outputs
        return value

    def describe(self) -> str:
        """A line for error messages and reports: ops, layers and output shapes."""
        ops = "+".join(n.op for n in self.nodes)
        outs = ", ".join(repr(v) for v in self.outputs)
        return f"{ops} ({self.name}) -> {outs}"

    def find_inputs(self) -> None:
        """Sets ``inputs`` from what stages load and the anchor reads."""
        inside = {s.out for s in self.stages}
        read: dict[Value, None] = {}
        if self.anchor is not None:
            inside.update(self.anchor.outputs)
            read.update(dict.fromkeys(self.anchor.present_inputs()))
        for stage in self.stages:
            for ld in E.loads(stage.expr):
                if ld.value not in inside:
                    read.setdefault(ld.value)
        self.inputs = list(read)
