"""Control flow inside the native schedule.

``if`` and ``loop`` nodes become jumps around the steps of their bodies, so that no Python runs
per branch or iteration. What a schedule of fixed tensors can't hold, results whose size depends
on the data, stays a reference step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..ir import dims as D
from ..ir.dtypes import b1, i64
from ..ir.graph import Graph, Node, Value
from ..ops import get
from ..ops.registry import Kind
from ..plan.program import VIEW, Step
from ..regions.region import Region
from ..tactics.kernel import Kernel

if TYPE_CHECKING:
    from .compile import _Compiler

def _function(name: str, pointers: Sequence[str], body: str) -> str:
    """LLVM IR of a kernel whose arguments are loaded under the given names."""
    lines = [f"define void @{name}(ptr %args, ptr %dims, i64 %begin, i64 %end, ptr %scratch) {{"]
    for k, pointer in enumerate(pointers):
        lines.append(f"  %{pointer}_slot = getelementptr ptr, ptr %args, i64 {k}")
        lines.append(f"  %{pointer} = load ptr, ptr %{pointer}_slot")
    return "\n".join((*lines, body.strip("\n"), "  ret void", "}", ""))


_COUNTERS = ("i_at", "go_at", "n_at", "c_at")  # iteration, whether to go on, trip count, condition
_GO_ON = """
  %n = load i64, ptr %n_at
  %c = load i8, ptr %c_at
  store i64 %j, ptr %i_at
  %more = icmp slt i64 %j, %n
  %goes = icmp ne i8 %c, 0
  %go = and i1 %more, %goes
  %byte = zext i1 %go to i8
  store i8 %byte, ptr %go_at
"""
_START = _function("loop_start", _COUNTERS, "  %j = add i64 0, 0" + _GO_ON)
_NEXT = _function(
    "loop_next", _COUNTERS, "  %i = load i64, ptr %i_at\n  %j = add i64 %i, 1" + _GO_ON
)
_SCAN = "declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)\n" + _function(
    "scan_store", ("src", "i_at", "out"), """
  %i = load i64, ptr %i_at
  %size = load i64, ptr %dims
  %offset = mul i64 %i, %size
  %dst = getelementptr i8, ptr %out, i64 %offset
  call void @llvm.memcpy.p0.p0.i64(ptr %dst, ptr %src, i64 %size, i1 false)
""",
)


def why_not_native(node: Node) -> str | None:
    """Why a control-flow node can't be part of the native schedule, or None if it can."""
    if node.op not in ("if", "loop"):
        return f"{node.op} is no control flow"
    for v in node.outputs:
        if _data_dependent(v):
            return f"the size of its result {v.name!r} depends on data"
    for body in node.subgraphs:
        for n in body.nodes:
            if get(n.op).kind is Kind.CONTROL:
                inner = why_not_native(n)
                if inner is not None:
                    return inner
            late = next((v for v in n.outputs if _data_dependent(v)), None)
            if late is not None:
                return f"the size of {late.name!r} in its body depends on data"
    if node.op == "if":
        return _branches_differ(node)
    return _loop_reason(node)


def _data_dependent(v: Value) -> bool:
    return v.shape is None or any(s.startswith("%") for d in v.shape for s in D.symbols(d))


def _branches_differ(node: Node) -> str | None:
    for body in node.subgraphs:
        for mine, out in zip(body.outputs, node.outputs, strict=True):
            if mine.numel != out.numel or mine.dtype is not out.dtype:
                return f"a branch gives {mine!r} for {out!r}"
    return None


def _loop_reason(node: Node) -> str | None:
    (body,) = node.subgraphs
    n = node.attrs.carried
    if any(v.shape is None or v.numel != 1 for v in (*body.inputs[:2], body.outputs[0])):
        return "its iteration number and condition are no scalars"
    trips = node.inputs[0]
    if trips is not None and trips.dtype is not i64:
        return f"its trip count is {trips.dtype}"
    for init, into, out in zip(node.inputs[2 : 2 + n], body.inputs[2 : 2 + n],
                               body.outputs[1 : 1 + n], strict=True):
        if init is None or init.shape != into.shape or out.shape != into.shape:
            return f"the carried value {into.name!r} changes its shape"
    return None


