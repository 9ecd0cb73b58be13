"""From an exported program, or an `fx` graph of ATen overloads, to a network."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from ..ir import dims as D
from ..ir.dtypes import i64
from ..ir.graph import SymbolInfo, Value
from ..network.network import INetworkDefinition
from ..ops import OpError
from ..support import logger as log
from ..support.errors import BuildError
from .context import Complex, Context, has_complex
from .converters import convert_call, is_user_call
from .scalars import SCALARS, float_call
from .shortcut import without_mutations
from .table import AtenProblem, complex_table, table
from .types import dtype_of, to_dim, to_numpy

_DATA_SYMBOL = re.compile(r"u\d+")


@dataclass
class Converted:
    """What a conversion leaves besides the network.

    Attributes:
        inputs: Position among the program's user inputs of each network input.
        input_names: Its name.
        outputs: For each result of the program, what it is: ``("engine", name)``,
            ``("complex", name)`` for one whose last dimension holds the parts of complex numbers,
            ``("input", position)`` for an argument handed through, ``("size", expression)`` for
            a size, or ``("const", value)``.
        hints: Sizes of the sample, by symbol.
        symbols: Where a symbol's value is found: position of an argument, and dimension
            (-1: the argument itself).
    """

    inputs: list[int] = field(default_factory=list)
    input_names: list[str] = field(default_factory=list)
    outputs: list[tuple[str, Any]] = field(default_factory=list)
    hints: dict[str, int] = field(default_factory=dict)
    symbols: dict[str, tuple[int, int]] = field(default_factory=dict)

    def calling(self, out_spec: Any = None) -> dict[str, Any]:
        """How a `TRTModule` takes its arguments and gives results."""
        out: dict[str, Any] = {"inputs": self.inputs, "outputs": self.outputs}
        if any(kind == "size" for kind, _ in self.outputs):
            out["symbols"] = self.symbols
        if out_spec is not None:
            out["out_spec"] = pytree.treespec_dumps(out_spec)
        return out

    def value_ranges(self, network: INetworkDefinition) -> dict[str, Any]:
        """Ranges of inputs that hold a size, by name."""
        out = {}
        for name, info in network.graph.symbols.items():
            if info.kind == "value":
                high = info.upper if isinstance(info.upper, int) else 1 << 16
                hint = min(max(self.hints.get(name, info.lower), info.lower), high)
                out[info.source] = ([info.lower], [hint], [high])
        return out


def decompositions(also: Collection[Any] = ()) -> dict[Any, Callable[..., Any]]:
    """torch's decompositions into core ATen, without those of overloads in the table.

    Args:
        also: Overloads to decompose though they are in the table.
    """
    rules = torch.export.default_decompositions()
    for target, rule in torch._decomp.decomposition_table.items():
        if isinstance(target, torch._ops.OpOverload) and target not in rules:
            rules[target] = rule
    for target in {*table(), *complex_table()} - set(also):
        rules.pop(target, None)
    return rules


def _only_for_real(module: Any) -> set[Any]:
    """Overloads that meet complex numbers and have importers for real ones alone."""
    return {n.target for n in module.graph.nodes
            if n.op == "call_function" and n.target in table()
            and n.target not in complex_table()
            and has_complex([v.meta.get("val") for v in (n, *n.all_input_nodes)])}


@dataclass
class Piece:
    """A graph of ATen overloads that becomes an engine, or several.

    Attributes:
        module: The graph; it changes none of its inputs.
        bound: Constant tensors and their names, by the name of their placeholder.
        user: Position among the call's arguments of every other placeholder.
        limits: Least and greatest value of symbols.
    """

    module: Any
    bound: dict[str, tuple[torch.Tensor, str]] = field(default_factory=dict)
    user: dict[str, int] = field(default_factory=dict)
    limits: dict[str, tuple[int, int | None]] = field(default_factory=dict)


def lower_program(program: Any, network: INetworkDefinition,
                  input_names: Sequence[str] | None = None,
                  output_names: Sequence[str] | None = None) -> Converted:
    """Translates an exported program.

    Args:
        program: A ``torch.export.ExportedProgram``.
        network: Empty; receives inputs, layers and outputs.
        input_names, output_names: Names of the network's; by default ``input_0`` …, ``output_0`` ….

    Raises:
        BuildError: With every overload that is not supported and every problem of others, each
            with its module and source line.
    """
    return lower_piece(piece_of(program), network, input_names, output_names)


def lower_piece(piece: Piece, network: INetworkDefinition,
                input_names: Sequence[str] | None = None,
                output_names: Sequence[str] | None = None, refit: bool = False) -> Converted:
    """Translates a graph; see `lower_program`.

    Args:
        refit: Keep all weights apart, so that they can be replaced later.
    """
    lowering = Lowering(network, piece.bound, piece.user, piece.limits)
    lowering.c.refit = refit
    return lowering.run(piece.module, input_names, output_names)


def piece_of(program: Any) -> Piece:
    """An exported program in the overloads that importers know.

    Raises:
        BuildError: If it changes arguments or buffers.
    """
    from torch.export.graph_signature import InputKind, OutputKind

    module = without_mutations(program.graph_module)
    if module is None:
        program = program.run_decompositions(decompositions())
        module = program.graph_module
    for _ in range(4):
        narrow = _only_for_real(module)
        if not narrow or not narrow & set(decompositions(narrow)):
            break
        program = program.run_decompositions(decompositions(narrow))
        module = program.graph_module
    if any(s.kind is InputKind.TOKEN for s in program.graph_signature.input_specs):
        program = _without_tokens(program)
        module = program.graph_module
    signature = program.graph_signature
    changed = [s.target for s in signature.output_specs
               if s.kind in (OutputKind.BUFFER_MUTATION, OutputKind.USER_INPUT_MUTATION)]
    if changed:
        raise BuildError(f"the module changes {', '.join(map(repr, changed))} while it runs, which "
                         "an engine can't; call module.eval(), or give the new value as a result")
    piece = Piece(module)
    for spec in signature.input_specs:
        name = spec.arg.name
        if spec.kind is InputKind.USER_INPUT:
            piece.user[name] = len(piece.user)
        elif spec.kind is InputKind.PARAMETER:
            piece.bound[name] = (program.state_dict[spec.target], spec.target)
        elif spec.kind is InputKind.BUFFER:
            store = program.state_dict if spec.persistent else program.constants
            piece.bound[name] = (store[spec.target], spec.target)
        elif spec.kind is InputKind.CONSTANT_TENSOR:
            piece.bound[name] = (program.constants[spec.target], spec.target)
        else:
            raise BuildError(f"the program takes {spec.arg} of kind {spec.kind.name}, which "
                             "a network can't")
    piece.limits = limits_of(program.range_constraints)
    return piece


def _without_tokens(program: Any) -> Any:
    """A program without the tokens by which torch orders calls that only have effects."""
    try:
        from torch.export._remove_effect_tokens_pass import _remove_effect_tokens
    except ImportError:
        return program
    return _remove_effect_tokens(program)


def limits_of(ranges: Any) -> dict[str, tuple[int, int | None]]:
    """Bounds of symbols, from torch's ranges by symbol."""
    return {str(k): (int(v.lower) if v.lower.is_Integer else 0,
                     int(v.upper) if v.upper.is_Integer else None) for k, v in ranges.items()}


