"""Running cuDNN plans from payloads, and making payloads of graphs."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from ...support import logger as log
from ...support.errors import ExecutionError
from . import cudnn_api as api
from . import cudnn_graph as graphs
from . import libraries
from .arch import Gpu
from .cudnn_api import Descriptor
from .cudnn_graph import GraphSpec, Plan
from .libraries import LibraryError

MOST = 8  # engine configurations offered for a graph
_KEPT = 256  # lists of engines, and plans, remembered
_RUNS = 12  # of a plan that is tried out
_ONES = 0x3C  # a byte that repeated is a number of moderate size in all types
_PACKS = 64  # sets of addresses remembered per call

# What cuDNN wants to know of a GPU, beyond what `Gpu` holds; the same for all of 8.0 and newer.
_COMMON = {
    "maxGridSize": [2147483647, 65535, 65535], "maxBlockSize": [1024, 1024, 64],
    "warpSize": 32, "maxSharedMemoryPerBlock": 49152, "reservedSharedMemoryPerBlock": 1024,
    "maxCtasPerSM": 32, "maxThreadsPerBlock": 1024, "maxThreadsPerSM": 2048, "pciDeviceId": 0,
    "isTccDriver": 0, "supportCoopLaunch": 1, "cudaDeviceId": 0, "driverVer": 13000,
}  # fmt: skip


def describe_gpu(gpu: Gpu) -> bytes:
    """A GPU as cuDNN's device properties text, to plan for it without having it."""
    own = {
        "regsPerBlock": 65536, "multiProcessorCount": gpu.sms, "maxRegistersPerSM": gpu.registers,
        "maxSharedMemoryPerBlockOptin": gpu.shared, "totalGlobalMem": gpu.memory,
        "smClockRateKHz": 1755000, "memClockRateKHz": 2619000, "l2CacheSize": gpu.l2,
        "deviceVer": gpu.arch * 10, "deviceName": f"NVIDIA {gpu.name}",
    }  # fmt: skip
    return json.dumps({**_COMMON, **own}).encode()


