"""``torch.ops.tactician.run``: an engine as an operator, so that exported programs can hold it.

The plan is a constant of the program; what the operator's results look like is said beside it,
because torch asks for that where there is no data.
"""

from __future__ import annotations

import json
import threading
import weakref
from typing import Any

import torch

from ...ir import dims as D
from ...runtime.runtime import Runtime
from ...support import logger as log
from ...support.errors import PlanError
from ..module import TRTModule
from ..types import torch_dtype

_loaded: dict[int, tuple[Any, TRTModule]] = {}  # by address of the plan, with a weak reference
_guard = threading.Lock()


def about(module: TRTModule) -> str:
    """What `run` needs to know besides the plan.

    Raises:
        PlanError: If sizes of results depend on data.
    """
    assert module.engine is not None
    program = module.engine._core.program
    symbols: dict[str, list[int]] = {}
    for k, t in enumerate(module._inputs):
        for axis, d in enumerate(program.tensors[t.id].shape):
            for s in D.symbols(d):
                if d == D.sym(s):
                    symbols.setdefault(s, [k, axis])
    outputs = []
    for t in module._outputs:
        shape = program.tensors[t.id].shape
        if any(D.symbols(d) - set(symbols) for d in shape):
            raise PlanError(f"result {t.name!r} has shape {list(shape)}, which the arguments' "
                            "sizes don't tell; such engines can't be exported")
        outputs.append({"dtype": str(torch_dtype(t.ir)).removeprefix("torch."),
                        "shape": [str(d) for d in shape]})
    return json.dumps({"inputs": module.input_names, "outputs": outputs, "symbols": symbols,
                       "output_names": module.output_names})


@torch.library.custom_op("tactician::run", mutates_args=())
def run(plan: torch.Tensor, about: str, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """Runs the engine of a plan."""
    return list(_module(plan, about)._run_tensors(inputs))


@run.register_fake
def _(plan: torch.Tensor, about: str, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    told = json.loads(about)
    env = {s: inputs[k].shape[axis] for s, (k, axis) in told["symbols"].items()}
    where = inputs[0].device if inputs else torch.device("cpu")
    return [torch.empty([_evaluate(D.parse_dim(d), env) for d in o["shape"]],
                        dtype=getattr(torch, o["dtype"]), device=where) for o in told["outputs"]]


def _module(plan: torch.Tensor, about: str) -> TRTModule:
    with _guard:
        held = _loaded.get(plan.data_ptr())
        if held is not None and held[0]() is not None:
            return held[1]
        engine = Runtime(log.Logger()).deserialize_cuda_engine(plan.cpu().numpy().data)
        if engine is None:
            raise PlanError("the program's plan can't be loaded; the log says why")
        told = json.loads(about)
        module = TRTModule(engine, told["inputs"], told["output_names"])
        _loaded[plan.data_ptr()] = (weakref.ref(plan.untyped_storage()), module)
        for key in [k for k, (alive, _) in _loaded.items() if alive() is None]:
            del _loaded[key]
        return module


def _evaluate(d: Any, env: dict[str, Any]) -> Any:
    """A dimension over torch's symbolic integers."""
    if not isinstance(d, D.Dim):
        return d
    total: Any = 0
    for monomial, factor in d.terms.items():
        term: Any = factor
        for atom, power in monomial:
            for _ in range(power):
                term = term * _atom(atom, env)
        total = total + term
    return total


def _atom(atom: Any, env: dict[str, Any]) -> Any:
    if atom.fn == "sym":
        return env[atom.name]
    args = [_evaluate(a, env) for a in atom.args]
    if atom.fn in ("floordiv", "div", "floor_div"):
        return args[0] // args[1]
    if atom.fn in ("mod", "modulo"):
        return args[0] % args[1]
    if atom.fn in ("max", "min"):
        return (torch.sym_max if atom.fn == "max" else torch.sym_min)(*args)
    raise PlanError(f"size {atom.key} can't be exported")
