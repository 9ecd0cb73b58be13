"""cuBLASLt through ctypes: matrix products as plain data, their algorithms, and calls.

cuBLASLt counts columns first. A row-major product ``D[m, n] = A[m, k] B[k, n]`` is the column-major
product of the transposed operands in exchanged order, which is how `_Descriptors` describes it;
a bias along n is then one along cuBLASLt's rows, as its epilogues want.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from ...support.errors import ExecutionError
from . import libraries
from .libraries import LibraryError

DATA_TYPES = {
    "f32": 0, "f64": 1, "f16": 2, "i8": 3, "i32": 10, "bf16": 14, "f8e4m3": 28, "f8e5m2": 29,
}  # cudaDataType_t
COMPUTE_32F, COMPUTE_64F, COMPUTE_32I, COMPUTE_TF32 = 68, 70, 72, 77  # cublasComputeType_t
EPILOGUES = {"": 1, "relu": 2, "bias": 4, "relu_bias": 6, "gelu": 32, "gelu_bias": 36}
ALIGNMENT = 16
ALGO_BYTES = 64


@dataclass(frozen=True)
class Product:
    """A batch of row-major products ``D = act(alpha * A B + C + bias)``.

    Attributes:
        m, n, k, batch: Extents.
        a, b, d: Element types; C has D's.
        ta, tb: Whether A is stored ``[k, m]``, B ``[n, k]``.
        lda, ldb, ldc, ldd: Elements from row to row as stored.
        stride_a, stride_b, stride_c, stride_d: Elements from one matrix of the batch to the next.
        alpha: Factor on the product.
        epilogue: A name in `EPILOGUES`.
        add: Whether C is given and added.
        tf32: Whether f32 operands may be rounded to TF32.
    """

    m: int
    n: int
    k: int
    a: str
    b: str
    d: str
    lda: int
    ldb: int
    ldd: int
    ldc: int = 0
    ta: bool = False
    tb: bool = False
    batch: int = 1
    stride_a: int = 0
    stride_b: int = 0
    stride_c: int = 0
    stride_d: int = 0
    alpha: float = 1.0
    epilogue: str = ""
    add: bool = False
    tf32: bool = False

    @property
    def has_bias(self) -> bool:
        return "bias" in self.epilogue

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class _Result(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t."""

    _fields_ = (
        ("algo", ctypes.c_uint64 * 8), ("workspace", ctypes.c_size_t), ("state", ctypes.c_int),
        ("waves", ctypes.c_float), ("reserved", ctypes.c_int * 4),
    )


@dataclass(frozen=True)
class Algorithm:
    """One algorithm for one product.

    Attributes:
        data: cuBLASLt's description, valid for its version and kind of GPU.
        workspace: Bytes it needs.
    """

    data: bytes
    workspace: int


def check(status: int, what: str) -> None:
    """Raises `LibraryError` if a call failed."""
    if not status:
        return
    names = {1: "not initialized", 3: "allocation failed", 7: "invalid value",
             8: "architecture mismatch", 13: "execution failed", 14: "internal error",
             15: "not supported"}  # fmt: skip
    raise LibraryError(f"cuBLASLt: {what} failed: {names.get(status, f'status {status}')}")


