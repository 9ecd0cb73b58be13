"""Generated kernels on a GPU: contractions of well-known networks, several tiles each.

Run with ``PYTHONPATH=. python benchmarks/gpu_kernels.py [seconds] [word …]`` (words choose groups:
resnet1 resnet32 resnet128 pairs bert vit gemm attention other). Each group runs in a process of its
own, so that a fault costs one group. Needs torch for buffers, references and
what is compared with. Every candidate is checked and timed inside CUDA graphs of 20 launches; the
table comes last: µs of the best tile, of torch (cuDNN, cuBLAS), the floor, and the tiles in order.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from tactician.ir.dtypes import dtype as named
from tactician.ir.graph import Graph, Value
from tactician.ops.registry import emit
from tactician.regions.chain import join_pairs
from tactician.regions.fuse import fuse
from tactician.regions.layout import assign_layouts
from tactician.regions.region import Region
from tactician.tactics.kernel import Kernel
from tactician.tactics.tactic import Tactic, tactics_for
from tactician.targets.cuda import load_tactics
from tactician.targets.cuda.bench import TimingDevice
from tactician.targets.cuda.code import Code
from tactician.targets.cuda.driver import open_gpu

START = time.time()
BUDGET = float(sys.argv[1]) if len(sys.argv) > 1 else 230.0
GROUPS = sys.argv[2:]
COPIES = 20
TORCH = {"f16": torch.half, "bf16": torch.bfloat16, "f32": torch.float32, "i8": torch.int8,
         "i32": torch.int32, "f8e4m3": torch.float8_e4m3fn, "b1": torch.bool}
RNG = np.random.default_rng(0)
PEAK = {"f16": 798e12, "f32": 400e12, "i8": 1590e12, "f8e4m3": 1590e12}
BANDWIDTH = 3.0e12
OWN = ("gemm", "gemv", "conv", "depthwise", "attention", "pair")
CHILD = "GPU_KERNELS_GROUP"
NAMES = ("gemm", "attention", "pairs", "resnet32", "bert", "vit", "resnet128", "resnet1", "other")

if CHILD in os.environ:
    load_tactics()
    torch.cuda.init()
    torch.zeros(1, device="cuda")
    DEVICE = TimingDevice(open_gpu(0))
    TACTICS: list[Tactic] = [t for t in tactics_for("cuda") if t.name in OWN]


@dataclass
class Case:
    """One region, and how torch does the same.

    Attributes:
        name: Shown in the table.
        region: What is built.
        torch: Given the operands by value, what torch computes (also timed).
        flops, moved: Operations, and bytes that have to move.
        most: Candidates of each tactic.
        built: (label, kernel, code to come).
    """

    name: str
    region: Region
    torch: Callable[[dict[Value, torch.Tensor]], torch.Tensor]
    flops: float
    moved: float
    most: int = 6
    kind: str = "f16"
    built: list[tuple[str, Kernel, Future[bytes]]] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    times: dict[str, float] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    peer: float = 0.0

    @property
    def floor(self) -> float:
        return max(self.flops / PEAK[self.kind], self.moved / BANDWIDTH) * 1e6


# --- regions ---------------------------------------------------------------------------------


def array(dt: str, *shape: int, scale: float = 1.0) -> Any:
    return (RNG.standard_normal(shape, dtype=np.float32) * scale).astype(named(dt).np)


def wants(region: Region) -> bool:
    return any(t.wants_channels_last(region, DEVICE) for t in TACTICS)


def anchored(g: Graph) -> Region:
    """The region around the node named ``anchor``."""
    g.toposort()
    regions = assign_layouts(g, fuse(g), wants, lambda r: True, in_place_bits=16).regions
    return next(r for r in regions if r.anchor is not None and r.anchor.name == "anchor")


def bytes_of(region: Region) -> float:
    return float(sum(int(v.numel) * v.dtype.size for v in {*region.inputs, *region.outputs}))


def convolution(n: int, c: int, k: int, hw: int, r: int, s: int, groups: int = 1,
                residual: bool = False, most: int = 6) -> Case:
    g, p = Graph(), r // 2
    x = g.add_input("x", "f16", (n, c, hw, hw))
    w = g.constant(array("f16", k, c // groups, r, r, scale=(c // groups * r * r) ** -0.5))
    b = g.constant(array("f16", k))
    attrs = {"stride": (s, s), "pre": (p, p), "post": (p, p), "groups": groups}
    y = emit(g, "convolution", [x, w, b], "anchor", **attrs).output
    if residual:  # from a convolution, so that it is stored channels-last
        one = g.constant(array("f16", k, k, 1, 1))
        z = emit(g, "convolution", [g.add_input("z", "f16", y.dims), one], "other").output
        y = emit(g, "binary", [y, z], "add", fn="add").output
    y = emit(g, "activation", [y], "act", fn="relu").output
    last = g.constant(array("f16", k, k, 1, 1))
    g.outputs = [emit(g, "convolution", [y, last], "after").output]
    region = anchored(g)

    def peer(t: dict[Value, torch.Tensor]) -> torch.Tensor:
        out = F.conv2d(t[x], t[w], t[b], s, p, 1, groups)
        return torch.relu_(out.add_(t[z]) if residual else out)

    out = int(y.numel)
    label = f"conv {c}->{k} {r}x{r}/{s} {hw} b{n}" + (f" g{groups}" if groups > 1 else "")
    label += " +res" if residual else ""
    return Case(label, region, peer, 2.0 * out * (c // groups) * r * r, bytes_of(region), most)


def product(m: int, k: int, n: int, act: str = "", residual: bool = False, dt: str = "f16",
            const: bool = True, bias: bool = True, most: int = 6) -> Case:
    g = Graph()
    x = g.add_input("x", dt, (m, k))
    if const:
        w = g.constant(array(dt, k, n, scale=k**-0.5))
    else:
        w = g.add_input("w", dt, (k, n))
    y = emit(g, "matmul", [x, w], "anchor").output
    b = r = None
    if bias:
        b = g.constant(array(dt, n))
        y = emit(g, "binary", [y, b], "bias", fn="add").output
    if residual:
        r = g.add_input("r", dt, (m, n))
        y = emit(g, "binary", [y, r], "add", fn="add").output
    if act:
        y = emit(g, "activation", [y], "act", fn=act).output
    g.outputs = [y]
    region = anchored(g)

    def peer(t: dict[Value, torch.Tensor]) -> torch.Tensor:
        out = torch.addmm(t[b], t[x], t[w]) if b is not None else t[x] @ t[w]
        if r is not None:
            out = out + t[r]
        return F.gelu(out) if act == "gelu_erf" else torch.relu(out) if act == "relu" else out

    label = f"gemm {m}x{n}x{k} {dt}" + (f" {act}" if act else "") + (" +res" if residual else "")
    return Case(label, region, peer, 2.0 * m * n * k, bytes_of(region), most, dt)


def attention(b: int, h: int, s: int, d: int, flat: bool = True, causal: bool = False,
              keys: int = 0, kv: int = 0, most: int = 8) -> Case:
    g, kv, keys = Graph(), kv or h, keys or s
    shapes = [(b, h, s, d), (b, kv, keys, d), (b, kv, keys, d)]
    if flat:
        shapes = [(i, n, j * e) for i, j, n, e in shapes]
    q, k, v = (g.add_input(n, "f16", shape) for n, shape in zip("qkv", shapes, strict=True))
    heads = {"q_heads": h, "kv_heads": kv} if flat else {}
    g.outputs = [emit(g, "attention", [q, k, v], "anchor", causal=causal, **heads).output]
    region = anchored(g)

    def peer(t: dict[Value, torch.Tensor]) -> torch.Tensor:
        parts = [t[x] for x in (q, k, v)]
        if flat:
            parts = [x.view(*x.shape[:2], -1, d).transpose(1, 2) for x in parts]
        with torch.nn.attention.sdpa_kernel(
            [torch.nn.attention.SDPBackend.CUDNN_ATTENTION,
             torch.nn.attention.SDPBackend.FLASH_ATTENTION], set_priority=True,
        ):
            y = F.scaled_dot_product_attention(*parts, is_causal=causal, enable_gqa=kv != h)
        return y.transpose(1, 2).reshape(b, s, h * d) if flat else y

    flops = 4.0 * b * h * s * keys * d * (0.5 if causal else 1.0)
    label = f"attention b{b} h{h}" + (f"/{kv}" if kv != h else "") + f" s{s}"
    label += (f"x{keys}" if keys != s else "") + f" d{d}" + (" causal" if causal else "")
    return Case(label, region, peer, flops, bytes_of(region), most)


LAYERS = [  # C, K, H=W, window, stride, residual
    (3, 64, 224, 7, 2, False), (64, 64, 56, 1, 1, False), (64, 64, 56, 3, 1, False),
    (64, 256, 56, 1, 1, True), (256, 64, 56, 1, 1, False), (256, 128, 56, 1, 1, False),
    (128, 128, 56, 3, 2, False), (128, 512, 28, 1, 1, True), (256, 512, 56, 1, 2, False),
    (512, 128, 28, 1, 1, False), (128, 128, 28, 3, 1, False), (512, 256, 28, 1, 1, False),
    (256, 256, 28, 3, 2, False), (256, 1024, 14, 1, 1, True), (1024, 256, 14, 1, 1, False),
    (256, 256, 14, 3, 1, False), (1024, 512, 14, 1, 1, False), (512, 512, 14, 3, 2, False),
    (512, 2048, 7, 1, 1, True), (2048, 512, 7, 1, 1, False), (512, 512, 7, 3, 1, False),
]


def resnet(n: int, most: int = 6) -> list[Case]:
    return [convolution(n, c, k, hw, r, s, residual=res, most=most)
            for c, k, hw, r, s, res in LAYERS]


def transformer(m: int) -> list[Case]:
    return [product(m, 768, 2304), product(m, 768, 768, residual=True),
            product(m, 768, 3072, "gelu_erf"), product(m, 3072, 768, residual=True)]


def pair(n: int, narrow: int, wide: int, out: int, hw: int, head: bool = False) -> list[Case]:
    """The end of a bottleneck and the start of the next, in one kernel.

    Args:
        head: The convolution of windows before them, too.
    """
    g = Graph()
    x, r = (g.add_input(s, "f16", (n, c, hw, hw)) for s, c in (("x", narrow), ("r", wide)))

    def conv(v: Value, k: int, add: Value | None, name: str, r: int = 1) -> Value:
        c, p = int(v.dims[1]), (r // 2, r // 2)
        w = g.constant(array("f16", k, c, r, r, scale=(c * r * r) ** -0.5))
        y = emit(g, "convolution", [v, w, g.constant(array("f16", k))], name, pre=p, post=p).output
        if add is not None:
            y = emit(g, "binary", [y, add], fn="add").output
        return emit(g, "activation", [y], fn="relu").output

    start, rest = conv(x, narrow, None, "start"), conv(r, wide, None, "rest")
    middle = conv(start, narrow, None, "head", 3) if head else start
    y = conv(middle, wide, rest, "first")
    z = conv(y, out, None, "second")
    g.outputs = [conv(z, wide, y, "after")]
    g.toposort()
    regions = assign_layouts(g, fuse(g), wants, lambda r: True, in_place_bits=16)
    names = ("first", "second")
    both = join_pairs(
        regions, lambda a, b: a.anchor.name == names[0] and b.anchor.name == names[1],
        lambda a, b: a.anchor.name == "head",
    )
    region = next(r for r in both.regions if r.parts)
    *before, first, second = (p.anchor for p in region.leaves())

    def peer(t: dict[Value, torch.Tensor]) -> torch.Tensor:
        (_, w1, b1), (_, w2, b2) = first.inputs, second.inputs
        here = t[start]
        for node in before:
            here = torch.relu_(F.conv2d(here, t[node.inputs[1]], t[node.inputs[2]], padding=1))
        mid = torch.relu_(F.conv2d(here, t[w1], t[b1]).add_(t[rest]))
        return torch.relu_(F.conv2d(mid, t[w2], t[b2]))

    flops = 2.0 * n * hw * hw * (wide * (narrow + out) + 9 * narrow * narrow * head)
    label = f"{'block' if head else 'pair'} {narrow}->{wide}+res->{out} {hw} b{n}"
    return [Case(label, region, peer, flops, bytes_of(region), 6)]


def group(name: str) -> list[Case]:
    """The cases of a group."""
    if name.startswith("resnet"):
        n = int(name[6:])
        return [*resnet(n, 6 if n < 128 else 4), *([product(1, 2048, 1000)] if n == 1 else [])]
    if name == "pairs":
        sizes = [(64, 256, 64, 56), (64, 256, 128, 56), (128, 512, 128, 28), (256, 1024, 256, 14)]
        return [c for n in (128, 32, 1) for head in (True, False) for s in sizes
                for c in pair(n, *s, head)]
    if name == "gemm":
        return [product(8192, 8192, 8192, const=False, bias=False, most=8),
                product(4096, 4096, 4096, const=False, bias=False, most=6)]
    if name == "attention":
        return [attention(4, 16, 2048, 64, False), attention(4, 16, 2048, 128, False),
                attention(4, 16, 2048, 128, False, causal=True),
                attention(1, 32, 1, 128, False, keys=4096, kv=8)]
    if name in ("bert", "vit"):
        rows = 128 if name == "bert" else 197
        return [*transformer(rows), attention(1, 12, rows, 64), *transformer(32 * rows),
                attention(32, 12, rows, 64)]
    return [convolution(32, 144, 144, 56, 3, 1, 144), convolution(1, 144, 144, 56, 3, 1, 144),
            convolution(32, 384, 384, 14, 3, 1, 384), product(4096, 4096, 4096, dt="f32"),
            product(1024, 768, 768, dt="f32")]


# --- running ---------------------------------------------------------------------------------


def start(case: Case) -> None:
    """Begins to compile a case's candidates."""
    parts = case.region.parts
    for tactic in TACTICS:
        why = tactic.refuse(case.region, DEVICE)
        if parts:
            why = None if tactic.name == "pair" else "one layer"
        if why is not None:
            case.refused.append(f"{tactic.name}: {why}")
            continue
        for c in list(tactic.candidates(case.region, DEVICE))[: case.most]:
            try:
                kernel = tactic.build(case.region, c, DEVICE)
            except Exception as e:
                case.wrong.append(f"{tactic.name}({c}): {type(e).__name__}: {e}")
                continue
            label = str(c) if tactic.name in ("conv", "gemm", "attention") else f"{tactic.name} {c}"
            case.built.append((label, kernel, DEVICE.start(kernel)[1]))
    if case.built:
        case.refused.clear()


