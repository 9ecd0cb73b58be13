"""cuDNN and cuBLASLt as tactics on a GPU: numbers against torch in float64, and times.

Run with ``PYTHONPATH=. python benchmarks/gpu_libs.py [seconds]``; needs torch for buffers and
references. Times are of calls inside CUDA graphs of 20, as in the vendor's best case.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from tactician.ir.dtypes import dtype as named
from tactician.ir.graph import Graph, Value
from tactician.ops.registry import emit
from tactician.regions import layout
from tactician.regions.fuse import fuse
from tactician.regions.region import Region
from tactician.support.errors import TacticianError
from tactician.tactics.tactic import Tactic, tactics_for
from tactician.targets.cuda import cudnn_api as api
from tactician.targets.cuda import cudnn_attention, cudnn_call, libraries, load_tactics
from tactician.targets.cuda.device import CudaDevice

START = time.time()
BUDGET = float(sys.argv[1]) if len(sys.argv) > 1 else 225.0
LINES: list[str] = []
TORCH = {"f16": torch.half, "bf16": torch.bfloat16, "f32": torch.float32, "i8": torch.int8,
         "i32": torch.int32, "f8e4m3": torch.float8_e4m3fn}
layout._FEW_CHANNELS = 0  # stems with few channels go channels-last, too
load_tactics()
DEVICE = CudaDevice("H100")
DEVICE.libraries = True
OURS = {t.name: t for t in tactics_for("cuda") if t.source in ("CUDNN", "CUBLAS_LT")}
RNG = np.random.default_rng(0)


def left() -> float:
    return BUDGET - (time.time() - START)


def say(text: str) -> None:
    print(text, flush=True)


def keep(text: str) -> None:
    LINES.append(text)
    say(text)


# --- regions ---------------------------------------------------------------------------------


def regions_of(g: Graph) -> list[Region]:
    def wants(r: Region) -> bool:
        return any(t.wants_channels_last(r, DEVICE) for t in OURS.values())

    return layout.assign_layouts(g, fuse(g), wants, lambda r: True).regions


def named_region(g: Graph, name: str) -> Region:
    return next(r for r in regions_of(g) if r.anchor is not None and r.anchor.name == name)


def array(dt: str, *shape: int, scale: float = 1.0) -> Any:
    return (RNG.standard_normal(shape, dtype=np.float32) * scale).astype(named(dt).np)


def convolution(
    n: int, c: int, k: int, hw: int, r: int, s: int, dt: str = "f16", residual: bool = False,
    act: str = "relu", groups: int = 1, op: str = "convolution", alpha: float = 0.0,
    beta: float = 0.0,
) -> Region:
    g = Graph()
    p = r // 2
    x = g.add_input("x", named(dt), (n, c, hw, hw))
    shape = (k, c // groups, r, r) if op == "convolution" else (c, k // groups, r, r)
    w = g.constant(array(dt, *shape, scale=(c // groups * r * r) ** -0.5))
    b = g.constant(array(dt, k))
    y = emit(g, op, [x, w, b], "anchor", stride=(s, s), pre=(p, p), post=(p, p),
             groups=groups).output
    if residual:
        # the other operand comes from a convolution, so that it is stored channels-last
        one = g.constant(array(dt, k, k, 1, 1))
        z = g.add_input("z", named(dt), y.dims)
        y = emit(g, "binary", [y, emit(g, "convolution", [z, one], "other").output], "add",
                 fn="add").output
    if act:
        y = emit(g, "activation", [y], "act", fn=act, alpha=alpha, beta=beta).output
    last = g.constant(array(dt, y.dims[1], y.dims[1], 1, 1))
    g.outputs = [emit(g, "convolution", [y, last], "after").output]
    return named_region(g, "anchor")


def product(
    m: int, k: int, n: int, dt: str = "f16", act: str = "", residual: bool = False,
    bias: bool = True,
) -> Region:
    g = Graph()
    x = g.add_input("x", named(dt), (m, k))
    y = emit(g, "matmul", [x, g.constant(array(dt, k, n, scale=k**-0.5))], "anchor").output
    if bias:
        y = emit(g, "binary", [y, g.constant(array(dt, n))], "bias", fn="add").output
    if residual:
        y = emit(g, "binary", [y, g.add_input("r", named(dt), (m, n))], "add", fn="add").output
    if act:
        y = emit(g, "activation", [y], "act", fn=act).output
    g.outputs = [y]
    return named_region(g, "anchor")


def attention(
    b: int, h: int, s: int, d: int, dt: str = "f16", flat: bool = True,
    mask: tuple[int, ...] = (),
) -> Region:
    g = Graph()
    shape = (b, s, h * d) if flat else (b, h, s, d)
    q, k, v = (g.add_input(n, named(dt), shape) for n in "qkv")
    heads = {"q_heads": h, "kv_heads": h} if flat else {}
    more = [g.add_input("mask", named(dt), mask)] if mask else []
    g.outputs = [emit(g, "attention", [q, k, v, *more], "anchor", **heads).output]
    return named_region(g, "anchor")


# --- running ---------------------------------------------------------------------------------


class Buffers:
    """Device memory for the operands of a region, logical views of it, and a reference."""

    def __init__(self, region: Region):
        self.region = region
        self.mem: dict[Any, torch.Tensor] = {}
        for v in (*region.inputs, *region.outputs):
            self.value(v)

    def value(self, v: Value) -> torch.Tensor:
        key = v.meta.get("logical", v)
        if key not in self.mem:
            shape = [int(d) for d in key.dims]
            if key.const is not None:
                t = self.constant(np.asarray(key.const))
            elif key.dtype.name == "i8":
                t = torch.randint(-127, 128, shape, dtype=torch.int8, device="cuda")
            else:
                t = torch.randn(shape, device="cuda").to(TORCH[key.dtype.name])
            if "perm" in v.meta:
                t = t.permute(*v.meta["perm"]).contiguous()
                back = np.argsort(v.meta["perm"]).tolist()
                t = t.permute(*back)
            self.mem[key] = t
        return self.mem[key]

    def constant(self, a: np.ndarray[Any, Any]) -> torch.Tensor:
        name = named(a.dtype).name
        raw = torch.from_numpy(np.ascontiguousarray(a).view(np.uint8).reshape(-1)).cuda()
        return raw.view(TORCH[name]).reshape(a.shape)

    def address(self, a: Any) -> int:
        if isinstance(a, Value):
            return self.value(a).data_ptr()
        if id(a) not in self.mem:
            self.mem[id(a)] = self.constant(a)
            self.mem[(id(a), "keep")] = a
        return self.mem[id(a)].data_ptr()

    @property
    def result(self) -> torch.Tensor:
        return self.value(self.region.outputs[0])


def double(t: torch.Tensor) -> torch.Tensor:
    return t.double()


ACTS = {
    "relu": torch.relu, "sigmoid": torch.sigmoid, "tanh": torch.tanh,
    "swish": F.silu, "gelu_erf": F.gelu, "hard_swish": F.hardswish, "mish": F.mish,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "clip": lambda x: x.clamp(0, 6), "leaky_relu": lambda x: F.leaky_relu(x, 0.1), "": lambda x: x,
    "elu": F.elu,
}


def reference(b: Buffers, act: str, wide: bool = True) -> torch.Tensor:
    """What the region should compute, by torch."""
    node, mem = b.region.anchor, b.mem
    assert node is not None
    up = double if wide else (lambda t: t)
    x, w = (b.value(v) for v in node.inputs[:2] if v is not None)
    if node.op == "matmul":
        y = up(x) @ up(w)
    else:
        a = node.attrs
        fn = F.conv2d if node.op == "convolution" else F.conv_transpose2d
        bias = up(b.value(node.inputs[2]))
        y = fn(up(x), up(w), bias, stride=a.stride, padding=a.pre, groups=a.groups)
    used = set(node.inputs)
    for v in b.region.inputs:
        key = v.meta.get("logical", v)
        if key not in used:
            y = y + up(mem[key])
    return ACTS[act](y)


def error(b: Buffers, want: torch.Tensor) -> float:
    got = b.result.double()
    return float((got - want.double()).abs().max() / want.double().abs().max().clamp_min(1e-9))


def bench(launch: Any, copies: int = 20) -> float:
    """Microseconds of a call inside a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        launch(stream.cuda_stream)
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for _ in range(copies):
                launch(stream.cuda_stream)
    times = []
    for _ in range(6):
        e = [torch.cuda.Event(enable_timing=True) for _ in "ab"]
        e[0].record()
        graph.replay()
        e[1].record()
        torch.cuda.synchronize()
        times.append(e[0].elapsed_time(e[1]) / copies)
    return sorted(times)[1] * 1e3


