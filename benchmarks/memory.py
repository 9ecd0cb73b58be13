"""Peak memory of a process that loads one model and runs it once, for each runtime.

    python benchmarks/memory.py RUNTIME MODEL_OR_PLAN INPUTS.npz THREADS

prints the process's peak resident size in bytes. `peak_memory` starts such processes.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np


def peak_memory(runtime: str, model: Path, feeds: Mapping[str, np.ndarray], threads: int) -> int:
    """Peak resident bytes of a process that runs ``model`` (tactician: a plan) once.

    Raises:
        RuntimeError: If the runtime can't run it, with the end of what it said.
    """
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder) / "inputs.npz"
        np.savez(inputs, **dict(feeds))
        command = [sys.executable, __file__, runtime, str(model), str(inputs), str(threads)]
        root = Path(__file__).resolve().parent.parent
        path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=600,
            env={**os.environ, "PYTHONPATH": path},
        )
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["it failed"])[-1][:150])
    return int(done.stdout.split()[-1])


def _tactician(model: str, feeds: dict[str, np.ndarray], threads: int) -> None:
    from tactician.runtime.easy import load

    load(model)(feeds)


def _onnxruntime(model: str, feeds: dict[str, np.ndarray], threads: int) -> None:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    ort.InferenceSession(model, options, providers=["CPUExecutionProvider"]).run(None, feeds)


def _openvino(model: str, feeds: dict[str, np.ndarray], threads: int) -> None:
    import openvino as ov

    config = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": str(threads or 1)}
    ov.Core().compile_model(model, "CPU", config).create_infer_request().infer(feeds)


RUNTIMES = {"tactician": _tactician, "onnxruntime": _onnxruntime, "openvino": _openvino}


def main(runtime: str, model: str, inputs: str, threads: str) -> None:
    with np.load(inputs) as data:
        feeds = {name: data[name] for name in data.files}
    RUNTIMES[runtime](model, feeds, int(threads))
    print(_peak())


def _peak() -> int:
    """This process's peak in bytes. Linux hands `ru_maxrss` down from the parent, so there its
    own record is read."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


if __name__ == "__main__":
    main(*sys.argv[1:5])
