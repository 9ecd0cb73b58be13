"""What a CPU can do: the only place that knows instruction sets by name.

Kernels ask an `Isa` for vector width, registers and abilities; they never test for an
instruction set themselves. `Isa.host()` describes this machine, `Isa.named()` another one, for
cross compilation and for reproducible plans.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ...support.logger import verbose as log_verbose


@dataclass(frozen=True)
class Isa:
    """A CPU as code generators see it.

    Attributes:
        triple: LLVM target triple.
        cpu: LLVM CPU name, which also selects the scheduling model.
        features: LLVM features, each with ``+`` or ``-``, sorted.
        vector_bits: Width of the vectors that kernels should use.
        vector_registers: Number of architectural vector registers.
        masks: Loads and stores with a per-lane mask cost the same as without.
        fma: Fused multiply-add in hardware.
        f16c: Conversion between f16 and f32 in hardware.
        f16_arith: Arithmetic on f16 vectors in hardware.
        int8_dot: u8 by s8 dot products accumulating in s32 (VNNI) or s8 by s8 (NEON dotprod).
        bf16_dot: bf16 dot products accumulating in f32.
        amx: Products of tiles of bf16 and of bytes (AMX), which this process may use.
        l1d, l2, l3: Bytes of data cache; l1d and l2 per core, l3 shared. 0: none.
        line: Bytes of a cache line.
        cores: Physical cores this process may use.
    """

    triple: str
    cpu: str
    features: tuple[str, ...]
    vector_bits: int
    vector_registers: int
    masks: bool
    fma: bool
    f16c: bool
    f16_arith: bool
    int8_dot: bool
    bf16_dot: bool
    amx: bool
    l1d: int
    l2: int
    l3: int
    line: int = 64
    cores: int = 1

    @staticmethod
    def host() -> Isa:
        """This machine. The description is made once per process."""
        return _host()

    @staticmethod
    def named(name: str) -> Isa:
        """A machine by LLVM CPU name, with the caches typical of it.

        Raises:
            ValueError: If the name is not in the table of known CPUs.
        """
        if name in ("host", "native"):
            return _host()
        try:
            arch, features, (l1d, l2, l3) = _KNOWN[name]
        except KeyError:
            known = ", ".join(sorted(_KNOWN))
            raise ValueError(f"unknown CPU {name!r}; known: host, {known}") from None
        triple = {"x86": "x86_64-unknown-linux-gnu", "arm": "aarch64-unknown-linux-gnu"}[arch]
        kib = 1024
        return _describe(triple, name, set(features), (l1d * kib, l2 * kib, l3 * kib), cores=1)

    def lanes(self, bits: int) -> int:
        """Elements of ``bits`` bits in one vector."""
        return max(1, self.vector_bits // bits)

    def without(self, *features: str) -> Isa:
        """This CPU with LLVM features switched off (``without("avx512f")`` also drops what
        builds on it); for tests of narrower code paths."""
        on = {f[1:] for f in self.features if f[0] == "+"}
        gone = set(features)
        if "avx512f" in gone:
            gone |= {f for f in on if f.startswith(("avx512", "avx10", "amx"))}
        if "avx2" in gone:
            gone |= {f for f in on if f.startswith(("avx512", "avx10", "amx", "avxvnni"))}
        if "fma" in gone:
            gone.add("fma4")
        isa = _describe(self.triple, self.cpu, on - gone, (self.l1d, self.l2, self.l3), self.cores)
        off = tuple(f"-{f}" for f in gone)
        return replace(isa, features=tuple(sorted(set(isa.features) | set(off))))

    @property
    def tile_instructions(self) -> bool:
        """Whether code for tiles can use the instructions; else they are spelled out, which lets
        any machine run it (`amx` alone says that kernels should be made of tiles)."""
        return {f"+{f}" for f in _TILES} <= set(self.features)

    def intrinsic(self, operation: str) -> str | None:
        """LLVM's name of an operation on vectors of ``vector_bits``; None if the CPU lacks it
        (code then spells the operation out).

        Args:
            operation: ``dot_u8s8`` and ``dot_s8s8`` (four products added to each s32),
                ``madd_u8s8`` (two products in each s16, saturated), ``madd_s16`` (two products
                in each s32), ``dot_bf16`` (two products added to each f32), ``round_bf16``
                (f32 to bf16), ``round_bf16_pair`` (of two vectors, the upper one first),
                ``pack_s32`` (two vectors of s32 saturated to s16, 128 bits of either in turn),
                ``pack_s16_u8`` and ``pack_s16_s8`` (the same to bytes).
        """
        on = {f[1:] for f in self.features if f[0] == "+"}
        arch = "arm" if self.arch in ("aarch64", "arm64") else "x86"
        for needed, name in _INTRINSICS.get((arch, operation, self.vector_bits), ()):
            if set(needed.split()) <= on:
                return name
        return None

    @property
    def arch(self) -> str:
        """Architecture, the first part of the triple: ``x86_64``, ``aarch64``, …"""
        return self.triple.split("-")[0]

    @property
    def is_host_arch(self) -> bool:
        """Whether code for this CPU can be linked into this process at all."""
        return self.arch == _host().arch

    def missing_on(self, other: Isa) -> tuple[str, ...]:
        """Features this CPU's code may use that ``other`` lacks; empty if it can run there."""
        if self.arch != other.arch:
            return (self.arch,)
        have = {f for f in other.features if f[0] == "+"}
        return tuple(f[1:] for f in self.features if f[0] == "+" and f not in have)

    @property
    def fingerprint(self) -> str:
        """Names this CPU in plans and timing caches: equal strings run the same code."""
        on = ",".join(f for f in self.features if f[0] == "+")
        digest = hashlib.sha256(f"{self.arch};{on}".encode()).hexdigest()[:12]
        return f"{self.arch}-{self.cpu}-v{self.vector_bits}-{digest}"

    def summary(self) -> str:
        """One line for people."""
        able = [
            label
            for label, yes in (
                ("FMA", self.fma),
                ("masked vectors", self.masks),
                ("int8 dot", self.int8_dot),
                ("bf16 dot", self.bf16_dot),
                ("f16 arithmetic", self.f16_arith),
                ("AMX", self.amx),
            )
            if yes
        ]
        caches = "/".join(f"{c // 1024}K" for c in (self.l1d, self.l2, self.l3) if c)
        return (
            f"{self.cpu}: {self.vector_registers} vectors of {self.vector_bits} bits, "
            f"{', '.join(able) or 'no extensions'}, caches {caches}, {self.cores} cores"
        )


