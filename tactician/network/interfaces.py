"""Interfaces that programs implement: profilers, allocators, calibrators, recorders, streams.

Subclasses call ``super().__init__()`` or ``trt.IProfiler.__init__(self)``; neither is required.
Methods that a program must provide raise NotImplementedError here.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, ClassVar

from ..support import logger as log
from .enums import DataType, TensorLocation
from .enums_build import APILanguage, CalibrationAlgoType, ErrorCodeTRT, SeekPosition


def _must(self: Any, method: str) -> NotImplementedError:
    return NotImplementedError(f"{type(self).__name__} must implement {method}")


class InterfaceInfo:
    """Kind and version of an interface.

    Attributes:
        kind: Name of the interface.
        major, minor: Version.
    """

    kind: str
    major: int
    minor: int

    def __init__(self, kind: str = "", major: int = 1, minor: int = 0):
        self.kind, self.major, self.minor = kind, major, minor

    def __repr__(self) -> str:
        return f"<InterfaceInfo {self.kind!r} {self.major}.{self.minor}>"


class IVersionedInterface:
    """Base class of interfaces that have a version."""

    _kind: ClassVar[str] = ""

    def __init__(self, *_: Any):
        pass

    @property
    def api_language(self) -> APILanguage:
        """Always PYTHON."""
        return APILanguage.PYTHON

    @property
    def interface_info(self) -> InterfaceInfo:
        """Kind and version of the interface."""
        return InterfaceInfo(self._kind or type(self).__name__, 1, 0)


class IProfiler:
    """Receives the time each layer took."""

    def __init__(self) -> None:
        pass

    def report_layer_time(self, layer_name: str, ms: float) -> None:
        """Takes the time of one layer; called for every layer after an inference."""
        raise _must(self, "report_layer_time(layer_name, ms)")


class Profiler(IProfiler):
    """Prints the time of each layer."""

    def report_layer_time(self, layer_name: str, ms: float) -> None:
        """Prints one line to stdout."""
        sys.stdout.write(f"{layer_name}: {ms:.6g}ms\n")


class IProgressMonitor:
    """Follows a build and may cancel it."""

    def __init__(self) -> None:
        pass

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        """A phase begins; phases nest."""
        raise _must(self, "phase_start(phase_name, parent_phase, num_steps)")

    def step_complete(self, phase_name: str, step: int) -> bool:
        """A step is done; return False to cancel the build."""
        raise _must(self, "step_complete(phase_name, step)")

    def phase_finish(self, phase_name: str) -> None:
        """A phase ends."""
        raise _must(self, "phase_finish(phase_name)")


class IErrorRecorder:
    """Collects errors.

    Attributes:
        MAX_DESC_LENGTH: Longest description that is kept whole.
    """

    MAX_DESC_LENGTH: ClassVar[int] = 127

    def __init__(self) -> None:
        pass

    def num_errors(self) -> int:
        """How many errors are recorded."""
        raise _must(self, "num_errors()")

    def get_error_code(self, arg0: int) -> ErrorCodeTRT:
        """Code of an error."""
        raise _must(self, "get_error_code(index)")

    def get_error_desc(self, arg0: int) -> str:
        """Description of an error."""
        raise _must(self, "get_error_desc(index)")

    def has_overflowed(self) -> bool:
        """Whether errors were dropped."""
        raise _must(self, "has_overflowed()")

    def clear(self) -> None:
        """Forgets all errors."""
        raise _must(self, "clear()")

    def report_error(self, arg0: ErrorCodeTRT, arg1: str) -> bool:
        """Takes an error; returns whether it is fatal."""
        raise _must(self, "report_error(code, description)")


class IOutputAllocator:
    """Provides memory for outputs whose sizes depend on data."""

    def __init__(self) -> None:
        pass

    @property
    def tensorrt_version(self) -> int:
        """Version of the interface (8.5 to 9.3)."""
        return 1

    def reallocate_output(self, tensor_name: str, memory: int, size: int, alignment: int) -> int:
        """Returns the address of at least ``size`` bytes; ``memory`` is the current address."""
        raise _must(self, "reallocate_output(tensor_name, memory, size, alignment)")

    def reallocate_output_async(self, tensor_name: str, memory: int, size: int, alignment: int,
                                stream: int) -> int:
        """Like `reallocate_output`, on a stream."""
        return self.reallocate_output(tensor_name, memory, size, alignment)

    def notify_shape(self, tensor_name: str, shape: Any) -> None:
        """Says which shape the output got."""
        raise _must(self, "notify_shape(tensor_name, shape)")


class IGpuAllocator(IVersionedInterface):
    """Provides device memory (host memory on the CPU)."""

    def allocate(self, size: int, alignment: int, flags: int) -> int | None:
        """Returns the address of ``size`` bytes, or None."""
        raise _must(self, "allocate(size, alignment, flags)")

    def reallocate(self, address: int, alignment: int, new_size: int) -> int | None:
        """Returns a larger block with the same contents, or None if that is not supported."""
        return None

    def deallocate(self, memory: int) -> bool:
        """Frees a block; returns whether that worked."""
        raise _must(self, "deallocate(memory)")

    def free(self, memory: int) -> None:
        """Frees a block (versions 7 to 9)."""
        self.deallocate(memory)

    def allocate_async(self, size: int, alignment: int, flags: int, stream: int) -> int | None:
        """Like `allocate`, on a stream."""
        return self.allocate(size, alignment, flags)

    def deallocate_async(self, memory: int, stream: int) -> bool:
        """Like `deallocate`, on a stream."""
        return self.deallocate(memory)


class IGpuAsyncAllocator(IGpuAllocator):
    """Provides device memory on streams; implement the ``_async`` methods."""

    def allocate(self, size: int, alignment: int, flags: int) -> int | None:
        """Allocates on the default stream."""
        return self.allocate_async(size, alignment, flags, 0)

    def deallocate(self, memory: int) -> bool:
        """Frees on the default stream."""
        return self.deallocate_async(memory, 0)

    def allocate_async(self, size: int, alignment: int, flags: int, stream: int) -> int | None:
        """Returns the address of ``size`` bytes, or None."""
        raise _must(self, "allocate_async(size, alignment, flags, stream)")

    def deallocate_async(self, memory: int, stream: int) -> bool:
        """Frees a block; returns whether that worked."""
        raise _must(self, "deallocate_async(memory, stream)")


class IDebugListener:
    """Sees tensors that were marked with `INetworkDefinition.mark_debug`."""

    def __init__(self) -> None:
        pass

    def process_debug_tensor(self, addr: int, location: TensorLocation, type: DataType,
                             shape: Any, name: str, stream: int) -> bool:
        """Takes a tensor right after it was computed."""
        raise _must(self, "process_debug_tensor(addr, location, type, shape, name, stream)")


class IStreamReader:
    """Source of a plan, read in order."""

    def __init__(self) -> None:
        pass

    def read(self, size: int) -> bytes:
        """Returns up to ``size`` further bytes; none at the end."""
        raise _must(self, "read(size)")


class IStreamReaderV2:
    """Source of a plan, with random access."""

    def __init__(self) -> None:
        pass

    def read(self, num_bytes: int, stream: int) -> bytes:
        """Returns up to ``num_bytes`` bytes from the current position."""
        raise _must(self, "read(num_bytes, stream)")

    def seek(self, offset: int, where: SeekPosition) -> bool:
        """Moves the position; returns whether that worked."""
        raise _must(self, "seek(offset, where)")


class IStreamWriter:
    """Destination of a plan."""

    def __init__(self) -> None:
        pass

    def write(self, data: bytes) -> int:
        """Takes bytes; returns how many were written."""
        raise _must(self, "write(data)")


# --- calibration (versions up to 10) --------------------------------------------------------


class IInt8Calibrator:
    """Feeds sample batches from which INT8 ranges are found."""

    _algorithm: ClassVar[CalibrationAlgoType] = CalibrationAlgoType.LEGACY_CALIBRATION

    def __init__(self) -> None:
        pass

    def get_batch_size(self) -> int:
        """Samples per batch."""
        raise _must(self, "get_batch_size()")

    def get_batch(self, names: Sequence[str]) -> list[int] | None:
        """Addresses of one batch for each input, or None when there are no more."""
        raise _must(self, "get_batch(names)")

    def get_algorithm(self) -> CalibrationAlgoType:
        """Which calibration algorithm to use."""
        return self._algorithm

    def read_calibration_cache(self) -> bytes | None:
        """A cache that `write_calibration_cache` kept, or None."""
        return None

    def write_calibration_cache(self, cache: memoryview) -> None:
        """Keeps a cache, so that the next build needs no batches."""
        return None


class IInt8LegacyCalibrator(IInt8Calibrator):
    """Ranges from quantiles."""


class IInt8EntropyCalibrator(IInt8Calibrator):
    """Ranges that lose the least information."""

    _algorithm = CalibrationAlgoType.ENTROPY_CALIBRATION


class IInt8EntropyCalibrator2(IInt8Calibrator):
    """Ranges that lose the least information, before fusion."""

    _algorithm = CalibrationAlgoType.ENTROPY_CALIBRATION_2


class IInt8MinMaxCalibrator(IInt8Calibrator):
    """Ranges of all values seen."""

    _algorithm = CalibrationAlgoType.MINMAX_CALIBRATION


# --- algorithm selection (versions up to 10) ------------------------------------------------


class IAlgorithmIOInfo:
    """Type and layout of one tensor of an algorithm."""

    def __init__(self, dtype: DataType = DataType.FLOAT, strides: Any = (),
                 vectorized_dim: int = -1, components_per_element: int = 1,
                 tensor_format: Any = None):
        from .enums import TensorFormat

        self._info = (dtype, strides, vectorized_dim, components_per_element,
                      tensor_format or TensorFormat.LINEAR)

    dtype = property(lambda s: s._info[0], doc="Element type.")
    strides = property(lambda s: s._info[1], doc="Strides, in elements.")
    vectorized_dim = property(lambda s: s._info[2], doc="Dimension of vectors; -1: none.")
    components_per_element = property(lambda s: s._info[3], doc="Elements of a vector.")
    tensor_format = property(lambda s: s._info[4], doc="Layout.")


class IAlgorithmVariant:
    """Which kernel with which tactic.

    Attributes:
        implementation, tactic: Numbers that identify them.
    """

    def __init__(self, implementation: int = 0, tactic: int = 0):
        self._id = (implementation, tactic)

    implementation = property(lambda s: s._id[0], doc="Number of the kernel.")
    tactic = property(lambda s: s._id[1], doc="Number of the tactic.")


class IAlgorithm:
    """One way to compute a layer."""

    def __init__(self, variant: IAlgorithmVariant | None = None, timing_msec: float = 0.0,
                 workspace_size: int = 0, io: Sequence[IAlgorithmIOInfo] = ()):
        self._data = (variant or IAlgorithmVariant(), timing_msec, workspace_size, tuple(io))

    algorithm_variant = property(lambda s: s._data[0], doc="Which kernel.")
    timing_msec = property(lambda s: s._data[1], doc="Measured time.")
    workspace_size = property(lambda s: s._data[2], doc="Bytes of scratch memory.")

    def get_algorithm_io_info(self, index: int) -> IAlgorithmIOInfo | None:
        """Type and layout of a tensor: inputs first, then outputs."""
        io = self._data[3]
        return io[index] if 0 <= index < len(io) else None


class IAlgorithmContext:
    """The layer an algorithm is selected for."""

    def __init__(self, name: str = "", shapes: Sequence[Any] = (), num_inputs: int = 0):
        self._data = (name, tuple(shapes), num_inputs)

    name = property(lambda s: s._data[0], doc="Name of the layer.")
    num_inputs = property(lambda s: s._data[2], doc="How many inputs it has.")
    num_outputs = property(lambda s: len(s._data[1]) - s._data[2], doc="How many outputs it has.")

    def get_shape(self, index: int) -> list[Any]:
        """Least, optimal and largest shape of a tensor."""
        return list(self._data[1][index])


class IAlgorithmSelector:
    """Chooses between algorithms, and is told what was chosen."""

    def __init__(self) -> None:
        pass

    def select_algorithms(self, context: IAlgorithmContext,
                          choices: Sequence[IAlgorithm]) -> list[int]:
        """Indices of the choices that may be used; all by default."""
        return list(range(len(choices)))

    def report_algorithms(self, contexts: Sequence[IAlgorithmContext],
                          choices: Sequence[IAlgorithm]) -> None:
        """Takes the choices that were made; by default logs how many there are."""
        log.verbose(f"{len(choices)} algorithms were selected")
