"""What NVIDIA's samples look for in their data folder: a classifier of pictures, three pictures,
labels. The classifier is small and untrained; labels are set so that onnxruntime is right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import helper as h
from onnx import numpy_helper

PICTURES = ("binoculars.jpeg", "reflex_camera.jpeg", "tabby_tiger_cat.jpg")


def classifier() -> onnx.ModelProto:
    """3x224x224 to the probabilities of 1000 classes, under the names of the samples' ResNet."""
    rng = np.random.default_rng(1)
    weights = {"w1": rng.normal(0, 0.1, (16, 3, 7, 7)), "w2": rng.normal(0, 0.1, (32, 16, 3, 3)),
               "w3": rng.normal(0, 1.0, (1000, 32)), "b3": np.zeros(1000)}
    nodes = [
        h.make_node("Conv", ["gpu_0/data_0", "w1"], ["a"], strides=[4, 4]),
        h.make_node("Relu", ["a"], ["b"]),
        h.make_node("Conv", ["b", "w2"], ["c"], strides=[2, 2]),
        h.make_node("Relu", ["c"], ["d"]),
        h.make_node("GlobalAveragePool", ["d"], ["e"]),
        h.make_node("Flatten", ["e"], ["f"]),
        h.make_node("Gemm", ["f", "w3", "b3"], ["g"], transB=1),
        h.make_node("Softmax", ["g"], ["gpu_0/softmax_1"], axis=1),
    ]
    info = h.make_tensor_value_info
    graph = h.make_graph(
        nodes, "classifier", [info("gpu_0/data_0", 1, [1, 3, 224, 224])],
        [info("gpu_0/softmax_1", 1, [1, 1000])],
        [numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items()])
    return h.make_model(graph, opset_imports=[h.make_opsetid("", 13)], ir_version=8)


def write(folder: Path) -> None:
    """Writes all into ``folder/resnet50``."""
    import onnxruntime as ort
    from PIL import Image

    folder = folder / "resnet50"
    folder.mkdir()
    model = classifier()
    onnx.save(model, folder / "ResNet50.onnx")
    session = ort.InferenceSession(model.SerializeToString())
    labels = [f"class {k}" for k in range(1000)]
    y, x = np.mgrid[0:224, 0:224] / 224
    for k, name in enumerate(PICTURES):
        waves = [np.sin((3 + 9 * k) * x * 6 + c) * np.cos((20 - 8 * k) * y * 5 + c * k)
                 for c in range(3)]
        pixels = np.stack(waves, -1) * 60 + 128 + np.roll([60, 0, -60], k)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name, quality=95)
        seen = np.asarray(Image.open(folder / name), np.float32).transpose(2, 0, 1)[None]
        scaled = ((seen / 255 - 0.45) / 0.225).astype(np.float32)
        found = int(session.run(None, {"gpu_0/data_0": scaled})[0].argmax())
        assert labels[found].startswith("class"), "two pictures have the same class"
        labels[found] = name.partition(".")[0].replace("_", " ")
    (folder / "class_labels.txt").write_text("\n".join(labels))
