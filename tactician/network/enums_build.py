"""Enums of builders, runtimes, parsers and plugins, with TensorRT's names and numbers.

Numbers are those of version 10.13; members that only other versions have carry a comment.
"""

from __future__ import annotations

from ..support.enum import ApiEnum


class APILanguage(ApiEnum):
    """Language an interface is implemented in."""

    CPP = 0
    PYTHON = 1


class AllocatorFlag(ApiEnum):
    """Flags of allocations."""

    RESIZABLE = 0


class BuilderFlag(ApiEnum):
    """Bits of `IBuilderConfig.flags`."""

    FP16 = 0
    INT8 = 1
    DEBUG = 2
    GPU_FALLBACK = 3
    REFIT = 4
    DISABLE_TIMING_CACHE = 5
    TF32 = 6
    SPARSE_WEIGHTS = 7
    SAFETY_SCOPE = 8
    OBEY_PRECISION_CONSTRAINTS = 9
    PREFER_PRECISION_CONSTRAINTS = 10
    DIRECT_IO = 11
    REJECT_EMPTY_ALGORITHMS = 12
    VERSION_COMPATIBLE = 13
    EXCLUDE_LEAN_RUNTIME = 14
    FP8 = 15
    ERROR_ON_TIMING_CACHE_MISS = 16
    BF16 = 17
    DISABLE_COMPILATION_CACHE = 18
    WEIGHTLESS = 19
    STRIP_PLAN = 19
    REFIT_IDENTICAL = 20
    WEIGHT_STREAMING = 21
    INT4 = 22
    REFIT_INDIVIDUAL = 23
    STRICT_NANS = 24
    MONITOR_MEMORY = 25
    FP4 = 26
    EDITABLE_TIMING_CACHE = 27
    DISTRIBUTIVE_INDEPENDENCE = 28
    # Flags of older versions, whose numbers were given away since.
    STRICT_TYPES = 40
    ENABLE_TACTIC_HEURISTIC = 41


class CalibrationAlgoType(ApiEnum):
    """Calibration algorithms."""

    LEGACY_CALIBRATION = 0
    ENTROPY_CALIBRATION = 1
    ENTROPY_CALIBRATION_2 = 2
    MINMAX_CALIBRATION = 3


class DimensionOperation(ApiEnum):
    """Operations on dimension expressions."""

    SUM = 0
    PROD = 1
    MAX = 2
    MIN = 3
    SUB = 4
    EQUAL = 5
    LESS = 6
    FLOOR_DIV = 7
    CEIL_DIV = 8


class EngineCapability(ApiEnum):
    """Restrictions an engine obeys."""

    STANDARD = 0
    SAFETY = 1
    DLA_STANDALONE = 2
    # Old names.
    DEFAULT = 0
    SAFE_GPU = 1
    SAFE_DLA = 2


class ErrorCode(ApiEnum):
    """Error codes of the ONNX parser."""

    SUCCESS = 0
    INTERNAL_ERROR = 1
    MEM_ALLOC_FAILED = 2
    MODEL_DESERIALIZE_FAILED = 3
    INVALID_VALUE = 4
    INVALID_GRAPH = 5
    INVALID_NODE = 6
    UNSUPPORTED_GRAPH = 7
    UNSUPPORTED_NODE = 8
    UNSUPPORTED_NODE_ATTR = 9
    UNSUPPORTED_NODE_INPUT = 10
    UNSUPPORTED_NODE_DATATYPE = 11
    UNSUPPORTED_NODE_DYNAMIC = 12
    UNSUPPORTED_NODE_SHAPE = 13
    REFIT_FAILED = 14


class ErrorCodeTRT(ApiEnum):
    """Error codes of error recorders."""

    SUCCESS = 0
    UNSPECIFIED_ERROR = 1
    INTERNAL_ERROR = 2
    INVALID_ARGUMENT = 3
    INVALID_CONFIG = 4
    FAILED_ALLOCATION = 5
    FAILED_INITIALIZATION = 6
    FAILED_EXECUTION = 7
    FAILED_COMPUTATION = 8
    INVALID_STATE = 9
    UNSUPPORTED_STATE = 10


class ExecutionContextAllocationStrategy(ApiEnum):
    """How a context allocates its memory."""

    STATIC = 0
    ON_PROFILE_CHANGE = 1
    USER_MANAGED = 2


class HardwareCompatibilityLevel(ApiEnum):
    """Devices a plan runs on besides the one it was built on."""

    NONE = 0
    AMPERE_PLUS = 1
    SAME_COMPUTE_CAPABILITY = 2


class LayerInformationFormat(ApiEnum):
    """Formats of engine inspection."""

    ONELINE = 0
    JSON = 1


class MemoryPoolType(ApiEnum):
    """Pools of memory a builder may use."""

    WORKSPACE = 0
    DLA_MANAGED_SRAM = 1
    DLA_LOCAL_DRAM = 2
    DLA_GLOBAL_DRAM = 3
    TACTIC_DRAM = 4
    TACTIC_SHARED_MEMORY = 5


