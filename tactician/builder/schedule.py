"""From regions with chosen kernels to a program: tensors, steps, arena offsets."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..ir import dims as D
from ..ir import expr as E
from ..ir.graph import Graph, Node, SymbolInfo, Value
from ..memory.arena import alignment_for, lifetimes, loops_of, plan_arena
from ..plan.program import (
    ARENA,
    CONST,
    DYNAMIC,
    INPUT,
    OUTPUT,
    SIZES,
    VIEW,
    Check,
    Program,
    Step,
    Tensor,
)
from ..regions.fuse import Fusion, materialized_by_sizes
from ..regions.region import Region, is_slice
from ..support.errors import BuildError
from ..tactics.kernel import Kernel

# Bytes that every pointer kernels get is a multiple of.
POINTER_ALIGNMENT = {"cuda": 16}


class Scheduler:
    """Collects the tensors and steps of one program.

    Use: `place_outputs`, then `alias` and `kernel`/`reference` per region in execution order,
    then `finish`.
    """

    def __init__(self, graph: Graph, fusion: Fusion, program: Program):
        self.graph = graph
        self.program = program
        self.aliases = _aliases(fusion)
        self.ids: dict[Value, int] = {}
        self.const_ids: dict[int, int] = {}
        self.made = _made(fusion)
        self.inputs = set(graph.inputs)
        self.outputs = set(graph.outputs)
        self.alignment = POINTER_ALIGNMENT.get(program.target, 1)
        self.copies: list[tuple[Value, int]] = []  # at the end: value -> output tensor

    # --- tensors -------------------------------------------------------------------------

    def place_inputs(self) -> None:
        """Declares the I/O tensors, in network order."""
        ids = []
        for v in self.graph.inputs:
            ids.append(self._new(Tensor(v.name, v.dtype, v.dims, INPUT)))
            self.ids[v] = ids[-1]
        self.program.inputs = tuple(ids)
        self.program.outputs = tuple(self._place_output(v) for v in self.graph.outputs)

    def enter(self, graph: Graph, fusion: Fusion, placed: Mapping[Value, int]) -> None:
        """Prepares for the steps of a control-flow body.

        Args:
            graph: The body; its inputs have tensors already.
            fusion: Its regions.
            placed: Results that are to be written to given tensors.
        """
        self.aliases.update(_aliases(fusion))
        self.made |= _made(fusion)
        self.outputs |= set(graph.outputs)
        for v, tensor in placed.items():
            t = self.program.tensors[tensor]
            same = t.shape == v.dims
            self.ids[v] = tensor if same else self._view(v, tensor, 0)

    def scratch_like(self, tensor: int, name: str) -> int:
        """A new tensor of the same type."""
        t = self.program.tensors[tensor]
        return self._new(Tensor(name, t.dtype, t.shape, ARENA))

    def _place_output(self, v: Value) -> int:
        tensor = Tensor(v.name, v.dtype, v.dims, OUTPUT)
        known = v.known_ints() if v.meta.get("output_for_shapes") else None
        if known is not None:
            tensor.is_shape, tensor.content = True, tuple(known.reshape(-1).tolist())
        out = self._new(tensor)
        if v in self.made and v not in self.ids and v not in self.aliases:
            self.ids[v] = out
            return out
        root, offset = self._root(v)
        direct = (
            root in self.made and root not in self.ids and root not in self.outputs
            and offset == 0 and root.numel == v.numel and root.dtype is v.dtype
        )
        if direct and not _has_data_dims(root):
            # the region writes its result straight into the user's buffer, under another shape
            self.ids[root] = self._new(
                Tensor(root.name, root.dtype, root.dims, VIEW, ref=out, offset=0)
            )
            self.ids[v] = out
            return out
        self.copies.append((v, out))
        return out

    def _root(self, v: Value) -> tuple[Value, D.DimLike]:
        offset: D.DimLike = 0
        while v in self.aliases and v not in self.ids:
            v, more = self.aliases[v]
            offset = offset + more
        return v, offset

    def tensor(self, v: Value) -> int:
        """The tensor of a value, declared on first use."""
        if v in self.ids:
            return self.ids[v]
        if v.const is not None:
            return self._constant(v.const, v.name, v)
        by_sizes = materialized_by_sizes(v) and v not in self.made
        if v in self.aliases and (self._root(v)[0] in self.inputs or not by_sizes):
            base, offset = self.aliases[v]
            return self._remember(v, self._view(v, self.tensor(base), offset))
        if by_sizes:
            assert v.content is not None
            content = tuple(v.content.reshape(-1).tolist())
            return self._remember(
                v, self._new(Tensor(v.name, v.dtype, v.dims, SIZES, content=content))
            )
        kind = DYNAMIC if _has_data_dims(v) else ARENA
        return self._remember(v, self._new(Tensor(_readable(v), v.dtype, v.dims, kind)))

    def _view(self, v: Value, base: int, offset: D.DimLike) -> int:
        t = self.program.tensors[base]
        if t.kind == VIEW:
            base, offset = t.ref, t.offset + offset
        return self._new(Tensor(v.name, v.dtype, v.dims, VIEW, ref=base, offset=offset))

    def _aligned(self, offset: D.DimLike) -> bool:
        """Whether a pointer at a byte offset in a tensor is one that kernels take."""
        return self.alignment == 1 or D.modulo(offset, self.alignment) == 0

    def _constant(self, array: np.ndarray[Any, Any], name: str, v: Value | None = None) -> int:
        known = self.const_ids.get(id(array))
        if known is None:
            data = np.ascontiguousarray(array)
            self.program.constants.append(data)
            dt = v.dtype if v is not None else _dtype_of(data)
            known = self._new(
                Tensor(name, dt, tuple(array.shape), CONST, ref=len(self.program.constants) - 1)
            )
            self.const_ids[id(array)] = known
            self._keep = getattr(self, "_keep", [])
            self._keep.append(array)  # ids stay valid while arrays live
        return known

    def _new(self, t: Tensor) -> int:
        self.program.tensors.append(t)
        return len(self.program.tensors) - 1

    def _remember(self, v: Value, tensor: int) -> int:
        self.ids[v] = tensor
        return tensor

    # --- regions that cost nothing -------------------------------------------------------

    def alias(self, region: Region) -> bool:
        """Makes a contiguous slice an alias of its source; True if no step is needed."""
        if region.anchor is not None or len(region.stages) != 1 or len(region.outputs) != 1:
            return False
        out = region.outputs[0]
        if out in self.ids or out in self.outputs or _has_data_dims(out):
            return False
        found = contiguous_part(region.stages[0])
        if found is None or is_slice(out) or is_slice(found[0]):
            return False
        source, offset = found
        if _has_data_dims(source) or source.const is not None:
            return False
        if not self._aligned(offset * source.dtype.size):
            return False
        self.made.discard(out)
        self.aliases[out] = source, offset * source.dtype.size
        return True

    def concat_in_place(self, region: Region, waiting: set[Value]) -> list[tuple[Value, int]]:
        """Lets producers write straight into a concatenation.

        Args:
            region: A pure concatenation whose pieces are contiguous.
            waiting: Values whose regions have not been scheduled yet.

        Returns:
            Pieces that must be copied all the same, with their offset in bytes.
        """
        out, pieces = region.outputs[0], region.stages[0].meta["concat"]
        base = self.tensor(out)
        inner = D.product(out.dims[_concat_axis(region) + 1 :]) * out.dtype.size
        left = []
        for v, start in pieces:
            offset = start * inner if not is_slice(v) else start * out.dtype.size
            free = (
                v in waiting and v not in self.ids and v not in self.outputs
                and v not in self.aliases and v.const is None
                and (is_slice(v) or self._aligned(offset))
            )
            if free:
                self._remember(v, self._view(v, base, offset))
            elif is_slice(v):
                raise BuildError(f"{v} cannot be written in its place in {out}")
            else:
                left.append((v, offset))
        return left

    # --- steps ---------------------------------------------------------------------------

    def kernel(
        self, region: Region, kernel: Kernel, symbol: str, info: dict[str, Any],
        known: set[Value] | None = None,
    ) -> None:
        """Adds a kernel step.

        Args:
            known: What the kernel may read; all else in its arguments it writes, and is added.
        """
        known = set(region.inputs) if known is None else known
        args = tuple(
            self.tensor(a) if isinstance(a, Value) else self._constant(a, f"{kernel.symbol}.packed")
            for a in kernel.args
        )
        values = [a for a in kernel.args if isinstance(a, Value)]
        outs = set(values) - known  # results, and memory of the kernel's own
        known |= outs
        self.program.steps.append(
            Step(
                "kernel",
                region.name,
                inputs=tuple(self.tensor(v) for v in values if v not in outs),
                outputs=tuple(self.tensor(v) for v in values if v in outs),
                symbol=symbol,
                args=args,
                dims=kernel.dims,
                work=kernel.work,
                grain=kernel.grain,
                phase=kernel.phase,
                scratch=kernel.scratch if kernel.launch is None else kernel.launch.workspace,
                flops=kernel.flops,
                grid=() if kernel.launch is None else kernel.launch.grid,
                counters=0 if kernel.launch is None else kernel.launch.counters,
                info=info,
            )
        )

    def special(self, general: Kernel, kernel: Kernel, symbol: str, info: dict[str, Any]) -> None:
        """Gives the last step a kernel for the sizes of the profile's ``opt``."""
        step = self.program.steps[-1]
        packed = [a for a in general.args if not isinstance(a, Value)]

        def argument(a: Value | np.ndarray[Any, Any]) -> int:
            if isinstance(a, Value):
                return self.tensor(a)
            same = (
                b for b in packed
                if b.shape == a.shape and b.dtype == a.dtype and b.tobytes() == a.tobytes()
            )
            return self._constant(next(same, a), f"{kernel.symbol}.packed")

        args = tuple(argument(a) for a in kernel.args)
        values = [t for t, a in zip(args, kernel.args, strict=True) if isinstance(a, Value)]
        own = tuple(dict.fromkeys(t for t in values if t not in (*step.inputs, *step.outputs)))
        step.outputs += own  # memory of the kernel's own
        step.special = Step(
            "kernel", step.name, step.inputs, step.outputs, symbol, args, work=kernel.work,
            grain=kernel.grain, phase=kernel.phase, scratch=kernel.scratch, flops=kernel.flops,
            info=info,
        )

    def learn(self, region: Region, kernel: Kernel, info: dict[str, Any]) -> None:
        """Adds the step in which the host reads the sizes that a kernel found; results that are
        views of the room it had are known from then on."""
        assert kernel.finds is not None
        counts, sizes = kernel.finds
        at = self.tensor(counts)
        self.program.steps.append(
            Step("learn", region.name, (at,), (), args=(at,), dims=sizes, info=info)
        )
        for v, room in kernel.found.items():
            view = self._view(v, self.tensor(room), 0)
            if v in self.ids:  # an output of the network
                self.copy(view, self.ids[v], f"output {v.name}")
            else:
                self._remember(v, view)

    def reference(self, node: Node, info: dict[str, Any]) -> None:
        """Adds a step that evaluates one node in numpy."""
        store = self.program.nodes
        twin = Node(node.op, [self._stub(v) for v in node.inputs], node.attrs, node.name)
        twin.source, twin.meta, twin.subgraphs = node.source, dict(node.meta), node.subgraphs
        for i, v in enumerate(node.outputs):
            out = Value(v.name, v.dtype, v.shape)
            out.producer, out.index = twin, i
            twin.outputs.append(out)
        store.nodes.append(twin)
        self.program.steps.append(
            Step(
                "reference",
                node.name or node.op,
                inputs=tuple(-1 if v is None else self.tensor(v) for v in node.inputs),
                outputs=tuple(self.tensor(v) for v in node.outputs),
                node=len(store.nodes) - 1,
                info=info,
            )
        )

    def _stub(self, v: Value | None) -> Value | None:
        if v is None:
            return None
        stub = Value(v.name, v.dtype, v.shape)
        self.program.nodes.inputs.append(stub)
        return stub

    def copy(self, source: int, target: int, name: str) -> None:
        """Adds a contiguous copy."""
        self.program.steps.append(
            Step("copy", name, (source,), (target,), args=(source, target), info={"tactic": "copy"})
        )

    def copy_piece(self, v: Value, out: Value, offset: D.DimLike) -> None:
        """Copies a concatenation's piece to its place."""
        target = self._view(v, self.tensor(out), offset)
        self.copy(self.tensor(v), target, out.name)

    # --- the end -------------------------------------------------------------------------

    def finish(self, symbols: Mapping[str, SymbolInfo]) -> None:
        """Adds output copies, drops unused symbols and plans the arena of a static program."""
        for v, out in self.copies:
            self.copy(self.tensor(v), out, f"output {v.name}")
        self.program.checks = collect_checks(self.graph)
        bounds = data_bounds(self.graph, canonical_symbols(self.program))
        sizes = [d for t in self.program.tensors for d in (*t.shape, *t.content, t.offset)]
        sizes += [
            d for s in self.program.steps for d in (*s.dims, *s.grid, s.work, s.scratch, s.counters)
        ]
        used = dict.fromkeys(s for d in sizes for s in D.symbols(d))
        self.program.checks = [
            c for c in self.program.checks if (D.symbols(c.a) | D.symbols(c.b)) <= set(used)
        ]
        self.program.symbols = {
            n: symbols.get(n) or SymbolInfo(n, "data", "", 0, upper=bounds.get(n))
            for n in sorted(used)
        }
        for info in self.program.symbols.values():
            if info.upper is not None and not D.symbols(info.upper) <= set(used):
                info.upper = None
        read = {s.source for s in self.program.symbols.values() if s.kind == "value"}
        for t in self.program.inputs:  # others may hold small vectors of integers, too
            self.program.tensors[t].is_shape = self.program.tensors[t].name in read
        plan_static(self.program)


