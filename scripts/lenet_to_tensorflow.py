"""Writes the LeNet that ships with tactician as a frozen TensorFlow graph and as UFF.

    python scripts/lenet_to_tensorflow.py

The graph is what TensorFlow 1.x would have: images with their channels last, weights in its order.
Reads tactician/data/lenet_digits.onnx, writes lenet_digits.pb and lenet_digits.uff beside it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from tactician import uff
from tactician.parsers.tensorflow.graph import constant, new_graph, new_node

DATA = Path(__file__).resolve().parent.parent / "tactician" / "data"
F32 = np.dtype(np.float32)


def to_tensorflow(model: onnx.ModelProto) -> object:
    """The frozen ``GraphDef``."""
    w = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    graph = new_graph()

    def add(name: str, op: str, *inputs: str, **attrs: object) -> str:
        graph.node.append(new_node(name, op, inputs, T=F32, **attrs))
        return name

    def const(name: str, value: np.ndarray) -> str:
        graph.node.append(constant(name, np.ascontiguousarray(value)))
        return name

    def layer(x: str, name: str, op: str, weights: np.ndarray, **attrs: object) -> str:
        y = add(f"{name}/{op}", op, x, const(f"{name}/kernel", weights), **attrs)
        return add(f"{name}/BiasAdd", "BiasAdd", y, const(f"{name}/bias", w[f"{name}.bias"]),
                   data_format="NHWC")

    graph.node.append(new_node("image", "Placeholder", dtype=F32, shape=(-1, 28, 28, 1)))
    x = "image"
    for k in (1, 2):
        kernel = w[f"conv{k}.weight"].transpose(2, 3, 1, 0)
        x = layer(x, f"conv{k}", "Conv2D", kernel, strides=[1, 1, 1, 1], padding="VALID",
                  dilations=[1, 1, 1, 1], data_format="NHWC")
        x = add(f"pool{k}/MaxPool", "MaxPool", x, ksize=[1, 2, 2, 1], strides=[1, 2, 2, 1],
                padding="VALID", data_format="NHWC")
    x = add("flatten/Reshape", "Reshape", x, const("flatten/shape", np.array([-1, 384], np.int32)))
    rows = w["fc1.weight"].T.reshape(24, 4, 4, 120).transpose(1, 2, 0, 3).reshape(384, 120)
    x = add("fc1/Relu", "Relu", layer(x, "fc1", "MatMul", rows))
    x = layer(x, "fc2", "MatMul", w["fc2.weight"].T)
    add("probabilities", "Softmax", x)
    return graph


def main() -> None:
    parser = argparse.ArgumentParser(description="LeNet as a frozen TensorFlow graph and as UFF")
    parser.add_argument("--out", type=Path, default=DATA, help="folder for the two files")
    out = parser.parse_args().out
    graph = to_tensorflow(onnx.load(DATA / "lenet_digits.onnx"))
    data = graph.SerializeToString(deterministic=True)  # type: ignore[attr-defined]
    (out / "lenet_digits.pb").write_bytes(data)
    uff.from_tensorflow(graph, ["probabilities"], output_filename=out / "lenet_digits.uff",
                        quiet=True)
    for name in ("lenet_digits.pb", "lenet_digits.uff"):
        print(f"{out / name}: {(out / name).stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
