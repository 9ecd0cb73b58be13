"""Runs torch2trt's own tests over tactician, also on a torch without CUDA. It is a plugin of
pytest, to be named with ``-p`` (``make torch2trt``); ``TACTICIAN_CROSS_VALIDATE=1e-3`` tightens the
tolerances of the tests. TF32 is hardly more exact than that: ``NVIDIA_TF32_OVERRIDE=0`` rules it
out, for torch and for engines."""

from __future__ import annotations

import os
from types import SimpleNamespace

import tactician.compat

tactician.compat.install(shadow=True)

# torch2trt has no converter for scaled_dot_product_attention; timm writes it out if told so
os.environ.setdefault("TIMM_FUSED_ATTN", "0")

import torch  # noqa: E402

if not torch.cuda.is_available():
    # What torch2trt asks of CUDA, on the host: tensors are where they should be already
    torch.Tensor.cuda = lambda self, *a, **k: self
    torch.nn.Module.cuda = lambda self, *a, **k: self
    torch.cuda.current_stream = lambda *a: SimpleNamespace(cuda_stream=0, synchronize=lambda: None)
    torch.cuda.synchronize = lambda *a: None
    _device = torch.device

    def _on_host(function):
        def call(*args, **kwargs):
            if str(kwargs.get("device", "")).startswith("cuda"):
                kwargs["device"] = "cpu"
            return function(*args, **kwargs)

        return call

    for _name in "empty zeros ones rand randn arange full tensor linspace".split():
        setattr(torch, _name, _on_host(getattr(torch, _name)))
    _to = torch.Tensor.to
    torch.Tensor.to = lambda self, *args, **kwargs: _to(
        self, *["cpu" if str(a).startswith("cuda") else a for a in args],
        **{k: "cpu" if str(v).startswith("cuda") else v for k, v in kwargs.items()})

# torch2trt passes `x.contiguous().data_ptr()` and drops the tensor; CUDA's caching allocator
# happens to leave such memory alone until the engine ran, the host's does not
_data_ptr = torch.Tensor.data_ptr
_kept: list[torch.Tensor] = []


def _keep(self: torch.Tensor) -> int:
    _kept.append(self)
    del _kept[:-64]
    return _data_ptr(self)


torch.Tensor.data_ptr = _keep

if os.environ.get("TACTICIAN_CROSS_VALIDATE"):
    _allclose = torch.allclose
    _limit = float(os.environ["TACTICIAN_CROSS_VALIDATE"])
    torch.allclose = lambda a, b, rtol=1e-5, atol=1e-8, equal_nan=False: _allclose(
        a, b, rtol=min(rtol, _limit), atol=min(atol, _limit), equal_nan=equal_nan)

# torch2trt was written for the exporter that traces; newer torch takes another unless told so
_export = torch.onnx.export
torch.onnx.export = lambda *args, **kwargs: _export(*args, **{"dynamo": False, **kwargs})


def _import_torchvision() -> None:
    """Declares the native operators of a torchvision whose native part is for another torch;
    its models don't need them."""
    import re
    import sys

    library = torch.library.Library("torchvision", "FRAGMENT")
    for _ in range(40):
        try:
            import torchvision  # noqa: F401

            return
        except ImportError:
            return
        except RuntimeError as e:
            missing = re.search(r"operator torchvision::(\w+) does not exist", str(e))
            if missing is None:
                raise
            library.define(f"{missing[1]}(Tensor x) -> Tensor")
        for name in [n for n in sys.modules if n.partition(".")[0] == "torchvision"]:
            del sys.modules[name]


_import_torchvision()
