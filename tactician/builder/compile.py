"""Drives a network's graph through passes, fusion, tuning and scheduling into a program."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

from ..ir import dims as D
from ..ir.graph import Graph, Node, Value
from ..ir.verify import verify
from ..ops import get
from ..ops.registry import Kind, OpError
from ..passes.manager import PassTrace
from ..passes.pipeline import optimize
from ..plan.program import Profile, Program
from ..regions.chain import join_pairs
from ..regions.fuse import Fusion, fuse
from ..regions.layout import assign_layouts, permute_stages
from ..regions.region import Region
from ..regions.specialize import at_sizes, makes_sense, symbols_of
from ..support import logger as log
from ..support.errors import BuildError, RefusedError
from ..tactics.kernel import Kernel
from ..tactics.tactic import tactics_for
from ..tactics.tuner import CacheMiss, Choice, Tuner, TunerSettings
from .algorithms import Selection
from .control import emit_assertion, emit_control, why_not_native
from .debug import graph_dumper, show_program, show_source
from .fixed import declare, with_fixed_sizes
from .mixed import Mixed
from .precision import apply_precisions, apply_ranges
from .schedule import POINTER_ALIGNMENT, Scheduler, concat_is_contiguous
from .settings import BuildSettings

_GAIN = 0.98  # a special kernel's time over the general one's that makes it worth packed weights
_NEAR = 1.2  # the same for one that needs none of its own
_SAME = 2.0  # and for the general kernel's candidate: it does no more, so times are off
_DEFAULT_SIZE = 4  # a symbolic size nothing is known of is tuned for this


@dataclass
class BuildReport:
    """What happened during a build, for logs and tools.

    Attributes:
        trace: Passes with times and node counts.
        regions: Regions after fusion.
        measured, cached: Regions measured, and taken from the timing cache.
        reference: (layer, op, reason) of every step that runs in numpy.
    """

    trace: PassTrace = field(default_factory=PassTrace)
    regions: int = 0
    measured: int = 0
    cached: int = 0
    reference: list[tuple[str, str, str]] = field(default_factory=list)


Progress = Callable[[str, int, int], bool]
"""Called as (phase, done, total); returning False cancels the build."""


def compile_network(
    graph: Graph, settings: BuildSettings, name: str = "", progress: Progress | None = None
) -> tuple[Program, BuildReport]:
    """Compiles a network.

    Args:
        graph: The network's graph with control flow lowered; it is not changed.
        settings: See `BuildSettings`.
        name: The network's name, stored in the program.
        progress: Called while building.

    Raises:
        BuildError: If the network is invalid, or a constraint can't be met.
    """
    _check(graph)
    began = time.perf_counter()
    given, graph = graph, _copy(graph, settings)
    report = BuildReport()
    _tell(progress, "Optimizing the graph", 0, 1)
    dump = graph_dumper()
    if dump is not None:
        dump("import", graph)
    device = make_device(settings)
    in_parts: set[Node] = set()
    takes_any = True

    def takes(node: Node) -> bool:
        if settings.target == "reference" or node in in_parts:
            return False
        return (takes_any or node.op != "attention") and takes_whole(node, device)

    settings = _with_cache(settings)
    optimize(graph, report.trace, dump, takes)
    if apply_ranges(graph, settings, takes, _stays_wide(graph, settings, device)):
        optimize(graph, report.trace, dump, takes)
    apply_precisions(graph, settings, device, report.trace, dump, takes)
    verify(graph)
    _mark_shape_outputs(graph, given)
    _tell(progress, "Optimizing the graph", 1, 1)
    row_major: set[Node] = set()
    given_up: set[str] = set()
    while True:
        program = Program(name or graph.name, settings.target, device.fingerprint)
        fusion = fuse(graph, enabled=settings.target != "reference")
        if settings.target != "reference":
            fusion = lay_out(graph, fusion, device, row_major)
        report.regions, report.reference = len(fusion.regions), []
        try:
            selection = _selection(graph, settings)
            _Compiler(
                graph, fusion, program, device, settings, report, progress, row_major, given_up,
                selection,
            ).run()
            break
        except _NotChannelsLast as e:
            if row_major >= e.nodes:
                raise BuildError(f"no kernel for {', '.join(map(repr, e.nodes))}") from None
            row_major |= e.nodes
        except _NotWhole as e:
            in_parts.add(e.node)
            takes_any = False  # the parts must not be found to be attention again
            optimize(graph, report.trace, dump, takes)
            _leave_whole(graph)
        except _CodeFailed as e:
            log.verbose(f"other kernels are chosen: {e}", settings.logger)
    _complete(program, settings, device, selection)
    declare(program, given)
    show_program(program, time.perf_counter() - began)
    return program, report


def _copy(graph: Graph, settings: BuildSettings) -> Graph:
    """A graph to work on, in which sizes are known that vary in no profile."""
    graph = graph.clone()[0]
    _merge_symbols(graph)
    return with_fixed_sizes(graph, settings.profiles)


def _stays_wide(graph: Graph, settings: BuildSettings, device: Any) -> Any:
    """What tells whether layers that may compute in INT8 are faster in FP32, if times tell."""
    if settings.target != "cpu" or settings.optimization_level < 1 or not device.can_time:
        return None
    tuner = Tuner(device, tuner_settings(graph, settings))
    return Mixed(tuner, lambda g, fusion: lay_out(g, fusion, device, set())).stays


def tuner_settings(graph: Graph, settings: BuildSettings, select: Any = None) -> TunerSettings:
    """What of the settings concerns choosing kernels for a graph."""
    return TunerSettings(
        level=settings.optimization_level,
        cache=settings.timing_cache,
        sources=settings.tactic_sources,
        most=settings.max_num_tactics,
        error_on_miss=settings.error_on_cache_miss,
        env=tuning_sizes(graph, settings),
        workspace=settings.workspace,
        exact=settings.strict_nans,
        select=select,
    )


def _mark_shape_outputs(graph: Graph, given: Graph) -> None:
    """Notes which outputs are for shapes; passes may have put other values in their places."""
    marked = {v.name for v in given.outputs if v.meta.get("output_for_shapes")}
    for v in graph.outputs:
        if v.name in marked:
            v.meta["output_for_shapes"] = True


def _with_cache(settings: BuildSettings) -> BuildSettings:
    """With a cache for this build at least: equal regions are measured once."""
    return settings if settings.timing_cache is not None else replace(settings, timing_cache={})


def _selection(graph: Graph, settings: BuildSettings) -> Selection | None:
    if settings.algorithm_selector is None:
        return None
    profile = settings.profiles[0] if settings.profiles else None
    return Selection(
        settings.algorithm_selector, settings.reject_empty_algorithms, graph.symbols, profile
    )


def _leave_whole(graph: Graph) -> None:
    """Marks attention that could not be taken apart."""
    for node in graph.nodes:
        if node.op == "attention":
            node.meta["whole"] = True


def _complete(
    program: Program, settings: BuildSettings, device: Any, selection: Selection | None
) -> None:
    """Notes what the program was built for, and tells the selector what it has."""
    if selection is not None:
        selection.report()
    program.profiles = [Profile(dict(p.shapes), dict(p.values)) for p in settings.profiles] or [
        Profile({})
    ]
    program.threads = settings.threads
    program.settings = _reported(settings)
    program.settings.update(device.facts())
    program.settings["libraries"] = device.libraries_of(program.code)


class _NotChannelsLast(Exception):
    """A region whose operands are stored channels-last has no kernel; its nodes must do with
    row-major operands."""

    def __init__(self, nodes: set[Node]):
        super().__init__()
        self.nodes = nodes


class _CodeFailed(Exception):
    """Kernels could not be compiled; the device knows which, so that others are chosen."""


class _NotWhole(Exception):
    """An attention node that no kernel computes right after all; it is taken apart."""

    def __init__(self, node: Node):
        super().__init__()
        self.node = node


def takes_whole(node: Node, device: Any) -> bool:
    """Whether a tactic of the device takes a node by itself."""
    region = Region([node], anchor=node)
    region.find_inputs()
    region.outputs = list(node.outputs)
    return any(
        t.refuse(region, device) is None or t.wants_channels_last(region, device)
        for t in tactics_for(device.target)
    )


def make_device(settings: BuildSettings) -> Any:
    """The device a build is for.

    Raises:
        BuildError: If there is no such target.
    """
    if settings.target in ("cpu", "reference", "null"):
        from ..targets.cpu import load_tactics
        from ..targets.cpu.device import CpuDevice

        load_tactics()
        isa = None
        if settings.hardware_compatible:
            from ..targets.cpu.isa import Isa

            isa = Isa.named("haswell") if Isa.host().triple.startswith("x86_64") else None
        return CpuDevice(isa=isa, threads=settings.threads)
    if settings.target == "cuda":
        from ..targets.cuda import load_tactics
        from ..targets.cuda.device import make_device as cuda_device

        load_tactics()
        return cuda_device(settings.gpu, tf32=settings.tf32)
    raise BuildError(
        f"there is no target {settings.target!r} in this version; use the CPU target "
        "(config.default_device_type = DeviceType.CPU)"
    )


class _Compiler:
    """State of one build after fusion."""

    def __init__(
        self, graph: Graph, fusion: Fusion, program: Program, device: Any,
        settings: BuildSettings, report: BuildReport, progress: Progress | None,
        row_major: set[Node], given_up: set[str], selection: Selection | None,
    ):
        self.fusion = fusion
        self.row_major = row_major
        self.program = program
        self.device = device
        self.settings = settings
        self.report = report
        self.progress = progress
        self.graph = graph
        self.scheduler = Scheduler(graph, fusion, program)
        select = None if selection is None else selection.select
        self.tuner = Tuner(device, tuner_settings(graph, settings, select))
        self.selection = selection
        self.opt = opt_sizes(graph, settings)
        self.code: dict[str, Future[bytes]] = {}
        self.given_up = given_up

    def run(self) -> None:
        self.scheduler.place_inputs()
        self.tuner.prefetch([x for r in self.fusion.regions for x in _with_parts(r)])
        self._schedule(self.fusion, main=True)
        self.program.code = self._code()
        if any(s.special is not None for s in self.program.steps):
            self.program.opt = self.opt
        self.scheduler.finish(self.graph.symbols)
        self.report.measured, self.report.cached = self.tuner.measured, self.tuner.hits

    def _code(self) -> list[bytes]:
        """The code of all kernels, once it is compiled."""
        out, failed = [], []
        for symbol, code in self.code.items():
            try:
                out.append(code.result())
            except RefusedError as e:
                if symbol in self.given_up:
                    raise
                self.given_up.add(symbol)
                failed.append(str(e))
        if failed:
            raise _CodeFailed("; ".join(failed))
        return out

    def schedule_graph(self, graph: Graph, placed: dict[Value, int] | None = None) -> None:
        """Adds the steps of a body; its inputs have their tensors already.

        Args:
            placed: Tensors that results are written to.
        """
        fusion = fuse(graph, enabled=self.settings.target != "reference")
        if self.settings.target != "reference":
            fusion = lay_out(graph, fusion, self.device, self.row_major)
        self.scheduler.enter(graph, fusion, placed or {})
        self._schedule(fusion)

    def _schedule(self, fusion: Fusion, main: bool = False) -> None:
        regions = fusion.regions
        waiting = {v for r in regions for v in r.outputs}
        concats = {}
        # before their producers, so that these can write in place; outer ones first
        for r in reversed(regions):
            if concat_is_contiguous(r):
                concats[r] = self.scheduler.concat_in_place(r, waiting)
        for i, region in enumerate(regions):
            if main:
                _tell(self.progress, "Choosing kernels", i, len(regions))
            if region in concats:
                for v, offset in concats[region]:
                    self.scheduler.copy_piece(v, region.outputs[0], offset)
            elif not self.scheduler.alias(region):
                self._step(region)
        if main:
            _tell(self.progress, "Choosing kernels", len(regions), len(regions))

    def add_code(self, kernel: Kernel) -> str:
        """Compiles a kernel into the program; returns its symbol."""
        symbol, code = self.device.start(kernel)
        self.code[symbol] = code
        return str(symbol)

    def _step(self, region: Region) -> None:
        if self.settings.target == "reference":
            self._reference(region, {"rejected": {"all": "the target is `reference`"}})
            return
        if region.anchor is not None and get(region.anchor.op).kind is Kind.CONTROL:
            self._control(region)
            return
        if region.anchor is not None and region.anchor.op == "assertion":
            cond = region.anchor.inputs[0]
            if cond is not None and cond.numel == 1 and cond.const is None:
                emit_assertion(self, region, _layer_info(region))
                return
        choice = self._choose(region, timed=bool(region.parts))
        if region.parts and (choice.kernel is None or self._faster_apart(region, choice)):
            for part in region.parts:
                self._step(part)
            return
        if choice.kernel is None and region.anchor is not None:
            loops = as_loops(region)
            if loops is not None:
                second = self._choose(loops)
                if second.kernel is not None:
                    region, choice = loops, second
        if choice.kernel is not None:
            if self.selection is not None:
                self.selection.took(region, choice.tactic, choice.candidate)
            self._kernels(region, choice.kernel, choice.info)
            self._specialize(region, choice, choice.kernel)
        elif (
            region.anchor is not None and region.anchor.op == "attention"
            and not region.anchor.meta.get("whole")
        ):
            raise _NotWhole(region.anchor)
        elif any("logical" in v.meta for v in (*region.inputs, *region.outputs)):
            raise _NotChannelsLast(set(region.nodes))
        elif len(region.nodes) > 1:
            for part in split(region):
                self._step(part)
        else:
            self._reference(region, choice.info)

    def _specialize(self, region: Region, general: Choice, kernel: Kernel) -> None:
        """Adds a kernel for the profile's ``opt``, unless the general one is as fast there."""
        names = symbols_of(region)
        if (
            not names or not names <= set(self.opt) or region.parts or self.selection is not None
            or kernel.before or kernel.finds is not None
        ):
            return
        try:
            if not makes_sense(region, self.opt):
                return
            with at_sizes(region, self.opt) as fixed:
                choice = self._choose(fixed, f"{general.tactic}({general.candidate})")
                most = _GAIN
                if not _worth(choice, general, _GAIN):
                    other = self.tuner.same(fixed, general)
                    if other is not None:
                        choice = other
                        most = _SAME if other.candidate == general.candidate else _NEAR
        except OpError as e:  # in a branch that is not taken for these sizes
            log.verbose(f"layer {region.name!r}: no kernel for the sizes of opt: {e}",
                        self.settings.logger)
            return
        own = choice.kernel
        if own is None or own.dims or own.before or own.finds is not None:
            return
        if not _worth(choice, general, most):
            return
        info = {**_layer_info(region), **choice.info}
        self.scheduler.special(kernel, own, self.add_code(own), info)
        self.program.steps[-1].info["at_opt"] = f"{choice.tactic}({choice.candidate})"

    def _kernels(self, region: Region, kernel: Kernel, chosen: dict[str, Any]) -> None:
        """Adds the steps of a kernel and of those before it."""
        info = {**_layer_info(region), **chosen}
        part = {k: v for k, v in info.items() if not k.startswith("time")}
        known = set(region.inputs)
        for k in (*kernel.before, kernel):
            symbol = self.add_code(k)
            show_source(region.name, k)
            own = info if k is kernel else {**part, "part": k.symbol}
            self.scheduler.kernel(region, k, symbol, own, known)
            if k.finds is not None:
                self.scheduler.learn(region, k, {**part, "part": "learn"})

    def _faster_apart(self, pair: Region, together: Choice) -> bool:
        """Whether two kernels were timed faster than the one that does both."""
        if "time_us" not in together.info:
            return False
        apart = sum(self._timed(part) for part in pair.parts)
        return apart < float(together.info["time_us"])

    def _timed(self, region: Region) -> float:
        """Timed µs of a region's best kernel, or of its parts'; infinite if none was timed."""
        alone = float(self._choose(region, timed=True).info.get("time_us", math.inf))
        if not region.parts:
            return alone
        return min(alone, sum(self._timed(part) for part in region.parts))

    def _control(self, region: Region) -> None:
        assert region.anchor is not None
        reason = why_not_native(region.anchor)
        if reason is None:
            emit_control(self, region, _layer_info(region))
        else:
            self._reference(region, {"rejected": {"native": reason}})

    def _choose(self, region: Region, like: str = "", timed: bool = False) -> Choice:
        try:
            choice = self.tuner.choose(region, like, timed)
            if self.settings.editable_cache and "times_us" in choice.info:
                log.verbose(
                    f"layer {region.name!r}: timing cache key {self.tuner.key(region)}, "
                    f"chosen {choice.tactic}({choice.candidate})", self.settings.logger
                )
            return choice
        except CacheMiss as e:
            raise BuildError(f"{e} (ERROR_ON_TIMING_CACHE_MISS is set)") from None

    def _reference(self, region: Region, info: dict[str, Any]) -> None:
        node = region.nodes[0]
        reasons = "; ".join(f"{k}: {v}" for k, v in info.get("rejected", {}).items())
        self.report.reference.append((node.name or node.op, node.op, reasons))
        self.scheduler.reference(
            node, {**_layer_info(region), "tactic": "reference", **info}
        )


