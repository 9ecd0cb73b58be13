"""Ops that move elements, against numpy and torch, and their stages against their references."""

import ml_dtypes
import numpy as np
import pytest
import torch
from stage_checks import check, make, same

from tactician.ir import dims as D
from tactician.ir.dtypes import f32
from tactician.ir.graph import Graph
from tactician.ops import OpError, emit, evaluate, get

RNG = np.random.default_rng(1)


def x32(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def i(*values):
    return np.array(values, np.int64)


def view(op, x, *consts, **attrs):
    return check(op, x, *consts, const=tuple(range(1, 1 + len(consts))), expect_stages=False,
                 **attrs)


# --- shapes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("shape,target,expected", [
    ((2, 3, 4), (4, 6), (4, 6)), ((2, 3, 4), (0, -1), (2, 12)), ((2, 3, 4), (-1,), (24,)),
    ((1,), (), ()), ((), (1, 1), (1, 1)), ((0, 3), (3, 0, 5), None), ((0, 3), (0, 3), (0, 3)),
    ((0, 4), (-1, 2), (0, 2)),
])  # fmt: skip
def test_reshape(shape, target, expected):
    x = x32(*shape)
    if expected is None:
        with pytest.raises(OpError, match=r"copies a dimension|elements"):
            make("reshape", np.zeros((2, 3), np.float32), i(0, 0, 0), const=(1,))
        return
    assert view("reshape", x, i(*target)).shape == expected


def test_reshape_with_real_zero():
    assert view("reshape", x32(0, 3), i(3, 0), zero_copies=False).shape == (3, 0)


@pytest.mark.parametrize("target", [(5,), (-1, -1), (-2, 6), (-1, 5)])
def test_reshape_refuses(target):
    with pytest.raises(OpError, match=r"layer 'reshape'.*new shape|reshaped"):
        make("reshape", x32(2, 3), i(*target), const=(1,))


def test_squeeze_unsqueeze():
    x = x32(1, 3, 1)
    assert view("squeeze", x, i(0)).shape == (3, 1)
    assert view("squeeze", x, i(-1, 0)).shape == (3,)
    assert evaluate(make("squeeze", x), x)[0].shape == (3,)
    assert view("unsqueeze", x, i(0, -1)).shape == (1, 1, 3, 1, 1)
    with pytest.raises(OpError, match="squeezed axis 1"):
        make("squeeze", x, i(1), const=(1,))
    with pytest.raises(OpError, match="twice"):
        make("unsqueeze", x, i(1, 1), const=(1,))


def test_shape_and_constant():
    assert check("shape", x32(2, 3, 4)).tolist() == [2, 3, 4]
    assert check("shape", np.float32(1)).shape == (0,)
    value = np.arange(3, dtype=np.int8)
    node = make("constant", value=value)
    same(evaluate(node)[0], value)
    assert list(node.output.known_ints()) == [0, 1, 2]


@pytest.mark.parametrize("shape,target", [((3, 1), (2, 3, 4)), ((3,), (1, 1)), ((), (2, 2)),
                                          ((1,), (0,)), ((2, 3), (3,))])  # fmt: skip
def test_expand(shape, target):
    x = x32(*shape)
    full = np.broadcast_shapes(shape, target)
    same(check("expand", x, i(*target), const=(1,)), np.broadcast_to(x, full))


# --- slices ---------------------------------------------------------------------------------


@pytest.mark.parametrize("starts,ends,axes,steps", [
    ([1], [3], None, None), ([0, -2], [10**18, 2**31 - 1], [0, 2], None),
    ([-1], [-(2**63)], [1], [-1]), ([5], [0], [2], [-2]), ([3], [1], [0], None),
    ([-100], [2], [1], [1]), ([1], [-1], [-1], [2]), ([100], [-100], [0], [-3]),
])  # fmt: skip
def test_strided_slice(starts, ends, axes, steps):
    x = x32(4, 5, 6)
    index = [slice(None)] * 3
    for k, (b, e) in enumerate(zip(starts, ends, strict=True)):
        index[axes[k] if axes else k] = slice(b, e, steps[k] if steps else None)
    extra = [None if v is None else i(*v) for v in (axes, steps)]
    got = check("strided_slice", x, i(*starts), i(*ends), *extra, const=(1, 2, 3, 4))
    same(got, x[tuple(index)])