def tensor(v: Value) -> torch.Tensor:
    """An operand in its logical shape, stored as the value is."""
    logical = v.meta.get("logical", v)
    shape = [int(d) for d in logical.dims]
    if logical.const is not None:
        t = torch.from_numpy(np.ascontiguousarray(logical.const).view(np.int16)
                             if logical.dtype.name == "f16" else np.array(logical.const)).cuda()
        t = t.view(TORCH[logical.dtype.name])
    else:
        t = torch.randn(shape, device="cuda").to(TORCH[logical.dtype.name])
    if "perm" in v.meta:
        back = np.argsort(v.meta["perm"]).tolist()
        t = t.permute(*v.meta["perm"]).contiguous().permute(*back)
    return t


def operands(region: Region) -> dict[Value, torch.Tensor]:
    """Tensors by value as stored, and by logical value."""
    found: dict[Value, torch.Tensor] = {}
    for v in (*region.inputs, *region.outputs):
        found[v] = tensor(v)
        found.setdefault(v.meta.get("logical", v), found[v])
    return found


def stopwatch(launch: Callable[[int], None], copies: int = COPIES) -> float:
    """Microseconds of a launch inside a CUDA graph."""
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
            a, b = (torch.cuda.Event(enable_timing=True) for _ in "ab")
            a.record()
            graph.replay()
            b.record()
            b.synchronize()
            times.append(a.elapsed_time(b) / copies)
    return sorted(times)[1] * 1e3


