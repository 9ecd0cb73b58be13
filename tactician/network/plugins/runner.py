"""Calls plugins: shape inference while networks are built, and execution on host memory."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...ir import dims as D
from ...ir.graph import Graph, Node, TensorType, Value
from ...ops import OpError
from ...ops.plugin import set_plugin_runner
from ..broadcast import leading
from ..enums import DataType, TensorFormat, from_ir, to_ir
from ..enums_build import PluginCapabilityType, QuickPluginCreationRequest, TensorRTPhase
from ..values import Dims
from .exprs import (
    DimsExprs,
    DynamicPluginTensorDesc,
    IDimensionExpr,
    IExprBuilder,
    PluginTensorDesc,
    dim_of,
)
from .fields import pack_fields, unpack_fields
from .interfaces import (
    IPlugin,
    IPluginCreator,
    IPluginCreatorV3Quick,
    IPluginV2,
    IPluginV2DynamicExt,
)
from .registry import get_plugin_registry


def is_v3(plugin: Any) -> bool:
    """Whether a plugin has version 3's interface."""
    return hasattr(plugin, "get_capability_interface")


def capability(plugin: Any, kind: PluginCapabilityType) -> Any:
    """The object with a capability of a version 3 plugin.

    Raises:
        OpError: If the plugin has none.
    """
    found = plugin.get_capability_interface(kind)
    if found is None:
        raise OpError(f"plugin {type(plugin).__name__} has no {kind.name} capability")
    return found


def identity(plugin: Any) -> tuple[str, str, str]:
    """Name, version and namespace of a plugin's creator."""
    if is_v3(plugin):
        core = capability(plugin, PluginCapabilityType.CORE)
        return core.plugin_name, str(core.plugin_version), core.plugin_namespace or ""
    kind = getattr(plugin, "plugin_type", "") or type(plugin).__name__
    return kind, str(getattr(plugin, "plugin_version", "1")), getattr(
        plugin, "plugin_namespace", "") or ""


def count_outputs(plugin: Any, inputs: Sequence[Value] = ()) -> int:
    """How many outputs a plugin has, given its inputs."""
    if hasattr(plugin, "prime") and inputs:
        plugin.prime(inputs)
    owner = capability(plugin, PluginCapabilityType.BUILD) if is_v3(plugin) else plugin
    return int(owner.num_outputs)


def state(plugin: Any) -> np.ndarray[Any, Any]:
    """A plugin's serialized state."""
    if is_v3(plugin):
        runtime = capability(plugin, PluginCapabilityType.RUNTIME)
        data = pack_fields(runtime.get_fields_to_serialize() or ())
    else:
        said = plugin.serialize() or b""
        data = said.encode() if isinstance(said, str) else bytes(said)
    return np.frombuffer(data, np.uint8)


def restore(node: Node) -> Any:
    """The plugin of a node: the live object, or one made from its serialized state.

    Raises:
        OpError: If no creator is registered for it.
    """
    live = node.meta.get("plugin")
    if live is not None:
        return live
    a = node.attrs
    creator = get_plugin_registry().get_creator(a.plugin, a.version, a.namespace)
    if creator is None:
        raise OpError(f"no creator is registered for plugin {a.namespace}::{a.plugin} version"
                      f" {a.version}; register it with get_plugin_registry().register_creator"
                      " before the plan is loaded")
    data = a.data.tobytes()
    if isinstance(creator, IPluginCreator) or hasattr(creator, "deserialize_plugin"):
        plugin = creator.deserialize_plugin(a.plugin, data)
    elif isinstance(creator, IPluginCreatorV3Quick):
        plugin = creator.create_plugin(a.plugin, a.namespace, unpack_fields(data),
                                       TensorRTPhase.RUNTIME, QuickPluginCreationRequest.UNKNOWN)
    else:
        plugin = creator.create_plugin(a.plugin, unpack_fields(data), TensorRTPhase.RUNTIME)
    if plugin is None:
        raise OpError(f"the creator of plugin {a.plugin} gave no plugin")
    node.meta["plugin"] = plugin
    return plugin


def make_missing(graph: Graph, factory: Any) -> None:
    """Gives the plugins of a plan that have no creator to an `IPluginFactory`."""
    for node in graph.nodes:
        for body in node.subgraphs:
            make_missing(body, factory)
        a = node.attrs
        if node.op == "plugin" and get_plugin_registry().get_creator(
                a.plugin, a.version, a.namespace) is None:
            plugin = factory.create_plugin(node.name, a.data.tobytes())
            if plugin is not None:
                node.meta["plugin"] = plugin


def refresh(graph: Graph) -> None:
    """Configures the plugins of a graph and stores their state in its nodes, for the plan."""
    from dataclasses import replace

    for node in graph.nodes:
        for sub in node.subgraphs:
            refresh(sub)
        plugin = node.meta.get("plugin")
        if node.op == "plugin" and plugin is not None and node.error is None:
            _configure(plugin, node)
            _note_tactics(plugin, node)
            _note_metadata(plugin, node)
            node.attrs = replace(node.attrs, data=state(plugin))


