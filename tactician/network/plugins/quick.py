"""Quick plugins: plugins declared by decorated functions (``trt.plugin``).

    import tactician.plugin as trtp

    @trtp.register("demo::scale")
    def describe(x: trtp.TensorDesc, factor: float) -> trtp.TensorDesc:
        return x.like()

    @trtp.impl("demo::scale")
    def compute(x: trtp.Tensor, factor: float, outputs: tuple[trtp.Tensor], stream: int) -> None:
        np.asarray(outputs[0])[...] = factor * np.asarray(x)

    layer = network.add_plugin(trtp.op.demo.scale(tensor, factor=2.0))
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...ir.graph import Value
from ...ops import OpError
from ..enums import DataType, TensorFormat, from_ir
from ..enums_build import PluginFieldType, QuickPluginCreationRequest, TensorRTPhase
from .exprs import DimsExprs, IDimensionExpr, IExprBuilder, PluginTensorDesc
from .fields import PluginField, PluginFieldCollection, PluginFieldCollection_
from .interfaces import (
    IPluginCreatorV3Quick,
    IPluginV3,
    IPluginV3QuickBuild,
    IPluginV3QuickCore,
    IPluginV3QuickRuntime,
)
from .quick_aot import Compiled
from .quick_types import (
    AutoTuneCombination,
    SizeTensorDesc,
    Tensor,
    TensorDesc,
    bind_size_tensors,
)
from .registry import get_plugin_registry

AOT = "aot"  # the field that says that the compiled kernel is preferred


class QuickDefinition:
    """What the decorators say about one plugin.

    Attributes:
        name, namespace: Its key.
        describe: The function of `register`; its parameters are the plugin's.
        tensors: Names of the parameters that are tensors.
        attributes: Names of the others.
        compute, compile, tune: The functions of `impl`, `aot_impl`, `autotune`, or None.
    """

    def __init__(self, plugin_id: str, describe: Callable[..., Any]):
        self.namespace, _, self.name = plugin_id.partition("::")
        if not self.name:
            raise ValueError(f"a plugin's id is 'namespace::name', got {plugin_id!r}")
        self.describe = describe
        self.tensors: list[str] = []
        self.attributes: list[str] = []
        for parameter in inspect.signature(describe).parameters.values():
            note = parameter.annotation
            if note is inspect.Parameter.empty:
                raise ValueError(f"{plugin_id}: parameter {parameter.name!r} needs an annotation:"
                                 " TensorDesc for tensors, a number, str or array type otherwise")
            is_tensor = note is TensorDesc or (isinstance(note, str)
                                               and note.split(".")[-1] == "TensorDesc")
            (self.tensors if is_tensor else self.attributes).append(parameter.name)
        self.compute: Callable[..., Any] | None = None
        self.compile: Callable[..., Any] | None = None
        self.tune: Callable[..., Any] | None = None

    def attribute_values(self, given: dict[str, Any]) -> dict[str, Any]:
        """Attributes with defaults filled in.

        Raises:
            TypeError: If one is missing or unknown.
        """
        unknown = set(given) - set(self.attributes)
        if unknown:
            raise TypeError(f"plugin {self.namespace}::{self.name} has no attribute"
                            f" {', '.join(sorted(unknown))}")
        out = {}
        for name in self.attributes:
            default = inspect.signature(self.describe).parameters[name].default
            if name not in given and default is inspect.Parameter.empty:
                raise TypeError(f"plugin {self.namespace}::{self.name} needs {name!r}")
            out[name] = given.get(name, default)
        return out


_definitions: dict[str, QuickDefinition] = {}


def _definition(plugin_id: str) -> QuickDefinition:
    try:
        return _definitions[plugin_id]
    except KeyError:
        raise ValueError(f"plugin {plugin_id!r} is not registered; decorate its shape function"
                         f" with @register({plugin_id!r}) first") from None


def register(plugin_id: str, lazy_register: bool = False) -> Callable[..., Any]:
    """Decorates the function that gives the outputs' `TensorDesc`; its parameters are the
    plugin's.

    Args:
        plugin_id: ``"namespace::name"``.
        lazy_register: Accepted; the creator is registered at once.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        if plugin_id in _definitions:
            raise ValueError(f"plugin {plugin_id!r} is registered already")
        _definitions[plugin_id] = d = QuickDefinition(plugin_id, function)
        get_plugin_registry().register_creator(QuickCreator(d), d.namespace)
        return function

    return decorate


