"""How the op tests build one node and compare its forms."""

from __future__ import annotations

from typing import Any

import numpy as np

from tactician.ir import dims as D
from tactician.ir.dtypes import dtype
from tactician.ir.graph import Graph, Node
from tactician.ops import emit, evaluate, get
from tactician.ops.stage_eval import run_stages
from tactician.testing.native_stages import run_native_stages


def make(op: str, *arrays: Any, const: tuple[int, ...] = (), dynamic: bool = False,
         fixed: tuple[int, ...] = (), **attrs: Any) -> Node:
    """A node on inputs shaped like ``arrays``; those listed in ``const`` are constants.
    ``dynamic`` replaces sizes over 1 by symbols named after them, equal sizes by equal ones,
    but not those of the inputs listed in ``fixed``."""
    g = Graph()

    def value(k: int, a: Any) -> Any:
        if a is None:
            return None
        a = np.asarray(a)
        if k in const:
            return g.constant(a)
        dims = [D.sym(f"s{n}") if dynamic and n > 1 and k not in fixed else n for n in a.shape]
        return g.add_input(f"x{k}", dtype(a.dtype), dims)

    return emit(g, op, [value(k, a) for k, a in enumerate(arrays)], op, **attrs)


def check(op: str, *arrays: Any, const: tuple[int, ...] = (), dynamic: bool = True,
          rtol: float = 2e-6, atol: float = 1e-6, expect_stages: bool = True,
          fixed: tuple[int, ...] = (), **attrs: Any) -> Any:
    """Runs an op's reference, requires inferred types to fit and its stages (static, and with
    symbolic dims if ``dynamic``) to agree, in numpy and, for the last, as native code; returns
    the outputs, a single one bare."""
    arrays = tuple(None if a is None else np.asarray(a) for a in arrays)
    node = make(op, *arrays, const=const, **attrs)
    outs = evaluate(node, *arrays)
    raw = get(op).reference(node, *arrays)
    raw = raw if isinstance(raw, tuple) else (raw,)
    for v, r in zip(node.outputs, raw, strict=True):
        assert np.shape(r) == tuple(
            n if isinstance(d, D.Dim) else d for d, n in zip(v.dims, np.shape(r), strict=True)
        ), f"inferred {v}, reference gives {np.shape(r)}"
    for symbolic in (False, True) if dynamic else (False,):
        n = make(op, *arrays, const=const, dynamic=symbolic, fixed=fixed, **attrs)
        got = run_stages(n, *arrays)
        if not expect_stages:
            assert got is None
            continue
        assert got is not None, f"{op} has no stages"
        for a, b in zip(got, outs, strict=True):
            same(a, b, rtol, atol)
    kernel = run_native_stages(n, *arrays)
    for a, b in zip(kernel or (), outs, strict=kernel is not None):
        same(a, b, max(rtol, 2e-5), max(atol, 1e-5))
    return outs[0] if len(outs) == 1 else outs


def same(a: Any, b: Any, rtol: float = 2e-6, atol: float = 1e-6) -> None:
    """Equal types, shapes and, within tolerance, values."""
    a, b = np.asarray(a), np.asarray(b)
    assert a.dtype == b.dtype and a.shape == b.shape, f"{a.dtype}{a.shape} {b.dtype}{b.shape}"
    if dtype(a.dtype).is_float:
        bits = dtype(a.dtype).bits
        if bits < 32:
            rtol, atol = {16: (1e-2, 1e-3), 8: (0.15, 1e-2), 4: (0.5, 1e-2)}[bits]
        np.testing.assert_allclose(a.astype(np.float64), b.astype(np.float64), rtol, atol)
    else:
        np.testing.assert_array_equal(a, b)
