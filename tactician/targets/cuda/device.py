"""The GPU as a device for the tuner and the builder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, wait
from typing import Any

import numpy as np

from ...ir import dims as D
from ...support import knobs
from ...support.errors import BuildError
from ...tactics.kernel import Kernel
from ...tactics.tuner import Device
from .arch import Gpu, named_gpu
from .code import LIBRARY, Code, library_code, overlapped, shared_of, symbol_of, text_code
from .compiler import CompileError, compiler, triton_version

INTERPRETER, NULL = "interpreter", "null"


class CudaDevice(Device):
    """A GPU described by its `Gpu`: compiles for it, can't time.

    Attributes:
        target: ``cuda``.
        gpu: What is known of the GPU; cost models read it.
        fingerprint: Names what code and timings are for.
        tf32: Whether FP32 contractions may round their inputs to TF32.
        mode: "" (code for a GPU), ``interpreter`` (kernels stay text, which Triton's interpreter
            runs) or ``null`` (code is compiled and launched, but never runs).
        libraries: Whether library calls can be made on this device.
        overlap: Whether kernels are launched before the ones ahead of them have ended.
        failed: Kernels that could not be compiled: symbol -> reason.
    """

    target = "cuda"
    can_time = False

    def __init__(self, gpu: Gpu | str = "sm_90", *, mode: str = "", tf32: bool = True):
        self.gpu = named_gpu(gpu) if isinstance(gpu, str) else gpu
        self.mode = mode
        self.tf32 = tf32
        self.libraries = False
        narrow = {"f16", "bf16", "i8"} | ({"f8"} if self.gpu.arch >= 89 else set())
        self.precisions = frozenset(narrow)
        self.fingerprint = self.gpu.fingerprint + (f"/{mode}" if mode else "")
        self.overlap = knobs.overlap() and self.gpu.arch >= 90 and mode != INTERPRETER
        self.conditions = "/overlapped" if self.overlap else ""
        self.failed: dict[str, str] = {}
        self._compiling: dict[str, Future[bytes]] = {}

    @property
    def arch(self) -> int:
        """Compute capability as a number: 90 for 9.0."""
        return self.gpu.arch

    @property
    def sms(self) -> int:
        """Streaming multiprocessors."""
        return self.gpu.sms

    def refuses(self, kernel: Kernel) -> str | None:
        """Why a kernel could not be compiled, if that was tried."""
        return self.failed.get(symbol_of(self._final(kernel)))

    def _final(self, kernel: Kernel) -> Kernel:
        """The kernel as it is compiled."""
        return overlapped(kernel) if self.overlap else kernel

    def attempt(self, payload: bytes) -> str:
        """Runs a call of cuDNN once, if it can; why that failed, or ""."""
        return ""

    def facts(self) -> dict[str, Any]:
        return {"gpu": self.gpu.name, "triton": triton_version()}

    def libraries_of(self, code: Sequence[bytes]) -> dict[str, int]:
        found = {c.library for c in map(Code.unpack, code) if c.kind == LIBRARY}
        if not found:
            return {}
        from .libraries import version

        return {name: version(name) for name in sorted(found)}

    def breadth(self, level: int, seconds: float) -> int:
        # what a small kernel does wrong costs as much as its launch, so all are worth timing
        return {0: 1, 1: 1, 2: 3, 3: 8, 4: 16}.get(level, 1 << 30)

    def floor_seconds(self, flops: float, moved: float, dtype: str) -> float:
        return max(flops / self.gpu.peak(dtype), moved / self.gpu.bandwidth) + self.gpu.launch

    def start(self, kernel: Kernel) -> tuple[str, Future[bytes]]:
        """Begins to compile in another process.

        Returns:
            The kernel's name in a plan, which is unique to its text, and its blob to come (see
            `code.Code`); the future raises `CompileError`.
        """
        kernel = self._final(kernel)
        symbol = symbol_of(kernel)
        found = self._compiling.get(symbol)
        if found is None:
            found = self._compiling[symbol] = self._begin(kernel)
        return symbol, found

    def _begin(self, kernel: Kernel) -> Future[bytes]:
        assert kernel.launch is not None
        out: Future[bytes] = Future()
        if kernel.launch.library:
            out.set_result(library_code(kernel).pack())
            return out
        if self.mode == INTERPRETER:
            out.set_result(text_code(kernel).pack())
            return out

        def done(code: Future[Code]) -> None:
            try:
                out.set_result(self._fitting(code.result()).pack())
            except BaseException as e:
                self.failed[symbol_of(kernel)] = str(e)
                out.set_exception(e)

        compiler().start(kernel, self.arch).add_done_callback(done)
        return out

    def _fitting(self, code: Code) -> Code:
        if code.shared > self.gpu.shared:
            raise CompileError(
                f"{code.symbol} needs {code.shared} bytes of shared memory, sm_{self.arch} has "
                f"{self.gpu.shared}"
            )
        return code

    def compile(self, kernel: Kernel) -> tuple[str, bytes]:
        """Like `start`, with the code at hand.

        Raises:
            CompileError: If it can't be compiled.
        """
        symbol, code = self.start(kernel)
        return symbol, code.result()

    def settle(self) -> None:
        wait(self._compiling.values())

    def run_kernel(
        self, kernel: Kernel, arrays: Sequence[np.ndarray[Any, Any]], env: Mapping[str, int]
    ) -> None:
        """Runs a kernel once through Triton's interpreter, whatever GPU the device stands for.

        Args:
            arrays: One for each of ``kernel.args``; results are written into them.
            env: Values of symbols.

        Raises:
            ExecutionError: If it fails.
        """
        from .interpret import interpret

        launch = kernel.launch
        assert launch is not None
        if launch.library:
            raise BuildError(f"{launch.library} calls run on a GPU only")
        grid = [D.evaluate(d, env) for d in launch.grid]
        values = [int(a.ctypes.data) for a in arrays]
        workspace = np.empty(D.evaluate(launch.workspace, env) + 16, np.uint8)
        counters = np.zeros(D.evaluate(launch.counters, env) + 4, np.int32)
        shared = shared_of(kernel)
        values += [(-a % 16) + a for a in (workspace.ctypes.data,)] * shared["workspace"]
        values += [int(counters.ctypes.data)] * shared["counters"]
        values += [D.evaluate(d, env) for d in kernel.dims]
        interpret(kernel.source, kernel.symbol, launch.types, grid, values, symbol_of(kernel),
                  together=launch.cooperative)


def make_device(gpu: str = "", *, tf32: bool = True) -> CudaDevice:
    """The device of a build.

    Args:
        gpu: A GPU's name, ``interpreter``, ``null``, or "" for the GPU that is here
            (``TACTICIAN_GPU`` where there is none). A name after a colon says what GPU the
            interpreter and the null device stand for: ``null:sm_80``.

    Raises:
        BuildError: If there is no GPU and none is named, or Triton is missing.
    """
    triton_version()
    text = gpu or knobs.gpu()
    mode, _, name = text.partition(":")
    if mode.lower() in (INTERPRETER, NULL):
        return CudaDevice(name or "sm_90", mode=mode.lower(), tf32=tf32)
    if text:
        return CudaDevice(text, tf32=tf32)
    from .bench import TimingDevice
    from .driver import NoGpuError, open_gpu

    try:
        driver = open_gpu(0)
    except NoGpuError as e:
        raise BuildError(
            f"{e}. Name a GPU to build for (TACTICIAN_GPU=sm_90), or build for the CPU"
        ) from None
    return TimingDevice(driver, tf32=tf32)