class Lowering:
    """One translation of an `fx` graph.

    Args:
        network: Receives everything.
        bound: Constant tensors and their names, by the name of their placeholder.
        user: Position of each placeholder that is an argument of the call.
        limits: Least and greatest value of symbols.
        tolerant: Go on where a node can't be translated, as if its results were inputs; such
            nodes are noted in ``failed``.
    """

    def __init__(self, network: INetworkDefinition, bound: dict[str, tuple[torch.Tensor, str]],
                 user: dict[str, int], limits: dict[str, tuple[int, int | None]] | None = None,
                 tolerant: bool = False):
        self.network = network
        self.c = Context(network)
        self.bound = bound
        self.user = user
        self.limits = limits or {}
        self.tolerant = tolerant
        self.failed: dict[Any, str] = {}
        self.env: dict[Any, Any] = {}
        self.problems: dict[str, list[str]] = {}
        self.names: dict[str, int] = {}
        self.out = Converted()

    def run(self, module: torch.fx.GraphModule, input_names: Sequence[str] | None,
            output_names: Sequence[str] | None) -> Converted:
        """Translates the graph; see `lower_program`."""
        module.graph.eliminate_dead_code()
        given = [n for n in module.graph.nodes if n.op == "placeholder"]
        for node in given:
            try:
                self._placeholder(node, input_names)
            except AtenProblem as e:
                self._problem(node, str(e))
        self._size_inputs(module, given)
        for node in module.graph.nodes:
            if node.op == "get_attr":
                self._attribute(module, node)
            elif node.op == "call_function":
                self._call(node)
            elif node.op == "output":
                self._finish(node, output_names)
        return self.out

    # --- inputs ---------------------------------------------------------------------------------

    def _placeholder(self, node: Any, names: Sequence[str] | None) -> None:
        if node.name in self.bound:
            self._constant(node, *self.bound[node.name])
            return
        val = node.meta.get("val")
        if not isinstance(val, torch.Tensor):
            self.env[node] = self._number(val) if node.users else None
            return
        if not node.users and not names:
            return  # an engine without this input needs less
        k = len(self.out.inputs)
        name = names[k] if names else f"input_{k}"
        graph = self.network.graph
        shape = [*map(to_dim, val.shape), *([2] if val.is_complex() else [])]
        value = graph.add_input(name, dtype_of(val.dtype), shape)
        for axis, d in enumerate(value.dims):
            for symbol in D.symbols(d):
                if d != D.sym(symbol):
                    continue
                if symbol not in graph.symbols:
                    low, high = self.limits.get(symbol, (1, None))
                    graph.symbols[symbol] = SymbolInfo(symbol, "dim", name, axis, max(low, 1), high)
                    self.out.symbols[symbol] = (self.user[node.name], axis)
                    self._hint(val.shape[axis], symbol)
                self.c.define_symbol(symbol, value, axis)
        self.env[node] = self.c.split_parts(value) if val.is_complex() else value
        self.out.inputs.append(self.user[node.name])
        self.out.input_names.append(name)

    def _hint(self, size: Any, symbol: str) -> None:
        hint = size.node.hint if isinstance(size, torch.SymInt) else None
        if isinstance(hint, int):
            self.out.hints[symbol] = hint

    def _size_inputs(self, module: Any, given: list[Any]) -> None:
        """Arguments that are sizes become inputs where no tensor has the size as a dimension."""
        graph = self.network.graph
        for node in given:
            val, d = node.meta.get("val"), self.env.get(node)
            if not isinstance(val, torch.SymInt) or not isinstance(d, D.Dim):
                continue
            names = D.symbols(d)
            if len(names) != 1 or d != D.sym(symbol := next(iter(names))):
                continue
            if symbol in graph.symbols or not _uses(module, symbol):
                continue
            name = f"size_{symbol}"
            value = graph.add_input(name, i64, [1])
            value.content = np.array([d], dtype=object)
            low, high = self.limits.get(symbol, (0, None))
            graph.symbols[symbol] = SymbolInfo(symbol, "value", name, 0, max(low, 0), high)
            self.c.define_size(d, value)
            self.out.inputs.append(self.user[node.name])
            self.out.input_names.append(name)
            self.out.symbols[symbol] = (self.user[node.name], -1)
            self._hint(val, symbol)

    def _constant(self, node: Any, tensor: torch.Tensor, name: str) -> None:
        if not node.users:
            return
        if tensor.is_complex():
            pairs = torch.view_as_real(tensor.detach().resolve_conj())
            self.env[node] = Complex(*(self.c.const(to_numpy(t), name=f"{name}.{part}")
                                       for t, part in zip(pairs.unbind(-1), ("real", "imag"),
                                                          strict=True)))
        else:
            self.env[node] = self.c.const(to_numpy(tensor), name=name)

    def _attribute(self, module: Any, node: Any) -> None:
        held = module
        for part in node.target.split("."):
            held = getattr(held, part)
        if isinstance(held, torch.Tensor):
            self._constant(node, held, node.target)

    def _number(self, val: Any) -> Any:
        return self.c.dim(val) if isinstance(val, (torch.SymInt, int)) and not isinstance(
            val, bool) else val

    # --- nodes ----------------------------------------------------------------------------------

    def _call(self, node: Any) -> None:
        val = node.meta.get("val")
        try:
            if node.target is operator.getitem:
                self._item(node)
            elif node.target in SCALARS:
                self.env[node] = self._translate(node)
            elif isinstance(val, torch.SymFloat):
                self.env[node] = float_call(self.c, node, self._arguments(node.args))
            elif isinstance(val, torch.SymBool):
                self.env[node] = None  # of an assertion about sizes
            elif isinstance(val, (torch.SymInt, int, bool, float)):
                self.env[node] = self._number(val)
            elif val is None and not node.users:
                pass  # an assertion about sizes that export has proved or the profile keeps
            else:
                self.env[node] = self._translate(node)
        except _Poisoned:
            if self.tolerant:
                self.failed.setdefault(node, "it reads a value that engines can't hold")
        except (AtenProblem, OpError, BuildError) as e:
            self._problem(node, str(e))
        except (TypeError, ValueError, AttributeError, IndexError, KeyError) as e:
            self._problem(node, f"{node.target}: {type(e).__name__}: {e}")

    def _item(self, node: Any) -> None:
        source, index = node.args
        if source not in self.env:
            return
        result = self.env[source][index]
        if result is None and node.users:
            raise AtenProblem(f"result {index} of {source.target} is not supported")
        self.env[node] = result

    def _user_call(self, node: Any) -> list[Value]:
        holders, number = node.args
        val = node.meta["val"]
        results = convert_call(self.network, self._arguments(list(holders)), number,
                               [h.meta["val"] for h in holders], val)
        return [self._checked(node, r, v) for r, v in zip(results, val, strict=True)]

    def _translate(self, node: Any) -> Any:
        if is_user_call(node):
            return self._user_call(node)
        args, kwargs = (self._arguments(x) for x in (node.args, node.kwargs))
        wide = has_complex((args, kwargs, node.meta["val"]))
        row = (complex_table() if wide else table()).get(node.target)
        if row is None:
            raise AtenProblem(f"{node.target}{' of complex numbers' if wide else ''} has no "
                              "importer")
        self.c.node = node
        self.c.source = _place(node)
        self.c.emitted = []
        accepted = _accepted(row.fn, kwargs)
        results = row.fn(self.c, *args, **accepted)
        self._name_layers(node)
        val = node.meta["val"]
        if not isinstance(val, (tuple, list)):
            return self._checked(node, results, val)
        return [None if r is None else self._checked(node, r, v)
                for r, v in zip(results, val, strict=True)]

    def _arguments(self, tree: Any) -> Any:
        def lookup(x: Any) -> Any:
            if isinstance(x, torch.fx.Node):
                if x not in self.env:
                    raise _Poisoned
                return self.env[x]
            return self._number(x)

        return torch.fx.node.map_aggregate(tree, lookup)

    def _checked(self, node: Any, value: Any, val: Any) -> Any:
        """The result in torch's element type.

        Raises:
            AtenProblem: If the shape isn't torch's.
        """
        if isinstance(value, Complex):
            return Complex(*(self._checked(node, x, val) for x in (value.re, value.im)))
        if not isinstance(value, Value) or not isinstance(val, torch.Tensor):
            return value
        self._learn_sizes(value, val)
        expected = [self.c.dim(s) for s in val.shape]
        same = len(value.dims) == len(expected) and all(
            isinstance(a, D.Dim) or isinstance(b, D.Dim) or a == b
            for a, b in zip(value.dims, expected, strict=True))
        if not same:
            raise AtenProblem(f"{node.target} gives shape {list(value.dims)} where torch gives "
                              f"{expected}: please report this")
        return self.c.cast(value, dtype_of(val.dtype), saturate=False)

    def _learn_sizes(self, value: Value, val: torch.Tensor) -> None:
        """Notes what torch's symbols of sizes that data decide are here."""
        for axis, (d, size) in enumerate(zip(value.dims, val.shape, strict=False)):
            name = str(size) if isinstance(size, torch.SymInt) else ""
            if _DATA_SYMBOL.fullmatch(name) and name not in self.c.data_sizes:
                self.c.data_sizes[name] = d
                if isinstance(d, D.Dim) and d == D.sym(str(d)):
                    self.c.define_symbol(str(d), value, axis)

    def _name_layers(self, node: Any) -> None:
        """Layers are named after the module they come from."""
        path = _module_path(node)
        for op, layer in self.c.emitted:
            base = f"{path}/{op}" if path else f"{node.name}/{op}"
            count = self.names.get(base, 0)
            self.names[base] = count + 1
            if hasattr(layer, "name"):
                layer.name = base if not count else f"{base}_{count}"

    def _problem(self, node: Any, message: str) -> None:
        self.problems.setdefault(message, []).append(_place(node))
        if not self.tolerant or node.op == "placeholder":
            return
        self.failed[node] = message
        val = node.meta.get("val")
        try:
            if isinstance(val, (tuple, list)):
                self.env[node] = [self._stand_in(node, v) for v in val]
            else:
                self.env[node] = self._stand_in(node, val)
        except AtenProblem:
            self.env.pop(node, None)  # what reads it fails, too

    def _stand_in(self, node: Any, val: Any) -> Any:
        """An input in place of a result that could not be had."""
        if not isinstance(val, torch.Tensor):
            return self._number(val)
        shape = [*map(self.c.dim, val.shape), *([2] if val.is_complex() else [])]
        made = self.network.graph.add_input(f"%{node.name}", dtype_of(val.dtype), shape)
        return self.c.split_parts(made) if val.is_complex() else made

    # --- outputs --------------------------------------------------------------------------------

    def _finish(self, node: Any, names: Sequence[str] | None) -> None:
        if self.tolerant:
            return
        if self.problems:
            raise BuildError(self._report())
        self._tell_random(node.graph)
        marked: list[Value] = []
        for arg in pytree.tree_leaves(node.args[0]):
            if not isinstance(arg, torch.fx.Node):
                self.out.outputs.append(("const", arg))
            elif arg.op == "placeholder" and arg.name in self.user:
                self.out.outputs.append(("input", self.user[arg.name]))
            else:
                self._mark(arg, marked, names)

    def _tell_random(self, graph: Any) -> None:
        drawn = {str(n.target): None for n in graph.nodes if is_random(n.target)
                 and not isinstance(self.env.get(n), list)}
        if drawn:
            tell(f"{', '.join(drawn)}: the engine draws random numbers of the same distribution "
                 "as torch, but not the same ones, and torch.manual_seed has no effect on them; "
                 "with partition=True torch draws them")

    def _mark(self, arg: Any, marked: list[Value], names: Sequence[str] | None) -> None:
        value = self.env[arg]
        if isinstance(value, Complex):
            value = self.c.join_parts(value)
            self._mark_value(value, "complex", marked, names)
            return
        if isinstance(value, D.Dim):
            missing = D.symbols(value) - set(self.out.symbols)
            if missing:
                raise BuildError(f"the module returns the size {value}, and no argument has the "
                                 f"size {', '.join(sorted(missing))}")
            self.out.outputs.append(("size", str(value)))
            return
        if not isinstance(value, Value):
            self.out.outputs.append(("const", value))
            return
        self._mark_value(value, "engine", marked, names)

    def _mark_value(self, value: Value, kind: str, marked: list[Value],
                    names: Sequence[str] | None) -> None:
        k = len(marked)
        name = names[k] if names and k < len(names) else f"output_{k}"
        if value in marked or value.const is not None or value.producer is None:
            value = self.c.op("identity", value)
        value.name = name
        self.network.mark_output(self.network._tensor(value))
        marked.append(value)
        self.out.outputs.append((kind, name))

    def _report(self) -> str:
        lines = [f"{len(self.problems)} problem(s) keep the module from being converted:"]
        for message, places in self.problems.items():
            more = f" and {len(places) - 1} more place(s)" if len(places) > 1 else ""
            lines.append(f"- {message}\n    at {places[0]}{more}")
        return "\n".join(lines)


