"""Calls of a plugin in one execution context: it is told shapes when they change, gets addresses
(of host memory, or of a device's), and chooses among its tactics in the first call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...ir import dims as D
from ...ir.graph import Node, Value
from ...ops import OpError
from ...support import logger as log
from ..broadcast import leading
from ..enums import from_ir
from ..enums_build import PluginCapabilityType
from ..values import Dims
from . import runner as r
from .lifecycle import begin, resource_context

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Memory:
    """Where a call's tensors are.

    Attributes:
        inputs, outputs: Addresses.
        copy: Copies bytes between these: (to, from, count).
        workspace: Address of scratch memory of a size.
        clock: Waits until all is done; seconds.
        device: What loads and launches compiled kernels, or None where memory is the host's.
        stream: Handle of the stream to queue work on.
    """

    inputs: Sequence[int]
    outputs: Sequence[int]
    copy: Callable[[int, int, int], Any]
    workspace: Callable[[int], int]
    clock: Callable[[], float]
    device: Any = None
    stream: int = 0


class PluginCall:
    """A plugin of version 3 or `IPluginV2DynamicExt` in one context.

    Args:
        node: The node that calls it.
    """

    def __init__(self, node: Node):
        self.node, self.plugin = node, r.restore(node)
        self.v3 = r.is_v3(self.plugin)
        self.tensors = int(node.meta.get("plugin_inputs", len(node.inputs)))
        self._worker: Any = None
        self._told: Any = None
        self._sized: tuple[Any, Any] = (None, None)

    # --- shapes ---------------------------------------------------------------------------

    def shapes(self, inputs: Sequence[Shape],
               contents: Sequence[Any]) -> tuple[list[Any], list[Shape]]:
        """Shapes of the outputs (with symbols for what the call itself will say), and the
        largest they can be.

        Args:
            inputs: Shapes of the inputs.
            contents: Elements of the inputs; those of shape inputs are needed.
        """
        key = (tuple(inputs), *[np.asarray(c).tobytes() for c in contents[self.tensors:]])
        if self._sized[0] != key:
            self._sized = (key, self._infer(inputs, contents))
        return self._sized[1]  # type: ignore[no-any-return]

    def _infer(self, inputs: Sequence[Shape], contents: Sequence[Any]) -> Any:
        node = self.node
        twin = Node(node.op, (), node.attrs, node.name)
        twin.id, twin.meta = node.id, {k: v for k, v in node.meta.items() if k != "data_dims"}
        for k, (shape, v) in enumerate(zip(inputs, node.present_inputs(), strict=True)):
            x = Value(v.name, v.dtype, shape)
            if k >= self.tensors:
                x.content = np.asarray(contents[k]).astype(object)
            twin.inputs.append(x)
        twin.meta["plugin"] = self.plugin
        types = r.Runner().infer(twin)
        self.size_outputs = tuple(twin.meta.get("plugin_size_tensors", ()))
        env = {k: u for k, u in dict(twin.meta.get("data_dims", {})).items() if u is not None}
        shapes = [t.shape for t in types]
        return shapes, [tuple(D.evaluate(D.substitute(d, env), {}) for d in s) for s in shapes]

    def final(self, shapes: Sequence[Any], sizes: Sequence[int]) -> list[Shape]:
        """Shapes of the outputs once their size tensors are known."""
        env = {f"%{self.node.id}.{k}": n for k, n in zip(self.size_outputs, sizes, strict=True)}
        return [tuple(D.evaluate(d, env) for d in s) for s in shapes]

    def aliases(self) -> dict[int, int]:
        """Outputs that share an input's memory, with that input."""
        build = r.capability(self.plugin, PluginCapabilityType.BUILD) if self.v3 else self.plugin
        ask = getattr(build, "get_aliased_input", None)
        if ask is None:
            return {}
        found = {k: int(ask(k)) for k in range(len(self.node.outputs))}
        return {k: i for k, i in found.items() if i >= 0}

    # --- the call -------------------------------------------------------------------------

    def run(self, inputs: Sequence[Shape], outputs: Sequence[Shape], memory: Memory) -> None:
        """Queues the plugin's work for tensors of these shapes."""
        node = self.node
        ins = [r._desc(s, from_ir(v.dtype))
               for s, v in zip(inputs, node.present_inputs(), strict=True)]
        outs = [r._desc(s, from_ir(v.dtype)) for s, v in zip(outputs, node.outputs, strict=True)]
        size = self._tell(ins, outs, memory.device is not None)
        given, results = list(memory.inputs), list(memory.outputs)
        shared = self.aliases()
        for k, i in shared.items():
            nbytes = int(np.prod(outputs[k], dtype=np.int64)) * node.outputs[k].dtype.size
            self._check_alias(k, i, nbytes, inputs)
            if results[k] != given[i]:
                memory.copy(results[k], given[i], nbytes)
            given[i] = results[k]  # what it writes into its input is the output
        worker, count = self._worker, self.tensors
        if hasattr(worker, "use_device"):
            worker.use_device(memory.device)

        def enqueue() -> None:
            worker.enqueue(ins[:count], outs, given[:count], results, memory.workspace(size),
                           memory.stream)

        tactics = node.meta.get("plugin_tactics", ())
        if len(tactics) > 1 and not shared and "plugin_tactic" not in node.meta:
            node.meta["plugin_tactic"] = self._fastest(tactics, enqueue, memory)
        enqueue()

    def _check_alias(self, k: int, i: int, nbytes: int, inputs: Sequence[Shape]) -> None:
        sources = list(self.node.present_inputs())
        fits = i < len(sources) and sources[i].dtype is self.node.outputs[k].dtype and (
            int(np.prod(inputs[i], dtype=np.int64)) * sources[i].dtype.size == nbytes)
        if not fits:
            raise OpError(f"{self.node.describe()}: output {k} is to share the memory of input {i},"
                          " but their types or sizes differ")

    def _tell(self, ins: list[Any], outs: list[Any], on_device: bool) -> int:
        """Says the shapes if they are new; returns the bytes of workspace."""
        first = self._worker is None
        if first:
            self._worker = self._start(on_device)
        shapes = [tuple(d.dims) for d in (*ins, *outs)]
        if shapes != self._told:
            self._told = shapes
            if self.v3:
                build = r.capability(self.plugin, PluginCapabilityType.BUILD)
                dynamic = [[r._dynamic_desc(d.dims, d.type) for d in x] for x in (ins, outs)]
                self._size = int(build.get_workspace_size(*dynamic) or 0)
                self._worker.on_shape_change(ins, outs)
            else:
                self.plugin.configure_plugin([r._dynamic_desc(d.dims, d.type) for d in ins],
                                             [r._dynamic_desc(d.dims, d.type) for d in outs])
                self._size = int(self.plugin.get_workspace_size(ins, outs) or 0)
        return self._size

    def _start(self, on_device: bool) -> Any:
        if not self.v3:
            begin(self.plugin, self.node, self, on_device)
            return self.plugin
        runtime = r.capability(self.plugin, PluginCapabilityType.RUNTIME)
        worker = runtime.attach_to_context(resource_context(on_device)) or runtime
        tactics = self.node.meta.get("plugin_tactics", ())
        worker.set_tactic(int(self.node.meta.get("plugin_tactic", tactics[0] if tactics else 0)))
        return worker

    def _fastest(self, tactics: Sequence[int], enqueue: Callable[[], None],
                 memory: Memory) -> int:
        """The tactic that takes the least time here; it is set."""
        times: dict[int, float] = {}
        for tactic in tactics:
            self._worker.set_tactic(int(tactic))
            try:
                enqueue()  # compiles, perhaps
                best = np.inf
                for _ in range(3):
                    begin = memory.clock()
                    enqueue()
                    best = min(best, memory.clock() - begin)
            except Exception as e:
                log.warning(f"{self.node.describe()}: tactic {tactic} fails and is left out:"
                            f" {type(e).__name__}: {e}")
                continue
            times[int(tactic)] = float(best)
        if not times:
            raise OpError(f"none of its tactics {', '.join(map(str, tactics))} works")
        chosen = min(times, key=lambda t: times[t])
        self._worker.set_tactic(chosen)
        text = ", ".join(f"{t}: {s * 1e6:.1f} us" for t, s in times.items())
        log.verbose(f"{self.node.describe()}: tactic {chosen} is the fastest ({text})")
        return chosen


