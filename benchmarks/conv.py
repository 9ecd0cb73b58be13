"""Time convolutions layer by layer: direct, as a matrix product, Winograd and onnxruntime.

    python benchmarks/conv.py [LAYER …] [--threads N] [--rounds N] [--json FILE]

Layers are those of ResNet-50, and VGG-16's 3x3 ones; batch 1, bias and ReLU. LAYER picks those
whose name contains it. Our kernels run alone on channels-last tensors; onnxruntime runs a model of
the one layer, conversion between layouts included where it does that. Contenders take turns; the
best time of all rounds counts. GFLOP/s are of the direct method, so that Winograd's may exceed
the peak, which is measured in the same run. Errors are to direct convolution's result, relative
to its range.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import peak

from tactician.ir.graph import Graph, Value
from tactician.ops import emit
from tactician.regions.fuse import fuse
from tactician.regions.layout import assign_layouts
from tactician.regions.region import Region
from tactician.tactics.kernel import Kernel
from tactician.tactics.operands import aligned_copy, aligned_zeros, concrete
from tactician.targets.cpu.conv_direct import DirectConvolution
from tactician.targets.cpu.conv_product import ProductConvolution
from tactician.targets.cpu.device import CpuDevice
from tactician.targets.cpu.winograd import WinogradConvolution

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Layer:
    """A convolution of ``c`` to ``k`` channels on ``size`` x ``size`` pixels, padded by half of its
    window."""

    name: str
    c: int
    k: int
    size: int
    window: int = 3
    stride: int = 1

    @property
    def pad(self) -> int:
        return self.window // 2

    @property
    def out(self) -> int:
        return (self.size + 2 * self.pad - self.window) // self.stride + 1

    @property
    def gflop(self) -> float:
        return 2e-9 * self.window**2 * self.c * self.k * self.out**2


def resnet50() -> list[Layer]:
    """The different convolutions of ResNet-50."""
    layers, c, size = [Layer("resnet50 first", 3, 64, 224, 7, 2)], 64, 56
    for stage, (width, stride) in enumerate(((64, 1), (128, 2), (256, 2), (512, 2)), 1):
        name, out = f"resnet50 stage {stage}", size // stride
        layers += [
            Layer(f"{name} in", c, width, size, 1),
            Layer(f"{name} shortcut", c, 4 * width, size, 1, stride),
            Layer(f"{name} expand", width, 4 * width, out, 1),
            Layer(f"{name} reduce", 4 * width, width, out, 1),
            Layer(f"{name} 3x3", width, width, out),
        ]
        if stride > 1:
            layers.append(Layer(f"{name} 3x3/2", width, width, size, 3, stride))
        c, size = 4 * width, out
    return layers


LAYERS = [
    *resnet50(),
    Layer("vgg16 1_2", 64, 64, 224),
    Layer("vgg16 2_1", 64, 128, 112),
    Layer("vgg16 2_2", 128, 128, 112),
    Layer("vgg16 3_1", 128, 256, 56),
    Layer("vgg16 3_2", 256, 256, 56),
    Layer("vgg16 4_1", 256, 512, 28),
    Layer("vgg16 4_2", 512, 512, 28),
    Layer("vgg16 5", 512, 512, 14),
]


class Operands:
    """A layer's input, weights and bias."""

    def __init__(self, layer: Layer):
        rng = np.random.default_rng(0)
        self.layer = layer
        shape = (1, layer.c, layer.size, layer.size)
        window = (layer.window, layer.window)
        scale = np.float32(1 / (layer.window * np.sqrt(layer.c)))
        self.x = rng.standard_normal(shape, dtype=np.float32)
        self.w = rng.standard_normal((layer.k, layer.c, *window), dtype=np.float32) * scale
        self.b = rng.standard_normal(layer.k, dtype=np.float32)

    def region(self) -> Region:
        """The layer as a region whose input and output are channels-last."""
        g = Graph("layer")
        x = g.add_input("x", "f32", self.x.shape)
        inputs = [x, g.constant(self.w), g.constant(self.b)]
        pad, stride = (self.layer.pad,) * 2, (self.layer.stride,) * 2
        y = emit(g, "convolution", inputs, "conv", pre=pad, post=pad, stride=stride).output
        y = emit(g, "activation", [y], "relu", fn="relu").output
        # a reader that wants it channels-last too
        one = g.constant(np.ones((16, self.layer.k, 1, 1), np.float32))
        g.outputs = [emit(g, "convolution", [y, one], "next").output]
        g.toposort()
        fusion = assign_layouts(g, fuse(g), lambda r: True, lambda r: True)
        return next(r for r in fusion.regions if any(n.name == "conv" for n in r.nodes))

    def onnx(self) -> bytes:
        """The layer as a model."""
        from onnx import TensorProto, helper, numpy_helper

        out, pad = self.layer.out, self.layer.pad
        y = [1, self.layer.k, out, out]
        strides = [self.layer.stride] * 2
        nodes = [
            helper.make_node("Conv", ["x", "w", "b"], ["c"], pads=[pad] * 4, strides=strides),
            helper.make_node("Relu", ["c"], ["y"]),
        ]
        graph = helper.make_graph(
            nodes, "layer",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, self.x.shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, y)],
            [numpy_helper.from_array(a, n) for n, a in (("w", self.w), ("b", self.b))],
        )  # fmt: skip
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
        model.ir_version = 8
        return bytes(model.SerializeToString())


