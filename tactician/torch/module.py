"""`TRTModule`: an engine as an ``nn.Module``."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from ..runtime.easy import Collector, Grower
from ..runtime.engine import ICudaEngine
from ..runtime.runtime import Runtime
from ..support import logger as log
from ..support.errors import ExecutionError, UsageError
from .types import from_numpy, torch_dtype

_KEYS = ("engine", "input_names", "output_names", "calling")


class TRTModule(torch.nn.Module):
    """Runs an engine on torch tensors: torch2trt's class of that name.

    Contiguous CPU tensors are read where they lie, others are copied first. Results are new
    tensors. Any number of threads may call one module.

    Args:
        engine: An engine, or None to load a state dict later.
        input_names: Names of the engine's inputs, in the order of the call's tensors; by default
            the engine's own order.
        output_names: Names of the engine's outputs, in the order of the results.
        calling: How calls and results are nested (see `torch2trt`); by default tensors in,
            a tensor or a tuple of tensors out.
    """

    def __init__(self, engine: ICudaEngine | None = None,
                 input_names: Sequence[str] | None = None,
                 output_names: Sequence[str] | None = None,
                 calling: dict[str, Any] | None = None, **others: Any):
        super().__init__()
        if others:
            log.warning(f"TRTModule has no use for {', '.join(others)}")
        self.engine: ICudaEngine | None = None
        self.network: Any = None
        self._free: list[Any] = []
        self._guard = threading.Lock()
        if engine is not None:
            self._take(engine, input_names, output_names, calling or {})

    def _take(self, engine: ICudaEngine, input_names: Sequence[str] | None,
              output_names: Sequence[str] | None, calling: dict[str, Any]) -> None:
        io = engine._io
        self.engine, self.calling = engine, calling
        self.input_names = list(input_names or [t.name for t in io if t.is_input])
        self.output_names = list(output_names or [t.name for t in io if not t.is_input])
        missing = {*self.input_names, *self.output_names} - {t.name for t in io}
        if missing:
            raise UsageError(f"the engine has no tensors {sorted(missing)}; it has "
                             f"{[t.name for t in io]}")
        self._inputs = [engine._by_name[n] for n in self.input_names]
        self._outputs = [engine._by_name[n] for n in self.output_names]
        self._free = []
        spec = calling.get("in_spec")
        self._in_spec = pytree.treespec_loads(spec) if spec else None
        spec = calling.get("out_spec")
        self._out_spec = pytree.treespec_loads(spec) if spec else None

    # --- running --------------------------------------------------------------------------------

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the engine.

        Raises:
            UsageError: If arguments are nested otherwise than when the engine was made, or a
                tensor has a wrong type or shape.
            ExecutionError: If a layer fails.
        """
        if self.engine is None:
            raise UsageError("the module has no engine yet; call load_state_dict first")
        leaves = self._leaves(args, kwargs)
        positions = self.calling.get("inputs", range(len(self._inputs)))
        if len(leaves) <= max(positions, default=-1):
            raise UsageError(f"the engine takes {len(self._inputs)} tensors "
                             f"({', '.join(self.input_names)}), got {len(leaves)}")
        tensors = [self._tensor(t, leaves[p]) for t, p in zip(self._inputs, positions, strict=True)]
        results = dict(zip(self.output_names, self._run(tensors), strict=True))
        plan = self.calling.get("outputs")
        if plan is None:
            out = list(results.values())
            return out[0] if len(out) == 1 else tuple(out)
        flat = [results[x] if kind == "engine" else leaves[x] if kind == "input" else x
                for kind, x in plan]
        return flat if self._out_spec is None else pytree.tree_unflatten(flat, self._out_spec)

    def _leaves(self, args: Any, kwargs: Any) -> list[Any]:
        leaves, spec = pytree.tree_flatten((args, kwargs))
        if self._in_spec is not None and spec != self._in_spec:
            raise UsageError(f"the engine was made for a call like {self._in_spec}, but was "
                             f"called like {spec}")
        return leaves

    def _tensor(self, t: Any, given: Any) -> torch.Tensor:
        wanted = torch_dtype(t.ir)
        if not isinstance(given, torch.Tensor):
            raise UsageError(f"input {t.name!r} must be a tensor, not {type(given).__name__}")
        if given.dtype is not wanted:
            raise UsageError(f"input {t.name!r} has type {wanted}, got {given.dtype}; convert it "
                             "with .to()")
        return given.detach().cpu().contiguous()

    def _run(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        with self._guard:
            context = self._free.pop() if self._free else None
        if context is None:
            context = self.engine.create_execution_context()  # type: ignore[union-attr]
            context._log_to = Collector()
        try:
            return self._execute(context, tensors)
        finally:
            with self._guard:
                self._free.append(context)

    def _execute(self, context: Any, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        for t, x in zip(self._inputs, tensors, strict=True):
            context._addresses[t.id] = x.data_ptr()
            if not context.set_input_shape(t.name, tuple(x.shape)):
                raise UsageError(context._log_to.take())
        schedule = context._require_schedule()
        blocks = Grower()
        late = {t.name for t in self._outputs if schedule.layout.nbytes[t.id] < 0}
        out: dict[str, torch.Tensor] = {}
        for t in self._outputs:
            if t.name in late:
                context.set_output_allocator(t.name, blocks)
            else:
                out[t.name] = torch.empty(schedule.layout.shapes[t.id] or (),
                                          dtype=torch_dtype(t.ir))
                context._addresses[t.id] = out[t.name].data_ptr()
        context._checked, context._bound = False, None
        if not context.execute_async_v3(0):
            raise ExecutionError(context._log_to.take())
        for t in self._outputs:
            if t.name in late:
                shape = tuple(context.get_tensor_shape(t.name))
                size = int(np.prod(shape, dtype=np.int64)) * t.ir.size
                data = blocks.blocks[t.name][:size].view(t.ir.np).reshape(shape)
                out[t.name] = from_numpy(data, t.ir)
                context.set_output_allocator(t.name, None)
        return [out[t.name] for t in self._outputs]

    # --- saving ---------------------------------------------------------------------------------

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        if self.engine is None:
            return
        plan = np.frombuffer(bytearray(self.engine.serialize()), np.uint8)
        destination[prefix + "engine"] = torch.from_numpy(plan)
        destination[prefix + "input_names"] = self.input_names
        destination[prefix + "output_names"] = self.output_names
        destination[prefix + "calling"] = json.dumps(self.calling)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: Any,
                              strict: bool, missing_keys: list[str], unexpected_keys: list[str],
                              error_msgs: list[str]) -> None:
        if prefix + "engine" not in state_dict:
            missing_keys.append(prefix + "engine")
            return
        held = state_dict[prefix + "engine"]
        plan = bytes(held) if isinstance(held, (bytes, bytearray)) else held.numpy().tobytes()
        engine = Runtime(log.Logger()).deserialize_cuda_engine(plan)
        if engine is None:
            error_msgs.append("the plan can't be loaded; the log says why")
            return
        calling = json.loads(state_dict.get(prefix + "calling", "{}"))
        self._take(engine, state_dict.get(prefix + "input_names"),
                   state_dict.get(prefix + "output_names"), calling)
        known = {prefix + k for k in _KEYS}
        unexpected_keys += [k for k in state_dict if k.startswith(prefix) and k not in known
                            and "." not in k[len(prefix):]] if strict else []

    # --- looking inside -------------------------------------------------------------------------

    def enable_profiling(self) -> None:
        """Prints the time of every layer after each run."""
        from ..network.interfaces import Profiler

        assert self.engine is not None
        context = self.engine.create_execution_context()
        context.profiler = Profiler()
        context._log_to = Collector()
        self._free = [context]
