"""What the examples share: the model and held-out images that come with tactician."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import tactician as trt
from tactician import driver as cuda

DATA = Path(trt.__file__).parent / "data"
MODEL = DATA / "lenet_digits.onnx"


def load(count: int, start: int = 100) -> tuple[np.ndarray, np.ndarray]:
    """`count` held-out digits as float32 [count, 1, 28, 28] in 0..1, and their labels.

    The model misreads 3 of the 360; none of those 100 that start at 100 is among them.
    """
    with np.load(DATA / "digits_test.npz") as data:
        part = slice(start, start + count)
        return data["images"][part, None].astype(np.float32) / 255, data["labels"][part]


def infer(engine: trt.ICudaEngine, images: np.ndarray) -> np.ndarray:
    """Run an engine on digits: copies in, `execute_v2`, copies out."""
    out = np.empty((len(images), 10), np.float32)
    d_input, d_output = cuda.mem_alloc(images.nbytes), cuda.mem_alloc(out.nbytes)
    cuda.memcpy_htod(d_input, images)
    with engine.create_execution_context() as context:
        assert context.execute_v2([int(d_input), int(d_output)])
    cuda.memcpy_dtoh(out, d_output)
    return out


def check(probabilities: np.ndarray, labels: np.ndarray) -> None:
    """Print what was read beside what it should be; fail if it is wrong."""
    read = np.asarray(probabilities).reshape(-1, 10).argmax(1)
    print("read  ", *read)
    print("labels", *labels)
    assert (read == labels).all(), "the digits were read wrongly"