def _made(fusion: Fusion) -> set[Value]:
    """Values that regions compute, by themselves or as parts."""
    return {v for r in fusion.regions for x in r.leaves() for v in x.outputs}


def _aliases(fusion: Fusion) -> dict[Value, tuple[Value, D.DimLike]]:
    """Values without memory of their own: whose they share, and from which byte."""
    found: dict[Value, tuple[Value, D.DimLike]] = {v: (b, 0) for v, b in fusion.views.items()}
    found.update({v: (b, start * v.dtype.size) for v, (b, start) in fusion.parts.items()})
    return found


def collect_checks(graph: Graph) -> list[Check]:
    """What shape inference assumed of sizes that are known only at run time."""
    found: dict[tuple[str, D.DimLike, D.DimLike], Check] = {}
    for node in graph.nodes:
        for relation, a, b in node.meta.get("assumptions", ()):
            found.setdefault((relation, a, b), Check(relation, a, b, node.describe()))
    return list(found.values())


def data_bounds(graph: Graph, names: Mapping[str, D.DimLike]) -> dict[str, D.DimLike]:
    """Largest values of sizes that depend on data, where ops know them.

    Args:
        names: From `canonical_symbols`.
    """
    out: dict[str, D.DimLike] = {}
    for node in graph.nodes:
        for old, upper in node.meta.get("data_dims", {}).items():
            if upper is not None and old in names:
                out[str(names[old])] = D.substitute(upper, names)
        for body in node.subgraphs:
            out |= data_bounds(body, names)
    return out