@pytest.mark.parametrize("start,end,step,expected", [
    (0, 2**63 - 1, 1, "n"), (1, 2**31 - 1, 1, "n + -1"), (0, -1, 1, "n + -1"),
    (-1, -(2**63), -1, "n"), (0, 5, 1, "min(5, n)"), (-2, 2**63 - 1, 1, None),
])  # fmt: skip
def test_symbolic_slice_sizes(start, end, step, expected):
    g = Graph()
    x = g.add_input("x", f32, (D.sym("n"),))
    consts = [g.constant(i(v)) for v in (start, end, 0, step)]
    (size,) = emit(g, "strided_slice", [x, *consts]).output.dims
    if expected is not None:
        assert str(size) == expected
    for n in (1, 2, 3, 7):
        assert D.evaluate(size, {"n": n}) == len(range(n)[start:end:step])


@pytest.mark.parametrize("mode", ["wrap", "clamp", "fill", "reflect"])
@pytest.mark.parametrize("start,size,stride", [
    ((-3, -2), (9, 8), (1, 1)), ((5, 1), (6, 3), (-2, -1)), ((0, 0), (3, 4), (1, 1)),
])  # fmt: skip
def test_slice_modes(mode, start, size, stride):
    x = x32(3, 4)
    fill = np.float32(7) if mode == "fill" else None
    got = check("slice", x, i(*start), i(*size), i(*stride), fill, const=(1, 2, 3), mode=mode)

    def at(p, n):
        if mode == "wrap":
            return p % n
        if mode == "clamp":
            return min(max(p, 0), n - 1)
        while mode == "reflect" and not 0 <= p < n:
            p = -p if p < 0 else 2 * (n - 1) - p
        return p

    for r in range(size[0]):
        for c in range(size[1]):
            y = at(start[0] + r * stride[0], 3), at(start[1] + c * stride[1], 4)
            inside = 0 <= y[0] < 3 and 0 <= y[1] < 4
            assert got[r, c] == (x[y] if inside else 7)


def test_slice_strict():
    x = x32(5, 4)
    same(check("slice", x, i(1, 3), i(2, 4), i(2, -1), const=(1, 2, 3)), x[1:5:2, ::-1])
    with pytest.raises(OpError, match=r"axis 0 of slice reads 3 to 5 of 5"):
        make("slice", x, i(3, 0), i(3, 4), i(1, 1), const=(1, 2, 3))


def test_slice_by_tensors_of_unknown_content():
    """Start and stride may be read while running, if the size is known."""
    x = x32(5, 4)
    same(check("slice", x, i(1, 0), i(2, 4), i(1, 1), const=(2,), fixed=(1, 3)), x[1:3])


# --- rearranging ----------------------------------------------------------------------------


@pytest.mark.parametrize("perm", [(0, 1, 2), (2, 0, 1), (), (1, 0, 2)])
@pytest.mark.parametrize("dt", [np.float32, ml_dtypes.bfloat16, np.int8, np.bool_])
def test_transpose(perm, dt):
    x = (x32(2, 3, 4) > 0).astype(dt)
    same(check("transpose", x, perm=perm), np.transpose(x, perm or None))


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_concat(axis):
    shapes = [[2, 3, 4] for _ in range(3)]
    for n, s in zip((1, 0, 3), shapes, strict=True):
        s[axis] = n
    xs = [x32(*s) for s in shapes]
    same(check("concat", *xs, axis=axis), np.concatenate(xs, axis))
    node = make("concat", *xs, axis=axis)
    (stage,) = get("concat").stages(node)
    assert stage.meta["concat"] == list(zip(node.inputs, (0, 1, 1), strict=True))


