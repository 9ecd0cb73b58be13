"""Well-known networks with random weights: engines agree with eager torch."""

from __future__ import annotations

import importlib.util

import pytest

torch = pytest.importorskip("torch")
from torch.utils import _pytree as pytree  # noqa: E402
from torch_zoo import NETWORKS  # noqa: E402

from tactician.torch import torch2trt  # noqa: E402

torch.set_num_threads(1)
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(600)]
QUICK = ("resnet50", "mobilenet_v3", "bert", "gpt2_step", "lstm")  # the others are slow together


def cases(quick: tuple[str, ...]) -> list[object]:
    there = importlib.util.find_spec("transformers") is not None
    return [pytest.param(n, marks=[
        *([] if n in quick else [pytest.mark.slow]),
        *([pytest.mark.skipif(not there, reason="transformers is not installed")]
          if net.transformers else []),
    ]) for n, net in NETWORKS.items()]


def tensors(tree: object) -> list[torch.Tensor]:
    return [x for x in pytree.tree_leaves(tree) if isinstance(x, torch.Tensor)]


def agree(engine, module, args, tol: float = 1e-4) -> None:
    with torch.no_grad():
        got, want = tensors(engine(*args)), tensors(module(*args))
    assert len(got) == len(want)
    for g, w in zip(got, want, strict=True):
        scale = max(float(w.abs().max()), 1e-3) if w.is_floating_point() else 1
        torch.testing.assert_close(g / scale, w / scale, rtol=tol, atol=tol)


@pytest.mark.parametrize("name", cases(QUICK))
def test_static_batch(name: str) -> None:
    module, args = NETWORKS[name].module(), NETWORKS[name].call(2, False)
    engine = torch2trt(module, args, optimization_level=0, threads=1)
    agree(engine, module, args)
    assert "reference" not in [s.kind for s in engine.engine._core.program.steps]


@pytest.mark.parametrize("name", cases(("bert",)))
def test_dynamic_batch(name: str) -> None:
    module, args = NETWORKS[name].module(), NETWORKS[name].call(2, False)
    shapes = [tuple(x.shape) for x in tensors(args)]
    low, high = ([(n, *s[1:]) for s in shapes] for n in (1, 4))
    engine = torch2trt(module, args, min_shapes=low, max_shapes=high, optimization_level=0,
                       threads=1)
    for n in (1, 2, 3):
        agree(engine, module, NETWORKS[name].call(n, False))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
@pytest.mark.parametrize("name", cases(()))
def test_half_precision_modules(name: str, dtype: torch.dtype) -> None:
    module = NETWORKS[name].module().to(dtype)
    args = pytree.tree_map_only(
        torch.Tensor, lambda t: t.to(dtype) if t.is_floating_point() else t,
        NETWORKS[name].call(2, False))
    with torch.no_grad():
        if not all(bool(t.isfinite().all()) for t in tensors(module(*args))):
            pytest.skip(f"eager {name} overflows in {dtype}")
    engine = torch2trt(module, args, optimization_level=0, threads=1)
    agree(engine, module, args, 2e-2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2", "efficientnet", "convnext", "unet"])
def test_the_real_size(name: str) -> None:
    module, args = NETWORKS[name].module(True), NETWORKS[name].call(1, True)
    agree(torch2trt(module, args, optimization_level=0, threads=1), module, args)

