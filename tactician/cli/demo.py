"""`tactician demo`: the shipped LeNet reads handwritten digits."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .common import Debug, Json, Threads, Verbose, console, emit, logger, verb

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console

    from .measure import Timing

DATA = Path(__file__).resolve().parent.parent / "data"
MODEL = DATA / "lenet_digits.onnx"
SHADES = " ░▒▓█"


@dataclass(frozen=True)
class Result:
    """What one runtime made of the held-out images.

    Attributes:
        probabilities: [images, 10].
        correct: How many images it read right.
        ready: Seconds from the model file to a runtime that can run.
        one: Timing of a single image; `batch`: of `batch_size` images.
    """

    probabilities: np.ndarray
    correct: int
    ready: float
    one: Timing
    batch: Timing


@verb
def command(
    samples: Annotated[int, typer.Option("--samples", "-n", min=0, help="Images to show.")] = 10,
    seed: Annotated[int, typer.Option("--seed", help="Which images to show.")] = 0,
    batch: Annotated[int, typer.Option("--batch", min=1, max=360, help="Larger batch timed.")] = 64,
    threads: Threads = 1,
    verbose: Verbose = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Let the LeNet that comes with tactician read handwritten digits.

    Shows images with what was read, accuracy on the held-out images, latency, and the same by
    onnxruntime if that is installed.
    """
    import numpy as np

    with np.load(DATA / "digits_test.npz") as data:
        images, labels = data["images"], data["labels"]
    x = np.ascontiguousarray(images[:, None].astype(np.float32) / 255)
    out = console()
    if not json:
        out.print(f"[bold]LeNet[/bold], {MODEL.stat().st_size:,} bytes of ONNX: building …")
    results = measure(x, labels, batch, threads, logger(verbose), json)
    if json:
        emit(report(results, len(labels), batch))
        return
    ours = results["tactician"]
    chosen = np.random.default_rng(seed).permutation(len(labels))[:samples]
    show_images(out, images[chosen], labels[chosen], ours.probabilities[chosen])
    show_table(out, results, len(labels), batch)


def measure(
    x: np.ndarray, labels: np.ndarray, batch: int, threads: int, log: Any, quiet: bool
) -> dict[str, Result]:
    """Run the held-out images and take times, by tactician and by onnxruntime if installed."""
    from ..runtime.easy import Engine
    from .building import Options, open_engine
    from .measure import alternate, engine_call, onnxruntime_call

    one, many = {"image": x[:1]}, {"image": x[:batch]}
    probabilities, ready, calls = {}, {}, {}
    start = time.perf_counter()
    options = Options(
        min_shapes="1x1x28x28",
        opt_shapes="1x1x28x28",
        max_shapes=f"{max(batch, len(x))}x1x28x28",
        threads=threads,
    )
    engine = open_engine(MODEL, options, log, quiet)
    ready["tactician"] = time.perf_counter() - start
    probabilities["tactician"] = Engine(engine)({"image": x})["probabilities"]
    calls["tactician"] = [engine_call(engine, feeds) for feeds in (one, many)]
    if util.find_spec("onnxruntime"):
        start = time.perf_counter()
        probabilities["onnxruntime"] = by_onnxruntime(x, threads)
        ready["onnxruntime"] = time.perf_counter() - start
        calls["onnxruntime"] = [onnxruntime_call(str(MODEL), f, threads) for f in (one, many)]
    singles = alternate({name: c[0] for name, c in calls.items()})
    batches = alternate({name: c[1] for name, c in calls.items()})
    return {
        name: Result(
            p, int((p.argmax(1) == labels).sum()), ready[name], singles[name], batches[name]
        )
        for name, p in probabilities.items()
    }


def by_onnxruntime(x: np.ndarray, threads: int) -> np.ndarray:
    """Probabilities by onnxruntime."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(str(MODEL), options, providers=["CPUExecutionProvider"])
    return session.run(["probabilities"], {"image": x})[0]


def report(results: dict[str, Result], total: int, batch: int) -> dict[str, Any]:
    """The numbers, ready for JSON."""
    return {
        name: {
            "correct": r.correct,
            "images": total,
            "accuracy": r.correct / total,
            "ready_seconds": round(r.ready, 3),
            "microseconds": {"1": asdict(r.one), str(batch): asdict(r.batch)},
        }
        for name, r in results.items()
    }


def picture(image: np.ndarray) -> list[str]:
    """A 28x28 image as 7 lines of 14 block characters, darker where there is more ink."""
    cells = image.reshape(7, 4, 14, 2).mean((1, 3))
    return ["".join(SHADES[min(4, int(v) * 5 // 256)] for v in row) for row in cells]


def show_images(
    out: Console, images: np.ndarray, labels: np.ndarray, probabilities: np.ndarray
) -> None:
    """Print images side by side, as many as fit, with what was read below each."""
    from rich.markup import escape

    per_row = max(1, out.width // 16)
    for start in range(0, len(images), per_row):
        part = range(start, min(start + per_row, len(images)))
        for lines in zip(*(picture(images[i]) for i in part), strict=True):
            out.print(escape("  ".join(lines)), no_wrap=True)
        words = []
        for i in part:
            read = int(probabilities[i].argmax())
            text = f"{read}  {probabilities[i, read]:.0%}"
            right = read == labels[i]
            text += "" if right else f" not {labels[i]}"
            words.append(f"[{'green' if right else 'bold red'}]{text:^14}[/]")
        out.print("  ".join(words), no_wrap=True)
        out.print()


def show_table(out: Console, results: dict[str, Result], total: int, batch: int) -> None:
    """Print accuracy and latency of each runtime."""
    from rich.table import Table

    table = Table()
    for column in ("", "held-out images", "ready after", "1 image", f"{batch} images"):
        table.add_column(column, justify="right" if column else "left")
    for name, r in results.items():
        table.add_row(
            name,
            f"{r.correct} of {total} right ({r.correct / total:.1%})",
            f"{r.ready:.2f} s",
            f"{r.one.median:,.1f} µs",
            f"{r.batch.median:,.1f} µs",
        )
    out.print(table)
    if "onnxruntime" not in results:
        out.print("install onnxruntime beside tactician to see the same by it", style="dim")
    else:
        both = [results[n].probabilities for n in ("tactician", "onnxruntime")]
        gap = float(abs(both[0] - both[1]).max())
        out.print(f"greatest difference between the two in any probability: {gap:.1e}")
