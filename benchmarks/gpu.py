"""The CUDA target on a GPU: does everything compute what it should, and how fast.

    PYTHONPATH=. python benchmarks/gpu.py --out DIR --seconds 500 [STAGE…]

Stages: ``check`` (small networks of every kind against onnxruntime on the CPU, streams, graphs,
plans), ``resnet50:1,32,128``, ``bert_base:1,32``, ``vit_b16:1,32`` (FP16: outputs against
onnxruntime in FP32, times by events, torch's eager mode in a CUDA graph as the peer, floors),
``shared`` (the models of ``--shared``) and ``onnx:150`` (ONNX's backend cases for so many seconds,
see `gpu_onnx`). A stage that fails does not stop the others. A short table
comes last; ``DIR/gpu.json`` holds everything. ``resnet50:1:serial`` launches kernels before those
ahead of them have ended. With ``TACTICIAN_GPU=interpreter`` or ``null`` the script runs without a
GPU, as a rehearsal.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from gpu_networks import networks

START = time.time()
ROWS: list[str] = []
RESULT: dict[str, Any] = {"failed": []}
STAGES = ["check", "resnet50:1,32,128", "bert_base:1,32", "vit_b16:1,32"]
# Peaks measured on one H100 80GB HBM3: FLOP/s of dense f16 products, bytes/s of copies.
PEAK_FLOPS, BANDWIDTH = 798e12, 3.0e12
GOALS = {
    "resnet50:1": 0.32, "resnet50:32": 1.1, "resnet50:128": 3.3, "bert_base:1": 0.38,
    "bert_base:32": 1.55, "vit_b16:1": 0.45, "vit_b16:32": 2.4,
}
GFLOPS = {"resnet50": 8.18, "bert_base": 22.35, "vit_b16": 35.1}  # per image or sequence


def say(text: str) -> None:
    print(f"[{time.time() - START:6.1f}] {text}", flush=True)


def row(text: str) -> None:
    ROWS.append(text)
    say(text)


def attempt(name: str, fn: Callable[[], Any]) -> Any:
    """Runs a part; a failure is noted with the end of its traceback."""
    try:
        return fn()
    except BaseException as e:
        if isinstance(e, (KeyboardInterrupt, SystemExit)):
            raise
        lines = traceback.format_exc().strip().splitlines()
        RESULT["failed"].append({"part": name, "error": "\n".join(lines[-12:])})
        row(f"FAIL {name}: {type(e).__name__}: {str(e)[:300]}")
        print("\n".join(lines[-8:]), flush=True)
        return None


# --- small networks ---------------------------------------------------------------------------




def check(args: argparse.Namespace) -> None:
    """Small networks against onnxruntime, in FP32 and FP16."""
    import onnxruntime as ort

    import tactician

    ort.set_default_logger_severity(3)
    table = networks()
    good, host, bad = 0, [], []
    modes = [False] if args.quick else [False, True]
    for name, make in table.items():
        if args.only and args.only not in name:
            continue
        data, feeds = make()
        session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
        want = dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds),
                        strict=True))
        for fp16 in modes:
            label = f"{name}{' fp16' if fp16 else ''}"

            def part(data: bytes = data, feeds: Any = feeds, want: Any = want, fp16: bool = fp16,
                     label: str = label) -> str:
                engine = tactician.build(
                    data, device="gpu", fp16=fp16, tf32=False, level=args.level, logger=QUIET
                )
                for _ in range(3):  # plain launches, capture, graph
                    got = engine(feeds)
                worst = max(error(got[k], want[k]) for k in want)
                limit = 3e-2 if fp16 else 2e-4
                steps = engine.cuda_engine._program.steps
                on_host = [s.info["ops"][0] for s in steps if s.kind == "reference"]
                if on_host:
                    host.append(f"{label}: {','.join(on_host)}")
                if not worst <= limit and not IS_NULL:
                    tactics = [s.info.get("tactic") for s in steps]
                    raise AssertionError(f"error {worst:.2e} with {tactics}")
                return "ok"

            if attempt(f"check {label}", part) == "ok":
                good += 1
            else:
                bad.append(label)
        if left(args) < 30:
            row("check: out of time")
            break
    row(f"check: {good} networks right, {len(bad)} wrong ({', '.join(bad)}), on the host: {host}")
    RESULT["check"] = {"good": good, "bad": bad, "host": host}


def error(got: np.ndarray, want: np.ndarray) -> float:
    """Largest error relative to the largest expected value; infinite if shapes differ."""
    if got.shape != want.shape:
        return float("inf")
    if not want.size:
        return 0.0
    a, b = got.astype(np.float64), want.astype(np.float64)
    return float(np.abs(a - b).max() / (np.abs(b).max() + 1e-9))


# --- the runtime ------------------------------------------------------------------------------


def runtime_parts(args: argparse.Namespace) -> None:
    """Streams and pointers of others, graphs, plans, dynamic shapes, errors."""
    attempt("runtime: torch's streams and pointers", foreign)
    attempt("runtime: plan", plan_round_trip)
    attempt("runtime: dynamic shapes", dynamic_shapes)
    attempt("runtime: driver module", driver_module)
    attempt("runtime: profiler", profiler)


def small_engine() -> Any:
    import tactician

    data, feeds = networks()["mlp"]()
    return tactician.build(data, device="gpu", level=0, logger=QUIET), feeds


def foreign() -> None:
    import torch

    engine, feeds = small_engine()
    want = engine(feeds)["y"]
    context = engine.cuda_engine.create_execution_context()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        x = torch.from_numpy(feeds["x"]).cuda()
        y = torch.zeros(want.shape, device="cuda")
        for k in range(5):
            y.zero_()
            context.set_tensor_address("x", x.data_ptr())
            context.set_tensor_address("y", y.data_ptr())
            assert context.execute_async_v3(stream.cuda_stream)
            got = y.cpu().numpy()
            assert error(got, want) < 1e-5, (k, error(got, want))
        twice = torch.zeros_like(y)
        context.set_tensor_address("y", twice.data_ptr())
        assert context.execute_async_v3(stream.cuda_stream)
        assert torch.equal(twice, y), "the same run into another buffer"
    stream.synchronize()
    assert context.execute_v2([x.data_ptr(), y.data_ptr()])
    row("runtime: torch's streams and pointers work")


def plan_round_trip() -> None:
    import tactician

    engine, feeds = small_engine()
    plan = bytes(engine.cuda_engine.serialize())
    again = tactician.load(plan)
    assert error(again(feeds)["y"], engine(feeds)["y"]) == 0
    row(f"runtime: plan round trip ({len(plan)} bytes)")


def dynamic_shapes() -> None:
    import tactician

    data, _ = networks()["dynamic"]()
    engine = tactician.build(data, device="gpu", level=0, logger=QUIET)
    rng = np.random.default_rng(0)
    for n in (1, 5, 64, 5, 1, 300, 5):
        x = rng.standard_normal((n, 37 + n), dtype=np.float32)
        e = np.exp(x - x.max(1, keepdims=True))
        assert error(engine(x)["y0"], e / e.sum(1, keepdims=True)) < 1e-5, n
    row("runtime: dynamic shapes work")


def driver_module() -> None:
    import tactician.driver as cuda

    engine, feeds = small_engine()
    context = engine.cuda_engine.create_execution_context()
    want = engine(feeds)["y"]
    stream = cuda.Stream()
    x = cuda.pagelocked_empty(feeds["x"].shape, np.float32)
    x[...] = feeds["x"]
    y = cuda.pagelocked_empty(want.shape, np.float32)
    dx, dy = cuda.mem_alloc(x.nbytes), cuda.mem_alloc(y.nbytes)
    begin, end = cuda.Event(), cuda.Event()
    for _ in range(3):
        cuda.memcpy_htod_async(dx, x, stream)
        begin.record(stream)
        context.set_tensor_address("x", int(dx))
        context.set_tensor_address("y", int(dy))
        assert context.execute_async_v3(stream.handle)
        end.record(stream)
        cuda.memcpy_dtoh_async(y, dy, stream)
        stream.synchronize()
    assert error(y, want) < 1e-6
    row(f"runtime: tactician.driver works, {end.time_since(begin) * 1e3:.1f} µs by its events")


def profiler() -> None:
    import tactician as trt

    class Times(trt.IProfiler):
        def __init__(self) -> None:
            super().__init__()
            self.ms: dict[str, float] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.ms[layer_name] = ms

    engine, feeds = small_engine()
    with engine._context() as context:
        context.profiler = Times()
        engine._run(context, feeds)
        assert context.profiler.ms
    row("runtime: profiler works")


# --- models -----------------------------------------------------------------------------------


def half_io(model: Any) -> Any:
    """The model with FP16 inputs and outputs, as the peer has."""
    from onnx import TensorProto as T
    from onnx import helper as h

    graph = model.graph
    for v in list(graph.input):
        if v.type.tensor_type.elem_type == T.FLOAT:
            v.type.tensor_type.elem_type = T.FLOAT16
            for node in graph.node:
                for i, name in enumerate(node.input):
                    if name == v.name:
                        node.input[i] = f"{v.name}_f32"
            graph.node.insert(0, h.make_node("Cast", [v.name], [f"{v.name}_f32"], to=T.FLOAT))
    for v in graph.output:
        if v.type.tensor_type.elem_type == T.FLOAT:
            graph.node.append(h.make_node("Cast", [v.name], [f"{v.name}_f16"], to=T.FLOAT16))
            v.name = f"{v.name}_f16"
            v.type.tensor_type.elem_type = T.FLOAT16
    return model


def bench_model(args: argparse.Namespace, name: str, batch: int, how: str = "") -> None:
    import zoo

    import tactician

    label = f"{name}:{batch}{how and ':' + how}"
    record: dict[str, Any] = RESULT.setdefault("models", {}).setdefault(label, {})
    plain = zoo.MODELS[name](batch)
    feeds, want = feeds_for(plain), None
    if not args.no_check:
        # weights do not depend on the batch (but for ViT's token): one row by itself tells as much
        rows = batch if name == "vit_b16" else 1
        few = {n: a[:rows] for n, a in feeds.items()}
        want = expected(plain if rows == batch else zoo.MODELS[name](rows), few)
    data = half_io(plain).SerializeToString()
    cache = Path(args.cache or Path(args.out) / "timing.cache")
    before = time.time()
    engine = tactician.build(data, device="gpu", fp16=True, level=args.level, logger=QUIET,
                             timing_cache=cache)
    record["build_s"] = round(time.time() - before, 2)
    program = engine.cuda_engine._program
    record["steps"] = len(program.steps)
    record["tactics"] = dict(Counter(s.info.get("tactic", s.kind) for s in program.steps))
    record["host"] = [s.name for s in program.steps if s.kind == "reference"]
    record["layers"] = [
        {"name": s.name[:120], "tactic": s.info.get("tactic"), "candidate": s.info.get("candidate"),
         "us": s.info.get("time_us"), "ops": "+".join(s.info.get("ops", [])[:8]),
         "all": s.info.get("times_us"), "rejected": s.info.get("rejected")}
        for s in program.steps
    ]
    say(f"{label}: built in {record['build_s']} s, {record['steps']} steps {record['tactics']}")
    feeds = {n: a.astype(engine.inputs[n][1]) for n, a in feeds.items()}
    if want is not None:
        got = list(engine(feeds).values())
        record["error"] = max(error(g[: len(w)], w) for g, w in zip(got, want, strict=True))
    if not IS_HOST:
        record.update(times_of(engine, feeds))
        record["tuned_sum_ms"] = sum(
            x["us"] for x in record["layers"] if x["us"] is not None) / 1e3
        if not args.no_peer:
            known = RESULT["models"].get(f"{name}:{batch}", {}).get("torch_ms")
            record["torch_ms"] = known or attempt(f"torch {label}", lambda: peer(name, batch))
    attempt(f"plan of {label}", lambda: record.update(plan_load(engine)))
    floor = max(GFLOPS[name] * 1e9 * batch / PEAK_FLOPS, program_bytes(program) / BANDWIDTH) * 1e3
    record["floor_ms"] = round(floor, 4)
    if args.layers:
        attempt(f"layers of {label}", lambda: layer_times(engine, feeds, record))
    save(args)
    peer_ms = record.get("torch_ms")
    row(
        f"{label:14s} {record.get('ms', 0):8.4f} ms (goal {GOALS.get(label, 0):.2f}, "
        f"floor {floor:.3f}, tuned sum {record.get('tuned_sum_ms', 0):.3f}, "
        f"launches {record['steps']}, torch {peer_ms and round(peer_ms, 3)}) "
        f"err {record.get('error', -1):.1e} build {record['build_s']} s "
        f"load {record.get('load_ms', 0):.0f} ms python {record.get('python_us', 0):.1f} µs "
        f"host steps {len(record['host'])}"
    )


def feeds_for(model: Any) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    feeds = {}
    for v in model.graph.input:
        shape = [d.dim_value for d in v.type.tensor_type.shape.dim]
        if v.type.tensor_type.elem_type == 1:
            feeds[v.name] = rng.standard_normal(shape, dtype=np.float32)
        else:
            feeds[v.name] = rng.integers(0, 1000, shape)
    return feeds


def expected(model: Any, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    import onnxruntime as ort

    data = model if isinstance(model, bytes) else model.SerializeToString()
    session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


def program_bytes(program: Any) -> float:
    """Bytes of weights, inputs and outputs: what must move once."""
    tensors = program.tensors
    weights = {t.ref for t in tensors if t.kind == "const"}
    total = float(sum(program.constants[i].nbytes for i in weights))
    for i in (*program.inputs, *program.outputs):
        total += float(np.prod(tensors[i].shape)) * tensors[i].dtype.size
    return total


def times_of(engine: Any, feeds: dict[str, np.ndarray], seconds: float = 1.5) -> dict[str, float]:
    """Milliseconds of `execute_async_v3` by events, and what it takes Python."""
    from tactician.targets.cuda.driver import open_gpu

    driver = open_gpu(0)
    driver.enter()
    context = engine.cuda_engine.create_execution_context()
    blocks = []
    for name, a in feeds.items():
        blocks.append(driver.put(np.ascontiguousarray(a)))
        context.set_tensor_address(name, blocks[-1])
    for name, (shape, dt) in engine.outputs.items():
        blocks.append(driver.alloc(int(np.prod(shape)) * np.dtype(dt).itemsize))
        context.set_tensor_address(name, blocks[-1])
    stream = driver.stream()
    driver.synchronize()
    run = context.execute_async_v3
    for _ in range(5):
        assert run(stream)
    driver.synchronize(stream)
    events = [driver.event() for _ in range(2)]
    begin = time.perf_counter()
    run(stream)
    driver.synchronize(stream)
    once = time.perf_counter() - begin
    count = int(min(max(10, 0.05 / once), 400))
    samples, until = [], time.time() + seconds
    while len(samples) < 7 or (time.time() < until and len(samples) < 200):
        driver.record(events[0], stream)
        for _ in range(count):
            run(stream)
        driver.record(events[1], stream)
        driver.synchronize(stream)
        samples.append(driver.elapsed(*events) / count)
    python, queued = [], []
    for _ in range(7):
        driver.synchronize(stream)
        begin = time.perf_counter()
        for _ in range(20):  # the driver takes longer while the same graph still runs
            run(stream)
        queued.append((time.perf_counter() - begin) / 20 * 1e6)
    for _ in range(60):
        driver.synchronize(stream)
        begin = time.perf_counter()
        run(stream)
        python.append((time.perf_counter() - begin) * 1e6)
    driver.synchronize(stream)
    latency = []
    for _ in range(50):
        begin = time.perf_counter()
        run(stream)
        driver.synchronize(stream)
        latency.append((time.perf_counter() - begin) * 1e3)
    for b in blocks:
        driver.free(b)
    return {"ms": statistics.median(samples), "best_ms": min(samples),
            "python_us": statistics.median(python), "queued_us": statistics.median(queued),
            "latency_ms": statistics.median(latency)}


def layer_times(engine: Any, feeds: dict[str, np.ndarray], record: dict[str, Any]) -> None:
    """Step times by events around each step, slowest first."""
    with engine._context() as context:
        schedule_times: list[list[float]] = []
        engine._run(context, feeds)
        schedule = context._current
        for _ in range(5):
            schedule_times.append(schedule.run_timed(0))
    best = np.median(np.array(schedule_times), 0)
    for entry, ms in zip(record["layers"], best, strict=True):
        entry["step_us"] = round(float(ms) * 1e3, 2)
    worst = sorted(record["layers"], key=lambda x: -x["step_us"])[:12]
    for x in worst:
        say(f"   {x['step_us']:8.1f} µs alone (tuned {x['us']}) {x['tactic']} {x['candidate']} "
            f"{x['ops']} {x['name'][:60]}")


def plan_load(engine: Any) -> dict[str, float]:
    import tactician

    plan = bytes(engine.cuda_engine.serialize())
    begin = time.perf_counter()
    again = tactician.load(plan)
    took = (time.perf_counter() - begin) * 1e3
    del again
    return {"load_ms": round(took, 1), "plan_mb": round(len(plan) / 1e6, 1)}


def torch_network(name: str, batch: int) -> tuple[Any, Any]:
    """A module in FP16 on the GPU, and its input."""
    import torch

    if name == "bert_base":
        from transformers import BertConfig, BertModel

        net: Any = BertModel(BertConfig(), add_pooling_layer=False)
        x = torch.randint(0, 1000, (batch, 128), device="cuda")
    else:
        import torchvision

        net = getattr(torchvision.models, {"vit_b16": "vit_b_16"}.get(name, name))()
        x = torch.randn(batch, 3, 224, 224, device="cuda").half()
        x = x.contiguous(memory_format=torch.channels_last)
    net = net.cuda().half().eval()
    return net.to(memory_format=torch.channels_last) if name == "resnet50" else net, x


def peer(name: str, batch: int) -> float:
    """torch's eager mode, FP16, channels-last, in a CUDA graph: milliseconds."""
    import torch

    torch.backends.cudnn.benchmark = True
    net, x = torch_network(name, batch)
    stream = torch.cuda.Stream()
    with torch.no_grad(), torch.cuda.stream(stream):
        for _ in range(4):
            net(x)
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            net(x)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        samples = []
        for _ in range(9):
            begin.record(stream)
            for _ in range(20):
                graph.replay()
            end.record(stream)
            stream.synchronize()
            samples.append(begin.elapsed_time(end) / 20)
    del graph, net
    torch.cuda.empty_cache()
    return statistics.median(samples)


