"""Enums of networks and layers, with TensorRT's names and numbers.

Numbers are those of version 10.13; members that only other versions have carry a comment.
"""

from __future__ import annotations

from typing import Any

from ..ir import dtypes as T
from ..ir.dtypes import DType
from ..support.enum import ApiEnum


class DataType(ApiEnum):
    """Element types.

    Members from `DOUBLE` on are tactician's own, for models that use types TensorRT has not; their
    numbers lie far from TensorRT's.
    """

    FLOAT = 0
    HALF = 1
    INT8 = 2
    INT32 = 3
    BOOL = 4
    UINT8 = 5
    FP8 = 6
    BF16 = 7
    INT64 = 8
    INT4 = 9
    FP4 = 10
    E8M0 = 11
    # tactician's own
    DOUBLE = 100
    INT16 = 101
    UINT16 = 102
    UINT32 = 103
    UINT64 = 104
    UINT4 = 105
    FP8_E5M2 = 106
    COMPLEX64 = 107
    COMPLEX128 = 108

    @property
    def itemsize(self) -> float:
        """Bytes per element; 0.5 for 4-bit types, which plans store packed."""
        bits = to_ir(self).bits
        return bits // 8 if bits >= 8 else bits / 8


class DeviceType(ApiEnum):
    """Where a layer runs."""

    GPU = 0
    DLA = 1
    # tactician's own: the host processor.
    CPU = 100


class LayerType(ApiEnum):
    """Kinds of layers."""

    CONVOLUTION = 0
    CAST = 1
    ACTIVATION = 2
    POOLING = 3
    LRN = 4
    SCALE = 5
    SOFTMAX = 6
    DECONVOLUTION = 7
    CONCATENATION = 8
    ELEMENTWISE = 9
    PLUGIN = 10
    UNARY = 11
    PADDING = 12
    SHUFFLE = 13
    REDUCE = 14
    TOPK = 15
    GATHER = 16
    MATRIX_MULTIPLY = 17
    RAGGED_SOFTMAX = 18
    CONSTANT = 19
    IDENTITY = 20
    PLUGIN_V2 = 21
    SLICE = 22
    SHAPE = 23
    PARAMETRIC_RELU = 24
    RESIZE = 25
    TRIP_LIMIT = 26
    RECURRENCE = 27
    ITERATOR = 28
    LOOP_OUTPUT = 29
    SELECT = 30
    FILL = 31
    QUANTIZE = 32
    DEQUANTIZE = 33
    CONDITION = 34
    CONDITIONAL_INPUT = 35
    CONDITIONAL_OUTPUT = 36
    SCATTER = 37
    EINSUM = 38
    ASSERTION = 39
    ONE_HOT = 40
    NON_ZERO = 41
    GRID_SAMPLE = 42
    NMS = 43
    REVERSE_SEQUENCE = 44
    NORMALIZATION = 45
    PLUGIN_V3 = 46
    SQUEEZE = 47
    UNSQUEEZE = 48
    CUMULATIVE = 49
    DYNAMIC_QUANTIZE = 50
    ATTENTION_INPUT = 51
    ATTENTION_OUTPUT = 52
    ROTARY_EMBEDDING = 53
    KV_CACHE_UPDATE = 54
    MOE = 55
    DIST_COLLECTIVE = 56
    # Layers of older versions, whose numbers were given away since.
    FULLY_CONNECTED = 101
    RNN = 102
    RNN_V2 = 103
    # tactician's own: an operation that TensorRT has no layer for (`INetworkDefinition.add_op`).
    OP = 200


class TensorFormat(ApiEnum):
    """Memory layouts of tensors."""

    LINEAR = 0
    CHW2 = 1
    HWC8 = 2
    CHW4 = 3
    CHW16 = 4
    CHW32 = 5
    DHWC8 = 6
    CDHW32 = 7
    HWC = 8
    DLA_LINEAR = 9
    DLA_HWC4 = 10
    HWC16 = 11
    DHWC = 12


class TensorLocation(ApiEnum):
    """Where the data of a tensor lies."""

    DEVICE = 0
    HOST = 1


class TensorIOMode(ApiEnum):
    """Whether a tensor is an input or an output of an engine."""

    NONE = 0
    INPUT = 1
    OUTPUT = 2


class WeightsRole(ApiEnum):
    """What a layer uses weights for."""

    KERNEL = 0
    BIAS = 1
    SHIFT = 2
    SCALE = 3
    CONSTANT = 4
    ANY = 5