class StaticCall:
    """A plugin with fixed shapes (`IPlugin`, `IPluginV2`, `IPluginV2Ext`) in one context."""

    size_outputs: tuple[int, ...] = ()

    def __init__(self, node: Node):
        self.node, self.plugin = node, r.restore(node)
        self._off = int(node.meta.get("implicit_batch", 0))
        self._ready = False

    def shapes(self, inputs: Sequence[Shape],
               contents: Sequence[Any]) -> tuple[list[Any], list[Shape]]:
        """Shapes of the outputs, twice: none depends on data."""
        lead = self._lead(inputs)
        given = [Dims(s[self._off:]) for s in inputs]
        single = r._flags(self.node, "output")
        out: list[Shape] = []
        for i in range(len(self.node.outputs)):
            one = i < len(single) and single[i]
            shape = map(int, self.plugin.get_output_shape(i, given))
            out.append((*((1,) if one else lead), *shape))
        return list(out), out

    def _lead(self, inputs: Sequence[Shape]) -> Shape:
        return leading(inputs, r._flags(self.node, "input")) if self._off and inputs else ()

    def final(self, shapes: Sequence[Any], sizes: Sequence[int]) -> list[Shape]:
        """The shapes themselves."""
        return list(shapes)

    def run(self, inputs: Sequence[Shape], outputs: Sequence[Shape], memory: Memory) -> None:
        """Queues the plugin's work for tensors of these shapes.

        Raises:
            RuntimeError: If it returns a status that isn't 0.
        """
        plugin, node = self.plugin, self.node
        batch = int(self._lead(inputs)[0]) if self._off and inputs else 1
        if not self._ready:
            types = [[from_ir(v.dtype) for v in x]
                     for x in (list(node.present_inputs()), node.outputs)]
            r._configure_static(plugin, node, list(zip(inputs, types[0], strict=True)),
                                list(zip(outputs, types[1], strict=True)))
            begin(plugin, node, self, memory.device is not None)
            self._ready = True
        work = memory.workspace(int(plugin.get_workspace_size(batch) or 0))
        status = plugin.execute_async(batch, list(memory.inputs), list(memory.outputs), work,
                                      memory.stream)
        if status:
            raise RuntimeError(f"{node.describe()}: the plugin returned status {status}")


def call_of(node: Node) -> PluginCall | StaticCall:
    """A new call of a node's plugin."""
    plugin = r.restore(node)
    if not r.is_v3(plugin) and not hasattr(plugin, "enqueue"):
        return StaticCall(node)
    return PluginCall(node)


def on_host(node: Node) -> bool:
    """Whether a node's plugin works on host memory, whatever the target: it says so by a true
    attribute ``host_memory``."""
    return bool(getattr(r.restore(node), "host_memory", False))
