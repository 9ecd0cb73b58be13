"""New weights for modules that were compiled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...builder.refitter import Refitter
from ...support import logger as log
from ...support.errors import UsageError
from ..module import TRTModule
from ..types import to_numpy


def refit_engine(module: TRTModule, weights: Mapping[str, torch.Tensor]) -> set[str]:
    """Gives an engine other weights.

    Args:
        module: Built with ``immutable_weights=False``.
        weights: By the name they have in the original module.

    Returns:
        Names of weights that the engine has.

    Raises:
        UsageError: If the engine can't be refitted, or a weight has another shape or type.
    """
    if module.engine is None or not module.engine.refittable:
        raise UsageError("the engine can't be refitted; compile with immutable_weights=False")
    logger = _Keeper()
    refitter = Refitter(module.engine, logger)
    refitter.weights_validation = False
    known = set(refitter.get_all_weights()) & set(weights)
    for name in known:
        if not refitter.set_named_weights(name, to_numpy(weights[name])):
            raise UsageError("; ".join(logger.messages))
    if known and not refitter.refit_cuda_engine():
        raise UsageError("; ".join(logger.messages) or "the engine could not be refitted")
    return known


class _Keeper(log.ILogger):
    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def log(self, severity: log.Severity, msg: str) -> None:
        if severity <= log.Severity.ERROR:
            self.messages.append(msg)


def refit_module_weights(compiled_module: Any, new_weight_module: Any, arg_inputs: Any = None,
                         kwarg_inputs: Any = None, verify_output: bool = False,
                         use_weight_map_cache: bool = True, in_place: bool = False) -> Any:
    """A compiled module with the weights of another program of the same structure.

    Args:
        compiled_module: Made with ``immutable_weights=False``.
        new_weight_module: A ``torch.export.ExportedProgram`` or a module.
        arg_inputs, kwarg_inputs: Arguments to verify with.
        verify_output: Compare results with the new module's.
        use_weight_map_cache: Without effect: weights are found by name.
        in_place: Change ``compiled_module`` itself.

    Raises:
        UsageError: If the engines can't be refitted, don't have a weight's name, or results
            differ.
    """
    import copy

    weights = dict(new_weight_module.state_dict())  \
        if isinstance(new_weight_module, torch.nn.Module) else {
            **new_weight_module.state_dict, **new_weight_module.constants}
    weights = {k: v for k, v in weights.items() if isinstance(v, torch.Tensor)}
    out = compiled_module if in_place else copy.deepcopy(compiled_module)
    engines = [m for m in out.modules() if isinstance(m, TRTModule)]
    found: set[str] = set()
    for engine in engines:
        found |= refit_engine(engine, weights)
    if not found:
        raise UsageError("no engine has a weight of the new module")
    if verify_output and arg_inputs is not None:
        fresh = new_weight_module if isinstance(new_weight_module, torch.nn.Module) \
            else new_weight_module.module()
        with torch.no_grad():
            pairs = zip(torch.utils._pytree.tree_leaves(out(*arg_inputs, **(kwarg_inputs or {}))),
                        torch.utils._pytree.tree_leaves(fresh(*arg_inputs, **(kwarg_inputs or {}))),
                        strict=True)
            for a, b in pairs:
                if not torch.allclose(a, b, 1e-2, 1e-2):
                    raise UsageError("the refitted module's results differ from the new module's")
    return out
