"""From a graph of ATen overloads to something that runs: one engine, or engines and torch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from ..builder.config import IBuilderConfig
from ..support import logger as log
from ..support.errors import BuildError, UsageError
from .cache import EngineCache, engine_key
from .calls import Triple
from .converters import is_user_call
from .engines import Settings, build, new_builder
from .lower import Converted, Piece, lower_piece
from .module import TRTModule
from .partition import MIN_BLOCK, Results, holder, report, split, unsupported

Configure = Callable[[IBuilderConfig, Converted], None]


class Mixed(torch.nn.Module):
    """Engines and calls of torch that together compute a graph.

    Attributes:
        body: A graph module that takes the call's flattened arguments.
    """

    def __init__(self, body: Any, holders: Sequence[Any]):
        super().__init__()
        self.body = body
        self._take: list[int | str] = []  # for each placeholder a position, or a buffer's name
        for i, x in enumerate(holders):
            if isinstance(x, torch.Tensor):
                self.register_buffer(f"held_{i}", x.detach())
            self._take.append(f"held_{i}" if isinstance(x, torch.Tensor) else x)

    @torch.no_grad()
    def run_flat(self, leaves: Sequence[Any]) -> list[Any]:
        """Results, flattened."""
        given = [leaves[x] if isinstance(x, int) else getattr(self, x) for x in self._take]
        out = self.body(*given)
        return list(out) if isinstance(out, (tuple, list)) else [out]

    @property
    def engines(self) -> list[TRTModule]:
        """The engines, in the order they run."""
        return [m.engine for m in self.body.modules() if isinstance(m, Results)]


class PartitionedModule(torch.nn.Module):
    """A module of which torch runs a part: the result of ``torch2trt(…, partition=True)``.

    Attributes:
        mixed: The engines and what lies between them.
    """

    def __init__(self, mixed: Mixed, in_spec: Any, out_spec: Any):
        super().__init__()
        self.mixed = mixed
        self._in_spec, self._out_spec = in_spec, out_spec

    @property
    def engines(self) -> list[TRTModule]:
        """The engines, in the order they run."""
        return self.mixed.engines

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the module like the original.

        Raises:
            UsageError: If arguments are nested otherwise than when it was made.
        """
        leaves, spec = pytree.tree_flatten((args, kwargs))
        if spec != self._in_spec:
            raise UsageError(f"the module was made for a call like {self._in_spec}, but was "
                             f"called like {spec}")
        return pytree.tree_unflatten(self.mixed.run_flat(leaves), self._out_spec)


@dataclass(frozen=True)
class _Maker:
    """Makes engines; see `compile_piece` for what it is made of."""

    settings: Settings
    cache: EngineCache | None
    configure: Configure | None
    level: log.Severity

    def engine(self, part: Piece, at: Mapping[int, Triple],
               names: tuple[Any, Any] = (None, None)) -> TRTModule:
        """The engine of a whole graph, from the cache or built."""
        own = any(map(is_user_call, part.module.graph.nodes))
        cache = None if own else self.cache
        key = engine_key(part, self.settings, at, names) if cache is not None else ""
        found = cache.load(key) if cache is not None else None
        if found is not None:
            return found
        builder, record = new_builder(self.settings, self.level)
        network = builder.create_network(1)
        used = {n.name for n in part.module.graph.nodes if n.users}
        done = lower_piece(part, network, *names, refit=self.settings.refit)

        def prepare(config: IBuilderConfig) -> None:
            if self.configure is not None:
                self.configure(config, done)

        calling = done.calling()
        calling["weights"] = sorted({name for holder, (_, name) in part.bound.items()
                                     if holder in used})
        made = build(builder, record, network, done, calling, self.settings, at, prepare)
        if cache is not None:
            cache.save(key, made)
        else:
            made.network = network
        return made

    def part(self, part: Piece) -> Any:
        """The engine of a part, or torch where it can't be built."""
        try:
            return self.engine(part, {})
        except BuildError as e:
            log.warning(f"a part of the graph runs in torch, it can't be built: {e}")
            return _InTorch(part)


def compile_piece(piece: Piece, settings: Settings, *, given: Mapping[int, Triple] | None = None,
                  names: tuple[Sequence[str] | None, Sequence[str] | None] = (None, None),
                  cache: EngineCache | None = None, partition: bool = False,
                  min_block: int = MIN_BLOCK, torch_ops: Collection[str] = (),
                  torch_modules: Collection[str] = (),
                  configure: Configure | None = None,
                  level: log.Severity = log.Severity.WARNING) -> Any:
    """Makes a graph runnable.

    Args:
        piece: The graph; partitioning changes it.
        given: Ranges of shapes by position of arguments; others follow from symbols.
        names: Names of the engine's inputs and outputs.
        cache: Where engines are looked for and kept.
        partition: Leave what engines can't do to torch, see `partition`.
        min_block: Least number of calls worth an engine.
        torch_ops: Overloads that stay in torch.
        torch_modules: Classes of modules, by name, of which all calls do.
        configure: Changes the builder's configuration.
        level: Least severity of messages that are shown.

    Returns:
        A `TRTModule`, or a `Mixed` if torch runs a part.

    Raises:
        BuildError: If it can't be built, or without ``partition`` something is not supported.
    """
    maker = _Maker(settings, cache, configure, level)
    engine = maker.engine
    if not partition:
        return engine(piece, given or {}, names)
    failed = unsupported(piece, torch_ops, torch_modules)
    computes = [n for n in piece.module.graph.nodes if n.op == "call_function"]
    if not failed and computes and _has_tensors(piece):
        return engine(piece, given or {}, names)
    if failed:
        log.info(report(failed))

    body: Any = split(piece, failed, maker.part, min_block)
    holders = [holder(n) for n in body.graph.nodes if n.op == "placeholder"]
    return Mixed(body, [piece.user[n] if n in piece.user else piece.bound[n][0] for n in holders])


def _has_tensors(piece: Piece) -> bool:
    """Whether results are tensors that the graph computes."""
    output = next(n for n in piece.module.graph.nodes if n.op == "output")
    return any(isinstance(n, torch.fx.Node) and n.op == "call_function"
               and isinstance(n.meta.get("val"), torch.Tensor)
               for n in pytree.tree_leaves(output.args[0]))


class _InTorch(torch.nn.Module):
    """A part that torch runs after all."""

    def __init__(self, piece: Piece):
        super().__init__()
        self.piece = piece

    @torch.no_grad()
    def run_flat(self, leaves: Sequence[Any]) -> list[Any]:
        piece = self.piece
        args = [leaves[piece.user[n.name]] if n.name in piece.user else piece.bound[n.name][0]
                for n in piece.module.graph.nodes if n.op == "placeholder"]
        out = piece.module(*args)
        return list(out) if isinstance(out, (tuple, list)) else [out]
