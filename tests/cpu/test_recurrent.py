"""Native recurrent layers against the op's numpy reference."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "ops"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from native_stages import device, sizes
from stage_checks import make, same

from tactician.ops import evaluate
from tactician.regions.region import Region
from tactician.targets.cpu.recurrent import RnnTactic

RNG = np.random.default_rng(0)
GATES = {"lstm": 4, "gru": 3, "rnn": 1}


def f(*shape, dtype=np.float32):
    return (RNG.normal(size=shape) * 0.5).astype(dtype)


def check(cell, *, steps=5, batch=3, size=7, hidden=20, dtype=np.float32, bias=True, lens=None,
          state=True, peephole=False, dynamic=False, **attrs):  # fmt: skip
    dirs = 2 if attrs.get("direction") == "bidirectional" else 1
    first = attrs.get("layout", 0) == 0
    rows = GATES[cell] * hidden
    shape = (dirs, batch, hidden) if first else (batch, dirs, hidden)
    arrays = [
        f(*((steps, batch) if first else (batch, steps)), size, dtype=dtype),
        f(dirs, rows, size, dtype=dtype), f(dirs, rows, hidden, dtype=dtype),
        f(dirs, 2 * rows, dtype=dtype) if bias else None,
        None if lens is None else np.array(lens, np.int32),
        f(*shape, dtype=dtype) if state else None,
        f(*shape, dtype=dtype) if state and cell == "lstm" else None,
        f(dirs, 3 * hidden, dtype=dtype) if peephole else None,
    ]  # fmt: skip
    consts = tuple(k for k in (1, 2, 3, 7) if arrays[k] is not None)
    node = make("rnn", *arrays, const=consts, cell=cell, hidden=hidden, dynamic=dynamic, **attrs)
    region = Region([node], anchor=node, outputs=list(node.outputs))
    assert RnnTactic().refuse(region, device()) is None
    wanted = evaluate(node, *arrays)
    for candidate in RnnTactic().candidates(region, device()):
        kernel = RnnTactic().build(region, candidate, device())
        memory = dict(zip(node.inputs, arrays, strict=True))
        outs = [np.full(w.shape, 99, w.dtype) for w in wanted]
        memory.update(zip(node.outputs, outs, strict=True))
        given = [a if isinstance(a, np.ndarray) else memory[a] for a in kernel.args]
        device().run_kernel(kernel, given, sizes(node, arrays))
        for a, b in zip(outs, wanted, strict=True):
            same(a, b, 1e-5, 1e-5)


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("layout", [0, 1])
@pytest.mark.parametrize("cell", GATES)
def test_directions_and_layouts(cell, layout, direction):
    check(cell, layout=layout, direction=direction)


@pytest.mark.parametrize("cell", GATES)
def test_lengths(cell):
    check(cell, lens=[5, 0, 3])
    check(cell, lens=[2, 5, 3], direction="bidirectional")


@pytest.mark.parametrize("cell", GATES)
def test_symbolic_sizes(cell):
    check(cell, dynamic=True)


@pytest.mark.parametrize("dtype", [np.float64, np.float16])
def test_types(dtype):
    check("lstm", dtype=dtype)


def test_variants():
    check("lstm", peephole=True, clip=0.3)
    check("lstm", input_forget=True, bias=False, state=False)
    check("gru", linear_before_reset=True)
    check("gru", linear_before_reset=True, direction="bidirectional", clip=0.2)
    check("lstm", hidden=5, size=1, batch=1)


@pytest.mark.parametrize("name", [
    "relu", "affine", "leaky_relu", "thresholded_relu", "scaled_tanh", "hard_sigmoid", "elu",
    "softsign", "softplus",
])  # fmt: skip
def test_activations(name):
    check("rnn", activations=(name,))


def test_weights_must_be_constant():
    arrays = [f(5, 3, 7), f(1, 80, 7), f(1, 80, 20)]
    node = make("rnn", *arrays, cell="lstm", hidden=20)
    region = Region([node], anchor=node, outputs=list(node.outputs))
    assert "not constant" in RnnTactic().refuse(region, device())
