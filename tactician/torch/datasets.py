"""Recorded calls of a module: for calibration, and to find out how shapes vary.

    data = ListDataset()
    with data.record(model):
        for x in images:
            model(x)
    engine = torch2trt(model, data)
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

from ..support.errors import UsageError


class Dataset:
    """Calls of a module, each the positional arguments of one: torch2trt's class of that name."""

    def __len__(self) -> int:
        raise NotImplementedError(f"{type(self).__name__} must say how many calls it has")

    def __getitem__(self, index: int) -> Any:
        raise NotImplementedError(f"{type(self).__name__} must give the arguments of a call")

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))

    @property
    def num_inputs(self) -> int:
        """Tensors in a call."""
        return len(self._shapes()[0])

    def _shapes(self) -> list[list[tuple[int, ...]]]:
        calls = [[tuple(t.shape) for t in pytree.tree_leaves(call) if isinstance(t, torch.Tensor)]
                 for call in self]
        if not calls:
            raise UsageError("the data set is empty; record calls first")
        ranks = {tuple(len(s) for s in call) for call in calls}
        if len(ranks) > 1:
            raise UsageError(f"calls have tensors of different ranks: {sorted(ranks)}")
        return calls

    def shapes(self, flat: bool = True) -> list[list[tuple[int, ...]]]:
        """The shapes of each tensor over all calls."""
        return [list(s) for s in zip(*self._shapes(), strict=True)]

    def min_shapes(self, flat: bool = True) -> list[tuple[int, ...]]:
        """The least size met in each dimension, by tensor."""
        return [tuple(map(min, zip(*s, strict=True))) for s in self.shapes()]

    def max_shapes(self, flat: bool = True) -> list[tuple[int, ...]]:
        """The greatest size met in each dimension, by tensor."""
        return [tuple(map(max, zip(*s, strict=True))) for s in self.shapes()]

    def median_numel_shapes(self, flat: bool = True) -> list[tuple[int, ...]]:
        """The shape of middle size, by tensor."""
        def size(shape: tuple[int, ...]) -> int:
            return int(torch.Size(shape).numel())

        return [sorted(s, key=size)[len(s) // 2] for s in self.shapes()]

    def insert(self, item: Any) -> None:
        """Adds a call."""
        raise NotImplementedError(f"{type(self).__name__} can't record calls")

    def record(self, module: torch.nn.Module) -> DatasetRecorder:
        """Adds the calls of a module, within ``with``."""
        return DatasetRecorder(self, module)


class DatasetRecorder:
    """Adds every call of a module to a data set."""

    def __init__(self, dataset: Dataset, module: torch.nn.Module):
        self.dataset, self.module = dataset, module
        self._handle: Any = None

    def __enter__(self) -> DatasetRecorder:
        def note(module: Any, args: Any, kwargs: Any) -> None:
            if kwargs:
                raise UsageError("only positional arguments can be recorded")
            self.dataset.insert(pytree.tree_map_only(torch.Tensor, torch.clone, args))

        self._handle = self.module.register_forward_pre_hook(note, with_kwargs=True)
        return self

    def __exit__(self, *exc: Any) -> None:
        self._handle.remove()


class ListDataset(Dataset):
    """Calls in memory."""

    def __init__(self, items: Sequence[Any] = ()):
        self.items = list(items)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]

    def insert(self, item: Any) -> None:
        self.items.append(item)


class TensorBatchDataset(Dataset):
    """Calls as rows of tensors: the first dimension counts them."""

    def __init__(self, tensors: Sequence[torch.Tensor] | None = None):
        self.tensors = None if tensors is None else list(tensors)

    def __len__(self) -> int:
        return 0 if self.tensors is None else len(self.tensors[0])

    def __getitem__(self, index: int) -> Any:
        if self.tensors is None or not 0 <= index < len(self):
            raise IndexError(f"call {index} of {len(self)}")
        return [t[index : index + 1] for t in self.tensors]

    def insert(self, item: Any) -> None:
        if not all(isinstance(t, torch.Tensor) for t in item):
            raise UsageError("TensorBatchDataset takes calls of tensors alone")
        self.tensors = list(item) if self.tensors is None else [
            torch.cat([a, b]) for a, b in zip(self.tensors, item, strict=True)]


class FolderDataset(Dataset):
    """Calls as files of a folder."""

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("input_*.pth"))

    def __len__(self) -> int:
        return len(self._files())

    def __getitem__(self, index: int) -> Any:
        return torch.load(self._files()[index])

    def insert(self, item: Any) -> None:
        torch.save(item, self.folder / f"input_{len(self):06d}.pth")
