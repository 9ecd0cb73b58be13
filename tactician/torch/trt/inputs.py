# ruff: noqa: PIE796
"""What arguments look like: `Input`, element types, memory formats, devices."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Any

import torch

from ...network.enums import DeviceType
from ...support.errors import UsageError


class dtype(Enum):
    """Element types under torch_tensorrt's names."""

    unknown = "unknown"
    u8 = "u8"
    i8 = "i8"
    i32 = "i32"
    i64 = "i64"
    f16 = "f16"
    f32 = "f32"
    f64 = "f64"
    b = "b"
    bf16 = "bf16"
    f8 = "f8"
    # aliases
    uint8 = "u8"
    int8 = "i8"
    int32 = "i32"
    int = "i32"
    int64 = "i64"
    long = "i64"
    float16 = "f16"
    half = "f16"
    fp16 = "f16"
    float32 = "f32"
    float = "f32"
    fp32 = "f32"
    float64 = "f64"
    double = "f64"
    bool = "b"
    bfloat16 = "bf16"
    fp8 = "f8"
    float8 = "f8"

    @classmethod
    def _from(cls, given: Any) -> dtype:
        """The type for torch's, numpy's or TensorRT's, or a name.

        Raises:
            UsageError: If there is none.
        """
        if isinstance(given, cls):
            return given
        for ours, theirs in _TORCH.items():
            if given is theirs:
                return cls(ours)
        name = str(getattr(given, "name", getattr(given, "__name__", given)))
        name = name.lower().rpartition(".")[2]
        found = cls.__members__.get(name)
        if found is None:
            raise UsageError(f"there is no element type for {given!r}")
        return found

    @classmethod
    def try_from(cls, given: Any) -> dtype | None:
        """Like `_from`, None where there is none."""
        try:
            return cls._from(given)
        except UsageError:
            return None

    def to(self, kind: Any = torch.dtype, use_default: Any = False) -> Any:
        """As another library's type: ``torch.dtype``, or TensorRT's `DataType`.

        Raises:
            UsageError: If that library has none.
        """
        from ...network.enums import DataType, from_ir
        from ..types import dtype_of

        theirs = _TORCH.get(self.value)
        if theirs is None:
            raise UsageError(f"{self} is no element type")
        if kind is torch.dtype:
            return theirs
        if kind is DataType:
            return from_ir(dtype_of(theirs))
        raise UsageError(f"dtype.to takes torch.dtype or tactician's DataType, not {kind!r}")


_TORCH = {
    "u8": torch.uint8, "i8": torch.int8, "i32": torch.int32, "i64": torch.int64,
    "f16": torch.float16, "f32": torch.float32, "f64": torch.float64, "b": torch.bool,
    "bf16": torch.bfloat16, "f8": torch.float8_e4m3fn,
}  # fmt: skip


class memory_format(Enum):
    """Orders of dimensions in memory; engines take any, as strides say."""

    linear = "linear"
    contiguous = "linear"
    cdhw = "linear"
    channels_last = "channels_last"
    hwc = "channels_last"
    nhwc = "channels_last"


class EngineCapability(Enum):
    """What engines may be restricted to; only ``STANDARD`` means anything here."""

    STANDARD = "standard"
    SAFETY = "safety"
    DLA_STANDALONE = "dla_standalone"


class Device:
    """Where engines run.

    Args:
        spec: ``"cpu"``, ``"cuda:0"``, ``"gpu:0"``; a ``torch.device`` is taken, too.
        gpu_id: Of a GPU.
        dla_core: There is none.
        allow_gpu_fallback: Without meaning where there is no DLA.
    """

    def __init__(self, spec: Any = None, *, gpu_id: int = -1, dla_core: int = -1,
                 allow_gpu_fallback: bool = False, **others: Any):
        text = "cuda" if spec is None and gpu_id >= 0 else str(spec if spec is not None else "cpu")
        kind, _, index = text.lower().partition(":")
        if kind not in ("cpu", "cuda", "gpu"):
            raise UsageError(f"there is no device {text!r}; there are cpu and cuda")
        self.device_type = DeviceType.CPU if kind == "cpu" else DeviceType.GPU
        self.gpu_id = int(index) if index else max(gpu_id, 0)
        self.dla_core, self.allow_gpu_fallback = dla_core, allow_gpu_fallback

    @classmethod
    def _from(cls, given: Any) -> Device:
        return given if isinstance(given, cls) else cls(given)

    def to(self, kind: Any = torch.device) -> torch.device:
        """As ``torch.device``."""
        return torch.device("cpu") if self.device_type is DeviceType.CPU \
            else torch.device("cuda", self.gpu_id)

    def __repr__(self) -> str:
        return f"Device({self.to()})"


