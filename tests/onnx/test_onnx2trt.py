"""onnx-tensorrt's command line tool and backend module."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import tactician as trt
from tactician.cli.onnx2trt import main


def small_model(batch: int | str = "n") -> onnx.ModelProto:
    w = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])],
        "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 4])],
        [numpy_helper.from_array(w, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "m.onnx"
    onnx.save(small_model(), path)
    return path


def expected(x: np.ndarray) -> np.ndarray:
    return ort.InferenceSession(small_model().SerializeToString()).run(None, {"x": x})[0]


def test_plan(model: Path, tmp_path: Path) -> None:
    plan = tmp_path / "m.plan"
    assert main([str(model), "-o", str(plan), "-b", "5", "-d", "16", "-w", str(1 << 24), "-q"]) == 0
    engine = trt.Runtime(trt.Logger()).deserialize_cuda_engine(plan.read_bytes())
    assert engine.get_tensor_profile_shape("x", 0) == [(1, 6), (5, 6), (5, 6)]
    x = np.random.default_rng(1).standard_normal((3, 6)).astype(np.float32)
    # 16-bit types may be used
    np.testing.assert_allclose(trt.load(plan)({"x": x})["y"], expected(x), rtol=2e-2, atol=2e-2)


def test_text_forms_read_back(model: Path, tmp_path: Path) -> None:
    full, bare, copy = (tmp_path / n for n in ("full.pbtxt", "bare.pbtxt", "copy.onnx"))
    assert main([str(model), "-T", str(full), "-t", str(bare), "-m", str(copy), "-qq"]) == 0
    assert len(bare.read_text()) < len(full.read_text()) and 'name: "w"' in bare.read_text()
    assert onnx.load(copy) == onnx.load(model)
    plan = tmp_path / "m.plan"
    assert main([str(full), "-o", str(plan), "-qq"]) == 0
    x = np.ones((2, 6), np.float32)
    np.testing.assert_allclose(trt.load(plan)({"x": x})["y"], expected(x), rtol=1e-5, atol=1e-5)


def test_layers_and_model_are_described(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(model), "-l"]) == 0
    out = capsys.readouterr().out
    assert "Opset version:" in out and "ai.onnx 17" in out
    assert "MATRIX_MULTIPLY" in out and "y (-1, 4)" in out


def test_problems(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = small_model()
    bad.graph.node[1].op_type = "Frobnicate"
    onnx.save(bad, tmp_path / "bad.onnx")
    assert main([str(tmp_path / "bad.onnx"), "-o", str(tmp_path / "p"), "-qq"]) == 1
    assert "Frobnicate" in capsys.readouterr().err and not (tmp_path / "p").exists()
    (tmp_path / "cut.onnx").write_bytes(small_model().SerializeToString()[:40])
    assert main([str(tmp_path / "cut.onnx")]) == 1
    assert main([str(tmp_path / "gone.onnx")]) == 1
    assert "gone.onnx" in capsys.readouterr().err


def test_backend_module() -> None:
    """In a process of its own, as programs import it."""
    program = """if True:
        import numpy as np, sys
        from tactician import compat
        compat.install()
        sys.path.insert(0, sys.argv[1])
        from test_onnx2trt import small_model, expected
        import onnx.backend.base
        from onnx import helper
        import onnx_tensorrt.backend as backend
        from onnx_tensorrt.tensorrt_engine import Engine
        x = np.random.default_rng(1).standard_normal((3, 6)).astype(np.float32)
        assert issubclass(backend.TensorRTBackend, onnx.backend.base.Backend)
        rep = backend.prepare(small_model(3), device="CUDA:0")
        out = rep.run(x)
        np.testing.assert_allclose(out.y, expected(x), rtol=1e-5, atol=1e-5)
        assert backend.supports_device("CUDA:1")
        r = backend.run_node(helper.make_node("Relu", ["a"], ["b"]), [x], device="CUDA:0")
        assert (r.b == np.maximum(x, 0)).all()
        import tensorrt as trt
        b = trt.Builder(trt.Logger()); n = b.create_network(1); p = trt.OnnxParser(n, trt.Logger())
        assert p.parse(small_model(3).SerializeToString())
        e = Engine(b.build_engine(n, b.create_builder_config()))
        np.testing.assert_allclose(e.run([x])[0], expected(x), rtol=1e-5, atol=1e-5)
    """
    subprocess.run([sys.executable, "-c", program, str(Path(__file__).parent)], check=True)
