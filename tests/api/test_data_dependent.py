"""Outputs whose size depends on data: NonZero, NMS, Unique, with output allocators."""

from __future__ import annotations

import numpy as np
import pytest
from apikit import Net, f32

import tactician as trt

BOXES = np.array([[[0, 0, 2, 2], [0, 0, 2, 1.9], [3, 3, 5, 5], [3, 3, 5, 4.5], [7, 7, 8, 8]]],
                 np.float32)
SCORES = np.array([[[0.9], [0.8], [0.7], [0.95], [0.1]]], np.float32)


class Allocator(trt.IOutputAllocator):
    """Gives memory as sizes become known, and notes what it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.block = np.empty(0, np.uint8)
        self.sizes: list[int] = []
        self.shapes: list[tuple[int, ...]] = []

    def reallocate_output(self, tensor_name, memory, size, alignment):
        self.sizes.append(size)
        if self.block.nbytes < size + alignment:
            self.block = np.empty(size + alignment, np.uint8)
        address = self.block.ctypes.data
        self.address = address + -address % alignment
        return self.address

    def notify_shape(self, tensor_name, shape):
        self.shapes.append(tuple(shape))

    def array(self, dtype):
        at = self.address - self.block.ctypes.data
        count = int(np.prod(self.shapes[-1]))
        whole = self.block[at:at + count * np.dtype(dtype).itemsize]
        return whole.view(dtype).reshape(self.shapes[-1])


class AsyncAllocator(Allocator):
    def __init__(self) -> None:
        super().__init__()
        self.streams: list[int] = []

    def reallocate_output_async(self, tensor_name, memory, size, alignment, stream):
        self.streams.append(stream)
        return super().reallocate_output(tensor_name, memory, size, alignment)


def bound(net, engine, allocators):
    context = engine.create_execution_context()
    for name, array in net.feeds.items():
        assert context.set_tensor_address(name, array.ctypes.data)
    for name, allocator in allocators.items():
        assert context.set_output_allocator(name, allocator)
        assert context.get_output_allocator(name) is allocator
    return context


@pytest.mark.parametrize("dtype", [trt.int32, trt.int64])
def test_non_zero(dtype):
    net = Net()
    x = np.array([[0, 1, 2], [3, 0, 0]], np.float32)
    layer = net.network.add_non_zero(net.input(x, "x"))
    layer.indices_type = dtype
    assert layer.indices_type == dtype
    engine = net.engine(layer.get_output(0))
    assert tuple(engine.get_tensor_shape("y0")) == (2, -1)
    allocator = Allocator()
    assert allocator.tensorrt_version == 1
    context = bound(net, engine, {"y0": allocator})
    assert context.get_max_output_size("y0") == 2 * 6 * (4 if dtype == trt.int32 else 8)
    kind = trt.nptype(dtype)
    for change in (x, np.zeros_like(x), np.ones_like(x)):
        x[...] = change
        assert context.execute_async_v3(0)
        np.testing.assert_array_equal(allocator.array(kind), np.array(np.nonzero(x)))
        assert tuple(context.get_tensor_shape("y0")) == (2, np.count_nonzero(x))


def nms(scores=SCORES, box_format=None, boxes=BOXES, score=None):
    net = Net()
    layer = net.network.add_nms(net.input(boxes, "boxes"), net.input(scores, "scores"),
                                net.const(np.int32(3)))
    layer.set_input(3, net.const(np.float32(0.5)))
    if score is not None:
        layer.set_input(4, net.const(np.float32(score)))
    assert layer.bounding_box_format == trt.BoundingBoxFormat.CORNER_PAIRS
    if box_format is not None:
        layer.bounding_box_format = box_format
        assert layer.bounding_box_format == box_format
    return net, layer


def test_nms():
    net, layer = nms()
    layer.indices_type = trt.int64
    assert layer.indices_type == trt.int64
    picked, count = net.run(layer.get_output(0), layer.get_output(1))
    assert picked.dtype == np.int64 and count == 3
    np.testing.assert_array_equal(picked, [[0, 0, 3], [0, 0, 0], [0, 0, 4]])


def test_nms_with_centers_and_a_score_threshold():
    middle = (BOXES[..., :2] + BOXES[..., 2:]) / 2
    centers = np.concatenate([middle, BOXES[..., 2:] - BOXES[..., :2]], -1)
    net, layer = nms(box_format=trt.BoundingBoxFormat.CENTER_SIZES, boxes=centers, score=0.2)
    np.testing.assert_array_equal(net.run(layer.get_output(0)), [[0, 0, 3], [0, 0, 0]])


@pytest.mark.parametrize("limit", [1, 4, 7, 100])
def test_nms_looks_at_the_best_boxes_only(limit):
    side = np.arange(6, dtype=np.float32)
    boxes = np.stack([side * 3, side * 3, side * 3 + 1, side * 3 + 1], -1)[None].repeat(2, 0)
    scores = np.random.default_rng(1).permutation(24).reshape(2, 6, 2).astype(np.float32)
    net, layer = nms(boxes=boxes, scores=scores)
    layer.set_input(2, net.const(np.int32(6)))
    assert layer.topk_box_limit == 2000
    layer.topk_box_limit = limit
    assert layer.topk_box_limit == limit
    want = set()  # boxes lie apart: all that are looked at stay
    for b in range(2):
        best = np.argsort(-scores[b].reshape(-1))[:limit]
        want |= {(b, int(k) % 2, int(k) // 2) for k in best}
    assert {tuple(r) for r in net.run(layer.get_output(0)).tolist()} == want
    with pytest.raises(ValueError, match="at least 1"):
        layer.topk_box_limit = 0


def test_allocators_with_streams():
    from tactician.driver import Stream

    net, layer = nms()
    engine = net.engine(layer.get_output(0), layer.get_output(1))
    allocator, count = AsyncAllocator(), np.zeros((), np.int32)
    context = bound(net, engine, {"y0": allocator})
    assert context.set_tensor_address("y1", count.ctypes.data)
    stream = Stream()
    assert context.execute_async_v3(stream.handle)
    stream.synchronize()
    assert allocator.streams == [stream.handle] and allocator.shapes == [(3, 3)] and count == 3
    assert allocator.array(np.int32)[0].tolist() == [0, 0, 3]


def test_static_outputs_may_have_allocators_too():
    net = Net()
    y = net.network.add_unary(net.input(f32(4), "x"), trt.UnaryOperation.EXP).get_output(0)
    engine, allocator = net.engine(y), Allocator()
    context = bound(net, engine, {"y0": allocator})
    assert context.execute_async_v3(0)
    assert allocator.sizes == [16] and allocator.shapes == [(4,)]
    np.testing.assert_allclose(allocator.array(np.float32), np.exp(f32(4)), rtol=1e-6)
    assert context.set_output_allocator("y0", None) and context.get_output_allocator("y0") is None


def test_no_memory_fails_the_run():
    from tactician.support.errors import ExecutionError

    class Empty(Allocator):
        def reallocate_output(self, tensor_name, memory, size, alignment):
            return 0

    net = Net()
    layer = net.network.add_non_zero(net.input(np.ones(3, np.float32), "x"))
    context = bound(net, net.engine(layer.get_output(0)), {"y0": Empty()})
    with pytest.raises(ExecutionError, match="no memory for 'y0'"):
        context.execute_async_v3(0)


def test_what_follows_unknown_sizes():
    """Sizes found by a run carry through later layers; ``unique`` has four outputs."""
    x = np.array([3, 1, 3, 2, 1, 0], np.float32)
    net = Net()
    values, first, inverse, counts = net.network.add_op(
        "unique", [net.input(x, "x")], axis=None, sorted=True)
    twice = net.network.add_elementwise(values, values, trt.ElementWiseOperation.SUM)
    total = net.network.add_reduce(twice.get_output(0), trt.ReduceOperation.SUM, 1, False)
    got = net.run(twice.get_output(0), total.get_output(0), first, inverse, counts)
    want = np.unique(x, return_index=True, return_inverse=True, return_counts=True)
    for y, w in zip(got, (want[0] * 2, want[0].sum() * 2, *want[1:]), strict=True):
        np.testing.assert_array_equal(y, w)


@pytest.mark.parametrize("dtype", [trt.int32, trt.int64])
def test_integers_are_shapes_only_where_shapes_need_them(dtype):
    """Small vectors of integers are ordinary inputs unless sizes are computed from them."""
    net = Net()
    index = net.network.add_input("index", dtype, (2,))
    size = net.network.add_input("size", dtype, (1,))
    x = net.network.add_input("x", trt.float32, (4,))
    picked = net.network.add_gather(x, index, 0).get_output(0)
    layer = net.network.add_shuffle(x)
    layer.set_input(1, net.network.add_concatenation([
        size, net.const(np.array([-1], trt.nptype(dtype)))]).get_output(0))
    profile = net.builder.create_optimization_profile()
    profile.set_shape_input("size", (1,), (2,), (4,))
    net.config.add_optimization_profile(profile)
    engine = net.engine(picked, layer.get_output(0))
    places = [engine.get_tensor_location(n) for n in ("index", "size", "x")]
    host, device = trt.TensorLocation.HOST, trt.TensorLocation.DEVICE
    assert places == [device, host, device]
    assert [engine.is_shape_inference_io(n) for n in ("index", "size")] == [False, True]
    assert [engine.is_shape_binding(k) for k in (0, 1)] == [False, True]
    kind = trt.nptype(dtype)
    out = trt.Engine(engine)(index=np.array([3, 1], kind), size=np.array([2], kind),
                             x=np.arange(4, dtype=np.float32))
    assert out["y0"].tolist() == [3, 1] and out["y1"].shape == (2, 2)


def test_outputs_for_shapes_are_known_before_a_run():
    net = Net()
    x = net.input(f32(3, 4), "x", (-1, 4))
    net.profile.set_shape("x", (1, 4), (3, 4), (9, 4))
    shape = net.network.add_shape(x).get_output(0)
    twice = net.network.add_elementwise(
        shape, net.const(np.array([2, 1])), trt.ElementWiseOperation.PROD).get_output(0)
    twice.name = "twice"
    assert net.network.mark_output_for_shapes(twice)
    y = net.network.add_unary(x, trt.UnaryOperation.EXP).get_output(0)
    engine = net.engine(y)
    assert engine.is_shape_inference_io("twice") and not engine.is_shape_inference_io("y0")
    assert engine.get_tensor_location("twice") == trt.TensorLocation.HOST
    context = engine.create_execution_context()
    assert context.set_input_shape("x", (5, 4)) and context.get_shape("twice") == [10, 4]
    assert trt.Engine(engine)(f32(6, 4))["twice"].tolist() == [12, 4]
    again = trt.Runtime(net.log).deserialize_cuda_engine(engine.serialize())
    assert again.is_shape_inference_io("twice")


def test_temporary_memory_comes_from_the_allocator():
    class Blocks(trt.IGpuAllocator):
        def __init__(self) -> None:
            trt.IGpuAllocator.__init__(self)
            self.blocks: dict[int, np.ndarray] = {}

        def allocate(self, size, alignment, flags):
            block = np.empty(size + alignment, np.uint8)
            address = block.ctypes.data + -block.ctypes.data % alignment
            self.blocks[address] = block
            return address

        def deallocate(self, memory):
            return self.blocks.pop(memory, None) is not None

    x = np.array([0, 1, 2, 0, 5], np.float32)
    net = Net()
    found = net.network.add_non_zero(net.input(x, "x")).get_output(0)
    picked = net.network.add_gather(net.network.get_input(0), found, 0).get_output(0)
    e = net.network.add_unary(picked, trt.UnaryOperation.EXP).get_output(0)
    sums = net.network.add_cumulative(e, net.const(np.int32(1)), trt.CumulativeOperation.SUM,
                                      False, False).get_output(0)
    total = net.network.add_reduce(sums, trt.ReduceOperation.MAX, 3, False).get_output(0)
    engine, y, blocks = net.engine(total), np.zeros((), np.float32), Blocks()
    context = bound(net, engine, {})
    assert context.temporary_allocator is None
    context.temporary_allocator = blocks
    assert context.temporary_allocator is blocks
    assert context.set_tensor_address("y0", y.ctypes.data)
    for _ in range(3):
        assert context.execute_async_v3(0)
        assert y == pytest.approx(np.exp(x[x != 0]).sum(), rel=1e-5)
    lent = len(blocks.blocks)
    assert context.execute_async_v3(0) and len(blocks.blocks) == lent > 0
    del context
    assert not blocks.blocks
