"""`ICudaEngine`: a loaded plan."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

from ..ir.dtypes import DType
from ..network.enums import DataType, TensorFormat, TensorIOMode, TensorLocation, from_ir
from ..network.enums_build import (
    EngineCapability,
    EngineStat,
    ExecutionContextAllocationStrategy,
    HardwareCompatibilityLevel,
    ProfilingVerbosity,
    SerializationFlag,
    TacticSource,
)
from ..network.values import Dims, IHostMemory
from ..plan.format import write_plan
from ..plan.program import Program, declared_shape
from ..plan.strip import stripped, without_weights
from ..support.errors import ExecutionError
from .config import IRuntimeConfig, ISerializationConfig
from .core import EngineCore
from .engine_legacy import BindingsApi
from .engine_streaming import WeightStreaming
from .report import Reporter

_STATIC = ExecutionContextAllocationStrategy.STATIC


@dataclass(frozen=True)
class IoTensor:
    """One input or output as the API shows it; its position in the list is its binding index.

    Attributes:
        id: Index in `Program.tensors`.
        shape: As users see it: -1 where it varies, without an implicit batch dimension.
        is_shape: Whether its contents (inputs) or nothing but shapes (outputs) concern shapes.
    """

    index: int
    id: int
    name: str
    is_input: bool
    dtype: DataType
    ir: DType
    shape: tuple[int, ...]
    is_shape: bool
    location: TensorLocation


def io_tensors(program: Program) -> list[IoTensor]:
    """Inputs, then outputs, in network order."""
    locations = program.settings.get("locations", {})
    skip = 1 if program.implicit_batch else 0
    out = []
    for k, t in enumerate((*program.inputs, *program.outputs)):
        tensor = program.tensors[t]
        shape = declared_shape(program, t)[skip:]
        host = tensor.is_shape or locations.get(tensor.name) == "host"
        out.append(IoTensor(
            k, t, tensor.name, k < len(program.inputs), from_ir(tensor.dtype), tensor.dtype,
            shape, tensor.is_shape, TensorLocation.HOST if host else TensorLocation.DEVICE,
        ))  # fmt: skip
    return out


class ICudaEngine(BindingsApi, WeightStreaming, Reporter):
    """A network compiled for this machine. Made by `Runtime.deserialize_cuda_engine`.

    Any number of contexts and threads may use one engine; they share its weights and code.
    """

    def __init__(self, program: Program, *, plan: bytes | None = None, logger: Any = None,
                 runtime: Any = None, threads: int = 0):
        self._core = EngineCore(program, threads)
        self._plan = plan
        self._log_to = logger
        self._runtime = runtime
        self._threads = threads
        self._contexts: weakref.WeakSet[Any] = weakref.WeakSet()
        self._lacks_weights = bool(stripped(program))
        self._io = io_tensors(program)
        self._by_name = {t.name: t for t in self._io}

    def __enter__(self) -> ICudaEngine:
        return self

    def __exit__(self, *exc: Any) -> None:
        return None

    def __del__(self) -> None:
        return None

    def _replace(self, program: Program) -> None:
        """Takes another program of the same network: what refitting does."""
        old = self._core.gpu
        self._core = EngineCore(program, self._threads)
        if old is not None and old.streaming is not None and self._core.gpu is not None:
            self._core.gpu.limit(old.budget)
        self._lacks_weights = bool(stripped(program))
        self._plan = None
        self._io = io_tensors(program)
        self._by_name = {t.name: t for t in self._io}
        for context in list(self._contexts):
            context._reload()

    @property
    def _program(self) -> Program:
        return self._core.program

    def _find(self, name: str, what: str) -> IoTensor | None:
        found = self._by_name.get(name)
        if found is None:
            known = ", ".join(repr(n) for n in self._by_name)
            self._fail(f"{what}: the engine has no input or output {name!r}; it has {known}")
        return found

    # --- tensors --------------------------------------------------------------------------

    @property
    def num_io_tensors(self) -> int:
        return len(self._io)

    def get_tensor_name(self, index: int) -> str:
        """Name of the I/O tensor ``index``: inputs first.

        Raises:
            IndexError: If there is none.
        """
        if not 0 <= index < len(self._io):
            raise IndexError(f"tensor {index} of {len(self._io)}")
        return self._io[index].name

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        t = self._by_name.get(name)
        if t is None:
            return TensorIOMode.NONE
        return TensorIOMode.INPUT if t.is_input else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        t = self._find(name, "get_tensor_dtype")
        return t.dtype if t else DataType.FLOAT

    def get_tensor_shape(self, name: str) -> Dims:
        """The shape; -1 where it varies."""
        t = self._find(name, "get_tensor_shape")
        return Dims(t.shape if t else ())

    def get_tensor_location(self, name: str) -> TensorLocation:
        t = self._find(name, "get_tensor_location")
        return t.location if t else TensorLocation.DEVICE

    def is_shape_inference_io(self, name: str) -> bool:
        t = self._find(name, "is_shape_inference_io")
        return bool(t and t.is_shape)

    def get_tensor_format(self, name: str, profile_index: int = 0) -> TensorFormat:
        self._find(name, "get_tensor_format")
        return TensorFormat.LINEAR

    def get_tensor_format_desc(self, name: str, profile_index: int = 0) -> str:
        t = self._find(name, "get_tensor_format_desc")
        return f"Row-major linear {t.dtype.name} format (LINEAR)" if t else ""

    def get_tensor_bytes_per_component(self, name: str, profile_index: int = 0) -> int:
        """Bytes of an element; -1 if the format isn't vectorized in TensorRT, here always the
        element's size, which programs use to size buffers."""
        t = self._find(name, "get_tensor_bytes_per_component")
        return t.ir.size if t else -1

    def get_tensor_components_per_element(self, name: str, profile_index: int = 0) -> int:
        t = self._find(name, "get_tensor_components_per_element")
        return 1 if t else -1

    def get_tensor_vectorized_dim(self, name: str, profile_index: int = 0) -> int:
        """-1: no dimension is vectorized."""
        self._find(name, "get_tensor_vectorized_dim")
        return -1

    def get_aliased_input_tensor(self, name: str) -> str:
        """The input whose memory an output is meant to share: the cache that a KV cache update
        updates. Bind both to one address; "" for other tensors."""
        self._find(name, "get_aliased_input_tensor")
        return str(self._program.settings.get("aliases", {}).get(name, ""))

    def is_debug_tensor(self, name: str) -> bool:
        """Whether the network marked the tensor for debugging."""
        return name in self._debug_tensors()

    def _debug_tensors(self) -> dict[str, int]:
        """Names of debug tensors that exist in memory, with their ids."""
        marked = set(self._program.settings.get("debug_tensors", ()))
        return {t.name: i for i, t in enumerate(self._program.tensors) if t.name in marked}

    # --- profiles -------------------------------------------------------------------------

    @property
    def num_optimization_profiles(self) -> int:
        return len(self._program.profiles)

    def _is_single(self, t: IoTensor) -> bool:
        """Whether one copy of a tensor serves the whole implicit batch."""
        return bool(self._program.implicit_batch) and declared_shape(self._program, t.id)[0] == 1

    def _profile(self, index: int, what: str) -> bool:
        count = len(self._program.profiles)
        return 0 <= index < count or self._fail(f"{what}: profile {index} of {count}")

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Dims]:
        """[min, opt, max] shapes of an input; [] (and an error is logged) for other names."""
        t = self._find(name, "get_tensor_profile_shape")
        if t is None or not self._profile(profile_index, "get_tensor_profile_shape"):
            return []
        if not t.is_input:
            self._fail(f"get_tensor_profile_shape: {name!r} is an output; profiles have inputs")
            return []
        skip = 1 if self._program.implicit_batch else 0
        given = self._program.profiles[profile_index].shapes.get(name)
        return [Dims(s[skip:]) for s in given] if given else [Dims(t.shape)] * 3

    def get_tensor_profile_values(self, name: Any, profile_index: Any) -> list[list[int]]:
        """[min, opt, max] contents of a shape input; [] for other tensors.

        The inventory of TensorRT's stub swaps the annotations of the two arguments; either order
        of types is understood.
        """
        if isinstance(name, int):
            name, profile_index = profile_index, name
        t = self._find(name, "get_tensor_profile_values")
        if t is None or not self._profile(profile_index, "get_tensor_profile_values"):
            return []
        given = self._program.profiles[profile_index].values.get(name)
        return [list(v) for v in given] if given else []

    # --- contexts -------------------------------------------------------------------------

    def create_execution_context(self, strategy: Any = _STATIC, runtime_config: Any = None) -> Any:
        """A context: the state of one caller. Returns None (and logs) if memory is short.

        Args:
            strategy: `ExecutionContextAllocationStrategy`, or an `IRuntimeConfig`.
            runtime_config: The same by keyword.
        """
        from .context import IExecutionContext

        config = strategy if isinstance(strategy, IRuntimeConfig) else runtime_config
        if config is None:
            config = IRuntimeConfig()
            config.set_execution_context_allocation_strategy(strategy)
        try:
            return IExecutionContext(self, config)
        except MemoryError as e:
            self._fail(f"create_execution_context: {e}")
            return None

    def create_execution_context_without_device_memory(self) -> Any:
        """A context whose memory the user gives: `IExecutionContext.device_memory`."""
        return self.create_execution_context(ExecutionContextAllocationStrategy.USER_MANAGED)

    def create_runtime_config(self) -> IRuntimeConfig:
        return IRuntimeConfig()

    def create_engine_inspector(self) -> Any:
        from .inspector import EngineInspector

        return EngineInspector(self)

    # --- serialization --------------------------------------------------------------------

    def serialize(self) -> IHostMemory:
        """The plan. Equal engines give equal bytes."""
        if self._plan is None:
            self._plan = write_plan(self._program, IHostMemory)
        return self._plan if isinstance(self._plan, IHostMemory) else IHostMemory(self._plan)

    def create_serialization_config(self) -> ISerializationConfig:
        return ISerializationConfig()

    def serialize_with_config(self, config: ISerializationConfig) -> IHostMemory:
        """The plan, without weights if `SerializationFlag.EXCLUDE_WEIGHTS` is set.

        Plans of engines that can be refitted stay so, with ``INCLUDE_REFIT`` or without; none has
        a lean runtime in it.
        """
        if not config.get_flag(SerializationFlag.EXCLUDE_WEIGHTS):
            return self.serialize()
        if not self.refittable:
            self._warn("EXCLUDE_WEIGHTS has no effect: the engine can't be refitted, so it holds "
                       "its weights; build it with BuilderFlag.REFIT or STRIP_PLAN")
            return self.serialize()
        return write_plan(without_weights(self._program), IHostMemory)

    # --- facts ----------------------------------------------------------------------------

    @property
    def name(self) -> str:
        return self._program.name

    @property
    def num_layers(self) -> int:
        """Steps of the schedule: fused layers count once."""
        return len(self._program.steps)

    @property
    def device_memory_size(self) -> int:
        """Bytes of memory a context needs at the largest shapes of any profile."""
        return max(self._memory(i) for i in range(len(self._program.profiles)))

    @property
    def device_memory_size_v2(self) -> int:
        return self.device_memory_size

    def get_device_memory_size_for_profile(self, profile_index: int) -> int:
        if not self._profile(profile_index, "get_device_memory_size_for_profile"):
            return 0
        return self._memory(profile_index)

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
        return self.get_device_memory_size_for_profile(profile_index)

    def _memory(self, profile: int) -> int:
        if self._program.arena_size >= 0:
            return self._program.arena_size
        try:
            return self._core.profile_layout(profile).arena
        except ExecutionError as e:
            self._fail(f"the memory that profile {profile} needs can't be told: {e}")
            return 0

    @property
    def has_implicit_batch_dimension(self) -> bool:
        return bool(self._program.implicit_batch)

    @property
    def refittable(self) -> bool:
        return bool(self._program.weights)

    @property
    def engine_capability(self) -> EngineCapability:
        return EngineCapability.STANDARD

    @property
    def hardware_compatibility_level(self) -> HardwareCompatibilityLevel:
        """Whether code was restricted to the family's baseline."""
        return HardwareCompatibilityLevel[self._program.settings.get("hardware_level", "NONE")]

    @property
    def profiling_verbosity(self) -> ProfilingVerbosity:
        names = {"none": ProfilingVerbosity.NONE, "detailed": ProfilingVerbosity.DETAILED}
        return names.get(
            self._program.settings.get("verbosity", ""), ProfilingVerbosity.LAYER_NAMES_ONLY
        )

    @property
    def tactic_sources(self) -> int:
        """Bits of the tactic sources the build could use."""
        names = self._program.settings.get("tactic_sources")
        return sum(1 << int(s) for s in TacticSource if names is None or s.name in names)

    @property
    def num_aux_streams(self) -> int:
        """Streams that run branches at the same time as the caller's: where that was faster on the
        GPU when the engine was built. 0 on the CPU, where the thread pool does that."""
        return int(self._program.settings.get("aux_streams", 0))

    def get_engine_stat(self, stat: EngineStat) -> int:
        """Bytes of weights: in all, or of those that a stripped plan lacks. The former counts
        constants as kernels use them, the latter as the network has them."""
        if stat == EngineStat.TOTAL_WEIGHTS_SIZE:
            return self._core.weights_size
        return sum(stripped(self._program).values())

    def __repr__(self) -> str:
        ins = ", ".join(f"{t.name}{list(t.shape)}" for t in self._io if t.is_input)
        outs = ", ".join(f"{t.name}{list(t.shape)}" for t in self._io if not t.is_input)
        return f"<ICudaEngine {self.name!r}: {ins} -> {outs}>"