def emit_control(compiler: _Compiler, region: Region, info: dict[str, Any]) -> None:
    """Adds the steps of a control-flow region that `why_not_native` accepts."""
    node = region.anchor
    assert node is not None
    if node.op == "if":
        _emit_if(compiler, node, info)
    else:
        _emit_loop(compiler, node, info)


def _emit_if(c: _Compiler, node: Node, info: dict[str, Any]) -> None:
    cond, *captures = node.inputs
    assert cond is not None
    name = node.name or "if"
    test = _jump(c, name, c.scheduler.tensor(cond), info)
    _body(c, node.subgraphs[0], captures, node.outputs)
    leave = _jump(c, name, None, info)
    test.target = len(c.program.steps)
    _body(c, node.subgraphs[1], captures, node.outputs)
    leave.target = len(c.program.steps)


def _emit_loop(c: _Compiler, node: Node, info: dict[str, Any]) -> None:
    (body,) = node.subgraphs
    s, n = c.scheduler, node.attrs.carried
    name = node.name or "loop"
    trips, cond = (v for v in node.inputs[:2])
    number, go = _scalar(c, f"{name}.iteration", i64), _scalar(c, f"{name}.go", b1)
    limit = s.tensor(trips if trips is not None else _constant(np.iinfo(np.int64).max))
    start = s.tensor(cond if cond is not None else _constant(True))
    _control_kernel(c, "loop_start", _START, (number, go, limit, start), 2, name, info)
    # the loop's results are the buffers that carry values from one iteration to the next
    carried = [s.tensor(v) for v in node.outputs[:n]]
    for init, tensor in zip(node.inputs[2 : 2 + n], carried, strict=True):
        assert init is not None
        s.copy(s.tensor(init), tensor, f"{name} (start)")
    head = len(c.program.steps)
    leave = _jump(c, name, go, info)
    s.ids.update(zip(body.inputs[:2], (number, start), strict=True))
    s.ids.update(zip(body.inputs[2 : 2 + n], carried, strict=True))
    for v, outer in zip(body.inputs[2 + n :], node.inputs[2 + n :], strict=True):
        if outer is not None:
            s.ids[v] = s.tensor(outer)
    c.schedule_graph(body)
    for v, out in zip(body.outputs[1 + n :], node.outputs[n:], strict=True):
        _store_scan(c, name, s.tensor(v), number, s.tensor(out), info)
    results = [s.tensor(v) for v in body.outputs[: 1 + n]]
    again = _carry(c, name, results[0], results[1:], carried)
    _control_kernel(c, "loop_next", _NEXT, (number, go, limit, again), 2, name, info)
    back = _jump(c, name, None, info)
    back.target = head
    leave.target = len(c.program.steps)


def emit_assertion(c: _Compiler, region: Region, info: dict[str, Any]) -> None:
    """Adds the steps of an assertion of one element: Python runs only where it fails."""
    node = region.anchor
    assert node is not None and node.inputs[0] is not None
    name = node.name or "assertion"
    fails = _jump(c, name, c.scheduler.tensor(node.inputs[0]), info)
    holds = _jump(c, name, None, info)
    fails.target = len(c.program.steps)
    c.scheduler.reference(node, _own(info, "raise"))
    holds.target = len(c.program.steps)


def _body(
    c: _Compiler, body: Graph, captures: list[Value | None], results: list[Value]
) -> None:
    """Steps of a branch; its results end up in the tensors of ``results``."""
    s = c.scheduler
    for v, outer in zip(body.inputs, captures, strict=True):
        if outer is not None:
            s.ids[v] = s.tensor(outer)
    targets = [s.tensor(v) for v in results]
    direct: dict[Value, int] = {}
    made = {v for n in body.nodes for v in n.outputs if get(n.op).kind is not Kind.VIEW}
    for v, target in zip(body.outputs, targets, strict=True):
        if v in made and v not in direct and v.content is None:
            direct[v] = target
    c.schedule_graph(body, direct)
    for v, target in zip(body.outputs, targets, strict=True):
        if direct.get(v) != target:
            s.copy(s.tensor(v), target, f"result {v.name}")