class NetworkDefinitionCreationFlag(ApiEnum):
    """Bits of `Builder.create_network`."""

    EXPLICIT_BATCH = 0
    STRONGLY_TYPED = 1
    PREFER_JIT_PYTHON_PLUGINS = 2
    PREFER_AOT_PYTHON_PLUGINS = 3
    # Of older versions, whose number was given away since.
    EXPLICIT_PRECISION = 30


class ActivationType(ApiEnum):
    """Activation functions."""

    RELU = 0
    SIGMOID = 1
    TANH = 2
    LEAKY_RELU = 3
    ELU = 4
    SELU = 5
    SOFTSIGN = 6
    SOFTPLUS = 7
    CLIP = 8
    HARD_SIGMOID = 9
    SCALED_TANH = 10
    THRESHOLDED_RELU = 11
    GELU_ERF = 12
    GELU_TANH = 13


class BoundingBoxFormat(ApiEnum):
    """How boxes are given to non-maximum suppression."""

    CORNER_PAIRS = 0
    CENTER_SIZES = 1


class CumulativeOperation(ApiEnum):
    """Operation of a cumulative layer."""

    SUM = 0


class ElementWiseOperation(ApiEnum):
    """Binary operations."""

    SUM = 0
    PROD = 1
    MAX = 2
    MIN = 3
    SUB = 4
    DIV = 5
    POW = 6
    FLOOR_DIV = 7
    AND = 8
    OR = 9
    XOR = 10
    EQUAL = 11
    GREATER = 12
    LESS = 13


class FillOperation(ApiEnum):
    """What a fill layer generates."""

    LINSPACE = 0
    RANDOM_UNIFORM = 1
    RANDOM_NORMAL = 2


class GatherMode(ApiEnum):
    """How gather reads its indices."""

    DEFAULT = 0
    ELEMENT = 1
    ND = 2


class InterpolationMode(ApiEnum):
    """Interpolation of resize and grid-sample layers."""

    NEAREST = 0
    LINEAR = 1
    CUBIC = 2


class LoopOutput(ApiEnum):
    """Which values of a loop-carried tensor a loop returns."""

    LAST_VALUE = 0
    CONCATENATE = 1
    REVERSE = 2


class MatrixOperation(ApiEnum):
    """How a matrix-multiply operand is read."""

    NONE = 0
    TRANSPOSE = 1
    VECTOR = 2


class PaddingMode(ApiEnum):
    """How padding of windows is computed, and how output sizes round."""

    EXPLICIT_ROUND_DOWN = 0
    EXPLICIT_ROUND_UP = 1
    SAME_UPPER = 2
    SAME_LOWER = 3
    # Of older versions.
    CAFFE_ROUND_DOWN = 4
    CAFFE_ROUND_UP = 5


class PoolingType(ApiEnum):
    """Pooling functions."""

    MAX = 0
    AVERAGE = 1
    MAX_AVERAGE_BLEND = 2


class ReduceOperation(ApiEnum):
    """Reductions."""

    SUM = 0
    PROD = 1
    MAX = 2
    MIN = 3
    AVG = 4
    NONE = 5


class ResizeCoordinateTransformation(ApiEnum):
    """How output coordinates map to input coordinates."""

    ALIGN_CORNERS = 0
    ASYMMETRIC = 1
    HALF_PIXEL = 2


class ResizeRoundMode(ApiEnum):
    """Rounding of nearest interpolation."""

    HALF_UP = 0
    HALF_DOWN = 1
    FLOOR = 2
    CEIL = 3


class ResizeSelector(ApiEnum):
    """Coordinate of a single output pixel."""

    FORMULA = 0
    UPPER = 1


class SampleMode(ApiEnum):
    """What reads outside the input give."""

    STRICT_BOUNDS = 0
    WRAP = 1
    CLAMP = 2
    FILL = 3
    REFLECT = 4
    # Old name.
    DEFAULT = 0


class ScaleMode(ApiEnum):
    """How scale coefficients broadcast."""

    UNIFORM = 0
    CHANNEL = 1
    ELEMENTWISE = 2


class ScatterMode(ApiEnum):
    """How scatter reads its indices."""

    ELEMENT = 0
    ND = 1


class TopKOperation(ApiEnum):
    """Which elements top-k keeps."""

    MAX = 0
    MIN = 1


class TripLimit(ApiEnum):
    """What ends a loop."""

    COUNT = 0
    WHILE = 1