def shared_models(args: argparse.Namespace) -> None:
    """Pretrained models against the runs kept beside them."""
    import tactician

    for path in sorted(Path(args.shared).glob("*.onnx")):
        for fp16 in (False, True):
            def part(path: Path = path, fp16: bool = fp16) -> None:
                engine = tactician.build(
                    path, device="gpu", level=args.level, fp16=fp16, tf32=False, logger=QUIET
                )
                worst = 0.0
                for kept in (f"{path}.npz", f"{path}.alt.npz"):
                    if not os.path.exists(kept):
                        continue
                    with np.load(kept) as d:
                        feeds = {k[4:]: d[k] for k in d.files if k.startswith("in::")}
                        want = {k[5:]: d[k] for k in d.files if k.startswith("out::")}
                    for _ in range(2):
                        got = engine(feeds)
                    worst = max(worst, *(error(got[k], want[k]) for k in want))
                steps = engine.cuda_engine._program.steps
                host = Counter(s.info["ops"][0] for s in steps if s.kind == "reference")
                row(f"shared {path.name}{' fp16' if fp16 else ''}: error {worst:.1e}, "
                    f"{len(steps)} steps, on the host: {dict(host)}")
                RESULT.setdefault("shared", {})[f"{path.name}{':fp16' if fp16 else ''}"] = worst
                # quantized networks may be one step of 256 off, as sums round elsewhere
                steps_of_256 = any(x in path.name for x in ("qdq", "int8"))
                if not worst <= (2e-2 if fp16 else 8e-3 if steps_of_256 else 1e-3) and not IS_NULL:
                    raise AssertionError(f"error {worst:.1e}")

            attempt(f"shared {path.name}", part)
        if left(args) < 20:
            row("shared: out of time")
            return


