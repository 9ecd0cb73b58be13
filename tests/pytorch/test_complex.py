"""Complex numbers and Fourier transforms."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.utils import _pytree as pytree  # noqa: E402

from tactician.support.errors import BuildError  # noqa: E402
from tactician.torch import TRTModule, torch2trt  # noqa: E402

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore")


def agree(module: nn.Module, *args: Any, other: tuple[Any, ...] = (), **options: Any) -> Any:
    engine = torch2trt(module.eval(), list(args), optimization_level=0, threads=1, **options)
    for call in filter(None, (args, other)):
        with torch.no_grad():
            pairs = zip(pytree.tree_leaves(engine(*call)), pytree.tree_leaves(module(*call)),
                        strict=True)
        for got, want in pairs:
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    return engine


class Rotary(nn.Module):
    """Positions as complex factors."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("turn", torch.polar(torch.ones(5, 4), torch.randn(5, 4)))

    def forward(self, x):
        z = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2)) * self.turn
        return torch.view_as_real(z).flatten(-2), z.angle(), (z / (z + 1)).abs()


def test_rotary_positions() -> None:
    agree(Rotary(), torch.randn(2, 5, 8), other=(torch.randn(3, 5, 8),), max_batch_size=4)


class Arithmetic(nn.Module):
    def forward(self, z, w):
        k = torch.complex(z.real, w.imag)
        return (z + w * 2, z - 1, z * (2 - 1j), 1 / (w + 3), z.conj() @ w.transpose(0, 1),
                torch.exp(z), z**3, z == w, torch.where(z.real > 0, z, w), torch.cat([z, k]),
                z.sum(1), k.mean(), z.flip(0)[:, 1:], torch.einsum("ab,cb->ac", z, w))


def test_arithmetic_on_complex_arguments() -> None:
    z, w = (torch.randn(3, 4, dtype=torch.cfloat) for _ in range(2))
    engine = agree(Arithmetic(), z, w, other=(w.conj(), z))
    again = TRTModule()
    again.load_state_dict(engine.state_dict())
    torch.testing.assert_close(again(z, w)[0], z + w * 2)


class Spectral(nn.Module):
    """The layer of Fourier neural operators, and other transforms."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4, 3, 2, dtype=torch.cfloat))

    def forward(self, x):
        f = torch.fft.rfft2(x)
        out = torch.zeros(x.shape[0], 4, *f.shape[2:], dtype=torch.cfloat)
        out[:, :, :3, :2] = torch.einsum("bixy,ioxy->boxy", f[:, :, :3, :2], self.weight)
        return (torch.fft.irfft2(out, s=x.shape[-2:]), torch.fft.fft(x, norm="ortho"),
                torch.fft.ifft(x, norm="forward"), torch.fft.fftshift(torch.fft.fft2(x)),
                torch.fft.rfft(x, n=9), torch.fft.irfftn(f, s=(8, 5), dim=(2, 3)),
                torch.fft.hfft(x), torch.fft.ifft2(out))


def test_fourier_transforms() -> None:
    agree(Spectral(), torch.randn(2, 3, 8, 6))


class Spectrogram(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(16))

    def forward(self, x):
        f = torch.stft(x, 16, 8, window=self.window, return_complex=True)
        return f.abs() ** 2, torch.istft(f, 16, 8, window=self.window)


def test_spectrogram_and_back() -> None:
    agree(Spectrogram(), torch.randn(2, 80))


def test_what_has_no_importer_is_said() -> None:
    class Model(nn.Module):
        def forward(self, z):
            return torch.linalg.inv(z)

    with pytest.raises(BuildError, match=r"linalg|complex"):
        torch2trt(Model(), [torch.randn(3, 3, dtype=torch.cfloat)])
    mixed = torch2trt(Model(), [torch.randn(3, 3, dtype=torch.cfloat)], partition=True)
    z = torch.randn(3, 3, dtype=torch.cfloat)
    torch.testing.assert_close(mixed(z), torch.linalg.inv(z))
