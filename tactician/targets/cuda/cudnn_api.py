"""cuDNN's backend API through ctypes: descriptors with attributes, and handles.

The numbers are those of ``cudnn_graph.h`` (cuDNN 9).
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from . import libraries
from .libraries import LibraryError

# cudnnBackendDescriptorType_t
POINTWISE, CONVOLUTION, ENGINE, ENGINECFG, ENGINEHEUR, PLAN = 0, 1, 2, 3, 4, 5
OP_CONV_FORWARD, OP_CONV_BWD_DATA, OP_POINTWISE = 10, 12, 13
GRAPH, VARIANT_PACK, TENSOR, MATMUL, OP_MATMUL = 15, 16, 17, 18, 19
REDUCTION, OP_REDUCTION, DEVICEPROP, OP_SDPA_FWD = 21, 22, 38, 41

# cudnnBackendAttributeType_t
T_HANDLE, T_DATA_TYPE, T_BOOLEAN, T_INT64, T_FLOAT, T_DOUBLE, T_VOID_PTR = 0, 1, 2, 3, 4, 5, 6
T_CONVOLUTION_MODE, T_HEUR_MODE, T_NUMERICAL_NOTE = 7, 8, 11
T_POINTWISE_MODE, T_DESCRIPTOR, T_REDUCTION_OPERATOR, T_BEHAVIOR_NOTE = 14, 15, 18, 19
T_INT32, T_CHAR = 23, 24

_C_TYPES: dict[int, Any] = {
    T_HANDLE: ctypes.c_void_p, T_DATA_TYPE: ctypes.c_int, T_BOOLEAN: ctypes.c_bool,
    T_INT64: ctypes.c_int64, T_FLOAT: ctypes.c_float, T_DOUBLE: ctypes.c_double,
    T_VOID_PTR: ctypes.c_void_p, T_CONVOLUTION_MODE: ctypes.c_int, T_HEUR_MODE: ctypes.c_int,
    T_NUMERICAL_NOTE: ctypes.c_int, T_POINTWISE_MODE: ctypes.c_int,
    T_DESCRIPTOR: ctypes.c_void_p, T_REDUCTION_OPERATOR: ctypes.c_int,
    T_BEHAVIOR_NOTE: ctypes.c_int, T_INT32: ctypes.c_int32, T_CHAR: ctypes.c_char,
}  # fmt: skip

# cudnnDataType_t by the names of our element types
DATA_TYPES: dict[str, int] = {
    "f32": 0, "f64": 1, "f16": 2, "i8": 3, "i32": 4, "u8": 6, "bf16": 9, "i64": 10, "b1": 11,
    "f8e4m3": 12, "f8e5m2": 13,
}  # fmt: skip

# cudnnPointwiseMode_t: name -> (number, operands)
POINTWISE_MODES: dict[str, tuple[int, int]] = {
    "add": (0, 2), "mul": (1, 2), "min": (2, 2), "max": (3, 2), "sqrt": (4, 1), "div": (6, 2),
    "pow": (8, 2), "sub": (9, 2), "abs": (10, 1), "ceil": (11, 1), "cos": (12, 1),
    "exp": (13, 1), "floor": (14, 1), "log": (15, 1), "neg": (16, 1), "rsqrt": (17, 1),
    "sin": (18, 1), "tan": (19, 1), "erf": (20, 1), "identity": (21, 1), "recip": (22, 1),
    "relu": (100, 1), "tanh": (101, 1), "sigmoid": (102, 1), "elu": (103, 1),
    "gelu_erf": (104, 1), "softplus": (105, 1), "swish": (106, 1), "gelu_tanh": (107, 1),
    "eq": (300, 2), "ne": (301, 2), "gt": (302, 2), "ge": (303, 2), "lt": (304, 2),
    "le": (305, 2), "select": (601, 3),
}  # fmt: skip

REDUCTIONS = {"sum": 0, "min": 2, "max": 3}
HEUR_INSTANT, HEUR_B, HEUR_FALLBACK, HEUR_A = 0, 1, 2, 3
NOTE_TENSOR_CORE, NOTE_DOWN_CONVERT, NOTE_REDUCED_PRECISION = 0, 1, 2
NOTE_NONDETERMINISTIC = 4


def check(status: int, what: str) -> None:
    """Raises `LibraryError` with cuDNN's own words if a call failed."""
    if not status:
        return
    lib = libraries.load("cudnn")
    text = ""
    with suppress(AttributeError):
        buffer = ctypes.create_string_buffer(2048)
        lib.cudnnGetLastErrorString(buffer, ctypes.c_size_t(2048))
        text = buffer.value.decode(errors="replace").strip()
    raise LibraryError(f"cuDNN: {what} failed with status {status}" + (f": {text}" if text else ""))


