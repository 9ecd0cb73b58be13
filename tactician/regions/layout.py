"""Assigns memory layouts: channels-last through chains of convolutions.

Values are logically ``[N, C, spatial…]``. A convolution kernel that works on vectors of channels
wants its operands stored ``[N, spatial…, C]``; pointwise, pooling and other loop nests take any
layout, because a layout only permutes the indices of their loads and stores. So convolutions
choose, loop nests between them follow, and reformatting regions are added where a value is
needed in the other layout (graph inputs and outputs, views, everything else is row-major).

The pieces of a concatenation along channels are written into its memory by their producers:
their twins are slices of its twin (``meta["slice_of"]``), whose pixels lie further apart
(`region.pitch`). A value that is needed in several concatenations is a slice of the first and
copied into the others.

A value stored channels-last is represented by a *physical* twin with the permuted shape;
``twin.meta["logical"]`` is the value it stands for and ``meta["perm"]`` its permutation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ..ir import dims as D
from ..ir import expr as E
from ..ir.graph import Graph, Node, Value
from .fuse import Fusion
from .region import Region, is_slice

_CONVOLUTIONS = frozenset({"convolution", "deconvolution", "int_conv"})
_FEW_CHANNELS = 4  # up to here a convolution may read channels-first input in place


def channels_last(rank: int) -> tuple[int, ...]:
    """The permutation from logical to physical dimensions."""
    return (0, *range(2, rank), 1)


def assign_layouts(
    graph: Graph, fusion: Fusion, wants: Callable[[Region], bool],
    accepts: Callable[[Region], bool], alignment: int = 1, in_place_bits: int = 32,
) -> Fusion:
    """Rewrites regions for channels-last storage where that pays.

    Args:
        graph: The graph the regions come from.
        fusion: Its regions; changed in place.
        wants: Whether a region's kernel works channels-last (a convolution).
        accepts: Whether a loop nest can be compiled at all; others keep row-major operands.
        alignment: Bytes that the first pixel of a slice must be a multiple of.
        in_place_bits: Elements of so many bits or more are read in place where a convolution has
            few input channels.

    Returns:
        A fusion with reformatting regions added.
    """
    return _Assigner(graph, fusion, wants, accepts, alignment, in_place_bits).run()


class _Assigner:
    def __init__(
        self, graph: Graph, fusion: Fusion, wants: Callable[[Region], bool],
        accepts: Callable[[Region], bool], alignment: int, in_place_bits: int,
    ):
        self.fusion = fusion
        self.in_place_bits = in_place_bits
        self.alignment = alignment
        self.wants = {
            r for r in fusion.regions
            if r.anchor is not None and r.anchor.op in _CONVOLUTIONS and wants(r)
        }
        self.accepts = accepts
        self.pinned = set(graph.outputs) | {
            base for base in fusion.bases() if not _same_either_way(base)
        }
        self.readers: dict[Value, list[Region]] = {}
        for r in fusion.regions:
            for v in r.inputs:
                self.readers.setdefault(v, []).append(r)
        self.last: set[Value] = set()  # values whose producer writes them channels-last
        self.twins: dict[Value, Value] = {}
        self.plain: set[Value] = set()  # of those, which also exist row-major
        self.regions: list[Region] = []

    def run(self) -> Fusion:
        if not self.wants:
            return self.fusion
        for region in self.fusion.regions:
            if region in self.wants:
                self._convolution(region)
            elif region.anchor is None and self._follows(region):
                self._loops(region)
            elif region.anchor is None and self._turns_back(region):
                self._store_last(region.outputs)
                self._rewrite(region, None)
                self.regions.append(region)
            else:
                for v in region.inputs:
                    self._need_plain(v)
                self.regions.append(region)
            for v in [x.meta.get("logical", x) for x in region.outputs]:
                if v in self.pinned:
                    self._need_plain(v)
        for base in self.fusion.bases():
            self._need_plain(base)
        self.fusion.regions = self.regions
        return self.fusion

    # --- choosing ---------------------------------------------------------------------------

    def _follows(self, region: Region) -> bool:
        """Whether a loop nest reads mostly channels-last values and can go along."""
        near = [v for v in region.inputs if v in self.last]
        if not near or not self.accepts(region):
            return False
        if "concat" in region.stages[-1].meta:
            pieces = [v for v, _ in region.stages[-1].meta["concat"]]
            return all(v in self.last for v in pieces) and not self.pinned & set(region.outputs)
        return True

    def _turns_back(self, region: Region) -> bool:
        """Whether a loop nest moves channels from the last place to where convolutions have
        them: stored channels-last, its result runs along memory as its operands do."""
        v = region.outputs[0]
        if len(region.outputs) > 1 or v.rank < 3 or "concat" in region.stages[-1].meta:
            return False
        if not any(r in self.wants and r.anchor is not None and v is r.anchor.inputs[0]
                   for r in self.readers.get(v, ())):
            return False
        plain = [x for x in E.loads(region.stages[-1].expr) if x.value in region.inputs
                 and x.value.rank == v.rank and not _same_either_way(x.value)]
        along = region.stages[-1].vars[1]
        return bool(plain) and all(x.index[-1] == along for x in plain) and self.accepts(region)

    # --- rewriting ---------------------------------------------------------------------------

    def _convolution(self, region: Region) -> None:
        anchor = region.anchor
        assert anchor is not None
        x = anchor.inputs[0]
        assert x is not None
        few = _few_channels(x) and anchor.attrs.groups == 1
        few = few and x.dtype.bits >= self.in_place_bits
        as_is = x in self.last or few or _same_either_way(x) or self._written_last(x)
        if not as_is:
            self._add_reformat(x, to_last=True)
        # epilogue operands in row-major order are read through their indices
        self._store_last(v for v in region.outputs if not _same_either_way(v))
        self._rewrite(region, anchor.outputs[0])
        if x in self.twins and not as_is:
            region.physical[x] = self.twins[x]
            region.inputs = [self.twins[x] if v is x else v for v in region.inputs]
        self.regions.append(region)

    def _written_last(self, x: Value) -> bool:
        """Has the loop nest that computes ``x`` store it channels-last at once, if convolutions
        that want it so are all that reads it; returns whether it does."""
        if x in self.pinned or x in self.twins:
            return False
        for r in self.readers.get(x, ()):
            if r not in self.wants or r.anchor is None or x in r.anchor.inputs[1:]:
                return False
        maker = next((r for r in self.regions if x in r.outputs), None)
        if maker is None or maker.anchor is not None or maker.reformat or len(maker.outputs) > 1:
            return False
        if "concat" in maker.stages[-1].meta or not self.accepts(maker):
            return False
        self._store_last([x])
        self._rewrite(maker, None)
        return True

    def _loops(self, region: Region) -> None:
        # a pinned result (graph output, base of a view) is written row-major at once
        free = [v for v in region.outputs if v not in self.pinned and v.rank >= 3
                and self._wanted_last(v) and not self._turned(region, v)]
        same = {v.rank for v in region.inputs if v in self.last}
        self._store_last(v for v in free if v.rank in same and not _same_either_way(v))
        channels = region.stages[-1].meta.get("axis") == 1
        self._rewrite(region, None)
        if channels and "concat" in region.stages[-1].meta and len(region.stages) == 1:
            self._join(region.stages[-1])
        self.regions.append(region)

    def _wanted_last(self, v: Value) -> bool:
        """Whether anything may read ``v`` channels-last."""
        readers = self.readers.get(v, ())
        return not readers or any(r in self.wants or r.anchor is None for r in readers)

    def _turned(self, region: Region, v: Value) -> bool:
        """Whether the region itself puts channels last, so that ``v`` stored row-major runs along
        memory as its operands do."""
        places = set()
        for s in region.stages:
            for x in E.loads(s.expr):
                if x.value in self.last and x.value.rank == v.rank == len(s.vars):
                    along = x.index[1]  # the channel: innermost in memory
                    places |= {s.vars.index(along)} if along in s.vars else set()
        return places == {v.rank - 1}

    def _join(self, stage: E.Stage) -> None:
        """Has the pieces of a channels-last concatenation written in their places."""
        pieces = [v for v, _ in stage.meta["concat"]]
        if any(not isinstance(d, int) for d in (stage.out.dims[-1], *(v.dims[-1] for v in pieces))):
            return
        if any("logical" not in v.meta for v in (stage.out, *pieces)):
            return
        size = stage.out.dtype.size
        if any(D.modulo(at * size, self.alignment) != 0 for _, at in stage.meta["concat"]):
            return
        placed: list[tuple[Value, Any]] = []
        for v, at in stage.meta["concat"]:
            if is_slice(v) or v in [p for p, _ in placed]:
                v = self._copy(v)
            v.meta["slice_of"] = stage.out
            placed.append((v, at))
        stage.meta["concat"] = placed

    def _copy(self, v: Value) -> Value:
        """A region that copies a value, which is in another concatenation already."""
        copy = Value(f"{v.name} (again)", v.dtype, v.dims)
        copy.meta = {k: x for k, x in v.meta.items() if k != "slice_of"}
        variables = E.iter_vars(v.dims)
        node = Node("identity", [], None, f"copy {v.name}")
        region = Region([node], stages=[E.Stage(copy, variables, E.load(v, variables))])
        region.find_inputs()
        region.outputs, region.reformat = [copy], True
        self.regions.append(region)
        return copy

    def _store_last(self, values: Iterable[Value]) -> None:
        for v in values:
            self.last.add(v)
            self._twin(v)

    def _rewrite(self, region: Region, anchor_out: Value | None) -> None:
        """Permutes loads and stores of channels-last values in the region's stages."""
        # in order: region signatures, and so timing cache keys, list them
        moved = dict.fromkeys(v for v in (*region.inputs, *region.outputs) if v in self.last)
        if anchor_out is not None and not _same_either_way(anchor_out):
            moved[anchor_out] = None
            self._twin(anchor_out)
        twins = {v: self.twins[v] for v in moved}
        permute_stages(region.stages, twins)
        region.physical.update(twins)
        region.inputs = [twins.get(v, v) for v in region.inputs]
        region.outputs = [twins.get(v, v) for v in region.outputs]

    # --- twins and reformatting --------------------------------------------------------------

    def _twin(self, v: Value) -> Value:
        if v not in self.twins:
            perm = channels_last(v.rank)
            twin = Value(f"{v.name} (channels last)", v.dtype, tuple(v.dims[p] for p in perm))
            twin.meta = {"logical": v, "perm": perm}
            self.twins[v] = twin
        return self.twins[v]

    def _need_plain(self, v: Value) -> None:
        if v in self.last and v not in self.plain:
            self._add_reformat(v, to_last=False)
            self.plain.add(v)

    def _add_reformat(self, v: Value, to_last: bool) -> None:
        if to_last and v in self.twins:
            return
        twin, perm = self._twin(v), channels_last(v.rank)
        node = Node("transpose", [], None, f"reformat {v.name}")
        if to_last:
            variables = E.iter_vars(twin.dims)
            index = [variables[perm.index(i)] for i in range(v.rank)]
            stage = E.Stage(twin, variables, E.load(v, index))
        else:
            variables = E.iter_vars(v.dims)
            stage = E.Stage(v, variables, E.load(twin, [variables[p] for p in perm]))
        region = Region([node], stages=[stage])
        region.find_inputs()
        region.outputs = [stage.out]
        region.reformat = True
        self.regions.append(region)


