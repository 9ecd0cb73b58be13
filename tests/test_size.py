"""Files and functions stay short enough to read.

The allow-lists name what is long for a reason; an entry that is no longer needed must go.
"""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("tactician", "scripts", "benchmarks", "examples")
FILE_LINES = 700
FUNCTION_LINES = 70

# path: why it is long
LONG_FILES: dict[str, str] = {}
# path::function: why it is long
LONG_FUNCTIONS: dict[str, str] = {
    "benchmarks/gpu_networks.py::networks": "a table: a line or two for each kind of network",
    "tactician/torch/convert.py::torch2trt": "torch2trt's own arguments, each documented",
}


def sources() -> list[tuple[str, str]]:
    paths = sorted(p for folder in FOLDERS for p in (ROOT / folder).rglob("*.py"))
    return [(p.relative_to(ROOT).as_posix(), p.read_text()) for p in paths]


def functions(source: str) -> list[tuple[str, int]]:
    """(qualified name, lines) of every function, decorators not counted."""
    out: list[tuple[str, int]] = []

    def visit(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                name = f"{prefix}{child.name}"
                if not isinstance(child, ast.ClassDef):
                    out.append((name, (child.end_lineno or 0) - child.lineno + 1))
                visit(child, f"{name}.")
            else:
                visit(child, prefix)

    visit(ast.parse(source), "")
    return out


def test_files() -> None:
    long = {path: n for path, text in sources() if (n := text.count("\n")) >= FILE_LINES}
    report(long, LONG_FILES, FILE_LINES)


def test_functions() -> None:
    long = {
        f"{path}::{name}": n
        for path, text in sources()
        for name, n in functions(text)
        if n >= FUNCTION_LINES
    }
    report(long, LONG_FUNCTIONS, FUNCTION_LINES)


def report(long: dict[str, int], allowed: dict[str, str], limit: int) -> None:
    new = [f"{n} lines: {name}" for name, n in long.items() if name not in allowed]
    stale = sorted(set(allowed) - set(long))
    assert not new, f"split these (fewer than {limit} lines each):\n" + "\n".join(new)
    assert not stale, f"no longer long, take them off the allow-list: {stale}"


def test_counts_lines_of_nested_functions() -> None:
    source = "class A:\n    def f(self):\n        def g():\n            pass\n        return g\n"
    assert functions(source) == [("A.f", 4), ("A.f.g", 2)]
