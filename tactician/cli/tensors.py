"""Inputs for an engine: from files, or random; and shapes for what is dynamic."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import typer

from .common import Failure, parse_shapes

if TYPE_CHECKING:
    import tactician as trt


def names(engine: trt.ICudaEngine, mode: str) -> list[str]:
    """Names of an engine's inputs or outputs; `mode` is INPUT or OUTPUT."""
    import tactician as trt

    wanted = getattr(trt.TensorIOMode, mode)
    every = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    return [n for n in every if engine.get_tensor_mode(n) == wanted]


def read(files: list[str]) -> dict[str, np.ndarray]:
    """Arrays from ``FILE.npz``, ``NAME=FILE.npy`` or ``FILE.npy``, by name; the last has name "".

    Names ``in::NAME`` in an npz mean NAME; arrays with other prefixes are left alone.

    Raises:
        typer.BadParameter: A file is not there.
        Failure: A file can't be read as numpy data.
    """
    arrays: dict[str, np.ndarray] = {}
    for item in files:
        name, _, path = item.rpartition("=")
        if not Path(path).is_file():
            raise typer.BadParameter(f"--input: there is no file {path}")
        loaded = _load(Path(path))
        if isinstance(loaded, np.ndarray):
            arrays[name] = loaded
        else:
            plain = {k.removeprefix("in::"): v for k, v in loaded.items()}
            arrays |= {k: v for k, v in plain.items() if "::" not in k}
    return arrays


def match(arrays: dict[str, np.ndarray], engine: trt.ICudaEngine) -> dict[str, np.ndarray]:
    """The arrays by input name.

    Raises:
        typer.BadParameter: An array belongs to no input.
    """
    inputs = names(engine, "INPUT")
    feeds = dict(arrays)
    if "" in feeds:
        if len(inputs) != 1:
            raise typer.BadParameter(
                f"--input: say which input a .npy is for, as NAME=FILE; there are {inputs}"
            )
        feeds[inputs[0]] = feeds.pop("")
    unknown = sorted(set(feeds) - set(inputs))
    if unknown:
        raise typer.BadParameter(f"--input: no input is named {unknown[0]!r}; there are {inputs}")
    return feeds


def _load(path: Path) -> np.ndarray | dict[str, np.ndarray]:
    try:
        loaded = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise Failure(f"{path} is not a numpy file: {error}") from None
    return loaded if isinstance(loaded, np.ndarray) else dict(loaded.items())


def complete(
    engine: trt.ICudaEngine, feeds: dict[str, np.ndarray], shapes: str, seed: int
) -> dict[str, np.ndarray]:
    """Add random arrays for the inputs that `feeds` lacks.

    Floats are uniform in [0, 1), integers 0 or 1, so that they are valid as indices and masks.
    A dynamic input takes its shape from `shapes`, else the shape its plan was tuned for.
    """
    import tactician as trt

    rng = np.random.default_rng(seed)
    inputs = names(engine, "INPUT")
    given = parse_shapes(shapes, inputs)
    out = {}
    for name in inputs:
        if name in feeds:
            out[name] = feeds[name]
            continue
        shape = given.get(name) or list(engine.get_tensor_shape(name))
        if -1 in shape:
            shape = list(engine.get_tensor_profile_shape(name, 0)[1])
        dtype = np.dtype(trt.nptype(engine.get_tensor_dtype(name)))
        if dtype.kind in "iub":
            out[name] = rng.integers(0, 2, shape).astype(dtype)
        else:
            out[name] = rng.random(shape, dtype=np.float32).astype(dtype)
    return out


def summary(array: np.ndarray) -> dict[str, object]:
    """Shape, dtype and a few statistics of an array, ready for JSON."""
    out: dict[str, object] = {"shape": list(array.shape), "dtype": str(array.dtype)}
    if array.size and array.dtype.kind != "b":
        wide = array.astype(np.float64)
        out |= {"min": float(wide.min()), "max": float(wide.max()), "mean": float(wide.mean())}
        if not np.isfinite(wide).all():
            out["not_finite"] = int((~np.isfinite(wide)).sum())
    out["first"] = array.reshape(-1)[:4].tolist()
    return out
