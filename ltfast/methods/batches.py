"""Batches for the engine's stages, from `ltfast.data`."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ltfast.data import DataBundle, NumberedBatches, SeededViews, eval_transform, make_sampler
from ltfast.data.seeding import derive_seed
from ltfast.errors import SettingError
from ltfast.methods.context import BuildContext
from ltfast.methods.loader import Loader


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
            raise SettingError("batch_size", f"at most {share}, the images of an epoch", batches.batch_size)
        self.batches = batches
        self.loader = Loader(
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


def train_batches(
    bundle: DataBundle,
    transforms: Sequence[Callable[..., Any]],
    *,
    batch_size: int,
    context: BuildContext,
    sampler: str = "instance",
    sampler_options: Mapping[str, Any] | None = None,
    start_draw: int = 0,
) -> TrainBatches:
    """This process's full batches of augmented training images.

    Args:
        bundle: the data.
        transforms: one a view.
        batch_size: images a batch and process.
        context: the run's seed and workers, and this process.
        sampler, sampler_options: see `ltfast.data.make_sampler`.
        start_draw: where the draws of the stage before end; see `NumberedBatches`.

    Raises:
        ValueError: there is not one batch in an epoch.
    """
    indices = make_sampler(
        sampler,
        bundle.train.labels,
        num_classes=bundle.num_classes,
        seed=context.run.seed,
        rank=context.rank,
        world_size=context.world_size,
        **(sampler_options or {}),
    )
    views = SeededViews(bundle.train, transforms, seed=context.run.seed)
    batches = NumberedBatches(indices, batch_size, drop_last=True, start_draw=start_draw)
    return TrainBatches(views, batches, workers=context.run.workers)


def evaluation_batches(
    bundle: DataBundle,
    image_size: int,
    *,
    context: BuildContext,
    augmented: Sequence[Callable[..., Any]] = (),
) -> Iterable[Sequence[Tensor]]:
    """This process's share of the test images in batches `(images, *views, labels)`: `views` are augmented, one for
    each of `augmented`, and the same at every evaluation."""
    keys = [(index, index) for index in range(context.rank, len(bundle.test), context.world_size)]
    views = SeededViews(bundle.test, [eval_transform(bundle, image_size), *augmented], seed=0)
    return Loader(views, context.test_batch_size, sampler=keys, num_workers=context.run.workers)


def class_batches(
    bundle: DataBundle,
    classes: Sequence[int],
    image_size: int,
    *,
    most: int,
    batch_size: int,
    context: BuildContext,
) -> Iterable[Sequence[Tensor]]:
    """Training images of some classes as test images are shown, in batches `(images, labels)`: this process's share of
    at most `most` of them, chosen at random by the run's seed."""
    members = torch.isin(bundle.train.labels, torch.tensor(classes, dtype=torch.int64)).nonzero().flatten()
    generator = torch.Generator().manual_seed(derive_seed("class_batches", context.run.seed))
    chosen = members[torch.randperm(len(members), generator=generator)[:most]].tolist()
    views = SeededViews(bundle.train, [eval_transform(bundle, image_size)], seed=0)
    keys = [(index, index) for index in chosen[context.rank :: context.world_size]]
    return Loader(views, batch_size, sampler=keys, num_workers=context.run.workers)