POOL = ThreadPoolExecutor(12)


def options(region: Region, tactic: Tactic, most: int) -> list[tuple[str, Any]]:
    why = tactic.refuse(region, DEVICE)
    if why is not None:
        return [(why, None)]
    found = list(tactic.candidates(region, DEVICE))[:most]
    return [(f"{c}", POOL.submit(tactic.build, region, c, DEVICE)) for c in found]


def try_all(
    region: Region, b: Buffers, want: torch.Tensor | None, made: list[tuple[str, Any]],
    tolerance: float = 4e-3, time_it: bool = True,
) -> tuple[float, str, str]:
    """(best µs, its name, remarks) of built candidates."""
    best, name, remarks = 1e9, "", []
    good = 0
    for label, future in made:
        if future is None:
            return best, "", f"refused: {label}"
        try:
            k = future.result()
            call = libraries.open_call(k.launch.library, k.launch.payload)
            if getattr(call, "replanned", False) or getattr(call, "rechosen", False):
                remarks.append(f"{label}: chosen anew at load")
            ws = torch.empty(max(call.workspace, 256), dtype=torch.uint8, device="cuda")
            pointers = [b.address(a) for a in k.args]
            b.result.zero_() if b.result.dtype is not torch.int8 else b.result.fill_(99)
            call.launch(pointers, ws.data_ptr(), torch.cuda.current_stream().cuda_stream)
            torch.cuda.synchronize()
            if want is not None:
                e = error(b, want)
                if not e <= tolerance:
                    remarks.append(f"{label}: WRONG by {e:.2g}")
                    continue
            good += 1
            if not time_it:
                best, name = 0.0, label
                continue
            t = bench(lambda s: call.launch(pointers, ws.data_ptr(), s))  # noqa: B023
            if t < best:
                best, name = t, label
        except TacticianError as e:
            remarks.append(f"{label}: {str(e)[:160]}")
        except RuntimeError as e:
            remarks.append(f"{label}: {str(e).splitlines()[0][:160]}")
    return best, name, f"{good}/{len(made)} good " + "; ".join(remarks[:3])


