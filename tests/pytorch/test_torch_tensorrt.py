"""torch_tensorrt's entry points, and ``import torch_tensorrt`` through compat."""

from __future__ import annotations

import importlib
import sys

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

import tactician as trt  # noqa: E402
from tactician.support.errors import BuildError, UsageError  # noqa: E402
from tactician.torch import (  # noqa: E402
    Input,
    MutableTorchTensorRTModule,
    PartitionedModule,
    TRTModule,
    dynamo,
)
from tactician.torch import trt as T  # noqa: E402

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore")
FAST = {"optimization_level": 0, "threads": 1}
X = torch.randn(2, 3, 8, 8)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5)
        nn.init.uniform_(self.norm.running_var, 0.5, 1.5)

    def forward(self, x, scale: float = 1.0):
        return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3))) * scale

    def double(self, x):
        return self.forward(x) * 2


class Mixed(nn.Module):
    def forward(self, x):
        y = (x * 2).tanh().exp().relu().sigmoid() + 1
        y = torch.linalg.qr(y)[0]
        return {"y": (y * 2).tanh().exp().relu().sigmoid() + 1}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Small().eval()


def close(a, b, tol: float = 1e-5) -> None:
    torch.testing.assert_close(a, b.detach(), rtol=tol, atol=tol)


@pytest.mark.parametrize("inputs", [[X], [Input(X.shape)], [Input(shape=(2, 3, 8, 8))],
                                    [Input(torch_tensor=X)], (X,)])
def test_static_shapes(model, inputs) -> None:
    made = T.compile(model, ir="dynamo", inputs=inputs, enabled_precisions={torch.float32}, **FAST)
    assert isinstance(made, TRTModule)
    close(made(X), model(X))


@pytest.fixture(scope="module")
def dynamic(model):
    shapes = Input(min_shape=(1, 3, 8, 8), opt_shape=(2, 3, 8, 8), max_shape=(5, 3, 8, 8),
                   dtype=torch.float32)
    return T.compile(model, inputs=[shapes], **FAST)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_shapes_in_a_range(model, dynamic, batch: int) -> None:
    x = torch.randn(batch, 3, 8, 8)
    close(dynamic(x), model(x))


def test_shapes_out_of_the_range_are_refused(dynamic) -> None:
    with pytest.raises(UsageError, match="profile"):
        dynamic(torch.randn(6, 3, 8, 8))


def test_named_arguments(model) -> None:
    made = T.compile(model, arg_inputs=[X], kwarg_inputs={"scale": 2.0}, **FAST)
    close(made(X, scale=2.0), model(X, 2.0))


def test_exported_programs(model) -> None:
    program = dynamo.trace(model, [X])
    close(dynamo.compile(program, [X], **FAST)(X), model(X))
    plan = dynamo.convert_exported_program_to_serialized_trt_engine(program, [X], **FAST)
    engine = trt.Runtime(trt.Logger()).deserialize_cuda_engine(plan)
    close(TRTModule(engine)(X), model(X))


def test_methods(model) -> None:
    plan = T.convert_method_to_trt_engine(model, "double", inputs=[X], **FAST)
    engine = trt.Runtime(trt.Logger()).deserialize_cuda_engine(plan)
    close(TRTModule(engine)(X), model.double(X))


def test_torch_runs_the_rest_unless_refused() -> None:
    x = torch.randn(6, 6)
    made = T.compile(Mixed(), inputs=[x], min_block_size=1, **FAST)
    assert isinstance(made, PartitionedModule) and len(made.engines) == 2
    close(made(x)["y"], Mixed()(x)["y"])
    with pytest.raises(BuildError, match="linalg_qr"):
        T.compile(Mixed(), inputs=[x], require_full_compilation=True, **FAST)


@pytest.mark.parametrize("kept", [{"torch_executed_ops": {"torch.ops.aten.relu.default"}},
                                  {"torch_executed_modules": ["torch.nn.Linear"]}])
def test_what_is_kept_in_torch(model, kept) -> None:
    made = T.compile(model, inputs=[X], min_block_size=1, **kept, **FAST)
    assert isinstance(made, PartitionedModule) and made.engines
    close(made(X), model(X))


def test_torch_compile(model) -> None:
    torch._dynamo.reset()
    made = T.compile(model, ir="torch_compile", cache=False, **FAST)
    with torch.no_grad():
        close(made(X), model(X))


def test_saving_and_loading(dynamic, model, tmp_path) -> None:
    T.save(dynamic, tmp_path / "m.ep")
    again = T.load(tmp_path / "m.ep")
    assert any("tactician" in str(n.target) for n in again.graph.nodes)
    close(again.module()(X), model(X))
    close(torch.export.load(tmp_path / "m.ep").module()(X), model(X))