def _describe(triple: str, cpu: str, on: set[str], caches: tuple[int, int, int], cores: int) -> Isa:
    features = tuple(sorted(f"+{f}" for f in on))
    l1d, l2, l3 = caches
    common = {
        "triple": triple, "cpu": cpu, "features": features, "l1d": l1d, "l2": l2, "l3": l3,
        "cores": cores,
    }  # fmt: skip
    arch = triple.split("-")[0]
    if arch in ("x86_64", "amd64", "i686"):
        avx512 = {"avx512f", "avx512vl", "avx512bw", "avx512dq"} <= on
        avx = "avx" in on
        return Isa(
            vector_bits=512 if avx512 else 256 if avx else 128,
            vector_registers=32 if avx512 else 16,
            masks=avx512,
            fma="fma" in on,
            f16c="f16c" in on or avx512,
            f16_arith="avx512fp16" in on,
            int8_dot=("avx512vnni" in on and avx512) or "avxvnni" in on,
            bf16_dot="avx512bf16" in on and avx512,
            amx=on >= _TILES,
            **common,  # type: ignore[arg-type]
        )
    if arch in ("aarch64", "arm64"):
        return Isa(
            vector_bits=128, vector_registers=32, masks=False, fma=True, f16c=True,
            f16_arith="fullfp16" in on, int8_dot="dotprod" in on, bf16_dot="bf16" in on,
            amx=False, **common,  # type: ignore[arg-type]
        )  # fmt: skip
    return Isa(
        vector_bits=128, vector_registers=16, masks=False, fma=False, f16c=False, f16_arith=False,
        int8_dot=False, bf16_dot=False, amx=False, **common,  # type: ignore[arg-type]
    )  # fmt: skip


