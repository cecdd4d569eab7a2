"""Augmented views that depend on a seed and on nothing else.

sampler = make_sampler("class_balanced", train.labels, num_classes=10, seed=0)
batches = NumberedBatches(sampler, batch_size=256, drop_last=True)
loader = DataLoader(SeededViews(train, [weak, strong], seed=0), batch_sampler=batches, num_workers=8)
for epoch in range(first_epoch, epochs):
    batches.set_epoch(epoch, skip=steps_done if epoch == first_epoch else 0)
    for weak_view, strong_view, labels in loader: ...
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

from PIL import Image
from torch.utils.data import Dataset, Sampler

from ltfast.data.datasets import ImageDataset
from ltfast.data.samplers import DualSampler, EpochSampler
from ltfast.data.seeding import derive_seed, seeded
from ltfast.errors import SettingError


class SeededViews(Dataset[tuple[Any, ...]]):
    """A data set of augmented views, `(view_1, ..., view_k, label)`, whose key is a pair `(draw, index)`.

    `draw` numbers the draws of a whole training; all random numbers of a draw follow from it and the seed. So the views
    depend neither on the number of workers nor on what was loaded before, and a repeated image gets new views. The
    global generators of `random`, numpy and torch are left as they were.
    """

    def __init__(self, dataset: ImageDataset, transforms: Sequence[Callable[[Image.Image], Any]], *, seed: int) -> None:
        """
        Args:
            dataset: the images.
            transforms: one a view, applied in order; at least one.
            seed: at least 0.

        Raises:
            ValueError: there are no transforms, or the seed is negative.
        """
        if not transforms:
            raise ValueError("transforms: expected at least one, got none")
        if seed < 0:
            raise ValueError(f"seed: expected at least 0, got {seed}")
        self.dataset = dataset
        self.transforms = list(transforms)
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Any, ...]:
        """
        Raises:
            TypeError: the key is no pair.
            ImageNotFoundError: the image's file is missing.
            ImageDecodeError: the image's file cannot be read or decoded.
        """
        if not isinstance(key, tuple):
            raise TypeError(f"key: expected a pair (draw, index), as NumberedBatches makes, got {key!r}")
        draw, index = key
        image, label = self.dataset[index]
        with seeded(derive_seed("views", self.seed, draw)):
            return (*(transform(image) for transform in self.transforms), label)


class NumberedBatches(Sampler[list[tuple[int, int]]]):
    """Batches of `(draw, index)` pairs from a sampler's indices: the `batch_sampler` of a loader of `SeededViews`.

    A draw's number is its place in the stream of all epochs and processes, so it is unique, and the same on any number
    of processes. `len()` is the number of batches of a whole epoch.
    """

    def __init__(
        self, sampler: EpochSampler | DualSampler, batch_size: int, drop_last: bool = False, start_draw: int = 0
    ) -> None:
        """
        Args:
            sampler: this process's share of the images.
            batch_size: images of a batch of this process, at least 1; even for a dual sampler.
            drop_last: leave out an epoch's last batch if it is not full.
            start_draw: the number of the first draw, at least 0. A later stage of the same training starts where the
                former ended, at `former.start_draw + former.draws_per_epoch * epochs`.

        Raises:
            ValueError: an argument is out of its range.
        """
        if batch_size < 1:
            raise SettingError("batch_size", "at least 1", batch_size)
        if isinstance(sampler, DualSampler) and batch_size % 2:
            raise SettingError("batch_size", "an even number for a dual sampler", batch_size)
        if start_draw < 0:
            raise ValueError(f"start_draw: expected at least 0, got {start_draw}")
        self.sampler = sampler
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.start_draw = start_draw
        self._skip = 0

    @property
    def draws_per_epoch(self) -> int:
        """The draws of one epoch, over all processes."""
        return len(self.sampler) * self.sampler.world_size

    def set_epoch(self, epoch: int, skip: int = 0) -> None:
        """Set the sampler to `epoch` and leave out its first `skip` batches, without loading their images.

        Raises:
            ValueError: `epoch` is negative, or `skip` not in [0, number of batches].
        """
        if not 0 <= skip <= len(self):
            raise ValueError(f"skip: expected a number of batches in [0, {len(self)}], got {skip}")
        self.sampler.set_epoch(epoch)
        self._skip = skip

    def __len__(self) -> int:
        return len(self.sampler) // self.batch_size if self.drop_last else -(-len(self.sampler) // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        first = self.start_draw + self.sampler.epoch * self.draws_per_epoch
        width = 2 if isinstance(self.sampler, DualSampler) else 1  # processes take turns by pairs, or by images
        turns = range(self.sampler.rank * width, self.draws_per_epoch, self.sampler.world_size * width)
        draws = (first + turn + i for turn in turns for i in range(width))
        numbered = zip(draws, self.sampler, strict=True)
        pairs = islice(numbered, self._skip * self.batch_size, None)
        while batch := list(islice(pairs, self.batch_size)):
            if self.drop_last and len(batch) < self.batch_size:
                return
            yield batch
