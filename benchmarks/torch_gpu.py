"""PyTorch modules on a GPU in FP16, beside eager torch and ``torch.compile``.

    PYTHONPATH=. python benchmarks/torch_gpu.py --out DIR [--seconds 450] [network …]

First come checks with small networks: tensors are read and written where they lie, on torch's
current stream, strides, autocast, inference mode, ``torch.compile``, plans, partitions. Then every
network is built and measured; while it is built, another process fills Inductor's cache with it.
Times are medians of single calls that are waited for, and of calls in a row by events. Every line
is printed as soon as it is known; ``DIR/torch_gpu.json`` holds all. ``--device cpu --small`` is a
rehearsal without a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]
from torch_bench import error, mean, median, turn  # noqa: E402
from torch_zoo import NETWORKS  # noqa: E402

TEN = ("bert", "vit", "distilbert", "gpt2_step", "resnet50", "mobilenet_v2", "mobilenet_v3",
       "convnext", "efficientnet", "unet")
START = time.time()
RESULT: dict[str, Any] = {"rows": [], "failed": []}


def say(text: str) -> None:
    print(f"[{time.time() - START:6.1f}] {text}", flush=True)


def attempt(name: str, fn: Callable[[], Any]) -> Any:
    """Runs a part; a failure is noted, with the end of its traceback."""
    try:
        return fn()
    except Exception as e:
        lines = traceback.format_exc().strip().splitlines()
        RESULT["failed"].append({"part": name, "error": "\n".join(lines[-10:])})
        say(f"FAIL {name}: {type(e).__name__}: {str(e)[:300]}")
        print("\n".join(lines[-6:]), flush=True)
        return None


def left(options: argparse.Namespace) -> float:
    return float(options.seconds - (time.time() - START))


# --- checks ---------------------------------------------------------------------------------------


class Small(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = torch.nn.Linear(64, 128), torch.nn.Linear(128, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.nn.functional.gelu(self.a(x))).softmax(-1)


class Mixed(torch.nn.Module):
    """One call in the middle is torch's."""

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        y = torch.linalg.qr((y * 2).tanh().exp().sigmoid() + 1)[0]
        return (y * 2).tanh().exp().sigmoid() + 1


@contextmanager
def addresses(module: Any) -> Iterator[list[tuple[str, int]]]:
    """Which addresses contexts of a `TRTModule` get."""
    seen: list[tuple[str, int]] = []
    execute = module._execute

    def spy(context: Any, *rest: Any) -> Any:
        out = execute(context, *rest)
        seen.extend((t.name, context.get_tensor_address(t.name))
                    for t in (*module._inputs, *module._outputs))
        return out

    module._execute = spy
    try:
        yield seen
    finally:
        del module._execute


def close(got: Any, want: Any, limit: float = 1e-2) -> None:
    found = error(got, want)
    assert found <= limit, f"error {found:.2e}"