# --- named CPUs ---------------------------------------------------------------------------

_V2 = "sse sse2 sse3 ssse3 sse4.1 sse4.2 popcnt cx16".split()
_V3 = [*_V2, *"avx avx2 fma f16c bmi bmi2 lzcnt movbe".split()]
_V4 = [*_V3, *"avx512f avx512vl avx512bw avx512dq avx512cd".split()]
_CLX = [*_V4, "avx512vnni"]
_ICX = [*_CLX, *"avx512vbmi avx512vbmi2 avx512ifma avx512bitalg avx512vpopcntdq".split()]
_SPR = [*_ICX, *"avx512bf16 avx512fp16 avxvnni amx-tile amx-int8 amx-bf16".split()]
_TILES = {"amx-tile", "amx-int8", "amx-bf16"}
_N1 = "neon dotprod fullfp16 rcpc lse crc".split()
_V1 = [*_N1, *"bf16 i8mm".split()]

# name: (architecture, features, KiB of L1d, L2, L3)
_KNOWN: dict[str, tuple[str, list[str], tuple[int, int, int]]] = {
    "x86-64": ("x86", ["sse", "sse2"], (32, 256, 8192)),
    "x86-64-v2": ("x86", _V2, (32, 256, 8192)),
    "x86-64-v3": ("x86", _V3, (32, 256, 8192)),
    "x86-64-v4": ("x86", _V4, (32, 1024, 16384)),
    "haswell": ("x86", _V3, (32, 256, 8192)),
    "znver1": ("x86", _V3, (32, 512, 8192)),
    "znver3": ("x86", _V3, (32, 512, 32768)),
    "znver4": ("x86", [*_ICX, "avx512bf16"], (32, 1024, 32768)),
    "skylake-avx512": ("x86", _V4, (32, 1024, 16384)),
    "cascadelake": ("x86", _CLX, (32, 1024, 16384)),
    "icelake-server": ("x86", _ICX, (48, 1280, 32768)),
    "sapphirerapids": ("x86", _SPR, (48, 2048, 65536)),
    "cortex-a72": ("arm", ["neon", "crc"], (32, 1024, 0)),
    "neoverse-n1": ("arm", _N1, (64, 1024, 32768)),
    "neoverse-v1": ("arm", _V1, (64, 1024, 32768)),
    "apple-m1": ("arm", "neon dotprod fullfp16".split(), (128, 4096, 0)),
}


