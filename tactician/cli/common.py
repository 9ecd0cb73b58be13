"""What the verbs share: error handling, option types, the logger, loading engines."""

from __future__ import annotations

import functools
import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

if TYPE_CHECKING:
    from rich.console import Console

    import tactician as trt

F = TypeVar("F", bound=Callable[..., Any])

Json = Annotated[bool, typer.Option("--json", help="Write JSON to standard output instead.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show all messages.")]
Threads = Annotated[
    int, typer.Option("--threads", "-t", min=0, help="Most threads to use; 0 means all cores.")
]
Model = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL",
        exists=True,
        dir_okay=False,
        help="A model (ONNX, Caffe prototxt, TensorFlow .pb, .uff), or a plan built before.",
    ),
]
Shapes = Annotated[
    str,
    typer.Option(
        "--shapes",
        metavar="NAME:2x3x4,…",
        help="Shapes of dynamic inputs; a shape alone if there is one input.",
    ),
]


class Failure(Exception):
    """What the user asked for could not be done; the message says why and what helps."""


def verb(function: F) -> F:
    """Turn exceptions of a verb into a message on standard error and exit code 1."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except KeyboardInterrupt:
            typer.echo("interrupted", err=True)
            raise typer.Exit(130) from None
        except Exception as error:
            if kwargs.get("debug"):
                traceback.print_exc()
            else:
                kind = "" if isinstance(error, Failure) else f"{type(error).__name__}: "
                typer.echo(f"error: {kind}{error}", err=True)
            raise typer.Exit(1) from None

    return wrapper  # type: ignore[return-value]


def emit(value: Any) -> None:
    """Write one JSON document to standard output."""
    typer.echo(json.dumps(value, indent=2, default=_plain))


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    return str(value)


def console(stderr: bool = False) -> Console:
    """A rich console on standard output or standard error."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, soft_wrap=False)


def logger(verbose: bool) -> trt.ILogger:
    """A logger that writes to standard error and keeps errors for messages."""
    import tactician as trt

    class CliLogger(trt.ILogger):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            serious = severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR)
            if serious:
                self.errors.append(message)
            if verbose or severity == trt.ILogger.WARNING:
                print(f"[{severity.name.lower()}] {message}", file=sys.stderr)

    return CliLogger()


def parse_shapes(text: str, names: list[str], option: str = "--shapes") -> dict[str, list[int]]:
    """Read ``NAME:2x3,OTHER:4``; a lone shape stands for the only input.

    Args:
        text: What the user wrote; empty gives no shapes.
        names: Names of the model's inputs.
        option: For messages.

    Raises:
        typer.BadParameter: It can't be read, or names no input.
    """
    shapes: dict[str, list[int]] = {}
    for part in filter(None, text.split(",")):
        name, colon, dims = part.rpartition(":")
        if not colon:
            if len(names) != 1:
                raise typer.BadParameter(
                    f"{option} {part!r}: say which input it is for, as NAME:{dims}; "
                    f"inputs are {', '.join(names)}"
                )
            name = names[0]
        if name not in names:
            raise typer.BadParameter(
                f"{option}: no input is named {name!r}; inputs are {', '.join(names)}"
            )
        try:
            shapes[name] = [int(d) for d in dims.lower().split("x")] if dims else []
        except ValueError:
            raise typer.BadParameter(
                f"{option}: {dims!r} is not a shape such as 1x3x224x224"
            ) from None
    return shapes


def is_plan(path: Path) -> bool:
    """Whether a file is a plan, by what its first bytes say."""
    from ..plan.container import MAGIC

    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC

