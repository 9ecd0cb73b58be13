"""Single layers and small nets with many attributes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product

import numpy as np
from caffekit import inputs_text, layer_text, made_up, write_caffemodel


@dataclass
class Case:
    """One layer, called ``out``.

    Attributes:
        id: What pytest shows.
        type: Of the layer.
        params: Of the layer.
        shapes: Of its bottoms.
        blobs: Shapes of its weights.
        positive, zero: Which weights are positive, and 0.
        tops: How many.
        low, high: Range of the inputs.
    """

    id: str
    type: str
    params: str = ""
    shapes: list[tuple[int, ...]] = field(default_factory=lambda: [(2, 4, 7, 9)])
    blobs: list[tuple[int, ...]] = field(default_factory=list)
    positive: tuple[int, ...] = ()
    zero: tuple[int, ...] = ()
    tops: int = 1
    low: float = -2.0
    high: float = 2.0

    @property
    def feeds(self) -> dict:
        return {f"x{i}": made_up(f"{self.id}{i}", s, self.low, self.high)
                for i, s in enumerate(self.shapes)}

    @property
    def prototxt(self) -> str:
        ins = {f"x{i}": s for i, s in enumerate(self.shapes)}
        return inputs_text(ins) + "\n" + layer_text("out", self.type, list(ins), self.outputs,
                                                    self.params)

    @property
    def outputs(self) -> list[str]:
        return ["out"] if self.tops == 1 else [f"out{i}" for i in range(self.tops)]

    @property
    def weights(self) -> list:
        made = [made_up((self.id, i), s, 0.5 if i in self.positive else -1, 1.5)
                for i, s in enumerate(self.blobs)]
        return [w * (i not in self.zero) for i, w in enumerate(made)]

    @property
    def model(self) -> bytes:
        return write_caffemodel("net", {"out": self.weights})


def convolutions() -> Iterator[Case]:
    for k, s, p, d, g, b in product((1, 3), (1, 2), (0, 1), (1, 2), (1, 2, 4), (True, False)):
        if (k == 1 and (p or d > 1)) or (g == 4 and not b):
            continue
        yield Case(f"conv-k{k}s{s}p{p}d{d}g{g}{'b' if b else ''}", "Convolution",
                   f"convolution_param {{ num_output: 8 kernel_size: {k} stride: {s} pad: {p} "
                   f"dilation: {d} group: {g} bias_term: {str(b).lower()} }}",
                   blobs=[(8, 4 // g, k, k)] + ([(8,)] if b else []))
    yield Case("conv-hw", "Convolution", "convolution_param { num_output: 5 kernel_h: 3 "
               "kernel_w: 1 stride_h: 1 stride_w: 2 pad_h: 1 pad_w: 0 }",
               blobs=[(5, 4, 3, 1), (5,)])
    yield Case("conv-repeated", "Convolution", "convolution_param { num_output: 3 kernel_size: 2 "
               "kernel_size: 3 stride: 2 stride: 1 pad: 0 pad: 1 }", blobs=[(3, 4, 2, 3), (3,)])
    yield Case("conv-legacy-blobs", "Convolution", "convolution_param { num_output: 3 "
               "kernel_size: 1 }", blobs=[(3, 4, 1, 1), (1, 1, 1, 3)])


def deconvolutions() -> Iterator[Case]:
    for k, s, p, g in product((2, 3, 4), (1, 2), (0, 1), (1, 2)):
        yield Case(f"deconv-k{k}s{s}p{p}g{g}", "Deconvolution",
                   f"convolution_param {{ num_output: 6 kernel_size: {k} stride: {s} "
                   f"pad: {p} group: {g} }}",
                   blobs=[(4, 6 // g, k, k), (6,)])
    yield Case("deconv-bilinear", "Deconvolution", "convolution_param { num_output: 4 group: 4 "
               "kernel_size: 4 stride: 2 pad: 1 bias_term: false }", blobs=[(4, 1, 4, 4)])


def pools() -> Iterator[Case]:
    for pool, k, s, p, ceil in product(("MAX", "AVE"), (2, 3), (1, 2, 3), (0, 1), (True, False)):
        if k == 2 and s == 3:
            continue
        yield Case(f"pool-{pool}-k{k}s{s}p{p}{'ceil' if ceil else 'floor'}", "Pooling",
                   f"pooling_param {{ pool: {pool} kernel_size: {k} stride: {s} pad: {p} "
                   f"{'' if ceil else 'ceil_mode: false'} }}")
    for pool in ("MAX", "AVE"):
        yield Case(f"pool-{pool}-global", "Pooling",
                   f"pooling_param {{ pool: {pool} global_pooling: true }}")
        yield Case(f"pool-{pool}-hw", "Pooling", f"pooling_param {{ pool: {pool} kernel_h: 3 "
                   "kernel_w: 2 stride_h: 1 stride_w: 2 pad_h: 1 pad_w: 0 }")


def products() -> Iterator[Case]:
    for b, t in product((True, False), (True, False)):
        w = (4 * 63, 5) if t else (5, 4 * 63)
        yield Case(f"ip-{'b' if b else ''}{'t' if t else ''}", "InnerProduct",
                   f"inner_product_param {{ num_output: 5 bias_term: {str(b).lower()} "
                   f"transpose: {str(t).lower()} }}", blobs=[w] + ([(5,)] if b else []))
    yield Case("ip-2d", "InnerProduct", "inner_product_param { num_output: 3 }", [(3, 8)],
               [(3, 8), (3,)])
    yield Case("ip-axis2", "InnerProduct", "inner_product_param { num_output: 3 axis: 2 }",
               blobs=[(3, 63), (3,)])
    yield Case("ip-axis-1", "InnerProduct", "inner_product_param { num_output: 3 axis: -1 }",
               blobs=[(3, 9), (3,)])
    yield Case("ip-legacy-blobs", "InnerProduct", "inner_product_param { num_output: 3 }", [(3, 8)],
               [(1, 1, 3, 8), (1, 1, 1, 3)])


def pointwise() -> Iterator[Case]:
    plain = {
        "ReLU": ["", "relu_param { negative_slope: 0.1 }", "relu_param { negative_slope: -0.5 }"],
        "ELU": ["", "elu_param { alpha: 0.5 }"], "Sigmoid": [""], "TanH": [""], "BNLL": [""],
        "AbsVal": [""], "Power": ["power_param { power: 2 scale: 0.5 shift: 1 }", "",
                                  "power_param { scale: -3 }", "power_param { shift: 4 }",
                                  "power_param { power: 3 }"],
        "Dropout": ["", "dropout_param { dropout_ratio: 0.3 }"],
        "Softmax": ["", "softmax_param { axis: 2 }", "softmax_param { axis: -1 }"],
        "Exp": ["", "exp_param { base: 2 }", "exp_param { base: 3 scale: 0.5 shift: -1 }"],
        "ReLU6": [""], "Split": [""],
    }
    for type, all_params in plain.items():
        for i, params in enumerate(all_params):
            yield Case(f"{type}-{i}", type, params)
    yield Case("Power-root", "Power", "power_param { power: 0.5 shift: 1 }", low=0.0)
    yield Case("Softmax-2d", "Softmax", "", [(3, 11)])
    yield Case("PReLU", "PReLU", blobs=[(4,)])
    yield Case("PReLU-shared", "PReLU", "prelu_param { channel_shared: true }", blobs=[(1,)])


def norms() -> Iterator[Case]:
    for eps in ("", "batch_norm_param { eps: 0.01 }",
                "batch_norm_param { use_global_stats: true }"):
        yield Case(f"BatchNorm-{eps}", "BatchNorm", eps, blobs=[(4,), (4,), (1,)], positive=(1, 2))
    yield Case("BatchNorm-legacy", "BatchNorm", "", blobs=[(1, 1, 1, 4), (1, 1, 1, 4), (1,)],
               positive=(1, 2))
    yield Case("Scale", "Scale", blobs=[(4,)])
    yield Case("Scale-bias", "Scale", "scale_param { bias_term: true }", blobs=[(4,), (4,)])
    yield Case("Scale-axis-1", "Scale", "scale_param { axis: -1 bias_term: true }",
               blobs=[(9,), (9,)])
    yield Case("Scale-2axes", "Scale", "scale_param { axis: 2 num_axes: 2 }", blobs=[(7, 9)])
    yield Case("Scale-2bottoms", "Scale", "scale_param { axis: 0 }",
               shapes=[(2, 4, 7, 9), (2, 4)])
    for size, alpha, beta, k in ((5, 1e-4, 0.75, 1), (3, 2, 0.5, 2), (5, 0.5, 0.75, 1)):
        yield Case(f"LRN-{size}-{alpha}", "LRN", f"lrn_param {{ local_size: {size} alpha: {alpha} "
                   f"beta: {beta} k: {k} }}")
    for size in (3, 5):
        yield Case(f"LRN-within-{size}", "LRN", f"lrn_param {{ local_size: {size} alpha: 1.5 "
                   "beta: 0.75 norm_region: WITHIN_CHANNEL }")
    for variance, across in product(("true", "false"), repeat=2):
        yield Case(f"MVN-{variance}-{across}", "MVN", "mvn_param { normalize_variance: "
                   f"{variance} across_channels: {across} }}")
    for across, shared in product(("true", "false"), repeat=2):
        yield Case(f"Normalize-{across}-{shared}", "Normalize", f"norm_param {{ across_spatial: "
                   f"{across} channel_shared: {shared} }}",
                   blobs=[(1,) if shared == "true" else (4,)])


def formula_lrn(x, size, alpha, beta, k):
    squares = np.pad(x.astype(np.float64) ** 2, ((0, 0), (size // 2,) * 2, (0, 0), (0, 0)))
    total = sum(squares[:, i : i + x.shape[1]] for i in range(size))
    return x / (k + alpha / size * total) ** beta


def formula_interp(h, w, crop=slice(None)):
    """Linear along one axis after the other, corners aligned."""
    def along(x, size, axis):
        at = np.linspace(0, x.shape[axis] - 1, size)
        low = np.minimum(at.astype(int), x.shape[axis] - 1)
        high, part = np.minimum(low + 1, x.shape[axis] - 1), at - low
        part = part.reshape([-1 if i == axis else 1 for i in range(4)])
        return x.take(low, axis) * (1 - part) + x.take(high, axis) * part

    return lambda x, w_: along(along(x[0][..., crop, crop].astype(np.float64), h, 2), w, 3)


def formula_reduction(f, axis):
    return lambda x, w: 2 * f(x[0], tuple(range(axis, 4)))


# Where OpenCV does something else than Caffe, or nothing: why, and Caffe's formula.
DEVIATIONS = {
    "ip-bt": ("OpenCV ignores transpose", lambda x, w: x[0].reshape(2, -1) @ w[0] + w[1]),
    "ip-t": ("OpenCV ignores transpose", lambda x, w: x[0].reshape(2, -1) @ w[0]),
    "Scale-axis-1": ("OpenCV fails for negative axes", lambda x, w: x[0] * w[0] + w[1]),
    "LRN-3-2": ("OpenCV ignores k", lambda x, w: formula_lrn(x[0], 3, 2, 0.5, 2)),
    "Normalize-true-false": (
        "OpenCV wants a scale of another size",
        lambda x, w: x[0] / np.sqrt((x[0] ** 2).sum((1, 2, 3), keepdims=True) + 1e-10)
        * w[0][:, None, None]),
    "Concat-dim": ("OpenCV ignores concat_dim", lambda x, w: np.concatenate(x)),
    "Flatten-0--1": ("OpenCV's vectors have two dimensions", lambda x, w: x[0].reshape(-1)),
    "Tile": ("OpenCV reads no parameters of Tile", lambda x, w: np.concatenate([x[0]] * 3, 1)),
    "Slice-points": ("OpenCV numbers the tops of a last layer only from 0",
                     lambda x, w: [x[0][:, :1], x[0][:, 1:3], x[0][:, 3:]]),
    "Threshold": ("OpenCV has no such layer", lambda x, w: (x[0] > 0.5).astype(np.float32)),
    "Log": ("OpenCV reads no parameters of Log", lambda x, w: np.log(2 + 0.5 * x[0]) / np.log(10)),
    "Clip": ("OpenCV has no such layer", lambda x, w: np.clip(x[0], -0.5, 1)),
    "Swish": ("OpenCV ignores beta", lambda x, w: x[0] / (1 + np.exp(-2 * x[0]))),
    "Bias": ("OpenCV has no such layer", lambda x, w: x[0] + w[0][:, None, None]),
    "Bias-2": ("OpenCV has no such layer", lambda x, w: x[0] + x[1][:, :, None, None]),
    "BatchNorm-batch": (
        "OpenCV has no statistics of batches",
        lambda x, w: (x[0] - x[0].mean((0, 2, 3), keepdims=True))
        / np.sqrt(x[0].var((0, 2, 3), keepdims=True) + 1e-5)),
    "Embed": ("OpenCV has no such layer", lambda x, w: w[0][x[0].astype(int)] + w[1]),
    "ArgMax": ("OpenCV has no such layer",
               lambda x, w: x[0].reshape(2, -1).argmax(1).reshape(2, 1, 1)),
    "ArgMax-val": ("OpenCV has no such layer", lambda x, w: np.stack(
        [x[0].reshape(2, -1).argmax(1), x[0].reshape(2, -1).max(1)], 1)[..., None]),
    "ArgMax-axis": ("OpenCV has no such layer", lambda x, w: x[0].argmax(1)[:, None]),
    "ArgMax-axis-val": ("OpenCV has no such layer",
                        lambda x, w: -np.sort(-x[0], axis=-1)[..., :2]),
    "Upsample": ("OpenCV has no such layer",
                 lambda x, w: x[0].repeat(2, axis=2).repeat(2, axis=3)),
    "Upsample-hw": ("OpenCV has no such layer",
                    lambda x, w: x[0].repeat(3, axis=2).repeat(2, axis=3)),
    "Interp-shrink": ("OpenCV refuses shrink_factor", formula_interp(4, 5)),
    "Interp-crop": ("OpenCV ignores padding", formula_interp(9, 13, slice(1, -1))),
    "Depthwise": ("OpenCV has no such layer", lambda x, w: x[0] * w[0].reshape(4, 1, 1)),
    **{f"Reduction-{op}-{axis}": ("OpenCV has no such layer", formula_reduction(f, axis))
       for op, f in (("SUM", np.sum), ("ASUM", lambda x, a: np.abs(x).sum(a)),
                     ("SUMSQ", lambda x, a: (x * x).sum(a)), ("MEAN", np.mean))
       for axis in (0, 1, 2)},
}


def others() -> Iterator[Case]:
    yield Case("Tile", "Tile", "tile_param { tiles: 3 }")
    yield Case("Slice-points", "Slice", "slice_param { slice_point: 1 slice_point: 3 }", tops=3)
    yield Case("Threshold", "Threshold", "threshold_param { threshold: 0.5 }")
    yield Case("Log", "Log", "log_param { base: 10 scale: 0.5 shift: 2 }")
    yield Case("Clip", "Clip", "clip_param { min: -0.5 max: 1 }")
    yield Case("Swish", "Swish", "swish_param { beta: 2 }")
    yield Case("Bias", "Bias", blobs=[(4,)])
    yield Case("Bias-2", "Bias", "bias_param { axis: 0 }", [(2, 4, 7, 9), (2, 4)])
    yield Case("BatchNorm-batch", "BatchNorm", "batch_norm_param { use_global_stats: false }")
    yield Case("BatchNorm-zero-factor", "BatchNorm", blobs=[(4,), (4,), (1,)], zero=(2,))
    yield Case("Embed", "Embed", "embed_param { num_output: 5 input_dim: 3 }", [(2, 6)],
               [(3, 5), (5,)], low=0, high=3)
    yield Case("ArgMax", "ArgMax")
    yield Case("ArgMax-val", "ArgMax", "argmax_param { out_max_val: true }")
    yield Case("ArgMax-axis", "ArgMax", "argmax_param { axis: 1 }")
    yield Case("ArgMax-axis-val", "ArgMax", "argmax_param { axis: -1 top_k: 2 out_max_val: true }")
    yield Case("Upsample", "Upsample", "upsample_param { scale: 2 }")
    yield Case("Upsample-hw", "Upsample", "upsample_param { scale_h: 3 scale_w: 2 }")
    yield Case("Interp-zoom", "Interp", "interp_param { zoom_factor: 2 }")
    yield Case("Interp-shrink", "Interp", "interp_param { shrink_factor: 2 }")
    yield Case("Interp-crop", "Interp", "interp_param { zoom_factor: 2 pad_beg: -1 pad_end: -1 }")
    yield Case("Depthwise", "DepthwiseConvolution", "convolution_param { num_output: 4 "
               "kernel_size: 1 bias_term: false }", blobs=[(4, 1, 1, 1)])
    for op, axis in product(("SUM", "ASUM", "SUMSQ", "MEAN"), (0, 1, 2)):
        yield Case(f"Reduction-{op}-{axis}", "Reduction",
                   f"reduction_param {{ operation: {op} axis: {axis} coeff: 2 }}")


def combining() -> Iterator[Case]:
    two, three = [(2, 4, 7, 9)] * 2, [(2, 4, 7, 9)] * 3
    for op, shapes in product(("SUM", "PROD", "MAX"), (two, three)):
        yield Case(f"Eltwise-{op}-{len(shapes)}", "Eltwise", f"eltwise_param {{ operation: {op} }}",
                   shapes)
    yield Case("Eltwise-coeff", "Eltwise", "eltwise_param { coeff: 0.5 coeff: -2 }", two)
    yield Case("Concat", "Concat", "", [(2, 4, 7, 9), (2, 1, 7, 9), (2, 2, 7, 9)])
    yield Case("Concat-2", "Concat", "concat_param { axis: 2 }", [(2, 4, 7, 9), (2, 4, 1, 9)])
    yield Case("Concat--1", "Concat", "concat_param { axis: -1 }", [(2, 4, 7, 9), (2, 4, 7, 1)])
    yield Case("Concat-dim", "Concat", "concat_param { concat_dim: 0 }",
               [(2, 4, 7, 9), (1, 4, 7, 9)])
    yield Case("Crop", "Crop", "crop_param { axis: 2 offset: 1 }", [(2, 4, 7, 9), (2, 4, 5, 6)])
    yield Case("Crop-offsets", "Crop", "crop_param { axis: 2 offset: 0 offset: 3 }",
               [(2, 4, 7, 9), (2, 1, 4, 6)])
    yield Case("Crop-axis1", "Crop", "crop_param { axis: 1 offset: 1 }",
               [(2, 4, 7, 9), (2, 2, 5, 6)])


def shapes() -> Iterator[Case]:
    for i, dims in enumerate(((2, 4, 63), (0, -1), (0, 0, -1), (0, 2, 2, 63), (-1, 9), (2, 252))):
        text = " ".join(f"dim: {d}" for d in dims)
        yield Case(f"Reshape-{i}", "Reshape", f"reshape_param {{ shape {{ {text} }} }}")
    yield Case("Reshape-axis", "Reshape", "reshape_param { shape { dim: 3 dim: 3 } axis: 3 }")
    yield Case("Reshape-num-axes", "Reshape",
               "reshape_param { shape { dim: 2 dim: 2 } axis: 1 num_axes: 1 }")
    for axis, end in ((1, -1), (2, -1), (1, 2), (0, -1), (2, 3)):
        yield Case(f"Flatten-{axis}-{end}", "Flatten",
                   f"flatten_param {{ axis: {axis} end_axis: {end} }}")
    for order in ((0, 2, 3, 1), (0, 1, 3, 2), (0, 3, 1, 2), (1, 0, 2, 3)):
        text = " ".join(f"order: {d}" for d in order)
        yield Case(f"Permute-{''.join(map(str, order))}", "Permute", f"permute_param {{ {text} }}")
    yield Case("ShuffleChannel", "ShuffleChannel", "shuffle_channel_param { group: 2 }")
    yield Case("Interp", "Interp", "interp_param { height: 13 width: 5 }")


def every() -> list[Case]:
    return [*convolutions(), *deconvolutions(), *pools(), *products(), *pointwise(), *norms(),
            *combining(), *shapes(), *others()]