def canonical_symbols(program: Program) -> dict[str, D.DimLike]:
    """Renames data-dependent symbols by order of appearance, so that equal networks give equal
    plans whatever was built before in the process.

    Returns:
        The new symbols by old names.
    """
    names: dict[str, D.DimLike] = {}
    for t in program.tensors:
        for d in (*t.shape, *t.content, t.offset):
            for s in sorted(D.symbols(d)):
                if s.startswith("%"):
                    names.setdefault(s, D.sym(f"%{len(names)}"))
    if not names:
        return names

    def renamed(dims: tuple[D.DimLike, ...]) -> tuple[D.DimLike, ...]:
        return tuple(D.substitute(d, names) for d in dims)

    for t in program.tensors:
        t.shape, t.content = renamed(t.shape), renamed(t.content)
        t.offset = D.substitute(t.offset, names)
    for check in program.checks:
        check.a, check.b = renamed((check.a, check.b))
    for step in program.steps:
        step.dims, step.grid = renamed(step.dims), renamed(step.grid)
        (step.counters,) = renamed((step.counters,))
        step.work, step.scratch, step.flops = renamed((step.work, step.scratch, step.flops))
    for node in program.nodes.nodes:
        for v in (*node.present_inputs(), *node.outputs):
            v.shape = renamed(v.dims)
    return names


