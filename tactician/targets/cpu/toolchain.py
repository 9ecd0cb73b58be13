"""From LLVM IR text to machine code in memory: optimize, emit, link.

`Toolchain` compiles for one `Isa`, this machine's or another's. Compiling is pure: equal text
gives equal bytes, and results are shared by hash. `link` places object code in this process.
No step needs a compiler, assembler or linker on the machine.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from ...support.errors import BuildError, PlanError
from . import linker, objectfile
from .isa import Isa

Level = Literal["none", "kernel", "loops"]
"""How much LLVM optimizes: ``none``; ``kernel``, for code that its generator has vectorized and
scheduled already (cleans up, keeps the shape); ``loops``, everything, the vectorizer too."""

_CACHE_LIMIT = 4096
_KERNEL_PASSES = ("sroa", "simplify_cfg", "instruction_combine", "new_gvn", "loop_rotate")


class Toolchain:
    """Compiles LLVM IR text for one CPU. Any number of threads may compile at once."""

    def __init__(self, isa: Isa | None = None):
        """Args:
        isa: The CPU to compile for; this machine's by default.
        """
        self.isa = isa or Isa.host()
        self._cache: OrderedDict[str, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def compile(self, ir: str, level: Level = "kernel") -> bytes:
        """Object code (position independent, small code model) of a module.

        Raises:
            BuildError: If LLVM rejects the text, with LLVM's reason and the line.
        """
        key = self.key(ir, level)
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
        code: bytes = _emit(self.isa, ir, level, True)
        self.adopt(key, code)
        return code

    def key(self, ir: str, level: Level = "kernel") -> str:
        """Names a compilation: equal keys mean equal code."""
        return hashlib.sha256(f"{self.isa.fingerprint};{level};{ir}".encode()).hexdigest()

    def adopt(self, key: str, code: bytes) -> None:
        """Takes code that was compiled before, e.g. in another process, under its `key`."""
        with self._lock:
            self._cache[key] = code
            while len(self._cache) > _CACHE_LIMIT:
                self._cache.popitem(last=False)

    def assembly(self, ir: str, level: Level = "kernel") -> str:
        """The same as text, for people."""
        text: bytes = _emit(self.isa, ir, level, False)
        return text.decode()

    def optimized(self, ir: str, level: Level = "kernel") -> str:
        """The IR after LLVM's passes, for people."""
        with _Module(self.isa, ir) as module:
            module.optimize(level)
            return module.text()

    def load(self, ir: str, level: Level = "kernel") -> LinkedCode:
        """Compiles and links at once."""
        return link([self.compile(ir, level)])


@functools.lru_cache(maxsize=16)
def toolchain(isa: Isa | None = None) -> Toolchain:
    """The process's shared toolchain for a CPU (None: this machine)."""
    return Toolchain(isa)


# --- LLVM -----------------------------------------------------------------------------------


@functools.cache
def _llvm() -> Any:
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm


@functools.cache
def _all_targets() -> None:
    llvm = _llvm()
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()


def _target_machine(isa: Isa, jit: bool) -> Any:
    llvm = _llvm()
    if not isa.is_host_arch:
        _all_targets()
    target = llvm.Target.from_triple(isa.triple)
    return target.create_target_machine(
        cpu=isa.cpu, features=",".join(isa.features), opt=3, reloc="pic", codemodel="small", jit=jit
    )


class _Worker:
    """What one thread compiles with, as none of it may be shared: a target machine, and passes
    that clean up kernels."""

    def __init__(self, isa: Isa):
        llvm = _llvm()
        self.machine = _target_machine(isa, jit=True)
        self.layout = str(self.machine.target_data).encode()
        options = llvm.create_pipeline_tuning_options(speed_level=1)
        options.loop_vectorization = options.slp_vectorization = False
        self.builder = llvm.create_pass_builder(self.machine, options)
        # The standard pipelines spend four times as long on such code and gain nothing.
        self.passes = llvm.create_new_module_pass_manager()
        for name in _KERNEL_PASSES:
            getattr(self.passes, f"add_{name}_pass")()