class Checks:
    """Small networks on a device; every public method is a check."""

    def __init__(self, device: str):
        from tactician.torch import torch2trt

        torch.manual_seed(0)
        self.device, self.cuda = device, device == "cuda"
        self.module = Small().eval().to(device)
        self.x = torch.randn(8, 64, device=device)
        self.engine = torch2trt(self.module, [self.x], max_batch_size=64, optimization_level=1)

    def no_copies(self) -> None:
        for n in (8, 16):
            y = torch.randn(n, 64, device=self.device)
            with addresses(self.engine) as seen:
                got = self.engine(y)
            assert dict(seen) == {"input_0": y.data_ptr(), "output_0": got.data_ptr()}, seen
            assert got.device == y.device
            close(got, self.module(y))

    def current_stream(self) -> None:
        if not self.cuda:
            return
        stream = torch.cuda.Stream()
        y, want = torch.zeros_like(self.x), self.module(self.x)
        self.engine(y)
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            for _ in range(4):  # launches, capture, graph
                y.zero_()
                torch.cuda._sleep(20_000_000)  # late: only the same stream waits for it
                y.copy_(self.x)
                twice = self.engine(y) * 2
                y.zero_()
            stream.synchronize()
            close(twice, want * 2)

    def strides(self) -> None:
        wide = torch.randn(64, 9, device=self.device)
        flat = torch.randn(8 * 64 + 1, device=self.device)[1:].view(8, 64)  # 4 bytes off
        for y in (wide.t(), flat, self.x[::2]):
            close(self.engine(y), self.module(y))

    def modes(self) -> None:
        from tactician.torch import torch2trt

        with torch.inference_mode():
            close(self.engine(self.x.clone()), self.module(self.x))
        kind = torch.float16 if self.cuda else torch.bfloat16
        half = torch2trt(Small().eval().to(self.device, kind), [self.x.to(kind)],
                         optimization_level=1)
        with torch.autocast(self.device, kind):
            assert half(self.x).dtype is kind
        from_host = self.engine(self.x.cpu())
        assert from_host.device.type == self.device
        close(from_host, self.module(self.x))

    def saved(self) -> None:
        from tactician.torch import TRTModule

        again = TRTModule()
        again.load_state_dict(self.engine.state_dict())
        close(again(self.x), self.module(self.x))

    def compiled(self) -> None:
        from tactician.torch.backend import tactician

        torch._dynamo.reset()
        options = {"optimization_level": 1, "min_block_size": 1, "cache": False}
        fast = torch.compile(self.module, backend=tactician, dynamic=True, options=options)
        for n in (8, 5, 30):
            y = torch.randn(n, 64, device=self.device)
            close(fast(y), self.module(y))
        torch._dynamo.reset()

    def partition(self) -> None:
        from tactician.torch import torch2trt

        y = torch.randn(16, 16, device=self.device)
        mixed = torch2trt(Mixed().eval(), [y], partition=True, optimization_level=1)
        assert len(mixed.engines) == 2
        close(mixed(y), Mixed()(y))


def check(device: str) -> None:
    """Runs every check."""
    checks = attempt("checks", lambda: Checks(device))
    for name in [n for n in vars(Checks) if not n.startswith("_")] if checks else []:
        with torch.no_grad():
            if attempt(f"check {name}", lambda name=name: getattr(checks, name)() or "ok") == "ok":
                say(f"check {name}: ok")


# --- networks -------------------------------------------------------------------------------------


def case(name: str, options: argparse.Namespace) -> tuple[Any, Any]:
    """A module and its arguments, on the device and in its type."""
    real = not options.small
    kind = torch.float16 if options.device == "cuda" else torch.float32

    def placed(t: torch.Tensor) -> torch.Tensor:
        return t.to(options.device, kind if t.is_floating_point() else t.dtype)

    module = NETWORKS[name].module(real).to(options.device, kind)
    args = pytree.tree_map_only(torch.Tensor, placed, NETWORKS[name].call(options.batch, real))
    return module, args


def fill_cache(names: list[str], options: argparse.Namespace) -> None:
    """Compiles networks with Inductor, which keeps the code on disk; says so line by line."""
    for name in names:
        torch._dynamo.reset()
        module, args = case(name, options)
        try:
            with torch.inference_mode():
                torch.compile(module, mode=options.mode)(*args)
        except Exception as e:
            print(f"{name} failed: {e}", flush=True)
        print(f"{name} done", flush=True)


class Filler:
    """The process that fills Inductor's cache."""

    def __init__(self, names: list[str], options: argparse.Namespace):
        self.log = Path(options.out) / "inductor.txt"
        command = [sys.executable, __file__, *names, "--fill", "--out", options.out, "--device",
                   options.device, "--batch", str(options.batch)]
        command += ["--small"] if options.small else []
        command += ["--mode", options.mode] if options.mode else []
        with self.log.open("w") as f:
            self.process = subprocess.Popen(command, stdout=f, stderr=subprocess.DEVNULL)

    def wait(self, name: str, seconds: float) -> bool:
        end = time.time() + seconds
        while f"{name} done" not in self.log.read_text():
            if time.time() > end or self.process.poll() is not None:
                return f"{name} done" in self.log.read_text()
            time.sleep(0.1)
        return True

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Nothing is compiled meanwhile."""
        there = self.process.poll() is None
        if there:
            os.kill(self.process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            if there:
                os.kill(self.process.pid, signal.SIGCONT)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def in_a_row(call: Any, args: Any, count: int) -> float:
    """Seconds per call by events, calls being queued one after the other."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    for _ in range(count):
        call(*args)
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end)) / count / 1e3


