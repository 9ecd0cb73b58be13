"""The support table of ATen overloads, for the docs."""

from __future__ import annotations

from .table import table

_TITLES = {
    "pointwise": "Arithmetic and other functions of elements", "activation": "Activations",
    "shape": "Views, movement, joining", "indexing": "Indexing", "create": "Creation",
    "reduce": "Reductions, scans, sorting", "norm": "Normalizations", "pool": "Pooling",
    "contraction": "Products, convolutions, attention", "image": "Images",
    "recurrent": "Recurrent modules",
}  # fmt: skip


def page() -> str:
    """docs/torch-operators.md."""
    rows = sorted(table().values(), key=lambda r: str(r.target))
    lines = [
        "# PyTorch operators", "",
        "Written by `scripts/support_matrix.py` from the importer table.", "",
        f"`torch2trt` translates these {len(rows)} overloads directly, and whatever torch "
        "decomposes into them.", "",
        "Sizes may be symbolic unless a note says otherwise. Complex numbers, random numbers and "
        "results whose", "size depends on data are not supported.", "",
    ]
    for family in sorted({r.family for r in rows}, key=lambda f: _TITLES[f]):
        lines += [f"## {_TITLES[family]}", "", "| overload | note |", "| --- | --- |"]
        lines += [f"| `{r.target}` | {r.note} |" for r in rows if r.family == family]
        lines.append("")
    return "\n".join(lines)
