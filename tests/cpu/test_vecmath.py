"""Vector functions against double precision, over the whole range of f32."""

import ctypes

import llvmlite.binding as llvm
import numpy as np
import pytest
from llvmlite import ir

from tactician.targets.cpu import vecmath as V

llvm.initialize_native_target()
llvm.initialize_native_asmprinter()

def _sigmoid(x):
    e = np.exp(-np.abs(x))
    return np.where(x < 0, e, 1.0) / (1 + e)


def _erf(x):
    import math

    return np.vectorize(math.erf, otypes=[np.float64])(x)


# function: (reference in f64, largest error in units of the last place)
CASES = {
    "exp": (np.exp, 2.1), "log": (np.log, 1.1), "tanh": (np.tanh, 6),
    "sigmoid": (_sigmoid, 3), "erf": (_erf, 6), "sin": (np.sin, 2.5), "cos": (np.cos, 2.5),
    "sqrt": (np.sqrt, 0.6), "rsqrt": (lambda x: 1 / np.sqrt(x), 1.6), "tan": (np.tan, 1.1),
    "recip": (lambda x: 1 / x, 0.6), "sign": (np.sign, 0), "round": (np.rint, 0),
    "floor": (np.floor, 0), "neg": (np.negative, 0), "abs": (np.abs, 0), "asinh": (np.arcsinh, 2),
}  # fmt: skip


def compile_unary(fn, width, element=V.F32):
    module = ir.Module()
    f = ir.Function(module, ir.FunctionType(ir.VoidType(), [V.PTR, V.PTR, V.I64]), "k")
    entry, loop, done = (f.append_basic_block() for _ in range(3))
    b = ir.IRBuilder(entry)
    b.branch(loop)
    b.position_at_end(loop)
    i = b.phi(V.I64)
    at = [b.gep(p, [i], source_etype=element) for p in f.args[:2]]
    x = b.load(at[0], typ=V.with_lanes(element, width), align=4)
    b.store(V.unary(b, fn, x), at[1], align=4)
    after = b.add(i, V.I64(max(width, 1)))
    i.add_incoming(V.I64(0), entry)
    i.add_incoming(after, b.block)
    b.cbranch(b.icmp_signed("<", after, f.args[2]), loop, done)
    b.position_at_end(done)
    b.ret_void()
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=2
    )
    parsed = llvm.parse_assembly(str(module))
    parsed.verify()
    engine = llvm.create_mcjit_compiler(parsed, machine)
    engine.finalize_object()
    call = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)(
        engine.get_function_address("k")
    )
    return call, (engine, machine)


def samples(dtype=np.float32):
    rng = np.random.default_rng(0)
    special = [0, -0.0, np.inf, -np.inf, np.nan, 1e-40, -1e-40, 1e38, -1e38, 88.7, 88.8, -87.5,
               -100, -104, 0.5, 1, -1, 0.625, 0.89, 3.95]  # fmt: skip
    bits = rng.integers(0, 2**32, 2048, dtype=np.uint32).view(np.float32)
    x = np.concatenate([special, bits, rng.normal(size=2048) * 3, rng.uniform(-110, 110, 2048)])
    return x[: len(x) // 32 * 32].astype(dtype)


@pytest.mark.parametrize("width", [0, 8, 32])
@pytest.mark.parametrize("fn", CASES)
def test_f32_matches_double(fn, width):
    reference, limit = CASES[fn]
    run, _keep = compile_unary(fn, width)
    x = samples()
    y = np.empty_like(x)
    run(x.ctypes.data, y.ctypes.data, len(x))
    with np.errstate(all="ignore"):
        want = reference(x.astype(np.float64))
        rounded = want.astype(np.float32)
        np.testing.assert_array_equal(np.isnan(y), np.isnan(rounded))
        np.testing.assert_array_equal(y[np.isinf(rounded)], rounded[np.isinf(rounded)])
        # what would be denormal (or next to that) may be 0 or the smallest number
        tiny = (np.abs(want) < 1.7e-38) & (x != 0)
        assert (np.abs(y[tiny]) < 2e-38).all()
        finite = np.isfinite(rounded) & ~tiny
        unit = np.spacing(np.maximum(np.abs(rounded[finite]), np.float32(1.2e-38)))
        error = np.abs(y[finite].astype(np.float64) - want[finite]) / unit
    worst = int(error.argmax())
    assert error[worst] <= limit, f"{error[worst]:.2f} ulp at {x[finite][worst]!r}"


@pytest.mark.parametrize("fn", ["exp", "log", "tanh", "sigmoid", "sin", "sqrt"])
def test_f64(fn):
    run, _keep = compile_unary(fn, 4, V.F64)
    x = samples(np.float64)
    y = np.empty_like(x)
    run(x.ctypes.data, y.ctypes.data, len(x))
    with np.errstate(all="ignore"):
        np.testing.assert_allclose(y, CASES[fn][0](x), rtol=1e-12, atol=1e-300)


@pytest.mark.parametrize("width", [0, 8])
def test_extremes_propagate_nan(width):
    module = ir.Module()
    t = V.with_lanes(V.F32, width)
    f = ir.Function(module, ir.FunctionType(ir.VoidType(), [V.PTR] * 3), "k")
    b = ir.IRBuilder(f.append_basic_block())
    x, y = (b.load(p, typ=t, align=4) for p in f.args[:2])
    b.store(V.maximum(b, x, y), f.args[2], align=4)
    b.ret_void()
    parsed = llvm.parse_assembly(str(module))
    machine = llvm.Target.from_default_triple().create_target_machine(opt=1)
    engine = llvm.create_mcjit_compiler(parsed, machine)
    engine.finalize_object()
    call = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 3)(engine.get_function_address("k"))
    a = np.array([1, np.nan, 2, -np.inf, np.inf, 0, np.nan, 5], np.float32)
    c = np.array([2, 1, np.nan, -np.inf, 3, -1, np.nan, 4], np.float32)
    for k in range(8) if not width else (0,):
        out = np.zeros(8, np.float32)
        call(a[k:].ctypes.data, c[k:].ctypes.data, out.ctypes.data)
        n = width or 1
        np.testing.assert_array_equal(out[:n], np.maximum(a, c)[k : k + n])