def test_saving_with_sizes_that_vary(dynamic, model, tmp_path) -> None:
    shapes = Input(min_shape=(1, 3, 8, 8), opt_shape=(2, 3, 8, 8), max_shape=(5, 3, 8, 8))
    T.save(dynamic, tmp_path / "m.ep", inputs=[shapes])
    again = T.load(tmp_path / "m.ep").module()
    for n in (2, 5):
        x = torch.randn(n, 3, 8, 8)
        close(again(x), model(x))


def test_saving_where_torch_runs_a_part(tmp_path) -> None:
    x = torch.randn(6, 6)
    T.save(T.compile(Mixed(), inputs=[x], min_block_size=1, **FAST), tmp_path / "m.ep")
    close(T.load(tmp_path / "m.ep").module()(x)["y"], Mixed()(x)["y"])


def test_new_weights_for_a_compiled_module(model) -> None:
    made = T.compile(model, inputs=[X], immutable_weights=False, **FAST)
    torch.manual_seed(1)
    other = Small().eval()
    fresh = dynamo.refit_module_weights(made, dynamo.trace(other, [X]), arg_inputs=[X],
                                        verify_output=True)
    close(fresh(X), other(X))
    close(made(X), model(X))
    with pytest.raises(UsageError, match="immutable_weights"):
        dynamo.refit_module_weights(T.compile(model, inputs=[X], **FAST), other)


def test_a_mutable_module_follows_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = Small().eval()
    made = MutableTorchTensorRTModule(model, **FAST)
    close(made(X), model(X))
    built = made.compiled
    with torch.no_grad():
        made.conv.weight.mul_(3)
        model.norm.running_mean.add_(1)
    close(made(X), model(X))
    made.load_state_dict({k: v * 2 for k, v in model.state_dict().items()})
    close(made(X), model(X))
    assert made.compiled is built  # refitted, not built again
    made.head = nn.Linear(4, 7)
    assert made(X).shape == (2, 7) and made.compiled is not built
    x = torch.randn(3, 3, 8, 8)
    close(made(x), model(x))


def test_a_mutable_module_with_sizes_that_vary(tmp_path) -> None:
    model = Small().eval()
    made = MutableTorchTensorRTModule(model, **FAST)
    made.set_expected_dynamic_shape_range(({0: torch.export.Dim("n", min=1, max=4)},), {})
    close(made(X), model(X))
    built = made.compiled
    for n in (1, 4):
        x = torch.randn(n, 3, 8, 8)
        close(made(x), model(x))
    assert made.compiled is built
    MutableTorchTensorRTModule.save(made, tmp_path / "m.pt")
    close(MutableTorchTensorRTModule.load(tmp_path / "m.pt")(X), model(X))


def test_lstm_weights_are_replaced() -> None:
    cell, x = nn.LSTM(3, 4).eval(), torch.randn(5, 2, 3)
    made = MutableTorchTensorRTModule(cell, **FAST)
    close(made(x)[0], cell(x)[0])
    with torch.no_grad():
        cell.weight_ih_l0.mul_(2)
    close(made(x)[0], cell(x)[0])


@pytest.mark.parametrize(("bad", "message"), [
    ({"inputs": None}, "sample arguments"), ({"ir": "ts"}, "ir 'ts'"),
    ({"no_such_option": 1}, "no_such_option"), ({"enabled_precisions": {"fp7"}}, "fp7"),
])
def test_wrong_use_is_refused(model, bad, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        T.compile(model, **({"inputs": [X]} | bad))


@pytest.mark.parametrize("bad", [{}, {"shape": (1,), "min_shape": (1,)}, {"min_shape": (2,)},
                                 {"min_shape": (2,), "opt_shape": (1,), "max_shape": (3,)}])
def test_wrong_inputs_are_refused(bad) -> None:
    with pytest.raises(UsageError):
        Input(**bad)


@pytest.mark.parametrize("given", ["half", torch.float16, T.dtype.f16, trt.DataType.HALF])
def test_types(given) -> None:
    assert T.dtype._from(given) is T.dtype.half
    assert T.dtype.half.to(torch.dtype) is torch.float16
    assert T.dtype.half.to(trt.DataType) == trt.DataType.HALF


def test_options_without_effect_are_logged(model, caplog, capfd) -> None:
    T.compile(model, inputs=[X], sparse_weights=True, **FAST)
    assert "sparse_weights" in "".join(capfd.readouterr())


def test_torch_tensorrt_is_ours() -> None:
    from tactician import compat

    compat.install(shadow=True)
    try:
        theirs = importlib.import_module("torch_tensorrt")
        assert theirs.compile is T.compile and theirs.Input is Input and theirs.dtype.half
        assert importlib.import_module("torch_tensorrt.dynamo").compile is dynamo.compile
        assert "torch_tensorrt" in torch._dynamo.list_backends(())
        assert importlib.import_module("torch_tensorrt.runtime").TorchTensorRTModule is TRTModule
        with theirs.logging.errors():
            pass
    finally:
        compat.uninstall()
    assert "torch_tensorrt" not in sys.modules
