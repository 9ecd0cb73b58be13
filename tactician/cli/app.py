"""The `tactician` command: collects the verbs."""

from __future__ import annotations

from typing import Annotated

import typer

from . import bench, build, compare, demo, doctor, inspect, run

app = typer.Typer(
    name="tactician",
    help="Turn neural networks into engines for this machine, run and measure them.",
    epilog="Exit codes: 0 done, 1 it failed, 2 wrong use. Every verb has --json and --debug.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        import tactician

        typer.echo(f"tactician {tactician.__tactician_version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_version, is_eager=True),
    ] = False,
) -> None:
    pass


for _module in (build, run, bench, compare, inspect, demo, doctor):
    app.command(_module.__name__.rpartition(".")[2])(_module.command)
