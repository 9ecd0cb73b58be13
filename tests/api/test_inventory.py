"""Every member of TensorRT's API is used by a test; see `api_usage` for how that is known."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from api_usage import INVENTORY, USAGE, is_recorded, missing_files, read_inventory, resolve
from conftest import shared_path

import tactician as trt

ROOT = Path(__file__).resolve().parent.parent.parent


def test_every_name_is_there() -> None:
    gone = []
    for name, members in read_inventory().items():
        owner = trt if name in ("functions", "constants") else resolve(trt, name)
        gone += [name] if owner is None else []
        for member in members:
            known = hasattr(owner, member) or any(
                member in vars(c).get("__annotations__", {})
                for c in getattr(owner, "__mro__", ())
            )
            gone += [] if known else [f"{name}.{member}"]
    assert not gone


def test_the_inventory_is_that_of_the_api_files() -> None:
    spec = importlib.util.spec_from_file_location("i", ROOT / "scripts" / "api_inventory.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    folder = shared_path("api", "tensorrt10.json").parent
    assert INVENTORY.read_text() == script.inventory(folder)


@pytest.mark.timeout(900)
def test_every_member_is_used(request: pytest.FixtureRequest) -> None:
    items = request.session.items
    left_out = missing_files(items)
    if left_out:
        pytest.skip(f"only with all tests that count; this run lacks {', '.join(left_out[:3])} …")
    wanted = {i.nodeid for i in items if is_recorded(i.path)} - {request.node.nodeid}
    used = set().union(*USAGE.wait(wanted, 600).values())
    unused = {}
    for name, members in read_inventory().items():
        rest = sorted(m for m in members if f"{name}.{m}" not in used)
        if rest or (not members and name not in used):
            unused[name] = rest
    text = "\n".join(f"{name}: {' '.join(rest)}" for name, rest in unused.items())
    count = sum(max(len(rest), 1) for rest in unused.values())
    assert not unused, f"{count} members that no test uses:\n{text}"


class TestTheRecorderItself:
    """What counts, and what doesn't."""

    def used(self) -> set[str]:
        assert USAGE.used is not None
        return USAGE.used

    def test_nothing_counts_that_was_not_touched(self) -> None:
        assert not [u for u in self.used() if "." in u]

    def test_methods_properties_and_enum_values(self) -> None:
        network = trt.Builder(trt.Logger()).create_network(1)
        x = network.add_input("x", trt.float32, (2,))
        assert "Builder.create_network" in self.used()
        assert "INetworkDefinition.add_input" in self.used()
        assert "constants.float32" in self.used()
        assert "ITensor.name" not in self.used()
        assert x.name == "x"
        assert "ITensor.name" in self.used()
        assert "UnaryOperation.EXP" not in self.used()
        layer = network.add_unary(x, trt.UnaryOperation.EXP)
        assert "UnaryOperation.EXP" in self.used()
        assert "IUnaryLayer.op" not in self.used()
        layer.op = trt.UnaryOperation.LOG
        assert "IUnaryLayer.op" in self.used()

    def test_what_tactician_does_by_itself_does_not_count(self) -> None:
        builder = trt.Builder(trt.Logger())
        config = builder.create_builder_config()
        assert "IBuilderConfig.max_num_tactics" not in self.used()  # its constructor set it
        config.max_num_tactics = 3
        assert "IBuilderConfig.max_num_tactics" in self.used()

    def test_callbacks_count_when_they_are_called(self) -> None:
        class Log(trt.ILogger):
            def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
                pass

        network = trt.Builder(Log()).create_network(1)
        assert "ILogger.log" not in self.used()
        network.get_layer(3)
        assert "ILogger.log" in self.used()

    @pytest.mark.parametrize("op", [trt.TopKOperation.MIN])
    def test_parameters_count(self, op: trt.TopKOperation) -> None:
        assert "TopKOperation.MIN" in self.used() and op.name == "MIN"
        assert "TopKOperation.MAX" not in self.used()