def _worth(special: Choice, general: Choice, most: float) -> bool:
    """Whether a kernel for certain sizes takes at most so many times as long as the general one
    there, as far as both were timed."""
    mine, other = (c.info.get("time_us") for c in (special, general))
    return mine is None or other is None or mine <= most * other


def _with_parts(region: Region) -> list[Region]:
    return [region, *(x for p in region.parts for x in _with_parts(p))]


def lay_out(graph: Graph, fusion: Fusion, device: Any, row_major: set[Node]) -> Fusion:
    """Stores values channels-last where tactics of the device want that.

    Args:
        row_major: Nodes that have no kernel for channels-last operands.
    """
    known = tactics_for(device.target)

    def wants(r: Region) -> bool:
        return row_major.isdisjoint(r.nodes) and any(
            t.wants_channels_last(r, device) for t in known
        )

    def accepts(r: Region) -> bool:
        return row_major.isdisjoint(r.nodes) and any(t.refuse(r, device) is None for t in known)

    alignment = POINTER_ALIGNMENT.get(device.target, 1)
    in_place_bits = 8 if device.target == "cuda" else 32  # the CPU loads pairs of 16-bit channels
    fusion = assign_layouts(graph, fusion, wants, accepts, alignment, in_place_bits)

    def pair(a: Region, b: Region) -> bool:
        return any(t.takes_pair(a, b, device) for t in known)

    def head(a: Region, b: Region) -> bool:
        return any(t.takes_head(a, b, device) for t in known)

    if row_major or not any(t.joins for t in known):
        return fusion
    return join_pairs(fusion, pair, head, graph.outputs)