def impl(plugin_id: str) -> Callable[..., Any]:
    """Decorates the function that computes: ``(tensors…, attributes…, outputs, stream[,
    tactic])``."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        _definition(plugin_id).compute = function
        return function

    return decorate


def aot_impl(plugin_id: str) -> Callable[..., Any]:
    """Decorates the function that gives a compiled GPU kernel: ``(descriptions…, attributes…,
    outputs[, tactic])`` to (name, PTX or cubin, `KernelLaunchParams`, `SymExprs`). It is used in
    engines for CUDA where the layer asks for it (``aot=True``) or there is no `impl`."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        _definition(plugin_id).compile = function
        return function

    return decorate


def autotune(plugin_id: str) -> Callable[..., Any]:
    """Decorates the function that lists `AutoTuneCombination`\\ s. Of the tactics of the first
    that allows the tensors' types, the fastest is used."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        _definition(plugin_id).tune = function
        return function

    return decorate


class QuickPlugin(IPluginV3, IPluginV3QuickCore, IPluginV3QuickBuild, IPluginV3QuickRuntime):
    """The plugin that the decorated functions make.

    Attributes:
        aot: Whether its compiled kernel is preferred where there is a device for it.
    """

    def __init__(self, definition: QuickDefinition, attributes: dict[str, Any],
                 aot: bool = False):
        self.definition, self.attributes, self.aot = definition, attributes, aot
        self.plugin_name, self.plugin_namespace = definition.name, definition.namespace
        self.plugin_version = "1"
        self._outputs: int | None = None
        self._shapes: list[DimsExprs] = []
        self._types: list[DataType] = []
        self._tactics: list[int] = []
        self._device: Any = None
        self._compiled: dict[Any, Compiled] = {}
        self.tactic: int | None = None

    def clone(self) -> QuickPlugin:
        return QuickPlugin(self.definition, dict(self.attributes), self.aot)

    @property
    def num_outputs(self) -> int:  # type: ignore[override]
        """How many outputs the shape function gives."""
        if self._outputs is None:
            raise OpError("how many outputs it has is known once it has inputs")
        return self._outputs

    def prime(self, inputs: Sequence[Value]) -> None:
        """Tells it its inputs, which the number of outputs may depend on."""
        self._shapes = [DimsExprs([IDimensionExpr(d) for d in v.dims]) for v in inputs]
        self._types = [from_ir(v.dtype) for v in inputs]
        self._outputs = len(self._describe(self._descs()))

    def _descs(self) -> list[TensorDesc]:
        return [TensorDesc(s, t) for s, t in zip(self._shapes, self._types, strict=True)]

    def _describe(self, inputs: Sequence[TensorDesc]) -> list[TensorDesc]:
        given = dict(zip(self.definition.tensors, inputs, strict=True))
        out = self.definition.describe(**given, **self.attributes)
        return list(out) if isinstance(out, (tuple, list)) else [out]

    def get_output_data_types(self, input_types: Sequence[DataType]) -> Sequence[DataType]:
        self._types = list(input_types)
        return [o.dtype for o in self._describe(self._descs())]

    def get_output_shapes(self, inputs: Sequence[DimsExprs], shape_inputs: Sequence[DimsExprs],
                          expr_builder: IExprBuilder) -> Sequence[DimsExprs]:
        self._shapes = list(inputs)
        self._types = self._types or [DataType.FLOAT] * len(inputs)
        outputs = self._describe(self._descs())
        self._outputs = len(outputs)
        return bind_size_tensors(outputs, expr_builder)

    def supports_format_combination(self, pos: int, in_out: Any, num_inputs: int) -> bool:
        if self.definition.tune is None:
            return in_out[pos].desc.format is TensorFormat.LINEAR
        descs = [TensorDesc(d.desc.dims, d.desc.type) for d in in_out]
        given = {**dict(zip(self.definition.tensors, descs, strict=False)), **self.attributes,
                 "outputs": tuple(descs[num_inputs:])}
        takes = inspect.signature(self.definition.tune).parameters
        found = self.definition.tune(**{k: v for k, v in given.items() if k in takes})
        for combination in found:
            if combination.allows(pos, in_out[pos].desc.type):
                self._tactics = list(combination.tactic_list)
                if self.tactic not in self._tactics:
                    self.tactic = next(iter(self._tactics), None)
                return True
        return False

    def get_valid_tactics(self) -> Sequence[int]:
        return list(self._tactics)

    def set_tactic(self, tactic: int) -> None:
        self.tactic = tactic

    def get_aliased_input(self, output_index: int) -> int:
        """The input an output shares memory with, or -1."""
        inputs = self._descs()
        source = self._describe(inputs)[output_index].get_aliased()
        return next((i for i, x in enumerate(inputs) if x is source), -1)

    def use_device(self, device: Any) -> None:
        """Told what launches compiled kernels; None: tensors are in the host's memory."""
        self._device = device

    def get_fields_to_serialize(self) -> PluginFieldCollection:
        return PluginFieldCollection([
            *[PluginField(k, v if isinstance(v, str) else np.asarray(v))
              for k, v in self.attributes.items()],
            *([PluginField(AOT, np.array([1], np.int32))] if self.aot else [])])

    def enqueue(self, input_desc: Sequence[PluginTensorDesc],
                output_desc: Sequence[PluginTensorDesc], inputs: Sequence[int],
                outputs: Sequence[int], workspace: int, stream: int) -> None:
        d = self.definition
        if self._device is not None and d.compile is not None and (self.aot or not d.compute):
            self._kernel(input_desc, output_desc).launch(inputs, outputs, stream)
            return
        if d.compute is None:
            raise OpError(f"plugin {d.namespace}::{d.name} has no function that computes here;"
                          f" decorate one with @impl({d.namespace}::{d.name})")
        where = self._device is not None
        given = {n: Tensor(x, p, where)
                 for n, x, p in zip(d.tensors, input_desc, inputs, strict=True)}
        results = tuple(Tensor(x, p, where) for x, p in zip(output_desc, outputs, strict=True))
        d.compute(**given, **self.attributes, outputs=results, stream=stream,
                  **self._tactic_for(d.compute))

    def _tactic_for(self, function: Callable[..., Any]) -> dict[str, Any]:
        takes = "tactic" in inspect.signature(function).parameters
        return {"tactic": self.tactic if self.tactic is not None else 0} if takes else {}

    def _kernel(self, inputs: Sequence[PluginTensorDesc],
                outputs: Sequence[PluginTensorDesc]) -> Compiled:
        """The compiled kernel for tensors of these shapes."""
        d = self.definition
        key = (self.tactic, *[(tuple(x.dims), x.type) for x in (*inputs, *outputs)])
        found = self._compiled.get(key)
        if found is None:
            assert d.compile is not None
            given = {n: TensorDesc(x.dims, x.type)
                     for n, x in zip(d.tensors, inputs, strict=True)}
            results = tuple(TensorDesc(x.dims, x.type) for x in outputs)
            made = d.compile(**given, **self.attributes, outputs=results,
                             **self._tactic_for(d.compile))
            found = self._compiled[key] = Compiled(made, self._device)
        return found


