"""Grows regions: decides which nodes one kernel does together.

In data-flow order every computed node becomes a region; then

- a loop nest takes in the pointwise and index-map producers only it reads (their expression is
  inlined where they are loaded), unless that would repeat expensive work;
- a pointwise region whose operand is the sole use of a contraction or reduction joins that
  region as its epilogue.

Views (reshape and the like) cost nothing: they are aliases. Nodes that are read only for shapes
whose value is already known never become regions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from ..ir import dims as D
from ..ir import expr as E
from ..ir.dtypes import bf16, f16
from ..ir.graph import Graph, Node, Value
from ..ops import get
from ..ops._shapes import data_symbols
from ..ops.registry import Kind
from .heads import part_of
from .region import Region
from .tidy import tidy

_EXPENSIVE = frozenset(
    "exp log sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh erf sigmoid lgamma "
    "pow atan2 mod fmod floordiv truncdiv".split()
)
_HALF = (f16, bf16)
_MAX_EXPR = 300  # expression nodes in one stage
_MAX_REPEAT = 3  # how often cheap work may be done again to save a trip through memory
_EPILOGUE_ANCHORS = frozenset(
    {"matmul", "convolution", "deconvolution", "int_matmul", "int_conv"}
)


@dataclass
class Fusion:
    """The fuser's result.

    Attributes:
        regions: In execution order.
        views: Value -> value whose memory it shares (same elements, same order).
        parts: Operands of attention that lie in rows of another value -> that value, and the
            first element (see `regions.heads`).
    """

    regions: list[Region]
    views: dict[Value, Value] = field(default_factory=dict)
    parts: dict[Value, tuple[Value, int]] = field(default_factory=dict)

    def bases(self) -> list[Value]:
        """Values that others share the memory of."""
        return [*self.views.values(), *(base for base, _ in self.parts.values())]


def fuse(graph: Graph, enabled: bool = True) -> Fusion:
    """Partitions the needed nodes of a graph into regions.

    Args:
        graph: Optimized, in topological order.
        enabled: False gives one region per node (for comparison and debugging).
    """
    return _Fuser(graph, enabled).run()


def is_view(node: Node) -> bool:
    """Whether the node's output shares its first input's memory."""
    return get(node.op).kind is Kind.VIEW


class _Fuser:
    def __init__(self, graph: Graph, enabled: bool):
        self.graph = graph
        self.enabled = enabled
        self.outputs = set(graph.outputs)
        self.views: dict[Value, Value] = {}
        self.parts: dict[Value, tuple[Value, int]] = {}
        self.stages: dict[Node, list[E.Stage] | None] = {}
        self.needed: set[Node] = set()
        self.readers: dict[Value, set[Node]] = {}
        self.region_of: dict[Value, Region] = {}
        self.live: dict[Region, None] = {}
        self.dropped: dict[Value, E.Stage] = {}  # of epilogues, inlined into the next

    def run(self) -> Fusion:
        self._find_needed()
        if self.enabled:
            self._find_parts()
        for node in self.graph.nodes:
            if node.outputs and node.outputs[0] in self.parts:
                continue
            if node in self.needed and not is_view(node):
                self._place(node)
        regions = list(self.live)
        for r in regions:
            for s in r.stages:
                s.expr = tidy(s.expr)
            r.find_inputs()
            r.outputs = self._outputs_of(r)
        shared = {**self.views, **{v: base for v, (base, _) in self.parts.items()}}
        return Fusion(_ordered(self._read(regions, shared), shared), self.views, self.parts)

    def _read(self, regions: list[Region], shared: dict[Value, Value]) -> list[Region]:
        """Regions whose results someone reads; others were taken in by all their readers."""
        maker = {v: r for r in regions for v in r.outputs}
        kept = {r for r in regions if r.anchor is not None}
        wanted = [*self.outputs, *(v for r in kept for v in r.inputs)]
        while wanted:
            v = wanted.pop()
            while v in shared:
                v = shared[v]
            r = maker.get(v)
            if r is not None and r not in kept:
                kept.add(r)
                wanted.extend(r.inputs)
        return [r for r in regions if r in kept]

    # --- what has to be computed at all ---------------------------------------------------

    def _find_needed(self) -> None:
        wanted = set(self.graph.outputs)
        sizes: set[str] = set()  # that only running a node tells
        for node in reversed(self.graph.nodes):
            if not any(v in wanted for v in node.outputs) and node.op != "assertion" \
                    and sizes.isdisjoint(node.meta.get("data_dims", ())):
                continue
            self.needed.add(node)
            for v in node.outputs:
                sizes |= data_symbols(v)
            for v in self._reads(node):
                sizes |= data_symbols(v)
                self.readers.setdefault(v, set()).add(node)
                if not materialized_by_sizes(v):
                    wanted.add(v)

    def _reads(self, node: Node) -> Iterable[Value]:
        if is_view(node):
            source = node.inputs[0]
            assert source is not None
            self.views[node.outputs[0]] = source
            return [source]
        if is_anchor(node):
            return node.present_inputs()
        stages = self._stages(node)
        if stages is None:
            return node.present_inputs()
        inner = {s.out for s in stages}
        read = {ld.value: None for s in stages for ld in E.loads(s.expr)}
        return [v for v in read if v not in inner]

    def _find_parts(self) -> None:
        """Slices that only attention reads need no memory of their own."""
        for node in self.graph.nodes:
            if node not in self.needed or node.op not in ("slice", "strided_slice"):
                continue
            v = node.output
            v.meta.pop("slice_of", None)
            stages = self._stages(node)
            part = part_of(stages[0]) if stages and len(stages) == 1 else None
            readers = self.readers.get(v, set())
            if part is None or v in self.outputs or not readers:
                continue
            if all(n.op == "attention" and v not in n.inputs[3:] for n in readers):
                self.parts[v] = part
                v.meta["slice_of"] = part[0]

    def _stages(self, node: Node) -> list[E.Stage] | None:
        if node not in self.stages:
            self.stages[node] = get(node.op).stages(node)
        return self.stages[node]

    # --- growing ---------------------------------------------------------------------------

    def _place(self, node: Node) -> None:
        stages = None if is_anchor(node) else self._stages(node)
        if stages is None:
            region = Region([node], anchor=node)
        else:
            region = Region([node], stages=list(stages))
            if self.enabled:
                self._inline_producers(region)
                host = self._epilogue_host(region)
                if host is not None:
                    region = self._join(host, region)
        self.live[region] = None
        for v in node.outputs:
            self.region_of[v] = region

    def _inline_producers(self, region: Region) -> None:
        if "concat" in region.stages[-1].meta:
            return
        progress = True
        while progress:
            progress = False
            for v in _loaded(region):
                p = self.region_of.get(v)
                if p is not None and p is not region and self._may_inline(p, v, region):
                    self._inline(p, v, region)
                    progress = True
                    break

    def _may_inline(self, p: Region, v: Value, region: Region) -> bool:
        if p.anchor is not None or len(p.stages) != 1 or v in self.outputs:
            return False
        stage = p.stages[0]
        if stage.out is not v or "concat" in stage.meta or _has_reduce(stage.expr):
            return False
        sole = self.readers[v] <= set(region.nodes)
        if not sole and not _trivial(stage):
            return False
        weight = len(E.walk(stage.expr))
        if sum(len(E.walk(s.expr)) for s in region.stages) + weight > _MAX_EXPR:
            return False
        repeat = _evaluations(region, v)
        if repeat is None:
            return _trivial(stage)
        limit = 1 if _expensive(stage.expr) else _MAX_REPEAT
        return repeat <= limit or _trivial(stage)

    def _inline(self, p: Region, v: Value, region: Region) -> None:
        for s in region.stages:
            s.expr = _inlined(s.expr, p.stages[0])
        region.nodes = list(dict.fromkeys(p.nodes + region.nodes))
        for ld in E.loads(p.stages[0].expr):
            self.readers.setdefault(ld.value, set()).update(region.nodes[-1:])
        if self.readers[v] <= set(region.nodes):
            self.live.pop(p, None)

    def _epilogue_host(self, region: Region) -> Region | None:
        """The contraction or reduction region this pointwise region can be the epilogue of."""
        if len(region.stages) != 1 or "concat" in region.stages[0].meta:
            return None
        stage = region.stages[0]
        if _has_reduce(stage.expr) or self._widens_for_readers(region):
            return None
        best: Region | None = None
        best_rank = (False, 0)
        for v in _loaded(region):
            host = self.region_of.get(v)
            if host is None or host not in self.live or not self._hosts(host, v, region):
                continue
            # of two, the one whose result is wider: the other goes through memory
            rank = (host.anchor is not None, v.dtype.bits)
            if best is None or rank > best_rank:
                best, best_rank = host, rank
        return best

    def _widens_for_readers(self, region: Region) -> bool:
        """Whether the region only dequantizes what loop nests read, which do that themselves:
        the integers are fewer bytes in memory."""
        node, out = region.nodes[-1], region.stages[0].out
        if len(region.nodes) > 1 or node.op != "dequantize" or out in self.outputs:
            return False
        x = node.inputs[0]
        readers = self.readers.get(out, ())
        return x is not None and x.dtype.bits <= 8 and bool(readers) and all(
            get(n.op).kind is Kind.POINTWISE or n.op in ("reduce", "pooling") for n in readers
        )

    def _hosts(self, host: Region, v: Value, region: Region) -> bool:
        if v in self.outputs or not self.readers[v] <= set(region.nodes):
            return False
        if host.anchor is not None:
            if host.anchor.op not in _EPILOGUE_ANCHORS:
                return False
            if not v.dtype.is_float and not host.anchor.op.startswith("int_"):
                return False
        elif host.stages[-1].out is not v or "concat" in host.stages[-1].meta:
            return False
        elif not any(_has_reduce(s.expr) for s in host.stages):
            return False  # plain pointwise producers are inlined, or had a reason not to be
        result = host.stages[-1].out if host.stages else host.anchor.output  # type: ignore
        if result is not v:
            return False
        stage = region.stages[0]
        return v.shape == stage.out.shape and all(
            _own_index(ld, stage.vars) for ld in E.loads(stage.expr) if ld.value is v
        )

    def _join(self, host: Region, region: Region) -> Region:
        stage = region.stages[0]
        last = host.stages[-1] if host.stages else None
        if last is not None and not _has_reduce(last.expr):
            stage.expr = _inlined(stage.expr, last)
            # what its producers left out may be read by copies of nodes that read it before
            for v in dict.fromkeys(ld.value for ld in E.loads(stage.expr)):
                if v in self.dropped and self.region_of.get(v) is host:
                    stage.expr = _inlined(stage.expr, self.dropped[v])
            self.dropped[last.out] = last
            self.region_of[last.out] = host
            host.stages[-1] = stage
        else:
            host.stages.append(stage)
        host.nodes = list(dict.fromkeys(host.nodes + region.nodes))
        self.live.pop(host)  # it now runs where the joined region would have
        made = host.anchor.outputs if host.anchor is not None else []
        for v in (*made, *(s.out for s in host.stages)):
            self.region_of[v] = host
        return host

    def _outputs_of(self, region: Region) -> list[Value]:
        made = [s.out for s in region.stages]
        if region.anchor is not None:
            made = list(region.anchor.outputs) + made
        own = set(region.nodes)
        if region.anchor is not None and not region.stages:
            return list(region.anchor.outputs)
        kept = [
            v for v in made
            if v in self.outputs or (self.readers.get(v, set()) - own) or v is made[-1]
        ]
        return kept


def is_anchor(node: Node) -> bool:
    """Whether the node needs an algorithm of its own rather than a loop nest."""
    return get(node.op).kind in (Kind.CONTRACTION, Kind.OPAQUE, Kind.CONTROL)


def materialized_by_sizes(v: Value) -> bool:
    """Whether the value's elements are known once shapes are, so that no step computes it."""
    return v.content is not None and v.producer is not None and v.dtype.is_int