def measure(case: Case, label: str, kernel: Kernel, code: bytes, ts: dict[Value, torch.Tensor],
            want: torch.Tensor) -> None:
    launch = kernel.launch
    assert launch is not None
    loaded = DEVICE.driver.load(Code.unpack(code))
    packed = [torch.from_numpy(np.ascontiguousarray(a).view(np.uint8).reshape(-1)).cuda()
              for a in kernel.args if isinstance(a, np.ndarray)]
    rest = iter(packed)
    pointers = [ts[a].data_ptr() if isinstance(a, Value) else next(rest).data_ptr()
                for a in kernel.args]
    blocks = int(np.prod([int(d) for d in launch.grid]))
    scratch = torch.full((int(launch.workspace) + 16,), 255, dtype=torch.uint8, device="cuda")
    counters = torch.zeros(int(launch.counters) + 4, dtype=torch.int32, device="cuda")
    more = torch.empty(blocks * loaded.code.global_scratch + 16, dtype=torch.uint8, device="cuda")
    extra = np.array([scratch.data_ptr(), counters.data_ptr(), more.data_ptr(), 0], np.int64)
    call = DEVICE.driver.prepare(loaded, np.array(pointers, np.int64), np.zeros(0, np.int64), extra)
    grid = (*(int(d) for d in launch.grid), 1, 1)[:3]
    out = ts[case.region.outputs[-1]]
    out.fill_(float("nan"))
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    for _ in range(2):  # counters have to be as they were
        call.launch(grid, stream.cuda_stream)
    torch.cuda.synchronize()
    error = float((out.float() - want).abs().max() / want.abs().max().clamp_min(1e-6))
    if not error < 1e-2:
        case.wrong.append(f"{label}: error {error:.3g}")
        return
    flat = case.floor > 300
    case.times[label] = stopwatch(lambda s: call.launch(grid, s), 4 if flat else COPIES)
    del packed, scratch, counters, more


