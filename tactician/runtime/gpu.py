"""Engines for CUDA: weights and code on the GPU, shared by all contexts."""

from __future__ import annotations

import weakref

import numpy as np

from ..plan.program import CONST, Program
from ..support import knobs
from ..support.errors import PlanError
from ..targets.cuda.code import Code
from ..targets.cuda.driver import Driver, Loaded, NoGpuError, open_gpu
from ..targets.cuda.host import host_driver
from .gpu_memory import DeviceBlock
from .gpu_streaming import Stager, Streaming, choose, readers, room
from .layout import ProgramInfo

HOST_MODES = ("interpreter", "null")


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
        info: Facts about it.

    Raises:
        PlanError: If it can't run here.

    Attributes:
        driver: The device.
        constant_address: Device address of each constant; 0 for those that are streamed.
        code: Kernels by symbol.
        streamable: Bytes of the weights that can be streamed; 0 unless the engine was built so.
        streaming: What is streamed, or None.
        budget: Bytes of device memory for weights that can be streamed.
    """

    def __init__(self, program: Program, info: ProgramInfo):
        self.driver = driver_for(program)
        self.driver.enter()
        check_libraries(program, self.driver)
        self.code = self._load(program)
        self._program = program
        may = program.settings.get("weight_streaming", False)
        self._readers = readers(program, info) if may else {}
        self.streamable = sum(
            room(program.constants[r]) for refs in self._readers.values() for r in refs)
        self.budget = self.streamable
        self.streaming: Streaming | None = None
        self.weights, self.constant_address = self._upload(program, set())
        self._stagers: weakref.WeakValueDictionary[int, Stager] = weakref.WeakValueDictionary()

    def limit(self, budget: int) -> None:
        """Keeps at most ``budget`` bytes of the weights that can be streamed on the device. No
        context may use the engine."""
        self.budget = min(budget, self.streamable)
        chosen = choose(self._program, self._readers, self.budget)
        self._stagers = weakref.WeakValueDictionary()
        self.streaming = None
        self.weights.free()  # first, as there may be no room for both
        if chosen:
            self.streaming = Streaming(self.driver, self._program, self._readers, chosen)
        self.weights, self.constant_address = self._upload(self._program, chosen)

    def scratch(self, budget: int) -> int:
        """Bytes of staging areas that a context takes with a budget."""
        chosen = choose(self._program, self._readers, budget)
        needs = [sum(room(self._program.constants[r]) for r in refs if r in chosen)
                 for refs in self._readers.values()]
        needs = [n for n in needs if n]
        return max(needs, default=0) * min(2, len(needs))

    def stager(self, arena: int) -> Stager | None:
        """Staging areas for the schedules of a context, whose arena tells them from others'."""
        if self.streaming is None:
            return None
        found = self._stagers.get(arena) if arena else None
        if found is None:
            found = Stager(self.driver, self.streaming)
            if arena:
                self._stagers[arena] = found
        return found

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

    def _upload(self, program: Program, but: set[int]) -> tuple[DeviceBlock, list[int]]:
        used = {t.ref for t in program.tensors if t.kind == CONST} - but
        places: dict[int, int] = {}  # host address -> offset: equal constants are one in a plan
        offsets, total = [0] * len(program.constants), 0
        for i, array in enumerate(program.constants):
            if i not in used:
                continue
            key = int(array.ctypes.data)
            if key not in places or not array.nbytes:
                places[key] = total
                total += room(array)
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
        return block, [0 if i in but else block.address + o for i, o in enumerate(offsets)]


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


