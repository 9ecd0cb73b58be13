"""The API's tests run on the CPU, also where there is a GPU: they pass addresses of arrays."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TACTICIAN_DEVICE", "cpu")
