"""Folders import only from those that docs/architecture.md lists before them."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "tactician"


def folder_order() -> list[str]:
    text = (ROOT / "docs" / "architecture.md").read_text()
    order = [m.removesuffix("/cpu") for m in re.findall(r"^\| `(\w+(?:/cpu)?)/` \|", text, re.M)]
    assert order[:2] == ["support", "ir"] and len(order) > 10
    return order


ORDER = folder_order()
USERS = ("cli", "compat", "testing")  # written against the public API, as others' programs are


def layer_of(module: str) -> str | None:
    """The folder of a dotted module name below `tactician`; "" for the package itself."""
    parts = module.split(".")
    if parts[0] != "tactician":
        return None
    return parts[1] if len(parts) > 1 and parts[1] in ORDER else ""


def imports(tree: ast.AST, module: str, is_package: bool) -> list[tuple[int, str]]:
    """(line, absolute dotted name) of every import in a module, those inside functions too."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = module.split(".")
                up = up[: len(up) - node.level + is_package]
                base = ".".join([*up, base] if base else up)
            found += [(node.lineno, f"{base}.{alias.name}") for alias in node.names]
    return found


def upward(module: str, source: str, is_package: bool = False) -> list[str]:
    """Imports in `source` that go against the order, as 'line N imports X'."""
    home = layer_of(module)
    if not home:
        return []  # the package's own modules are the public face: they may use everything
    return [
        f"line {line} imports {name}"
        for line, name in imports(ast.parse(source), module, is_package)
        if (layer := layer_of(name)) is not None
        and (home not in USERS if layer == "" else ORDER.index(layer) > ORDER.index(home))
    ]


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("folder", ORDER)
def test_imports_point_down(folder: str) -> None:
    bad = []
    for path in sorted((PACKAGE / folder).rglob("*.py")):
        is_package = path.name == "__init__.py"
        parts = path.relative_to(ROOT).with_suffix("").parts
        module = ".".join(parts[:-1] if is_package else parts)
        found = upward(module, path.read_text(), is_package)
        bad += [f"{path.relative_to(ROOT)}: {line}" for line in found]
    below = ORDER[: ORDER.index(folder) + 1]
    assert not bad, f"{folder} may import only from {below}:\n" + "\n".join(bad)


def test_every_folder_is_in_the_order() -> None:
    folders = {p.parent.name for p in PACKAGE.glob("*/__init__.py")}
    assert folders <= set(ORDER), "docs/architecture.md must say where these stand"


@pytest.mark.parametrize(
    ("module", "source", "count"),
    [
        ("tactician.ir.graph", "from . import dims\nfrom ..support import errors", 0),
        ("tactician.ir.graph", "from ..ops.registry import get", 1),
        ("tactician.ir.graph", "def f():\n    import tactician.builder.compile", 1),
        ("tactician.ir.graph", "import tactician as trt", 1),
        ("tactician.ir.graph", "from .. import passes", 1),
        ("tactician.targets.cpu.gemm", "from ...regions.region import Region", 0),
        ("tactician.targets.cpu.gemm", "from ...runtime import engine", 1),
        ("tactician.cli.run", "import tactician as trt", 0),
        ("tactician.onnx_backend", "from .runtime import engine", 0),
    ],
)
def test_the_rule_itself(module: str, source: str, count: int) -> None:
    assert len(upward(module, source)) == count