class UnaryOperation(ApiEnum):
    """Unary operations."""

    EXP = 0
    LOG = 1
    SQRT = 2
    RECIP = 3
    ABS = 4
    NEG = 5
    SIN = 6
    COS = 7
    TAN = 8
    SINH = 9
    COSH = 10
    ASIN = 11
    ACOS = 12
    ATAN = 13
    ASINH = 14
    ACOSH = 15
    ATANH = 16
    CEIL = 17
    FLOOR = 18
    ERF = 19
    NOT = 20
    SIGN = 21
    ROUND = 22
    ISINF = 23
    ISNAN = 24


class AttentionNormalizationOp(ApiEnum):
    """What attention scores are normalized with."""

    NONE = 0
    SOFTMAX = 1


class AttentionIOForm(ApiEnum):
    """How queries, keys and values are laid out."""

    PADDED_BHND = 0
    PACKED_NHD = 1


class CausalMaskKind(ApiEnum):
    """Which causal mask attention applies, and how it is aligned."""

    NONE = 0
    UPPER_LEFT = 1
    LOWER_RIGHT = 2


class KVCacheMode(ApiEnum):
    """How a key-value cache is written."""

    LINEAR = 0


class CollectiveOperation(ApiEnum):
    """Exchange of data between devices."""

    ALL_REDUCE = 0
    ALL_GATHER = 1
    BROADCAST = 2
    REDUCE = 3
    REDUCE_SCATTER = 4
    ALL_TO_ALL = 5
    GATHER = 6
    SCATTER = 7


class MoEActType(ApiEnum):
    """Activation inside a mixture-of-experts layer."""

    NONE = 0
    SILU = 1


class DimensionType(ApiEnum):
    """What a dimension means (version 7)."""

    SPATIAL = 0
    CHANNEL = 1
    INDEX = 2
    SEQUENCE = 3


class RNNDirection(ApiEnum):
    """Direction of a recurrent layer."""

    UNIDIRECTION = 0
    BIDIRECTION = 1


class RNNGateType(ApiEnum):
    """Gates of recurrent cells."""

    INPUT = 0
    OUTPUT = 1
    FORGET = 2
    UPDATE = 3
    RESET = 4
    CELL = 5
    HIDDEN = 6


class RNNInputMode(ApiEnum):
    """What the first recurrent layer does with its input."""

    LINEAR = 0
    SKIP = 1


class RNNOperation(ApiEnum):
    """Kind of recurrent cell."""

    RELU = 0
    TANH = 1
    LSTM = 2
    GRU = 3


# Old names of whole enums.
ResizeMode = InterpolationMode
SliceMode = SampleMode

_TO_IR: dict[DataType, DType] = {
    DataType.FLOAT: T.f32, DataType.HALF: T.f16, DataType.INT8: T.i8, DataType.INT32: T.i32,
    DataType.BOOL: T.b1, DataType.UINT8: T.u8, DataType.FP8: T.f8e4m3, DataType.BF16: T.bf16,
    DataType.INT64: T.i64, DataType.INT4: T.i4, DataType.FP4: T.f4e2m1, DataType.E8M0: T.f8e8m0,
    DataType.DOUBLE: T.f64, DataType.INT16: T.i16, DataType.UINT16: T.u16,
    DataType.UINT32: T.u32, DataType.UINT64: T.u64, DataType.UINT4: T.u4,
    DataType.FP8_E5M2: T.f8e5m2, DataType.COMPLEX64: T.c64, DataType.COMPLEX128: T.c128,
}
_FROM_IR = {d: t for t, d in _TO_IR.items()}


def to_ir(t: DataType) -> DType:
    """The compiler's element type for a `DataType`."""
    if not isinstance(t, DataType):
        raise TypeError(f"expected a DataType, got {t!r}")
    return _TO_IR[t]


def from_ir(d: DType) -> DataType:
    """The `DataType` for one of the compiler's element types."""
    return _FROM_IR[d]


def nptype(trt_type: DataType) -> Any:
    """The numpy type that stores elements of ``trt_type``.

    Types that numpy itself lacks (``BF16``, ``FP8``, …) give those of the ``ml_dtypes`` package.
    """
    return to_ir(trt_type).np.type


# The short names of element types.
float32 = DataType.FLOAT
float16 = DataType.HALF
bfloat16 = DataType.BF16
int8 = DataType.INT8
int32 = DataType.INT32
int64 = DataType.INT64
uint8 = DataType.UINT8
bool = DataType.BOOL
fp8 = DataType.FP8
fp4 = DataType.FP4
int4 = DataType.INT4
e8m0 = DataType.E8M0
