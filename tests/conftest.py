"""Fixtures and helpers shared by the tests."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path

import pytest

pytest_plugins = ["api_usage"]  # notes which members of the API tests use

os.environ.setdefault("TACTICIAN_CHECK", "1")  # passes keep their contracts
os.environ.setdefault("OMP_NUM_THREADS", "1")  # peers don't fight over cores with other workers


def shared_root() -> Path | None:
    """The folder of pretrained models and API inventories that is kept outside the repository:
    ``TACTICIAN_SHARED``, or ``shared`` beside the checkout or its parent; None if absent."""
    here = Path(__file__).resolve().parent.parent
    named = os.environ.get("TACTICIAN_SHARED")
    places = [Path(named)] if named else [here.parent / "shared", here.parent.parent / "shared"]
    return next((p for p in places if p.is_dir()), None)


def shared_path(*parts: str) -> Path:
    """A file of the shared folder. Skips the test where it is absent; fails it when ``CI=true``."""
    root = shared_root()
    path = root.joinpath(*parts) if root else None
    if path is not None and path.exists():
        return path
    message = f"{'/'.join(parts) or 'shared folder'} not found; set TACTICIAN_SHARED to its folder"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The shared folder."""
    return shared_path()


# Peers that tests compare with. A file that imports a missing one at its top is left out.
PEERS = ("torch", "onnxruntime", "sklearn", "scipy", "cv2", "openvino", "hypothesis")


def _left_out() -> dict[str, list[str]]:
    """Missing peer -> test files that can't be collected without it."""
    missing = [p for p in PEERS if importlib.util.find_spec(p) is None]
    out: dict[str, list[str]] = {}
    for path in sorted(Path(__file__).parent.rglob("test_*.py")):
        for peer in re.findall(r"^(?:import|from) (\w+)", path.read_text(), re.M):
            if peer in missing:
                out.setdefault(peer, []).append(str(path))
    return out


LEFT_OUT = _left_out()
collect_ignore = [path for paths in LEFT_OUT.values() for path in paths]


def pytest_report_header() -> list[str]:
    return [f"without {p}: {len(files)} test files are left out" for p, files in LEFT_OUT.items()]