class Planner:
    """Makes plans for one GPU: the one here, or one that is only described.

    Engines are named by a graph, whether TF32 may be used, and their place in the list that
    `configs` gives for these.

    Args:
        gpu: A GPU to plan for without having it; None: the current one.
    """

    def __init__(self, gpu: Gpu | None = None):
        libraries.preload_compilers()
        self._gpu = gpu
        self._device: Descriptor | None = None
        self._configs: OrderedDict[str, list[Descriptor]] = OrderedDict()
        self._made: OrderedDict[tuple[str, int], Future[tuple[bytes, int]]] = OrderedDict()
        self._tried: dict[tuple[str, int], str] = {}  # why running it failed; "": it did not
        self._pool: ThreadPoolExecutor | None = None

    @property
    def device(self) -> Descriptor:
        """Properties of the GPU. Planning with them needs no handle, so threads may do it."""
        if self._device is None:
            text = None if self._gpu is None else describe_gpu(self._gpu)
            self._device = api.device_properties(text)
        return self._device

    @staticmethod
    def _key(spec: GraphSpec, tf32: bool) -> str:
        return hashlib.sha256(repr((spec, tf32)).encode()).hexdigest()

    def configs(self, spec: GraphSpec, tf32: bool = True) -> list[Descriptor]:
        """Up to `MOST` engine configurations that may run a graph, the likely fastest first.

        Args:
            tf32: Whether f32 operands may be rounded to TF32.
        """
        key = self._key(spec, tf32)
        if key not in self._configs:
            self._configs[key] = self._find(spec, tf32)
            if len(self._configs) > _KEPT:
                self._configs.popitem(last=False)
        return self._configs[key]

    def _find(self, spec: GraphSpec, tf32: bool) -> list[Descriptor]:
        try:
            graph = graphs.operation_graph(spec)
        except LibraryError:
            return []
        exact = not tf32 and any(t.dtype == "f32" and not t.virtual for t in spec.tensors[:2])
        found: list[Descriptor] = []
        for modes in ((api.HEUR_A,), (api.HEUR_B, api.HEUR_FALLBACK)):
            for c in graphs.engines(graph, modes, 2 * MOST, self.device):
                if self._welcome(c, exact):
                    found.append(c)
                if len(found) == MOST:
                    return found
            if found:
                break
        return found

    @staticmethod
    def _welcome(config: Descriptor, exact: bool) -> bool:
        numerical, _ = graphs.notes(config)
        bad = {api.NOTE_NONDETERMINISTIC, api.NOTE_REDUCED_PRECISION}
        if exact:
            bad |= {api.NOTE_TENSOR_CORE, api.NOTE_DOWN_CONVERT}
        return not bad & set(numerical)

    def payload(
        self, spec: GraphSpec, index: int, tf32: bool = True,
        attempt: Callable[[bytes], str] | None = None,
    ) -> tuple[bytes, int]:
        """A payload that runs a graph with an engine, and the workspace it needs.

        Args:
            attempt: Runs the plan once, if given, and says why that failed: some engines refuse
                only then.

        Raises:
            LibraryError: If the engine can't do it.
        """
        made = self._start(spec, index, tf32, now=True).result()
        key = (self._key(spec, tf32), index)
        if attempt is not None and key not in self._tried:
            self._tried[key] = attempt(made[0])
        why = self._tried.get(key)
        if why:
            raise LibraryError(why)
        return made

    def ahead(self, spec: GraphSpec, indices: Sequence[int], tf32: bool = True) -> None:
        """Begins to make plans that will be asked for: some are compiled, for a second or so."""
        for i in indices:
            self._start(spec, i, tf32, now=False)

    def _start(
        self, spec: GraphSpec, index: int, tf32: bool, now: bool
    ) -> Future[tuple[bytes, int]]:
        key = (self._key(spec, tf32), index)
        future = self._made.get(key)
        if future is not None and not (now and future.cancel()):
            return future
        config = self.configs(spec, tf32)[index]
        if now:
            future = Future()
            try:
                future.set_result(self._plan(spec, config))
            except LibraryError as e:
                future.set_exception(e)
        else:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
            future = self._pool.submit(self._plan, spec, config)
        self._made[key] = future
        if len(self._made) > _KEPT:
            self._made.popitem(last=False)
        return future

    def _plan(self, spec: GraphSpec, config: Descriptor) -> tuple[bytes, int]:
        plan = graphs.plan(config, self.device)
        head = {"version": libraries.version("cudnn"), "graph": spec.to_json(),
                "workspace": plan.workspace}
        return libraries.pack(head, plan.text().encode()), plan.workspace


def run_once(payload: bytes, driver: Any) -> str:
    """Runs a plan on fresh memory, some times; why that failed, or "". The context may be lost
    then."""
    taken: list[int] = []
    stream = driver.stream()
    try:
        call = CudnnCall(payload, strict=True)
        taken = [driver.alloc(max(256, n)) for n in (*call.sizes, call.workspace)]
        for at, n in zip(taken, (*call.sizes, call.workspace), strict=True):
            driver.fill(at, 0, max(256, n), stream)
        driver.fill(taken[0], _ONES, call.sizes[0], stream)
        driver.fill(taken[1], _ONES, call.sizes[1], stream)
        first: Any = None
        for k in range(_RUNS):  # some engines leave results unwritten now and then
            driver.fill(taken[-2], k % 2 * 0xFF, call.sizes[-1], stream)
            call.launch(taken[:-1], taken[-1], stream)
            got = driver.get(taken[-2], (min(call.sizes[-1], 1 << 21),), np.uint8, stream)
            first = got if first is None else first
            if not np.array_equal(first, got):
                return "its results change from run to run"
        return ""
    except (LibraryError, ExecutionError) as e:
        return str(e)
    finally:
        for at in taken:
            driver.free(at)
        driver.drop_stream(stream)


