"""Batches for the engine's stages, from `ltfast.data`."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ltfast.data import ImageDataset, NumberedBatches, SeededViews


class TrainBatches:
    """Training batches `(view_1, ..., view_k, labels)`, random as a function of (seed, epoch, place in it) alone.

    Args:
        views: the augmented images.
        batches: this process's (draw, index) pairs.
        workers: processes that load images; 0 loads in this one.

    Raises:
        ValueError: there is not one batch in an epoch.
    """

    def __init__(self, views: SeededViews, batches: NumberedBatches, *, workers: int) -> None:
        if len(batches) == 0:
            share = len(batches.sampler)
            raise ValueError(f"batch_size: expected at most {share}, the images of an epoch, got {batches.batch_size}")
        self.batches = batches
        self.loader: DataLoader[Any] = DataLoader(
            views,
            batch_sampler=batches,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, epoch: int, skip: int) -> Iterator[Any]:
        """Epoch `epoch`'s batches without the first `skip`."""
        self.batches.set_epoch(epoch, skip=skip)
        return iter(self.loader)

    def close(self) -> None:
        """End the worker processes."""
        self.loader._iterator = None  # the only one that holds them; there is no public way


def evaluation_batches(
    dataset: ImageDataset,
    transforms: Sequence[Callable[..., Any]],
    *,
    batch_size: int,
    workers: int,
    rank: int = 0,
    world_size: int = 1,
) -> Iterable[Sequence[Tensor]]:
    """Every `world_size`-th test image, from `rank` on, in batches `(view_1, ..., view_k, labels)`."""
    keys = [(index, index) for index in range(rank, len(dataset), world_size)]
    return DataLoader(SeededViews(dataset, transforms, seed=0), batch_size, sampler=keys, num_workers=workers)
