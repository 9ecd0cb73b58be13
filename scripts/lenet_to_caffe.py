"""Writes the digit classifier that ships as ONNX as a Caffe model too.

``python scripts/lenet_to_caffe.py`` reads tactician/data/lenet_digits.onnx and writes
lenet_digits.prototxt and lenet_digits.caffemodel beside it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "tactician" / "data"


def _params(node: Any, attrs: dict[str, Any], weights: dict[str, Any]) -> tuple[str, str]:
    """Layer type and parameters of an ONNX node."""
    op = node.op_type
    if op == "Conv":
        out = weights[node.input[1]].shape[0]
        return "Convolution", (f"convolution_param {{ num_output: {out} "
                               f"kernel_size: {attrs['kernel_shape'][0]} }}")
    if op == "MaxPool":
        return "Pooling", (f"pooling_param {{ pool: MAX kernel_size: {attrs['kernel_shape'][0]} "
                           f"stride: {attrs['strides'][0]} }}")
    if op == "Gemm":
        out = weights[node.input[1]].shape[0]
        return "InnerProduct", f"inner_product_param {{ num_output: {out} }}"
    return {"Flatten": "Flatten", "Relu": "ReLU", "Softmax": "Softmax"}[op], ""


def convert(path: Path) -> tuple[str, bytes]:
    """The prototxt and the caffemodel of the ONNX file."""
    import onnx
    from onnx import helper, numpy_helper

    from tactician.parsers.caffe.weights import write_caffemodel

    graph = onnx.load(path).graph
    weights = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    (image,) = graph.input
    dims = [d.dim_value or 1 for d in image.type.tensor_type.shape.dim]
    shape = " ".join(f"dim: {d}" for d in dims)
    lines = ['name: "lenet_digits"',
             f'layer {{\n  name: "{image.name}"\n  type: "Input"\n  top: "{image.name}"\n'
             f"  input_param {{ shape {{ {shape} }} }}\n}}"]
    blobs: dict[str, list[Any]] = {}
    for node in graph.node:
        attrs = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        type, params = _params(node, attrs, weights)
        blobs[node.name] = [weights[i] for i in node.input if i in weights]
        lines.append(f'layer {{\n  name: "{node.name}"\n  type: "{type}"\n'
                     f'  bottom: "{node.input[0]}"\n  top: "{node.output[0]}"\n'
                     + (f"  {params}\n" if params else "") + "}")
    return "\n".join(lines) + "\n", write_caffemodel("lenet_digits", blobs)


def main() -> None:
    sys.path.insert(0, str(ROOT))
    prototxt, caffemodel = convert(DATA / "lenet_digits.onnx")
    (DATA / "lenet_digits.prototxt").write_text(prototxt)
    (DATA / "lenet_digits.caffemodel").write_bytes(caffemodel)


if __name__ == "__main__":
    main()
