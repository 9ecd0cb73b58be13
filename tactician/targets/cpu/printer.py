"""The text of a module, as llvmlite would write it but in a fraction of the time.

Writing text takes as long as making the instructions: llvmlite formats every type, name and
operand anew. Here the frequent instructions have a line each, and what recurs is looked up.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from llvmlite.ir import instructions as I
from llvmlite.ir import values

_SIMPLE = re.compile(r"[-a-zA-Z$._][-a-zA-Z$._0-9]*$")


def text_of(module: ir.Module) -> str:
    """LLVM IR of a module, with names that need no quotes left without them."""
    lines = [f'; ModuleID = "{module.name}"', f'target triple = "{module.triple}"',
             f'target datalayout = "{module.data_layout}"']  # fmt: skip
    lines += [t.get_declaration() for t in module.get_identified_types().values()]
    types = _Types()
    for value in module.globals.values():
        if isinstance(value, ir.Function) and value.blocks:
            _Function(value, types, lines)
        else:
            lines.append(str(value))
    lines += module._get_metadata_lines()
    lines.append("")
    return "\n".join(lines)


class _Function:
    """Writes a function.

    Args:
        types: The text of types by the id of the object; the module keeps these alive.
        lines: Where to.

    Attributes:
        names: How operands are referred to, by id.
        typed: The same with their types before them.
    """

    def __init__(self, function: ir.Function, types: _Types, lines: list[str]):
        self.types = types
        self.names = _Names()
        self.typed = _Typed(types, self.names)
        head: list[str] = []
        function.descr_prototype(head)
        lines.append("".join(head).rstrip("\n"))
        lines.append("{")
        for block in function.blocks:
            lines.append(f"{self.names[block][1:]}:")
            for x in block.instructions:
                writer = _WRITERS.get(type(x))
                if writer is None or x.metadata:
                    lines.append(str(x))
                elif type(x.type) is ir.VoidType:
                    lines.append(writer(self, x))
                else:
                    lines.append(f"{self.names[x]} = {writer(self, x)}")
        lines.append("}")


class _ById(dict[Any, str]):
    """Texts of objects by what they are, not by what they equal: comparing constants is slow."""

    def __getitem__(self, x: Any) -> str:
        known = self.get(id(x))
        if known is None:
            known = self[id(x)] = self.text(x)
        return known

    def text(self, x: Any) -> str:
        raise NotImplementedError


class _Types(_ById):
    def text(self, x: Any) -> str:
        return str(x)


class _Names(_ById):
    def text(self, x: Any) -> str:
        if isinstance(x, values.NamedValue) and _SIMPLE.match(x._name):
            return f"{x.name_prefix}{x._name}"
        return str(x.get_reference())


class _Typed(_ById):
    def __init__(self, types: _Types, names: _Names):
        self.types, self.names = types, names

    def text(self, x: Any) -> str:
        return f"{self.types[x.type]} {self.names[x]}"


def _plain(f: _Function, x: Any) -> str:
    flags = f" {' '.join(x.flags)}" if x.flags else ""
    operands = ", ".join([f.names[o] for o in x.operands])
    return f"{x.opname}{flags} {f.types[x.type]} {operands}"


def _address(f: _Function, x: Any) -> str:
    word = "getelementptr inbounds" if x.inbounds else "getelementptr"
    operands = ", ".join([f.typed[o] for o in x.operands])
    return f"{word} {f.types[x.source_etype]}, {operands}"


def _load(f: _Function, x: Any) -> str:
    align = "" if x.align is None else f", align {x.align}"
    return f"load {f.types[x.type]}, {f.typed[x.operands[0]]}{align}"


def _store(f: _Function, x: Any) -> str:
    align = "" if x.align is None else f", align {x.align}"
    value, at = x.operands
    return f"store {f.typed[value]}, {f.typed[at]}{align}"


def _phi(f: _Function, x: Any) -> str:
    ways = ", ".join([f"[{f.names[v]}, {f.names[b]}]" for v, b in x.incomings])
    return f"phi {''.join([y + ' ' for y in x.flags])}{f.types[x.type]} {ways}"


def _compare(f: _Function, x: Any) -> str:
    flags = "".join([" " + y for y in x.flags])
    left, right = x.operands
    return f"{x.opname}{flags} {x.op} {f.typed[left]}, {f.names[right]}"


def _select(f: _Function, x: Any) -> str:
    flags = "".join([y + " " for y in x.flags])
    return f"select {flags}{', '.join([f.typed[o] for o in x.operands])}"


def _operands(f: _Function, x: Any) -> str:
    return f"{x.opname} {', '.join([f.typed[o] for o in x.operands])}"


def _cast(f: _Function, x: Any) -> str:
    return f"{x.opname} {f.typed[x.operands[0]]} to {f.types[x.type]}"


def _call(f: _Function, x: Any) -> str:
    callee, *args = x.operands
    special = x.cconv or x.tail or x.attributes or x.fastmath or x.arg_attributes
    if special or type(callee) is not ir.Function or callee.ftype.var_arg:
        buffer: list[str] = []
        x.descr(buffer)
        return "".join(buffer).rstrip("\n")
    return f"call {f.types[x.type]} {f.names[callee]}({', '.join([f.typed[a] for a in args])})"


def _ret(f: _Function, x: Any) -> str:
    return f"ret {f.typed[x.operands[0]]}" if x.operands else "ret void"


_WRITERS: dict[type, Callable[[_Function, Any], str]] = {
    I.Instruction: _plain,
    I.GEPInstr: _address,
    I.LoadInstr: _load,
    I.StoreInstr: _store,
    I.PhiInstr: _phi,
    I.ICMPInstr: _compare,
    I.FCMPInstr: _compare,
    I.SelectInstr: _select,
    I.Branch: _operands,
    I.ConditionalBranch: _operands,
    I.ExtractElement: _operands,
    I.InsertElement: _operands,
    I.ShuffleVector: _operands,
    I.CastInstr: _cast,
    I.CallInstr: _call,
    I.Ret: _ret,
}