def _loaded(region: Region) -> list[Value]:
    inside = {s.out for s in region.stages}
    found = {ld.value: None for s in region.stages for ld in E.loads(s.expr)}
    return [v for v in found if v not in inside]


def _inlined(e: E.Expr, producer: E.Stage) -> E.Expr:
    """`E.inline`, but what a half-precision producer would round to store stays in the type that
    it was computed in where that is what the reader makes of it. Casts of the network's own round.
    """
    body, node = producer.expr, producer.out.producer
    if isinstance(body, E.Cast) and body.dtype in _HALF and (node is None or node.op != "cast"):

        def visit(x: E.Expr) -> E.Expr | None:
            if not isinstance(x, E.Cast) or x.dtype is not body.x.dtype:
                return None
            load = x.x
            if not isinstance(load, E.Load) or load.value is not producer.out:
                return None
            if load.guard is not None:
                return None
            env = dict(zip(producer.vars, load.index, strict=True))
            return E.fresh_reduction_vars(E.substitute(body.x, env))

        e = E.rewrite(e, visit)
    return E.inline(e, producer)


def _has_reduce(e: E.Expr) -> bool:
    return any(isinstance(x, E.Reduce) for x in E.walk(e))


def _expensive(e: E.Expr) -> bool:
    return any(getattr(x, "fn", "") in _EXPENSIVE and x.dtype.is_float for x in E.walk(e))