class QuickCreator(IPluginCreatorV3Quick):
    """Makes a quick plugin from fields."""

    def __init__(self, definition: QuickDefinition):
        self.definition = definition
        self.name, self.plugin_namespace = definition.name, definition.namespace
        self.plugin_version = "1"
        self.field_names = PluginFieldCollection(PluginField(a) for a in definition.attributes)

    def create_plugin(
        self, name: str, namespace: str, field_collection: PluginFieldCollection_,
        phase: TensorRTPhase = TensorRTPhase.BUILD,
        quickPluginType: QuickPluginCreationRequest = QuickPluginCreationRequest.UNKNOWN,
    ) -> QuickPlugin:
        """A plugin whose attributes are the fields."""
        given = {f.name: _value(f) for f in field_collection}
        kinds = QuickPluginCreationRequest
        aot = quickPluginType in (kinds.PREFER_AOT, kinds.STRICT_AOT)
        if AOT not in self.definition.attributes:
            aot = bool(given.pop(AOT, aot))
        return QuickPlugin(self.definition, self.definition.attribute_values(given), aot)


def _value(field: PluginField) -> Any:
    data = field.data
    if field.type is PluginFieldType.CHAR and data is not None:
        return data.tobytes().decode().rstrip("\0")
    if isinstance(data, np.ndarray):
        return data.item() if data.size == 1 else np.asarray(data).view(np.ndarray)
    return data


class _Namespace:
    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, name: str) -> Callable[..., tuple[Any, Any, Any]]:
        if name.startswith("__"):
            raise AttributeError(name)
        definition = _definition(f"{self._name}::{name}")

        def make(*args: Any, **kwargs: Any) -> tuple[Any, Any, Any]:
            names = list(inspect.signature(definition.describe).parameters)
            given = {**dict(zip(names, args, strict=False)), **kwargs}
            tensors = [given.pop(t) for t in definition.tensors]
            return tensors, [], QuickPlugin(definition, definition.attribute_values(given))

        make.__name__ = name
        return make


class _Ops:
    """``op.namespace.name(tensors…, attributes…)`` gives what `add_plugin` takes."""

    def __getattr__(self, name: str) -> _Namespace:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Namespace(name)


op = _Ops()
__all__ = ["AutoTuneCombination", "SizeTensorDesc", "aot_impl", "autotune", "impl", "op",
           "register"]