# --- parts -----------------------------------------------------------------------------------


def about() -> None:
    torch.zeros(1, device="cuda")
    t = time.time()
    keep(f"{torch.cuda.get_device_name()} libraries {libraries.versions()} torch "
         f"{torch.__version__}, loaded in {time.time() - t:.2f} s")
    d = api.device_properties()
    here = json.loads(d.text(2702))
    ours = json.loads(cudnn_call.describe_gpu(DEVICE.gpu))
    say(f"device properties: {json.dumps(here)}")
    keep("differs from what we describe: " + ", ".join(
        f"{k} {v!r} (we say {ours.get(k)!r})" for k, v in here.items() if ours.get(k) != v))
    t = time.time()
    api.handle()
    keep(f"cuDNN handle made in {time.time() - t:.2f} s")


def shapes() -> list[tuple[int, int, int, int, int, int, bool]]:
    out = [(8, 64, 224, 7, 2, 1, False)]
    c = 64
    for width, n, hw, s in ((64, 3, 56, 1), (128, 4, 56, 2), (256, 6, 28, 2), (512, 3, 14, 2)):
        o = hw // s
        out += [(c, width, hw, 1, 1, 1, False), (width, width, hw, 3, s, 1, False),
                (width, 4 * width, o, 1, 1, n, True), (c, 4 * width, hw, 1, s, 1, False),
                (4 * width, width, o, 1, 1, n - 1, False),
                (width, width, o, 3, 1, n - 1, False)]
        c = 4 * width
    merged: dict[Any, int] = {}
    for c, k, hw, r, s, n, res in out:
        merged[c, k, hw, r, s, res] = merged.get((c, k, hw, r, s, res), 0) + n
    return [(*key[:5], n, key[5]) for key, n in merged.items()]


