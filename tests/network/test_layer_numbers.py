"""What layers compute, with static and dynamic shapes, against torch and numpy."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from netkit import add_inputs, const, f32, network, run

import tactician as trt

A, E, U, R = (trt.ActivationType, trt.ElementWiseOperation, trt.UnaryOperation,
              trt.ReduceOperation)
M, S, P = trt.MatrixOperation, trt.SampleMode, trt.PoolingType


def conv(shape=(3, 3), maps=6, groups=1, bias=True, **attrs):
    def build(n, x):
        w = f32(maps, 4 // groups, *shape)
        layer = n.add_convolution_nd(x, maps, shape, w, f32(maps) if bias else None)
        layer.num_groups = groups
        return put(layer, attrs)

    def want(x):
        fn = F.conv2d if len(shape) == 2 else F.conv3d if len(shape) == 3 else F.conv1d
        return fn(x, torch.tensor(f32(maps, 4 // groups, *shape)),
                  torch.tensor(f32(maps)) if bias else None, groups=groups,
                  stride=attrs.get("stride_nd", 1), padding=attrs.get("padding_nd", 0),
                  dilation=attrs.get("dilation_nd", 1))

    return build, want, [f32(2, 4, *(9,) * len(shape))]


def deconv(groups=1, **attrs):
    w, b = f32(4, 6 // groups, 3, 3), f32(6)

    def build(n, x):
        layer = n.add_deconvolution_nd(x, 6, (3, 3), w, trt.Weights(b))
        layer.num_groups = groups
        return put(layer, attrs)

    def want(x):
        return F.conv_transpose2d(x, torch.tensor(w), torch.tensor(b), groups=groups,
                                  stride=attrs.get("stride_nd", 1),
                                  padding=attrs.get("padding_nd", 0))

    return build, want, [f32(2, 4, 5, 6)]


def put(layer, attrs):
    for k, v in attrs.items():
        setattr(layer, k, v)
    return layer


def pool(kind, want, **attrs):
    return lambda n, x: put(n.add_pooling_nd(x, kind, (3, 2)), attrs), want, [f32(2, 3, 8, 9)]


def unary(op, fn, x=None):
    return lambda n, t: n.add_unary(t, op), fn, [f32(2, 5) if x is None else x]


def binary(op, fn, a=None, b=None):
    a = f32(3, 4) if a is None else a
    b = f32(3, 1, seed=1) if b is None else b
    return lambda n, x, y: n.add_elementwise(x, y, op), fn, [a, b]


def activation(kind, fn, alpha=0.0, beta=0.0):
    return (lambda n, x: put(n.add_activation(x, kind), {"alpha": alpha, "beta": beta}), fn,
            [3 * f32(3, 7)])


def reduce(op, fn, axes=0b110, keep=False):
    return lambda n, x: n.add_reduce(x, op, axes, keep), fn, [f32(2, 3, 4)]


def shuffle(want, **attrs):
    return lambda n, x: put(n.add_shuffle(x), attrs), want, [f32(2, 3, 4)]


def resize(want, **attrs):
    return lambda n, x: put(n.add_resize(x), attrs), want, [f32(1, 2, 5, 6)]


def softcut(x):
    return torch.softmax(x, 1)


INTS = np.array([[5, -5, 7], [-7, 6, 0]], np.int32), np.array([[3, 3, -2], [2, 4, 5]], np.int32)
BOOLS = np.array([True, True, False, False]), np.array([True, False, True, False])
UNIT = np.linspace(-0.9, 0.9, 10, dtype=np.float32).reshape(2, 5)
IDX = np.array([[2, 0], [1, 1]], np.int32)

CASES = {
    "conv": conv(), "conv_strided": conv(stride_nd=(2, 1), padding_nd=(1, 2)),
    "conv_grouped": conv(groups=2, bias=False), "conv_dilated": conv(dilation_nd=(2, 3)),
    "conv_1d": conv((3,)), "conv_3d": conv((2, 3, 2), stride_nd=(1, 2, 2)),
    "deconv": deconv(), "deconv_strided": deconv(stride_nd=(2, 2), padding_nd=(1, 0)),
    "deconv_grouped": deconv(groups=2),
    "pool_max": pool(P.MAX, lambda x: F.max_pool2d(x, (3, 2), 1)),
    "pool_max_up": pool(P.MAX, lambda x: F.max_pool2d(x, (3, 2), 2, ceil_mode=True),
                        stride_nd=(2, 2), padding_mode=trt.PaddingMode.EXPLICIT_ROUND_UP),
    "pool_avg": pool(P.AVERAGE, lambda x: F.avg_pool2d(x, (3, 2), (2, 2), (1, 1),
                                                       count_include_pad=False),
                     stride_nd=(2, 2), padding_nd=(1, 1)),
    "pool_avg_pads": pool(P.AVERAGE, lambda x: F.avg_pool2d(x, (3, 2), (2, 2), (1, 1)),
                          stride_nd=(2, 2), padding_nd=(1, 1),
                          average_count_excludes_padding=False),
    "pool_blend": pool(P.MAX_AVERAGE_BLEND, lambda x: 0.75 * F.max_pool2d(x, (3, 2), 1)
                       + 0.25 * F.avg_pool2d(x, (3, 2), 1), blend_factor=0.25),
    "exp": unary(U.EXP, torch.exp), "erf": unary(U.ERF, torch.erf),
    "recip": unary(U.RECIP, torch.reciprocal), "round": unary(U.ROUND, torch.round, 4 * f32(9)),
    "asin": unary(U.ASIN, torch.asin, UNIT), "atanh": unary(U.ATANH, torch.atanh, UNIT),
    "not": unary(U.NOT, torch.logical_not, BOOLS[0]), "sign": unary(U.SIGN, torch.sign),
    "isnan": unary(U.ISNAN, torch.isnan, np.array([1, np.nan], np.float32)),
    "neg_int": unary(U.NEG, torch.neg, INTS[0]),
    "sum": binary(E.SUM, torch.add), "max": binary(E.MAX, torch.maximum),
    "div": binary(E.DIV, torch.div), "less": binary(E.LESS, torch.lt),
    "pow": binary(E.POW, torch.pow, abs(f32(3, 4))), "equal": binary(E.EQUAL, torch.eq, *INTS),
    "floor_div": binary(E.FLOOR_DIV, torch.floor_divide, *INTS),
    "floor_div_float": binary(E.FLOOR_DIV, torch.floor_divide),
    "int_div": binary(E.DIV, lambda a, b: torch.div(a, b, rounding_mode="trunc"), *INTS),
    "xor": binary(E.XOR, torch.logical_xor, *BOOLS), "and": binary(E.AND, torch.logical_and,
                                                                   *BOOLS),
    "relu": activation(A.RELU, F.relu), "clip": activation(A.CLIP, lambda x: x.clip(-1, 2), -1, 2),
    "leaky": activation(A.LEAKY_RELU, lambda x: F.leaky_relu(x, 0.1), 0.1),
    "elu": activation(A.ELU, lambda x: F.elu(x, 0.7), 0.7),
    "selu": activation(A.SELU, F.selu, 1.6732632, 1.0507010),
    "softsign": activation(A.SOFTSIGN, F.softsign), "tanh": activation(A.TANH, torch.tanh),
    "softplus": activation(A.SOFTPLUS, lambda x: 2 * torch.log(1 + torch.exp(0.5 * x)), 2, 0.5),
    "hard_sigmoid": activation(A.HARD_SIGMOID, lambda x: (0.2 * x + 0.4).clip(0, 1), 0.2, 0.4),
    "scaled_tanh": activation(A.SCALED_TANH, lambda x: 1.5 * torch.tanh(0.3 * x), 1.5, 0.3),
    "thresholded": activation(A.THRESHOLDED_RELU, lambda x: torch.where(x > 0.5, x, 0), 0.5),
    "gelu_erf": activation(A.GELU_ERF, F.gelu),
    "gelu_tanh": activation(A.GELU_TANH, lambda x: F.gelu(x, approximate="tanh")),
    "reduce_sum": reduce(R.SUM, lambda x: x.sum((1, 2))),
    "reduce_avg": reduce(R.AVG, lambda x: x.mean((0, 2), keepdim=True), 0b101, True),
    "reduce_max": reduce(R.MAX, lambda x: x.amax(1), 0b10),
    "reduce_prod": reduce(R.PROD, lambda x: x.prod(2), 0b100),
    "softmax": (lambda n, x: put(n.add_softmax(x), {"axes": 2}), softcut, [f32(2, 5, 3)]),
    "topk": (lambda n, x: n.add_topk(x, trt.TopKOperation.MAX, 3, 2),
             lambda x: torch.topk(x, 3, 1), [f32(2, 7)]),
    "shuffle_reshape": shuffle(lambda x: x.reshape(2, 12), reshape_dims=(0, -1)),
    "shuffle_all": shuffle(lambda x: x.permute(1, 0, 2).reshape(3, 8).T,
                           first_transpose=(1, 0, 2), reshape_dims=(0, 8),
                           second_transpose=(1, 0)),
    "slice": (lambda n, x: n.add_slice(x, (0, 1), (2, 2), (1, 2)), lambda x: x[:, 1:5:2],
              [f32(2, 6)]),
    "slice_reverse": (lambda n, x: n.add_slice(x, (0, 5), (2, 6), (1, -1)),
                      lambda x: x.flip(1), [f32(2, 6)]),
    "slice_fill": (lambda n, x: put(n.add_slice(x, (-1, 0), (4, 3), (1, 1)), {"mode": S.FILL}),
                   lambda x: F.pad(x, (0, 0, 1, 1)), [f32(2, 3)]),
    "slice_clamp": (lambda n, x: put(n.add_slice(x, (-1, 0), (4, 3), (1, 1)), {"mode": S.CLAMP}),
                    lambda x: torch.cat([x[:1], x, x[-1:]]), [f32(2, 3)]),
    "slice_wrap": (lambda n, x: put(n.add_slice(x, (1, 0), (4, 3), (1, 1)), {"mode": S.WRAP}),
                   lambda x: torch.cat([x, x]).roll(-1, 0), [f32(2, 3)]),
    "concat": (lambda n, x, y: put(n.add_concatenation([x, y]), {"axis": 1}),
               lambda x, y: torch.cat([x, y], 1), [f32(2, 3), f32(2, 5)]),
    "padding": (lambda n, x: n.add_padding_nd(x, (1, 0), (2, -1)),
                lambda x: F.pad(x, (0, -1, 1, 2)), [f32(1, 2, 3, 4)]),
    "shape": (lambda n, x: n.add_shape(x), lambda x: torch.tensor(x.shape), [f32(2, 3)]),
    "matmul": (lambda n, x, y: n.add_matrix_multiply(x, M.NONE, y, M.TRANSPOSE),
               lambda x, y: x @ y.transpose(-1, -2), [f32(2, 3, 4), f32(1, 5, 4)]),
    "matmul_vector": (lambda n, x, y: n.add_matrix_multiply(x, M.TRANSPOSE, y, M.VECTOR),
                      lambda x, y: torch.einsum("bkm,bk->bm", x, y), [f32(2, 3, 4), f32(2, 3)]),
    "einsum": (lambda n, x, y: n.add_einsum([x, y], "bij,kj->bki"),
               lambda x, y: torch.einsum("bij,kj->bki", x, y), [f32(2, 3, 4), f32(5, 4)]),
    "gather": (lambda n, x, i: n.add_gather(x, i, 1), lambda x, i: x[:, i.long()],
               [f32(2, 3, 4), IDX]),
    "gather_elements": (lambda n, x, i: put(n.add_gather_v2(x, i, trt.GatherMode.ELEMENT),
                                            {"axis": 1}),
                        lambda x, i: torch.gather(x, 1, i.long()), [f32(2, 3), IDX]),
    "gather_nd": (lambda n, x, i: n.add_gather_v2(x, i, trt.GatherMode.ND),
                  lambda x, i: x[i[:, 0].long(), i[:, 1].long()], [f32(3, 2), IDX]),
    "scatter": (lambda n, x, i, u: put(n.add_scatter(x, i, u, trt.ScatterMode.ELEMENT),
                                       {"axis": 1}),
                lambda x, i, u: x.scatter(1, i.long(), u),
                [f32(2, 3), np.array([[2, 0], [1, 0]], np.int32), f32(2, 2)]),
    "one_hot": (lambda n, i: n.add_one_hot(i, const(n, np.array([0, 1], np.float32)),
                                           const(n, np.int32(4)), -1),
                lambda i: F.one_hot(i.long(), 4).float(), [IDX]),
    "non_zero": (lambda n, x: n.add_non_zero(x), lambda x: x.nonzero().T.int(), [INTS[0]]),
    "select": (lambda n, c, x, y: n.add_select(c, x, y), torch.where,
               [np.array([[True], [False]]), f32(2, 3), f32(2, 3, seed=2)]),
    "cast": (lambda n, x: n.add_cast(x, trt.int32), lambda x: x.int(), [4 * f32(5)]),
    "prelu": (lambda n, x, s: n.add_parametric_relu(x, s),
              lambda x, s: torch.where(x < 0, x * s, x), [f32(2, 3, 4), f32(1, 3, 1)]),
    "scale": (lambda n, x: n.add_scale(x, trt.ScaleMode.CHANNEL, f32(3), abs(f32(3, seed=1)),
                                       np.full(3, 2, np.float32)),
              lambda x: (x * torch.tensor(abs(f32(3, seed=1)))[:, None] + torch.tensor(f32(3))[
                  :, None]) ** 2, [f32(2, 3, 4)]),
    "scale_uniform": (lambda n, x: n.add_scale(x, trt.ScaleMode.UNIFORM, None, np.float32([3])),
                      lambda x: 3 * x, [f32(2, 3)]),
    "normalization": (lambda n, x, s, b: n.add_normalization(x, s, b, 0b100),
                      lambda x, s, b: F.layer_norm(x, (4,), s[0, 0], b[0, 0]),
                      [f32(2, 3, 4), f32(1, 1, 4), f32(1, 1, 4, seed=1)]),
    "lrn": (lambda n, x: n.add_lrn(x, 3, 0.3, 0.7, 1.5),
            lambda x: F.local_response_norm(x, 3, 0.3, 0.7, 1.5), [f32(1, 6, 2, 2)]),
    "cumulative": (lambda n, x: n.add_cumulative(x, const(n, np.int32(1)),
                                                 trt.CumulativeOperation.SUM, False, True),
                   lambda x: x.flip(1).cumsum(1).flip(1), [f32(2, 4)]),
    "resize_nearest": resize(lambda x: F.interpolate(x, scale_factor=2), scales=[1, 1, 2, 2]),
    "resize_linear": resize(
        lambda x: F.interpolate(x, (9, 4), mode="bilinear"), shape=(1, 2, 9, 4),
        resize_mode=trt.InterpolationMode.LINEAR,
        coordinate_transformation=trt.ResizeCoordinateTransformation.HALF_PIXEL),
    "resize_corners": resize(
        lambda x: F.interpolate(x, (9, 4), mode="bilinear", align_corners=True),
        shape=(1, 2, 9, 4), resize_mode=trt.InterpolationMode.LINEAR, align_corners=True),
    "resize_cubic": resize(
        lambda x: F.interpolate(x, (9, 11), mode="bicubic"), shape=(1, 2, 9, 11),
        resize_mode=trt.InterpolationMode.CUBIC,
        coordinate_transformation=trt.ResizeCoordinateTransformation.HALF_PIXEL),
    "grid_sample": (lambda n, x, g: n.add_grid_sample(x, g),
                    lambda x, g: F.grid_sample(x, g, align_corners=False),
                    [f32(1, 2, 5, 5), f32(1, 3, 4, 2)]),
    "squeeze": (lambda n, x: n.add_squeeze(x, const(n, np.array([1], np.int64))),
                lambda x: x.squeeze(1), [f32(2, 1, 3)]),
    "unsqueeze": (lambda n, x: n.add_unsqueeze(x, const(n, np.array([0, 2], np.int64))),
                  lambda x: x[None, :, None], [f32(2, 3)]),
    "quantize": (lambda n, x: n.add_dequantize(n.add_quantize(
        x, const(n, np.float32(0.1))).get_output(0), const(n, np.float32(0.1))),
        lambda x: torch.fake_quantize_per_tensor_affine(x, 0.1, 0, -128, 127), [f32(3, 4)]),
    "fully_connected": (lambda n, x: n.add_fully_connected(x, 5, f32(5, 12), f32(5)),
                        lambda x: F.linear(x.flatten(1), torch.tensor(f32(5, 12)),
                                           torch.tensor(f32(5)))[..., None, None],
                        [f32(2, 3, 2, 2)]),
    "reverse_sequence": (lambda n, x, i: put(n.add_reverse_sequence(x, i),
                                             {"batch_axis": 0, "sequence_axis": 1}),
                         lambda x, i: torch.stack([torch.cat([r[:k].flip(0), r[k:]])
                                                   for r, k in zip(x, i, strict=True)]),
                         [f32(2, 4), np.array([3, 2], np.int32)]),
    "ragged": (lambda n, x, b: n.add_ragged_softmax(x, b),
               lambda x, b: torch.cat([torch.softmax(x[:, :1, :2], -1),
                                       torch.zeros(1, 1, 1)], -1),
               [f32(1, 1, 3), np.array([[[2]]], np.int32)]),
}
# their constants depend on sizes
NEEDS_STATIC = {"fully_connected", "shuffle_all", "gather_nd"}


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("name", CASES)
def test_layer(name, dynamic):
    build, want, arrays = CASES[name]
    if dynamic and name in NEEDS_STATIC:
        pytest.skip("needs static sizes")
    net = network()
    layer = build(net, *add_inputs(net, arrays, dynamic))
    for i in range(layer.num_outputs):
        net.mark_output(layer.get_output(i))
    assert net.check() == [] and net._logger.errors == []
    results = run(net, arrays)
    expected = want(*map(torch.tensor, arrays))
    expected = expected if isinstance(expected, tuple) else (expected,)
    for r, w in zip(results, expected, strict=True):
        np.testing.assert_allclose(r, w.numpy(), rtol=2e-5, atol=2e-6)


def test_fill():
    net = network()
    line = net.add_fill((4,), trt.FillOperation.LINSPACE, trt.float32)
    line.alpha, line.beta = 1.0, 0.5
    noise = net.add_fill(trt.Dims([1000]), trt.FillOperation.RANDOM_UNIFORM)
    noise.alpha, noise.beta = 2.0, 3.0
    grid = net.add_fill((), trt.FillOperation.LINSPACE, trt.int32)
    for i, v in enumerate([np.array([2, 3], np.int32), np.int32(5), np.array([10, 1], np.int32)]):
        grid.set_input(i, const(net, v))
    for layer in (line, noise, grid):
        net.mark_output(layer.get_output(0))
    a, b, c = run(net, [])
    assert a.tolist() == [1, 1.5, 2, 2.5] and c.tolist() == [[5, 6, 7], [15, 16, 17]]
    assert 2 <= b.min() < 2.1 and 2.9 < b.max() <= 3 and grid.alpha is None


def test_nms():
    boxes = np.array([[[0, 0, 1, 1], [0, 0, 1, 0.9], [0, 2, 1, 3]]], np.float32)
    scores = np.array([[[0.9], [0.8], [0.7]]], np.float32)
    net = network()
    b, s = add_inputs(net, [boxes, scores])
    layer = net.add_nms(b, s, const(net, np.int32(5)))
    layer.set_input(3, const(net, np.float32(0.5)))
    for i in (0, 1):
        net.mark_output(layer.get_output(i))
    found, count = run(net, [boxes, scores])
    assert found.tolist() == [[0, 0, 0], [0, 0, 2]] and count == 2 and found.dtype == np.int32


def test_topk_indices_are_int32_unless_asked_for():
    net = network()
    (x,) = add_inputs(net, [f32(2, 5)])
    layer = net.add_topk(x, trt.TopKOperation.MIN, 2, 1 << 1)
    assert layer.get_output(1).dtype is trt.int32 and layer.get_output(1).shape == (2, 2)
    layer.indices_type = trt.int64
    assert layer.get_output(1).dtype is trt.int64


def lstm_layer(net, x, module, layers, dirs):
    gate = trt.RNNGateType
    order = {"LSTM": (gate.INPUT, gate.FORGET, gate.CELL, gate.OUTPUT),
             "GRU": (gate.RESET, gate.UPDATE, gate.HIDDEN), "RNN": (gate.INPUT,)}[
                 type(module).__name__]
    op = {"LSTM": trt.RNNOperation.LSTM, "GRU": trt.RNNOperation.GRU,
          "RNN": trt.RNNOperation.TANH}[type(module).__name__]
    layer = net.add_rnn_v2(x, layers, 4, 5, op)
    layer.direction = trt.RNNDirection(dirs - 1)
    for k in range(layers * dirs):
        suffix = f"l{k // dirs}" + "_reverse" * (k % dirs)
        for is_w, name in ((True, "ih"), (False, "hh")):
            w = getattr(module, f"weight_{name}_{suffix}").detach().numpy()
            b = getattr(module, f"bias_{name}_{suffix}").detach().numpy()
            for i, g in enumerate(order):
                layer.set_weights_for_gate(k, g, is_w, w[4 * i:4 * i + 4])
                layer.set_bias_for_gate(k, g, is_w, b[4 * i:4 * i + 4])
    return layer


@pytest.mark.parametrize("kind, layers, dirs", [("LSTM", 2, 2), ("GRU", 1, 1), ("RNN", 2, 1)])
def test_recurrent_layers_match_torch(kind, layers, dirs):
    torch.manual_seed(0)
    module = getattr(torch.nn, kind)(3, 4, layers, batch_first=True, bidirectional=dirs == 2)
    x = f32(2, 5, 3)
    net = network()
    (t,) = add_inputs(net, [x])
    layer = lstm_layer(net, t, module, layers, dirs)
    for i in range(layer.num_outputs):
        net.mark_output(layer.get_output(i))
    y, h, *c = run(net, [x])
    want, state = module(torch.tensor(x))
    states = state if isinstance(state, tuple) else (state,)
    np.testing.assert_allclose(y, want.detach().numpy(), atol=1e-6)
    for got, s in zip((h, *c), states, strict=True):
        np.testing.assert_allclose(got, s.detach().numpy().swapaxes(0, 1), atol=1e-6)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_matches_torch(causal):
    q, k, v = f32(2, 4, 5, 8), f32(2, 2, 5, 8), f32(2, 2, 5, 8, seed=3)
    net = network()
    layer = net.add_attention(*add_inputs(net, [q, k, v]),
                              trt.AttentionNormalizationOp.SOFTMAX, causal)
    net.mark_output(layer.get_output(0))
    (y,) = run(net, [q, k, v])
    want = F.scaled_dot_product_attention(*map(torch.tensor, (q, k, v)), is_causal=causal,
                                          scale=1.0, enable_gqa=True)
    np.testing.assert_allclose(y, want.numpy(), atol=2e-6)


def test_mixture_of_experts():
    x, pick, score = f32(2, 3, 4), np.array([[[0, 2]] * 3] * 2, np.int32), abs(f32(2, 3, 2))
    gate, up, down = f32(3, 4, 6), f32(3, 4, 6, seed=1), f32(3, 6, 4)
    net = network()
    layer = net.add_moe(*add_inputs(net, [x, pick, score]))
    layer.set_gated_weights(*(const(net, w) for w in (gate, up, down)), trt.MoEActType.SILU)
    net.mark_output(layer.get_output(0))
    net.graph.toposort()
    (y,) = run(net, [x, pick, score])
    want = np.zeros_like(x)
    for i, j, k in np.ndindex(pick.shape):
        e, t = pick[i, j, k], x[i, j]
        g = t @ gate[e]
        want[i, j] += score[i, j, k] * ((g / (1 + np.exp(-g)) * (t @ up[e])) @ down[e])
    np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-5)


def test_key_value_cache():
    new = f32(2, 1, 2, 3)
    arrays = [np.zeros((2, 1, 6, 3), np.float32), new, np.array([1, 4], np.int32)]
    net = network()
    net.mark_output(net.add_kv_cache_update(*add_inputs(net, arrays)).get_output(0))
    (y,) = run(net, arrays)
    assert (y[0, 0, 1:3] == new[0, 0]).all() and (y[1, 0, 4:] == new[1, 0]).all()
    assert np.count_nonzero(y) == new.size
