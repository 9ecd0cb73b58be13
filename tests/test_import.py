"""`import tactician` is quick and brings in nothing heavy."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("onnx", "torch", "onnxruntime", "triton", "llvmlite", "rich", "typer", "google.protobuf")

TIMED = "import time; t = time.perf_counter(); import tactician; print(time.perf_counter() - t)"


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_takes_less_than_three_tenths_of_a_second() -> None:
    times = []
    for _ in range(8):  # the best counts: other work on the machine only ever adds
        times.append(float(python(TIMED)))
        if times[-1] < 0.3:
            break
    assert min(times) < 0.3, times


def test_import_brings_in_nothing_heavy() -> None:
    code = f"import sys, tactician; print([m for m in {HEAVY!r} if m in sys.modules])"
    assert python(code) == "[]"


def test_tactician_cli_help_needs_no_compiler_packages() -> None:
    heavy = [m for m in HEAVY if m not in ("rich", "typer")]
    code = f"""
import sys
from tactician.cli import main
sys.argv = ["tactician", "--help"]
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
print([m for m in {heavy!r} if m in sys.modules])
"""
    assert python(code).endswith("[]")