class _PerThread(threading.local):
    def __init__(self) -> None:
        self.workers: dict[Isa, _Worker] = {}


_per_thread = _PerThread()


def _unlocked(name: str) -> Any:
    """A function of LLVM's C interface without the process-wide lock that llvmlite puts around
    all of them. Sound here because module, context, target machine and pass manager all belong
    to the calling thread; without it no two kernels would ever compile at the same time."""
    wrapped = getattr(_llvm().ffi.lib, name)
    return getattr(wrapped, "_cfn", wrapped)


@functools.cache
def _brief(name: str) -> Any:
    """The same for what takes microseconds: it keeps the interpreter's lock. A thread that
    gives it up waits milliseconds for it as long as others run Python."""
    plain, library = _unlocked(name), _llvm().ffi.lib
    function = getattr(ctypes.PyDLL(library._name, handle=library._handle), name)
    function.argtypes, function.restype = plain.argtypes, plain.restype
    return function


class _Text:
    """A string that LLVM returns by way of an argument."""

    def __init__(self) -> None:
        self._pointer = ctypes.c_char_p()
        self.argument = ctypes.byref(self._pointer)

    def take(self) -> str:
        """The string, which is freed; "" if there is none."""
        value = self._pointer.value
        if value is None:
            return ""
        _brief("LLVMPY_DisposeString")(self._pointer)
        self._pointer.value = None
        return value.decode(errors="replace")


class _Module:
    """A parsed module in a context of its own."""

    def __init__(self, isa: Isa, ir: str):
        self.isa = isa
        self.ir = ir

    def __enter__(self) -> _Module:
        if self.isa not in _per_thread.workers:
            _per_thread.workers[self.isa] = _Worker(self.isa)
        self.worker = _per_thread.workers[self.isa]
        self.context = _brief("LLVMPY_ContextCreate")()
        error = _Text()
        self.module = _unlocked("LLVMPY_ParseAssembly")(
            self.context, self.ir.encode(), error.argument
        )
        problem = error.take()
        if not problem:
            _brief("LLVMPY_SetTarget")(self.module, self.isa.triple.encode())
            _brief("LLVMPY_SetDataLayout")(self.module, self.worker.layout)
            failed = _unlocked("LLVMPY_VerifyModule")(self.module, error.argument)
            message = error.take()
            problem = (message or "it is not well formed") if failed else ""
        if problem:
            self.__exit__()
            raise BuildError(f"LLVM rejects a kernel: {_locate(problem, self.ir)}")
        return self

    def __exit__(self, *exc: object) -> None:
        if self.module:  # it must go before its context
            _brief("LLVMPY_DisposeModule")(self.module)
        _brief("LLVMPY_ContextDispose")(self.context)

    def optimize(self, level: Level) -> None:
        if level == "none":
            return
        builder, passes = self.worker.builder, self.worker.passes
        if level == "loops":
            llvm = _llvm()
            options = llvm.create_pipeline_tuning_options(speed_level=3)
            options.loop_vectorization = options.slp_vectorization = True
            builder = llvm.create_pass_builder(self.worker.machine, options)
            passes = builder.getModulePassManager()
        _unlocked("LLVMPY_RunNewModulePassManager")(passes, self.module, builder)

    def emit(self, as_object: bool) -> bytes:
        error = _Text()
        buffer = _unlocked("LLVMPY_TargetMachineEmitToMemory")(
            self.worker.machine, self.module, int(as_object), error.argument
        )
        if not buffer:
            raise BuildError(f"LLVM cannot emit code for {self.isa.cpu}: {error.take()}")
        try:
            start = _brief("LLVMPY_GetBufferStart")(buffer)
            return ctypes.string_at(start, _brief("LLVMPY_GetBufferSize")(buffer))
        finally:
            _brief("LLVMPY_DisposeMemoryBuffer")(buffer)

    def text(self) -> str:
        out = _Text()
        _brief("LLVMPY_PrintModuleToString")(self.module, out.argument)
        return out.take()