def plan_static(program: Program) -> None:
    """Places arena tensors now if every shape is static."""
    arena = {i for i, t in enumerate(program.tensors) if t.kind == ARENA}
    if any(t.kind == DYNAMIC for t in program.tensors) or not all(
        D.is_static(*t.shape) for t in program.tensors
    ):
        return
    sizes = {
        i: int(D.product(program.tensors[i].shape)) * program.tensors[i].dtype.size  # type: ignore
        for i in arena
    }
    offsets, program.arena_size = plan_arena(
        sizes, program_lifetimes(program), alignment_for(program.target)
    )
    for i, offset in offsets.items():
        program.tensors[i].offset = offset


def program_lifetimes(program: Program) -> dict[int, Any]:
    """Lifetimes of arena tensors, views counted for what they share memory with."""
    owner = {}
    for i, t in enumerate(program.tensors):
        root = t.ref if t.kind == VIEW else i
        if program.tensors[root].kind == ARENA:
            owner[i] = root
    steps = [([x for x in s.inputs if x >= 0], s.outputs) for s in program.steps]
    jumps = ((i, s.target) for i, s in enumerate(program.steps))
    return lifetimes(steps, owner, loops=loops_of(jumps))


def contiguous_part(stage: E.Stage) -> tuple[Value, D.DimLike] | None:
    """(source, element offset) if a stage only copies a contiguous part of one value."""
    ld = stage.expr
    if not isinstance(ld, E.Load) or ld.guard is not None or ld.dtype is not stage.out.dtype:
        return None
    if len(ld.index) != len(stage.vars):
        return None
    offset: D.DimLike = 0
    cut = False  # from the first partly read dimension inwards everything must be whole
    for k in reversed(range(len(stage.vars))):
        start = _start_of(ld.index[k], stage.vars[k])
        if start is None:
            return None
        whole = start == 0 and stage.vars[k].extent == ld.value.dims[k]
        if cut and stage.vars[k].extent != 1:
            return None
        cut = cut or not whole
        offset = offset + start * D.product(ld.value.dims[k + 1 :])
    return ld.value, offset


