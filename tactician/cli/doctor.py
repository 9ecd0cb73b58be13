"""`tactician doctor`: what this machine can do, and what to do where it can't."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata

import typer

from .common import Debug, Json, console, emit, verb

CORE = ("numpy", "ml-dtypes", "llvmlite", "onnx", "protobuf", "rich", "typer")
OPTIONAL = {
    "onnxruntime": "comparisons in bench and demo",
    "torch": "the PyTorch front end and tests",
    "openvino": "comparisons in benchmarks",
    "triton": "the CUDA target",
    "cuda-bindings": "the CUDA target",
}
STYLES = {"PASS": "green", "FAIL": "bold red", "INFO": "cyan"}


@dataclass(frozen=True)
class Finding:
    """One line of the report. `state` is PASS, FAIL or INFO; `fix` says what helps."""

    state: str
    what: str
    detail: str
    fix: str = ""


@verb
def command(json: Json = False, debug: Debug = False) -> None:
    """Check what this machine can do, and say what to fix.

    The exit code is 1 if anything that tactician needs is broken.
    """
    findings = []
    out = console()
    for check in CHECKS:
        for finding in _guarded(check):
            findings.append(finding)
            if not json:
                style = STYLES[finding.state]
                out.print(f"[{style}]{finding.state}[/]  {finding.what:<12} ", end="")
                out.print(finding.detail, markup=False)
                if finding.fix:
                    out.print(f"                    fix: {finding.fix}", markup=False)
    if json:
        emit([asdict(f) for f in findings])
    if any(f.state == "FAIL" for f in findings):
        raise typer.Exit(1)


def _guarded(check: Callable[[], list[Finding]]) -> list[Finding]:
    try:
        return check()
    except Exception as error:  # a broken part must not hide the findings about the others
        name = check.__name__
        return [Finding("FAIL", name, f"{type(error).__name__}: {error}", "see the message")]


def python() -> list[Finding]:
    """Which interpreter this is; the package does not install on one that is too old."""
    return [Finding("PASS", "python", f"{sys.version.split()[0]} on {sys.platform}")]


def packages() -> list[Finding]:
    """Packages that are needed, and those that add something."""
    found, missing, extra = [], [], []
    for name in CORE:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            missing.append(name)
    for name, use in OPTIONAL.items():
        try:
            extra.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            extra.append(f"no {name} ({use})")
    out = [Finding("PASS", "packages", ", ".join(found))]
    if missing:
        fix = f"pip install {' '.join(missing)}"
        out = [Finding("FAIL", "packages", f"missing: {', '.join(missing)}", fix)]
    return [*out, Finding("INFO", "optional", ", ".join(extra))]


def cpu() -> list[Finding]:
    """What the code generator knows about the CPU."""
    from ..targets.cpu.isa import Isa

    isa = Isa.host()
    if isa.vector_bits < 256 and isa.triple.startswith(("x86", "i686")):
        note = "no AVX2 seen: kernels will be several times slower than on a newer CPU"
        return [Finding("INFO", "cpu", isa.summary(), note)]
    return [Finding("PASS", "cpu", isa.summary())]


def code() -> list[Finding]:
    """LLVM compiles, the linker links, the code runs."""
    import ctypes

    from ..targets.cpu.toolchain import toolchain

    ir = "define i64 @doctor(i64 %x) {\n  %y = add i64 %x, 1\n  ret i64 %y\n}\n"
    linked = toolchain().load(ir)
    function = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(linked.address("doctor"))
    if function(41) != 42:
        return [Finding("FAIL", "code", "generated code gives wrong results", "report this")]
    return [Finding("PASS", "code", "LLVM generates code that links and runs here")]


def speed() -> list[Finding]:
    """Peak of one core, memory bandwidth, and a matrix product against that peak."""
    from .peak import bandwidth, fma_peak, matmul

    peak = fma_peak()
    product = matmul()
    detail = (
        f"one core: {peak:.0f} GFLOP/s in registers (FP32), 512x512 product "
        f"{product:.0f} GFLOP/s ({product / peak:.0%}), copy {bandwidth():.1f} GB/s"
    )
    return [Finding("INFO", "speed", detail)]


def engine() -> list[Finding]:
    """The shipped model builds, runs and is right."""
    import numpy as np

    from ..runtime.easy import Engine
    from .building import Options, open_engine
    from .common import logger
    from .demo import DATA, MODEL

    with np.load(DATA / "digits_test.npz") as data:
        x, labels = data["images"][:, None].astype(np.float32) / 255, data["labels"]
    options = Options(min_shapes="1x1x28x28", max_shapes="360x1x28x28", level=0)
    built = open_engine(MODEL, options, logger(False), quiet=True)
    right = int((Engine(built)({"image": x})["probabilities"].argmax(1) == labels).sum())
    if right < 357:
        fix = "please report this, with the cpu line above"
        return [Finding("FAIL", "engine", f"{right} of 360 digits right, not 357", fix)]
    return [Finding("PASS", "engine", f"built and ran the shipped model: {right} of 360 right")]


def gpu() -> list[Finding]:
    """Whether an NVIDIA driver and GPU are there."""
    import ctypes

    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return [Finding("INFO", "gpu", "no NVIDIA driver: engines run on the CPU")]
    count, version = ctypes.c_int(0), ctypes.c_int(0)
    status = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    driver.cuDriverGetVersion(ctypes.byref(version))
    major, minor = version.value // 1000, version.value % 1000 // 10
    if status:
        detail = f"driver for CUDA {major}.{minor}, but no usable GPU (error {status})"
        return [Finding("INFO", "gpu", detail)]
    detail = f"{count.value} GPU, driver for CUDA {major}.{minor}; this version builds for the CPU"
    return [Finding("INFO", "gpu", detail)]


CHECKS: tuple[Callable[[], list[Finding]], ...] = (python, packages, cpu, code, engine, speed, gpu)