def permute_stages(stages: list[E.Stage], twins: dict[Value, Value]) -> None:
    """Makes stages load and store the physical twins of the given values, in place."""

    def moved(x: E.Expr) -> E.Expr | None:
        if not isinstance(x, E.Load) or x.value not in twins:
            return None
        index = tuple(x.index[p] for p in channels_last(x.value.rank))
        return E.Load(x.dtype, twins[x.value], index, x.guard, x.other)

    for s in stages:
        s.expr = E.rewrite(s.expr, moved)
        if "concat" in s.meta:
            s.meta["concat"] = [(twins.get(v, v), at) for v, at in s.meta["concat"]]
        if s.out in twins:
            perm = channels_last(s.out.rank)
            s.vars = tuple(s.vars[p] for p in perm)
            if "axis" in s.meta:
                s.meta["axis"] = perm.index(s.meta["axis"])
            s.out = twins[s.out]


def _few_channels(v: Value) -> bool:
    c = v.dims[1]
    return isinstance(c, int) and c <= _FEW_CHANNELS and D.is_static(*v.dims[2:])


def _same_either_way(v: Value) -> bool:
    """Whether both layouts are the same memory: one channel, or one position."""
    if v.rank < 3:
        return True
    return v.dims[1] == 1 or all(d == 1 for d in v.dims[2:])
