"""Engines for CUDA: weights and code on the GPU, shared by all contexts."""

from __future__ import annotations

import contextlib
import weakref

import numpy as np

from ..plan.program import CONST, Program
from ..support import knobs
from ..support.errors import PlanError
from ..targets.cuda.code import ALIGNMENT, Code
from ..targets.cuda.driver import Driver, Loaded, NoGpuError, open_gpu
from ..targets.cuda.host import host_driver

HOST_MODES = ("interpreter", "null")


class DeviceBlock:
    """Device memory that is freed with the object.

    Attributes:
        address: At a multiple of 256.
        nbytes: Its size.
    """

    def __init__(self, driver: Driver, nbytes: int):
        self.nbytes = nbytes
        self.address = driver.alloc(max(nbytes, 1))
        self._finalizer = weakref.finalize(self, _free, driver, self.address)

    def free(self) -> None:
        """Gives the memory back now."""
        self._finalizer()


def _free(driver: Driver, address: int) -> None:
    with contextlib.suppress(Exception):  # the driver may be gone when a process ends
        driver.free(address)


def parse_fingerprint(text: str) -> tuple[int, str]:
    """(compute capability, mode) of a device's fingerprint such as ``sm_90/132``.

    Raises:
        PlanError: If it is none.
    """
    parts = text.split("/")
    if not parts[0].startswith("sm_") or not parts[0][3:].isdigit():
        raise PlanError(f"the plan is for the device {text!r}, which is no GPU")
    mode = parts[-1] if parts[-1] in HOST_MODES else ""
    return int(parts[0][3:]), mode


def driver_for(program: Program) -> Driver:
    """The GPU (or what stands for it) that runs a program.

    Raises:
        PlanError: If there is none here, naming what the plan needs.
    """
    arch, mode = parse_fingerprint(program.device)
    if mode:
        return host_driver(mode, arch)
    if knobs.gpu().partition(":")[0].lower() == "null":
        return host_driver("null", arch)
    try:
        driver = open_gpu(0)
    except NoGpuError as e:
        raise PlanError(
            f"the plan was built for an NVIDIA GPU of compute capability {arch / 10:.1f}: {e}"
        ) from None
    if driver.gpu.arch != arch:
        raise PlanError(
            f"the plan was built for compute capability {arch / 10:.1f}, this GPU "
            f"({driver.name}) has {driver.gpu.arch / 10:.1f}; machine code of one does not run on "
            "the other. Build the engine again on this machine"
        )
    return driver


class GpuProgram:
    """A program's weights and code on a device.

    Args:
        program: For target ``cuda``.

    Raises:
        PlanError: If it can't run here.

    Attributes:
        driver: The device.
        constant_address: Device address of each constant.
        code: Kernels by symbol.
    """

    def __init__(self, program: Program):
        self.driver = driver_for(program)
        self.driver.enter()
        check_libraries(program, self.driver)
        self.code = self._load(program)
        self.weights, self.constant_address = self._upload(program)

    def _load(self, program: Program) -> dict[str, Loaded]:
        wanted = {s.symbol for s in program.steps if s.kind == "kernel"}
        known = {}
        for blob in program.code:
            code = Code.unpack(blob)
            if code.symbol in wanted:
                known[code.symbol] = self.driver.load(code)
        missing = wanted - set(known)
        if missing:
            raise PlanError(f"the plan lacks the code of {', '.join(sorted(missing))}")
        return known

    def _upload(self, program: Program) -> tuple[DeviceBlock, list[int]]:
        used = {t.ref for t in program.tensors if t.kind == CONST}
        places: dict[int, int] = {}  # host address -> offset: equal constants are one in a plan
        offsets, total = [0] * len(program.constants), 0
        for i, array in enumerate(program.constants):
            if i not in used:
                continue
            key = int(array.ctypes.data)
            if key not in places or not array.nbytes:
                places[key] = total
                total += -(-max(array.nbytes, 1) // ALIGNMENT) * ALIGNMENT
            offsets[i] = places[key]
        block = DeviceBlock(self.driver, total)
        done: set[int] = set()
        for i in sorted(used):
            array = np.ascontiguousarray(program.constants[i])
            if offsets[i] not in done:
                done.add(offsets[i])
                self.driver.upload(block.address + offsets[i], array.ctypes.data, array.nbytes)
                if array is not program.constants[i]:
                    self.driver.synchronize()
        self.driver.synchronize()
        return block, [block.address + o for o in offsets]


def check_libraries(program: Program, driver: Driver) -> None:
    """Refuses a plan whose library calls can't be made here.

    Raises:
        PlanError: Naming the libraries and versions.
    """
    needed: dict[str, int] = program.settings.get("libraries", {})
    if driver.is_host or not needed:
        return
    from ..targets.cuda.libraries import LibraryMissing, require

    try:
        require(needed)
    except LibraryMissing as e:
        raise PlanError(str(e)) from None


