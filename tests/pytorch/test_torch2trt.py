"""torch2trt and TRTModule: calls, shapes, saving, errors."""

from __future__ import annotations

import io
import threading

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

import tactician as trt  # noqa: E402
from tactician.support.errors import BuildError, UsageError  # noqa: E402
from tactician.torch import TRTModule, torch2trt  # noqa: E402

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore")


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


class Nested(nn.Module):
    def forward(self, x, table, flag=True):
        return {"sum": x + table["k"], "rest": (table["k"], [x * 2], 3)}


def convert(module, inputs, **options) -> TRTModule:
    return torch2trt(module.eval(), inputs, optimization_level=0, threads=1, **options)


@pytest.fixture(scope="module")
def dynamic():
    model = Small().eval()
    return model, convert(model, [torch.randn(1, 3, 6, 6)], max_batch_size=7)


def close(a, b, tol: float = 1e-5) -> None:
    torch.testing.assert_close(a, b.detach(), rtol=tol, atol=tol)


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_a_dynamic_batch(dynamic, batch: int) -> None:
    model, engine = dynamic
    x = torch.randn(batch, 3, 6, 6)
    close(engine(x), model(x))


def test_strided_inputs_are_read_right(dynamic) -> None:
    model, engine = dynamic
    x = torch.randn(2, 6, 6, 3).permute(0, 3, 1, 2)
    close(engine(x), model(x))


def test_contiguous_inputs_are_not_copied(dynamic) -> None:
    _, engine = dynamic
    x = torch.randn(2, 3, 6, 6)
    engine(x)
    assert engine._free[0][-1].get_tensor_address("input_0") == x.data_ptr()


def test_parameters_are_shared_with_the_network() -> None:
    model = Small()
    network = convert(model, [torch.randn(1, 3, 6, 6)]).network
    held = {v.const.ctypes.data for v in network.graph.values() if v.const is not None}
    assert {model.conv.weight.data_ptr(), model.head.weight.data_ptr()} <= held


def test_nested_arguments_and_results() -> None:
    x, table = torch.randn(2, 3), {"k": torch.randn(3)}
    engine = convert(Nested(), [x, table])
    got, want = engine(x, table), Nested()(x, table)
    close(got["sum"], want["sum"])
    assert got["rest"][0] is table["k"] and got["rest"][2] == 3
    close(got["rest"][1][0], want["rest"][1][0])


def test_named_arguments() -> None:
    call = {"x": torch.randn(2, 3), "table": {"k": torch.randn(3)}}
    close(convert(Nested(), call)(**call)["sum"], call["x"] + call["table"]["k"])


def test_saving_and_loading(dynamic) -> None:
    model, engine = dynamic
    file = io.BytesIO()
    torch.save(nn.Sequential(engine).state_dict(), file)
    file.seek(0)
    other = nn.Sequential(TRTModule())
    other.load_state_dict(torch.load(file))
    x = torch.randn(3, 3, 6, 6)
    close(other(x), model(x))


def test_a_state_dict_without_an_engine_is_refused() -> None:
    with pytest.raises(RuntimeError, match="engine"):
        TRTModule().load_state_dict({})


def test_through_onnx() -> None:
    model, x = Small().eval(), torch.randn(2, 3, 6, 6)
    close(convert(model, [x], use_onnx=True)(x), model(x))


def test_names(dynamic) -> None:
    x = torch.randn(1, 3, 6, 6)
    engine = convert(Small(), [x], input_names=["image"], output_names=["logits"])
    assert [t.name for t in engine.engine._io] == ["image", "logits"]


