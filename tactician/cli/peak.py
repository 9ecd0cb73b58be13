"""Quick figures of one core: peak FP32 arithmetic, memory bandwidth, our matrix product."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable

import numpy as np


def best(call: Callable[[], object], seconds: float = 0.15) -> float:
    """Least time of one call, in seconds."""
    least, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        call()
        least = min(least, time.perf_counter() - start)
    return least


def fma_peak() -> float:
    """GFLOP/s that one core reaches with independent multiply-adds on registers."""
    from ..targets.cpu.isa import Isa
    from ..targets.cpu.toolchain import toolchain

    isa = Isa.host()
    lanes, chains, trips = isa.lanes(32), 12, 1_000_000
    linked = toolchain().load(_fma_loop(lanes, chains))
    function = ctypes.CFUNCTYPE(ctypes.c_float, ctypes.c_int64)(linked.address("fma_peak"))
    return 2 * lanes * chains * trips / best(lambda: function(trips)) / 1e9


def _fma_loop(lanes: int, chains: int) -> str:
    """LLVM IR of a loop with `chains` independent multiply-adds of `lanes` floats."""
    vec = f"<{lanes} x float>"
    fma = f"@llvm.fmuladd.v{lanes}f32"
    body = [
        f"declare {vec} {fma}({vec}, {vec}, {vec})",
        "define float @fma_peak(i64 %n) {",
        "entry:",
        "  %f = sitofp i64 %n to float",
        f"  %s = insertelement {vec} undef, float %f, i32 0",
        f"  %m = shufflevector {vec} %s, {vec} undef, <{lanes} x i32> zeroinitializer",
        "  br label %loop",
        "loop:",
        "  %i = phi i64 [0, %entry], [%next, %loop]",
    ]
    body += [f"  %a{c} = phi {vec} [%m, %entry], [%b{c}, %loop]" for c in range(chains)]
    body += [
        f"  %b{c} = call {vec} {fma}({vec} %a{c}, {vec} %m, {vec} %m)" for c in range(chains)
    ]
    body += [
        "  %next = add i64 %i, 1",
        "  %more = icmp slt i64 %next, %n",
        "  br i1 %more, label %loop, label %done",
        "done:",
        f"  %t0 = fadd {vec} %b0, %b0",
    ]
    body += [f"  %t{c} = fadd {vec} %t{c - 1}, %b{c}" for c in range(1, chains)]
    body += [
        f"  %r = extractelement {vec} %t{chains - 1}, i32 0",
        "  ret float %r",
        "}",
    ]
    return "\n".join(body) + "\n"


def bandwidth() -> float:
    """GB/s of reading and writing when 64 MiB are copied."""
    source = np.ones(1 << 24, np.float32)
    target = np.empty_like(source)
    return 2 * source.nbytes / best(lambda: np.copyto(target, source)) / 1e9


def matmul(n: int = 512) -> float:
    """GFLOP/s of an engine that multiplies two n x n matrices on one thread."""
    import tactician as trt

    from .common import logger
    from .measure import engine_call

    log = logger(False)
    builder = trt.Builder(log)
    builder.max_threads = 1
    network = builder.create_network(0)
    a = network.add_input("a", trt.float32, (n, n))
    rng = np.random.default_rng(0)
    weights = network.add_constant((n, n), rng.random((n, n), dtype=np.float32)).get_output(0)
    none = trt.MatrixOperation.NONE
    network.mark_output(network.add_matrix_multiply(a, none, weights, none).get_output(0))
    plan = builder.build_serialized_network(network, builder.create_builder_config())
    runtime = trt.Runtime(log)
    runtime.max_threads = 1
    engine = runtime.deserialize_cuda_engine(plan)
    call = engine_call(engine, {"a": rng.random((n, n), dtype=np.float32)})
    return 2 * n**3 / best(call) / 1e9