# (architecture, operation, bits): ((features needed, LLVM's name), ...)
_INTRINSICS: dict[tuple[str, str, int], tuple[tuple[str, str], ...]] = {
    ("x86", "madd_s16", 128): (("sse2", "llvm.x86.sse2.pmadd.wd"),),
    ("x86", "madd_s16", 256): (("avx2", "llvm.x86.avx2.pmadd.wd"),),
    ("x86", "madd_s16", 512): (("avx512bw", "llvm.x86.avx512.pmaddw.d.512"),),
    ("x86", "madd_u8s8", 128): (("ssse3", "llvm.x86.ssse3.pmadd.ub.sw.128"),),
    ("x86", "madd_u8s8", 256): (("avx2", "llvm.x86.avx2.pmadd.ub.sw"),),
    ("x86", "madd_u8s8", 512): (("avx512bw", "llvm.x86.avx512.pmaddubs.w.512"),),
    ("x86", "pack_s32", 128): (("sse2", "llvm.x86.sse2.packssdw.128"),),
    ("x86", "pack_s16_u8", 128): (("sse2", "llvm.x86.sse2.packuswb.128"),),
    ("x86", "pack_s16_s8", 128): (("sse2", "llvm.x86.sse2.packsswb.128"),),
    ("x86", "pack_s32", 256): (("avx2", "llvm.x86.avx2.packssdw"),),
    ("x86", "pack_s32", 512): (("avx512bw", "llvm.x86.avx512.packssdw.512"),),
    ("x86", "pack_s16_u8", 256): (("avx2", "llvm.x86.avx2.packuswb"),),
    ("x86", "pack_s16_u8", 512): (("avx512bw", "llvm.x86.avx512.packuswb.512"),),
    ("x86", "pack_s16_s8", 256): (("avx2", "llvm.x86.avx2.packsswb"),),
    ("x86", "pack_s16_s8", 512): (("avx512bw", "llvm.x86.avx512.packsswb.512"),),
    ("arm", "dot_s8s8", 128): (("dotprod", "llvm.aarch64.neon.sdot.v4i32.v16i8"),),
    ("arm", "dot_bf16", 128): (("bf16", "llvm.aarch64.neon.bfdot.v4f32.v8bf16"),),
    ("x86", "dot_u8s8", 512): (("avx512vnni", "llvm.x86.avx512.vpdpbusd.512"),),
    ("x86", "dot_bf16", 512): (("avx512bf16", "llvm.x86.avx512bf16.dpbf16ps.512"),),
    ("x86", "round_bf16_pair", 512): (
        ("avx512bf16", "llvm.x86.avx512bf16.cvtne2ps2bf16.512"),
    ),
    ("x86", "round_bf16", 512): (("avx512bf16", "llvm.x86.avx512bf16.cvtneps2bf16.512"),),
    ("x86", "round_bf16", 256): (
        ("avx512bf16 avx512vl", "llvm.x86.avx512bf16.cvtneps2bf16.256"),
    ),
    **{
        ("x86", "dot_u8s8", bits): tuple(
            (needed, f"llvm.x86.avx512.vpdpbusd.{bits}")
            for needed in ("avxvnni", "avx512vnni avx512vl")
        )
        for bits in (128, 256)
    },
    **{
        ("x86", "dot_bf16", bits): (
            ("avx512bf16 avx512vl", f"llvm.x86.avx512bf16.dpbf16ps.{bits}"),
        )
        for bits in (128, 256)
    },
}


# --- this machine -------------------------------------------------------------------------

_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XTILEDATA = 158, 0x1023, 18  # Linux on x86-64

_told: dict[str, str] = {}


@functools.cache
def _host() -> Isa:
    if _told:
        triple, cpu, on = _told["triple"], _told["cpu"], set(_told["features"].split())
    else:
        triple, cpu, on = _ask_llvm()
    if on & _TILES and not _may_use_tiles():
        log_verbose("AMX is not used: the kernel refuses this process its tile registers")
        on = {f for f in on if not f.startswith("amx")}
    return _describe(triple, cpu, on, _host_caches(), physical_cores())


def _may_use_tiles() -> bool:
    """Asks Linux for the tile registers, which each process has to once: their state is large, and
    is saved only for those that asked. All threads of the process have them then."""
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64"):
        return False
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        return bool(libc.syscall(_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XTILEDATA) == 0)
    except (OSError, AttributeError):
        return False


def _ask_llvm() -> tuple[str, str, set[str]]:
    import llvmlite.binding as llvm

    triple = llvm.get_process_triple()
    try:
        on = {name for name, yes in llvm.get_host_cpu_features().items() if yes}
    except RuntimeError:  # LLVM cannot tell on this platform: keep to what its CPU name implies
        on = {"neon"} if triple.startswith(("aarch64", "arm64")) else {"sse", "sse2"}
    if triple.startswith(("aarch64", "arm64")):
        on.add("neon")
    return triple, llvm.get_host_cpu_name(), on


def host_description() -> dict[str, str]:
    """What LLVM says of this machine, and a stamp that tells machines apart. A plan carries it,
    so that a process on the same kind of machine needn't load LLVM to ask again (`tell_host`)."""
    host, stamp = _host(), _cpu_stamp()
    if not stamp:
        return {}
    on = " ".join(f[1:] for f in host.features if f[0] == "+")
    return {"stamp": stamp, "triple": host.triple, "cpu": host.cpu, "features": on}


def tell_host(description: Mapping[str, str]) -> None:
    """Takes a description for this machine's, if its stamp fits and LLVM was not asked yet."""
    stamp = _cpu_stamp()
    if stamp and description.get("stamp") == stamp and not _told:
        _told.update(description)


_STAMPED = frozenset(
    "vendor_id|cpu family|model|model name|stepping|flags|CPU implementer|CPU architecture|"
    "CPU variant|CPU part|CPU revision|Features".split("|")
)


@functools.cache
def _cpu_stamp() -> str:
    """Digest of what the kernel says of the first CPU; empty where it doesn't say."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return ""
    lines = [line for line in first.splitlines() if line.split("\t")[0].strip() in _STAMPED]
    text = "\n".join([platform.machine(), *lines])
    return hashlib.sha256(text.encode()).hexdigest()[:24] if lines else ""


def _parse_size(text: str) -> int:
    text = text.strip().upper()
    scale = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:], 1)
    return int(text.rstrip("KMG")) * scale


def _host_caches() -> tuple[int, int, int]:
    """Bytes of L1d, L2, L3: from sysfs, else sysctl, else typical ones."""
    found: dict[int, int] = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            if (index / "type").read_text().strip() != "Instruction":
                level = int((index / "level").read_text())
                found[level] = _parse_size((index / "size").read_text())
        except (OSError, ValueError):
            continue
    if not found and platform.system() == "Darwin":
        for level, key in ((1, "hw.perflevel0.l1dcachesize"), (2, "hw.perflevel0.l2cachesize")):
            value = _sysctl(key)
            if value:
                found[level] = value
    return found.get(1, 32 << 10), found.get(2, 512 << 10), found.get(3, 0 if found else 8 << 20)


def _sysctl(key: str) -> int:
    import subprocess

    try:
        done = subprocess.run(["sysctl", "-n", key], capture_output=True, text=True, timeout=5)
        return int(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return 0


def _cpu_list(text: str) -> set[int]:
    """Parses a list of CPUs as the kernel writes them, e.g. ``0-3,8``."""
    out: set[int] = set()
    for part in text.strip().split(","):
        if part:
            lo, _, hi = part.partition("-")
            out.update(range(int(lo), int(hi or lo) + 1))
    return out


def _allowed_cpus() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def _quota_cores(cgroup_root: Path = Path("/sys/fs/cgroup")) -> float:
    """CPUs that the control group grants, counted in cores (inf: no limit)."""
    best = float("inf")
    for rel in (*_own_cgroups(), ""):
        for folder in (cgroup_root / rel, cgroup_root / "cpu" / rel):
            best = min(best, _read_quota(folder))
    return best


def _own_cgroups() -> Iterable[str]:
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        path = line.split(":", 2)[-1].strip("/")
        while path:
            yield path
            path = path.rpartition("/")[0]


def _read_quota(folder: Path) -> float:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return float("inf") if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:
        micros = int((folder / "cpu.cfs_quota_us").read_text())
        period_us = int((folder / "cpu.cfs_period_us").read_text())
        return micros / period_us if micros > 0 else float("inf")
    except (OSError, ValueError):
        return float("inf")


def physical_cores() -> int:
    """Physical cores this process may use: its affinity mask, hyper-threads counted once, and
    no more than its control group's quota. At least 1."""
    allowed = _allowed_cpus()
    groups = set()
    for cpu in allowed:
        path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            groups.add(frozenset(_cpu_list(path.read_text()) & allowed))
        except (OSError, ValueError):
            groups.add(frozenset((cpu,)))
    cores = len(groups)
    if not Path("/sys/devices/system/cpu").exists() and platform.system() == "Darwin":
        cores = _sysctl("hw.perflevel0.physicalcpu") or _sysctl("hw.physicalcpu") or cores
    return max(1, min(cores, int(min(_quota_cores(), 1 << 16))))
