"""Each example runs as a user would run it, and checks its own result."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("[0-9]*.py")), ids=lambda p: p.stem)
def test_example(path: Path, tmp_path: Path) -> None:
    env = dict(os.environ, PYTHONPATH=str(EXAMPLES.parent))
    command = [sys.executable, str(path)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, cwd=tmp_path, env=env
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip(), "an example prints something meaningful"
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir()), "an example leaves no files behind"


def test_all_examples_are_there() -> None:
    assert len(list(EXAMPLES.glob("[0-9]*.py"))) >= 9