# --- the script -------------------------------------------------------------------------------

QUIET: Any = None
IS_HOST = os.environ.get("TACTICIAN_GPU", "").partition(":")[0] in ("interpreter", "null")
IS_NULL = os.environ.get("TACTICIAN_GPU", "").partition(":")[0] == "null"


def onnx_suite(args: argparse.Namespace, seconds: float) -> None:
    """The backend suite, in a process that has not touched the GPU: it forks."""
    script, out = Path(__file__).with_name("gpu_onnx.py"), Path(args.out, "onnx.json")
    seconds = min(seconds, left(args) - 20)
    command = [sys.executable, str(script), "--seconds", str(seconds), "--out", str(out)]
    subprocess.run(command, check=True, timeout=seconds + 120)
    found = json.loads(out.read_text())
    for line in found["summary"]:
        row(line)
    RESULT["onnx"] = {k: found[k] for k in ("failed", "left", "host", "slowest")}


def left(args: argparse.Namespace) -> float:
    return float(args.seconds) - (time.time() - START)


def save(args: argparse.Namespace) -> None:
    RESULT["rows"] = ROWS
    Path(args.out, "gpu.json").write_text(json.dumps(RESULT, indent=1, default=str))


def facts() -> dict[str, Any]:
    out: dict[str, Any] = {"date": time.strftime("%Y-%m-%d %H:%M")}
    out["python"] = platform.python_version()
    for name in ("numpy", "triton", "torch", "onnxruntime", "cuda.bindings"):
        try:
            out[name] = __import__(name, fromlist=["x"]).__version__
        except Exception as e:
            out[name] = f"none ({type(e).__name__})"
    if not IS_HOST:
        from tactician.targets.cuda.driver import open_gpu

        driver = open_gpu(0)
        out |= {"gpu": driver.name, "driver": driver.driver_version(), "sms": driver.gpu.sms,
                "memory": driver.memory()}
    try:
        from tactician.targets.cuda import libraries

        out["libraries"] = libraries.versions()
    except Exception as e:
        out["libraries"] = str(e)
    return out


