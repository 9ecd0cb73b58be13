"""ONNX's own backend cases, as (name, run) pairs."""

from __future__ import annotations

import functools
import glob
import os
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator")


@functools.cache
def cases() -> dict[str, Any]:
    """Every case that needs no download, by name."""
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's, while ONNX makes its expected values
        return {c.name: c for kind in KINDS for c in load_model_tests(kind=kind)}


def run_case(case: Any, prepare: Any) -> None:
    """Prepares the case's model, runs all its data sets and compares as ONNX does."""
    from onnx.backend.test.runner import Runner

    model = load(case)
    rep = prepare(model)
    for inputs, expected in data_sets(case, model):
        outputs = rep.run(inputs)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            Runner.assert_similar_outputs(expected, outputs, case.rtol, case.atol)


def load(case: Any) -> Any:
    import onnx

    if case.model is not None:
        return case.model
    return onnx.load(os.path.join(case.model_dir, "model.onnx"))


def data_sets(case: Any, model: Any) -> Iterator[tuple[list[Any], list[Any]]]:
    if case.data_sets is not None:
        for inputs, outputs in case.data_sets:
            yield [_array(i) for i in inputs], [_array(o) for o in outputs]
        return
    for folder in sorted(glob.glob(os.path.join(case.model_dir, "test_data_set*"))):
        yield _read(folder, "input"), _read(folder, "output")


def _array(item: Any) -> Any:
    from onnx import TensorProto, numpy_helper

    return numpy_helper.to_array(item) if isinstance(item, TensorProto) else item


def _read(folder: str, what: str) -> list[np.ndarray[Any, Any]]:
    from onnx import load_tensor, numpy_helper

    count = len(glob.glob(os.path.join(folder, f"{what}_*.pb")))
    return [numpy_helper.to_array(load_tensor(os.path.join(folder, f"{what}_{i}.pb")))
            for i in range(count)]
