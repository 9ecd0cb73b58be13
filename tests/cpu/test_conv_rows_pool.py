"""Convolutions to few channels together with the pooling behind them, against torch."""

import numpy as np
import pytest
from convkit import RNG, run

from tactician.ir.graph import Graph
from tactician.ops import emit
from tactician.targets.cpu import conv_rows_pool as M

torch = pytest.importorskip("torch")
TACTIC = M.PooledRowConvolution


def pool_by_torch(x, fn, window, stride, pre, include=False):
    pad = tuple(pre)
    if fn == "max":
        return torch.nn.functional.max_pool2d(x, window, stride, pad)
    return torch.nn.functional.avg_pool2d(x, window, stride, pad, count_include_pad=include)


def check(
    monkeypatch, x_shape, w_shape, fn="max", window=(2, 2), stride=(2, 2), pre=(0, 0), pad=(1, 1),
    residual=False, last=True, include=False, tactic="conv_rows_pool", pick=None, again=False,
    conv_stride=(1, 1),
):  # fmt: skip
    g = Graph("t")
    x = g.add_input("x", "f32", x_shape)
    w, b = (RNG.standard_normal(s).astype("f4") for s in (w_shape, w_shape[:1]))
    feeds = {"x": RNG.standard_normal(x_shape).astype("f4")}
    y = emit(g, "convolution", [x, g.constant(w), g.constant(b)], "conv", pre=pad, post=pad,
             stride=conv_stride).output  # fmt: skip
    want = torch.nn.functional.conv2d(
        torch.from_numpy(feeds["x"]), torch.from_numpy(w), torch.from_numpy(b), padding=pad,
        stride=conv_stride,
    )  # fmt: skip
    if residual:
        r = g.add_input("r", "f32", y.dims)
        feeds["r"] = RNG.standard_normal(tuple(want.shape)).astype("f4")
        y = emit(g, "binary", [y, r], "sum", fn="add").output
        want = want + torch.from_numpy(feeds["r"])
    y = emit(g, "activation", [y], "relu", fn="relu").output
    want, kept = want.relu(), want.relu()
    p = emit(g, "pooling", [y], "pool", fn=fn, window=window, stride=stride, pre=pre, post=pre,
             count_include_pad=include).output  # fmt: skip
    want = pool_by_torch(want, fn, window, stride, pre, include)
    if last:  # read by what wants it channels-last
        k = w_shape[0]
        one = RNG.standard_normal((16, k, 1, 1)).astype("f4")
        p = emit(g, "convolution", [p, g.constant(one)], "behind").output
        want = torch.nn.functional.conv2d(want, torch.from_numpy(one))
    g.outputs = [p]
    if again:
        g.outputs = [p, emit(g, "unary", [y], "other", fn="neg").output]
    if pick is not None:
        real = M._choices
        monkeypatch.setattr(M, "_choices", lambda *a: pick(real(*a)))
    got, tactics = run(g, feeds, 0)
    assert (tactic in tactics) == (tactic == "conv_rows_pool" and not again), tactics
    want = want.numpy()
    np.testing.assert_allclose(got[0], want, atol=1e-4 * np.abs(want).max())
    if again:
        np.testing.assert_allclose(got[1], -kept.numpy(), atol=1e-4 * np.abs(kept.numpy()).max())


@pytest.mark.parametrize("share", [1, 2, 4])
@pytest.mark.parametrize("k, c", [(8, 1), (12, 5), (16, 3), (19, 4)])
def test_every_kind_of_tile(monkeypatch, share, k, c):
    for last in (True, False):
        check(monkeypatch, (2, c, 24, 21), (k, c, 3, 3), last=last,
              pick=lambda found: [t for t in found if t.share == share])  # fmt: skip


@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("fn", ["max", "average"])
@pytest.mark.parametrize("geometry", [
    ((2, 2), (2, 2), (0, 0)), ((3, 3), (3, 3), (0, 0)), ((3, 3), (2, 2), (1, 1)),
    ((2, 3), (1, 2), (0, 1)), ((4, 4), (3, 2), (2, 1)),
], ids=str)  # fmt: skip
def test_windows(monkeypatch, rows, fn, geometry):
    """Items of few pooled rows, also where windows overlap or reach past the borders."""
    from dataclasses import replace

    window, stride, pre = geometry
    monkeypatch.setattr(M, "_MOST_AGAIN", 100.0)

    def few(found):
        t = next(t for t in found if t.share == 2)
        needed = (rows - 1) * stride[0] + window[0]
        return [replace(t, pooled=rows, rows=-(-needed // 2))]

    for include in (False, True):
        check(monkeypatch, (1, 3, 17, 22), (12, 3, 3, 3), fn, window, stride, pre,
              include=include, pick=few)  # fmt: skip
        monkeypatch.undo()
        monkeypatch.setattr(M, "_MOST_AGAIN", 100.0)


def test_epilogue_and_strides(monkeypatch):
    check(monkeypatch, (2, 6, 15, 13), (10, 6, 3, 3), residual=True)
    check(monkeypatch, (1, 6, 30, 31), (10, 6, 5, 5), conv_stride=(2, 2), pad=(2, 2))
    check(monkeypatch, (1, 1, 12, 90), (3, 1, 4, 4), "average", (1, 2), (1, 2), pad=(0, 0))


def test_results_that_others_read_are_written(monkeypatch):
    check(monkeypatch, (1, 6, 15, 13), (10, 6, 3, 3), again=True)


def test_recomputing_many_rows_is_refused(monkeypatch):
    """Where few rows fit near and windows overlap, both layers stay by themselves."""
    check(monkeypatch, (1, 3, 64, 512), (64, 3, 7, 7), window=(3, 3), pre=(1, 1), tactic="none")


def test_pooled_results_side_by_side():
    """What is added behind the pooling; results that are parts of a concatenation."""
    g = Graph("t")
    x, r = g.add_input("x", "f32", (1, 4, 12, 14)), g.add_input("r", "f32", (1, 8, 6, 7))
    feeds = {v.name: RNG.standard_normal(v.dims).astype("f4") for v in (x, r)}
    made, want = [], []
    for n in range(2):
        w = RNG.standard_normal((8, 4, 3, 3)).astype("f4")
        y = emit(g, "convolution", [x, g.constant(w)], f"conv{n}", pre=(1, 1), post=(1, 1)).output
        y = emit(g, "pooling", [y], f"pool{n}", fn="max", window=(2, 2), stride=(2, 2)).output
        z = torch.nn.functional.conv2d(torch.from_numpy(feeds["x"]), torch.from_numpy(w), padding=1)
        z = torch.nn.functional.max_pool2d(z, 2)
        if n:
            y = emit(g, "binary", [y, r], "sum", fn="add").output
            z = z + torch.from_numpy(feeds["r"])
        made.append(y)
        want.append(z)
    y = emit(g, "concat", made, "both", axis=1).output
    one = RNG.standard_normal((16, 16, 1, 1)).astype("f4")
    g.outputs = [emit(g, "convolution", [y, g.constant(one)], "behind").output]
    (got,), tactics = run(g, feeds, 0)
    assert "conv_rows_pool" in tactics
    expected = torch.nn.functional.conv2d(torch.cat(want, 1), torch.from_numpy(one)).numpy()
    np.testing.assert_allclose(got, expected, atol=1e-4 * np.abs(expected).max())
