"""Plugins in engines for CUDA: they get addresses of device memory and the stream."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..ir.graph import Node
from ..network.plugins.calls import Memory, PluginCall, StaticCall, call_of, on_host
from ..plan.program import DYNAMIC, OUTPUT, Step
from ..support.errors import ExecutionError, TacticianError
from ..targets.cuda.foreign import ForeignKernels

if TYPE_CHECKING:
    from .gpu_schedule import GpuSchedule

# keys of memory that belongs to no tensor; a schedule's counters have -1, -2, …
_WORKSPACE, _BOUND = -(1 << 40), -(1 << 41)


class DevicePlugins:
    """The plugin steps of one context.

    Args:
        schedule: The schedule they are steps of.
    """

    def __init__(self, schedule: GpuSchedule):
        self._schedule = schedule
        self._kernels = ForeignKernels(schedule.driver)
        self._calls: dict[int, PluginCall | StaticCall | None] = {}

    def run(self, i: int) -> bool:
        """Queues step ``i`` if it calls a plugin that works on the device.

        Raises:
            ExecutionError: If the plugin fails, naming its layer.
        """
        s = self._schedule
        step = s._program.steps[i]
        node = s._program.nodes.nodes[step.node]
        if node.op != "plugin":
            return False
        try:
            if i not in self._calls:
                self._calls[i] = None if on_host(node) else call_of(node)
            call = self._calls[i]
            if call is None:
                return False
            self._call(i, step, node, call)
        except ExecutionError:
            raise
        except Exception as e:
            raise ExecutionError(f"{node.describe()} failed: {type(e).__name__}: {e}") from e
        finally:
            s.driver.enter()  # the plugin may have changed the context
        return True

    def _call(self, i: int, step: Step, node: Node, call: PluginCall | StaticCall) -> None:
        s = self._schedule
        ids = [t for t in step.inputs if t >= 0]
        inputs = [tuple(map(int, s._shape(t))) for t in ids]
        first = call.tensors if isinstance(call, PluginCall) else len(ids)
        contents = [None if k < first else s.array(t) for k, t in enumerate(ids)]
        shapes, bounds = call.shapes(inputs, contents)
        places = [self._place(t, bound) for t, bound in zip(step.outputs, bounds, strict=True)]
        stream = s.stream
        for k in call.size_outputs:  # plugins count up in them
            s.driver.fill(places[k], 0, node.outputs[k].dtype.size, stream)

        def clock() -> float:
            s.driver.synchronize(stream)
            s.driver.synchronize()  # libraries that the plugin uses may have streams of their own
            return time.perf_counter()

        call.run(inputs, bounds, Memory(
            [s._at(t) for t in ids], places,
            lambda to, source, n: s.driver.copy(to, source, n, stream),
            lambda n: s._block(_WORKSPACE - i, max(n, 256)), clock, self._kernels, stream))
        if any(s.shapes[t] is None for t in step.outputs):
            self._settle(step, node, call, shapes, places)

    def _place(self, t: int, bound: Sequence[int]) -> int:
        """Where an output is written: its own memory, or a block for its largest size."""
        s = self._schedule
        nbytes = int(np.prod(bound, dtype=np.int64)) * s._dtype(t).size
        if s.shapes[t] is None:
            return s._block(_BOUND - t, max(nbytes, 256))
        if s._program.tensors[t].kind == DYNAMIC and not s._at(t):
            s._hold(t, nbytes)
        return s._at(t)

    def _settle(self, step: Step, node: Node, call: PluginCall | StaticCall,
                shapes: Sequence[Any], places: Sequence[int]) -> None:
        """Reads the sizes that the plugin found, and gives its outputs these."""
        s = self._schedule
        if not call.size_outputs:
            raise TacticianError("it declared no size tensor for its outputs")
        sizes = [int(s.driver.get(places[k], (), node.outputs[k].dtype.np, s.stream))
                 for k in call.size_outputs]
        for t, shape, place in zip(step.outputs, call.final(shapes, sizes), places, strict=True):
            if s.shapes[t] is not None:
                continue
            tensor = s._program.tensors[t]
            s._learn(tensor.shape, shape, node)
            s.shapes[t] = shape
            if tensor.kind == DYNAMIC:
                s._address[t] = place
                s._patch(t)
                continue
            if tensor.kind == OUTPUT and t in s.allocate:
                s._allocate_output(t)
                s._todo_tensors = [u for u in s._todo_tensors if u != t]
            nbytes = int(np.prod(shape, dtype=np.int64)) * tensor.dtype.size
            if nbytes:
                s.driver.copy(s._at(t), place, nbytes, s.stream)
        if s._late:
            s._settle()