class CudnnCall:
    """A cuDNN plan made from its payload, on the current GPU.

    If this GPU or this version of cuDNN does not take the plan as it is, one is made anew for the
    same graph, provided that it needs no more workspace.

    Args:
        strict: Fail instead.

    Attributes:
        sizes: Bytes that each pointer's tensor spans.
        replanned: Whether the plan was made anew.
    """

    def __init__(self, payload: bytes, strict: bool = False):
        head, text = libraries.unpack(payload)
        libraries.require({"cudnn": int(head["version"])})
        self.spec = GraphSpec.from_json(head["graph"])
        self.workspace = int(head["workspace"])
        self.sizes = [self.spec.find(u).nbytes for u in self.spec.pointers]
        self.handle = api.handle()
        self.replanned = False
        try:
            self.plan = graphs.load_plan(text.decode())
            if self.plan.workspace > self.workspace:
                raise LibraryError(f"the plan wants {self.plan.workspace} bytes of workspace now, "
                                   f"{self.workspace} when it was made")
        except LibraryError as e:
            if strict:
                raise
            self.plan = self._replan(e)
        self.strict = strict
        self._values = [
            (t.uid, ctypes.c_float(t.value)) for t in self.spec.tensors if t.value is not None
        ]
        self._packs: OrderedDict[tuple[int, ...], Descriptor] = OrderedDict()
        self._lock = threading.Lock()

    def _replan(self, why: LibraryError, run: Callable[[Plan], None] | None = None) -> Plan:
        """Another plan for the same graph, which ``run`` (if given) runs."""
        planner = Planner()
        for config in planner.configs(self.spec):
            try:
                plan = graphs.plan(config, planner.device)
                if plan.workspace > self.workspace:
                    continue
                if run is not None:
                    run(plan)
            except LibraryError:
                continue
            self.replanned = True
            log.warning(f"{why}; another engine does the work")
            return plan
        raise LibraryError(f"{why}; and cuDNN has no other plan for the same work here: build "
                           f"the plan again on this GPU")

    def _pack(self, pointers: Sequence[int], workspace_ptr: int) -> Descriptor:
        key = (*pointers, workspace_ptr)
        with self._lock:
            pack = self._packs.get(key)
            if pack is None:
                uids = [*self.spec.pointers, *(u for u, _ in self._values)]
                data = [*pointers, *(ctypes.addressof(x) for _, x in self._values)]
                pack = Descriptor(api.VARIANT_PACK)
                pack.set(1000, api.T_INT64, uids).set(1001, api.T_VOID_PTR, data)
                pack.set(1003, api.T_VOID_PTR, workspace_ptr)
                self._packs[key] = pack.finalize()
                if len(self._packs) > _PACKS:
                    self._packs.popitem(last=False)
            return pack

    def launch(self, pointers: Sequence[int], workspace_ptr: int, stream: int) -> None:
        """See `libraries.Call`."""
        if len(pointers) != len(self.spec.pointers):
            raise ExecutionError(f"a cuDNN call takes {len(self.spec.pointers)} addresses, not "
                                 f"{len(pointers)}")

        def run(plan: Plan) -> None:
            self.handle.execute(plan.descriptor, self._pack(pointers, workspace_ptr), stream)

        try:
            run(self.plan)
        except LibraryError as e:
            # some engines find out only here that they can't
            if self.strict:
                raise
            try:
                self.plan = self._replan(e, run)
            except LibraryError as none:
                raise ExecutionError(str(none)) from None


_planners: dict[Any, Planner] = {}


def planner_for(device: Any) -> Planner:
    """The planner of a device of ours.

    Args:
        device: A `CudaDevice`; if library calls can't be made on it, plans are made for the GPU
            it stands for.
    """
    key = libraries.current_context() if device.libraries else device.gpu.fingerprint
    if key not in _planners:
        _planners[key] = Planner(None if device.libraries else device.gpu)
    return _planners[key]


def usable(device: Any) -> str | None:
    """Why plans can't be made for a device, or None."""
    if getattr(device, "mode", ""):
        return "library calls run on a GPU only"
    return libraries.unavailable("cudnn")
