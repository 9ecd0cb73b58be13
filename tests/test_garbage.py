"""How often Python's collector runs during builds."""

import gc
import threading

import numpy as np
import pytest

import tactician as trt
from tactician.builder import builder as building
from tactician.support.garbage import rare_collections


@pytest.fixture(autouse=True)
def thresholds():
    before = gc.get_threshold()
    gc.set_threshold(700, 10, 10)
    yield
    gc.set_threshold(*before)


def test_restored():
    with pytest.raises(ValueError, match="inside"), rare_collections():
        assert gc.get_threshold()[0] > 100_000 and gc.get_threshold()[1:] == (10, 10)
        raise ValueError("inside")
    assert gc.get_threshold() == (700, 10, 10)


def test_the_last_of_several_restores():
    inside, leave = threading.Event(), threading.Event()

    def other():
        with rare_collections():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with rare_collections():
        thread.start()
        assert inside.wait(10)
    assert gc.get_threshold()[0] > 100_000
    leave.set()
    thread.join()
    assert gc.get_threshold() == (700, 10, 10)


@pytest.mark.parametrize("own", [(0, 10, 10), (1_000_000, 5, 5)])
def test_what_is_rarer_stays(own):
    gc.set_threshold(*own)
    with rare_collections():
        assert gc.get_threshold() == own
    assert gc.get_threshold() == own


def test_what_is_set_meanwhile_stays():
    with rare_collections():
        gc.set_threshold(1234, 5, 6)
    assert gc.get_threshold() == (1234, 5, 6)


def test_builds(monkeypatch):
    seen = []
    compile_network = building.compile_network

    def spy(*args, **kw):
        seen.append(gc.get_threshold()[0])
        return compile_network(*args, **kw)

    monkeypatch.setattr(building, "compile_network", spy)
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network()
    x = network.add_input("x", trt.float32, (4,))
    y = network.add_activation(x, trt.ActivationType.RELU).get_output(0)
    network.mark_output(y)
    config = builder.create_builder_config()
    config.default_device_type = trt.DeviceType.CPU
    plan = builder.build_serialized_network(network, config)
    assert np.frombuffer(plan, np.uint8).size == plan.nbytes
    assert seen[0] > 100_000 and gc.get_threshold() == (700, 10, 10)
