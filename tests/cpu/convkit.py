"""One convolution, built for the CPU and compared with torch's."""

import numpy as np
import pytest

from tactician.builder.compile import compile_network
from tactician.builder.settings import BuildSettings, ProfileSettings
from tactician.ir import dims as D
from tactician.ir.graph import Graph
from tactician.ops import emit
from tactician.runtime.core import EngineCore
from tactician.runtime.schedule import Schedule

torch = pytest.importorskip("torch")
RNG = np.random.default_rng(0)


def run(graph, feeds, level=1):
    """Compiles for the CPU and runs once; returns (outputs, tactics used)."""
    ranges = {v.name: (feeds[v.name].shape,) * 3 for v in graph.inputs}
    settings = BuildSettings(optimization_level=level, profiles=(ProfileSettings(ranges),))
    program, _ = compile_network(graph, settings)
    core = EngineCore(program)
    layout = core.layout({i: feeds[program.tensors[i].name].shape for i in program.inputs}, {})
    arena = np.zeros(layout.arena + 64, np.uint8)
    schedule = Schedule(core, layout, -(-arena.ctypes.data // 64) * 64, keep=arena)
    arrays = {i: np.ascontiguousarray(feeds[program.tensors[i].name]) for i in program.inputs}
    arrays |= {i: np.full(layout.shapes[i], np.nan, "f4") for i in program.outputs}
    schedule.bind({i: a.ctypes.data for i, a in arrays.items()})
    schedule.run()
    tactics = {s.info.get("tactic") for s in program.steps if "convolution" in s.info["ops"]}
    return [arrays[i] for i in program.outputs], tactics


def check(
    x_shape, w_shape, *, dynamic=(), residual=False, act=None, bias=True, tactic="conv_direct",
    level=1, **attrs
):
    """One convolution with an optional epilogue; must be done by the tactic."""
    g = Graph("t")
    shape = tuple(D.sym(f"x.{i}") if i in dynamic else d for i, d in enumerate(x_shape))
    x = g.add_input("x", "f32", shape)
    w = RNG.standard_normal(w_shape).astype("f4")
    b = RNG.standard_normal(w_shape[0]).astype("f4")
    n = len(w_shape) - 2
    inputs = [x, g.constant(w)] + ([g.constant(b)] if bias else [])
    y = emit(g, "convolution", inputs, "conv", **attrs).output
    feeds = {"x": RNG.standard_normal(x_shape).astype("f4")}
    pad = list(zip(attrs.get("pre", (0,) * n), attrs.get("post", (0,) * n), strict=True))
    padded = np.pad(feeds["x"], [(0, 0), (0, 0), *pad])
    conv = [torch.nn.functional.conv1d, torch.nn.functional.conv2d, torch.nn.functional.conv3d]
    want = conv[n - 1](
        torch.from_numpy(padded), torch.from_numpy(w), torch.from_numpy(b) if bias else None,
        stride=attrs.get("stride", 1), dilation=attrs.get("dilation", 1),
        groups=attrs.get("groups", 1),
    ).numpy()
    if residual:
        r = g.add_input("r", "f32", y.dims)
        feeds["r"] = RNG.standard_normal(want.shape).astype("f4")
        y = emit(g, "binary", [y, r], "sum", fn="add").output
        want = want + feeds["r"]
    if act:
        y = emit(g, "activation", [y], act, fn=act, alpha=1.0).output
        want = {"relu": np.maximum(want, 0), "swish": want / (1 + np.exp(-want))}[act]
    g.outputs = [y]
    (got,), tactics = run(g, feeds, level)
    assert tactics == {tactic}, tactics
    np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())
