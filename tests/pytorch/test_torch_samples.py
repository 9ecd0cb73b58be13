"""torch's own operator samples: what the table supports agrees with eager."""

from __future__ import annotations

import functools
import json
import operator
import os
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("expecttest")  # torch's samples need it
from torch.fx.experimental.proxy_tensor import make_fx  # noqa: E402
from torch.utils import _pytree as pytree  # noqa: E402

import tactician as trt  # noqa: E402
from tactician.ops.interpreter import run_graph  # noqa: E402
from tactician.support.errors import BuildError  # noqa: E402
from tactician.torch.lower import Lowering, decompositions  # noqa: E402
from tactician.torch.table import table  # noqa: E402
from tactician.torch.types import to_numpy  # noqa: E402

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore")

RANDOM = ("rand", "normal", "bernoulli", "multinomial", "dropout", "uniform", "cauchy",
          "exponential", "geometric", "empty", "rrelu", "gumbel", "poisson", "svd_lowrank",
          "pca_lowrank", "fractional_max_pool")
FAST = (
    "add sub mul div pow maximum minimum eq where clamp exp log sqrt sigmoid tanh floor_divide "
    "remainder bitwise_and logical_not nn.functional.relu nn.functional.gelu nn.functional.silu "
    "nn.functional.softplus nn.functional.elu nn.functional.hardswish nn.functional.leaky_relu "
    "softmax log_softmax sum mean amax argmax var std cumsum topk sort logsumexp "
    "view permute transpose expand squeeze unsqueeze cat stack split chunk unbind narrow select "
    "slice flip roll repeat nn.functional.pad tril triu gather index_select scatter scatter_add "
    "masked_fill nn.functional.embedding matmul mm bmm addmm nn.functional.linear einsum "
    "nn.functional.conv2d nn.functional.conv_transpose2d nn.functional.max_pool2d "
    "nn.functional.avg_pool2d nn.functional.adaptive_avg_pool2d nn.functional.batch_norm "
    "nn.functional.layer_norm nn.functional.group_norm nn.functional.instance_norm "
    "nn.functional.interpolate nn.functional.grid_sample nn.functional.pixel_shuffle "
    "arange full zeros_like ones_like linspace as_strided masked_scatter scatter_reduce cdist "
    "nn.functional.pdist nn.functional.embedding_bag nn.functional.rms_norm native_layer_norm "
    "native_group_norm quantile isclose"
).split()


def is_deterministic(op: Any) -> bool:
    return not any(part in op.name for part in RANDOM)


def operators() -> dict[str, list[Any]]:
    from torch.testing._internal.common_methods_invocations import op_db

    out: dict[str, list[Any]] = {}
    for op in op_db:
        if torch.float32 in op.dtypes and is_deterministic(op):
            out.setdefault(op.name, []).append(op)
    return out


def outcomes(op: Any, most: int, dtype: Any = torch.float32) -> Iterator[tuple[str, str]]:
    """What became of each of an operator's samples: ``agrees``, ``unsupported``, ``skipped`` (not
    a computation on real tensors) or ``differs``, and why."""
    torch.manual_seed(0)
    for i, sample in enumerate(op.sample_inputs("cpu", dtype, requires_grad=False)):
        if i >= most:
            return
        yield outcome(op, sample)


@functools.cache
def rules() -> dict[Any, Any]:
    return decompositions()


def outcome(op: Any, sample: Any) -> tuple[str, str]:
    flat, spec = pytree.tree_flatten((sample.input, sample.args, sample.kwargs))
    where = [i for i, x in enumerate(flat) if isinstance(x, torch.Tensor)]
    tensors = [flat[i] for i in where]
    if not tensors or any(t.is_complex() or t.layout is not torch.strided or 0 in t.shape
                          for t in tensors):
        return "skipped", "arguments"

    def call(*given: Any) -> Any:
        full = list(flat)
        for i, t in zip(where, given, strict=True):
            full[i] = t
        x, args, kwargs = pytree.tree_unflatten(full, spec)
        return op.op(x, *args, **kwargs)

    rules()  # errors of the table are ours
    try:
        expected = pytree.tree_leaves(call(*[t.clone() for t in tensors]))
        if any(not isinstance(t, torch.Tensor) or t.is_complex() or 0 in t.shape
               or t.layout is not torch.strided for t in expected):
            return "skipped", "results"
        traced = trace(call, tensors)
    except Exception as e:  # torch can't trace it: no question for us
        return "skipped", f"tracing: {type(e).__name__}"
    if any(str(n.target) == "aten.copy_.default" for n in traced.graph.nodes):
        return "skipped", "it changes its arguments"
    return compare(traced, tensors, expected)


