"""Small Caffe nets as text and bytes, and ways to run them."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import tactician as trt
from tactician.ops.interpreter import run_graph
from tactician.parsers.caffe.net import NetImport
from tactician.parsers.caffe.text import read_prototxt
from tactician.parsers.caffe.weights import write_caffemodel

Array = np.ndarray[Any, Any]


class Quiet(trt.ILogger):
    """Keeps messages."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[tuple[Any, str]] = []

    def log(self, severity: Any, msg: str) -> None:
        self.messages.append((severity, msg))


def rng_of(*key: object) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(repr(key).encode()))


def made_up(key: object, shape: Sequence[int], low: float = -1.0, high: float = 1.0) -> Array:
    return rng_of(key, tuple(shape)).uniform(low, high, shape).astype(np.float32)


def inputs_text(shapes: Mapping[str, Sequence[int]]) -> str:
    return "\n".join(
        f'layer {{ name: "{n}" type: "Input" top: "{n}" input_param {{ shape {{ '
        + " ".join(f"dim: {d}" for d in s) + " } } }" for n, s in shapes.items())


def layer_text(name: str, type: str, bottoms: Sequence[str], tops: Sequence[str],
               params: str = "") -> str:
    ports = " ".join([f'bottom: "{b}"' for b in bottoms] + [f'top: "{t}"' for t in tops])
    return f'layer {{ name: "{name}" type: "{type}" {ports} {params} }}'


def network(implicit: bool, log: Any = None) -> trt.INetworkDefinition:
    return trt.INetworkDefinition(0, log or Quiet(), implicit_batch=implicit)


def parse(prototxt: str, model: bytes | None, implicit: bool = False) -> tuple[Any, Any]:
    """(network, blobs); fails with what the parser found."""
    net, parser = network(implicit), trt.CaffeParser()
    found = parser.parse_buffer(prototxt, model, net, trt.float32)
    assert found is not None, "\n".join(parser.problems)
    return net, found


def made_up_model(prototxt: str) -> bytes:
    """A caffemodel with random weights that fit."""
    done = NetImport(read_prototxt(prototxt, "net"), None, network(False), "net").run()
    assert not done.problems, "\n".join(done.problems)
    return write_caffemodel("net", done.made_up)


def problems(prototxt: str | bytes, model: bytes | None = None, **options: Any) -> list[str]:
    """What the parser finds wrong."""
    parser = trt.CaffeParser()
    for name, value in options.items():
        setattr(parser, name, value)
    found = parser.parse_buffer(prototxt, model, network(False), trt.float32)
    assert found is None, "this should not parse"
    return parser.problems


def run(prototxt: str, model: bytes | None, feeds: Mapping[str, Array], outputs: Sequence[str],
        engine: bool = False, implicit: bool = False) -> list[Array]:
    """The net's blobs, by the reference interpreter or by a built engine."""
    net, found = parse(prototxt, model, implicit)
    for name in outputs:
        net.mark_output(found.find(name))
    if engine:
        results = trt.build(net, level=0)(dict(feeds))
        return [results[name] for name in outputs]
    order = [feeds[net.get_input(i).name] for i in range(net.num_inputs)]
    return run_graph(net.graph, order)


def opencv(prototxt: str, model: bytes, feeds: Mapping[str, Array],
           outputs: Sequence[str]) -> list[Array]:
    """What OpenCV's dnn gives; ``outputs`` are names of layers."""
    import cv2

    net = cv2.dnn.readNetFromCaffe(np.frombuffer(prototxt.encode(), np.uint8),
                                   np.frombuffer(model, np.uint8))
    for name, x in feeds.items():
        net.setInput(x, name)
    return [np.array(a) for a in net.forward(list(outputs))]


def relative(ours: Array, theirs: Array) -> float:
    """Greatest difference in units of the greatest magnitude."""
    assert ours.shape == theirs.shape, f"{ours.shape} and {theirs.shape}"
    if not ours.size:
        return 0.0
    gap = np.abs(ours.astype(np.float64) - theirs)
    return float(gap.max() / max(np.abs(theirs).max(), 1e-6))


__all__ = ["write_caffemodel"]
