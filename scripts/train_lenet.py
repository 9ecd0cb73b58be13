"""Train the LeNet that ships with tactician and write it as ONNX.

    pip install -e '.[train]'
    python scripts/train_lenet.py            # about a minute on one CPU core

Data: scikit-learn's copy of the UCI optical digits (1,797 images of 8x8 with 17 grey levels).
Each image is enlarged to 28x28 with separable linear interpolation between pixel centres
(half-pixel convention, borders repeated: what OpenCV calls INTER_LINEAR and ONNX `Resize` calls
mode=linear, half_pixel) and scaled to 0..255. A stratified fifth is held out before anything is
looked at; the model kept is the one after the last epoch, so the held-out images take no part.

Writes `tactician/data/lenet_digits.onnx` (input `image`: float32 [N, 1, 28, 28] in 0..1; output
`probabilities`: float32 [N, 10]) and `tactician/data/digits_test.npz` (`images`: uint8
[n, 28, 28], `labels`: uint8 [n]).
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn import functional as F

SEED = 7
EPOCHS = 60
BATCH = 64
DATA = Path(__file__).resolve().parent.parent / "tactician" / "data"


def enlarge(images: np.ndarray, size: int = 28) -> np.ndarray:
    """Scale [n, h, w] images to [n, size, size]: linear between pixel centres, borders repeated."""

    def weights(old: int) -> np.ndarray:
        centre = (np.arange(size) + 0.5) * old / size - 0.5
        low = np.floor(centre)
        part = centre - low
        out = np.zeros((size, old))
        rows = np.arange(size)
        np.add.at(out, (rows, np.clip(low, 0, old - 1).astype(int)), 1 - part)
        np.add.at(out, (rows, np.clip(low + 1, 0, old - 1).astype(int)), part)
        return out

    return weights(images.shape[1]) @ images @ weights(images.shape[2]).T


def digits() -> tuple[np.ndarray, np.ndarray]:
    """All images as uint8 [n, 28, 28] and their labels."""
    raw = load_digits()
    return np.rint(enlarge(raw.images) * (255 / 16)).astype(np.uint8), raw.target.astype(np.uint8)


def lenet() -> nn.Sequential:
    """Conv, pool, conv, pool, fully connected, ReLU, fully connected."""
    return nn.Sequential(
        nn.Conv2d(1, 12, 5),
        nn.MaxPool2d(2),
        nn.Conv2d(12, 24, 5),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(24 * 4 * 4, 120),
        nn.ReLU(),
        nn.Linear(120, 10),
    )


def augment(x: torch.Tensor, gen: torch.Generator) -> torch.Tensor:
    """Rotate by up to 10 degrees, scale by up to 10 %, shift by up to 2 pixels."""

    def spread(width: float) -> torch.Tensor:
        return (torch.rand(len(x), generator=gen) * 2 - 1) * width

    angle, zoom = spread(math.radians(10)), 1 + spread(0.1)
    cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    theta = torch.stack([cos, -sin, spread(2 / 14), sin, cos, spread(2 / 14)], dim=1)
    grid = F.affine_grid(theta.reshape(-1, 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


def train(x: torch.Tensor, y: torch.Tensor) -> nn.Sequential:
    """Adam with a one-cycle learning rate; deterministic for one version of torch."""
    torch.manual_seed(SEED)
    torch.use_deterministic_algorithms(True)
    gen = torch.Generator().manual_seed(SEED)
    model = lenet()
    optimizer = torch.optim.Adam(model.parameters(), weight_decay=1e-4)
    steps = EPOCHS * math.ceil(len(x) / BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
    for epoch in range(EPOCHS):
        total = 0.0
        for batch in torch.randperm(len(x), generator=gen).split(BATCH):
            loss = F.cross_entropy(model(augment(x[batch], gen)), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(batch)
        if (epoch + 1) % 10 == 0:
            print(f"epoch {epoch + 1:3d}: training loss {total / len(x):.4f}", flush=True)
    return model.eval()


def to_onnx(model: nn.Sequential) -> onnx.ModelProto:
    """Write the network node by node, so that the file holds nothing but what it needs."""
    names = {"0": "conv1", "2": "conv2", "5": "fc1", "7": "fc2"}
    constants = [
        numpy_helper.from_array(v.detach().numpy(), f"{names[k[0]]}{k[1:]}")
        for k, v in model.state_dict().items()
    ]

    def node(op: str, name: str, source: str, out: str, **attrs: object) -> onnx.NodeProto:
        weights = [f"{name}.weight", f"{name}.bias"] if op in ("Conv", "Gemm") else []
        return helper.make_node(op, [source, *weights], [out], name=name, **attrs)

    nodes = [
        node("Conv", "conv1", "image", "c1", kernel_shape=[5, 5]),
        node("MaxPool", "pool1", "c1", "p1", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", "conv2", "p1", "c2", kernel_shape=[5, 5]),
        node("MaxPool", "pool2", "c2", "p2", kernel_shape=[2, 2], strides=[2, 2]),
        node("Flatten", "flatten", "p2", "flat", axis=1),
        node("Gemm", "fc1", "flat", "h1", transB=1),
        node("Relu", "relu", "h1", "h2"),
        node("Gemm", "fc2", "h2", "logits", transB=1),
        node("Softmax", "softmax", "logits", "probabilities", axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "lenet_digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, 28, 28])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 10])],
        constants,
    )
    proto = helper.make_model(
        graph,
        producer_name="tactician",
        ir_version=8,
        opset_imports=[helper.make_opsetid("", 13)],
        doc_string="LeNet for handwritten digits, trained by scripts/train_lenet.py",
    )
    onnx.checker.check_model(proto, full_check=True)
    return proto


def main() -> None:
    parser = argparse.ArgumentParser(description="train the LeNet that ships with tactician")
    parser.add_argument("--out", type=Path, default=DATA, help="folder for the two files")
    out = parser.parse_args().out
    images, labels = digits()
    x0, x1, y0, y1 = train_test_split(
        images, labels, test_size=0.2, random_state=SEED, stratify=labels
    )
    pixels = torch.from_numpy(x0.astype(np.float32) / 255)[:, None]
    model = train(pixels, torch.from_numpy(y0.astype(np.int64)))
    with torch.no_grad():
        guess = model(torch.from_numpy(x1.astype(np.float32) / 255)[:, None]).argmax(1).numpy()
    print(f"held out: {np.mean(guess == y1):.4f} of {len(y1)} images right")
    out.mkdir(parents=True, exist_ok=True)
    onnx.save(to_onnx(model), out / "lenet_digits.onnx")
    np.savez_compressed(out / "digits_test.npz", images=x1, labels=y1)
    for name in ("lenet_digits.onnx", "digits_test.npz"):
        print(f"{out / name}: {(out / name).stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
