"""Compiled kernels as plans keep them: one blob per kernel, a JSON line and the machine code.

Library calls are blobs too: their body is the library's own serialized call.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ...support.errors import ExecutionError, PlanError
from ...tactics.kernel import Kernel

FORMAT = 1
ALIGNMENT = 256  # of device memory, in bytes
CUBIN, LIBRARY, TEXT = "cubin", "library", "text"
_MAGIC = b"TKC1"
# Places in a kernel's text that `overlapped` reads: a line before the first access to memory that
# other kernels write, a line after which all blocks only finish, and the begin of lines that may
# run before the former.
WAIT, LAUNCH, EARLY = "# the kernels ahead have ended", "# kernels behind may begin", "#+ "


@dataclass(frozen=True)
class Code:
    """One kernel's code and how it is called.

    Attributes:
        symbol: Unique name: the kernel's own and a digest of everything it depends on.
        kind: ``cubin`` (machine code), ``library`` (a call into one), ``text`` (the source, which
            Triton's interpreter runs).
        body: The code itself.
        entry: Function in a cubin or text.
        arch: Compute capability the cubin is for, such as 90.
        types: Triton types of the parameters.
        params: Parameters the machine code takes; those beyond ``types`` are pointers to scratch
            memory: global first, then profile.
        workspace, counters: Whether pointers to a workspace and to counters come after those of
            the kernel's arguments.
        threads, shared, cluster: Threads and shared bytes of a block, blocks of a cluster.
        global_scratch, profile_scratch: Scratch bytes for each block of the grid.
        pdl, cooperative: Whether it is launched programmatically dependent, or cooperatively.
        library: Name of the library of a ``library`` call.
    """

    symbol: str
    kind: str
    body: bytes
    entry: str = ""
    arch: int = 0
    types: tuple[str, ...] = ()
    params: int = 0
    workspace: bool = False
    counters: bool = False
    threads: int = 128
    shared: int = 0
    cluster: int = 1
    global_scratch: int = 0
    profile_scratch: int = 0
    pdl: bool = False
    cooperative: bool = False
    library: str = ""

    @property
    def special(self) -> bool:
        """Whether it is launched with attributes."""
        return self.pdl or self.cooperative or self.cluster > 1

    def pack(self) -> bytes:
        """The blob; equal code gives equal bytes."""
        table = {**asdict(replace(self, body=b"")), "format": FORMAT}
        del table["body"]
        head = json.dumps(table, sort_keys=True, separators=(",", ":")).encode()
        return _MAGIC + len(head).to_bytes(4, "little") + head + self.body

    @staticmethod
    def unpack(blob: Any) -> Code:
        """The kernel of a blob.

        Raises:
            PlanError: If it is none, or of another version.
        """
        data = bytes(blob)
        size = int.from_bytes(data[4:8], "little")
        if data[:4] != _MAGIC or len(data) < 8 + size:
            raise PlanError("the plan's code is no GPU code")
        try:
            table = json.loads(data[8 : 8 + size])
            version = table.pop("format")
            if version != FORMAT:
                raise PlanError(f"the plan's GPU code has format {version}, not {FORMAT}")
            table["types"] = tuple(table["types"])
            code = Code(body=data[8 + size :], **table)
        except (ValueError, TypeError, KeyError, AttributeError) as e:
            raise PlanError(f"the plan's GPU code makes no sense: {e}") from None
        code.check()
        return code

    def check(self) -> None:
        """Refuses nonsense before a driver sees it.

        Raises:
            PlanError: Naming the kernel.
        """
        counts = (self.params, self.threads, self.shared, self.cluster, self.global_scratch,
                  self.profile_scratch, self.arch)
        good = (
            self.kind in (CUBIN, LIBRARY, TEXT) and isinstance(self.symbol, str)
            and all(type(n) is int and 0 <= n < 1 << 40 for n in counts)
            and 1 <= self.threads <= 1024 and 1 <= self.cluster <= 16
            and (self.kind != CUBIN or self.body[:4] == b"\x7fELF")
            and (self.kind != CUBIN or len(self.types) <= self.params <= len(self.types) + 2)
        )
        if not good:
            raise PlanError(f"the plan's kernel {self.symbol!r} makes no sense")


def overlapped(kernel: Kernel) -> Kernel:
    """The kernel with programmatic dependent launch: it may be launched while the one before it
    ends, and waits before it touches memory that others write. Where its text says so it lets the
    next one do the same, and asks for its constants before it waits. It does that late: blocks
    that wait take room, and are spread over the multiprocessors as these are then."""
    launch = kernel.launch
    if launch is None or launch.library or ("launch_pdl", True) in launch.options:
        return kernel
    if launch.cooperative:
        return kernel  # its blocks must all run at once
    wait, begin = "tl.extra.cuda.gdc_wait()", "tl.extra.cuda.gdc_launch_dependents()"
    source = kernel.source
    if WAIT in source:
        source = source.replace(WAIT, wait).replace(EARLY, "")
    else:
        head = rf"(def {re.escape(kernel.symbol)}\([^)]*\):\n)(\s+)"
        source, count = re.subn(head, rf"\1\2{wait}\n\2", source)
        if count != 1:
            return kernel
    source = source.replace(LAUNCH, begin)
    options = (*launch.options, ("launch_pdl", True))
    return replace(kernel, source=source, launch=replace(launch, options=options))


def digest_of(kernel: Kernel) -> str:
    """Stands for everything about a kernel that its code depends on."""
    launch = kernel.launch
    assert launch is not None
    if launch.library:
        parts: tuple[Any, ...] = (launch.library, launch.payload)
    else:
        parts = (kernel.source, kernel.symbol, launch.types, launch.warps, launch.stages,
                 tuple(sorted(launch.options)))
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def symbol_of(kernel: Kernel) -> str:
    """The kernel's name in a plan."""
    assert kernel.launch is not None
    name = kernel.launch.library or kernel.symbol
    return f"{name}_{digest_of(kernel)[:16]}"


def shared_of(kernel: Kernel) -> dict[str, Any]:
    """Which of the pointers that are no arguments a kernel takes."""
    launch = kernel.launch
    assert launch is not None
    return {"workspace": launch.workspace != 0, "counters": launch.counters != 0}


def library_code(kernel: Kernel) -> Code:
    """A library call's blob."""
    assert kernel.launch is not None
    return Code(symbol_of(kernel), LIBRARY, kernel.launch.payload, library=kernel.launch.library)


def text_code(kernel: Kernel) -> Code:
    """A kernel to be interpreted."""
    assert kernel.launch is not None
    return Code(
        symbol_of(kernel), TEXT, kernel.source.encode(), entry=kernel.symbol,
        types=kernel.launch.types, params=len(kernel.launch.types),
        cooperative=kernel.launch.cooperative, **shared_of(kernel),
    )


def grid_of(sizes: Sequence[int]) -> tuple[int, int, int]:
    """Grid sizes filled up to three and checked.

    Raises:
        ExecutionError: If one is too large.
    """
    x, y, z = (*sizes, 1, 1, 1)[:3]
    if x >= 1 << 31 or y > 65535 or z > 65535 or min(x, y, z) < 0:
        raise ExecutionError(f"a grid of {(x, y, z)} blocks is too large for a GPU")
    return x, y, z


def scratch_needs(code: Code, workspace: int, grid: tuple[int, int, int]) -> tuple[int, int]:
    """(bytes of scratch memory of a launch, where Triton's global scratch begins in them)."""
    begin = -(-workspace // ALIGNMENT) * ALIGNMENT
    return begin + blocks(grid) * code.global_scratch, begin


def blocks(grid: tuple[int, int, int]) -> int:
    """Blocks of a grid."""
    return math.prod(grid)