def _start_of(index: E.Expr, var: E.Var) -> D.DimLike | None:
    if index is var:
        return 0
    if var.extent == 1 and isinstance(index, E.Const):
        return int(index.value)
    if isinstance(index, E.Binary) and index.fn == "add":
        for a, b in ((index.a, index.b), (index.b, index.a)):
            if a is var and isinstance(b, E.Const):
                return int(b.value)
            if a is var and isinstance(b, E.Size):
                return b.dim
    return None


def concat_is_contiguous(region: Region) -> bool:
    """Whether a region is a pure concatenation whose pieces lie one after the other, or were
    made slices of the result."""
    if region.anchor is not None or len(region.stages) != 1 or len(region.nodes) != 1:
        return False
    stage = region.stages[0]
    if "concat" not in stage.meta:
        return False
    if any(("logical" in v.meta) != ("logical" in stage.out.meta)
           for v, _ in stage.meta["concat"]):
        return False  # pieces in another layout
    if all(is_slice(v) for v, _ in stage.meta["concat"]):
        return True
    if is_slice(stage.out) or any(is_slice(v) for v, _ in stage.meta["concat"]):
        return False
    outer = D.product(stage.out.dims[: _concat_axis(region)])
    return outer == 1 and not _has_data_dims(stage.out)


def _concat_axis(region: Region) -> int:
    return int(region.stages[0].meta["axis"])


def _readable(v: Value) -> str:
    """A name that is the same in every build: automatic names hold process-wide numbers."""
    return re.sub(r"_\d+:(\d+)$", r":\1", v.name)


def _has_data_dims(v: Value) -> bool:
    return any(s.startswith("%") for d in v.dims for s in D.symbols(d))


def _dtype_of(array: np.ndarray[Any, Any]) -> Any:
    from ..ir.dtypes import dtype

    return dtype(array.dtype)
