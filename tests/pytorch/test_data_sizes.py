"""Results of which data decide the size or the value, and random numbers."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.utils import _pytree as pytree  # noqa: E402

from tactician.torch import torch2trt  # noqa: E402
from tactician.torch.lower import is_random  # noqa: E402
from tactician.torch.table import complex_table, table  # noqa: E402

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore")


class Call(nn.Module):
    def __init__(self, fn: Any):
        super().__init__()
        self.fn = fn

    def forward(self, *args):
        return self.fn(*args)


def built(fn: Any, *args: Any, **options: Any) -> Any:
    return torch2trt(Call(fn).eval(), list(args), optimization_level=0, threads=1, **options)


def same(engine: Any, fn: Any, *args: Any) -> None:
    pairs = zip(pytree.tree_leaves(engine(*args)), pytree.tree_leaves(fn(*args)), strict=True)
    for got, want in pairs:
        torch.testing.assert_close(got, want)


def masks(x):
    m = x > 0
    return (torch.nonzero(m), x[m], x[m[:, 0]] * 2, torch.masked_select(x, m), m.argwhere(),
            x[:, m[0]].sum(1))


def test_masks_select_as_many_as_they_are_true() -> None:
    engine = built(masks, torch.randn(3, 4))
    for x in (torch.randn(3, 4), torch.ones(3, 4), -torch.ones(3, 4), torch.eye(3, 4)):
        same(engine, masks, x)


def test_masks_of_a_batch_that_varies() -> None:
    def fn(x):
        kept = x[x[:, 0] > 0]
        return kept.softmax(1), kept.shape[0] * x

    engine = built(fn, torch.randn(3, 4), max_batch_size=6)
    for n in (1, 6, 2):
        x = torch.randn(n, 4)
        x[0, 0] = 1
        same(engine, fn, x)


def test_values_at_the_places_of_a_mask() -> None:
    def fn(x, y):
        x = x.clone()
        x[x > 0] = y[x > 0] * 3
        return x

    engine = built(fn, torch.randn(3, 4), torch.randn(3, 4))
    for _ in range(3):
        same(engine, fn, torch.randn(3, 4), torch.randn(3, 4))


def test_numbers_of_tensors_become_sizes_and_factors() -> None:
    def fn(x, n, f):
        n, f = n.item(), f.item()
        torch._check(n >= 0)
        torch._check(n <= x.shape[0])
        return x * n, torch.zeros(n) + f, x[:n] * f, x + (f * 2 + 1)

    engine = built(fn, torch.randn(5, 2), torch.tensor(2), torch.tensor(0.5))
    for n, f in ((1, 0.25), (5, -2.0), (0, 3.0)):
        same(engine, fn, torch.randn(5, 2), torch.tensor(n), torch.tensor(f))


def test_negative_numbers_stay_negative() -> None:
    def fn(x, n):
        return x * n.item() + 3 * n.item()

    engine = built(fn, torch.randn(5, 2), torch.tensor(2))
    same(engine, fn, torch.randn(5, 2), torch.tensor(-7))


def test_distinct_elements() -> None:
    def fn(x):
        values, inverse, counts = torch.unique(x, return_inverse=True, return_counts=True)
        return values, inverse, counts, torch.unique(x, dim=0)

    engine = built(fn, torch.randint(0, 5, (4, 3)))
    for high in (2, 9):
        same(engine, fn, torch.randint(0, high, (4, 3)))


def random_numbers(x):
    return (torch.rand(4000) + 1, torch.randn(4000) * 2, torch.randint(3, 7, (4000,)),
            torch.randperm(50), torch.bernoulli(torch.full((4000,), 0.25)), torch.rand_like(x))


def test_random_numbers_have_torchs_distributions() -> None:
    engine = built(random_numbers, torch.randn(3, 4))
    first, second = engine(torch.zeros(3, 4)), engine(torch.zeros(3, 4))
    uniform, normal, whole, order, coins, like = first
    assert all(not torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert uniform.min() >= 1 and uniform.max() < 2 and abs(uniform.mean() - 1.5) < 0.05
    assert abs(normal.mean()) < 0.2 and abs(normal.std() - 2) < 0.15
    assert whole.unique().tolist() == [3, 4, 5, 6] and whole.dtype is torch.int64
    assert torch.equal(order.sort().values, torch.arange(50))
    assert abs(coins.mean() - 0.25) < 0.05 and coins.unique().tolist() == [0, 1]
    assert like.shape == (3, 4)


def test_that_they_differ_is_logged(capfd: pytest.CaptureFixture[str]) -> None:
    built(lambda x: x + torch.rand_like(x), torch.zeros(2))
    said = capfd.readouterr()
    assert "torch.manual_seed has no effect" in said.out + said.err


def test_torch_draws_them_where_it_runs_a_part() -> None:
    def fn(x):
        y = (x * 2).tanh().exp().sigmoid() + 1
        return ((y + torch.rand_like(y)) * 2).tanh().exp().sigmoid() + 1

    mixed = built(fn, torch.zeros(3, 4), partition=True)
    assert len(mixed.engines) == 2
    x = torch.randn(3, 4)
    torch.manual_seed(3)
    got = mixed(x)
    torch.manual_seed(3)
    torch.testing.assert_close(got, fn(x))


def test_dropout_does_nothing_in_eval_mode() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Dropout1d(0.5)).eval()
    x = torch.randn(2, 3)
    engine = torch2trt(net, [x], optimization_level=0, threads=1)
    assert not any("fill" in s.name for s in engine.engine._core.program.steps)
    torch.testing.assert_close(engine(x), net(x))


def test_all_core_overloads_of_inference_have_importers() -> None:
    from tactician.torch.lower import decompositions

    known = {*table(), *complex_table(), *decompositions()}
    core = {getattr(packet, o) for name in dir(torch.ops.aten)
            if isinstance(packet := getattr(torch.ops.aten, name), torch._ops.OpOverloadPacket)
            for o in packet.overloads() if torch.Tag.core in getattr(packet, o).tags}
    left = {str(t) for t in core - known}
    assert not {t for t in left if "_backward." not in t and "_." not in t
                and not t.startswith("aten.sym_")}
    assert len(core) > 150


def test_random_overloads_are_told_apart() -> None:
    assert is_random(torch.ops.aten.rand.default) and not is_random(torch.ops.aten.add.Tensor)