def _note_tactics(plugin: Any, node: Node) -> None:
    """Which tactics a plugin offers; one is chosen when it runs first."""
    if is_v3(plugin):
        build = capability(plugin, PluginCapabilityType.BUILD)
        tactics = [int(t) for t in build.get_valid_tactics() or ()]
        if any(t <= 0 for t in tactics) or len(set(tactics)) != len(tactics):
            raise OpError(f"{node.describe()}: tactics must be distinct positive numbers, got "
                          f"{tactics}")
        if tactics:
            node.meta["plugin_tactics"] = tuple(tactics)


def _note_metadata(plugin: Any, node: Node) -> None:
    """A plugin's own text for the inspector, beside the layer's."""
    build = capability(plugin, PluginCapabilityType.BUILD) if is_v3(plugin) else plugin
    text = getattr(build, "metadata_string", "")
    if text and not node.meta.get("metadata"):
        node.meta["metadata"] = str(text)


class Runner:
    """What `ops.plugin` calls."""

    def infer(self, node: Node) -> Sequence[TensorType]:
        plugin = restore(node)
        inputs = [v for v in node.inputs if v is not None]
        types = [from_ir(v.dtype) for v in inputs]
        try:
            if is_v3(plugin):
                out = _infer_v3(plugin, node, inputs, types)
            elif isinstance(plugin, IPluginV2DynamicExt) or hasattr(
                    plugin, "get_output_dimensions"):
                out = _infer_dynamic(plugin, node, inputs, types)
            else:
                out = _infer_static(plugin, node, inputs, types)
        except NotImplementedError as e:
            raise OpError(str(e)) from e
        _check_formats(plugin, inputs, types, out)
        return out

    def run(self, node: Node, inputs: Sequence[Any]) -> Sequence[Any]:
        return _run_on_host(node, [np.ascontiguousarray(x) for x in inputs])


def _exprs(shape: Any) -> DimsExprs:
    return DimsExprs([IDimensionExpr(d) for d in shape])


def _builder(node: Node) -> IExprBuilder:
    from ...ops._shapes import data_dim

    builder = IExprBuilder()
    builder._symbol = lambda index, upper: data_dim(node, index, upper)
    return builder


def _size_tensors(node: Node, builder: IExprBuilder) -> None:
    node.meta["plugin_size_tensors"] = tuple(builder.size_tensors)


def _infer_v3(plugin: Any, node: Node, inputs: list[Value],
              types: list[DataType]) -> list[TensorType]:
    build = capability(plugin, PluginCapabilityType.BUILD)
    count = node.meta.get("plugin_inputs", len(inputs))
    builder = _builder(node)
    shape_inputs = []
    for v in inputs[count:]:
        known = v.known_ints()
        if known is None:
            raise OpError(f"shape input {v.name!r} must be computed from shapes and constants")
        shape_inputs.append(_exprs(known.reshape(-1)))
    shapes = build.get_output_shapes([_exprs(v.dims) for v in inputs[:count]], shape_inputs,
                                     builder)
    dtypes = build.get_output_data_types(types[:count])
    if len(shapes) != node.attrs.outputs or len(dtypes) != node.attrs.outputs:
        raise OpError(f"the plugin says it has {node.attrs.outputs} outputs, but gives"
                      f" {len(shapes)} shapes and {len(dtypes)} types")
    _size_tensors(node, builder)
    return [TensorType(to_ir(DataType(t)), tuple(dim_of(d) for d in s))
            for t, s in zip(dtypes, shapes, strict=True)]


def _infer_dynamic(plugin: Any, node: Node, inputs: list[Value],
                   types: list[DataType]) -> list[TensorType]:
    builder = _builder(node)
    shapes = [_exprs(v.dims) for v in inputs]
    out = []
    for i in range(node.attrs.outputs):
        dims = plugin.get_output_dimensions(i, shapes, builder)
        t = DataType(plugin.get_output_datatype(i, types))
        out.append(TensorType(to_ir(t), tuple(dim_of(d) for d in dims)))
    return out


def _infer_static(plugin: Any, node: Node, inputs: list[Value],
                  types: list[DataType]) -> list[TensorType]:
    off = int(node.meta.get("implicit_batch", 0))
    if any(isinstance(d, D.Dim) for v in inputs for d in v.dims[off:]):
        raise OpError("this plugin takes fixed shapes only; implement IPluginV2DynamicExt or"
                      f" IPluginV3 for {', '.join(map(repr, inputs))}")
    shapes = [Dims(v.dims[off:]) for v in inputs]  # type: ignore[arg-type]
    lead = leading([v.dims for v in inputs], _flags(node, "input")) if off and inputs else ()
    single = _flags(node, "output")
    out = []
    for i in range(node.attrs.outputs):
        shape = tuple(plugin.get_output_shape(i, shapes))
        kind = types[0] if types else DataType.FLOAT
        if hasattr(plugin, "get_output_data_type"):
            kind = DataType(plugin.get_output_data_type(i, types))
        one = i < len(single) and single[i]
        out.append(TensorType(to_ir(kind), (*((1,) if one else lead), *shape)))
    return out


