"""The support table of ATen overloads, for the docs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .table import complex_table, table

_TITLES = {
    "pointwise": "Arithmetic and other functions of elements", "activation": "Activations",
    "shape": "Views, movement, joining", "indexing": "Indexing", "create": "Creation",
    "reduce": "Reductions, scans, sorting", "norm": "Normalizations", "pool": "Pooling",
    "contraction": "Products, convolutions, attention", "image": "Images",
    "recurrent": "Recurrent modules", "distance": "Distances",
    "data": "Results whose size or value data decide", "random": "Random numbers",
    "complexes": "Real numbers where complex ones are expected",
    "prims": "Primitives, into which torch decomposes some operators",
}  # fmt: skip


def page(samples: Mapping[str, Any] | None = None) -> str:
    """docs/torch-operators.md.

    Args:
        samples: What became of torch's own samples of its operators, by operator and type.
    """
    rows = sorted(table().values(), key=lambda r: str(r.target))
    lines = [
        "# PyTorch operators", "",
        "Written by `scripts/support_matrix.py` from the importer table.", "",
        f"`torch2trt` translates these {len(rows)} overloads directly, and whatever torch "
        "decomposes into them.", "",
        "Sizes may be symbolic unless a note says otherwise. Sizes may depend on data. Complex "
        "numbers are pairs of", "real tensors in the engine; the last table lists what takes "
        "them. Random numbers are the engine's own:",
        "`torch.manual_seed` has no effect on them, unless `partition=True` leaves them to torch.",
        "",
    ]
    for family in sorted({r.family for r in rows}, key=lambda f: _TITLES[f]):
        lines += [f"## {_TITLES[family]}", "", "| overload | note |", "| --- | --- |"]
        lines += [f"| `{r.target}` | {r.note} |" for r in rows if r.family == family]
        lines.append("")
    wide = sorted(complex_table().values(), key=lambda r: str(r.target))
    lines += ["## Of complex numbers", "", "| overload | note |", "| --- | --- |",
              *(f"| `{r.target}` | {r.note} |" for r in wide), ""]
    if samples:
        lines += _samples(samples)
    return "\n".join(lines)


def _samples(samples: Mapping[str, Any]) -> list[str]:
    """The table of torch's operator samples."""
    kinds = ("float32", "float16")
    totals = {k: [0, 0] for k in kinds}
    rows = []
    for name, row in sorted(samples.items()):
        cells = []
        for k in kinds:
            agree, differ = (row.get(k, {}).get(what, 0) for what in ("agrees", "differs"))
            totals[k][0] += agree
            totals[k][1] += agree + differ
            cells.append(f"{agree} of {agree + differ}" if agree + differ else "")
        if any(cells) or "why" in row:
            rows.append(f"| `{name}` | {cells[0]} | {cells[1]} | {row.get('why', '')} |")
    said = ", ".join(f"{a} of {n} in {k} ({a / n:.1%})" for k, (a, n) in totals.items() if n)
    return [
        "## torch's operator samples", "",
        "`tests/pytorch/test_torch_samples.py` compares up to 12 of torch's own samples of each "
        f"operator with eager torch. Of the supported ones, {said} agree.", "",
        "| operator | float32 | float16 | not supported |", "| --- | --- | --- | --- |", *rows, "",
    ]