def as_loops(region: Region) -> Region | None:
    """An anchored region as a plain loop nest, if the anchor's op can be said as one."""
    assert region.anchor is not None
    stages = get(region.anchor.op).stages(region.anchor)
    if stages is None:
        return None
    permute_stages(stages, region.physical)
    out = Region(list(region.nodes), None, [*stages, *region.stages], physical=region.physical)
    out.find_inputs()
    out.outputs = list(region.outputs)
    return out


def split(region: Region) -> list[Region]:
    """One region per node, for regions that no tactic takes whole."""
    return [fuse_single(node) for node in region.nodes]


def fuse_single(node: Node) -> Region:
    """The region of one node by itself."""
    from ..regions.fuse import is_anchor

    stages = None if is_anchor(node) else get(node.op).stages(node)
    region = Region([node], node if stages is None else None, list(stages or []))
    region.find_inputs()
    region.outputs = list(node.outputs)
    return region


def tuning_sizes(graph: Graph, settings: BuildSettings) -> dict[str, int]:
    """The value of every symbol that kernels are tuned for: the first profile's ``opt``."""
    env: dict[str, int] = {}
    names = set(_symbols_in(graph))
    ranges = settings.profiles[0].dim_ranges(graph.symbols) if settings.profiles else {}
    for n in names:
        env[n] = max(ranges[n][1] if n in ranges else _DEFAULT_SIZE, 0)
    return env


