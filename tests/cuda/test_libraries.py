"""cuDNN and cuBLASLt as tactics, against numpy: the libraries are fakes that compute what they
were told (`fake_libraries`)."""

import ctypes

import numpy as np
import pytest
from fake_libraries import FakeCudnn, FakeLt

from tactician.ir.dtypes import dtype
from tactician.ir.graph import Graph
from tactician.ops import emit
from tactician.regions.fuse import fuse
from tactician.regions.layout import assign_layouts
from tactician.regions.region import is_slice
from tactician.support.errors import BuildError, ExecutionError, RefusedError
from tactician.support.tolerances import mismatch, tolerance
from tactician.tactics.operands import random_arrays
from tactician.tactics.tactic import tactics_for
from tactician.tactics.tuner import Tuner, TunerSettings, _expected
from tactician.targets.cuda import (
    cublaslt,
    cublaslt_call,
    cudnn,
    cudnn_api,
    cudnn_attention,
    cudnn_call,
    libraries,
    patterns,
)
from tactician.targets.cuda.device import CudaDevice

RNG = np.random.default_rng(0)
HERE = CudaDevice("H100")
HERE.libraries = True
CONV, LT, SDPA = cudnn.CudnnConvolution(), cublaslt.CublasLt(), cudnn_attention.CudnnAttention()


@pytest.fixture(autouse=True)
def fakes(monkeypatch):
    """Fake libraries in the place of real ones, and nothing remembered of others."""
    dnn, lt = FakeCudnn(), FakeLt()
    undo = [libraries.use("cudnn", dnn), libraries.use("cublaslt", lt)]
    for module, name in ((cudnn_api, "_handles"), (cublaslt_call, "_handles"),
                         (cudnn_call, "_planners")):
        monkeypatch.setattr(module, name, {})
    cublaslt_call._algorithms.cache_clear()
    yield dnn, lt
    for f in undo:
        f()


def array(dt, *shape):
    if dt == "i8":
        return RNG.integers(-9, 10, shape).astype(np.int8)
    return (RNG.standard_normal(shape) / 4).astype(dtype(dt).np)