def test_concat_refuses():
    with pytest.raises(OpError, match="sizes of axis 1"):
        make("concat", x32(2, 3), x32(2, 4), axis=0)
    with pytest.raises(OpError, match="one type and rank"):
        make("concat", x32(2, 3), x32(2), axis=0)


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect", "wrap"])
@pytest.mark.parametrize("pads", [(1, 0, 2, 1), (0, 0, 0, 0), (2, 3, 2, 3), (-1, 0, 0, -2),
                                  (-1, 2, 1, -1)])  # fmt: skip
def test_pad(mode, pads):
    x = x32(3, 4)
    crop = tuple(slice(max(-pads[k], 0), n - max(-pads[2 + k], 0)) for k, n in enumerate((3, 4)))
    widths = [(max(pads[k], 0), max(pads[2 + k], 0)) for k in (0, 1)]
    value = np.float32(5) if mode == "constant" else None
    got = check("pad", x, i(*pads), value, const=(1,), mode=mode)
    kw = {"constant_values": 5} if mode == "constant" else {}
    if mode == "constant" or min(pads) >= 0:
        same(got, np.pad(x[crop], widths, mode=mode, **kw))
    else:
        assert got.shape == np.pad(x[crop], widths).shape


def test_pad_reflects_many_times_and_takes_one_element():
    x = x32(3)
    same(check("pad", x, i(7, 9), const=(1,), mode="reflect"), np.pad(x, (7, 9), mode="reflect"))
    same(check("pad", x[:1], i(2, 1), const=(1,), mode="reflect"), np.repeat(x[:1], 4))
    same(check("pad", x, i(7, 9), const=(1,), mode="wrap"), np.pad(x, (7, 9), mode="wrap"))


def test_pad_of_nothing():
    same(check("pad", x32(0, 2), i(1, 0, 1, 0), const=(1,)), np.zeros((2, 2), np.float32))


@pytest.mark.parametrize("reps", [(1, 1), (2, 3), (0, 1), (1, 4)])
def test_tile(reps):
    x = x32(2, 1)
    same(check("tile", x, i(*reps), const=(1,)), np.tile(x, reps))


def test_depth_to_space():
    x = x32(2, 12, 3, 5)
    t = torch.nn.functional.pixel_shuffle(torch.from_numpy(x), 2).numpy()
    same(check("depth_to_space", x, block=2, mode="crd"), t)
    y = check("depth_to_space", x, block=2, mode="dcr")
    same(check("space_to_depth", y, block=2), x)


@pytest.mark.parametrize("batch,seq", [(0, 1), (1, 0), (2, 1)])
def test_reverse_sequence(batch, seq):
    x, lens = x32(4, 5, 3), np.array([1, 0, 2, 3, 1][: (4, 5, 3)[batch]])
    got = check("reverse_sequence", x, lens, batch_axis=batch, seq_axis=seq)
    expected = x.copy()
    for b, n in enumerate(lens):
        at = [slice(None)] * 3
        at[batch], at[seq] = b, slice(0, n)
        picked = np.take(np.take(x, [b], batch), np.arange(n)[::-1], seq)
        expected[tuple(at)] = picked.squeeze(batch)
    same(got, expected)


@pytest.mark.parametrize("upper", [True, False])
@pytest.mark.parametrize("k", [None, 0, -1, 2])
def test_trilu(upper, k):
    x = x32(2, 3, 4)
    f = np.triu if upper else np.tril
    extra = [] if k is None else [np.array(k)]
    same(check("trilu", x, *extra, upper=upper), f(x, k or 0))


def test_errors_name_the_layer_and_shapes():
    with pytest.raises(OpError, match=r"layer 'transpose'.*\[0, 0, 1\]"):
        make("transpose", x32(2, 3, 4), perm=(0, 0, 1))
    with pytest.raises(OpError, match=r"'x0' f32\[2, 3\]"):
        make("tile", x32(2, 3), i(1), const=(1,))
