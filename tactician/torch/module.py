"""`TRTModule`: an engine as an ``nn.Module``."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from ..ir import dims as D
from ..network.enums import TensorLocation
from ..runtime.easy import Collector
from ..runtime.engine import ICudaEngine
from ..runtime.runtime import Runtime
from ..support import logger as log
from ..support.errors import ExecutionError, UsageError
from .types import torch_dtype

_ALIGNED = 16  # bytes; GPU kernels read so many at once
_MADE = ("_about", "_order", "_types", "_by_list", "_free", "_guard", "_known_shapes", "_sized",
         "_inputs", "_outputs", "_in_spec", "_out_spec")
_KEYS = ("engine", "input_names", "output_names", "calling")


class _Blocks:
    """An output allocator whose memory becomes results."""

    def __init__(self, where: torch.device):
        self.where = where
        self.blocks: dict[str, torch.Tensor] = {}

    def reallocate_output(self, name: str, memory: int, size: int, alignment: int) -> int:
        self.blocks[name] = torch.empty(max(size, 1), dtype=torch.uint8, device=self.where)
        return self.blocks[name].data_ptr()

    def reallocate_output_async(self, name: str, memory: int, size: int, alignment: int,
                                stream: int) -> int:
        return self.reallocate_output(name, memory, size, alignment)

    def notify_shape(self, name: str, shape: Any) -> None:
        """The context is asked for it."""


def _flat_arguments(spec: Any) -> int:
    """How many positional tensors a call takes; -1 if it isn't that simple."""
    if spec is None:
        return -1
    sample = pytree.tree_unflatten(list(range(spec.num_leaves)), spec)
    plain: Any = (tuple(range(spec.num_leaves)), {})
    return spec.num_leaves if sample == plain else -1


