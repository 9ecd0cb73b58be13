"""Writes tests/api/inventory.txt: the classes and members of TensorRT's Python API, names only.

    python scripts/api_inventory.py FOLDER

FOLDER holds `tensorrt10.json`, `tensorrt11_additions.json` and `legacy.json`. One class a line:

    class Name: member member …
    enum Name: VALUE …
    plugin Name: member …       (below `tensorrt.plugin`)
    functions: name …
    constants: name …
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

TARGET = Path(__file__).resolve().parent.parent / "tests" / "api" / "inventory.txt"
SOURCES = ("tensorrt10.json", "tensorrt11_additions.json", "legacy.json")


def inventory(folder: Path) -> str:
    """The inventory's text."""
    kinds: dict[str, str] = {}
    members: dict[str, set[str]] = {}
    for source in SOURCES:
        data: dict[str, Any] = json.loads((folder / source).read_text())
        for name, entry in data.items():
            if isinstance(entry, dict) and "kind" in entry and "members" in entry:
                kinds.setdefault(name, entry["kind"])
                members.setdefault(name, set()).update(entry["members"])
        for key in ("functions", "constants"):
            kinds[key] = ""
            members.setdefault(key, set()).update(data.get(key, ()))
        for name, entry in (data.get("plugin_submodule") or {}).items():
            kinds[f"plugin.{name}"] = "plugin"
            members[f"plugin.{name}"] = set(entry["members"])
    lines = []
    for name in sorted(members, key=lambda n: (kinds[n], n)):
        shown = name.removeprefix("plugin.")
        head = f"{kinds[name]} {shown}" if kinds[name] else shown
        lines.append(f"{head}: {' '.join(sorted(members[name]))}".rstrip())
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    TARGET.write_text(inventory(Path(sys.argv[1])))
