"""What all contexts of an engine share: the program, its constants in memory, linked code."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..plan.program import CONST, Program
from ..plan.strip import stripped
from ..support.errors import PlanError
from .buffers import Array, aligned_block, aligned_copy
from .layout import Extents, Layout, ProgramInfo, bind_inputs, make_layout

if TYPE_CHECKING:
    from .gpu import GpuProgram
    from .schedule import Schedule

_LAYOUTS = 64


class EngineCore:
    """A program loaded on its device. Immutable but for caches; any number of threads use it.

    Args:
        program: From `read_plan` or the compiler.
        threads: Threads that runs use; 0: as the program says.

    Raises:
        PlanError: If the program is for another device or its code can't be linked.

    Attributes:
        constants: Arrays of constants; shared with the plan where possible. For the CPU they are
            64-byte aligned, a GPU has copies.
        code: Address of each kernel.
        gpu: Weights and code on a GPU, or None.
        host_tensors: For GPUs: inputs and outputs that lie in host memory.
        native: Whether kernels run as machine code (else everything runs in numpy).
        threads: Threads that runs use.
    """

    def __init__(self, program: Program, threads: int = 0):
        check_device(program)
        self.program = program
        self.info = ProgramInfo(program)
        self.gpu: GpuProgram | None = None
        self.host_tensors: frozenset[int] = frozenset()
        if program.target == "cuda":
            from .gpu import GpuProgram

            self.gpu = GpuProgram(program, self.info)
            self.host_tensors = self._host_tensors()
        self.constants: list[Array] = [
            c if self.gpu or stripped(program) else aligned_copy(c) for c in program.constants
        ]
        self.constant_address = [int(c.ctypes.data) for c in self.constants]
        kernels = [s for s in program.steps if s.kind == "kernel"]
        symbols = sorted({s.symbol for k in kernels for s in (k, k.special) if s is not None})
        self.native = program.target == "cpu"
        self.code: dict[str, int] = {}
        self.pool: Any = None
        self.threads = max(threads or program.threads, 1)
        if self.native and symbols:
            self._link(symbols, threads)
        self._layouts: OrderedDict[Any, Layout] = OrderedDict()
        self._lock = threading.Lock()

    def _link(self, symbols: list[str], threads: int) -> None:
        from ..targets.cpu.isa import Isa
        from ..targets.cpu.native import adopt_walker, default_pool
        from ..targets.cpu.toolchain import link

        self._linked = link(self.program.code)
        self.code = self._linked.addresses(symbols)
        if self.program.walker is not None:
            adopt_walker(*self.program.walker)
        self.pool = default_pool()
        self.threads = threads or self.program.threads or Isa.host().cores

    def _host_tensors(self) -> frozenset[int]:
        p = self.program
        places = p.settings.get("locations", {})
        return frozenset(
            t for t in (*p.inputs, *p.outputs)
            if p.tensors[t].is_shape or places.get(p.tensors[t].name) == "host"
        )

    def schedule(
        self, layout: Layout, arena: int, keep: Any, watched: Sequence[int], watch: Any,
        threads: int = 0,
    ) -> Schedule:
        """A context's tables for a layout; see `Schedule`."""
        if self.gpu is None:
            from .schedule import Schedule

            return Schedule(self, layout, arena, keep, watched, watch, threads)
        from .gpu_schedule import GpuSchedule

        return GpuSchedule(self, layout, arena, keep, watched, watch)

    def memory(self, nbytes: int) -> tuple[Any, int]:
        """Memory for a context: (its owner, address)."""
        if self.gpu is not None:
            from .gpu_memory import DeviceBlock

            device = DeviceBlock(self.gpu.driver, nbytes)
            return device, device.address
        block = aligned_block(nbytes)
        return block, int(block.ctypes.data)

    @property
    def on_gpu(self) -> bool:
        """Whether runs are queued on a GPU's streams."""
        return self.gpu is not None and not self.gpu.driver.is_host

    def layout(self, shapes: dict[int, Extents], values: dict[int, Extents]) -> Layout:
        """The layout for shapes (and shape values) of the inputs; made once per set.

        Raises:
            ExecutionError: If they don't fit the network.
        """
        key = (tuple(shapes.values()), tuple(values.values()))
        with self._lock:
            found = self._layouts.get(key)
            if found is not None:
                self._layouts.move_to_end(key)
                return found
        layout = make_layout(self.info, bind_inputs(self.info, shapes, values))
        with self._lock:
            self._layouts[key] = layout
            while len(self._layouts) > _LAYOUTS:
                self._layouts.popitem(last=False)
        return layout

    def profile_layout(self, index: int) -> Layout:
        """The layout at a profile's largest shapes."""
        profile = self.program.profiles[index]
        tensors = self.program.tensors
        shapes, values = {}, {}
        for t in self.program.inputs:
            name = tensors[t].name
            static = tensors[t].shape
            shapes[t] = profile.shapes[name][2] if name in profile.shapes else static
        for t, pairs in self.info.value_inputs.items():
            given = profile.values.get(tensors[t].name)
            count = 1 + max(element for element, _ in pairs)
            values[t] = given[2] if given else (1,) * count
        return self.layout(shapes, values)  # type: ignore[arg-type]

    @property
    def weights_size(self) -> int:
        """Bytes of constants."""
        used = {t.ref for t in self.program.tensors if t.kind == CONST}
        return sum(self.constants[i].nbytes for i in used)


def check_device(program: Program) -> None:
    """Refuses a program that this machine can't run.

    Raises:
        PlanError: Naming both devices.
    """
    if program.target in ("reference", "null"):
        return
    if program.target == "cuda":
        from .gpu import driver_for

        driver_for(program)
        return
    if program.target != "cpu":
        raise PlanError(
            f"the plan is for target {program.target!r}; this runtime runs cpu, cuda, reference "
            "and null plans"
        )
    from ..targets.cpu.isa import Isa, tell_host

    tell_host(program.host)
    here = Isa.host().fingerprint
    if program.device != here and not _runs_here(program):
        raise PlanError(
            f"the plan was built for the CPU {program.device}, this machine is {here}; machine "
            "code of one may not run on the other. Build the engine again on this machine"
        )


def _runs_here(program: Program) -> bool:
    """Whether code for the family's baseline was asked for and this CPU can do all of that."""
    from ..targets.cpu.isa import Isa

    host = Isa.host()
    if not program.settings.get("hardware_compatible") or not host.triple.startswith("x86_64"):
        return False
    baseline = Isa.named("haswell")
    return program.device == baseline.fingerprint and not baseline.missing_on(host)
