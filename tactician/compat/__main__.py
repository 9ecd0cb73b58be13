"""``python -m tactician.compat PROGRAM [ARGS]`` runs a program written for TensorRT."""

from __future__ import annotations

import argparse
import os
import runpy
import shutil
import sys

from . import install


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tactician.compat",
        description="Run a Python program with tactician as its TensorRT.",
        epilog="PROGRAM is a file, a folder with __main__.py, or a Python command on PATH.")
    parser.add_argument("--trt-version", metavar="V",
                        help="version of TensorRT that the program sees (default 10.13)")
    parser.add_argument("--shadow", action="store_true",
                        help="replace tensorrt even where it is really installed")
    parser.add_argument("--cuda", choices=("auto", "host", "real"), default="auto",
                        help="CUDA's runtime: on host memory, the real one, or as the machine has")
    parser.add_argument("-m", dest="module", action="store_true",
                        help="PROGRAM is the name of a module")
    parser.add_argument("program", metavar="PROGRAM")
    parser.add_argument("args", nargs=argparse.REMAINDER, metavar="ARGS")
    return parser.parse_args(argv)


def _locate(program: str) -> str:
    """The file of a program.

    Raises:
        SystemExit: If there is none, or it is no Python.
    """
    if os.path.exists(program):
        return program
    found = shutil.which(program)
    if found is None:
        raise SystemExit(f"tactician.compat: no file and no command {program!r}")
    with open(found, "rb") as f:
        first = f.readline()
    if not (first.startswith(b"#!") and b"python" in first) and not found.endswith(".py"):
        raise SystemExit(f"tactician.compat: {found} is no Python program")
    return found


def main(argv: list[str] | None = None) -> None:
    """Runs a program as if it had been started by itself."""
    options = _arguments(sys.argv[1:] if argv is None else argv)
    cuda = {"auto": None, "host": True, "real": False}[options.cuda]
    try:
        install(shadow=options.shadow, cuda=cuda, version=options.trt_version)
    except ValueError as e:
        raise SystemExit(f"tactician.compat: {e}") from None
    sys.path[:] = [p for i, p in enumerate(sys.path) if i or p not in ("",)]
    if options.module:
        sys.argv = [options.program, *options.args]
        sys.path.insert(0, os.getcwd())
        runpy.run_module(options.program, run_name="__main__", alter_sys=True)
        return
    path = _locate(options.program)
    sys.argv = [path, *options.args]
    if not os.path.isdir(path):
        sys.path.insert(0, os.path.dirname(os.path.realpath(path)))
    runpy.run_path(path, run_name="__main__")


if __name__ == "__main__":
    main()