def _emit(isa: Isa, ir: str, level: Level, as_object: bool) -> bytes:
    with _Module(isa, ir) as module:
        module.optimize(level)
        return module.emit(as_object)


def _locate(message: str, ir: str) -> str:
    """LLVM's message with the offending line of the text where it names one."""
    import re

    found = re.search(r"<string>:(\d+):\d+", message)
    if not found:
        return message
    number = int(found[1])
    lines = ir.splitlines()
    line = lines[number - 1].strip() if 0 < number <= len(lines) else ""
    return f"{message.strip()} (line {number}: {line})"


# --- linking --------------------------------------------------------------------------------


class LinkedCode:
    """Machine code in this process; freed with the object, so keep it while code may run."""

    def __init__(self, engine: Any, symbols: frozenset[str] | None):
        self._engine = engine
        self._addresses: dict[str, int] = {}
        self.symbols = symbols

    def address(self, symbol: str) -> int:
        """Address of a function.

        Raises:
            PlanError: If the code has no such function.
        """
        if symbol not in self._addresses:
            if self.symbols is not None and symbol not in self.symbols:
                raise PlanError(f"the code holds no function {symbol!r}")
            self._addresses[symbol] = int(self._engine.get_function_address(symbol))
        return self._addresses[symbol]

    def addresses(self, symbols: Iterable[str]) -> dict[str, int]:
        return {s: self.address(s) for s in symbols}

    def keep_forever(self) -> LinkedCode:
        """Never frees the code: for code that other threads run until the process ends."""
        self._engine._owned = True
        return self


def link(objects: Sequence[bytes], externals: dict[str, int] | None = None) -> LinkedCode:
    """Places object code in memory and resolves its calls to the C library.

    Args:
        objects: What `Toolchain.compile` made, on this or another machine of the same kind.
            Equal objects are linked once.
        externals: Addresses of further functions that the code calls, by name.

    Raises:
        PlanError: If an object is damaged, for another architecture, defines a function that
            another one defines, or calls a function that this process doesn't have.
    """
    externals = externals or {}
    defined: set[str] = set()
    wanted: set[str] = set()
    checked = True
    unique = list(dict.fromkeys(bytes(o) for o in objects))
    for code in unique:
        table = objectfile.symbols(code, Isa.host().triple)
        if table is None:
            checked = False
            continue
        twice = defined & table.defined
        if twice:
            raise PlanError(f"two kernels define {sorted(twice)[0]!r}")
        defined |= table.defined
        wanted |= table.undefined
    missing = sorted(s for s in wanted - defined if s not in externals and not _resolvable(s))
    if missing:
        raise PlanError(f"the code calls functions that this machine lacks: {', '.join(missing)}")
    engine = None
    if checked:
        engine = linker.place(unique, lambda name: externals.get(name) or _in_process(name))
    if engine is None:
        engine = _link_by_llvm(unique, externals)
    return LinkedCode(engine, frozenset(defined) if checked else None)


def _link_by_llvm(objects: Sequence[bytes], externals: dict[str, int]) -> Any:
    llvm = _llvm()
    for name, address in externals.items():
        llvm.add_symbol(name, address)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _target_machine(Isa.host(), True))
    for code in objects:
        try:
            engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        except (RuntimeError, ValueError) as error:
            raise PlanError(f"damaged object code: {error}") from error
    engine.finalize_object()
    return engine


@functools.cache
def _resolvable(symbol: str) -> bool:
    if symbol == "_GLOBAL_OFFSET_TABLE_" or _in_process(symbol):
        return True
    return bool(_llvm().address_of_symbol(symbol))


@functools.cache
def _in_process(symbol: str) -> int | None:
    """Address of a function of the C library, or of another one loaded for everybody."""
    try:
        function = getattr(ctypes.CDLL(None), symbol)
    except (AttributeError, OSError, TypeError):
        return None
    return ctypes.cast(function, ctypes.c_void_p).value
