"""What engines for CUDA still compute in numpy: every op of ONNX's backend cases that does is
listed here with the reason, and nothing else may."""

import sys
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("triton", reason="the CUDA target needs Triton")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "onnx"))
from exclusions import reason
from suite import cases, data_sets, load

from tactician import onnx_backend

# op → why it may run in numpy
HOST_OPS: dict[str, str] = {
    "attention": "gives its scores or present keys as well",
    "cast": "4-bit types",
    "cast_e8m0": "a type that Triton does not have",
    "dequantize": "4-bit types",
    "det": "elimination with pivots",
    "dft": "a fast Fourier transform",
    "fill": "random numbers as numpy makes them",
    "loop": "results whose size depends on data",
    "max_pool_indices": "column-major or several results of a search",
    "max_unpool": "scatters into zeros",
    "mel_weight_matrix": "its operands are inputs in these cases; constants are folded",
    "quantize": "4-bit types",
    "resize": "its scales are inputs in these cases, so the size depends on data",
    "stft": "a fast Fourier transform",
    "tf_idf": "counts n-grams",
}

NAMES = [n for n in sorted(cases()) if reason(n) is None]


def host_ops(names):
    """Steps in numpy by op, with a case each, of engines that are built and not run."""
    found = Counter()
    example = {}
    for name in names:
        case = cases()[name]
        m = load(case)
        rep = onnx_backend.prepare(m, "CUDA")
        inputs, _ = next(iter(data_sets(case, m)))
        if not rep.engines:
            feeds = dict(zip(rep.names, map(np.asarray, inputs), strict=False))
            rep._for({n: feeds[n] for n in rep.fixed if n in feeds})
        for engine in rep.engines:
            for s in engine.cuda_engine._program.steps:
                if s.kind == "reference":
                    found[s.info["ops"][0]] += 1
                    example.setdefault(s.info["ops"][0], name)
    return found, example


@pytest.mark.parametrize("part", [
    pytest.param(k, marks=[] if k == 0 else [pytest.mark.slow]) for k in range(16)
])  # fmt: skip
def test_only_listed_ops_run_in_numpy(part, monkeypatch):
    monkeypatch.setenv("TACTICIAN_GPU", "interpreter")
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        found, example = host_ops(NAMES[part::16])
    extra = {op: example[op] for op in found if op not in HOST_OPS}
    assert not extra, f"these ops run in numpy on a GPU, for example in {extra}"