def opt_sizes(graph: Graph, settings: BuildSettings) -> dict[str, int]:
    """Symbols of inputs whose kernels get a version of their own for the first profile's
    ``opt``: on the CPU, where sizes that are known make better code."""
    if settings.target != "cpu" or settings.optimization_level < 1 or not settings.profiles:
        return {}
    ranges = settings.profiles[0].dim_ranges(graph.symbols)
    return {name: opt for name, (_, opt, _) in sorted(ranges.items())}


def _symbols_in(graph: Graph) -> Iterator[str]:
    for v in graph.values():
        known = () if v.content is None else v.content.flat
        for d in (*(v.shape or ()), *known):
            yield from D.symbols(d)
    for node in graph.nodes:
        for body in node.subgraphs:
            yield from _symbols_in(body)


def _merge_symbols(graph: Graph) -> None:
    """Registers symbols that only appear in input shapes."""
    from ..ir.graph import SymbolInfo

    for v in graph.inputs:
        for i, d in enumerate(v.dims):
            for s in D.symbols(d):
                if d == D.sym(s) and s not in graph.symbols:
                    graph.symbols[s] = SymbolInfo(s, "dim", v.name, i)


def _check(graph: Graph) -> None:
    """Reports every invalid layer at once."""
    problems = [n.error for n in graph.nodes if n.error]
    if not graph.outputs:
        problems.append("the network has no outputs; call network.mark_output(tensor)")
    if problems:
        raise BuildError("\n".join(problems))