class Ours:
    """A candidate's kernel, ready to be timed."""

    def __init__(self, device: CpuDevice, region: Region, kernel: Kernel, x: Array):
        self.device, self.kernel = device, kernel
        last = aligned_copy(x.transpose(0, 2, 3, 1))
        (result,) = region.outputs
        self.out = aligned_zeros(concrete(result, {}), np.float32)
        inputs = {last.shape: last, x.shape: aligned_copy(x)}
        self.call = [
            aligned_copy(a) if not isinstance(a, Value)
            else self.out if a is result else inputs[concrete(a, {})]
            for a in kernel.args
        ]

    def seconds(self, turn: float) -> float:
        return self.device.time_kernel(self.kernel, self.call, {}, turn, warm=True)


def onnxruntime_seconds(operands: Operands, threads: int) -> Callable[[float], float]:
    """Times one turn of onnxruntime: the best call."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = ort.InferenceSession(operands.onnx(), options, ["CPUExecutionProvider"])
    binding = session.io_binding()
    binding.bind_cpu_input("x", operands.x)
    binding.bind_output("y", "cpu")

    def turn(seconds: float) -> float:
        best, end = float("inf"), time.perf_counter() + seconds
        while best == float("inf") or time.perf_counter() < end:
            start = time.perf_counter()
            session.run_with_iobinding(binding)
            best = min(best, time.perf_counter() - start)
        return best

    return turn


def measure(layer: Layer, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Contender -> microseconds, GFLOP/s and (for ours) the error."""
    device = CpuDevice(threads=args.threads)
    operands = Operands(layer)
    region = operands.region()
    ours: dict[str, Ours] = {}
    for tactic in (DirectConvolution(), ProductConvolution(), WinogradConvolution()):
        if tactic.refuse(region, device) is not None:
            continue
        for candidate in list(tactic.candidates(region, device))[: args.most]:
            kernel = tactic.build(region, candidate, device)
            ours[f"{tactic.name} {candidate}"] = Ours(device, region, kernel, operands.x)
    turns: dict[str, Callable[[float], float]] = {n: k.seconds for n, k in ours.items()}
    if not args.alone:
        turns["onnxruntime"] = onnxruntime_seconds(operands, args.threads)
    best = dict.fromkeys(turns, float("inf"))
    for _ in range(args.rounds):
        for name, turn in turns.items():
            best[name] = min(best[name], turn(args.seconds))
            time.sleep(0.005)  # threads of this turn stop spinning
    want = next(iter(ours.values())).out
    found = {}
    for name, seconds in best.items():
        found[name] = {"us": round(seconds * 1e6, 1), "gflops": round(layer.gflop / seconds, 1)}
        if name in ours:
            error = np.abs(ours[name].out - want).max() / np.abs(want).max()
            found[name]["error"] = float(f"{error:.1e}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("layers", nargs="*", help="parts of names")
    parser.add_argument("--threads", "-t", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--most", type=int, default=2, help="candidates of a tactic")
    parser.add_argument("--seconds", type=float, default=0.05, help="length of a turn")
    parser.add_argument("--alone", action="store_true", help="leave onnxruntime out")
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    args = parser.parse_args()
    most = peak.peak_gflops() * args.threads
    print(f"peak {most:.1f} GFLOP/s on {args.threads} threads")
    print(f"{'layer':24s} {'':34s} {'µs':>10s} {'GFLOP/s':>8s} {'of peak':>8s} {'error':>8s}")
    results = {}
    for layer in LAYERS:
        if args.layers and not any(part in layer.name for part in args.layers):
            continue
        found = results[layer.name] = measure(layer, args)
        for name, r in found.items():
            share = f"{r['gflops'] / most:8.0%}"
            tail = f"{r['error']:8.0e}" if "error" in r else ""
            print(f"{layer.name:24s} {name:34s} {r['us']:10,.1f} {r['gflops']:8.1f} {share} {tail}")
    if args.json:
        about = {"peak_gflops": most, "threads": args.threads, "cpu": CpuDevice().isa.summary()}
        args.json.write_text(json.dumps({"machine": about, "layers": results}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