def _carry(c: _Compiler, name: str, again: int, sources: list[int], targets: list[int]) -> int:
    """Moves an iteration's results into the carried buffers, all at once in effect: what lies in
    a carried buffer that is overwritten before it is read is saved first.

    Args:
        again: The tensor of the condition, which is read after the moves.

    Returns:
        Where the condition is then.
    """
    places = [_memory(c, t) for t in targets]

    def safe(source: int, overwritten: list[int]) -> int:
        if _memory(c, source) not in overwritten:
            return source
        saved = c.scheduler.scratch_like(source, f"{name}.saved")
        c.scheduler.copy(source, saved, f"{name} (save)")
        return saved

    # a whole buffer may be read until it is overwritten; a view might overlap its own target
    moves = []
    for k, (source, target) in enumerate(zip(sources, targets, strict=True)):
        if source != target:
            whole = c.program.tensors[source].kind != VIEW
            moves.append((safe(source, places[:k] if whole else places), target))
    again = safe(again, places)
    for source, target in moves:
        c.scheduler.copy(source, target, f"{name} (next)")
    return again


def _memory(c: _Compiler, tensor: int) -> int:
    """The tensor that owns the memory of a tensor."""
    t = c.program.tensors[tensor]
    return t.ref if t.kind == VIEW else tensor


def _store_scan(
    c: _Compiler, name: str, source: int, number: int, target: int, info: dict[str, Any]
) -> None:
    t = c.program.tensors[source]
    size = D.product(t.shape) * t.dtype.size
    kernel = _scan_kernel(c, size)
    symbol = c.add_code(kernel)
    c.program.steps.append(
        Step("kernel", f"{name} (scan)", (source, number), (target,), symbol,
             (source, number, target), (size,), grid=_grid(kernel), info=_own(info, "scan"))
    )


def _scan_kernel(c: _Compiler, size: D.DimLike) -> Kernel:
    if c.program.target == "cuda":
        from ..targets.cuda.control import scan_kernel

        return scan_kernel(size)
    return Kernel("scan_store", _SCAN, ())


def _loop_kernel(c: _Compiler, symbol: str, source: str) -> Kernel:
    if c.program.target == "cuda":
        from ..targets.cuda.control import loop_kernel

        return loop_kernel(symbol)
    return Kernel(symbol, source, ())


def _grid(kernel: Kernel) -> tuple[D.DimLike, ...]:
    return () if kernel.launch is None else kernel.launch.grid


def _control_kernel(
    c: _Compiler, symbol: str, source: str, args: tuple[int, ...], outs: int, name: str,
    info: dict[str, Any],
) -> None:
    kernel = _loop_kernel(c, symbol, source)
    unique = c.add_code(kernel)
    c.program.steps.append(
        Step("kernel", name, args[outs:], args[:outs], unique, args, grid=_grid(kernel),
             info=_own(info, symbol))
    )


def _jump(c: _Compiler, name: str, test: int | None, info: dict[str, Any]) -> Step:
    if test is None:
        step = Step("jump", name, (), (), info=_own(info, "jump"))
    else:
        step = Step("jump_if_zero", name, (test,), (), args=(test,), info=_own(info, "jump"))
    c.program.steps.append(step)
    return step


def _own(info: dict[str, Any], tactic: str) -> dict[str, Any]:
    return {**info, "tactic": tactic}


def _scalar(c: _Compiler, name: str, dt: Any) -> int:
    return c.scheduler.tensor(Value(name, dt, ()))


def _constant(x: Any) -> Value:
    array = np.asarray(x, np.bool_ if isinstance(x, bool) else np.int64)
    v = Value("loop limit", b1 if isinstance(x, bool) else i64, ())
    v.const = array
    return v