def trace(call: Any, tensors: list[Any]) -> Any:
    """The call as a graph of overloads that change nothing, as export gives it."""
    for _ in range(3):  # rules may change what they made themselves
        plain = torch.func.functionalize(call, remove="mutations")
        call = make_fx(plain, decomposition_table=rules(), tracing_mode="fake")(*tensors)
        call.graph.eliminate_dead_code()
        names = [str(n.target).split(".")[-2] for n in call.graph.nodes if n.op == "call_function"
                 and n.target is not operator.getitem]
        if not any(n.endswith("_") for n in names):
            break
    return call


def compare(traced: Any, tensors: list[Any], expected: list[Any]) -> tuple[str, str]:
    network = trt.Builder(trt.Logger()).create_network(1)
    names = [n.name for n in traced.graph.nodes if n.op == "placeholder"]
    lowering = Lowering(network, {}, {n: i for i, n in enumerate(names)})
    try:
        done = lowering.run(traced, None, None)
    except BuildError as e:
        text = str(e)
        kind = "unsupported" if "has no importer" in text or "AtenProblem" not in text else ""
        return kind or "differs", text.splitlines()[1] if "\n" in text else text
    try:
        results = iter(run_graph(network.lower_control(), [to_numpy(tensors[p])
                                                           for p in done.inputs]))
    except Exception as e:
        return "differs", f"{type(e).__name__}: {e}"
    for (kind, x), want in zip(done.outputs, expected, strict=True):
        got = tensors[x].numpy() if kind == "input" else next(results)
        wide = want.to(torch.float64) if want.is_floating_point() else want
        tol = 2e-2 if want.dtype in (torch.float16, torch.bfloat16) else 2e-4
        if got.shape != tuple(want.shape) or not np.allclose(
                got.astype(wide.numpy().dtype), wide.numpy(), tol, tol, equal_nan=True):
            return "differs", f"shape {got.shape} and {tuple(want.shape)}, or numbers"
    return "agrees", ""


@pytest.mark.parametrize("name", FAST)
def test_common_operators(name: str) -> None:
    ops = operators().get(name)
    if not ops:
        pytest.skip(f"this torch has no samples of {name}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = list(outcomes(ops[0], most=4))
    bad = [why for what, why in found if what in ("differs", "unsupported")]
    assert not bad, bad


def survey(names: Any = None, most: int = 1000, dtype: Any = torch.float32) -> dict[str, Any]:
    """Counts of outcomes by operator, with the reasons of what isn't right."""
    out: dict[str, Any] = {}
    for name, ops in operators().items():
        if names and name not in names:
            continue
        counts: Counter[str] = Counter()
        why: Counter[str] = Counter()
        for op in ops[:1]:
            if dtype not in op.dtypes:
                continue
            for what, reason in outcomes(op, most, dtype):
                counts[what] += 1
                if what in ("differs", "unsupported"):
                    why[f"{what}: {reason[:160]}"] += 1
        if __name__ == "__main__" and why:
            print(name, dict(counts), json.dumps(why), flush=True)
        out[name] = {"counts": dict(counts), "why": dict(why)}
    return out


def rate(found: dict[str, Any]) -> tuple[int, int]:
    """Agreeing and compared samples of operators that are supported."""
    agree = sum(r["counts"].get("agrees", 0) for r in found.values())
    differ = sum(r["counts"].get("differs", 0) for r in found.values())
    return agree, agree + differ


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_at_least_95_percent_of_all_samples_agree(dtype: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        agree, total = rate(survey(most=12, dtype=getattr(torch, dtype)))
    assert total > 1000 and agree >= 0.95 * total, f"{agree} of {total} samples agree"


def test_there_is_a_table() -> None:
    assert len(table()) > 250


def write(path: Path, dtype: str, found: dict[str, Any]) -> None:
    """Keeps counts by operator for the support table."""
    held = json.loads(path.read_text()) if path.exists() else {}
    for name, row in found.items():
        held.setdefault(name, {})[dtype] = row["counts"]
        missing = [w for w in row["why"] if w.startswith("unsupported")]
        if missing:
            held[name]["why"] = missing[0].removeprefix("unsupported: - ").strip()
    lines = [f"{json.dumps(k)}: {json.dumps(v)}" for k, v in sorted(held.items())]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":  # python tests/pytorch/test_torch_samples.py [samples] [dtype] [file]
    warnings.simplefilter("ignore")
    most = int(sys.argv[1]) if len(sys.argv) > 1 else 4
    names = os.environ.get("OPS", "").split() or None
    kind = (sys.argv[2:] or ["float32"])[0]
    found = survey(names, most, getattr(torch, kind))
    if len(sys.argv) > 3:
        write(Path(sys.argv[3]), kind, found)
    agree, total = rate(found)
    print(f"{agree} of {total} samples of supported operators agree")
