"""The autotuner's choices, on a device that runs Python functions."""

from __future__ import annotations

import numpy as np
import pytest

from tactician.ir.graph import Graph
from tactician.ops import emit
from tactician.regions.fuse import fuse
from tactician.tactics import tuner as tuning
from tactician.tactics.kernel import Kernel
from tactician.tactics.tactic import Tactic
from tactician.tactics.tuner import Tuner, TunerSettings


class Device(tuning.Device):
    """Kernels' sources name a function below; times are the candidates' numbers."""

    target = fingerprint = "test"

    def start(self, kernel):
        pass

    def settle(self):
        pass

    def time_kernel(self, kernel, arrays, env, seconds):
        assert all(isinstance(a, np.ndarray) and a.flags.c_contiguous for a in arrays)
        name, _, time = kernel.source.partition(" ")
        right = ~arrays[0] if arrays[0].dtype == bool else -arrays[0]
        if name == "right":
            arrays[-1][...] = right
        elif name == "half":
            arrays[-1][0] = right[0]
        return float(time)


class Fake(Tactic):
    name, target = "fake", "test"

    def __init__(self, *candidates):
        self.given = candidates

    def refuse(self, region, device):
        return None

    def candidates(self, region, device):
        return self.given

    def build(self, region, candidate, device):
        return Kernel("k", candidate, (*region.inputs, region.result))


def choose(monkeypatch, *candidates, dtype="f32", shape=(3, 4), const=None, most=-1):
    graph = Graph()
    x = graph.add_input("x", dtype, shape)
    x.const = const
    graph.outputs = [emit(graph, "unary", [x], "n", fn="not" if dtype == "b1" else "neg").output]
    (region,) = fuse(graph).regions
    monkeypatch.setattr(tuning, "tactics_for", lambda target: [Fake(*candidates)])
    return Tuner(Device(), TunerSettings(level=5, most=most)).choose(region)


@pytest.mark.parametrize("dtype", ["f32", "f16", "i32", "b1"])
@pytest.mark.parametrize("shape", [(3, 4), (), (0, 2), (1,)], ids=str)
def test_takes_the_fastest(monkeypatch, dtype, shape):
    choice = choose(monkeypatch, "right 3", "right 2", "right 9", dtype=dtype, shape=shape)
    assert choice.candidate == "right 2"


@pytest.mark.parametrize("lazy", ["nothing 1", "half 1"])
@pytest.mark.parametrize("dtype", ["f32", "f16", "i32", "b1"])
def test_a_kernel_that_does_not_write_its_result_never_wins(monkeypatch, lazy, dtype):
    choice = choose(monkeypatch, "right 3", lazy, "right 5", dtype=dtype)
    assert choice.candidate == "right 3"
    assert "accuracy" in choice.info["rejected"][f"fake({lazy})"]


def test_ties_go_to_the_first(monkeypatch):
    assert choose(monkeypatch, "right 1.02", "right 1.0").candidate == "right 1.02"


def test_constants_in_another_order_of_memory(monkeypatch):
    const = np.arange(12, dtype=np.float32).reshape(4, 3).T
    assert choose(monkeypatch, "right 1", const=const).candidate == "right 1"


def test_most_candidates(monkeypatch):
    choice = choose(monkeypatch, "right 3", "right 2", "right 1", most=2)
    assert choice.candidate == "right 2" and "fake(right 1)" not in choice.info["times_us"]



def test_times_of_one_comparison_are_of_one_state_of_the_machine(monkeypatch):
    """Another program comes to the core after the first candidate's turn and stays a while: the
    first one's time cannot be compared with the others'."""
    turns = []

    class Shared(Device):
        rounds = 3

        def time_kernel(self, kernel, arrays, env, seconds):
            turns.append(kernel.source)
            slow = 4.0 if 2 <= len(turns) <= 9 else 1.0
            return slow * super().time_kernel(kernel, arrays, env, seconds)

    graph = Graph()
    x = graph.add_input("x", "f32", (3, 4))
    graph.outputs = [emit(graph, "unary", [x], "n", fn="neg").output]
    (region,) = fuse(graph).regions
    fakes = [Fake("right 3", "right 2", "right 9")]
    monkeypatch.setattr(tuning, "tactics_for", lambda target: fakes)
    choice = Tuner(Shared(), TunerSettings(level=5)).choose(region)
    assert choice.candidate == "right 2"
    assert turns.count("right 9") == 2  # the third one never comes near


def test_a_single_candidate_is_timed_where_it_is_compared(monkeypatch):
    """One kernel for two regions competes with one for each, at low levels as well."""
    graph = Graph()
    x = graph.add_input("x", "f32", (3, 4))
    graph.outputs = [emit(graph, "unary", [x], "n", fn="neg").output]
    (region,) = fuse(graph).regions
    monkeypatch.setattr(tuning, "tactics_for", lambda target: [Fake("right 3")])
    tuner = Tuner(Device(), TunerSettings(level=1))
    assert "time_us" not in tuner.choose(region).info
    assert tuner.choose(region, timed=True).info["time_us"] == 3e6
    monkeypatch.setattr(tuning, "tactics_for", lambda target: [Fake("wrong 3")])
    assert Tuner(Device(), TunerSettings(level=1)).choose(region, timed=True).kernel is None