def conv_graph(dt="f16", c=8, k=16, hw=(9, 7), window=3, stride=1, groups=1, residual=False,
               act="", alpha=0.0, beta=0.0, op="convolution", dilation=1, post=None, n=2):
    g, batch, n = Graph(), n, len(hw)
    x = g.add_input("x", dtype(dt), (batch, c, *hw))
    shape = (k, c // groups) if op == "convolution" else (c, k // groups)
    w = g.constant(array(dt, *shape, *(window,) * n))
    pre = (window // 2,) * n
    y = emit(g, op, [x, w, g.constant(array(dt, k))], "anchor", stride=(stride,) * n, pre=pre,
             post=pre if post is None else (post,) * n, groups=groups,
             dilation=(dilation,) * n).output
    if residual:
        z = g.add_input("z", dtype(dt), y.dims)
        one = g.constant(array(dt, k, k, *(1,) * n))
        y = emit(g, "binary", [y, emit(g, "convolution", [z, one], "other").output], "add",
                 fn="add").output
    if act:
        y = emit(g, "activation", [y], "act", fn=act, alpha=alpha, beta=beta).output
    one = g.constant(array(dt, k, k, *(1,) * n))
    g.outputs = [emit(g, "convolution", [y, one], "after").output]
    return g


def int_graph(residual=False, act="relu", quantized=True, per_channel=True):
    g, k = Graph(), 16
    x = g.add_input("x", dtype("i8"), (2, 16, 6, 6))
    acc = emit(g, "int_conv", [x, g.constant(array("i8", k, 16, 3, 3))], "anchor", pre=(1, 1),
               post=(1, 1)).output
    scale = RNG.random(k, dtype=np.float32) + 0.5 if per_channel else np.float32(0.7)
    y = emit(g, "dequantize", [acc, g.constant(scale)], "dq", axis=1).output
    bias = g.constant(RNG.standard_normal((1, k, 1, 1)).astype(np.float32))
    y = emit(g, "binary", [y, bias], "bias", fn="add").output
    if residual:
        z = g.add_input("z", dtype("i8"), (2, 16, 6, 6))
        other = emit(g, "int_conv", [z, g.constant(array("i8", k, 16, 1, 1))], "other").output
        other = emit(g, "dequantize", [other, g.constant(np.float32(1))], "dz").output
        other = emit(g, "quantize", [other, g.constant(np.float32(4))], "qz").output
        twice = emit(g, "int_conv", [other, g.constant(array("i8", k, k, 1, 1))], "also").output
        other = emit(g, "dequantize", [other, g.constant(np.float32(2))], "dr").output
        y = emit(g, "binary", [y, other], "add", fn="add").output
    if act:
        y = emit(g, "activation", [y], "act", fn=act).output
    if quantized:
        y = emit(g, "quantize", [y, g.constant(np.float32(8))], "q").output
        ones = g.constant(array("i8", k, k, 1, 1))
        g.outputs = [emit(g, "int_conv", [y, ones], "after").output]
        if residual:
            g.outputs.append(twice)
    else:
        ones = g.constant(array("f32", k, k, 1, 1))
        g.outputs = [emit(g, "convolution", [y, ones], "after").output]
    return g


def anchor_region(g, device=HERE, name="anchor"):
    def wants(r):
        return any(t.wants_channels_last(r, device) for t in (CONV, LT))

    regions = assign_layouts(g, fuse(g), wants, lambda r: True).regions
    return next(r for r in regions if r.anchor is not None and r.anchor.name == name)


def run(region, kernel, offset=0):
    """The results of a library call on host memory, as stored."""
    arrays = {v: a if is_slice(v) else np.ascontiguousarray(a)
              for v, a in random_arrays(region, {}).items()}
    want = _expected(region, arrays, {})
    assert want is not None
    call = libraries.open_call(kernel.launch.library, kernel.launch.payload)
    keep = [a if isinstance(a, np.ndarray) else arrays[a] for a in kernel.args]
    space = (ctypes.c_char * max(1, call.workspace))()
    call.launch([a.ctypes.data for a in keep], ctypes.addressof(space), 5)
    return {v: arrays[v] for v in region.outputs}, want


def check(region, tactic, candidate=None, device=HERE):
    assert tactic.refuse(region, device) is None
    found = tactic.candidates(region, device)
    for c in found[:2] if candidate is None else [candidate]:
        got, want = run(region, tactic.build(region, c, device))
        for v in region.outputs:
            tol = tolerance(v.dtype.name)
            if v.dtype.is_int:
                tol = type(tol)(0.0, 1.0)
            assert mismatch(got[v], want[v], tol) is None, str(c)
    return found


# --- cuDNN -----------------------------------------------------------------------------------


@pytest.mark.parametrize("k, hw", [(16, (9, 7)), (6, (9, 7)), (16, (4, 4))])
def test_a_residual_stored_channels_first(fakes, k, hw):
    g = Graph()
    x = g.add_input("x", dtype("f32"), (2, 8, *hw))
    z = g.add_input("z", dtype("f32"), (2, k, *hw))
    w, b = g.constant(array("f32", k, 8, 3, 3)), g.constant(array("f32", k))
    y = emit(g, "convolution", [x, w, b], "anchor", pre=(1, 1), post=(1, 1)).output
    y = emit(g, "binary", [y, z], "add", fn="add").output
    ones = g.constant(array("f32", k, k, 1, 1))
    g.outputs = [emit(g, "convolution", [y, ones], "after").output]
    region = anchor_region(g)
    assert z in region.inputs  # as it is
    check(region, CONV)


CONVOLUTIONS = [
    {}, {"act": "relu"}, {"residual": True, "act": "relu"}, {"stride": 2}, {"window": 1},
    {"groups": 4}, {"groups": 8, "act": "clip", "beta": 6.0}, {"dilation": 2, "window": 3},
    {"act": "clip", "alpha": -1.0, "beta": 1.0}, {"act": "swish", "alpha": 1.0},
    {"act": "gelu_erf"}, {"act": "gelu_tanh"}, {"act": "hard_swish"}, {"act": "mish"},
    {"act": "leaky_relu", "alpha": 0.1}, {"act": "elu", "alpha": 1.0}, {"act": "sigmoid"},
    {"act": "tanh"}, {"act": "softplus", "alpha": 1.0, "beta": 1.0}, {"dt": "f32"},
    {"dt": "bf16", "residual": True}, {"hw": (11,)}, {"hw": (11,), "residual": True},
    {"hw": (4, 5, 3)}, {"post": 2}, {"hw": (1, 1), "window": 1, "n": 1, "residual": True},
    {"op": "deconvolution", "stride": 2},
    {"op": "deconvolution", "act": "relu", "hw": (5,)}, {"residual": True, "act": "swish"},
]  # fmt: skip


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
def test_convolution(case):
    check(anchor_region(conv_graph(**case)), CONV)


@pytest.mark.parametrize("case", [{}, {"act": ""}, {"quantized": False}, {"per_channel": False},
                                  {"residual": True}], ids=str)
def test_integer_convolution(case):
    check(anchor_region(int_graph(**case)), CONV)


def test_masks_that_may_hide_everything():
    g = attention_graph(mask=(6, 6))
    mask = g.nodes[-1].inputs[3]
    mask.const = np.where(np.arange(6)[:, None] == 2, -np.inf, mask.const).astype(np.float32)
    assert "hides all keys" in SDPA.refuse(anchor_region(g), HERE)
    g = attention_graph()
    g.nodes[-1].set_input(3, g.add_input("mask", dtype("f32"), (6, 6)))
    assert "run time" in SDPA.refuse(anchor_region(g), HERE)


def test_residual_comes_first_and_second():
    region = anchor_region(conv_graph(residual=True, act="relu"))
    names = [str(c) for c in CONV.candidates(region, HERE)]
    assert names == [f"{w} {i} v91901" for i in range(3) for w in ("residual", "bias")]
    fused = {c: CONV.build(region, c, HERE).launch.payload for c in CONV.candidates(region, HERE)}
    assert len(set(fused.values())) == 2  # the fake's engines are all alike


@pytest.mark.parametrize("kw, reason", [
    ({"dt": "f64"}, "no convolution of f64"),
    ({"hw": (3, 3, 3, 3)}, "spatial dimensions"),
    ({"groups": 8, "k": 8}, "depthwise"), ({"act": "thresholded_relu", "alpha": 1.0}, None),
])
def test_what_cudnn_is_not_asked(kw, reason):
    why = CONV.refuse(anchor_region(conv_graph(**kw)), HERE)
    assert (why is None) == (reason is None) and (reason is None or reason in why)


def test_row_major_operands_are_refused():
    g = conv_graph(window=1)
    region = next(r for r in fuse(g).regions if r.anchor is not None and r.anchor.name == "anchor")
    assert "channels-last" in CONV.refuse(region, HERE)
    assert "channels-last" in LT.refuse(region, HERE)


def test_tf32_only_where_allowed(fakes):
    fakes[0].notes = [0]  # every engine uses tensor cores
    region, strict = anchor_region(conv_graph(dt="f32")), CudaDevice("H100", tf32=False)
    strict.libraries = True
    assert CONV.refuse(region, HERE) is None
    assert "no engine" in CONV.refuse(region, strict)
    fakes[0].notes = [4]  # results differ from run to run
    assert "no engine" in CONV.refuse(anchor_region(conv_graph(dt="f16")), HERE)


def test_engine_that_fails_is_refused(fakes):
    fakes[0].plan_status = 4001
    region = anchor_region(conv_graph())
    with pytest.raises(RefusedError, match="status 4001: the fake says no"):
        CONV.build(region, CONV.candidates(region, HERE)[0], HERE)


def test_plan_of_another_gpu_is_made_anew(fakes):
    region = anchor_region(conv_graph())
    kernel = CONV.build(region, CONV.candidates(region, HERE)[1], HERE)
    fakes[0].load_status = 3007
    call = libraries.open_call("cudnn", kernel.launch.payload)
    assert call.replanned
    fakes[0].plan_status = 3007
    with pytest.raises(RefusedError, match="build the plan again"):
        libraries.open_call("cudnn", kernel.launch.payload)


def test_weights_follow_the_layout():
    g = conv_graph(c=8, k=16, window=3)
    region = anchor_region(g)
    kernel = CONV.build(region, CONV.candidates(region, HERE)[0], HERE)
    packed = next(a for a in kernel.args if isinstance(a, np.ndarray))
    assert packed.shape == (16, 3, 3, 8)
    assert np.array_equal(packed, region.anchor.inputs[1].const.transpose(0, 2, 3, 1))


def test_stream_and_addresses(fakes):
    region = anchor_region(conv_graph())
    kernel = CONV.build(region, CONV.candidates(region, HERE)[0], HERE)
    run(region, kernel)
    assert fakes[0].calls == [("stream", 5)]
    call = libraries.open_call("cudnn", kernel.launch.payload)
    with pytest.raises(ExecutionError, match="takes 4 addresses, not 1"):
        call.launch([0], 0, 0)


class HostDriver:
    """Host memory in the place of a GPU's."""

    def __init__(self):
        self.blocks = {}

    def alloc(self, nbytes):
        block = (ctypes.c_char * nbytes)()
        self.blocks[ctypes.addressof(block)] = block
        return ctypes.addressof(block)

    def free(self, address):
        del self.blocks[address]

    def fill(self, to, byte, nbytes, stream=0):
        ctypes.memset(to, byte, nbytes)

    def get(self, address, shape, dtype, stream=0):
        return np.frombuffer(ctypes.string_at(address, shape[0]), dtype).reshape(shape)

    def stream(self):
        return 3

    def drop_stream(self, stream):
        assert stream == 3

    synchronize = drop_stream


def test_engine_that_fails_when_it_runs(fakes):
    region = anchor_region(conv_graph())
    here = CudaDevice("H100")
    driver = HostDriver()
    here.libraries, here.attempt = True, lambda payload: cudnn_call.run_once(payload, driver)
    first = CONV.candidates(region, here)[0]
    kernel = CONV.build(region, first, here)  # runs it some times
    tried = len(fakes[0].executed)
    assert tried > 1 and not driver.blocks
    CONV.build(region, first, here)
    assert len(fakes[0].executed) == tried
    fakes[0].execute_status = [5000]
    run(region, kernel)  # the next engine does it
    cudnn_call._planners.clear()
    fakes[0].execute_status = [5000]
    with pytest.raises(RefusedError, match="status 5000"):
        CONV.build(region, first, here)
    call = libraries.open_call("cudnn", kernel.launch.payload)
    fakes[0].execute_status = [5000] * 9
    with pytest.raises(ExecutionError, match="no other plan"):
        call.launch([64] * 4, 64, 0)


# --- attention -------------------------------------------------------------------------------


def attention_graph(flat=True, heads=3, kv_heads=3, merged=False, mask=None, **attrs):
    g, f16 = Graph(), dtype("f16")
    b, s, d = 2, 6, 8
    if merged:
        x = g.add_input("x", f16, (b, s, 3 * heads * d))
        at = [g.constant(np.array([i * heads * d])) for i in range(4)]
        axis = g.constant(np.array([2]))
        qkv = [emit(g, "strided_slice", [x, at[i], at[i + 1], axis], f"s{i}").output
               for i in range(3)]
    else:
        shapes = [(b, s, h * d) if flat else (b, h, s, d) for h in (heads, kv_heads, kv_heads)]
        qkv = [g.add_input(n, f16, x) for n, x in zip("qkv", shapes, strict=True)]
    if mask is not None:
        qkv.append(g.constant(array("f32", *mask)))
    known = {"q_heads": heads, "kv_heads": kv_heads} if flat else {}
    g.outputs = [emit(g, "attention", qkv, "anchor", **known, **attrs).output]
    return g


@pytest.mark.parametrize("case", [{}, {"flat": False}, {"kv_heads": 1}, {"merged": True},
                                  {"scale": 0.5}, {"mask": (2, 1, 1, 6)}, {"mask": (6, 6)},
                                  {"mask": (2, 3, 6, 6), "kv_heads": 1}], ids=str)
def test_attention(case):
    region = anchor_region(attention_graph(**case))
    for form in ("parts",) if "mask" in case else ("whole", "parts"):
        found = [c for c in SDPA.candidates(region, HERE) if c.form == form]
        assert len(found) == 3
        check(region, SDPA, found[1])


@pytest.mark.parametrize("attrs", [{"causal": True}, {"softcap": 2.0}, {"left": 3},
                                   {"mask": (6, 4)}], ids=str)
def test_attention_with_limits_is_left_to_others(attrs):
    assert SDPA.refuse(anchor_region(attention_graph(**attrs)), HERE)


# --- cuBLASLt --------------------------------------------------------------------------------


def product_graph(dt="f16", a=(6, 16), b=(16, 32), ta="none", tb="none", const=True, bias=True,
                  residual=False, act="", alpha=None, to=None):
    g, d = Graph(), dtype(dt)
    x = g.add_input("x", d, a)
    w = g.constant(array(dt, *b)) if const else g.add_input("w", d, b)
    y = emit(g, "matmul", [x, w], "anchor", ta=ta, tb=tb, to=None if to is None else dtype(to))
    y = y.output
    rest = y.dtype.name
    if alpha:
        y = emit(g, "binary", [y, g.constant(np.array(alpha, y.dtype.np))], "s", fn="mul").output
    if bias:
        y = emit(g, "binary", [y, g.constant(array(rest, y.dims[-1]))], "b", fn="add").output
    if residual:
        y = emit(g, "binary", [y, g.add_input("r", y.dtype, y.dims)], "r", fn="add").output
    if act:
        y = emit(g, "activation", [y], "act", fn=act).output
    g.outputs = [y]
    return g


PRODUCTS = [
    {}, {"bias": False}, {"act": "relu"}, {"act": "gelu_tanh"}, {"act": "gelu_erf"},
    {"residual": True}, {"residual": True, "act": "relu"}, {"bias": False, "residual": True},
    {"a": (2, 3, 6, 16)}, {"a": (2, 3, 6, 16), "residual": True},
    {"tb": "transpose", "b": (32, 16)},
    {"ta": "transpose", "a": (16, 6)}, {"const": False}, {"dt": "f32"}, {"dt": "bf16"},
    {"dt": "f64", "act": "relu"}, {"alpha": 0.25}, {"bias": False, "alpha": 0.25},
    {"const": False, "bias": False, "a": (3, 6, 16), "b": (3, 16, 32)},
    {"const": False, "bias": False, "a": (3, 6, 16), "b": (3, 32, 16), "tb": "transpose"},
    {"a": (3, 6, 16), "b": (3, 16, 32), "bias": False}, {"a": (3, 16, 6), "ta": "transpose"},
    {"a": (6, 16), "b": (3, 16, 32), "const": False, "bias": False}, {"to": "f32"},
    {"dt": "f8e4m3", "to": "f32", "alpha": 0.5}, {"dt": "f8e4m3", "to": "f16"},
]  # fmt: skip


@pytest.mark.parametrize("case", PRODUCTS, ids=str)
def test_product(case):
    check(anchor_region(product_graph(**case)), LT)


@pytest.mark.parametrize("case", [{}, {"residual": True, "act": "relu"}, {"act": "gelu_tanh"},
                                  {"hw": (9,), "residual": True}, {"hw": (1, 1), "n": 1},
                                  {"hw": (1, 1), "residual": True}], ids=str)
def test_pointwise_convolution_is_a_product(case):
    check(anchor_region(conv_graph(window=1, **case)), LT)


@pytest.mark.parametrize("kw, reason", [
    ({"act": "swish"}, "no epilogue for mul"),
    ({"dt": "f32", "act": "gelu_erf"}, "GELU by erf"),
    ({"a": (16,), "ta": "vector"}, "vector"),
    ({"a": (2, 3, 6, 16), "b": (3, 16, 32), "const": False, "bias": False}, "broadcast"),
])
def test_what_cublaslt_is_not_asked(kw, reason):
    why = LT.refuse(anchor_region(product_graph(**kw)), HERE)
    assert why is not None and (reason in why or "no epilogue" in why)


def test_spatial_convolutions_are_no_products():
    for kw in ({"window": 3}, {"window": 1, "stride": 2}, {"window": 1, "groups": 2}):
        assert "1x1" in LT.refuse(anchor_region(conv_graph(**kw)), HERE)


def test_both_orders_of_weights_are_tried(fakes):
    region = anchor_region(product_graph())
    names = [str(c) for c in LT.candidates(region, HERE)]
    assert names == [f"{o} {i} v130100" for i in range(3) for o in ("nk", "kn")]
    kernel = LT.build(region, LT.candidates(region, HERE)[3], HERE)
    assert kernel.launch.workspace == 1024
    run(region, kernel)
    assert fakes[1].calls == [0xA1601] and fakes[1].streams == [5]


def test_algorithm_is_chosen_at_load_without_a_gpu(fakes):
    away = CudaDevice("H100")
    region = anchor_region(product_graph(), away)
    found = check(region, LT, device=away)
    assert [str(c) for c in found] == ["nk at load v130100"]
    fakes[1].found = 0
    kernel = LT.build(region, found[0], away)
    with pytest.raises(RefusedError, match="no algorithm"):
        libraries.open_call("cublaslt", kernel.launch.payload)


def test_algorithm_that_no_longer_fits_is_chosen_anew(fakes):
    region = anchor_region(product_graph())
    kernel = LT.build(region, LT.candidates(region, HERE)[2], HERE)
    fakes[1].check_status = 15
    assert libraries.open_call("cublaslt", kernel.launch.payload).rechosen


# --- finding libraries -----------------------------------------------------------------------


def test_missing_library_names_the_package(monkeypatch):
    undo = libraries.use("cudnn", None)
    libraries._loaded.pop("cudnn")
    monkeypatch.setattr(libraries, "_places", lambda lib: ["/nowhere/libcudnn.so.9"])
    try:
        with pytest.raises(libraries.LibraryMissing, match="pip install nvidia-cudnn-cu13"):
            libraries.load("cudnn")
        assert "not installed" in CONV.refuse(anchor_region(product_graph()), HERE)
        with pytest.raises(libraries.LibraryMissing, match="the plan calls cuDNN 91901"):
            libraries.require({"cudnn": 91901})
    finally:
        undo()


def test_versions_of_a_plan():
    libraries.require({"cudnn": 91901, "cublaslt": 130000})
    with pytest.raises(libraries.LibraryMissing, match="built with cuDNN 92000, but 91901"):
        libraries.require({"cudnn": 92000})
    with pytest.raises(libraries.LibraryMissing, match="cuBLASLt 120800"):
        libraries.require({"cublaslt": 120800})
    with pytest.raises(libraries.LibraryMissing, match="does not know"):
        libraries.require({"nonsense": 1})


@pytest.mark.parametrize("data", [b"", b"TLC1", b"nonsense", b"TLC1\x04\0\0\0nope"])
def test_damaged_payloads(data):
    with pytest.raises(BuildError, match="damaged"):
        libraries.unpack(data)


def test_host_devices_are_left_alone():
    for mode in ("interpreter", "null"):
        device = CudaDevice("H100", mode=mode)
        assert "GPU only" in LT.refuse(anchor_region(product_graph()), device)
        assert "GPU only" in CONV.refuse(anchor_region(conv_graph()), device)


def test_sources_can_be_off():
    off = Tuner(HERE, TunerSettings(level=1, sources=frozenset({"CUDNN"})))
    options, rejected = off._options(anchor_region(product_graph()))
    assert rejected["cublaslt"] == "tactic source CUBLAS_LT is off"
    assert not any(t.name == "cublaslt" for t, _ in options)


def test_sources_are_named():
    from tactician.network.enums_build import TacticSource

    assert {t.source for t in (CONV, LT, SDPA)} <= set(TacticSource.__members__)
    names = {t.name for t in tactics_for("cuda")}
    assert {"cudnn_conv", "cublaslt", "cudnn_attention"} <= names


def test_trees():
    region = anchor_region(conv_graph(act="gelu_erf", residual=True))
    e = patterns.read_epilogue(region)
    assert e.tree == ("gelu_erf", ("add", patterns.ACC, ("in", 0)))
    assert patterns.simplify(("max", ("acc",), ("const", 0.0))) == ("relu", ("acc",))
    six = patterns.simplify(("max", ("min", ("acc",), ("const", 6.0)), ("const", 0.0)))
    assert six == ("clip", ("acc",), 0.0, 6.0)