class OnnxParserFlag(ApiEnum):
    """Bits of `OnnxParser.flags`."""

    NATIVE_INSTANCENORM = 0
    ENABLE_UINT8_AND_ASYMMETRIC_QUANTIZATION_DLA = 1
    REPORT_CAPABILITY_DLA = 2
    ENABLE_PLUGIN_OVERRIDE = 3
    ADJUST_FOR_DLA = 4


class PluginArgDataType(ApiEnum):
    """Types of extra kernel arguments of quick plugins."""

    INT8 = 0
    INT16 = 1
    INT32 = 2


class PluginArgType(ApiEnum):
    """Kinds of extra kernel arguments of quick plugins."""

    INT = 0


class PluginCapabilityType(ApiEnum):
    """Capabilities of a version 3 plugin."""

    CORE = 0
    BUILD = 1
    RUNTIME = 2


class PluginCreatorVersion(ApiEnum):
    """Versions of plugin creators."""

    V1 = 0
    V1_PYTHON = 64


class PluginFieldType(ApiEnum):
    """Types of plugin fields."""

    FLOAT16 = 0
    FLOAT32 = 1
    FLOAT64 = 2
    INT8 = 3
    INT16 = 4
    INT32 = 5
    CHAR = 6
    DIMS = 7
    UNKNOWN = 8
    BF16 = 9
    INT64 = 10
    FP8 = 11
    INT4 = 12
    FP4 = 13


class PreviewFeature(ApiEnum):
    """Optional features."""

    PROFILE_SHARING_0806 = 0
    ALIASED_PLUGIN_IO_10_03 = 1
    RUNTIME_ACTIVATION_RESIZE_10_10 = 2
    MULTIDEVICE_RUNTIME_10_16 = 3
    # Features of older versions; no effect.
    FASTER_DYNAMIC_SHAPES_0805 = 32
    DISABLE_EXTERNAL_TACTIC_SOURCES_FOR_CORE_0805 = 33


class ProfilingVerbosity(ApiEnum):
    """Detail that an engine keeps about its layers."""

    LAYER_NAMES_ONLY = 0
    NONE = 1
    DETAILED = 2
    # Old names.
    DEFAULT = 0
    VERBOSE = 2


class QuantizationFlag(ApiEnum):
    """Bits of quantization flags."""

    CALIBRATE_BEFORE_FUSION = 0


class QuickPluginCreationRequest(ApiEnum):
    """Which form of a quick plugin to create."""

    UNKNOWN = 0
    PREFER_JIT = 1
    PREFER_AOT = 2
    STRICT_JIT = 3
    STRICT_AOT = 4


class RuntimePlatform(ApiEnum):
    """Platform a plan runs on."""

    SAME_AS_BUILD = 0
    WINDOWS_AMD64 = 1


class SeekPosition(ApiEnum):
    """What a stream offset is relative to."""

    SET = 0
    CUR = 1
    END = 2


class SerializationFlag(ApiEnum):
    """Bits of serialization flags."""

    EXCLUDE_WEIGHTS = 0
    EXCLUDE_LEAN_RUNTIME = 1
    INCLUDE_REFIT = 2


class TacticSource(ApiEnum):
    """Libraries kernels come from."""

    CUBLAS = 0
    CUBLAS_LT = 1
    CUDNN = 2
    EDGE_MASK_CONVOLUTIONS = 3
    JIT_CONVOLUTIONS = 4


class TempfileControlFlag(ApiEnum):
    """Which temporary files a runtime may create."""

    ALLOW_IN_MEMORY_FILES = 0
    ALLOW_TEMPORARY_FILES = 1


class TensorRTPhase(ApiEnum):
    """Whether an engine is being built or run."""

    BUILD = 0
    RUNTIME = 1


class TilingOptimizationLevel(ApiEnum):
    """Effort spent on tiling."""

    NONE = 0
    FAST = 1
    MODERATE = 2
    FULL = 3


class EngineStat(ApiEnum):
    """Sizes an engine can report."""

    TOTAL_WEIGHTS_SIZE = 0
    STRIPPED_WEIGHTS_SIZE = 1


class DLAWorkspaceAllocationStrategy(ApiEnum):
    """How accelerator cores share workspace."""

    SHARED_STATIC = 0


class FieldType(ApiEnum):
    """Element type of a `FieldMap` (UFF parser)."""

    FLOAT = 0
    INT32 = 1
    CHAR = 2
    DIMS = 4
    DATATYPE = 5
    UNKNOWN = 6


class PluginFormat(ApiEnum):
    """Memory layouts of plugin tensors in versions 5 and 6."""

    NCHW = 0
    NC2HW2 = 1
    NHWC8 = 2
    CHW4 = 3
    CHW16 = 4
    CHW32 = 5
    # The same under later names.
    LINEAR = 0
    CHW2 = 1
    HWC8 = 2


class UffInputOrder(ApiEnum):
    """Layout of UFF inputs."""

    NCHW = 0
    NHWC = 1
    NC = 2