def _flags(node: Node, side: str) -> tuple[int, ...]:
    """Which inputs or outputs have one value for an implicit batch; (): none."""
    return tuple(node.meta.get(f"{side}_broadcast", ()))


def _desc(shape: Sequence[D.DimLike], t: DataType) -> PluginTensorDesc:
    return PluginTensorDesc([-1 if isinstance(d, D.Dim) else d for d in shape], t)


def _dynamic_desc(shape: Sequence[D.DimLike], t: DataType) -> DynamicPluginTensorDesc:
    desc = _desc(shape, t)
    return DynamicPluginTensorDesc(desc, desc.dims, desc.dims, desc.dims)


def _check_formats(plugin: Any, inputs: list[Value], types: list[DataType],
                   out: Sequence[TensorType]) -> None:
    """Raises OpError unless the plugin takes all tensors in linear layout."""
    shapes = [(v.dims, t) for v, t in zip(inputs, types, strict=True)]
    shapes += [(t.shape, from_ir(t.dtype)) for t in out]
    if is_v3(plugin):
        build = capability(plugin, PluginCapabilityType.BUILD)
        dynamic = [_dynamic_desc(s, t) for s, t in shapes]
        fits = all(build.supports_format_combination(i, dynamic, len(inputs))
                   for i in range(len(dynamic)))
    elif hasattr(plugin, "supports_format_combination"):
        plain = [_desc(s, t) for s, t in shapes]
        fits = all(plugin.supports_format_combination(i, plain, len(inputs))
                   for i in range(len(plain)))
    elif hasattr(plugin, "supports_format"):
        fits = all(plugin.supports_format(t, TensorFormat.LINEAR) for _, t in shapes[:1])
    else:
        fits = True
    if not fits:
        have = ", ".join(t.name for _, t in shapes)
        raise OpError(f"plugin {identity(plugin)[0]} refuses its tensors ({have}, LINEAR layout);"
                      " cast its inputs to types it supports")


def _configure(plugin: Any, node: Node) -> None:
    """Tells a plugin its types and shapes."""
    inputs = [(v.dims, from_ir(v.dtype)) for v in node.inputs if v is not None]
    outputs = [(v.dims, from_ir(v.dtype)) for v in node.outputs]
    if is_v3(plugin):
        build = capability(plugin, PluginCapabilityType.BUILD)
        build.configure_plugin([_dynamic_desc(*x) for x in inputs],
                               [_dynamic_desc(*x) for x in outputs])
    elif hasattr(plugin, "get_output_dimensions"):
        plugin.configure_plugin([_dynamic_desc(*x) for x in inputs],
                                [_dynamic_desc(*x) for x in outputs])
    else:
        _configure_static(plugin, node, inputs, outputs)


def _configure_static(plugin: Any, node: Node, inputs: Any, outputs: Any) -> None:
    off = int(node.meta.get("implicit_batch", 0))
    ins, outs = ([Dims(s[off:]) for s, _ in x] for x in (inputs, outputs))
    old = isinstance(plugin, IPlugin) or hasattr(plugin, "configure")
    if old and not hasattr(plugin, "configure_with_format"):
        plugin.configure(ins, outs, 1)
    elif isinstance(plugin, IPluginV2) and hasattr(plugin, "configure_plugin"):
        once = [[bool(f) for f in _flags(node, side)] or [False] * len(x)
                for side, x in (("input", inputs), ("output", outputs))]
        plugin.configure_plugin(
            ins, outs, [t for _, t in inputs], [t for _, t in outputs], *once,
            TensorFormat.LINEAR, 1)
    else:
        kind = inputs[0][1] if inputs else DataType.FLOAT
        plugin.configure_with_format(ins, outs, kind, TensorFormat.LINEAR, 1)


def _address(a: Any) -> int:
    return int(a.__array_interface__["data"][0])


def _copy(to: int, source: int, nbytes: int) -> None:
    ctypes.memmove(to, source, nbytes)


def _run_on_host(node: Node, arrays: list[Any]) -> list[Any]:
    """Outputs of a plugin for arrays of the host."""
    from .calls import Memory, call_of

    call: Any = node.meta.get("plugin_call")
    if call is None or call.plugin is not node.meta.get("plugin"):
        call = node.meta["plugin_call"] = call_of(node)
    inputs = [a.shape for a in arrays]
    shapes, bounds = call.shapes(inputs, arrays)
    outputs = [np.zeros(b, v.dtype.np) for b, v in zip(bounds, node.outputs, strict=True)]
    scratch: list[Any] = []

    def workspace(nbytes: int) -> int:
        scratch[:] = [np.empty(max(nbytes, 1), np.uint8)]
        return _address(scratch[0])

    call.run(inputs, bounds, Memory(
        [_address(a) for a in arrays], [_address(a) for a in outputs], _copy, workspace,
        time.perf_counter))
    if not call.size_outputs:
        return outputs
    actual = call.final(shapes, [int(outputs[k].reshape(-1)[0]) for k in call.size_outputs])
    return [a if s == a.shape else a.reshape(-1)[:int(np.prod(s))].reshape(s)
            for s, a in zip(actual, outputs, strict=True)]


set_plugin_runner(Runner())