def run(case: Case) -> None:
    ts = operands(case.region)
    logical = {v.meta.get("logical", v): t for v, t in ts.items()}
    want = case.torch(logical).float()
    for label, kernel, code in case.built:
        try:
            measure(case, label, kernel, code.result(timeout=120), ts, want)
        except Exception as e:
            text = f"{type(e).__name__}: {e}".replace("\n", " ")[:160]
            case.wrong.append(f"{label}: {text}")
            if "ILLEGAL" in text or "MISALIGNED" in text:
                raise
    try:
        case.peer = stopwatch(lambda s: case.torch(logical), 4 if case.floor > 300 else 10)
    except Exception as e:
        case.wrong.append(f"torch: {type(e).__name__}: {str(e)[:80]}")


def row(case: Case) -> str:
    order = sorted(case.times.items(), key=lambda kv: kv[1])
    best = f"{order[0][1]:8.2f}" if order else "    none"
    tiles = " | ".join(f"{n} {t:.1f}" for n, t in order[:4])
    return f"{case.name:34s} {case.floor:8.2f} {case.peer:8.2f} {best}  {tiles}"


def child(name: str) -> None:
    """Runs one group; the rows come last, after a mark."""
    torch.backends.cudnn.benchmark = True
    cases, lost = group(name), ""
    for case in cases:
        start(case)
    for case in cases:
        if time.time() - START > BUDGET or lost:
            break
        try:
            run(case)
        except Exception as e:
            traceback.print_exc()
            lost = f"context lost: {e}"[:200]
        print(row(case), *(f"\n    ! {w}" for w in (*case.refused, *case.wrong)), flush=True)
        if not lost:
            torch.cuda.empty_cache()
    done = [c for c in cases if c.times]
    ours = sum(min(c.times.values()) for c in done)
    floor, peer = sum(c.floor for c in done), sum(c.peer for c in done)
    print(f"=== {name}: floor {floor:.1f}, torch {peer:.1f}, ours {ours:.1f}; "
          f"{time.time() - START:.0f} s")
    for case in done:
        print(row(case))
    bad = [f"{c.name}: {w}" for c in cases for w in (*c.refused, *c.wrong)]
    for b in [*bad[:10], *([lost] if lost else [])]:
        print(f"  ! {b[:200]}")


def main() -> None:
    """Runs the groups one after the other and prints their tables."""
    tables = []
    for name in GROUPS or NAMES:
        left = BUDGET - (time.time() - START)
        if left < 10:
            print(f"no time left for {name}")
            continue
        command = [sys.executable, __file__, str(left)]
        try:
            done = subprocess.run(command, env={**os.environ, CHILD: name}, text=True,
                                  stdout=subprocess.PIPE, timeout=left + 15)
            text = done.stdout
        except subprocess.TimeoutExpired as e:
            text = (e.stdout or b"").decode() + f"\n=== {name}: out of time"
        head, _, table = text.rpartition("\n===")
        print(head, flush=True)
        tables.append("===" + table)
    print("\nµs: floor, torch, best of ours, tiles")
    print("\n".join(tables))


if __name__ == "__main__":
    child(os.environ[CHILD]) if CHILD in os.environ else main()
