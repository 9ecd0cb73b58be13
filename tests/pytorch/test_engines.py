"""Engines built from modules agree with eager torch and need no reference steps."""

from __future__ import annotations

import json

import pytest

torch = pytest.importorskip("torch")
from test_networks import CASES  # noqa: E402

import tactician as trt  # noqa: E402
from tactician.torch import torch2trt  # noqa: E402

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("name", [
    pytest.param(n, marks=() if n in ("mobilenet_v3", "vit") else pytest.mark.slow)
    for n in CASES])
def test_an_engine_agrees(name: str) -> None:
    torch.manual_seed(0)
    make, args, _ = CASES[name]
    module = make().eval()
    engine = torch2trt(module, args, optimization_level=0, threads=1)
    with torch.no_grad():
        torch.testing.assert_close(engine(*args), module(*args), rtol=1e-4, atol=1e-4)
    inspector = engine.engine.create_engine_inspector()
    text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    assert json.loads(text)
    kinds = [s.kind for s in engine.engine._core.program.steps]
    assert "reference" not in kinds, f"{name}: {kinds}"


def test_one_pixel_images_of_a_batch() -> None:
    conv, x = torch.nn.Conv2d(32, 8, 1), torch.randn(3, 32, 1, 1)
    engine = torch2trt(conv.eval(), [x], optimization_level=0, threads=1)
    torch.testing.assert_close(engine(x), conv(x).detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet", "bert"])
def test_the_plan_is_that_of_the_onnx_route(name: str) -> None:
    make, args, _ = CASES[name]
    module = make().eval()
    plans = []
    for use_onnx in (False, True):
        engine = torch2trt(module, args, optimization_level=0, threads=1, use_onnx=use_onnx)
        plans.append(len(engine.engine._core.program.steps))
    assert plans[0] <= plans[1], plans


def test_views_around_a_product_do_not_keep_it_from_what_follows() -> None:
    class Flat(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.b = (torch.nn.Parameter(torch.randn(*s)) for s in ((16, 32), (32,)))

        def forward(self, x):
            y = torch.addmm(self.b, x.view(-1, 16), self.w).view(2, 5, 32)
            return torch.mm(y.relu().view(-1, 32), self.w.t()).view(2, 5, 16) + x

    module, x = Flat().eval(), torch.randn(2, 5, 16)
    engine = torch2trt(module, [x], optimization_level=0, threads=1)
    torch.testing.assert_close(engine(x), module(x).detach(), rtol=1e-4, atol=1e-4)
    assert len(engine.engine._core.program.steps) == 2