def main() -> None:
    global QUIET
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("stages", nargs="*", default=STAGES)
    p.add_argument("--check", action="store_true", help="the stage `check` alone")
    p.add_argument("--out", default=".")
    p.add_argument("--seconds", type=float, default=500)
    p.add_argument("--level", type=int, default=3)
    p.add_argument("--cache", help="timing cache to use and update")
    p.add_argument("--shared", default="../shared/models")
    p.add_argument("--only", default="", help="check: names that contain this")
    p.add_argument("--quick", action="store_true", help="check: FP32 only")
    p.add_argument("--layers", action="store_true", help="models: show step times")
    p.add_argument("--no-peer", action="store_true")
    p.add_argument("--no-check", action="store_true", help="models: do not compare results")
    args = p.parse_args()
    Path(args.out).mkdir(parents=True, exist_ok=True)
    import tactician
    from tactician.support import logger as log

    QUIET = log.Logger(log.Severity.ERROR)
    assert tactician
    RESULT["facts"] = attempt("facts", facts)
    say(str(RESULT["facts"]))
    for stage in ["check"] if args.check else args.stages:
        if left(args) < 15:
            row(f"{stage}: no time left")
            continue
        name, _, batches = stage.partition(":")
        if name == "check":
            attempt("check", lambda: check(args))
            attempt("runtime", lambda: runtime_parts(args))
        elif name == "onnx":
            attempt("onnx", lambda b=batches: onnx_suite(args, float(b or 150)))
        elif name == "shared":
            attempt("shared", lambda: shared_models(args))
        else:
            batches, _, how = batches.partition(":")
            os.environ["TACTICIAN_OVERLAP"] = "0" if how == "serial" else "1"
            for batch in batches.split(",") if batches else ["1"]:
                if left(args) < 15:
                    row(f"{name}:{batch}: no time left")
                    continue
                attempt(
                    f"{name}:{batch}",
                    lambda n=name, b=int(batch), h=how: bench_model(args, n, b, h),
                )
        save(args)
    print("\n=== summary", flush=True)
    for text in ROWS:
        print(text)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
