"""SavedModels with variables against what TensorFlow computed (scripts/make_tf_references.py)."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import tactician as trt
from tactician.parsers.onnx.errors import ImportProblem, ModelProblem
from tactician.parsers.tensorflow import load

SAVED = Path(__file__).parent / "saved"
INDEX, DATA = "variables/variables.index", "variables/variables.data-00000-of-00001"


@pytest.mark.parametrize("name, inputs, output", [
    ("functions", ["image", "token"], "logits"), ("session", ["a"], "result")])
def test_against_tensorflow(name: str, inputs: list[str], output: str) -> None:
    network = trt.Builder(trt.Logger()).create_network(1)
    parser = trt.TensorFlowParser(network)
    assert parser.parse(SAVED / name), [str(parser.get_error(i)) for i in range(parser.num_errors)]
    assert [network.get_input(i).name for i in range(network.num_inputs)] == inputs
    known = np.load(SAVED / f"{name}.npz")
    found = trt.build(network, level=0)({k: known[k] for k in inputs})
    assert list(found) == [output]
    np.testing.assert_allclose(found[output], known[output], rtol=2e-5, atol=2e-5)


def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SAVED / "session", tmp_path / "model"))


@pytest.mark.parametrize("file, change, words", [
    (INDEX, None, "variables.index can't be read"),
    (INDEX, lambda d: d[:40], "variables.index is damaged"),
    (INDEX, lambda d: d[:10] + b"\xff" * 40 + d[50:], "variables.index is damaged"),
    (DATA, None, "can't be read"),
    (DATA, lambda d: d[:20], "is cut off"),
])
def test_damage(file: str, change: object, words: str, tmp_path: Path) -> None:
    folder = copy(tmp_path)
    if change is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(change((folder / file).read_bytes()))  # type: ignore[operator]
    with pytest.raises(ModelProblem, match=words):
        load(folder)


def test_any_damage_to_the_index_is_an_error_or_harmless(tmp_path: Path) -> None:
    folder = copy(tmp_path)
    good = (folder / INDEX).read_bytes()
    for i in range(len(good)):
        (folder / INDEX).write_bytes(good[:i] + bytes([good[i] ^ 0xFF]) + good[i + 1 :])
        try:
            load(folder)
        except ImportProblem:
            continue