def _trivial(stage: E.Stage) -> bool:
    """Work cheaper than reading its result: constants, casts and broadcasts of one operand, and
    dequantizing one."""
    every = [x for x in E.walk(stage.expr) if isinstance(x, E.Load)]
    body = [x for x in every if x.value.numel != 1] or every
    if not body:
        return not _expensive(stage.expr)
    if len(body) > 1 or body[0].guard is not None:
        return False
    index = body[0].index
    plain = all(isinstance(i, (E.Var, E.Const)) for i in index)
    rest = [x for x in E.walk(stage.expr) if not isinstance(x, (E.Load, E.Var, E.Const, E.Cast))]
    if len(every) > 1:
        fns = {x.fn for x in rest if isinstance(x, E.Binary)}
        if body[0].dtype.bits > 8 or len(rest) > 2 or not fns <= {"sub", "mul"}:
            return False
        rest = [x for x in rest if not isinstance(x, E.Binary)]
    in_order = [i for i in index if isinstance(i, E.Var)]
    ordered = in_order == [v for v in stage.vars if v in in_order]
    return plain and ordered and not rest


def _own_index(ld: E.Load, variables: tuple[E.Var, ...]) -> bool:
    if ld.guard is not None or len(ld.index) != len(variables):
        return False
    return all(
        i is v or (v.extent == 1 and isinstance(i, E.Const) and i.value == 0)
        for i, v in zip(ld.index, variables, strict=True)
    )