class TRTModule(torch.nn.Module):
    """Runs an engine on torch tensors: torch2trt's class of that name.

    Contiguous tensors on the engine's device are read where they lie, others are copied first.
    Results are new tensors, made on torch's current stream. Under autocast, floating arguments
    are cast to the types the engine takes. Any number of threads may call one module.

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
        self.eval()
        if others:
            log.warning(f"TRTModule has no use for {', '.join(others)}")
        self.engine: ICudaEngine | None = None
        self.network: Any = None
        self._free: dict[int, list[Any]] = {}
        self._guard = threading.Lock()
        if engine is not None:
            self._take(engine, input_names, output_names, calling or {})

    def _take(self, engine: ICudaEngine, input_names: Sequence[str] | None,
              output_names: Sequence[str] | None, calling: dict[str, Any]) -> None:
        io = engine._io
        self.engine, self.calling = engine, dict(calling)
        self.input_names = list(input_names or [t.name for t in io if t.is_input])
        self.output_names = list(output_names or [t.name for t in io if not t.is_input])
        missing = {*self.input_names, *self.output_names} - {t.name for t in io}
        if missing:
            raise UsageError(f"the engine has no tensors {sorted(missing)}; it has "
                             f"{[t.name for t in io]}")
        self._inputs = [engine._by_name[n] for n in self.input_names]
        self._outputs = [engine._by_name[n] for n in self.output_names]
        self._free = {}
        self._known_shapes: dict[Any, Any] = {}
        shapes = [engine._core.program.tensors[t.id].shape for t in self._outputs]
        self._sized = [not any(s.startswith("%") for d in dims for s in D.symbols(d))
                       for dims in shapes]
        self._by_shape = not any(t.is_shape for t in self._inputs)
        self._device = "cuda" if engine._core.on_gpu else "cpu"
        places = {n: k for k, n in enumerate((*self.input_names, *self.output_names))}
        self._order = [places[t.name] for t in io if t.name in places]
        self._types = [torch_dtype(t.ir) for t in self._outputs]
        # calls like the last one go by the list of addresses, in half the time
        self._by_list = (self._by_shape and self._device == "cpu" and all(self._sized)
                         and len(self._order) == len(io))
        self._positions = calling.get("inputs", range(len(self._inputs)))
        self._last = max(self._positions, default=-1)
        spec = calling.get("in_spec")
        self._in_spec = pytree.treespec_loads(spec) if spec else None
        self._flat = _flat_arguments(self._in_spec)
        spec = calling.get("out_spec")
        self._out_spec = pytree.treespec_loads(spec) if spec else None

    def nest(self, in_spec: Any, out_spec: Any) -> None:
        """Says how calls and results are nested (``TreeSpec``s)."""
        self.calling["in_spec"] = pytree.treespec_dumps(in_spec)
        self.calling["out_spec"] = pytree.treespec_dumps(out_spec)
        self._in_spec, self._out_spec = in_spec, out_spec
        self._flat = _flat_arguments(in_spec)

    # --- running --------------------------------------------------------------------------------

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the engine.

        Raises:
            UsageError: If arguments are nested otherwise than when the engine was made, or a
                tensor has a wrong type or shape.
            ExecutionError: If a layer fails.
        """
        flat = self.run_flat(self._leaves(args, kwargs))
        if self._out_spec is None:
            return flat[0] if len(flat) == 1 and "outputs" not in self.calling else (
                flat if "outputs" in self.calling else tuple(flat))
        return pytree.tree_unflatten(flat, self._out_spec)

    def exportable(self) -> None:
        """Gets ready to be exported (``torch.export``): the plan becomes a buffer."""
        if "_plan" not in self._buffers and self.engine is not None:
            from .trt.operator import about

            plan = torch.from_numpy(np.frombuffer(bytearray(self.engine.serialize()), np.uint8))
            self.register_buffer("_plan", plan, persistent=False)
            self._about = about(self)

    def run_flat(self, leaves: Sequence[Any]) -> list[Any]:
        """Runs the engine on the call's flattened arguments; gives flattened results."""
        if self.engine is None:
            raise UsageError("the module has no engine yet; call load_state_dict first")
        positions = self._positions
        if len(leaves) <= self._last:
            raise UsageError(f"the engine takes {len(self._inputs)} tensors "
                             f"({', '.join(self.input_names)}), got {len(leaves)}")
        if torch.compiler.is_compiling():
            with torch.no_grad():
                results = self._traced([leaves[p] for p in positions])
        else:
            results = self._run_tensors([leaves[p] for p in positions])
        plan = self.calling.get("outputs")
        if plan is None:
            return results
        by_name = dict(zip(self.output_names, results, strict=True))
        return [by_name[x] if kind == "engine" else leaves[x] if kind == "input"
                else self._size(x, leaves) if kind == "size"
                else torch.view_as_complex(by_name[x]) if kind == "complex" else x
                for kind, x in plan]

    def _run_tensors(self, given: Sequence[Any]) -> list[torch.Tensor]:
        """Results for the engine's inputs, in order."""
        return self._run([self._tensor(t, x) for t, x in zip(self._inputs, given, strict=True)])

    def _traced(self, given: list[Any]) -> list[torch.Tensor]:
        """The run as a call of an operator, while torch exports or compiles the module."""
        if "_plan" not in self._buffers:
            with torch._subclasses.fake_tensor.unset_fake_temporarily():
                self.exportable()
        return torch.ops.tactician.run(self._plan, self._about, given)  # type: ignore[no-any-return]

    def _size(self, text: str, leaves: Sequence[Any]) -> int:
        env = {name: leaves[p].shape[axis] if axis >= 0 else int(leaves[p])
               for name, (p, axis) in self.calling["symbols"].items()}
        return D.evaluate(D.parse_dim(text), env)

    def _leaves(self, args: Any, kwargs: Any) -> list[Any]:
        if self._flat == len(args) and not kwargs and all(type(x) is torch.Tensor for x in args):
            return list(args)
        leaves, spec = pytree.tree_flatten((args, kwargs))
        if self._in_spec is not None and spec != self._in_spec:
            raise UsageError(f"the engine was made for a call like {self._in_spec}, but was "
                             f"called like {spec}")
        return leaves

    def _tensor(self, t: Any, given: Any) -> torch.Tensor:
        """What an input is read from: the tensor itself where it lies right."""
        wanted = torch_dtype(t.ir)
        if not isinstance(given, torch.Tensor):
            if isinstance(given, int) and t.shape == (1,) and not wanted.is_floating_point:
                return torch.tensor([int(given)], dtype=wanted)
            raise UsageError(f"input {t.name!r} must be a tensor, not {type(given).__name__}")
        if given.requires_grad:
            given = given.detach()
        if given.is_complex() and t.shape[-1:] == (2,):
            given = torch.view_as_real(given.resolve_conj())
        if given.dtype is not wanted:
            mixed = given.is_floating_point() and wanted.is_floating_point
            if not (mixed and torch.is_autocast_enabled(given.device.type)):
                raise UsageError(f"input {t.name!r} has type {wanted}, got {given.dtype}; convert "
                                 "it with .to()")
            given = given.to(wanted)
        place = "cpu" if t.is_shape or t.location == TensorLocation.HOST else self._device
        if given.device.type != place:
            given = given.to(place)
        if not given.is_contiguous():
            return given.contiguous()
        return given.clone() if place == "cuda" and given.data_ptr() % _ALIGNED else given

    def _run(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        stream, where = 0, torch.device("cpu")
        if self._device == "cuda":
            where = next((t.device for t in tensors if t.is_cuda), torch.device("cuda"))
            stream = torch.cuda.current_stream(where).cuda_stream
        with self._guard:
            free = self._free.setdefault(stream, [])
            context = free.pop() if free else None
        if context is None:
            context = self.engine.create_execution_context()  # type: ignore[union-attr]
            context._log_to = Collector()
            context._called_with = None
        try:
            if self._by_list:
                key = tuple([t.shape for t in tensors])
                if key == context._called_with:
                    return self._repeat(context, tensors, self._known_shapes[key])
                results = self._execute(context, tensors, where, stream)
                context._called_with = key if key in self._known_shapes else None
                return results
            return self._execute(context, tensors, where, stream)
        finally:
            with self._guard:
                free.append(context)

    def _repeat(self, context: Any, tensors: list[torch.Tensor], shapes: list[Any]
                ) -> list[torch.Tensor]:
        """Runs a context again with the shapes of its last call."""
        out = [torch.empty(s, dtype=d) for s, d in zip(shapes, self._types, strict=True)]
        every = [x.data_ptr() for x in (*tensors, *out)]
        if not context.execute_v2([every[k] for k in self._order]):
            raise ExecutionError(context._log_to.take())
        return out

    def _execute(self, context: Any, tensors: list[torch.Tensor], where: torch.device,
                 stream: int) -> list[torch.Tensor]:
        for t, x in zip(self._inputs, tensors, strict=True):
            if not (context.set_tensor_address(t.name, x.data_ptr())
                    and context.set_input_shape(t.name, x.shape)):
                raise UsageError(context._log_to.take())
        out: dict[str, torch.Tensor] = {}
        late: _Blocks | None = None
        for t, shape in zip(self._outputs, self._shapes(context, tensors), strict=True):
            if shape is None:
                late = late or _Blocks(where)
                context.set_output_allocator(t.name, late)
                continue
            made = torch.empty(shape, dtype=torch_dtype(t.ir), device=where)
            context.set_tensor_address(t.name, made.data_ptr())
            out[t.name] = made
        if not context.execute_async_v3(stream):
            raise ExecutionError(context._log_to.take())
        if late is not None:
            self._take_late(context, late, out, stream)
        return [out[t.name] for t in self._outputs]

    def _shapes(self, context: Any, tensors: list[torch.Tensor]) -> list[Any]:
        """Shapes of the results; None where data decide."""
        key = tuple(x.shape for x in tensors)
        held = self._known_shapes.get(key) if self._by_shape else None
        if held is None:
            shapes = [tuple(context.get_tensor_shape(t.name)) for t in self._outputs]
            # of sizes that data decide, a context tells the last run's
            held = [s if sized and -1 not in s else None
                    for s, sized in zip(shapes, self._sized, strict=True)]
            if None in held:
                context.infer_shapes()  # raises if it is the inputs' shapes that are wrong
            elif self._by_shape and len(self._known_shapes) < 64:
                self._known_shapes[key] = held
        return held

    def _take_late(self, context: Any, late: _Blocks, out: dict[str, torch.Tensor],
                   stream: int) -> None:
        if stream:
            torch.cuda.current_stream(late.where).synchronize()
        for t in self._outputs:
            if t.name not in out:
                shape = tuple(context.get_tensor_shape(t.name))
                dtype = torch_dtype(t.ir)
                size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
                block = late.blocks.get(t.name)  # not asked for if there is nothing to write
                if block is None:
                    block = torch.empty(size, dtype=torch.uint8, device=late.where)
                out[t.name] = block[:size].view(dtype).reshape(shape)
                context.set_output_allocator(t.name, None)

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
        self._free = {0: [context]}

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        for name in (*_MADE, "network"):
            state.pop(name, None)
        if self.engine is not None:
            state["engine"] = bytes(self.engine.serialize())
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        held, state = state.get("engine"), {k: v for k, v in state.items() if k != "engine"}
        super().__setstate__(state)
        self._guard = threading.Lock()
        self.engine = self.network = None
        self._free = {}
        self._buffers.pop("_plan", None)
        if held is not None:
            engine = Runtime(log.Logger()).deserialize_cuda_engine(held)
            assert engine is not None
            self._take(engine, self.input_names, self.output_names, self.calling)