class _Descriptors:
    """The descriptors of one product."""

    def __init__(self, p: Product):
        self._lib = libraries.load("cublaslt")
        self._made: list[tuple[str, ctypes.c_void_p]] = []
        integer = p.a == "i8"
        wide = p.a == "f64"
        compute = COMPUTE_32I if integer else COMPUTE_64F if wide else COMPUTE_32F
        if p.a == "f32" and p.tf32:
            compute = COMPUTE_TF32
        scale = "i32" if p.d == "i32" else "f64" if wide else "f32"
        number: Any = {"i32": ctypes.c_int32, "f64": ctypes.c_double}.get(scale, ctypes.c_float)
        self.alpha = number(int(p.alpha) if scale == "i32" else p.alpha)
        self.beta = number(1 if p.add else 0)
        self.desc = self._create(
            "cublasLtMatmulDesc", ctypes.c_int(compute), ctypes.c_int(DATA_TYPES[scale])
        )
        self.set(3, ctypes.c_int32(int(p.tb)))  # ours and theirs are exchanged
        self.set(4, ctypes.c_int32(int(p.ta)))
        self.set(7, ctypes.c_uint32(EPILOGUES[p.epilogue]))
        if p.has_bias:
            self.set(26, ctypes.c_int32(DATA_TYPES[p.d]))
            self.set(8, ctypes.c_void_p(ALIGNMENT))  # tells the heuristic the alignment
        self.a = self._layout(p.b, p.n, p.k, p.ldb, p.tb, p.batch, p.stride_b)
        self.b = self._layout(p.a, p.k, p.m, p.lda, p.ta, p.batch, p.stride_a)
        ldc, stride_c = (p.ldc, p.stride_c) if p.add else (p.ldd, p.stride_d)
        self.c = self._layout(p.d, p.n, p.m, ldc, False, p.batch, stride_c)
        self.d = self._layout(p.d, p.n, p.m, p.ldd, False, p.batch, p.stride_d)

    def _create(self, kind: str, *args: Any) -> ctypes.c_void_p:
        made = ctypes.c_void_p()
        check(getattr(self._lib, kind + "Create")(ctypes.byref(made), *args), f"{kind}Create")
        self._made.append((kind, made))
        return made

    def set(self, attribute: int, value: Any) -> None:
        """Sets an attribute of the product's descriptor."""
        status = self._lib.cublasLtMatmulDescSetAttribute(
            self.desc, ctypes.c_int(attribute), ctypes.byref(value),
            ctypes.c_size_t(ctypes.sizeof(value)),
        )
        check(status, f"attribute {attribute} of a product")

    def _layout(
        self, dtype: str, rows: int, cols: int, ld: int, turned: bool, batch: int, stride: int
    ) -> ctypes.c_void_p:
        if turned:
            rows, cols = cols, rows
        made = self._create(
            "cublasLtMatrixLayout", ctypes.c_int(DATA_TYPES[dtype]), ctypes.c_uint64(rows),
            ctypes.c_uint64(cols), ctypes.c_int64(ld),
        )
        if batch > 1:
            for attribute, value in ((5, ctypes.c_int32(batch)), (6, ctypes.c_int64(stride))):
                status = self._lib.cublasLtMatrixLayoutSetAttribute(
                    made, ctypes.c_int(attribute), ctypes.byref(value),
                    ctypes.c_size_t(ctypes.sizeof(value)),
                )
                check(status, f"attribute {attribute} of a layout")
        return made

    def heuristics(self, workspace: int, most: int) -> list[Algorithm]:
        """Algorithms that need at most ``workspace`` bytes, the likely fastest first."""
        pref = self._create("cublasLtMatmulPreference")
        values: list[tuple[int, Any]] = [(1, ctypes.c_uint64(workspace))]
        values += [(a, ctypes.c_uint32(ALIGNMENT)) for a in (5, 6, 7, 8)]
        for attribute, value in values:
            status = self._lib.cublasLtMatmulPreferenceSetAttribute(
                pref, ctypes.c_int(attribute), ctypes.byref(value),
                ctypes.c_size_t(ctypes.sizeof(value)),
            )
            check(status, f"attribute {attribute} of a preference")
        results = (_Result * most)()
        found = ctypes.c_int()
        status = self._lib.cublasLtMatmulAlgoGetHeuristic(
            handle().value, self.desc, self.a, self.b, self.c, self.d, pref, ctypes.c_int(most),
            results, ctypes.byref(found),
        )
        check(status, "the heuristic")
        good = [r for r in results[: found.value] if r.state == 0]
        return [Algorithm(bytes(r.algo), int(r.workspace)) for r in good]

    def usable(self, data: bytes) -> int | None:
        """Workspace an algorithm needs here, or None if it can't be used."""
        algo, result = (ctypes.c_uint64 * 8).from_buffer_copy(data), _Result()
        status = self._lib.cublasLtMatmulAlgoCheck(
            handle().value, self.desc, self.a, self.b, self.c, self.d, ctypes.byref(algo),
            ctypes.byref(result),
        )
        return None if status else int(result.workspace)

    def __del__(self) -> None:
        for kind, made in getattr(self, "_made", []):
            with suppress(Exception):
                getattr(self._lib, kind + "Destroy")(made)


