"""ONNX's own backend cases through `tactician.onnx_backend`."""

from __future__ import annotations

import os
import re
import warnings
from functools import partial
from typing import Any

import numpy as np
import pytest
from exclusions import NOT_PASSING, OUT_OF_SCOPE, reason
from suite import cases, run_case

from tactician import onnx_backend

NAMES = sorted(cases())
CHUNK = 20  # cases per test: collecting and reporting thousands of tests costs more than they do
RUN = [n for n in NAMES if reason(n) is None]


CHUNKS = [RUN[i : i + CHUNK] for i in range(0, len(RUN), CHUNK)]


def chunks() -> list[Any]:
    """Every chunk on both targets; engines for most are slow together (two minutes in all)."""
    out = []
    for target in ("reference", "engine"):
        for i, names in enumerate(CHUNKS):
            slow = [pytest.mark.slow] if target == "engine" and i % 5 else []
            name = names[0].removeprefix("test_")
            out.append(pytest.param(names, target, marks=slow, id=f"{target}-{name}"))
    return out


@pytest.mark.parametrize("names, target", chunks())
def test_cases(names: list[str], target: str) -> None:
    failures = {}
    prepare = partial(onnx_backend.prepare, target=target)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        for name in names:
            try:
                run_case(cases()[name], prepare)
            except Exception as e:  # all failures of the chunk are reported together
                failures[name] = f"{type(e).__name__}: {str(e).strip()[:600]}"
    assert not failures, "\n".join(f"{k}: {v}" for k, v in failures.items())


@pytest.mark.parametrize("pattern", [*OUT_OF_SCOPE, *NOT_PASSING])
def test_no_exclusion_is_idle(pattern: str) -> None:
    assert any(re.search(pattern, n) for n in NAMES)


def test_share_that_passes() -> None:
    in_scope = [n for n in NAMES if not any(re.search(p, n) for p in OUT_OF_SCOPE)]
    failing = [n for n in in_scope if reason(n)]
    assert len(in_scope) > 1750 or os.environ.get("CI") != "true"
    assert len(failing) <= 0.01 * len(in_scope)


def test_unsupported_models_are_refused_not_crashed() -> None:
    refused = 0
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        for name in (n for n in NAMES if any(re.search(p, n) for p in OUT_OF_SCOPE)):
            try:
                run_case(cases()[name], partial(onnx_backend.prepare, target="reference"))
            except onnx_backend.ModelError as e:
                assert "not supported" in str(e) or "no importer" in str(e) or "sequence" in str(e)
                refused += 1
            except Exception as e:
                pytest.fail(f"{name}: {type(e).__name__}: {e}")
            else:
                pytest.fail(f"{name} passes: take it off the exclusions")
    assert refused > 100
