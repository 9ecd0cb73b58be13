"""Plugins of PointPillars, and top-k, against loops over points."""

from __future__ import annotations

import numpy as np
import pytest
from plugin_kit import run

F, I = np.float32, np.int32
rng = np.random.default_rng(8)
RANGE = F([0, -2, -3, 8, 2, 1])


def test_pillars_on_an_image() -> None:
    n, pillars, width, high, wide = 2, 5, 3, 4, 6
    x = rng.standard_normal((n, pillars, width)).astype(F)
    count = I([3, 5])
    coords = np.zeros((n, pillars, 4), I)
    want = np.zeros((n, width, high, wide), F)
    for b in range(n):
        for p, at in enumerate(rng.permutation(high * wide)[:pillars]):
            coords[b, p, 2:] = divmod(int(at), wide)
            if p < count[b]:
                want[b, :, at // wide, at % wide] = x[b, p]
    [y] = run("PillarScatterPlugin", {"dense_shape": I([high, wide])}, x, coords, count,
              native=True)
    np.testing.assert_array_equal(y, want)


def test_boxes_from_offsets() -> None:
    n, high, wide, count, classes = 2, 3, 4, 4, 2
    anchors = (0.5 + rng.random((count, 4))).astype(F)
    bottom, least, turn, limit, bins = F([-1.5, -0.7]), 0.6, 0.78539, 0.25, 2
    scores = rng.standard_normal((n, high, wide, count * classes)).astype(F)
    moves = (0.3 * rng.standard_normal((n, high, wide, count * 7))).astype(F)
    facing = rng.standard_normal((n, high, wide, count * 2)).astype(F)
    boxes, found = run("DecodeBbox3DPlugin", {
        "point_cloud_range": RANGE, "anchors": anchors.ravel(), "anchor_bottom_height": bottom,
        "dir_offset": F(turn), "dir_limit_offset": F(limit), "num_dir_bins": I(bins),
        "score_thresh": F(least)}, scores, moves, facing, native=True)
    assert boxes.shape == (n, high * wide * count, 9) and found.shape == (n,)
    period = 2 * np.pi / bins
    for b in range(n):
        rows = []
        for y, x, a in np.ndindex(high, wide, count):
            s = 1 / (1 + np.exp(-scores[b, y, x, a * classes:(a + 1) * classes]))
            if s.max() < least:
                continue
            d, (dx, dy, dz, r) = moves[b, y, x, a * 7:a * 7 + 7], anchors[a]
            angle = d[6] + r - turn
            angle -= np.floor(angle / period + limit) * period
            angle += turn + period * (facing[b, y, x, 2 * a] <= facing[b, y, x, 2 * a + 1])
            rows.append([d[0] * np.hypot(dx, dy) + 8 * x / (wide - 1),
                         d[1] * np.hypot(dx, dy) - 2 + 4 * y / (high - 1),
                         d[2] * dz + dz / 2 + bottom[a // 2], *np.exp(d[3:6]) * anchors[a, :3],
                         angle, s.argmax(), s.max()])
        assert found[b] == len(rows) and 5 < len(rows) < high * wide * count
        np.testing.assert_allclose(boxes[b, :len(rows)], rows, rtol=1e-4, atol=1e-4)
        assert not boxes[b, len(rows):].any()


@pytest.mark.parametrize("given", [4, 5])
def test_points_to_pillars(given: int) -> None:
    each, most, width = 3, 4, given + 6
    points = np.zeros((2, 40, given), F)
    counts = I([40, 9])
    points[..., :3] = rng.uniform([-0.5, -2.2, -3.2], [4, 1, 1.2], (2, 40, 3))
    points[..., 3:] = rng.random((2, 40, given - 3))
    voxels, coords, found = run("VoxelGeneratorPlugin", {
        "max_num_points_per_voxel": I(each), "max_voxels": I(most), "point_cloud_range": RANGE,
        "voxel_feature_num": I(width), "voxel_size": F([2, 1, 4])}, points, counts, native=False)
    for b in range(2):
        cells: dict[tuple[int, int], list[np.ndarray]] = {}
        for p in points[b, :counts[b]]:
            if all(RANGE[:3] <= p[:3]) and all(p[:3] < RANGE[3:]):
                cells.setdefault((int((p[1] + 2) // 1), int(p[0] // 2)), []).append(p)
        assert found[b] == min(most, len(cells))
        for v, (y, x) in enumerate(sorted(cells)[:most]):
            assert coords[b, v].tolist() == [0, 0, y, x]
            mine = np.array(cells[y, x][:each])
            middle = [2 * x + 1, y + 0.5 - 2, -1]
            want = np.concatenate(
                [mine, mine[:, :3] - mine[:, :3].mean(0), mine[:, :3] - middle], 1)
            np.testing.assert_allclose(voxels[b, v, :len(mine)], want, rtol=1e-4, atol=1e-5)
            assert not voxels[b, v, len(mine):].any()
        assert not voxels[b, found[b]:].any()


@pytest.mark.parametrize("axis, largest", [(-1, 1), (1, 0)])
def test_top(axis: int, largest: int) -> None:
    x = rng.standard_normal((3, 9, 5)).astype(F)
    values, at = run("TopkLastDim", {"type_id": I(0), "k": I(4), "is_largest": I(largest),
                                     "axis": I(axis)}, x, native=True)
    order = np.argsort(-x if largest else x, axis=axis, kind="stable")
    assert at.dtype == I
    np.testing.assert_array_equal(at, np.take(order, range(4), axis))
    np.testing.assert_array_equal(values, np.take_along_axis(x, at, axis))
