"""``torch.compile(model, backend="tactician")``.

torch gives a graph and guards when it holds; AOTAutograd turns it into ATen overloads without
mutations. What importers know becomes engines, the rest stays with torch. Weights are constants
of engines: if one changes, the next call makes an engine with the new ones (or finds it in the
cache).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ..support import knobs
from ..support import logger as log
from ..support.errors import BuildError, UsageError
from .cache import EngineCache
from .compiling import compile_piece
from .engines import Settings, device_of
from .lower import Piece, decompositions, is_random, limits_of
from .partition import MIN_BLOCK

_VARIANTS = 8  # engines of one graph with different weights
_UPDATES = 3  # so many updates of weights in a row mean training


@dataclass(frozen=True)
class Options:
    """Options of ``torch.compile(…, options={…})``.

    Attributes:
        settings: How engines are built; its fields are options of their own.
        min_block_size: Fewer calls in a row stay in torch.
        torch_executed_ops: Overloads that stay in torch.
        require_full_compilation: Raise where anything would stay in torch.
        cache: Where engines are kept; None keeps none.
    """

    settings: Settings = field(default_factory=Settings)
    min_block_size: int = MIN_BLOCK
    torch_executed_ops: tuple[str, ...] = ()
    require_full_compilation: bool = False
    cache: EngineCache | None = None

    @staticmethod
    def of(given: Mapping[str, Any] | None) -> Options:
        """Options by name; `Settings`' fields, ``precision``, ``enabled_precisions``,
        ``workspace_size``, ``cache`` and ``cache_folder`` besides its own.

        Raises:
            UsageError: Naming every option there is, if one is unknown.
        """
        left = dict(given or {})
        precisions = left.pop("enabled_precisions", None) or left.pop("precisions", None) or ()
        one = left.pop("precision", None)
        if one is not None:
            precisions = [*precisions, *([one] if not isinstance(one, (list, tuple, set)) else one)]
        folder = left.pop("cache_folder", None)
        wanted = left.pop("cache", True) and (folder is not None or knobs.engine_cache())
        settings = Settings(
            precisions=Settings.precisions_of(precisions),
            workspace=left.pop("workspace_size", None) or left.pop("workspace", None),
            **{k: left.pop(k) for k in _PLAIN if k in left},
        )
        out = Options(
            settings,
            int(left.pop("min_block_size", MIN_BLOCK)),
            tuple(map(str, left.pop("torch_executed_ops", ()))),
            bool(left.pop("require_full_compilation", False)),
            EngineCache(folder) if wanted else None,
        )
        if left:
            known = sorted({*_PLAIN, "precision", "enabled_precisions", "workspace_size", "cache",
                            "cache_folder", "min_block_size", "torch_executed_ops",
                            "require_full_compilation"})
            raise UsageError(f"torch.compile's backend tactician has no options {sorted(left)}; "
                             f"it has {', '.join(known)}")
        return out


_PLAIN = ("optimization_level", "threads", "strict", "tf32")


def tactician(gm: Any, example_inputs: Sequence[Any], *, options: Mapping[str, Any] | None = None,
              mode: str | None = None, **others: Any) -> Callable[..., Any]:
    """The backend itself, as torch calls it.

    Args:
        gm: torch's graph.
        example_inputs: Its arguments at the first call.
        options: See `Options`.
        mode: ``default``, ``reduce-overhead`` (the same), ``max-autotune`` (every kernel is
            timed) or None.

    Returns:
        What torch calls instead of the graph.
    """
    from torch._dynamo.backends.common import aot_autograd

    merged = {**others, **(options or {})}
    if mode is not None:
        merged.setdefault("optimization_level", 5 if mode.startswith("max-autotune") else 3)
    chosen = Options.of(merged)
    chosen = replace(chosen, settings=replace(chosen.settings, device=device_of(example_inputs)))
    static = [i for i, x in enumerate(example_inputs) if _is_weight(x)]
    state: dict[str, Any] = {}

    def compile_graph(graph: Any, fakes: Sequence[Any]) -> Any:
        state["graph"] = out = CompiledGraph(graph, chosen, static, len(example_inputs),
                                             held=_own_tensors(gm))
        state["meta"] = torch._guards.TracingContext.get().fw_metadata
        return out

    compiler = aot_autograd(fw_compiler=compile_graph, inference_compiler=compile_graph,
                            decompositions=decompositions())
    with torch.no_grad():  # gradients are had by running the graph again
        run = compiler(gm, list(example_inputs))
    if not _wants_gradients(example_inputs, _own_tensors(gm)):
        return run
    return _WithGradients(gm, run, state)


def _is_weight(x: Any) -> bool:
    if isinstance(x, torch.nn.Parameter):
        return True
    return isinstance(x, torch.Tensor) and getattr(x, "_dynamo_static_input_type", None) is not None


def _own_tensors(gm: Any) -> list[torch.Tensor]:
    """Parameters and buffers that the graph itself has; AOTAutograd puts them first."""
    return [*dict(gm.named_parameters(remove_duplicate=False)).values(),
            *dict(gm.named_buffers(remove_duplicate=False)).values()]


def _wants_gradients(inputs: Sequence[Any], held: Sequence[torch.Tensor]) -> bool:
    return torch.is_grad_enabled() and any(
        isinstance(x, torch.Tensor) and x.requires_grad for x in (*inputs, *held))


class CompiledGraph:
    """One graph of ATen overloads as engines, for as many sets of weights as are met.

    Args:
        graph: The graph. Its first placeholders are tensors that the module itself has.
        options: How to build.
        static: Positions of weights among the module's arguments.
        count: How many arguments there are.
        held: The module's own tensors.
    """

    _boxed_call = True

    def __init__(self, graph: Any, options: Options, static: Sequence[int], count: int,
                 held: Sequence[torch.Tensor]):
        self.graph, self.options = graph, options
        holders = [n for n in graph.graph.nodes if n.op == "placeholder"]
        first = len(holders) - count
        if first not in (0, len(held)):
            raise BuildError(f"torch's graph takes {len(holders)} arguments where {count} were "
                             "given: please report this")
        self.static = [*range(first), *(first + i for i in static)]
        weights = set(self.static)
        self.varying = [i for i in range(len(holders)) if i not in weights]
        self.names = [n.name for n in holders]
        self.random = any(is_random(n.target) for n in graph.graph.nodes)
        self.variants: OrderedDict[Any, Any] = OrderedDict()
        self.lock = threading.Lock()
        self.updates = 0
        self.eager: Any = None

    def __call__(self, args: list[Any]) -> Any:
        given = list(args)
        args.clear()
        if self.eager is not None:
            return self.eager(*given)
        weights = [given[i] for i in self.static]
        key = tuple([(t.data_ptr(), _version(t)) for t in weights])
        run = self.variants.get(key)
        if run is None:
            with self.lock:
                run = self.variants.get(key) or self._make(key, weights)
        if self.eager is not None:
            return self.eager(*given)
        return run([given[i] for i in self.varying])

    def _make(self, key: Any, weights: list[torch.Tensor]) -> Any:
        places = [p for p, _ in key]
        stale = [k for k in self.variants if [p for p, _ in k] == places]
        for k in stale:
            del self.variants[k]
        self.updates += bool(stale)
        if self.updates > _UPDATES:
            log.warning("torch.compile: weights change all the time, as in training; the graph "
                        "runs in torch from now on")
            self.eager = self.graph
            return None
        run = self._build(weights)
        self.variants[key] = run
        while len(self.variants) > _VARIANTS:
            self.variants.popitem(last=False)
        return run

    def _build(self, weights: list[torch.Tensor]) -> Callable[[list[Any]], Any]:
        graph = _copy(self.graph)
        bound = {self.names[i]: (w, self.names[i])
                 for i, w in zip(self.static, weights, strict=True)}
        user = {self.names[i]: k for k, i in enumerate(self.varying)}
        piece = Piece(graph, bound, user, _limits(graph))
        restore = _row_major_results(graph)
        made = compile_piece(piece, self.options.settings, cache=self.options.cache,
                             partition=not self.options.require_full_compilation,
                             min_block=self.options.min_block_size,
                             torch_ops=self.options.torch_executed_ops)

        def run(given: list[Any]) -> list[Any]:
            out = made.run_flat(given)
            return [x if p is None else x.permute(p) for x, p in zip(out, restore, strict=True)]

        return run


def _version(t: torch.Tensor) -> int:
    return 0 if t.is_inference() else t._version


def _copy(module: Any) -> Any:
    """A graph of its own with the same tensors."""
    graph = torch.fx.Graph()
    table: dict[Any, Any] = {}
    graph.output(graph.graph_copy(module.graph, table))
    for old, new in table.items():
        new.meta, new.name = dict(old.meta), old.name
    return torch.fx.GraphModule(module, graph)


def _limits(graph: Any) -> dict[str, Any]:
    for node in graph.graph.nodes:
        for x in torch.utils._pytree.tree_leaves(node.meta.get("val")):
            sizes = x.shape if isinstance(x, torch.Tensor) else [x]
            for s in sizes:
                if isinstance(s, torch.SymInt):
                    return limits_of(s.node.shape_env.var_to_range)
    return {}


def _row_major_results(graph: Any) -> list[list[int] | None]:
    """Makes results whose memory torch expects in another order row-major, so that engines need
    not copy them; says how each is permuted afterwards."""
    output = next(n for n in graph.graph.nodes if n.op == "output")
    results, restore = [], []
    for node in output.args[0]:
        val: Any = node.meta.get("val") if isinstance(node, torch.fx.Node) else None
        order = _order(val) if node is not None and getattr(node, "op", "") == "call_function" \
            else None
        if order is not None:
            with graph.graph.inserting_before(output):
                node = graph.graph.call_function(torch.ops.aten.permute.default, (node, order))
            node.meta["val"] = val.permute(order)
        results.append(node)
        restore.append(None if order is None else [order.index(i) for i in range(len(order))])
    output.args = (tuple(results),)
    graph.recompile()
    return restore


def _order(val: Any) -> list[int] | None:
    """Dimensions from the outermost in memory to the innermost, if that isn't row-major and the
    tensor is dense."""
    if not isinstance(val, torch.Tensor) or val.dim() < 2 or val.is_contiguous():
        return None
    try:
        order = sorted(range(val.dim()), key=lambda i: (-int(_hint(val.stride(i))), i))
    except (TypeError, ValueError):
        return None
    return order if val.permute(order).is_contiguous() else None


def _hint(size: Any) -> int:
    return int(size.node.hint) if isinstance(size, torch.SymInt) else int(size)


class _WithGradients:
    """Runs engines forward, and the graph itself for gradients."""

    def __init__(self, gm: Any, run: Any, state: dict[str, Any]):
        self.gm, self.run, self.state = gm, run, state
        self.told = False

    def __call__(self, *args: Any) -> Any:
        held = _own_tensors(self.gm)
        if not _wants_gradients(args, held):
            return self.run(*args)
        meta, graph = self.state.get("meta"), self.state.get("graph")
        if graph is None or graph.random or meta is None or meta.num_mutated_inp_runtime_indices:
            if not self.told:
                log.warning("torch.compile: a graph that changes its arguments or draws random "
                            "numbers runs in torch while gradients are wanted")
                self.told = True
            return self.gm(*args)
        return _Recompute.apply(self, *args)


class _Recompute(torch.autograd.Function):
    """The forward pass by engines; the backward pass computes it again in torch."""

    @staticmethod
    def forward(ctx: Any, compiled: _WithGradients, *args: Any) -> Any:
        ctx.compiled = compiled
        ctx.where = [i for i, x in enumerate(args) if isinstance(x, torch.Tensor)]
        ctx.others = [None if isinstance(x, torch.Tensor) else x for x in args]
        ctx.save_for_backward(*(args[i] for i in ctx.where))
        out = compiled.run(*args)
        return tuple(out)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        args, leaves = list(ctx.others), []
        for i, t in zip(ctx.where, ctx.saved_tensors, strict=True):
            leaf = t.detach().requires_grad_(t.requires_grad)
            args[i] = leaf
            if t.requires_grad:
                leaves.append((i, leaf))
        with torch.enable_grad():
            out = ctx.compiled.gm(*args)
        pairs = [(o, g) for o, g in zip(out, grads, strict=True)
                 if g is not None and isinstance(o, torch.Tensor) and o.requires_grad]
        found = torch.autograd.grad([o for o, _ in pairs], [x for _, x in leaves],
                                    [g for _, g in pairs], allow_unused=True)
        result: list[Any] = [None] * len(args)
        for (i, _), g in zip(leaves, found, strict=True):
            result[i] = g
        return (None, *result)
