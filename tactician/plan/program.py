"""What a plan holds: tensors, steps, code and constants, ready to run.

A `Program` is the compiler's result and the runtime's input; `plan.format` writes and reads it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..ir.dims import Dim, DimLike
from ..ir.dtypes import DType
from ..ir.graph import Graph, SymbolInfo

INPUT, OUTPUT, CONST, ARENA, VIEW, DYNAMIC, SIZES = (
    "input", "output", "const", "arena", "view", "dynamic", "sizes",
)


@dataclass
class Tensor:
    """A tensor of the program; its index in `Program.tensors` is its id.

    Attributes:
        name: Name of the value; I/O tensors are found by it.
        kind: ``input``/``output``: address given by the user. ``const``: `Program.constants`
            entry ``ref``. ``arena``: in the context's arena, at ``offset`` if shapes are static.
            ``view``: shares memory with tensor ``ref`` at byte ``offset``, row-major.
            ``dynamic``: its size depends on data; allocated while running.
            ``sizes``: integers known once shapes are: ``content`` holds them.
        ref: See ``kind``.
        offset: Byte offset in the arena or in tensor ``ref``; -1 while not planned.
        content: Elements of a ``sizes`` tensor, row-major, as ints and Dims.
        is_shape: For outputs: it is for shapes, ``content`` holds its elements, too. For inputs:
            its elements are read when shapes are computed (symbols of kind
            ``value``).
    """

    name: str
    dtype: DType
    shape: tuple[DimLike, ...]
    kind: str
    ref: int = -1
    offset: DimLike = -1
    content: tuple[DimLike, ...] = ()
    is_shape: bool = False


@dataclass
class Step:
    """One step of the schedule.

    Attributes:
        kind: ``kernel``; ``reference`` (a node evaluated in numpy through a callback);
            ``copy`` (args[0] to args[1], contiguous); ``jump`` (to step ``target``);
            ``jump_if_zero`` (the same if the first byte of args[0] is zero); ``learn`` (the
            host reads args[0], i64: its elements are the sizes ``dims``, which depend on data).
        name: Layers it does, for people.
        symbol: Kernel's function in `Program.code`.
        args: Tensor ids of the pointer arguments, in the kernel's order.
        dims: Scalar arguments.
        work, grain, phase, scratch, flops: As in `tactics.kernel.Kernel`; on a GPU ``scratch`` are
            bytes of device memory that the kernel uses while it runs.
        grid: Blocks that a GPU launches.
        counters: 32-bit integers of the step's own, zero between runs (GPUs).
        target: For jumps: index of the step that follows; may be one past the last.
        node: For ``reference``: index in `Program.nodes.nodes`.
        inputs: Tensor ids read (-1: absent input of a reference node).
        outputs: Tensor ids written.
        info: Report entry: layers with sources, ops, tactic, candidate, timings, rejections.
        special: For kernels with symbolic sizes: what runs instead where these are `Program.opt`.
    """

    kind: str
    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    symbol: str = ""
    args: tuple[int, ...] = ()
    dims: tuple[DimLike, ...] = ()
    work: DimLike = 1
    grain: int = 1
    scratch: DimLike = 0
    flops: DimLike = 0
    grid: tuple[DimLike, ...] = ()
    phase: int = 0
    counters: DimLike = 0
    node: int = -1
    target: int = -1
    info: dict[str, Any] = field(default_factory=dict)
    special: Step | None = None


@dataclass
class Check:
    """A relation between sizes that the build relied on and a context has to check.

    Attributes:
        relation: ``eq``; ``le`` (a <= b); ``broadcast`` (equal, or one of them 1).
        layer: The layer that needs it, for the error message.
    """

    relation: str
    a: DimLike
    b: DimLike
    layer: str


@dataclass
class Profile:
    """Shape ranges of one optimization profile: input name -> (min, opt, max) shapes, and the
    same for the values of shape-tensor inputs."""

    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]
    values: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = field(
        default_factory=dict
    )


def declared_shape(program: Program, tensor: int) -> tuple[int, ...]:
    """The shape that an input or output has in the network: -1 where it varies there, also if it
    has one size in all profiles and the program is for this size alone."""
    t = program.tensors[tensor]
    known = program.settings.get("declared", {}).get(t.name)
    return tuple(known or (-1 if isinstance(d, Dim) else d for d in t.shape))


@dataclass
class Program:
    """A compiled network.

    Attributes:
        name: The network's name.
        target: ``cpu``, ``cuda``, ``reference`` or ``null``.
        device: The device's fingerprint; a plan runs only where it matches.
        tensors: All tensors.
        inputs, outputs: Tensor ids of the I/O tensors, in network order.
        steps: The schedule.
        symbols: Where dimension symbols get their values.
        checks: What run-time sizes must satisfy.
        code: Object files, or the blobs of `targets.cuda.code`; every kernel symbol is defined
            in exactly one.
        walker: The native walker's object code and the key it was compiled under, or None; it
            spares the process that loads the plan a compilation.
        host: What `targets.cpu.isa.host_description` said where the plan was built.
        constants: Arrays of ``const`` tensors.
        nodes: Holds the nodes of reference steps (and their subgraphs); not a runnable graph.
        arena_size: Bytes of the arena if all shapes are static, else -1.
        profiles: At least one.
        implicit_batch: Largest batch of an implicit-batch network, or 0.
        opt: Sizes that ``special`` kernels are for: the first profile's ``opt``.
        threads: Threads to use by default (0: the machine's cores).
        settings: Build settings worth reporting and checking (precision flags, level, …).
        network: The whole network, if the plan carries it (version compatible), else None.
        weights: Refittable weights: name -> tensor ids/constants; filled when refit is on.
    """

    name: str
    target: str
    device: str
    tensors: list[Tensor] = field(default_factory=list)
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    steps: list[Step] = field(default_factory=list)
    symbols: dict[str, SymbolInfo] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)
    code: list[bytes] = field(default_factory=list)
    walker: tuple[str, bytes] | None = None
    host: dict[str, str] = field(default_factory=dict)
    constants: list[np.ndarray[Any, Any]] = field(default_factory=list)
    nodes: Graph = field(default_factory=Graph)
    arena_size: int = -1
    profiles: list[Profile] = field(default_factory=list)
    implicit_batch: int = 0
    opt: dict[str, int] = field(default_factory=dict)
    threads: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    network: Graph | None = None
    weights: dict[str, Any] = field(default_factory=dict)
