"""The classic ONNX backend interface (`onnx.backend.base`) on top of tactician.

``prepare(model).run(inputs)``, `run_model`, `run_node` and `supports_device` behave as ONNX's own
backend tests expect. Models are built into engines; with ``target="reference"`` (or
``TACTICIAN_ONNX_BACKEND=reference``) the numpy interpreter runs them instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .ir.graph import Graph
from .ir.verify import verify
from .network.network import INetworkDefinition
from .parsers.onnx.model import import_model
from .parsers.onnx.plugins import PluginFinder
from .support import knobs
from .support.errors import TacticianError

Array = np.ndarray[Any, Any]
_Runnable = Callable[[dict[str, Array]], tuple[Any, ...]]


class ModelError(TacticianError, ValueError):
    """A model that cannot be imported; the text lists every problem."""


def load_network(
    model: Any, folder: str | None = None, constants: dict[str, Array] | None = None
) -> INetworkDefinition:
    """A verified network from a ``ModelProto``; ``constants`` replaces inputs.

    Raises:
        ModelError: With all problems of the model.
    """
    network = INetworkDefinition()
    state = import_model(model, network.graph, folder, plugins=PluginFinder(), network=network,
                         constants=constants)
    if state.problems:
        raise ModelError("\n".join(p.text for p in state.problems))
    verify(network.graph)
    return network


class BackendRep:
    """A prepared model. ``run`` takes inputs in order and returns a tuple of outputs.

    Where a model takes axes or the like as inputs and they must be known to build it, the build
    waits for the first `run`, takes them from its arguments, and happens again whenever their
    values change.

    Attributes:
        engines: What was built so far.
    """

    def __init__(
        self, model: Any, target: str, folder: str | None = None, device: str = "cpu"
    ):
        if target not in ("engine", "reference"):
            raise ValueError(f"target is {target!r}; expected engine or reference")
        self.model, self.target, self.folder, self.device = model, target, folder, device
        self.names = input_names(model)
        self._built: dict[bytes, _Runnable] = {}
        self.engines: list[Any] = []
        graph = Graph()
        problems = import_model(model, graph, folder, plugins=PluginFinder()).problems
        self.sizes = {s.source for s in graph.symbols.values() if s.kind == "value"}
        self.fixed: list[str] = []
        if any(p.code == "UNSUPPORTED_NODE_DYNAMIC" for p in problems):
            self.fixed = small_inputs(model)
        if not self.fixed:
            self._for({})

    def run(self, inputs: Any, **_: Any) -> tuple[Any, ...]:
        feeds = dict(zip(self.names, (np.asarray(a) for a in inputs), strict=False))
        fixed = [n for n in self.fixed if n in feeds]
        # 0 and -1 in a Reshape's target mean "keep" and "infer", not sizes
        fixed += [n for n in self.sizes if n not in fixed and np.any(feeds[n] < 1)]
        return self._for({n: feeds[n] for n in fixed})(feeds)

    def _for(self, fixed: dict[str, Array]) -> _Runnable:
        key = b"".join(k.encode() + str(a.shape).encode() + a.tobytes() for k, a in fixed.items())
        if key not in self._built:
            network = load_network(self.model, self.folder, fixed)
            if self.target == "reference":
                self._built[key] = _interpreted(network)
            else:
                engine, self._built[key] = _engine(network, self.device)
                self.engines.append(engine)
        return self._built[key]


def _interpreted(network: INetworkDefinition) -> _Runnable:
    from .ops.interpreter import run_graph

    graph = network.graph

    def run(feeds: dict[str, Array]) -> tuple[Any, ...]:
        return tuple(run_graph(graph, [feeds[v.name] for v in graph.inputs]))

    return run


def _engine(network: INetworkDefinition, device: str) -> tuple[Any, _Runnable]:
    from .builder import build

    names = [v.name for v in network.graph.outputs]
    needed = [v.name for v in network.graph.inputs]
    engine = build(network, level=0, device=device, tf32=False)

    def run(feeds: dict[str, Array]) -> tuple[Any, ...]:
        results = engine({n: feeds[n] for n in needed})
        return tuple(results[n] for n in names)

    return engine, run


def input_names(model: Any) -> list[str]:
    """Inputs that a caller must give: those that no initializer provides."""
    given = {t.name for t in model.graph.initializer}
    return [i.name for i in model.graph.input if i.name not in given]


def small_inputs(model: Any) -> list[str]:
    """Inputs of at most one dimension and 64 elements: axes, sizes, regions, flags."""
    out = []
    for info in model.graph.input:
        t = info.type.tensor_type
        dims = [d.dim_value if d.HasField("dim_value") else 1 << 30 for d in t.shape.dim]
        if info.type.HasField("tensor_type") and len(dims) <= 1 and sum(dims) <= 64:
            out.append(info.name)
    return out


def prepare(
    model: Any, device: str = "CPU", target: str | None = None, folder: str | None = None, **_: Any
) -> BackendRep:
    """Imports a ``ModelProto`` and makes it ready to run.

    Args:
        model: The model.
        device: ``CPU`` or ``CUDA``.
        target: ``engine`` or ``reference`` (default: ``TACTICIAN_ONNX_BACKEND``).
        folder: Where external data lies.
    """
    if not supports_device(device):
        raise ValueError(f"device {device!r} is not supported or not there; use CPU")
    target = target or knobs.onnx_backend()
    return BackendRep(model, target, folder, "cpu" if _kind(device) == "CPU" else "gpu")


def run_model(model: Any, inputs: Any, device: str = "CPU", **kwargs: Any) -> tuple[Any, ...]:
    return prepare(model, device, **kwargs).run(inputs)


def run_node(
    node: Any,
    inputs: Sequence[Any],
    device: str = "CPU",
    outputs_info: Sequence[tuple[Any, tuple[int, ...]]] | None = None,
    **kwargs: Any,
) -> tuple[Any, ...]:
    """Runs a single ``NodeProto``; ``opset_version`` chooses the operator set."""
    from onnx import TensorProto, defs, helper

    arrays = [np.asarray(a) for a in inputs]
    names = [n for n in node.input if n]
    infos = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for name, a in zip(names, arrays, strict=True)
    ]
    outputs = [
        helper.make_tensor_value_info(n, TensorProto.UNDEFINED, None) for n in node.output if n]
    opset = kwargs.pop("opset_version", defs.onnx_opset_version())
    graph = helper.make_graph([node], "node", infos, outputs)
    opsets = [helper.make_opsetid(node.domain, opset)]
    return run_model(helper.make_model(graph, opset_imports=opsets), arrays, device, **kwargs)


def supports_device(device: str) -> bool:
    if _kind(device) == "CUDA":
        from .targets.cuda.present import gpu_present

        return bool(knobs.gpu()) or gpu_present()
    return _kind(device) == "CPU"


def _kind(device: str) -> str:
    return device.split(":")[0].upper()


def is_compatible(model: Any, device: str = "CPU", **_: Any) -> bool:
    """True if every node of the model can be imported."""
    return supports_device(device) and not import_model(model, Graph()).problems
