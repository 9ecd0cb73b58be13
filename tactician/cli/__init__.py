"""The command line: one file per verb. `main` is the console script `tactician`."""

from __future__ import annotations


def main() -> None:
    """Run the command line with the arguments of this process."""
    from .app import app

    app(prog_name="tactician")
