"""Progress bars of a build, fed through TensorRT's `IProgressMonitor`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

import tactician as trt

if TYPE_CHECKING:
    from rich.console import Console


class Bars(trt.IProgressMonitor):  # type: ignore[misc]
    """One bar per phase; a phase inside another is indented. Stops the build on Ctrl-C."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}
        self._depth: dict[str, int] = {}
        self._go_on = True

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        """Add a bar of `num_steps` steps below its parent's."""
        depth = self._depth.get(parent_phase or "", -1) + 1
        self._depth[phase_name] = depth
        label = "  " * depth + phase_name
        self._tasks[phase_name] = self._progress.add_task(label, total=num_steps)

    def step_complete(self, phase_name: str, step: int) -> bool:
        """Move a bar on. False asks the builder to stop."""
        if phase_name in self._tasks:
            self._progress.update(self._tasks[phase_name], completed=step + 1)
        return self._go_on

    def phase_finish(self, phase_name: str) -> None:
        """Take a finished bar away."""
        task = self._tasks.pop(phase_name, None)
        if task is not None:
            self._progress.remove_task(task)

    def stop(self) -> None:
        """Make the next step end the build."""
        self._go_on = False
