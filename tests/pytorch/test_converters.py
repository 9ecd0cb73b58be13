"""Users' own converters, written as for torch2trt."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

import tactician as trt  # noqa: E402
from tactician.support.errors import BuildError, UsageError  # noqa: E402
from tactician.torch import (  # noqa: E402
    CONVERTERS,
    add_missing_trt_tensors,
    converters,
    get_arg,
    tensorrt_converter,
    torch2trt,
    trt_,
)

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def used():
    """Names of converters that ran; registrations go with the test."""
    names: list[str] = []
    before = dict(CONVERTERS)
    yield names
    CONVERTERS.clear()
    CONVERTERS.update(before)
    assert not [c for c in converters._calls.values() if c is None]


def convert(module, inputs, **options):
    return torch2trt(module.eval(), inputs, optimization_level=0, threads=1, **options)


def close(a, b) -> None:
    torch.testing.assert_close(a, b.detach(), rtol=1e-5, atol=1e-5)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

    def forward(self, x):
        y = F.gelu(self.conv(x)) + 1
        return self.fc(y.mean((2, 3))), y.softmax(dim=1)


def test_a_function(used) -> None:
    @tensorrt_converter("torch.nn.functional.gelu")
    def gelu(ctx):
        used.append(ctx.method_str)
        x = ctx.method_args[0]
        assert tuple(x.shape) == (2, 4, 4, 4) and x.dtype is torch.float32
        layer = ctx.network.add_activation(x._trt, trt.ActivationType.RELU)  # to be told apart
        ctx.method_return._trt = layer.get_output(0)

    before = F.gelu
    module, x = Net(), torch.randn(2, 3, 6, 6)
    got = convert(module, [x])(x)
    y = F.relu(module.conv(x)) + 1
    close(got[0], module.fc(y.mean((2, 3))))
    close(got[1], y.softmax(1))
    assert used == ["torch.nn.functional.gelu"] and F.gelu is before


def test_a_method_with_numbers_and_named_arguments(used) -> None:
    @tensorrt_converter("torch.Tensor.__add__")
    def add(ctx):
        used.append("add")
        a, b = trt_(ctx.network, ctx.method_args[0], ctx.method_args[1])
        layer = ctx.network.add_elementwise(a, b, trt.ElementWiseOperation.SUB)
        ctx.method_return._trt = layer.get_output(0)

    @tensorrt_converter("torch.Tensor.softmax")
    def softmax(ctx):
        used.append("softmax")
        (x,) = add_missing_trt_tensors(ctx.network, [ctx.method_args[0]])
        layer = ctx.network.add_softmax(x)
        layer.axes = converters.torch_dim_to_trt_axes(get_arg(ctx, "dim", 1, None), 4)
        ctx.method_return._trt = layer.get_output(0)

    module, x = Net(), torch.randn(2, 3, 6, 6)
    got = convert(module, [x])(x)
    close(got[1], (F.gelu(module.conv(x)) - 1).softmax(1))
    assert sorted(used) == ["add", "softmax"]


def test_a_module(used) -> None:
    @tensorrt_converter("torch.nn.Linear.forward")
    def linear(ctx):
        module, x = ctx.method_args
        used.append(type(module).__name__)
        w, b = (add_missing_trt_tensors(ctx.network, [p])[0]
                for p in (module.weight * 2, module.bias.unsqueeze(0)))
        y = ctx.network.add_matrix_multiply(x._trt, trt.MatrixOperation.NONE, w,
                                            trt.MatrixOperation.TRANSPOSE).get_output(0)
        layer = ctx.network.add_elementwise(y, b, trt.ElementWiseOperation.SUM)
        ctx.method_return._trt = layer.get_output(0)

    module, x = Net(), torch.randn(2, 3, 6, 6)
    got = convert(module, [x])(x)
    y = (F.gelu(module.conv(x)) + 1).mean((2, 3))
    close(got[0], y @ (module.fc.weight * 2).T + module.fc.bias)
    assert used == ["Linear"] and "forward" not in module.fc.__dict__


def outside(x, factor=2.0):
    """A function of nobody's package, with two results."""
    return x * factor, {"s": x.sum(1)}


class Outside(nn.Module):
    def forward(self, x):
        a, b = outside(x, factor=3.0)
        return a, b["s"]


def test_a_function_of_another_package(used) -> None:
    name = f"{__name__}.outside"

    @tensorrt_converter(outside)
    def convert_outside(ctx):
        used.append(ctx.method_kwargs["factor"])
        x = ctx.method_args[0]
        a, b = ctx.method_return
        a._trt = ctx.network.add_unary(x._trt, trt.UnaryOperation.NEG).get_output(0)
        b["s"]._trt = ctx.network.add_reduce(x._trt, trt.ReduceOperation.MAX, 2,
                                             False).get_output(0)

    assert name in CONVERTERS
    x = torch.randn(2, 3)
    import sys

    if name.partition(".")[0] not in sys.modules and __name__ not in sys.modules:
        pytest.skip("the test file is not importable by name")
    got = convert(Outside(), [x])(x)
    close(got[0], -x)
    close(got[1], x.amax(1))
    assert used == [3.0]


def test_sizes_that_vary(used) -> None:
    @tensorrt_converter("torch.relu")
    def relu(ctx):
        used.append(1)
        layer = ctx.network.add_activation(ctx.method_args[0]._trt, trt.ActivationType.RELU)
        ctx.method_return._trt = layer.get_output(0)

    class Relu(nn.Module):
        def forward(self, x):
            return torch.relu(x * 2)

    engine = convert(Relu(), [torch.randn(2, 3)], max_batch_size=5)
    for n in (1, 5):
        x = torch.randn(n, 3)
        close(engine(x), torch.relu(x * 2))
    assert used


def test_failing_converters_are_reported() -> None:
    @tensorrt_converter("torch.nn.functional.gelu")
    def gelu(ctx):
        raise ValueError("no such layer")

    @tensorrt_converter("torch.Tensor.softmax")
    def softmax(ctx):
        pass

    with pytest.raises(BuildError) as e:
        convert(Net(), [torch.randn(2, 3, 6, 6)])
    for part in ("gelu", "no such layer", "test_converters.py", "Net"):
        assert part in str(e.value)


def test_converters_of_nothing_are_refused() -> None:
    tensorrt_converter("torch.no_such_function")(lambda ctx: None)
    with pytest.raises(UsageError, match="no_such_function"):
        convert(Net(), [torch.randn(2, 3, 6, 6)])


@pytest.mark.parametrize("options", [{"enabled": False}, {"imports": ["no_such_package"]}])
def test_converters_that_are_switched_off(options) -> None:
    tensorrt_converter("torch.relu", **options)(lambda ctx: None)
    assert "torch.relu" not in CONVERTERS
