"""What is known of GPUs without asking one: enough to compile for them and to order candidates."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from ...support.errors import BuildError

OLDEST = 80


@dataclass(frozen=True)
class Gpu:
    """A GPU as the compiler and the cost models see it.

    Attributes:
        arch: Compute capability as a number: 90 for 9.0.
        name: For people.
        sms: Streaming multiprocessors.
        shared: Most bytes of shared memory of one block.
        shared_sm: Bytes of shared memory of a multiprocessor.
        registers: 32-bit registers of a multiprocessor.
        l2: Bytes of level-2 cache.
        memory: Bytes of device memory.
        bandwidth: Bytes per second that copies reach.
        flops: Peak operations per second by type: ``f16`` (bf16 too), ``tf32``, ``f32``, ``i8``,
            ``f8``, ``f64``.
        launch: Seconds from one small kernel to the next within a graph.
    """

    arch: int
    name: str
    sms: int
    shared: int
    shared_sm: int
    l2: int
    memory: int
    bandwidth: float
    flops: dict[str, float]
    registers: int = 65536
    launch: float = 1.8e-6

    @property
    def fingerprint(self) -> str:
        """Names what code and timings are for."""
        return f"sm_{self.arch}/{self.sms}"

    def peak(self, dtype: str) -> float:
        """Operations per second of a type (by its name in `ir.dtypes`)."""
        same = {"bf16": "f16", "u8": "i8", "f8e4m3": "f8", "f8e5m2": "f8"}
        return self.flops.get(same.get(dtype, dtype), self.flops["f32"])


def _flops(f16: float, f32: float, i8: float, f8: float, f64: float) -> dict[str, float]:
    t = 1e12
    return {"f16": f16 * t, "tf32": f16 * t / 2, "f32": f32 * t, "i8": i8 * t, "f8": f8 * t,
            "f64": f64 * t}


_GB = 1 << 30
KNOWN: dict[int, Gpu] = {
    g.arch: g for g in (
        Gpu(80, "A100", 108, 166912, 167936, 40 << 20, 80 * _GB, 1.7e12,
            _flops(290, 19, 560, 290, 9)),
        Gpu(86, "A10", 72, 101376, 102400, 6 << 20, 24 * _GB, 0.5e12,
            _flops(120, 31, 240, 120, 0.5)),
        Gpu(89, "L4", 58, 101376, 102400, 48 << 20, 24 * _GB, 0.27e12,
            _flops(110, 30, 220, 220, 0.5)),
        Gpu(90, "H100", 132, 232448, 233472, 50 << 20, 80 * _GB, 3.0e12,
            _flops(800, 60, 1600, 1600, 60)),
        Gpu(100, "B200", 148, 232448, 233472, 126 << 20, 180 * _GB, 7.0e12,
            _flops(2000, 75, 4000, 4000, 37)),
        Gpu(120, "RTX PRO 6000", 188, 101376, 102400, 96 << 20, 96 * _GB, 1.6e12,
            _flops(450, 110, 900, 900, 1.5)),
    )
}


def named_gpu(text: str) -> Gpu:
    """The GPU that a name such as ``sm_90``, ``90``, ``9.0`` or ``H100`` means.

    Raises:
        BuildError: If it means none, or one too old.
    """
    by_name = {g.name.lower(): g for g in KNOWN.values()}
    if text.lower() in by_name:
        return by_name[text.lower()]
    m = re.fullmatch(r"(?:sm_?)?(\d+)\.?(\d)a?", text.lower())
    if m is None:
        raise BuildError(
            f"{text!r} names no GPU; use a compute capability such as sm_90, or one of "
            f"{', '.join(g.name for g in KNOWN.values())}"
        )
    return gpu_of(int(m.group(1) + m.group(2)))


def gpu_of(arch: int) -> Gpu:
    """What is known of a compute capability; unknown ones are taken for the nearest older.

    Raises:
        BuildError: If it is older than 8.0.
    """
    if arch < OLDEST:
        raise BuildError(
            f"compute capability {arch / 10:.1f} is not supported: the CUDA target needs 8.0 "
            "(Ampere) or newer; use the CPU target (config.default_device_type = DeviceType.CPU)"
        )
    nearest = max(a for a in KNOWN if a <= arch)
    return KNOWN[nearest] if nearest == arch else replace(KNOWN[nearest], arch=arch)