class Descriptor:
    """One backend descriptor; destroyed with the object."""

    def __init__(self, kind: int):
        self._lib = libraries.load("cudnn")
        self.kind = kind
        handle = ctypes.c_void_p()
        check(
            self._lib.cudnnBackendCreateDescriptor(ctypes.c_int(kind), ctypes.byref(handle)),
            f"creating a descriptor of type {kind}",
        )
        self.handle = handle
        self._keep: list[Any] = []  # descriptors that this one refers to

    def set(self, attribute: int, kind: int, values: Any) -> Descriptor:
        """Sets an attribute; a single value counts as a sequence of one."""
        if kind == T_CHAR:
            array: Any = ctypes.create_string_buffer(values, len(values))
            count = len(values)
        else:
            many = list(values) if isinstance(values, Sequence) else [values]
            self._keep += [v for v in many if isinstance(v, Descriptor)]
            raw = [v.handle.value if isinstance(v, Descriptor) else v for v in many]
            count = len(raw)
            array = (_C_TYPES[kind] * max(1, count))(*raw)
        status = self._lib.cudnnBackendSetAttribute(
            self.handle, ctypes.c_int(attribute), ctypes.c_int(kind), ctypes.c_int64(count),
            ctypes.cast(array, ctypes.c_void_p),
        )
        check(status, f"setting attribute {attribute} of a descriptor of type {self.kind}")
        return self

    def finalize(self) -> Descriptor:
        check(self._lib.cudnnBackendFinalize(self.handle),
              f"finalizing a descriptor of type {self.kind}")
        return self

    def count(self, attribute: int, kind: int) -> int:
        """How many elements an attribute has."""
        number = ctypes.c_int64()
        status = self._lib.cudnnBackendGetAttribute(
            self.handle, ctypes.c_int(attribute), ctypes.c_int(kind), ctypes.c_int64(0),
            ctypes.byref(number), None,
        )
        check(status, f"asking for attribute {attribute} of a descriptor of type {self.kind}")
        return number.value

    def get(self, attribute: int, kind: int, count: int = 1) -> list[Any]:
        """Up to ``count`` elements of an attribute."""
        array = (_C_TYPES[kind] * max(1, count))()
        number = ctypes.c_int64()
        status = self._lib.cudnnBackendGetAttribute(
            self.handle, ctypes.c_int(attribute), ctypes.c_int(kind), ctypes.c_int64(count),
            ctypes.byref(number), ctypes.cast(array, ctypes.c_void_p),
        )
        check(status, f"reading attribute {attribute} of a descriptor of type {self.kind}")
        return list(array)[: min(count, number.value)]

    def text(self, attribute: int) -> bytes:
        """A character attribute."""
        size = self.count(attribute, T_CHAR)
        return b"".join(self.get(attribute, T_CHAR, size)).rstrip(b"\0")

    def fill(self, attribute: int, into: Sequence[Descriptor]) -> int:
        """Reads descriptors into existing ones; how many were written."""
        array = (ctypes.c_void_p * max(1, len(into)))(*(d.handle.value for d in into))
        number = ctypes.c_int64()
        status = self._lib.cudnnBackendGetAttribute(
            self.handle, ctypes.c_int(attribute), ctypes.c_int(T_DESCRIPTOR),
            ctypes.c_int64(len(into)), ctypes.byref(number), ctypes.cast(array, ctypes.c_void_p),
        )
        check(status, f"reading attribute {attribute} of a descriptor of type {self.kind}")
        return min(len(into), number.value)

    def __del__(self) -> None:
        handle = getattr(self, "handle", None)
        if handle is not None and handle.value:
            with suppress(Exception):
                self._lib.cudnnBackendDestroyDescriptor(handle)
            self.handle = ctypes.c_void_p()


class Handle:
    """A cuDNN handle of one CUDA context. Its stream is set for every call, so calls are made
    one at a time."""

    def __init__(self) -> None:
        self._lib = libraries.load("cudnn")
        self.value = ctypes.c_void_p()
        check(self._lib.cudnnCreate(ctypes.byref(self.value)), "creating a handle")
        self._stream: int | None = None
        self.lock = threading.Lock()

    def execute(self, plan: Descriptor, pack: Descriptor, stream: int) -> None:
        """Enqueues a plan on a stream."""
        with self.lock:
            if stream != self._stream:
                status = self._lib.cudnnSetStream(self.value, ctypes.c_void_p(stream))
                check(status, "setting the stream")
                self._stream = stream
            status = self._lib.cudnnBackendExecute(self.value, plan.handle, pack.handle)
            check(status, "running a plan")


_handles: dict[int, Handle] = {}
_handles_lock = threading.Lock()


def handle() -> Handle:
    """The handle of the current CUDA context."""
    context = libraries.current_context()
    with _handles_lock:
        if context not in _handles:
            _handles[context] = Handle()
        return _handles[context]


def device_properties(source: bytes | None = None) -> Descriptor:
    """A descriptor of a GPU: of the current one, or of one described by cuDNN's JSON text, for
    which plans can then be made without having it."""
    d = Descriptor(DEVICEPROP)
    if source is None:
        d.set(2701, T_HANDLE, handle().value.value)
    else:
        d.set(2702, T_CHAR, source)
    return d.finalize()
