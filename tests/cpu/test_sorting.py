"""Top-k by a heap, up to whole sorts, against the op's numpy reference."""

import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "ops"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from native_stages import device, sizes
from stage_checks import make

from tactician.ops import evaluate
from tactician.regions.region import Region
from tactician.tactics.tuner import Tuner, TunerSettings
from tactician.targets.cpu import load_tactics
from tactician.targets.cpu.sorting import HeapTopK

RNG = np.random.default_rng(0)


def region_of(node):
    region = Region([node], anchor=node, outputs=list(node.outputs))
    region.find_inputs()
    return region


def check(x, k, axis, largest, wanted=(0, 1), dynamic=False):
    count = np.array([k])
    node = make("topk", x, count, const=(1,), dynamic=dynamic, axis=axis, largest=largest)
    region = region_of(node)
    region.outputs = [node.outputs[i] for i in wanted]
    kernel = HeapTopK().build(region, "", device())
    want = evaluate(node, x, count)
    memory = {node.inputs[0]: np.ascontiguousarray(x)}
    memory.update({v: np.full_like(w, 99) for v, w in zip(node.outputs, want, strict=True)})
    device().run_kernel(kernel, [memory[a] for a in kernel.args], sizes(node, (x, count)))
    for i in wanted:
        np.testing.assert_array_equal(memory[node.outputs[i]], want[i])


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("k", [17, 40, 90])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_lines_along_any_axis(axis, k, largest):
    shape = [3, 4, 5]
    shape[axis] = 90
    check(RNG.standard_normal(shape).astype(np.float32), k, axis, largest)
    check(RNG.standard_normal(shape).astype(np.float32), k, axis, largest, dynamic=True)


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize(
    "dtype",
    [np.int32, np.uint32, np.int16, np.uint16, np.int8, np.uint8, np.float16, ml_dtypes.bfloat16],
)
def test_types_and_equal_elements(dtype, largest):
    low, high = (0, 50) if np.dtype(dtype).kind == "u" else (-25, 25)
    x = RNG.integers(low, high, (2, 100)).astype(dtype)
    if np.dtype(dtype).kind in "iu" and np.dtype(dtype).itemsize > 1:
        x[0, :2] = np.iinfo(dtype).min, np.iinfo(dtype).max
    check(x, 100, 1, largest)


@pytest.mark.parametrize("largest", [True, False])
def test_floats_of_every_kind(largest):
    x = RNG.standard_normal((1, 60)).astype(np.float32)
    special = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-42, -1e-42, np.nan, 0.0, np.inf, 3e38, -3e38]
    x[0, :12] = special
    check(x, 60, 1, largest)


@pytest.mark.parametrize("wanted", [(0,), (1,)])
def test_one_of_the_results(wanted):
    check(RNG.standard_normal((4, 70)).astype(np.float32), 30, 1, True, wanted)


def test_what_is_left_to_others():
    def reason(x, k):
        return HeapTopK().refuse(region_of(make("topk", x, np.array([k]), const=(1,))), device())

    assert "few" in reason(np.zeros((2, 50), np.float32), 5)
    assert "64 bits" in reason(np.zeros((2, 90), np.int64), 70)
    assert reason(np.zeros((2, 90), np.float32), 70) is None


def test_the_tuner_takes_it_for_sorts():
    """Keeping thousands of elements in order by insertion takes far longer."""
    load_tactics()
    x = RNG.standard_normal((1, 3000)).astype(np.float32)
    region = region_of(make("topk", x, np.array([3000]), const=(1,)))
    choice = Tuner(device(), TunerSettings(level=3, seconds=0.001)).choose(region)
    assert choice.tactic == "heap_topk"
    assert any(name.startswith("sequential") for name in choice.info["times_us"])
