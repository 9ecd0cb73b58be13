"""Runs kernels through Triton's interpreter on host memory: how engines for CUDA are tested
where there is no GPU.

Triton decides when it is imported whether it interprets, so the interpreter has a copy of
Triton's Python modules of its own; whoever imports ``triton`` gets the ordinary one.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import itertools
import os
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from types import FunctionType
from typing import Any

import numpy as np

from ...support.errors import BuildError, ExecutionError
from .requantize import ASSEMBLY
from .worker import define

_lock = threading.RLock()
_own: dict[str, Any] = {}
_KEEP = "triton._C"  # native modules exist once


def _is_triton(name: str) -> bool:
    return (name == "triton" or name.startswith("triton.")) and not name.startswith(_KEEP)


@contextlib.contextmanager
def _own_modules() -> Iterator[None]:
    """``import triton`` means the interpreting copy meanwhile."""
    others = {n: m for n, m in sys.modules.items() if _is_triton(n)}
    for n in others:
        del sys.modules[n]
    sys.modules.update(_own)
    try:
        yield
    finally:
        for n in [n for n in sys.modules if _is_triton(n)]:
            _own[n] = sys.modules.pop(n)
        sys.modules.update(others)


class _Results(list[Any]):
    """What an operation of several results returns."""

    get_result = list.__getitem__


class _Interpreter:
    """The interpreting copy of Triton, patched once."""

    def __init__(self) -> None:
        before = os.environ.get("TRITON_INTERPRET")
        os.environ["TRITON_INTERPRET"] = "1"
        try:
            with _own_modules(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.tl = importlib.import_module("triton.language")
                self.module = importlib.import_module("triton.runtime.interpreter")
                knobs = importlib.import_module("triton.knobs")
                knobs.runtime.interpret = True
                self._patch()
        except ImportError as e:
            raise BuildError(
                f"the interpreter of the CUDA target needs Triton: pip install triton ({e})"
            ) from None
        finally:
            if before is None:
                del os.environ["TRITON_INTERPRET"]
            else:
                os.environ["TRITON_INTERPRET"] = before

    def _patch(self) -> None:
        """Does once what Triton does around every call, which is slow."""
        tl, module = self.tl, self.module

        def probe() -> None:
            return None

        module._patch_lang(FunctionType(probe.__code__, {"tl": tl, "core": tl.core}))
        # as Triton 3.9 has it; before, NumPy 2.5 refused arrays of one element
        tl.tensor.__index__ = lambda x: int(x.handle.data.squeeze())

        def call(fn: Any, *args: Any, **kwargs: Any) -> Any:
            return fn.rewrite()(*args, **kwargs)

        module.InterpretedFunction.__call__ = call
        self._patch_dot()
        self._patch_splat()
        self._patch_grid()
        self._patch_assembly()

    def _patch_splat(self) -> None:
        """Results of comparisons are booleans that bear their operands' type; lets them stay
        booleans where a scalar meets a block."""
        module, tl, builder = self.module, self.tl, self.module.InterpreterBuilder
        plain = builder.create_splat

        def create_splat(builder: Any, ty: Any, x: Any) -> Any:
            if x.data.dtype == np.bool_:
                return module.TensorHandle(np.full(ty.shape, x.data), tl.int1)
            return plain(builder, ty, x)

        builder.create_splat = create_splat

    def _patch_assembly(self) -> None:
        """Gives the assembly that kernels contain its meaning."""
        module = self.module

        def create_inline_asm(
            builder: Any, text: str, constraints: str, values: Sequence[Any],
            types: Sequence[Any], pure: bool, pack: int,
        ) -> Any:
            kind = types[0].scalar
            data = ASSEMBLY[text](*(x.data for x in values))
            handle = module.TensorHandle(data.astype(module._get_np_dtype(kind)), kind)
            return _Results([handle])

        module.InterpreterBuilder.create_inline_asm = create_inline_asm

    def _patch_grid(self) -> None:
        """Lets programs of a grid run at once, in threads: each knows its own place, and all
        that wait for another (by atomics) give up when one has failed."""
        builder = self.module.InterpreterBuilder
        self.place, self.failed = threading.local(), threading.Event()
        program_id, atomic = builder.create_get_program_id, builder.create_atomic_rmw

        def create_get_program_id(builder: Any, axis: int) -> Any:
            index = getattr(self.place, "index", None)
            if index is None:
                return program_id(builder, axis)
            return self.module.TensorHandle(np.array([index[axis]], np.int32), self.tl.int32)

        def create_atomic_rmw(builder: Any, *args: Any) -> Any:
            if self.failed.is_set() and getattr(self.place, "index", None) is not None:
                raise RuntimeError("another block failed")
            return atomic(builder, *args)

        builder.create_get_program_id = create_get_program_id
        builder.create_atomic_rmw = create_atomic_rmw

    def run_together(self, fn: Any, args: Sequence[Any], sizes: Sequence[int]) -> None:
        """Runs all programs of a grid at once."""
        errors: list[Exception] = []
        self.failed.clear()

        def one(index: tuple[int, ...]) -> None:
            self.place.index = index
            try:
                with np.errstate(all="ignore"):
                    fn(*args)
            except Exception as e:
                errors.append(e)
                self.failed.set()

        threads = [
            threading.Thread(target=one, args=(index,), daemon=True)
            for index in itertools.product(*map(range, sizes))
        ]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        if errors:
            raise errors[0]

    def _patch_dot(self) -> None:
        """Has `tl.dot` multiply bf16 and 8-bit floats as what they are, not as their bits."""
        import ml_dtypes

        tl, builder = self.tl, self.module.InterpreterBuilder
        stored = {
            tl.bfloat16: ml_dtypes.bfloat16, tl.float8e4nv: ml_dtypes.float8_e4m3fn,
            tl.float8e5: ml_dtypes.float8_e5m2,
        }
        plain = builder.create_dot

        def create_dot(builder: Any, a: Any, b: Any, d: Any, *how: Any) -> Any:
            def widened(x: Any) -> Any:
                kind = stored.get(x.dtype.scalar)
                if kind is None:
                    return x
                data = np.ascontiguousarray(x.data).view(kind).astype(np.float32)
                return self.module.TensorHandle(data, tl.float32)

            return plain(builder, widened(a), widened(b), d, *how)

        builder.create_dot = create_dot

    @functools.lru_cache(maxsize=4096)  # noqa: B019 - lives as long as the process
    def function(self, source: str, symbol: str, name: str) -> Any:
        return define(source, symbol, name).rewrite()

    def value(self, type_name: str, x: int) -> Any:
        """A parameter: a pointer or an integer."""
        ty = self.tl.str_to_ty(type_name, None)
        wide = np.uint64 if type_name.startswith("*") else np.int64
        kind = wide if type_name[0] == "*" or type_name == "i64" else np.int32
        return self.tl.tensor(self.module.TensorHandle(np.array([x], kind), ty), ty)


@functools.cache
def _interpreter() -> _Interpreter:
    return _Interpreter()


def interpret(
    source: str, symbol: str, types: Sequence[str], grid: Sequence[int], values: Sequence[int],
    name: str = "kernel", together: bool = False,
) -> None:
    """Runs a Triton function over a grid.

    Args:
        source: Text that defines it.
        types: Triton types of its parameters.
        grid: Programs along x, y and z.
        values: Addresses and integers, one per parameter.
        together: Whether programs wait for each other, so that all must run at once.

    Raises:
        ExecutionError: If it fails, naming the function.
    """
    with _lock:
        it = _interpreter()
        with _own_modules(), np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                fn = it.function(source, symbol, name)
                args = [it.value(t, x) for t, x in zip(types, values, strict=True)]
                sizes = (*grid, 1, 1, 1)[:3]
                builder = it.module.interpreter_builder
                builder.set_grid_dim(*sizes)
                if together:
                    it.run_together(fn, args, sizes)
                    return
                for index in itertools.product(*map(range, sizes)):
                    builder.set_grid_idx(*index)
                    fn(*args)
            except Exception as e:
                raise ExecutionError(
                    f"kernel {name} failed in the interpreter: {type(e).__name__}: {e}"
                ) from e