class Input:
    """One argument of a module: a shape, or the least, usual and greatest one.

    Args:
        shape: The shape; a positional argument stands for it, too.
        min_shape, opt_shape, max_shape: For shapes that vary; all three.
        dtype: Element type in any notation; FP32 by default.
        format: Ignored: strides of the tensors themselves count.
        tensor_domain: Least (included) and greatest (excluded) value of sample data.
        torch_tensor: A sample to use; it gives shape and type.
        name: Of the dimension, for messages.
        is_shape_tensor: Its contents are sizes.

    Raises:
        UsageError: If shapes are missing or not in order.
    """

    class _ShapeMode(Enum):
        STATIC = 0
        DYNAMIC = 1

    def __init__(self, *args: Any, shape: Any = None, min_shape: Any = None, opt_shape: Any = None,
                 max_shape: Any = None, dtype: Any = torch.float32,
                 format: Any = memory_format.linear, tensor_domain: Any = None,
                 torch_tensor: torch.Tensor | None = None, name: str = "",
                 is_shape_tensor: bool = False):
        if len(args) == 1:
            shape = args[0]
        elif args:
            raise UsageError(f"Input takes one positional argument, the shape; got {len(args)}")
        if torch_tensor is not None:
            if shape is None and min_shape is None:
                shape = torch_tensor.shape
            dtype = torch_tensor.dtype
        self.torch_tensor, self.name, self.format = torch_tensor, name, format
        self.is_shape_tensor = is_shape_tensor
        self.tensor_domain = tensor_domain or (0, 2)
        self.dtype = _dtype._from(dtype)
        three = (min_shape, opt_shape, max_shape)
        if shape is not None and any(s is not None for s in three):
            raise UsageError("Input takes either shape or min_shape, opt_shape and max_shape")
        if shape is None:
            if any(s is None for s in three):
                raise UsageError("Input needs shape, or all of min_shape, opt_shape, max_shape")
            low, opt, high = (tuple(map(int, s)) for s in three)
            ordered = len(low) == len(opt) == len(high) and all(
                a <= b <= c for a, b, c in zip(low, opt, high, strict=True))
            if not ordered:
                raise UsageError(f"Input: need min <= opt <= max everywhere, got {low}, {opt}, "
                                 f"{high}")
            self.shape_mode = Input._ShapeMode.DYNAMIC
            self.shape: Any = {"min_shape": low, "opt_shape": opt, "max_shape": high}
        else:
            self.shape_mode = Input._ShapeMode.STATIC
            self.shape = tuple(map(int, shape))

    @property
    def triple(self) -> tuple[Any, Any, Any]:
        """Min, opt and max shape."""
        if self.shape_mode is Input._ShapeMode.STATIC:
            return (self.shape,) * 3
        return self.shape["min_shape"], self.shape["opt_shape"], self.shape["max_shape"]

    def example_tensor(self, optimization_profile_field: str | None = None) -> torch.Tensor:
        """Sample data.

        Args:
            optimization_profile_field: Which shape; ``opt_shape`` by default.
        """
        field = optimization_profile_field or "opt_shape"
        shape = self.triple[("min_shape", "opt_shape", "max_shape").index(field)]
        if self.torch_tensor is not None and tuple(self.torch_tensor.shape) == tuple(shape):
            return self.torch_tensor
        kind = self.dtype.to(torch.dtype)
        low, high = self.tensor_domain
        if kind.is_floating_point:
            return (torch.rand(shape) * (high - low) + low).to(kind)
        return torch.randint(int(low), int(high), shape).to(kind)

    @classmethod
    def from_tensor(cls, t: torch.Tensor, disable_memory_format_check: bool = False) -> Input:
        """The input a tensor is."""
        return cls(torch_tensor=t)

    @classmethod
    def from_tensors(cls, ts: Sequence[torch.Tensor],
                     disable_memory_format_check: bool = False) -> list[Input]:
        """The inputs that tensors are."""
        return [cls.from_tensor(t) for t in ts]

    def __repr__(self) -> str:
        return f"Input(shape={self.shape}, dtype={self.dtype.name})"


_dtype = dtype