def _evaluations(region: Region, v: Value) -> float | None:
    """How often the region would evaluate each element of ``v`` on average; None: unknown."""
    total: D.DimLike = 0
    for s in region.stages:
        points = D.product(x.extent for x in s.vars)
        total = total + points * _load_points(s.expr, v)
    numel = v.numel
    if D.is_static(total, numel):
        return int(total) / max(int(numel), 1)  # type: ignore[arg-type]
    ratio = D.floor_div(total, numel)
    return float(ratio) if isinstance(ratio, int) and ratio * numel == total else None


def _load_points(e: E.Expr, v: Value) -> D.DimLike:
    """Loads of ``v`` per evaluation of ``e``, reductions multiplied out."""
    memo: dict[int, D.DimLike] = {}

    def count(x: E.Expr) -> D.DimLike:
        if id(x) in memo:
            return 0  # shared subexpressions are evaluated once
        memo[id(x)] = 0
        inner: D.DimLike = 1 if isinstance(x, E.Load) and x.value is v else 0
        for c in E.children(x):
            inner = inner + count(c)
        if isinstance(x, E.Reduce) and inner != 0:
            inner = inner * D.product(r.extent for r in x.vars)
        return inner

    return count(e)


def _ordered(regions: list[Region], views: dict[Value, Value]) -> list[Region]:
    """Regions in data-flow order, keeping the given order where it is free."""
    maker = {v: r for r in regions for v in r.outputs}
    teller = {s: r for r in regions for n in r.nodes for s in n.meta.get("data_dims", ())}
    done: set[Region] = set()
    order: list[Region] = []

    def base(v: Value) -> Value:
        while v in views:
            v = views[v]
        return v

    def before(region: Region) -> list[Region]:
        """Regions whose results it reads, or which tell a size of what it makes."""
        sizes = {s for n in region.nodes for v in n.outputs for s in data_symbols(v)}
        found = [maker.get(base(v)) for v in region.inputs]
        found += [teller.get(s) for s in sorted(sizes)]
        return [r for r in found if r is not None and r is not region]

    active: set[Region] = set()
    for root in regions:
        stack = [(root, iter(before(root)))]
        while stack:
            region, rest = stack[-1]
            active.add(region)
            for dep in rest:
                if dep not in done and dep not in active:
                    stack.append((dep, iter(before(dep))))
                    break
            else:
                stack.pop()
                if region not in done:
                    done.add(region)
                    order.append(region)
    return order