def test_threads_share_a_module(dynamic) -> None:
    model, engine = dynamic
    xs = [torch.randn(2, 3, 6, 6) for _ in range(8)]
    got: dict[int, object] = {}
    workers = [threading.Thread(target=lambda i=i: got.update({i: engine(xs[i])}))
               for i in range(8)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    for i, x in enumerate(xs):
        close(got[i], model(x))


@pytest.mark.parametrize(("x", "message"), [
    (torch.zeros(1, 3, 6, 6, dtype=torch.float64), "float64"),
    (torch.zeros(9, 3, 6, 6), "profile"),
    (torch.zeros(1, 4, 6, 6), "dimension 1"),
    (3, "must be a tensor"),
])
def test_wrong_arguments_are_refused(dynamic, x, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        dynamic[1](x)


class Unsupported(nn.Module):
    def forward(self, x):
        return torch.linalg.qr(x)[0] + torch.linalg.eigvalsh(x).sum() + torch.nonzero(x).sum()


def test_every_unsupported_op_is_reported_with_its_line() -> None:
    with pytest.raises(BuildError) as e:
        convert(nn.Sequential(Unsupported()), [torch.randn(3, 3)])
    text = str(e.value)
    for part in ("linalg_qr", "linalg_eigh", "nonzero", "module 0 (Unsupported)", "return torch.",
                 "test_torch2trt.py"):
        assert part in text


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x):
        self.count.add_(1)
        return x + self.count


def test_changing_a_buffer_is_refused() -> None:
    with pytest.raises(BuildError, match="count"):
        convert(Counter(), [torch.ones(1)])


def test_torch_stays_as_it_was() -> None:
    before = (torch.Tensor.__add__, torch.relu, nn.functional.linear, torch.Tensor.__getattribute__)
    convert(Small(), [torch.randn(1, 3, 6, 6)])
    assert before == (torch.Tensor.__add__, torch.relu, nn.functional.linear,
                      torch.Tensor.__getattribute__)


def test_a_star_import_leaves_the_usual_names_alone() -> None:
    names: dict[str, object] = {"trt": "tensorrt's", "torch": "torch's", "np": "numpy's"}
    before = dict(names)
    exec("from tactician.torch import *", names)
    assert {k: names[k] for k in before} == before and "torch2trt" in names


def test_shapes_out_of_order_are_refused() -> None:
    with pytest.raises(UsageError, match="order"):
        convert(Small(), [torch.randn(4, 3, 6, 6)], min_shapes=[(1, 3, 6, 6)],
                max_shapes=[(2, 3, 6, 6)])


def test_the_calibrator_feeds_sample_calls() -> None:
    from tactician.torch.calibration import calibrator
    from tactician.torch.lower import Converted

    calls = [[torch.full((2,), float(i))] for i in range(2)]
    feed = calibrator(trt.CalibrationAlgoType.MINMAX_CALIBRATION, calls, Converted([0], ["x"]))
    assert feed.get_batch(["x"]) == [calls[0][0].data_ptr()]
    assert feed.get_batch(["x"]) and feed.get_batch(["x"]) is None


@pytest.mark.parametrize("kind", ["list", "folder"])
def test_sizes_from_recorded_calls(tmp_path, kind: str) -> None:
    from tactician.torch.datasets import FolderDataset, ListDataset

    model = Small().eval()
    data = ListDataset() if kind == "list" else FolderDataset(tmp_path)
    with data.record(model):
        for n, size in ((1, 6), (4, 8), (2, 7)):
            model(torch.randn(n, 3, size, size))
    assert len(data) == 3 and not model._forward_pre_hooks
    assert (data.min_shapes(), data.max_shapes()) == ([(1, 3, 6, 6)], [(4, 3, 8, 8)])
    assert data.median_numel_shapes() == [(2, 3, 7, 7)]
    engine = convert(model, data)
    for shape in ((1, 3, 6, 6), (4, 3, 8, 8), (3, 3, 7, 8)):
        x = torch.randn(shape)
        close(engine(x), model(x))
    with pytest.raises(UsageError, match="profile"):
        engine(torch.randn(5, 3, 6, 6))


def test_rows_of_tensors_as_calls() -> None:
    from tactician.torch.datasets import TensorBatchDataset

    data = TensorBatchDataset([torch.arange(6.0).view(3, 2)])
    data.insert([torch.ones(1, 2)])
    assert len(data) == 4 and data[1][0].tolist() == [[2.0, 3.0]]
    assert data.min_shapes() == data.max_shapes() == [(1, 2)] and data.num_inputs == 1


def test_autocast_casts_arguments(dynamic) -> None:
    model, engine = dynamic
    x = torch.randn(2, 3, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        close(engine(x.bfloat16()), model(x).float(), 2e-2)
    with torch.inference_mode():
        assert engine(x).is_inference()


class InPlace(nn.Module):
    """Mutations of results that nothing else shares, and one that a view shares."""

    def __init__(self, shared: bool):
        super().__init__()
        self.fc, self.shared = nn.Linear(4, 4), shared

    def forward(self, x):
        y = self.fc(x)
        row = y[0] if self.shared else x[0]
        y += 1
        torch.relu_(y)
        z = y * 2
        return z.add_(y).mul_(row), row


@pytest.mark.parametrize("shared", [False, True])
def test_mutations_inside(shared: bool) -> None:
    module, x = InPlace(shared).eval(), torch.randn(3, 4)
    for got, want in zip(convert(module, [x])(x), module(x), strict=True):
        close(got, want)


@pytest.mark.parametrize("algorithm", ["ENTROPY_CALIBRATION_2", "MINMAX_CALIBRATION"])
def test_int8_by_calibration(algorithm: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU()).eval()
    calls = [[torch.rand(2, 3, 12, 12)] for _ in range(4)] + [[torch.rand(1, 3, 12, 12)]]
    engine = convert(model, calls[0], int8_mode=True, int8_calib_dataset=calls,
                     int8_calib_algorithm=getattr(trt.CalibrationAlgoType, algorithm))
    want = model(calls[0][0]).detach()
    got = engine(calls[0][0])
    assert 0 < float((got - want).abs().max()) < 0.1 * float(want.max())  # quantized, and well


def test_an_engine_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setenv("TACTICIAN_GPU", "interpreter")
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")  # weights would be rounded to TF32
    module = nn.Sequential(nn.Linear(8, 8), nn.GELU()).eval()
    engine = convert(module, [torch.randn(3, 8)], max_batch_size=4,
                     default_device_type=trt.DeviceType.GPU)
    assert engine.engine._core.program.target == "cuda"
    for n in (3, 2):
        x = torch.randn(n, 8)
        close(engine(x), module(x))


def test_options_without_effect_are_said_at_the_default_level(capfd) -> None:
    net = torch.nn.Linear(3, 2).eval()
    torch2trt(net, [torch.ones(1, 3)], optimization_level=0, threads=1, dla_core=1, onnx_opset=17)
    said = capfd.readouterr().err
    assert "dla_core=1 has no effect" in said and "onnx_opset has no effect" in said
    with pytest.raises(UsageError, match="leave out use_onnx"):
        torch2trt(net, [torch.ones(1, 3)], use_onnx=True, partition=True)
