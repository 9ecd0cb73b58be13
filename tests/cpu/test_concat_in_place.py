"""Channels-last concatenations, whose pieces are written in their places, against torch."""

import numpy as np
import pytest
from test_conv_direct import run

from tactician.builder.compile import compile_network
from tactician.builder.settings import BuildSettings, ProfileSettings
from tactician.ir import dims as D
from tactician.ir.graph import Graph
from tactician.ops import emit

torch = pytest.importorskip("torch")
F = torch.nn.functional
RNG = np.random.default_rng(0)


class Net:
    """Builds a graph and computes the same with torch; values are pairs."""

    def __init__(self, n=2, c=16, h=9, w=10, dynamic=()):
        self.graph = Graph("t")
        shape = tuple(D.sym(f"x.{i}") if i in dynamic else d for i, d in enumerate((n, c, h, w)))
        self.feeds = {"x": RNG.standard_normal((n, c, h, w)).astype("f4")}
        self.x = self.graph.add_input("x", "f32", shape), torch.from_numpy(self.feeds["x"])

    def conv(self, x, k, size=3, **attrs):
        w = (RNG.standard_normal((k, x[1].shape[1] // attrs.get("groups", 1), size, size)) / size)
        w, p = w.astype("f4"), (size // 2,) * 2
        y = emit(self.graph, "convolution", [x[0], self.graph.constant(w)], "conv", pre=p, post=p,
                 **attrs).output
        return y, F.conv2d(x[1], torch.from_numpy(w), padding=p, **attrs)

    def pool(self, x):
        y = emit(self.graph, "pooling", [x[0]], "pool", fn="max", window=(3, 3), stride=(1, 1),
                 pre=(1, 1), post=(1, 1)).output
        return y, F.max_pool2d(x[1], 3, 1, 1)

    def relu(self, x):
        return emit(self.graph, "activation", [x[0]], "relu", fn="relu").output, F.relu(x[1])

    def cat(self, *xs):
        y = emit(self.graph, "concat", [x[0] for x in xs], "cat", axis=1).output
        return y, torch.cat([x[1] for x in xs], 1)

    def check(self, *results, copies=0, concats=0):
        """Compares, and counts steps that only copy pieces or concatenate."""
        self.graph.outputs = [y for y, _ in results]
        for level in (0, 1):
            got, _ = run(self.graph, self.feeds, level=level)
            for a, (_, want) in zip(got, results, strict=True):
                np.testing.assert_allclose(a, want.numpy(), atol=1e-4 * float(want.abs().max()))
        ranges = {v.name: (self.feeds[v.name].shape,) * 3 for v in self.graph.inputs}
        settings = BuildSettings(optimization_level=0, profiles=(ProfileSettings(ranges),))
        program, report = compile_network(self.graph, settings)
        names = [s.name for s in program.steps]
        assert sum(n.startswith("copy") for n in names) == copies, names
        assert sum(n.startswith("cat") for n in names) == concats, names
        assert not report.reference


@pytest.mark.parametrize("dynamic", [(), (0,), (2, 3)])
def test_branches(dynamic):
    n = Net(dynamic=dynamic)
    a = n.conv(n.x, 24)
    joined = n.cat(n.relu(n.conv(a, 20, 1)), n.conv(a, 16), n.pool(a))
    n.check(n.conv(n.conv(joined, 16), 8, 1))


def test_nested_and_repeated():
    n = Net()
    a = n.conv(n.x, 24)
    b = n.conv(a, 12, 1)
    first = n.cat(a, b)
    second = n.cat(first, n.conv(first, 16))
    third = n.cat(n.pool(second), a, second, a)
    n.check(n.conv(third, 8, 1), copies=2)


@pytest.mark.parametrize("reader", [{"groups": 2}, {"groups": 40}, {"stride": (2, 2)}, {"size": 1}])
def test_readers(reader):
    n = Net()
    a = n.cat(n.conv(n.x, 24), n.conv(n.x, 16))
    b = n.cat(a, n.conv(a, 8))  # a is a slice now
    k = 40 if reader.get("groups") == 40 else 32
    n.check(n.conv(n.conv(a, k, **reader), 8, 1), n.conv(n.pool(b), 8))


def test_piece_and_result_needed_elsewhere():
    n = Net()
    a, b = n.conv(n.x, 16), n.conv(n.x, 8)
    joined = n.cat(a, b)
    n.check(n.conv(joined, 16), a, concats=0)


def test_result_is_an_output():
    n = Net()
    n.check(n.cat(n.conv(n.x, 16), n.conv(n.x, 8)), concats=1)
