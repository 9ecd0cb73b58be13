"""Comparing layer by layer, with onnxruntime and with torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("typer")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
from onnx import TensorProto as T  # noqa: E402
from onnx import helper, numpy_helper  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

from tactician.cli.app import app  # noqa: E402


def compare(*args: Any, code: int = 0) -> Any:
    result = CliRunner().invoke(app, ["compare", *map(str, args), "--json"])
    assert result.exit_code == code, f"{result.output}\n{result.exception!r}"
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    w = rng.standard_normal((8, 8)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"], name="first"),
             helper.make_node("Tanh", ["a"], ["b"], name="second"),
             helper.make_node("MatMul", ["b", "w"], ["c"], name="third"),
             helper.make_node("Sigmoid", ["c"], ["y"], name="fourth")]
    x = helper.make_tensor_value_info("x", T.FLOAT, ["n", 8])
    y = helper.make_tensor_value_info("y", T.FLOAT, ["n", 8])
    graph = helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(w, "w")])
    path = tmp_path_factory.mktemp("compare") / "m.onnx"
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    made.ir_version = 8  # onnxruntime may be older than onnx
    onnx.save(made, path)
    return path


def test_everything_agrees(model: Path) -> None:
    found = compare(model, "--shapes", "3x8")
    assert found["ok"] and found["first"] is None
    assert [r["name"] for r in found["layers"]] == ["a", "b", "c", "y"]
    assert found["layers"][0]["shape"] == [3, 8] and len(found["outputs"]) == 1


def test_the_first_layer_out_of_tolerance_is_named(model: Path, monkeypatch) -> None:
    from tactician.cli import compare as C

    right = C.onnxruntime_values

    def wrong(path: Path, feeds: Any) -> Any:
        values = right(path, feeds)
        for name in ("b", "c", "y"):  # as if the reference had computed these otherwise
            values[name] = values[name] + 1
        return values

    monkeypatch.setattr(C, "onnxruntime_values", wrong)
    found = compare(model, "--shapes", "3x8", code=1)
    assert found["first"]["name"] == "b" and "second" in found["first"]["layer"]
    assert not found["fused"] and [r["ok"] for r in found["layers"]] == [True, False, False, False]


def test_a_fault_of_fusion_is_found(model: Path, monkeypatch) -> None:
    """A tensor that is right by itself, and wrong once the layers before it are fused."""
    from tactician.builder import compare as C

    run = C._run

    def faulty(network: Any, settings: Any, feeds: Any, names: Any) -> Any:
        results, values = run(network, settings, feeds, names)
        if len(names) < 4:
            results = {n: v + 1 for n, v in results.items()}
            values = {n: v + 1 if n in ("c", "y") else v for n, v in values.items()}
        return results, values

    monkeypatch.setattr(C, "_run", faulty)
    found = compare(model, "--shapes", "3x8", code=1)
    assert found["fused"] and found["first"]["name"] == "c"


def test_tolerances(model: Path) -> None:
    assert not compare(model, "--shapes", "3x8", "--rtol", "0", "--atol", "0", code=1)["ok"]
    result = CliRunner().invoke(app, ["compare", str(model), "--rtol", "0", "--atol", "0"])
    assert result.exit_code == 1 and "first out of tolerance" in result.stdout


def test_exported_programs(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from tactician.torch.compare import compare as compare_module

    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.GELU(),
                                 torch.nn.LayerNorm(8)).eval()
    x = torch.randn(3, 8)
    found = compare_module(module, [x])
    assert found.ok and len(found.layers) >= 3
    assert "GELU" in "".join(r.source for r in found.layers)
    torch.export.save(torch.export.export(module, (x,)), tmp_path / "m.pt2")
    assert compare(tmp_path / "m.pt2")["ok"]


def test_a_wrong_importer_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    from dataclasses import replace

    from tactician.torch.compare import compare as compare_module
    from tactician.torch.table import table

    target = torch.ops.aten.gelu.default
    wrong = replace(table()[target], fn=lambda c, x, **others: c.activation(x, "relu"))
    monkeypatch.setitem(table(), target, wrong)
    module = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.GELU(), torch.nn.Linear(8, 8))
    found = compare_module(module.eval(), [torch.randn(3, 8)])
    assert found.first is not None and found.first.name == "gelu"
    assert "1/" in found.first.layer