def _layer_info(region: Region) -> dict[str, Any]:
    layers = [x for n in region.nodes for x in n.meta.get("layers", (n.name or n.op,))]
    sources = [n.source for n in region.nodes if n.source]
    metadata = dict.fromkeys(n.meta["metadata"] for n in region.nodes if n.meta.get("metadata"))
    more = {"Metadata": ", ".join(metadata)} if metadata else {}
    return more | {
        "layers": list(dict.fromkeys(layers)),
        "ops": [n.op for n in region.nodes],
        "sources": list(dict.fromkeys(sources)),
        "fused": len(region.nodes),
    }


def _reported(settings: BuildSettings) -> dict[str, Any]:
    return {
        "precisions": sorted(settings.precisions),
        "optimization_level": settings.optimization_level,
        "strongly_typed": settings.strongly_typed,
        "refit": settings.refit,
        "version_compatible": settings.version_compatible,
        "hardware_compatible": settings.hardware_compatible,
        "verbosity": settings.verbosity,
        "hardware_level": settings.hardware_level,
        "max_batch_size": settings.max_batch_size,
        "tactic_sources": None if settings.tactic_sources is None
        else sorted(settings.tactic_sources),
    }


def _tell(progress: Progress | None, phase: str, done: int, total: int) -> None:
    if progress is not None and not progress(phase, done, total):
        raise BuildError(f"the build was cancelled while {phase.lower()}")


__all__ = ["BuildReport", "compile_network", "make_device"]