class _Poisoned(Exception):
    """A node reads the result of one that failed: nothing new to report."""


def is_random(target: Any) -> bool:
    """Whether an overload draws random numbers."""
    return isinstance(target, torch._ops.OpOverload) and (
        torch.Tag.nondeterministic_seeded in target.tags)


def tell(message: str) -> None:
    """Warns of what differs from what was asked for, whatever level a build logs at."""
    log.warning(message, log.Logger(log.Severity.WARNING))


def _uses(module: Any, symbol: str) -> bool:
    """Whether a result's size depends on a symbol."""
    name = re.compile(rf"\b{re.escape(symbol)}\b")
    for node in module.graph.nodes:
        if node.op != "placeholder":
            for v in pytree.tree_leaves(node.meta.get("val")):
                if isinstance(v, torch.Tensor):
                    if any(isinstance(s, torch.SymInt) and name.search(str(s)) for s in v.shape):
                        return True
                elif isinstance(v, torch.SymInt) and name.search(str(v)):
                    return True
    return False


def _accepted(fn: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments without those that say where a tensor lies, which is the engine's
    affair."""
    placement = ("device", "layout", "pin_memory", "memory_format", "non_blocking")
    return {k: v for k, v in kwargs.items() if k not in placement}


def _module_path(node: Any) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    path = str(next(reversed(stack.values()))[0]) if stack else ""
    return path.removeprefix("L['self'].").removeprefix("L['self']")


def _place(node: Any) -> str:
    """Module and source line of a node, for people."""
    stack = node.meta.get("nn_module_stack") or {}
    parts = []
    if stack:
        _, kind = next(reversed(stack.values()))
        kind = kind if isinstance(kind, str) else kind.__name__
        parts.append(f"module {_module_path(node) or '(root)'!s} ({kind.rpartition('.')[2]})")
    trace = [line.strip() for line in (node.meta.get("stack_trace") or "").splitlines()]
    files = [i for i, line in enumerate(trace) if line.startswith("File ")]
    if files:
        i = files[-1]
        code = f": {trace[i + 1]}" if i + 1 < len(trace) else ""
        where = trace[i].removeprefix("File ").replace('"', "").replace(", line ", ":")
        parts.append(where.partition(", in ")[0] + code)
    return ", ".join(parts) or f"node {node.name}"
