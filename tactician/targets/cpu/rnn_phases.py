"""Recurrent networks whose units are divided between threads.

What `rnn` does for one batch entry after the other, this does for few entries with all threads: a
work item is one panel of units. The items of a step are a phase (`Kernel.phase`), so that every
panel of a step sees all states of the step before. States and sums lie in memory that the items
share. Every block of steps begins with a phase for what the inputs add to the sums.

Every other phase goes through its panels backwards: the weights it begins with are then still in
the caches of the core that used them last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...ir import dims as D
from ...ir.graph import Value
from ...regions.region import Region
from ...tactics.kernel import Kernel
from ...tactics.tactic import Tactic, register_tactic
from . import rnn
from .codegen import Num
from .isa import Isa
from .rnn import Group
from .vecmath import const

_MOST_ROWS = 8  # more batch entries are shared out by themselves
_LEAST_WEIGHTS = 1 << 15  # of a step, below which waiting costs more than it saves
_GRAIN_FLOPS = 30_000


class _Phases(rnn.Builder):
    """Emits one kernel."""

    def __init__(self, region: Region, isa: Isa):
        batch = _batch(region)
        assert isinstance(batch, int)
        super().__init__(region, batch, isa)
        shared = Value("states", self.dtype, (self.dirs * self.elements,))
        self.shared = self._take(shared)
        self.b0 = 0
        self.per_phase = self.dirs * self.packed.panels
        # of a block: one for the inputs, then every step's
        self.parts = len(self.packed.groups)
        self.phases = 1 + rnn.BLOCK * self.parts

    def build(self) -> Kernel:
        g, p = self.g, self.packed
        with g.loop(g.begin, g.end) as item:
            phase = g.div(item.index, self.per_phase)
            first = g.mul(phase, self.per_phase)
            low, high = g.max(g.begin, first), g.min(g.end, g.add(first, self.per_phase))
            backwards = g.sub(g.sub(g.add(low, high), 1), item.index)
            odd = g.test("==", g.mod(phase, 2), 1)
            place = g.sub(g.b.select(odd, g.value(backwards), item.index), first)
            self.dir = g.div(place, p.panels) if self.dirs > 1 else 0
            panel = g.mod(place, p.panels) if self.dirs > 1 else place
            self.memory = g.at(self.shared, g.mul(self.dir, self.elements), self.unit)
            self._one(g.div(phase, self.phases), g.mod(phase, self.phases), panel)
        blocks = D.ceil_div(self.steps_dim, rnn.BLOCK)
        hidden = self.a.hidden * max(len(s.h) for s in p.groups) * self.lanes
        return Kernel(
            g.symbol, g.finish(), tuple(self.args), tuple(g.dims),
            blocks * (self.phases * self.per_phase),
            max(1, _GRAIN_FLOPS // (2 * hidden * self.rows)), flops=self._flops(),
            phase=self.per_phase,
        )  # fmt: skip

    def _one(self, block: Num, phase: Num, panel: Num) -> None:
        """Phase ``phase`` of a block for a panel."""
        g = self.g
        first = g.mul(block, rnn.BLOCK)
        with g.b.if_else(g.b.icmp_signed("==", g.value(phase), g.value(0))) as (inputs, steps):
            with inputs:
                with g.b.if_then(g.b.icmp_signed("==", g.value(block), g.value(0))):
                    self._begin(panel)
                count = g.min(rnn.BLOCK, g.sub(self.steps, first))
                for number, group in enumerate(self.packed.groups):
                    self._inputs(number, group, panel, first, count)
            with steps:
                which = g.sub(phase, 1)
                in_block, part = g.div(which, self.parts), g.mod(which, self.parts)
                step = g.add(first, in_block)
                with g.b.if_then(g.b.icmp_signed("<", g.value(step), g.value(self.steps))):
                    self._part(step, in_block, part, panel)

    def _part(self, step: Num, in_block: Num, part: Num, panel: Num) -> None:
        g = self.g
        self._enter(step, in_block)
        for number, group in enumerate(self.packed.groups):
            def body(number: int = number, group: Group = group) -> None:
                self._panel_of(number, group, panel, step)

            self._if(g.test("==", part, number) if self.parts > 1 else True, body)

    def _panel_of(self, number: int, group: Group, panel: Num, step: Num) -> None:
        g, rest = self.g, self.a.hidden % self.lanes
        final, t = number == self.parts - 1, self._time(step)
        whole = self.a.hidden // self.lanes

        def do(width: int) -> None:
            self._panel(number, group, panel, width, t, final)

        if rest and whole:
            narrow = g.b.icmp_signed("==", g.value(panel), g.value(whole))
            with g.b.if_else(narrow) as (last, others):
                with last:
                    do(rest)
                with others:
                    do(self.lanes)
        else:
            do(rest or self.lanes)
        if final:
            end = g.b.icmp_signed("==", g.value(step), g.value(g.sub(self.steps, 1)))
            with g.b.if_then(end):
                self._end(panel)

    # --- first and last states -------------------------------------------------------------

    def _units(self, panel: Num) -> tuple[Num, Num]:
        """First and last unit of a panel."""
        g = self.g
        first = g.mul(panel, self.lanes)
        return first, g.min(g.add(first, self.lanes), self.a.hidden)

    def _begin(self, panel: Num) -> None:
        g = self.g
        first, last = self._units(panel)
        for at, source in ((0, self.h0), (self.at_c, self.c0)):
            if at and self.a.cell != "lstm":
                continue
            for r in range(self.rows):
                g.store(const(self.vec, 0), self._slot(at, r, first), self.unit)
                if source is not None:
                    row = self._state_at(source, r)
                    with g.loop(first, last) as u:
                        x = g.load(self.scalar, g.at(row, u.index, self.unit))
                        g.store(x, self._slot(at, r, u.index))

    def _end(self, panel: Num) -> None:
        g = self.g
        first, last = self._units(panel)
        states = [(self.h_new, self.outs[1])]
        if self.a.cell == "lstm":
            states.append((self.at_c, self.outs[2]))
        for at, out in states:
            for r in range(self.rows):
                row = self._state_at(out, r)
                with g.loop(first, last) as u:
                    x = g.load(self.scalar, self._slot(at, r, u.index))
                    g.store(x, g.at(row, u.index, self.unit))


def _batch(region: Region) -> D.DimLike:
    assert region.anchor is not None and region.anchor.inputs[0] is not None
    return region.anchor.inputs[0].dims[1 - region.anchor.attrs.layout]


@register_tactic
class RecurrentPhases(Tactic):
    """LSTM, GRU and RNN of few batch entries, units divided between threads."""

    name = "rnn_phases"
    target = "cpu"
    priority = 12

    def refuse(self, region: Region, device: Any) -> str | None:
        reason = rnn.refuse(region)
        if reason is not None:
            return reason
        assert region.anchor is not None
        batch, weights = _batch(region), region.anchor.inputs[2]
        if not isinstance(batch, int) or batch > _MOST_ROWS:
            return "batch entries are shared out by themselves"
        if device.threads < 2:
            return "there is one thread"
        if weights is None or weights.const is None or weights.const.size < _LEAST_WEIGHTS:
            return "waiting for all threads at every step would take too long"
        return None

    def candidates(self, region: Region, device: Any) -> Sequence[str]:
        return ("panels",)

    def build(self, region: Region, candidate: Any, device: Any) -> Kernel:
        return _Phases(region, device.isa).build()
