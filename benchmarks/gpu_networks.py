"""Small networks of every kind, as ONNX models with their inputs: what `gpu.py check` runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np


def networks() -> dict[str, Callable[[], tuple[bytes, dict[str, np.ndarray]]]]:
    """Name -> (ONNX bytes, inputs)."""
    import onnx
    from onnx import TensorProto as T
    from onnx import helper as h
    from onnx import numpy_helper

    rng = np.random.default_rng(1)
    kinds = {np.dtype("f4"): T.FLOAT, np.dtype("i8"): T.INT64, np.dtype("i4"): T.INT32,
             np.dtype("?"): T.BOOL, np.dtype("u1"): T.UINT8, np.dtype("i1"): T.INT8,
             np.dtype("f2"): T.FLOAT16}

    def f(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32)

    def model(nodes: list[Any], feeds: dict[str, np.ndarray], weights: dict[str, Any],
              outs: str, dynamic: bool = False) -> tuple[bytes, dict[str, np.ndarray]]:
        def shape(name: str, a: np.ndarray) -> list[Any]:
            return [f"{name}{i}" for i in range(a.ndim)] if dynamic else list(a.shape)

        ins = [h.make_tensor_value_info(n, kinds[a.dtype], shape(n, a)) for n, a in feeds.items()]
        g = h.make_graph(
            nodes, "g", ins, [onnx.ValueInfoProto(name=o) for o in outs.split()],
            [numpy_helper.from_array(np.asarray(a), n) for n, a in weights.items()],
        )
        m = h.make_model(g, opset_imports=[h.make_opsetid("", 17)], ir_version=8)
        return m.SerializeToString(), feeds

    N = h.make_node

    def one(op: str, feeds: dict[str, np.ndarray], weights: dict[str, Any] | None = None,
            outs: int = 1, dynamic: bool = False, **attrs: Any) -> Any:
        weights = weights or {}
        names = [f"y{i}" for i in range(outs)]
        node = N(op, [*feeds, *weights], names, **attrs)
        return lambda: model([node], feeds, weights, " ".join(names), dynamic)

    def conv(c: int, k: int, hw: int, r: int, act: bool = False, n: int = 2, **attrs: Any) -> Any:
        groups = attrs.get("group", 1)
        w, b = f(k, c // groups, r, r) / np.float32(np.sqrt(c // groups * r * r)), f(k)
        attrs.setdefault("pads", [r // 2] * 4)
        nodes = [N("Conv", ["x", "w", "b"], ["a"], kernel_shape=[r, r], **attrs)]
        nodes.append(N("Relu" if act else "Identity", ["a"], ["y"]))
        return lambda: model(nodes, {"x": f(n, c, hw, hw)}, {"w": w, "b": b}, "y")

    def chain(c: int = 32) -> Any:
        w = {f"w{i}": f(c, c, 3, 3) / np.float32(np.sqrt(9 * c)) for i in range(3)}
        w |= {f"b{i}": f(c) for i in range(3)}
        nodes = [
            N("Conv", ["x", "w0", "b0"], ["c0"], pads=[1] * 4), N("Relu", ["c0"], ["r0"]),
            N("Conv", ["r0", "w1", "b1"], ["c1"], pads=[1] * 4), N("Add", ["c1", "r0"], ["s"]),
            N("Relu", ["s"], ["r1"]), N("MaxPool", ["r1"], ["p"], kernel_shape=[3, 3],
                                        strides=[2, 2], pads=[1] * 4),
            N("Conv", ["p", "w2", "b2"], ["c2"], pads=[1] * 4), N("Sigmoid", ["c2"], ["g"]),
            N("Mul", ["c2", "g"], ["m"]), N("GlobalAveragePool", ["m"], ["y"]),
        ]
        return lambda: model(nodes, {"x": f(2, c, 14, 14)}, w, "y")

    def attention(s: int = 40, heads: int = 4, d: int = 32) -> Any:
        c = heads * d
        w = {n: f(c, c) / np.float32(np.sqrt(c)) for n in ("wq", "wk", "wv", "wo")}
        w |= {"sh": np.array([2, s, heads, d]), "back": np.array([2, s, c]),
              "scale": np.float32(d**-0.5)}
        nodes = []
        for n in "qkv":
            perm = [0, 2, 3, 1] if n == "k" else [0, 2, 1, 3]
            nodes += [N("MatMul", ["x", f"w{n}"], [f"{n}0"]),
                      N("Reshape", [f"{n}0", "sh"], [f"{n}1"]),
                      N("Transpose", [f"{n}1"], [n], perm=perm)]
        nodes += [
            N("MatMul", ["q", "k"], ["s0"]), N("Mul", ["s0", "scale"], ["s1"]),
            N("Softmax", ["s1"], ["p"], axis=-1), N("MatMul", ["p", "v"], ["o0"]),
            N("Transpose", ["o0"], ["o1"], perm=[0, 2, 1, 3]),
            N("Reshape", ["o1", "back"], ["o2"]), N("MatMul", ["o2", "wo"], ["y"]),
        ]
        return lambda: model(nodes, {"x": f(2, s, c)}, w, "y")

    def mlp(c: int = 64, m: int = 96) -> Any:
        w = {"w1": f(c, m) / 8, "b1": f(m), "w2": f(m, c) / 10, "b2": f(c), "g": f(c), "z": f(c)}
        nodes = [
            N("LayerNormalization", ["x", "g", "z"], ["n"], axis=-1),
            N("MatMul", ["n", "w1"], ["a"]),
            N("Add", ["a", "b1"], ["b"]), N("Erf", ["b"], ["e"]), N("Mul", ["b", "e"], ["c"]),
            N("MatMul", ["c", "w2"], ["d"]), N("Add", ["d", "b2"], ["e2"]),
            N("Add", ["e2", "x"], ["y"]),
        ]
        return lambda: model(nodes, {"x": f(3, 17, c)}, w, "y")

    def branch() -> Any:
        def body(op: str) -> Any:
            return h.make_graph([N(op, ["x", "two"], ["o"])], op, [],
                                [h.make_tensor_value_info("o", T.FLOAT, [2, 5])])
        nodes = [
            N("ReduceSum", ["x"], ["s"], keepdims=0), N("Greater", ["s", "zero"], ["c"]),
            N("If", ["c"], ["y"], then_branch=body("Mul"), else_branch=body("Add")),
        ]
        return lambda: model(nodes, {"x": f(2, 5)}, {"two": np.float32(2), "zero": np.float32(0)},
                             "y")

    def loop() -> Any:
        body = h.make_graph(
            [N("Add", ["v", "x"], ["v2"]), N("Identity", ["c"], ["c2"]),
             N("Identity", ["v2"], ["s"])],
            "b", [h.make_tensor_value_info("i", T.INT64, []),
                  h.make_tensor_value_info("c", T.BOOL, []),
                  h.make_tensor_value_info("v", T.FLOAT, [4])],
            [h.make_tensor_value_info("c2", T.BOOL, []),
             h.make_tensor_value_info("v2", T.FLOAT, [4]),
             h.make_tensor_value_info("s", T.FLOAT, [4])])
        nodes = [N("Loop", ["n", "t", "x"], ["y0", "y1"], body=body)]
        return lambda: model(nodes, {"x": f(4)}, {"n": np.int64(5), "t": np.bool_(True)}, "y0 y1")

    def nonzero() -> Any:
        nodes = [N("NonZero", ["x"], ["i"]), N("Cast", ["i"], ["j"], to=T.FLOAT),
                 N("Exp", ["j"], ["y"])]
        return lambda: model(nodes, {"x": (f(4, 6) > 0.5).astype("f4")}, {}, "y")

    def rnn(op: str, gates: int, k: int = 16, n: int = 3) -> Any:
        c, scale = 12, np.float32(k**-0.5)
        w = {"w": f(2, gates * k, c) / 4, "r": f(2, gates * k, k) * scale,
             "b": f(2, 2 * gates * k) / 4}
        outs = ["y0", "y1", "y2"][: 3 if op == "LSTM" else 2]
        more = {"linear_before_reset": 1} if op == "GRU" and k == 16 else {}
        node = N(op, ["x", *w], outs, hidden_size=k, direction="bidirectional", **more)
        return lambda: model([node], {"x": f(7, n, c)}, w, " ".join(outs))

    i64, u8, i8 = np.int64, np.uint8, np.int8
    boxes = np.sort(rng.random((1, 30, 2, 2), dtype=np.float32), 2).reshape(1, 30, 4)
    quant = {"s": np.float32(0.05), "z": i8(3)}
    return {
        "relu+add": one("Add", {"x": f(3, 7, 30), "b": f(30)}),
        "unary": one("Tanh", {"x": f(5, 1000)}),
        "conv 1x1": conv(64, 128, 14, 1, True), "conv 3x3": conv(32, 64, 17, 3, True),
        "conv 7x7 s2": conv(3, 64, 32, 7, strides=[2, 2]),
        "conv 3x3 s2": conv(64, 64, 15, 3, strides=[2, 2]),
        "conv dilated": conv(16, 16, 20, 3, dilations=[2, 2], pads=[2] * 4),
        "conv grouped": conv(32, 64, 9, 3, group=4),
        "depthwise": conv(48, 48, 14, 3, True, group=48),
        "conv odd channels": conv(5, 7, 11, 3), "residual chain": chain(),
        "deconv": one("ConvTranspose", {"x": f(2, 8, 7, 7)},
                      {"w": f(8, 6, 3, 3), "b": f(6)}, strides=[2, 2], pads=[1] * 4),
        "conv 1d": one("Conv", {"x": f(2, 8, 50)}, {"w": f(12, 8, 5)}, pads=[2, 2]),
        "conv 3d": one("Conv", {"x": f(1, 4, 6, 7, 8)}, {"w": f(8, 4, 3, 3, 3)}, pads=[1] * 6),
        "gemm": one("Gemm", {"x": f(33, 70)}, {"w": f(50, 70), "b": f(50)}, transB=1),
        "gemm large": one("Gemm", {"x": f(300, 512)}, {"w": f(512, 260), "b": f(260)}),
        "gemv": one("Gemm", {"x": f(1, 700)}, {"w": f(700, 90), "b": f(90)}),
        "batched matmul": one("MatMul", {"x": f(2, 3, 20, 24), "z": f(2, 3, 24, 28)}),
        "attention": attention(), "mlp": mlp(),
        "softmax": one("Softmax", {"x": f(4, 9, 1000)}, axis=-1),
        "softmax inner": one("Softmax", {"x": f(4, 30, 9)}, axis=1),
        "layer norm": one("LayerNormalization", {"x": f(6, 300)}, {"g": f(300), "b": f(300)}),
        "instance norm": one("InstanceNormalization", {"x": f(2, 6, 9, 9)}, {"g": f(6), "b": f(6)}),
        "reduce sum": one("ReduceSum", {"x": f(6, 500)}, {"a": np.array([1], i64)}),
        "reduce mean all": one("ReduceMean", {"x": f(30, 70)}, keepdims=0),
        "reduce max inner": one("ReduceMax", {"x": f(6, 30, 10)}, axes=[1]),
        "argmax": one("ArgMax", {"x": f(6, 130)}, axis=1),
        "max pool": one("MaxPool", {"x": f(2, 16, 15, 15)}, kernel_shape=[3, 3], strides=[2, 2]),
        "average pool": one("AveragePool", {"x": f(2, 16, 15, 15)}, kernel_shape=[2, 2],
                            strides=[2, 2]),
        "transpose": one("Transpose", {"x": f(3, 40, 50)}, perm=[2, 0, 1]),
        "concat": one("Concat", {"x": f(2, 3, 5), "z": f(2, 4, 5)}, axis=1),
        "slice": one("Slice", {"x": f(6, 20)}, {"s": np.array([1, 3]), "e": np.array([5, 19]),
                                               "a": np.array([0, 1]), "t": np.array([2, 3])}),
        "pad": one("Pad", {"x": f(2, 5)}, {"p": np.array([0, 1, 1, 2])}, mode="reflect"),
        "resize": one("Resize", {"x": f(1, 3, 8, 8)},
                      {"r": np.zeros(0, "f4"), "s": np.array([1, 1, 2, 2], "f4")}, mode="linear"),
        "gather": one("Gather", {"x": f(20, 8), "i": np.array([[3, 1], [0, 19]], i64)}),
        "scatter": one("ScatterElements", {"x": f(5, 6)},
                       {"i": np.array([[1, 0, 2, 3, 4, 2]], i64), "u": f(1, 6)}),
        "top k": one("TopK", {"x": f(3, 50)}, {"k": np.array([5], i64)}, outs=2),
        "cumsum": one("CumSum", {"x": f(4, 60)}, {"a": np.array(1, i64)}),
        "where": one("Where", {"c": f(4, 5) > 0, "x": f(4, 5), "z": f(5)}),
        "cast": one("Cast", {"x": f(4, 5) * 10}, to=T.INT32),
        "int add": one("Add", {"x": rng.integers(-9, 9, (4, 5)), "z": rng.integers(-9, 9, (5,))}),
        "quantize": one("QuantizeLinear", {"x": f(4, 40)}, quant),
        "dequantize": one("DequantizeLinear", {"x": rng.integers(-99, 99, (4, 40)).astype(i8)},
                          quant),
        "int matmul": one("MatMulInteger", {"x": rng.integers(0, 99, (8, 40)).astype(u8)},
                          {"w": rng.integers(-99, 99, (40, 24)).astype(i8)}),
        "lstm": rnn("LSTM", 4), "gru": rnn("GRU", 3),
        "lstm wide": rnn("LSTM", 4, 512, 20), "gru wide": rnn("GRU", 3, 512),
        "lstm one block": rnn("LSTM", 4, 128),
        "top k long": one("TopK", {"x": f(2, 40000)}, {"k": np.array([100], i64)}, outs=2),
        "scatter add": one("ScatterND", {"x": f(50, 60)},
                           {"i": rng.integers(0, 50, (90, 1)), "u": f(90, 60)}, reduction="add"),
        "compress": one("Compress", {"x": f(300, 60), "c": f(300) > 0}, axis=0),
        "unique": one("Unique", {"x": np.round(f(600), 1)}, outs=4),
        "nms": one("NonMaxSuppression", {"b": boxes, "s": rng.random((1, 2, 30), dtype="f4")},
                   {"m": np.array([5], i64), "iou": np.array([0.5], "f4")}),
        "if": branch(), "loop": loop(), "nonzero": nonzero(),
        "dynamic": one("Softmax", {"x": f(5, 33)}, dynamic=True, axis=-1),
    }
