"""An engine's values beside torch's, call by call."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from ..builder.compare import Comparison, compare_network
from ..ir.graph import Value
from ..support import logger as log
from ..support.errors import UsageError
from .calls import export, split_call
from .engines import Settings, new_builder, profile_of
from .lower import Lowering, piece_of
from .types import to_numpy


def compare(module: Any, inputs: Any = None, *, precisions: Iterable[Any] = (),
            optimization_level: int = 0, threads: int = 0, relative: float | None = None,
            absolute: float | None = None) -> Comparison:
    """Compares every value that an engine of a module computes with torch's.

    Args:
        module: A module in eval mode, or a ``torch.export.ExportedProgram``.
        inputs: The arguments of a call, as for `torch2trt`; by default a program's own example.
        precisions: Types that kernels may use besides the module's own.
        optimization_level, threads: Of the builder.
        relative, absolute: See `tactician.builder.compare.compare_network`.

    Returns:
        What differs; its ``first`` is the first call out of tolerance.

    Raises:
        BuildError: If something is not supported.
    """
    if isinstance(module, torch.export.ExportedProgram):
        program = module
        call = program.example_inputs if inputs is None else split_call(inputs)
    else:
        call = split_call(inputs)
        leaves = pytree.tree_leaves(call)
        program = export(module, *call, [None] * len(leaves))
    if call is None:
        raise UsageError("the program has no example inputs; give inputs")
    leaves = pytree.tree_leaves(call)
    piece = piece_of(program)
    settings = Settings(Settings.precisions_of(precisions), optimization_level, threads)
    builder, _ = new_builder(settings)
    network = builder.create_network(1)
    lowering = Lowering(network, piece.bound, piece.user, piece.limits)
    done = lowering.run(piece.module, None, None)
    names = _name(lowering)
    watch = _Watch(piece.module)
    holders = [n.name for n in piece.module.graph.nodes if n.op == "placeholder"]
    with torch.no_grad():
        watch.run(*(leaves[piece.user[n]] if n in piece.user else piece.bound[n][0]
                    for n in holders))
    reference = {name: to_numpy(watch.values[node]) for node, name in names.items()
                 if isinstance(watch.values.get(node), torch.Tensor)}
    feeds = {n: _array(leaves[p]) for n, p in zip(done.input_names, done.inputs, strict=True)}

    def configure() -> tuple[Any, Any]:
        made, _ = new_builder(settings, log.Severity.WARNING)
        config = made.create_builder_config()
        settings.apply(config)
        if any(not v.is_static for v in network.graph.inputs):
            profile = made.create_optimization_profile()
            for name, triple in profile_of(network, done, {}).items():
                profile.set_shape(name, *triple)
            for name, values in done.value_ranges(network).items():
                profile.set_shape_input(name, *values)
            config.add_optimization_profile(profile)
        return made, config

    return compare_network(network, configure, feeds, reference, relative, absolute)


def _array(x: Any) -> np.ndarray[Any, Any]:
    return to_numpy(x) if isinstance(x, torch.Tensor) else np.asarray([x], np.int64)


def _name(lowering: Lowering) -> dict[Any, str]:
    """Names values after the calls that give them; values of several calls after the first."""
    names: dict[Any, str] = {}
    taken: dict[int, Any] = {}
    results = {id(v) for v in lowering.network.graph.outputs}
    for node, value in lowering.env.items():
        if node.op != "call_function" or not isinstance(value, Value) or value.producer is None:
            continue
        if id(value) in taken:
            continue
        taken[id(value)] = node
        if id(value) not in results:
            value.name = node.name
        names[node] = value.name
    return names


class _Watch(torch.fx.Interpreter):
    """Keeps every value of a run."""

    def __init__(self, module: Any):
        super().__init__(module, garbage_collect_values=False)
        self.values: dict[Any, Any] = {}

    def run_node(self, n: Any) -> Any:
        out = super().run_node(n)
        self.values[n] = out.clone() if isinstance(out, torch.Tensor) else out
        return out