class Handle:
    """A cuBLASLt handle of one CUDA context; any thread may use it."""

    def __init__(self) -> None:
        self.value = ctypes.c_void_p()
        status = libraries.load("cublaslt").cublasLtCreate(ctypes.byref(self.value))
        check(status, "creating a handle")


_handles: dict[int, Handle] = {}
_lock = threading.Lock()


def handle() -> Handle:
    """The handle of the current CUDA context."""
    context = libraries.current_context()
    with _lock:
        if context not in _handles:
            _handles[context] = Handle()
        return _handles[context]


@functools.lru_cache(maxsize=1024)
def _algorithms(p: Product, workspace: int, most: int, context: int) -> tuple[Algorithm, ...]:
    try:
        return tuple(_Descriptors(p).heuristics(workspace, most))
    except LibraryError:
        return ()


def algorithms(p: Product, workspace: int, most: int = 8) -> tuple[Algorithm, ...]:
    """Algorithms for a product on the current GPU, the likely fastest first; none if cuBLASLt
    has none."""
    return _algorithms(p, workspace, most, libraries.current_context())


def payload(p: Product, algorithm: Algorithm | None, workspace: int) -> bytes:
    """A payload for a product.

    Args:
        algorithm: None: the heuristic is asked when the plan is loaded.
        workspace: Bytes it may use.
    """
    head = {"version": libraries.version("cublaslt"), "product": p.to_json(),
            "workspace": workspace}
    return libraries.pack(head, b"" if algorithm is None else algorithm.data)


class CublasLtCall:
    """A product made from its payload, on the current GPU.

    Pointers are A, B, then C if it is added, then the bias if there is one, then D.
    """

    def __init__(self, data: bytes):
        head, algo = libraries.unpack(data)
        libraries.require({"cublaslt": int(head["version"])})
        self._lib = libraries.load("cublaslt")
        self.product = Product(**head["product"])
        self.workspace = int(head["workspace"])
        self._d = _Descriptors(self.product)
        self._handle = handle()
        self._bias = 0
        self._lock = threading.Lock()
        self.rechosen = False
        if len(algo) != ALGO_BYTES or not self._fits(algo):
            algo = self._choose()
            self.rechosen = True
        self._algo = (ctypes.c_uint64 * 8).from_buffer_copy(algo)

    def _fits(self, algo: bytes) -> bool:
        need = self._d.usable(algo)
        return need is not None and need <= self.workspace

    def _choose(self) -> bytes:
        found = self._d.heuristics(self.workspace, 1)
        if not found:
            p = self.product
            raise LibraryError(f"cuBLASLt has no algorithm for {p.m}x{p.n}x{p.k} {p.a} here: "
                               f"build the plan again on this GPU")
        return found[0].data

    def launch(self, pointers: Sequence[int], workspace_ptr: int, stream: int) -> None:
        """See `libraries.Call`."""
        p = self.product
        if len(pointers) != 3 + p.add + p.has_bias:
            raise ExecutionError(f"a cuBLASLt call takes {3 + p.add + p.has_bias} addresses, not "
                                 f"{len(pointers)}")
        a, b, *rest, d = pointers
        c = rest.pop(0) if p.add else d
        with self._lock:
            if p.has_bias and rest[0] != self._bias:
                self._d.set(8, ctypes.c_void_p(rest[0]))
                self._bias = rest[0]
            v = ctypes.c_void_p
            status = self._lib.cublasLtMatmul(
                self._handle.value, self._d.desc, ctypes.byref(self._d.alpha), v(b), self._d.a,
                v(a), self._d.b, ctypes.byref(self._d.beta), v(c), self._d.c, v(d), self._d.d,
                ctypes.byref(self._algo), v(workspace_ptr), ctypes.c_size_t(self.workspace),
                v(stream),
            )
        try:
            check(status, f"a product of {p.m}x{p.n}x{p.k} {p.a}")
        except LibraryError as e:
            raise ExecutionError(str(e)) from None
