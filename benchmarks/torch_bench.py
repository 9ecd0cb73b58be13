"""Engines of PyTorch modules beside eager torch and ``torch.compile`` (Inductor).

    python benchmarks/torch_bench.py [--threads 2] [--level 3] [--small] [network …]

All run in one process, in turns, on the same arguments; results are compared first. Every line of
the table has medians of single calls, and the best; the last ones geometric means of ratios. With
``--device cuda --half`` everything runs on a GPU in FP16. ``--build`` times conversion and build at
level 0 instead, in a process of its own for each network. ``--engines FOLDER`` keeps engines there;
``--prepare`` makes them (and fills Inductor's own cache) without timing, so that a later run only
measures.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]
from torch_zoo import NETWORKS  # noqa: E402

TEN = ("resnet50", "mobilenet_v2", "mobilenet_v3", "efficientnet", "convnext", "unet", "bert",
       "distilbert", "vit", "gpt2_step")


def tensors(tree: Any) -> list[torch.Tensor]:
    return [x for x in pytree.tree_leaves(tree) if isinstance(x, torch.Tensor)]


def error(got: Any, want: Any) -> float:
    """Greatest difference, relative to each result's greatest magnitude."""
    return max(float((g - w).abs().max() / w.abs().max().clamp(min=1e-6))
               for g, w in zip(tensors(got), tensors(want), strict=True)
               if w.is_floating_point())


def turn(call: Any, args: Any, seconds: float, wait: Any) -> list[float]:
    call(*args)
    wait()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        call(*args)
        wait()
        times.append(time.perf_counter() - start)
    return times


def median(times: list[float]) -> float:
    return sorted(times)[len(times) // 2]


def made(name: str, module: Any, args: Any, options: Any) -> Any:
    """The engine, from the folder if it is there."""
    from tactician.torch import TRTModule, torch2trt

    file = options.engines and options.engines / (
        f"{name}-{options.batch}-{options.level}-{options.threads}-{options.device}.pth")
    if file and file.exists():
        engine = TRTModule()
        engine.load_state_dict(torch.load(file))
        return engine
    engine = torch2trt(module, args, optimization_level=options.level, threads=options.threads,
                       fp16_mode=options.half, keep_network=False)
    if file:
        options.engines.mkdir(parents=True, exist_ok=True)
        torch.save(engine.state_dict(), file)
    return engine


def measure(name: str, options: Any) -> dict[str, Any]:
    """Times of one network, in milliseconds."""
    real = not options.small
    module, args = NETWORKS[name].module(real), NETWORKS[name].call(options.batch, real)
    if options.half:
        module = module.half()
        args = pytree.tree_map_only(
            torch.Tensor, lambda t: t.half() if t.is_floating_point() else t, args)
    module = module.to(options.device)
    args = pytree.tree_map_only(torch.Tensor, lambda t: t.to(options.device), args)
    wait = torch.cuda.synchronize if options.device == "cuda" else (lambda: None)
    out: dict[str, Any] = {"network": name}
    with torch.inference_mode():
        want = module(*args)
    start = time.perf_counter()
    engine = made(name, module, args, options)
    out["built in s"] = round(time.perf_counter() - start, 1)
    out["error"] = error(engine(*args), want)
    contenders = {"tactician": engine, "eager": module}
    if not options.no_compile:
        torch._dynamo.reset()
        contenders["inductor"] = torch.compile(module, mode=options.mode)
    if options.prepare:
        with torch.inference_mode():
            out["calls"] = [k for k, call in contenders.items() if call(*args) is not None]
        return out
    times: dict[str, list[float]] = {k: [] for k in contenders}
    with torch.inference_mode():
        for _ in range(options.rounds):
            for key, call in contenders.items():
                time.sleep(0.02)
                times[key] += turn(call, args, options.seconds, wait)
    out.update({k: round(median(t) * 1e3, 3) for k, t in times.items()})
    out.update({f"{k} best": round(min(t) * 1e3, 3) for k, t in times.items()})
    return out


def build_once(name: str, level: int) -> dict[str, Any]:
    """Seconds to convert and build a network in this process."""
    from tactician.torch import torch2trt

    module, args = NETWORKS[name].module(True), NETWORKS[name].call(1, True)
    torch.export.export(torch.nn.Linear(1, 1), (torch.ones(1, 1),))  # torch's own imports
    start, used = time.perf_counter(), time.process_time()
    torch2trt(module, args, optimization_level=level)
    return {"network": name, "seconds": round(time.perf_counter() - start, 2),
            "processor seconds": round(time.process_time() - used, 2)}


def mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values)) if values else math.nan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=None)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--level", type=int, default=3)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--mode", default=None, help="of torch.compile")
    parser.add_argument("--half", action="store_true")
    parser.add_argument("--small", action="store_true", help="small versions of the networks")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--build", action="store_true", help="time conversion and build instead")
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--engines", type=Path, help="folder to keep engines in")
    parser.add_argument("--prepare", action="store_true", help="build and compile, time nothing")
    parser.add_argument("--json", type=Path, help="append results to this file, one a line")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    names = options.networks or list(TEN)
    if options.once:
        print(json.dumps(build_once(names[0], 0)))
        return
    rows: list[dict[str, Any]] = []
    for name in names:
        if options.build:
            command = [sys.executable, __file__, name, "--once"]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            row = json.loads(done.stdout.splitlines()[-1])
        else:
            row = measure(name, options)
            for peer in ("eager", "inductor"):
                if peer in row and not options.prepare:
                    for best in ("", " best"):
                        row[f"over {peer}{best}"] = round(
                            row[f"{peer}{best}"] / row[f"tactician{best}"], 2)
        rows.append(row)
        print("  ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}"
                        for k, v in row.items()), flush=True)
        if options.json:
            with options.json.open("a") as f:
                f.write(json.dumps(row) + "\n")
    for peer in ("eager", "inductor", "eager best", "inductor best"):
        ratios = [r[f"over {peer}"] for r in rows if f"over {peer}" in r]
        if ratios:
            print(f"geometric mean over {peer}: {mean(ratios):.2f} ({len(ratios)} networks)")


if __name__ == "__main__":
    main()
