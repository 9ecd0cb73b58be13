"""A process that compiles Triton text to GPU code: requests come in on stdin, replies go out on
stdout, both pickled behind an 8-byte length.

It runs as a script, knows nothing of tactician and lives in a process of its own: Triton then
needs no lock with its callers, a crash of the compiler costs one kernel, and the process that
builds never imports Triton.
"""

from __future__ import annotations

import linecache
import os
import pickle
import re
import shutil
import struct
import sys
import tempfile
import traceback
from typing import Any, BinaryIO

HEADER = "import triton\nimport triton.language as tl\n"


def with_header(source: str) -> str:
    """The text with the imports that kernels may leave out."""
    return source if "import triton.language as tl" in source else f"{HEADER}\n{source}"


def define(source: str, symbol: str, name: str) -> Any:
    """Runs kernel text as a module of its own and returns its function ``symbol``. Triton reads
    functions' text back, so it is put where `inspect` finds it."""
    text = with_header(source)
    filename = f"<tactician {name}>"
    linecache.cache[filename] = len(text), None, text.splitlines(True), filename
    space: dict[str, Any] = {"__name__": f"tactician_kernel_{name}"}
    exec(compile(text, filename, "exec"), space)
    if symbol not in space:
        raise NameError(f"the kernel's text does not define {symbol!r}")
    return space[symbol]


def compile_kernel(request: dict[str, Any]) -> dict[str, Any]:
    """Compiles one kernel.

    Args:
        request: ``source``, ``symbol``, ``types`` (Triton types of all parameters), ``arch``
            (90 for sm_90), ``warps``, ``stages``, ``options`` (a dict), ``name``.

    Returns:
        ``cubin``, ``entry`` (its function), ``shared`` bytes, ``threads``, ``params`` (how many
        parameters the function has), ``cluster`` blocks, scratch sizes, ``pdl``, ``ptx`` if asked.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if request.get("warm"):
        return {}
    fn = define(request["source"], request["symbol"], request["name"])
    names = list(fn.arg_names)
    types = request["types"]
    if len(names) != len(types):
        raise TypeError(
            f"{request['symbol']} has {len(names)} parameters ({', '.join(names)}), the launch "
            f"gives {len(types)} types"
        )
    attrs = {(i,): [["tt.divisibility", 16]] for i, t in enumerate(types) if t.startswith("*")}
    src = ASTSource(fn, signature=dict(zip(names, types, strict=True)), constexprs={}, attrs=attrs)
    options = {"num_warps": request["warps"], "num_stages": request["stages"],
               "enable_fp_fusion": True}  # fmt: skip
    options.update(request["options"])
    target = GPUTarget("cuda", request["arch"], 32)
    out = triton.compile(src, target=target, options=options)
    return describe(out, request)


def describe(out: Any, request: dict[str, Any]) -> dict[str, Any]:
    """What a launch needs to know of a compiled kernel, from its metadata and PTX (which says
    what the function really takes, whatever Triton's version adds)."""
    m, ptx = out.metadata, out.asm["ptx"]
    head = re.search(r"\.entry\s+([\w$]+)\s*\((.*?)\)(.*?)\{", ptx, re.S)
    if head is None:
        raise ValueError("the PTX has no entry")
    threads = re.search(r"\.(?:reqntid|maxntid)\s+(\d+)", head.group(3))
    cluster = re.search(r"\.reqnctapercluster\s+(\d+)", head.group(3))
    ctas = int(getattr(m, "num_ctas", 1) or 1)
    return {
        "cubin": out.asm["cubin"],
        "entry": head.group(1),
        "shared": int(m.shared),
        "threads": int(threads.group(1)) if threads else 32 * int(m.num_warps),
        "params": len(re.findall(r"\.param\b", head.group(2))),
        "cluster": int(cluster.group(1)) if cluster else ctas,
        "global_scratch": int(getattr(m, "global_scratch_size", 0) or 0) * ctas,
        "profile_scratch": int(getattr(m, "profile_scratch_size", 0) or 0) * ctas,
        "pdl": bool(getattr(m, "launch_pdl", False)),
        "cooperative": bool(getattr(m, "launch_cooperative_grid", False)),
        "ptx": ptx if request.get("keep_ptx") else "",
    }


def _read(stream: BinaryIO) -> Any:
    head = stream.read(8)
    if len(head) < 8:
        return None
    (size,) = struct.unpack("<Q", head)
    return pickle.loads(stream.read(size))


def _write(stream: BinaryIO, message: Any) -> None:
    data = pickle.dumps(message)
    stream.write(struct.pack("<Q", len(data)) + data)
    stream.flush()


def _reply(request: dict[str, Any], cache: str) -> dict[str, Any]:
    try:
        return compile_kernel(request)
    except BaseException as e:
        detail = traceback.format_exc() if request.get("trace") else ""
        return {"error": f"{type(e).__name__}: {e}", "detail": detail}
    finally:
        for entry in os.listdir(cache):  # Triton's own cache; the caller keeps one
            shutil.rmtree(os.path.join(cache, entry), ignore_errors=True)


def main() -> None:
    """Serves until stdin ends."""
    sys.path[:] = [p for p in sys.path if os.path.abspath(p or ".") != os.path.dirname(__file__)]
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what compilers print must not get between replies
    os.environ.pop("TRITON_INTERPRET", None)
    cache = tempfile.mkdtemp(prefix="tactician-triton-")
    os.environ["TRITON_CACHE_DIR"] = cache
    try:
        while (request := _read(sys.stdin.buffer)) is not None:
            _write(replies, _reply(request, cache))
    finally:
        shutil.rmtree(cache, ignore_errors=True)


if __name__ == "__main__":
    main()
