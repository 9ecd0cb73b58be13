"""Engines for shapes that vary beside engines for one shape, at the profile's ``opt``.

    python benchmarks/dynamic.py [--threads 2] [--level 3] [--timing-cache FILE] [--steps] [name …]

Both kinds of engine of a network take turns in one process, on the same inputs; their results are
compared first. The ratio is the static engine's time over the dynamic one's, so 1.0 is as fast.
``--steps`` also lists the layers whose kernels differ.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]
import zoo  # noqa: E402
from bench import find_models  # noqa: E402

import tactician  # noqa: E402
from tactician.cli.measure import alternate, engine_call  # noqa: E402

Shape = tuple[int, ...]
Made = tuple[onnx.ModelProto, dict[str, tuple[Shape, Shape, Shape]], Any]
"""A model whose inputs have names for sizes, ranges (min, opt, max), and the inputs' type."""


def _named(model: onnx.ModelProto, names: Mapping[int, str]) -> onnx.ModelProto:
    """Gives dimensions of the first input names; the same model otherwise."""
    dims = model.graph.input[0].type.tensor_type.shape.dim
    for axis, name in names.items():
        dims[axis].dim_param = name
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    return model


def _fixed(model: onnx.ModelProto, shape: Shape) -> onnx.ModelProto:
    """A copy whose first input has a shape without names."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for d, n in zip(copy.graph.input[0].type.tensor_type.shape.dim, shape, strict=True):
        d.dim_value = n
    return copy


def resnet50() -> Made:
    shape = (3, 224, 224)
    return _named(zoo.resnet50(), {0: "n"}), {"x": ((1, *shape), (1, *shape), (8, *shape))}, "f4"


def resnet50_batch4() -> Made:
    shape = (3, 224, 224)
    return _named(zoo.resnet50(), {0: "n"}), {"x": ((1, *shape), (4, *shape), (8, *shape))}, "f4"


def mobilenet_v2() -> Made:
    shape = (3, 224, 224)
    ranges = {"x": ((1, *shape), (1, *shape), (8, *shape))}
    return _named(zoo.mobilenet_v2(), {0: "n"}), ranges, "f4"


def lstm() -> Made:
    model = _named(zoo.lstm(), {0: "time", 1: "n"})
    return model, {"x": ((1, 1, 256), (64, 1, 256), (256, 8, 256))}, "f4"


def bert_base() -> Made:
    """As in zoo.py, but batch and length come from the input: positions are cut to its length."""
    n = zoo.Net("bert_base", ("n", "length"), TensorProto.INT64)
    table = n.const(n.rng.standard_normal((30522, 768), dtype=np.float32) * np.float32(0.02))
    length = n.op("Slice", n.op("Shape", "x"), n.ints(1), n.ints(2), n.ints(0))
    places = n.op("Slice", n.weight(1, 512, 768, fan=2500), n.ints(0), length, n.ints(1))
    x = n.op("Add", n.op("Gather", table, "x"), places)
    x = zoo._encoder(n, n.norm(x, 768), 12, 0, 0, pre_norm=False)  # 0 in a shape: as it was
    return n.model(x), {"x": ((1, 8), (1, 128), (4, 512))}, "i8"


def mnist_8() -> Made:
    path = next(p for p in find_models() if p.stem == "mnist_8")
    model = onnx.load(path)
    for w in model.graph.initializer:
        if w.data_type == TensorProto.INT64 and list(numpy_helper.to_array(w)) == [1, 256]:
            w.CopyFrom(numpy_helper.from_array(np.array([-1, 256], np.int64), w.name))
    name = model.graph.input[0].name
    shape = (1, 28, 28)
    return _named(model, {0: "n"}), {name: ((1, *shape), (1, *shape), (16, *shape))}, "f4"


NETWORKS: dict[str, Callable[[], Made]] = {
    f.__name__: f
    for f in (mnist_8, mobilenet_v2, resnet50, resnet50_batch4, lstm, bert_base)
}


def feeds_of(ranges: Mapping[str, tuple[Shape, Shape, Shape]], kind: str) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    if kind.startswith("i"):
        return {n: rng.integers(0, 30000, opt, kind) for n, (_, opt, _) in ranges.items()}
    return {n: rng.standard_normal(opt).astype(kind) for n, (_, opt, _) in ranges.items()}


def kernels(engine: Any) -> list[str]:
    """What runs at ``opt``, step by step."""
    out = []
    for step in engine.cuda_engine._program.steps:
        run = step.special or step
        work = f"{run.info.get('tactic', step.kind)}({run.info.get('candidate', '')})"
        general = any(not isinstance(d, int) for d in (*run.dims, run.work))
        out.append(f"{step.name[:60]}: {work}{' for any size' if general else ''}")
    return out


def show_kernels(static: Any, dynamic: Any) -> None:
    a, b = kernels(static), kernels(dynamic)
    print(f"  {len(a)} and {len(b)} steps")
    for line in difflib.unified_diff(a, b, "static", "dynamic", n=0, lineterm=""):
        print("   ", line)


def measure(name: str, args: argparse.Namespace) -> float:
    """Prints a line for a network; returns the ratio of the best times."""
    model, ranges, kind = NETWORKS[name]()
    feeds = feeds_of(ranges, kind)
    common = {"level": args.level, "threads": args.threads, "device": "cpu",
              "timing_cache": args.timing_cache}
    (_, opt, _), = ranges.values()
    engines = {
        "static": tactician.build(_fixed(model, opt).SerializeToString(), **common),
        "dynamic": tactician.build(model.SerializeToString(), shapes=ranges, **common),
    }
    results = [list(e(feeds).values()) for e in engines.values()]
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * max(1e-6, float(np.ptp(a))))
    if args.steps:
        show_kernels(*engines.values())
    calls = {k: engine_call(e.cuda_engine, feeds) for k, e in engines.items()}
    times = alternate(calls, args.rounds, args.seconds)
    static, dynamic = times["static"], times["dynamic"]
    ratio = static.best / dynamic.best
    print(f"{name:18s} {static.best / 1e3:10.3f} {dynamic.best / 1e3:10.3f} {ratio:7.3f} "
          f"{static.median / dynamic.median:7.3f}", flush=True)
    return ratio


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--level", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=0.3, help="of a turn")
    parser.add_argument("--timing-cache", default=None)
    parser.add_argument("--steps", action="store_true", help="list kernels that differ")
    args = parser.parse_args()
    print(f"{'network':18s} {'static ms':>10s} {'dynamic ms':>10s} {'best':>7s} {'median':>7s}")
    ratios = [measure(name, args) for name in args.networks]
    return 0 if all(r >= 0.95 for r in ratios) else 1


if __name__ == "__main__":
    raise SystemExit(main())
