"""The debug ladder's rungs of a build (``TACTICIAN_DEBUG``): text on stderr."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from itertools import count

from ..ir.graph import Graph
from ..plan.program import Program
from ..support.knobs import debug_level
from ..tactics.kernel import Kernel


def say(text: str) -> None:
    """A line on stderr."""
    print(text, file=sys.stderr)


def graph_dumper() -> Callable[[str, Graph], None] | None:
    """Rung 4: prints the graph after each pass that changed it."""
    if debug_level() < 4:
        return None
    number = count()

    def dump(name: str, graph: Graph) -> None:
        say(f"=== {next(number):02d} after {name}\n{graph}")

    return dump


def show_source(region: str, kernel: Kernel) -> None:
    """Rung 5: prints the code of a chosen kernel."""
    if debug_level() >= 5:
        say(f"=== code of {region}\n{kernel.source}")


def show_program(program: Program, seconds: float) -> None:
    """Rung 1: what was built; rung 3: each step's tactic, times and why others were rejected."""
    level = debug_level()
    if level < 1:
        return
    tactics = Counter(str(s.info.get("tactic", s.kind)) for s in program.steps)
    weights = sum(c.nbytes for c in program.constants)
    used = ", ".join(f"{n} {t}" for t, n in tactics.most_common())
    arena = f"{program.arena_size:,} bytes" if program.arena_size >= 0 else "sized at run time"
    say(
        f"=== {program.name}: {len(program.steps)} steps ({used}), {weights:,} bytes of constants, "
        f"arena {arena}, built in {seconds:.2f} s"
    )
    if level < 3:
        return
    for i, step in enumerate(program.steps):
        info = step.info
        say(f"{i:4d} {step.name}: {info.get('tactic', step.kind)} {info.get('candidate', '')}")
        for label, time in info.get("times_us", {}).items():
            say(f"       {label}: {'rejected' if time is None else f'{time} µs'}")
        for label, why in info.get("rejected", {}).items():
            say(f"       not {label}: {why}")