def bench(name: str, options: argparse.Namespace, filler: Filler) -> None:
    from tactician.torch import torch2trt

    module, args = case(name, options)
    cuda = options.device == "cuda"
    wait = torch.cuda.synchronize if cuda else (lambda: None)
    row: dict[str, Any] = {"network": name, "batch": options.batch}
    with torch.inference_mode():
        want = module(*args)
    start = time.perf_counter()
    engine = torch2trt(module, args, optimization_level=options.level, fp16_mode=cuda,
                       keep_network=False)
    row["built in s"] = round(time.perf_counter() - start, 1)
    row["error"] = error(engine(*args), want)
    steps = engine.engine._core.program.steps
    row["steps"] = len(steps)
    row["tactics"] = dict(Counter(s.info.get("tactic", s.kind) for s in steps))
    contenders: dict[str, Any] = {"tactician": engine, "eager": module}
    ready = filler.wait(name, max(min(60.0, left(options) - 20), 0))
    with filler.resting(), torch.inference_mode():
        if ready:
            torch._dynamo.reset()
            fast = torch.compile(module, mode=options.mode)
            row["inductor error"] = error(fast(*args), want)
            contenders["inductor"] = fast
        for call in contenders.values():
            for _ in range(5):
                call(*args)
        times: dict[str, list[float]] = {k: [] for k in contenders}
        rows: dict[str, list[float]] = {k: [] for k in contenders}
        for _ in range(4):
            for key, call in contenders.items():
                times[key] += turn(call, args, 0.15, wait)
                if cuda:
                    rows[key].append(in_a_row(call, args, 20))
    for key in contenders:
        row[f"{key} ms"] = median(times[key]) * 1e3
        if cuda:
            row[f"{key} ms in a row"] = min(rows[key]) * 1e3
    for peer in [k for k in contenders if k != "tactician"]:
        for how in ("", " in a row") if cuda else ("",):
            row[f"over {peer}{how}"] = row[f"{peer} ms{how}"] / row[f"tactician ms{how}"]
    RESULT["rows"].append(row)
    say("  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*")
    parser.add_argument("--out", default="out")
    parser.add_argument("--seconds", type=float, default=450, help="of the whole run")
    parser.add_argument("--level", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--mode", default=None, help="of torch.compile")
    parser.add_argument("--small", action="store_true", help="small versions of the networks")
    parser.add_argument("--no-checks", action="store_true")
    parser.add_argument("--fill", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    names = options.networks or list(TEN)
    if options.fill:
        fill_cache(names, options)
        return
    Path(options.out).mkdir(parents=True, exist_ok=True)
    where = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    say(f"torch {torch.__version__} on {where}, batch {options.batch}, level {options.level}")
    filler = Filler(names, options)
    try:
        if not options.no_checks:
            check(options.device)
        for name in names:
            if left(options) < 25:
                say(f"out of time before {name}")
                break
            attempt(name, lambda name=name: bench(name, options, filler))
            (Path(options.out) / "torch_gpu.json").write_text(json.dumps(RESULT, indent=1))
    finally:
        filler.end()
    for peer in ("eager", "inductor", "eager in a row", "inductor in a row"):
        ratios = [r[f"over {peer}"] for r in RESULT["rows"] if f"over {peer}" in r]
        if ratios:
            say(f"geometric mean over {peer}: {mean(ratios):.2f} ({len(ratios)} networks)")


if __name__ == "__main__":
    main()