def resnet(batch: int, seconds: float) -> None:
    """All convolutions of ResNet-50; the residual is added where the network does."""
    t0, total, rows, plain_total = time.time(), 0.0, [], 0.0
    jobs = []
    cudnn, lt = OURS["cudnn_conv"], OURS["cublaslt"]
    for c, k, hw, r, s, n, res in shapes():
        act = "" if r == 1 and k == 4 * c and not res else "relu"
        region = convolution(batch, c, k, hw, r, s, residual=res, act=act)
        made = options(region, cudnn, 6)
        also = options(region, lt, 4) if r == 1 and s == 1 else []
        bare = convolution(batch, c, k, hw, r, s) if res else None
        bare_made = options(bare, cudnn, 5) if bare is not None else []
        jobs.append((c, k, hw, r, s, n, res, act, region, made, also, bare, bare_made))
    say(f"batch {batch}: graphs made {time.time() - t0:.1f} s")
    for c, k, hw, r, s, n, res, act, region, made, also, bare, bare_made in jobs:
        if time.time() - t0 > seconds or left() < 5:
            keep(f"  batch {batch}: out of time")
            break
        b = Buffers(region)
        want = reference(b, act, wide=batch == 1)
        best, name, remarks = try_all(region, b, want, made, 8e-3)
        best2, name2, remarks2 = try_all(region, b, want, also, 8e-3) if also else (1e9, "", "")
        line = f"  {c:5}{k:5}{hw:4}{r:3}{s:3} x{n} {'res' if res else '   '} cudnn {best:7.1f} " \
               f"[{name}]"
        if also:
            line += f"  lt {best2:7.1f} [{name2}]"
        t = min(best, best2)
        p = t
        if bare is not None:
            bb = Buffers(bare)
            p, _, _ = try_all(bare, bb, None, bare_made)
            line += f"  without residual {p:7.1f}"
        total, plain_total = total + n * t, plain_total + n * p
        rows.append(line)
        say(line + "   " + remarks + (" | lt " + remarks2 if also else ""))
    keep(f"ResNet-50 batch {batch}: convolutions {total / 1e3:.3f} ms with residuals, "
         f"{plain_total / 1e3:.3f} ms without ({time.time() - t0:.0f} s)")


def products() -> None:
    lt = OURS["cublaslt"]
    for name, m in (("bert b1", 128), ("bert b32", 4096), ("vit b1", 197), ("vit b32", 6304)):
        parts = []
        for what, k, n, act, res in (("qkv", 768, 2304, "", False), ("proj", 768, 768, "", True),
                                     ("fc1", 768, 3072, "gelu_erf", False),
                                     ("fc2", 3072, 768, "", True)):
            if left() < 5:
                return
            region = product(m, k, n, act=act, residual=res)
            b = Buffers(region)
            best, label, remarks = try_all(region, b, reference(b, act), options(region, lt, 8))
            parts.append(f"{what} {best:.2f} [{label.split(' v')[0]}]")
            if "8/8 good" not in remarks or ";" in remarks:
                say(f"   {name} {what}: {remarks}")
        keep(f"{name}: " + "  ".join(parts) + " µs")
    for dt, n in (("f16", 8192), ("bf16", 4096), ("f32", 4096)):
        region = product(n, n, n, dt, bias=False)
        b = Buffers(region)
        want = reference(b, "", wide=dt == "f32")
        best, label, remarks = try_all(region, b, want, options(region, lt, 4), 8e-3)
        keep(f"{dt} {n}³: {best:.0f} µs {2 * n**3 / best / 1e6:.0f} TFLOP/s [{label}] {remarks}")


def attentions() -> None:
    fa = OURS["cudnn_attention"]
    for b_, h, s, d in ((1, 12, 128, 64), (32, 12, 128, 64), (8, 12, 384, 64), (1, 12, 197, 64),
                        (32, 12, 197, 64), (4, 16, 2048, 64), (4, 16, 2048, 128)):
        if left() < 5:
            return
        for flat in ((True, False) if s in (128, 197) else (True,)):
            region = attention(b_, h, s, d, flat=flat)
            b = Buffers(region)
            q, k, v = (b.value(x) for x in region.inputs)
            if flat:
                q, k, v = (x.view(b_, s, h, d).transpose(1, 2) for x in (q, k, v))
            want = F.scaled_dot_product_attention(q, k, v)
            if s < 512:
                want = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
            if flat:
                want = want.transpose(1, 2).reshape(b_, s, h * d)
            best, label, remarks = try_all(region, b, want, options(region, fa, 4))
            times = {}
            from torch.nn.attention import SDPBackend, sdpa_kernel

            for name in ("CUDNN_ATTENTION", "FLASH_ATTENTION"):
                try:
                    with sdpa_kernel(getattr(SDPBackend, name)):
                        times[name[:5]] = bench(
                            lambda s_: F.scaled_dot_product_attention(q, k, v))  # noqa: B023
                except RuntimeError as e:
                    times[name[:5]] = str(e)[:40]  # type: ignore[assignment]
            keep(f"attention {b_}x{h}x{s}x{d} {'flat' if flat else '4-D '}: {best:.2f} µs "
                 f"[{label}] {remarks}; torch {times}")


