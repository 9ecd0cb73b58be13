"""Matrix products: tactician's kernels against torch and the cores' peak.

    python benchmarks/gemm.py [--threads 1] [--seconds 2] [--json] [MxKxN …]

All contenders take turns on the same data in one process; best times count. Operands lie at whole
cache lines, as an engine's do. The peak of a core is measured before and after, so that the share
means something on a machine whose clock moves.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from peak import peak_gflops

from tactician.ir.graph import Graph
from tactician.ops import emit
from tactician.regions.fuse import fuse
from tactician.tactics.operands import aligned_copy
from tactician.targets.cpu import native
from tactician.targets.cpu.device import CpuDevice
from tactician.targets.cpu.gemm import Gemm

SIZES = ("1024x1024x1024", "512x512x512", "128x768x768", "128x768x3072", "197x768x2304",
         "4x1024x1024", "1x2048x1000", "1x256x10")  # fmt: skip


def kernels(
    m: int, k: int, n: int, data: dict[str, Any], threads: int = 1
) -> dict[str, Callable[[], None]]:
    """One call per candidate of the tactic, constant weights."""
    g = Graph()
    x = g.add_input("x", "f32", (m, k))
    y = emit(g, "matmul", [x, g.constant(data["w"])]).output
    g.outputs = [y]
    (region,) = fuse(g).regions
    device, tactic = CpuDevice(threads=threads), Gemm()
    calls = {}
    for tile in tactic.candidates(region, device):
        kernel = tactic.build(region, tile, device)
        arrays = [
            aligned_copy(a) if isinstance(a, np.ndarray) else data["x"] if a is x else data["y"]
            for a in kernel.args
        ]
        calls[str(tile)] = _launch(device, kernel, arrays)
    return calls


def _launch(
    device: CpuDevice, kernel: Any, arrays: list[np.ndarray[Any, Any]]
) -> Callable[[], None]:
    args = np.array([a.ctypes.data for a in arrays], np.int64)
    work = np.array([kernel.work], np.int64)
    stride = -(-kernel.scratch // 64) * 64
    scratch = native.aligned(stride * device.threads + 64)
    steps = np.zeros((2, native.STEP_WORDS), np.int64)
    address = device.function(kernel)
    steps[0] = [native.KERNEL, address, args.ctypes.data, 0, work.ctypes.data, 1, 0, 0]
    launch = native.default_pool().prepare(
        steps, None, device.threads, None, scratch.ctypes.data, stride
    )
    keep = (device, arrays, args, work, scratch)  # the device owns the code

    def call() -> None:
        assert keep
        launch()

    return call


def best_times(calls: dict[str, Callable[[], None]], seconds: float) -> dict[str, float]:
    """Best time of each, taking turns."""
    best = dict.fromkeys(calls, float("inf"))
    for call in calls.values():
        call()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def measure(size: str, seconds: float, threads: int) -> dict[str, Any]:
    m, k, n = (int(s) for s in size.split("x"))
    rng = np.random.default_rng(0)
    data = {
        "x": rng.standard_normal((m, k), np.float32), "w": rng.standard_normal((k, n), np.float32),
        "y": np.zeros((m, n), np.float32),
    }  # fmt: skip
    data = {name: aligned_copy(a) for name, a in data.items()}
    calls = kernels(m, k, n, data, threads)
    ours = list(calls)
    try:
        import torch

        torch.set_num_threads(threads)
        x, w = torch.from_numpy(data["x"]), torch.from_numpy(data["w"])
        out = torch.empty(m, n)
        calls["torch"] = lambda: torch.mm(x, w, out=out)
    except ImportError:
        pass
    peak = peak_gflops(32, 0.2)
    times = best_times(calls, seconds)
    peak = max(peak, peak_gflops(32, 0.2))
    name = min(ours, key=times.__getitem__)
    gflops = 2e-9 * m * k * n / times[name]
    found = {"size": size, "threads": threads, "tile": name, "us": times[name] * 1e6,
             "gflops": gflops, "of_peak": gflops / peak / threads}  # fmt: skip
    if "torch" in times:
        found["vs_torch"] = times["torch"] / times[name]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sizes", nargs="*", default=SIZES, metavar="MxKxN")
    parser.add_argument("--threads", "-t", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2.0, help="per size")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    for size in options.sizes:
        r = measure(size, options.seconds, options.threads)
        if options.json:
            print(json.dumps(r))
            continue
        peer = f"{r['vs_torch']:6.2f} x torch" if "vs_torch" in r else ""
        print(f"{r['size']:>16} {r['us']:10.1f} us {r['gflops']:7.1f} GFLOP/s "
              f"{r['of_peak'] * 100:5.1f}% of peak {peer}  {r['tile']}")  # fmt: skip


if __name__ == "__main__":
    main()
