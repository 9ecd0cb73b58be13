"""Interfaces that plugins and their creators implement.

On the CPU the addresses a plugin is called with are those of host memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from ..enums import DataType, TensorFormat
from ..enums_build import TensorRTPhase
from ..interfaces import IVersionedInterface, _must
from ..values import Dims
from .exprs import DimsExprs, DynamicPluginTensorDesc, IExprBuilder, PluginTensorDesc
from .fields import PluginFieldCollection_


class _Copyable:
    """Interfaces take a plugin to copy as an argument of ``__init__``; there is nothing to copy."""

    def __init__(self, *_: Any):
        pass


# --- version 2 -----------------------------------------------------------------------------


class IPluginV2(_Copyable):
    """A plugin for fixed shapes.

    Attributes:
        num_outputs: How many outputs it has.
        plugin_type, plugin_version, plugin_namespace: The key of its creator.
    """

    num_outputs: int = 1
    plugin_type: str = ""
    plugin_version: str = "1"
    plugin_namespace: str = ""
    serialization_size: Any = property(
        lambda s: len(s.serialize()), lambda s, v: None, doc="Bytes that `serialize` gives.")

    @property
    def tensorrt_version(self) -> int:
        """Version of the interface."""
        return 2

    def get_output_shape(self, index: int, input_shapes: Sequence[Dims]) -> Any:
        """Shape of an output from the shapes of the inputs."""
        raise _must(self, "get_output_shape(index, input_shapes)")

    def supports_format(self, dtype: DataType, format: TensorFormat) -> bool:
        """Whether it takes and gives this type and layout."""
        return dtype is DataType.FLOAT and format is TensorFormat.LINEAR

    def configure_with_format(self, input_shapes: Sequence[Dims], output_shapes: Sequence[Dims],
                              dtype: DataType, format: TensorFormat, max_batch_size: int) -> None:
        """Told shapes and types before it is used."""

    def initialize(self) -> int:
        """Gets resources; returns 0 if that worked."""
        return 0

    def terminate(self) -> None:
        """Frees resources."""

    def get_workspace_size(self, max_batch_size: int) -> int:
        """Bytes of scratch memory it needs."""
        return 0

    def execute_async(self, batch_size: int, inputs: Sequence[int], outputs: Sequence[int],
                      workspace: int, stream_handle: int) -> int:
        """Computes; arguments are addresses. Returns 0 if that worked."""
        raise _must(self, "execute_async(batch_size, inputs, outputs, workspace, stream_handle)")

    def serialize(self) -> Any:
        """Its state, from which its creator makes it again."""
        return b""

    def destroy(self) -> None:
        """It is no longer used."""

    def clone(self) -> Any:
        """A copy."""
        raise _must(self, "clone()")


class IPluginV2Ext(IPluginV2):
    """A plugin for fixed shapes with output types of its own."""

    def get_output_data_type(self, index: int, input_types: Sequence[DataType]) -> DataType:
        """Element type of an output."""
        return input_types[0]

    def configure_plugin(self, input_shapes: Any, output_shapes: Any, input_types: Any = (),
                         output_types: Any = (), input_is_broadcasted: Any = (),
                         output_is_broacasted: Any = (),
                         format: TensorFormat = TensorFormat.LINEAR,
                         max_batch_size: int = 1) -> None:
        """Told shapes and types before it is used."""

    def attach_to_context(self, cudnn: Any, cublas: Any, allocator: Any) -> None:
        """Given library handles; there are none on the CPU."""

    def detach_from_context(self) -> None:
        """Undoes `attach_to_context`."""


class IPluginV2DynamicExtBase(IPluginV2):
    """Base class of plugins for any shapes."""


class IPluginV2DynamicExt(IPluginV2DynamicExtBase):
    """A plugin for any shapes."""

    FORMAT_COMBINATION_LIMIT: ClassVar[int] = 100

    def get_output_dimensions(self, output_index: int, inputs: Sequence[DimsExprs],
                              expr_builder: IExprBuilder) -> DimsExprs:
        """Shape of an output as expressions over the shapes of the inputs."""
        raise _must(self, "get_output_dimensions(output_index, inputs, expr_builder)")

    def get_output_datatype(self, index: int, input_types: Sequence[DataType]) -> DataType:
        """Element type of an output."""
        return input_types[0]

    def supports_format_combination(self, pos: int, in_out: Sequence[PluginTensorDesc],
                                    num_inputs: int) -> bool:
        """Whether tensor ``pos`` may be as described, given the tensors before it."""
        return in_out[pos].format is TensorFormat.LINEAR

    def configure_plugin(self, pos: Sequence[DynamicPluginTensorDesc],
                         in_out: Sequence[DynamicPluginTensorDesc]) -> None:
        """Told the ranges of shapes before it is used."""

    def get_workspace_size(self, in_: Any, out: Any = ()) -> int:
        """Bytes of scratch memory it needs."""
        return 0

    def enqueue(self, input_desc: Sequence[PluginTensorDesc],
                output_desc: Sequence[PluginTensorDesc], inputs: Sequence[int],
                outputs: Sequence[int], workspace: int, stream: int) -> None:
        """Computes; ``inputs`` and ``outputs`` are addresses."""
        raise _must(self, "enqueue(input_desc, output_desc, inputs, outputs, workspace, stream)")

    def get_serialization_size(self) -> int:
        """Bytes that `serialize` gives."""
        return len(self.serialize())


# --- version 7 and before ------------------------------------------------------------------


class IPlugin(_Copyable):
    """A plugin of versions 5 to 7.

    Attributes:
        num_outputs: How many outputs it has.
    """

    num_outputs: int = 1
    serialization_size: Any = property(lambda s: len(s.serialize()), lambda s, v: None,
                                       doc="Bytes that `serialize` gives.")

    def get_output_shape(self, index: int, input_shapes: Sequence[Dims]) -> Any:
        """Shape of an output from the shapes of the inputs."""
        raise _must(self, "get_output_shape(index, input_shapes)")

    def configure(self, input_shapes: Any, output_shapes: Any, max_batch_size: int) -> None:
        """Told shapes before it is used."""

    def initialize(self) -> int:
        """Gets resources; returns 0 if that worked."""
        return 0

    def terminate(self) -> None:
        """Frees resources."""

    def get_workspace_size(self, max_batch_size: int) -> int:
        """Bytes of scratch memory it needs."""
        return 0

    def execute_async(self, batch_size: int, inputs: Sequence[int], outputs: Sequence[int],
                      workspace: int, stream_handle: int) -> int:
        """Computes; arguments are addresses. Returns 0 if that worked."""
        raise _must(self, "execute_async(batch_size, inputs, outputs, workspace, stream_handle)")

    def serialize(self) -> Any:
        """Its state."""
        return b""


class IPluginExt(IPlugin):
    """A plugin of version 7 that chooses types and layouts."""

    @property
    def tensorrt_version(self) -> int:
        """Version of the interface."""
        return 1

    def supports_format(self, dtype: DataType, format: TensorFormat) -> bool:
        """Whether it takes and gives this type and layout."""
        return dtype is DataType.FLOAT and int(format) == 0

    def configure_with_format(self, input_shapes: Any, output_shapes: Any, dtype: DataType,
                              format: TensorFormat, max_batch_size: int) -> None:
        """Told shapes and types before it is used."""


class IPluginFactory(_Copyable):
    """Makes plugins from their serialized state (version 7)."""

    def create_plugin(self, layer_name: str, serialized_plugin: Any) -> IPlugin:
        """The plugin of a layer."""
        raise _must(self, "create_plugin(layer_name, serialized_plugin)")


# --- version 3 -----------------------------------------------------------------------------


class IPluginCapability(IVersionedInterface):
    """What a version 3 plugin can do."""


class IPluginV3(IVersionedInterface):
    """A plugin made of capabilities."""

    def get_capability_interface(self, type: Any) -> Any:
        """The object with the capability ``type``; often the plugin itself."""
        return self

    def clone(self) -> Any:
        """A copy."""
        raise _must(self, "clone()")

    def destroy(self) -> None:
        """It is no longer used."""


class _Core(IPluginCapability):
    plugin_name: str = ""
    plugin_version: str = "1"
    plugin_namespace: str = ""


class IPluginV3OneCore(_Core):
    """Identity of a plugin.

    Attributes:
        plugin_name, plugin_version, plugin_namespace: The key of its creator.
    """


class IPluginV3OneBuild(IPluginCapability):
    """What the builder asks of a plugin.

    Attributes:
        num_outputs: How many outputs it has.
        format_combination_limit: How many combinations of layouts are tried.
        metadata_string: Free text for the inspector.
        timing_cache_id: Key of its timings.
    """

    DEFAULT_FORMAT_COMBINATION_LIMIT: ClassVar[int] = 100
    num_outputs: int = 1
    format_combination_limit: int = 100
    metadata_string: str = ""
    timing_cache_id: str = ""

    def get_output_data_types(self, input_types: Sequence[DataType]) -> Sequence[DataType]:
        """Element types of the outputs."""
        old = type(self).get_output_datatypes
        if old is not IPluginV3OneBuild.get_output_datatypes:
            return self.get_output_datatypes(input_types)
        raise _must(self, "get_output_data_types(input_types)")

    def get_output_datatypes(self, input_types: Sequence[DataType]) -> Sequence[DataType]:
        """Older name of `get_output_data_types` (10.0, 10.1)."""
        return self.get_output_data_types(input_types)

    def get_output_shapes(self, inputs: Sequence[DimsExprs], shape_inputs: Sequence[DimsExprs],
                          expr_builder: IExprBuilder) -> Sequence[DimsExprs]:
        """Shapes of the outputs as expressions over shapes and shape inputs."""
        raise _must(self, "get_output_shapes(inputs, shape_inputs, expr_builder)")

    def supports_format_combination(self, pos: int, in_out: Sequence[DynamicPluginTensorDesc],
                                    num_inputs: int) -> bool:
        """Whether tensor ``pos`` may be as described, given the tensors before it."""
        return in_out[pos].desc.format is TensorFormat.LINEAR

    def configure_plugin(self, in_: Sequence[DynamicPluginTensorDesc],
                         out: Sequence[DynamicPluginTensorDesc]) -> None:
        """Told the ranges of shapes before it is used."""

    def get_workspace_size(self, in_: Sequence[DynamicPluginTensorDesc],
                           out: Sequence[DynamicPluginTensorDesc]) -> int:
        """Bytes of scratch memory it needs."""
        return 0

    def get_valid_tactics(self) -> Sequence[int]:
        """Numbers of the tactics it offers; none by default."""
        return []


class IPluginV3OneBuildV2(IPluginV3OneBuild):
    """A plugin that may write outputs into its inputs."""

    def get_aliased_input(self, output_index: int) -> int:
        """The input an output shares memory with, or -1."""
        return -1


class IPluginV3OneRuntime(IPluginCapability):
    """What the runtime asks of a plugin."""

    def set_tactic(self, tactic: int) -> None:
        """Told which tactic to use."""

    def on_shape_change(self, in_: Sequence[PluginTensorDesc],
                        out: Sequence[PluginTensorDesc]) -> None:
        """Told the shapes of the next calls."""

    def enqueue(self, input_desc: Sequence[PluginTensorDesc],
                output_desc: Sequence[PluginTensorDesc], inputs: Sequence[int],
                outputs: Sequence[int], workspace: int, stream: int) -> None:
        """Computes; ``inputs`` and ``outputs`` are addresses."""
        raise _must(self, "enqueue(input_desc, output_desc, inputs, outputs, workspace, stream)")

    def attach_to_context(self, resource_context: Any) -> Any:
        """The plugin to use in an execution context."""
        return self

    def get_fields_to_serialize(self) -> Any:
        """Its state as fields, from which its creator makes it again."""
        return PluginFieldCollection_()


class IPluginV3QuickCore(_Core):
    """Identity of a quickly deployable plugin.

    Attributes:
        plugin_name, plugin_version, plugin_namespace: The key of its creator.
    """


class IPluginV3QuickBuild(IPluginV3OneBuild):
    """What the builder asks of a quickly deployable plugin."""


class IPluginV3QuickAOTBuild(IPluginV3QuickBuild):
    """A quickly deployable plugin that gives a compiled kernel."""


class IPluginV3QuickRuntime(IPluginV3OneRuntime):
    """What the runtime asks of a quickly deployable plugin."""


# --- creators and resources ----------------------------------------------------------------


class IPluginCreatorInterface(IVersionedInterface):
    """Base class of creators.

    Attributes:
        name, plugin_version, plugin_namespace: The key plugins are found by.
        field_names: Fields that `create_plugin` understands.
    """

    name: str = ""
    plugin_version: str = "1"
    plugin_namespace: str = ""
    field_names: Any = ()


class IPluginCreator(IPluginCreatorInterface):
    """Makes version 2 plugins."""

    @property
    def tensorrt_version(self) -> int:
        """Version of the interface."""
        return 2

    def create_plugin(self, name: str, field_collection: PluginFieldCollection_) -> Any:
        """A plugin from fields."""
        raise _must(self, "create_plugin(name, field_collection)")

    def deserialize_plugin(self, name: str, serialized_plugin: bytes) -> Any:
        """A plugin from what its ``serialize`` gave."""
        raise _must(self, "deserialize_plugin(name, serialized_plugin)")


class IPluginCreatorV3One(IPluginCreatorInterface):
    """Makes version 3 plugins."""

    def create_plugin(self, name: str, field_collection: PluginFieldCollection_,
                      phase: TensorRTPhase) -> Any:
        """A plugin from fields, to build with or (from its serialized fields) to run."""
        raise _must(self, "create_plugin(name, field_collection, phase)")


class IPluginCreatorV3Quick(IPluginCreatorInterface):
    """Makes quickly deployable plugins."""

    def create_plugin(self, name: str, namespace: str, field_collection: PluginFieldCollection_,
                      phase: TensorRTPhase, quickPluginType: Any) -> Any:
        """A plugin from fields."""
        raise _must(self, "create_plugin(name, namespace, field_collection, phase, type)")


class IPluginResource(IVersionedInterface):
    """Something plugins share through the registry."""

    def clone(self) -> Any:
        """A copy, which the registry keeps."""
        raise _must(self, "clone()")

    def release(self) -> None:
        """It is no longer used."""


class IPluginResourceContext:
    """What the runtime offers plugins.

    Attributes:
        gpu_allocator, error_recorder: Those of the execution context, or None.
    """

    def __init__(self, gpu_allocator: Any = None, error_recorder: Any = None):
        self._data = (gpu_allocator, error_recorder)

    gpu_allocator = property(lambda s: s._data[0], doc="The allocator, or None.")
    error_recorder = property(lambda s: s._data[1], doc="The error recorder, or None.")