def masks() -> None:
    """Additive masks, and what becomes of rows that see no key."""
    fa = OURS["cudnn_attention"]
    cudnn_attention.RUNTIME_MASKS = True
    for shape, blind in (((8, 1, 1, 384), False), ((1, 1, 384, 384), False),
                         ((8, 1, 1, 384), True)):
        region = attention(8, 12, 384, 64, flat=False, mask=shape)
        b = Buffers(region)
        q, k, v, m = (b.value(x) for x in region.inputs)
        m.copy_(torch.where(torch.rand_like(m) < 0.3, -10000.0, 0.0))
        if blind:
            m[0] = float("-inf")
        want = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), m.double())
        if blind:
            want = want.nan_to_num(0.0)
        best, label, remarks = try_all(region, b, want, options(region, fa, 4))
        first = b.result[0, 0, 0, :3].tolist()
        keep(f"attention with mask {shape}{' a blind row' if blind else ''}: {best:.2f} µs "
             f"[{label}] {remarks}" + (f" first elements {first}" if blind else ""))


def varieties() -> None:
    """Numbers only: activations, types, groups, transposed, 1-D."""
    cudnn = OURS["cudnn_conv"]
    cases: list[tuple[str, dict[str, Any]]] = [
        (a, {"act": a}) for a in ("", "sigmoid", "tanh", "gelu_erf", "gelu_tanh", "hard_swish",
                                  "mish", "elu")
    ]
    cases += [("swish", {"act": "swish", "alpha": 1.0}), ("elu", {"act": "elu", "alpha": 1.0}),
              ("relu6", {"act": "clip", "beta": 6.0}),
              ("leaky", {"act": "leaky_relu", "alpha": 0.1}),
              ("bf16", {"dt": "bf16"}), ("bf16 res", {"dt": "bf16", "residual": True}),
              ("f32", {"dt": "f32"}), ("f32 res", {"dt": "f32", "residual": True}),
              ("groups", {"groups": 4}), ("depthwise", {"groups": 64}),
              ("depthwise relu6", {"groups": 64, "act": "clip", "beta": 6.0}),
              ("transposed", {"op": "deconvolution", "act": ""}),
              ("transposed relu", {"op": "deconvolution", "act": "relu"})]
    made = []
    for name, kw in cases:
        if name == "elu" and "alpha" not in kw:
            continue
        region = convolution(2, 64, 64, 28, 3, 1, **kw)
        made.append((name, kw, region, options(region, cudnn, 3)))
    for name, kw, region, built in made:
        b = Buffers(region)
        want = reference(b, kw.get("act", "relu"))
        tol = 2e-2 if "bf16" in name else 4e-3
        best, label, remarks = try_all(region, b, want, built, tol)
        keep(f"  {name}: {best:.1f} µs [{label}] {remarks}")


def stems() -> None:
    for batch in (1, 32, 128):
        parts = []
        for c in (3, 4, 8):
            region = convolution(batch, c, 64, 224, 7, 2)
            b = Buffers(region)
            want = reference(b, "relu", wide=False)
            best, _, remarks = try_all(region, b, want, options(region, OURS["cudnn_conv"], 6),
                                       8e-3)
            parts.append(f"C={c} {best:.1f} ({remarks[:40]})")
        keep(f"stem batch {batch}: " + "  ".join(parts))


def depthwise() -> None:
    for batch, c, hw, s in ((1, 96, 112, 2), (1, 144, 56, 1), (32, 144, 56, 1), (32, 576, 14, 1)):
        region = convolution(batch, c, c, hw, 3, s, groups=c, act="clip", beta=6.0)
        b = Buffers(region)
        want = reference(b, "clip", wide=False)
        best, _, remarks = try_all(region, b, want, options(region, OURS["cudnn_conv"], 3), 8e-3)
        keep(f"depthwise {batch}x{c}x{hw} s{s}: {best:.1f} µs {remarks[:80]}")


