"""The training, validation and test batches of the methods, made with `ltfast.data`."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ltfast.data import (
    DataBundle,
    ImageDataset,
    NumberedBatches,
    PatchViews,
    SeededViews,
    device_views,
    eval_transform,
    make_sampler,
)
from ltfast.data.seeding import derive_seed
from ltfast.data.steps import Augmentation
from ltfast.engine import Batches
from ltfast.errors import SettingError
from ltfast.methods.context import BuildContext
from ltfast.methods.loader import Loader


class TrainBatches(Batches):
    """Training batches `(view_1, ..., view_k, labels)`, whose randomness depends on the seed, the epoch and the place
    in the epoch alone.

    Args:
        views: the augmented images, from `SeededViews` or `device_views`.
        batches: this process's (draw, index) pairs.
        workers: processes that load images; with 0, this process loads them.
        on_device: makes the views of a batch from its parts without the labels, on their device; None means that the
            loaded batches have the views.

    Raises:
        ValueError: an epoch has no full batch.
    """

    def __init__(
        self, views: Dataset[Any], batches: NumberedBatches, *, workers: int, on_device: nn.Module | None = None
    ) -> None:
        if len(batches) == 0:
            share = len(batches.sampler)
            raise SettingError("batch_size", f"at most {share}, the images of an epoch", batches.batch_size)
        self.batches = batches
        self.on_device = on_device
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
        """The batches of epoch `epoch` without the first `skip`."""
        self.batches.set_epoch(epoch, skip=skip)
        return iter(self.loader)

    def finish(self, batch: Any) -> Any:
        if self.on_device is None:
            return batch
        *parts, labels = batch
        return [*self.on_device.to(labels.device)(parts), labels]

    def close(self) -> None:
        """End the worker processes."""
        self.loader._iterator = None  # it holds the processes, and there is no public way to end them


def train_batches(
    bundle: DataBundle,
    transforms: Sequence[Augmentation | PatchViews],
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
        transforms: one for each view.
        batch_size: images per batch and process.
        context: has the run's seed, workers and place of augmentation, and this process's rank.
        sampler, sampler_options: see `ltfast.data.make_sampler`.
        start_draw: the number of draws of all stages before; see `NumberedBatches`.

    Raises:
        ValueError: an epoch has no full batch.
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
    batches = NumberedBatches(indices, batch_size, drop_last=True, start_draw=start_draw)
    run = context.run
    if run.augment_on == "device":
        views, on_device = device_views(bundle.train, transforms, seed=run.seed)
        return TrainBatches(views, batches, workers=run.workers, on_device=on_device)
    return TrainBatches(SeededViews(bundle.train, transforms, seed=run.seed), batches, workers=run.workers)


def evaluation_batches(
    bundle: DataBundle,
    image_size: int,
    *,
    context: BuildContext,
    augmented: Sequence[Callable[..., Any]] = (),
) -> Iterable[Sequence[Tensor]]:
    """This process's share of the test images, in batches `(images, *views, labels)`. There is an augmented view for
    each transform in `augmented`; the views are the same at every evaluation."""
    return share(bundle.test, [eval_transform(bundle, image_size), *augmented], context)


def validation_batches(
    bundle: DataBundle,
    image_size: int,
    *,
    context: BuildContext,
    augmented: Sequence[Callable[..., Any]] = (),
) -> Iterable[Sequence[Tensor]] | None:
    """This process's share of the validation images, in batches as those of `evaluation_batches`; None without any."""
    if bundle.validation is None:
        return None
    return share(bundle.validation, [eval_transform(bundle, image_size), *augmented], context)


def share(images: ImageDataset, transforms: Sequence[Callable[..., Any]], context: BuildContext) -> Loader:
    """This process's share of some images, in batches `(view, ..., labels)` with a view for each transform."""
    keys = [(index, index) for index in range(context.rank, len(images), context.world_size)]
    views = SeededViews(images, transforms, seed=0)
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
    """Training images of some classes, transformed like test images, in batches `(images, labels)`: this process's
    share of at most `most` images, which the run's seed chooses at random."""
    members = torch.isin(bundle.train.labels, torch.tensor(classes, dtype=torch.int64)).nonzero().flatten()
    generator = torch.Generator().manual_seed(derive_seed("class_batches", context.run.seed))
    chosen = members[torch.randperm(len(members), generator=generator)[:most]].tolist()
    views = SeededViews(bundle.train, [eval_transform(bundle, image_size)], seed=0)
    keys = [(index, index) for index in chosen[context.rank :: context.world_size]]
    return Loader(views, batch_size, sampler=keys, num_workers=context.run.workers)