def int8() -> None:
    """i8 convolution: dequantized by channel, bias, ReLU, quantized again."""
    for batch, c, k, hw, r in ((2, 64, 64, 28, 3), (128, 256, 64, 56, 1), (128, 128, 128, 28, 3)):
        g = Graph()
        x = g.add_input("x", named("i8"), (batch, c, hw, hw))
        w = RNG.integers(-127, 128, (k, c, r, r)).astype(np.int8)
        acc = emit(g, "int_conv", [x, g.constant(w)], "anchor", pre=(r // 2,) * 2,
                   post=(r // 2,) * 2).output
        scale = (RNG.random(k, dtype=np.float32) + 0.5) * 1e-4
        bias = RNG.standard_normal(k, dtype=np.float32)
        y = emit(g, "dequantize", [acc, g.constant(scale)], "dq", axis=1).output
        y = emit(g, "binary", [y, g.constant(bias.reshape(1, k, 1, 1))], "bias", fn="add").output
        y = emit(g, "activation", [y], "relu", fn="relu").output
        q = emit(g, "quantize", [y, g.constant(np.float32(0.05))], "q").output
        one = g.constant(np.ones((k, k, 1, 1), np.int8))
        g.outputs = [emit(g, "int_conv", [q, one], "after").output]
        region = named_region(g, "anchor")
        b = Buffers(region)
        xs = b.value(region.anchor.inputs[0])  # type: ignore[union-attr, arg-type]
        f = torch.float64 if batch < 8 else torch.float32
        want = F.conv2d(xs.to(f), torch.from_numpy(w).to("cuda", f), padding=r // 2)
        sc, bi = (torch.from_numpy(a).cuda().view(1, k, 1, 1) for a in (scale, bias))
        want = ((want * sc + bi).relu() / 0.05).round().clamp(-128, 127)
        made = options(region, OURS["cudnn_conv"], 4)
        best, label, remarks = try_all(region, b, want, made, 1.01 / 127)
        keep(f"int8 conv {batch}x{c}x{k}x{hw} r{r}: {best:.1f} µs [{label}] {remarks}")


def elsewhere() -> None:
    """Plans made for a described GPU must load on the real one."""
    other = CudaDevice("H100")
    region = convolution(1, 64, 64, 56, 3, 1)
    b = Buffers(region)
    want = reference(b, "relu")
    for name in ("cudnn_conv", "cublaslt"):
        r = region if name == "cudnn_conv" else product(128, 768, 768, act="relu")
        if name == "cublaslt":
            b = Buffers(r)
            want = reference(b, "relu")
        tactic = OURS[name]
        k = tactic.build(r, tactic.candidates(r, other)[0], other)
        t = time.time()
        call = libraries.open_call(k.launch.library, k.launch.payload)
        took = time.time() - t
        ws = torch.empty(max(256, call.workspace), dtype=torch.uint8, device="cuda")
        pointers = [b.address(a) for a in k.args]
        call.launch(pointers, ws.data_ptr(), 0)
        torch.cuda.synchronize()
        t = time.time()
        for _ in range(200):
            call.launch(pointers, ws.data_ptr(), 0)
        host = (time.time() - t) / 200 * 1e6
        torch.cuda.synchronize()
        anew = getattr(call, "replanned", getattr(call, "rechosen", None))
        keep(f"{name} planned without the GPU: error {error(b, want):.2g}, loaded in "
             f"{took * 1e3:.1f} ms, chosen anew: {anew}, {host:.1f} µs of host time a call")


def main() -> None:
    parts: list[tuple[str, Any]] = [
        ("about", about), ("elsewhere", elsewhere), ("varieties", varieties),
        ("resnet 1", lambda: resnet(1, 60)), ("products", products), ("attention", attentions),
        ("masks", masks),
        ("int8", int8), ("resnet 32", lambda: resnet(32, 50)), ("stems", stems),
        ("depthwise", depthwise), ("resnet 128", lambda: resnet(128, 50)),
    ]
    for name, part in parts:
        if left() < 5:
            keep(f"{name}: no time left")
            continue
        t = time.time()
        try:
            with torch.inference_mode():
                part()
        except Exception:
            keep(f"{name}: FAILED " + " / ".join(traceback.format_exc().splitlines()[-5:])[-700:])
        say(f"--- {name}: {time.time() - t:.1f} s")
    say("\n===== summary")
    for line in LINES:
        say(line[:230])
    POOL.shutdown(wait=False, cancel_futures=True)


if __name__ == "__main__":
    main()
