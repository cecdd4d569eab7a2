"""Augmented views that depend only on a seed and the position in the training.

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
    """A data set of augmented views, `(view_1, ..., view_k, label)`, indexed by pairs `(draw, index)`.

    `draw` numbers the draws of the whole training. The random numbers of a draw depend only on it and on the seed.
    Therefore the views do not depend on the number of workers or on previous draws, and a repeated image gets new
    views. The states of the global generators of `random`, numpy and torch are preserved.
    """

    def __init__(self, dataset: ImageDataset, transforms: Sequence[Callable[[Image.Image], Any]], *, seed: int) -> None:
        """Create a data set of views.

        Args:
            dataset: the images.
            transforms: one per view, applied in order; at least one.
            seed: the seed, at least 0.

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
        """Load an image and return its views and label.

        Raises:
            TypeError: the key is not a pair.
            ImageNotFoundError: the image's file is missing.
            ImageDecodeError: the image's file cannot be read or decoded.
        """
        if not isinstance(key, tuple):
            raise TypeError(f"key: expected a pair (draw, index) from NumberedBatches, got {key!r}")
        draw, index = key
        image, label = self.dataset[index]
        with seeded(derive_seed("views", self.seed, draw)):
            return (*(transform(image) for transform in self.transforms), label)


class NumberedBatches(Sampler[list[tuple[int, int]]]):
    """Batches of `(draw, index)` pairs from a sampler's indices, to be used as `batch_sampler` for `SeededViews`.

    The number of a draw is its position in the stream over all epochs and processes. It is unique and does not depend
    on the number of processes. `len()` is the number of batches in a complete epoch.
    """

    def __init__(
        self, sampler: EpochSampler | DualSampler, batch_size: int, drop_last: bool = False, start_draw: int = 0
    ) -> None:
        """Create a batch sampler.

        Args:
            sampler: the sampler of this process.
            batch_size: images per batch in this process, at least 1; even for a dual sampler.
            drop_last: whether to drop the last batch of an epoch if it is incomplete.
            start_draw: the number of the first draw, at least 0. A later stage of the same training starts where the
                previous one ended, at `previous.start_draw + previous.draws_per_epoch * epochs`.

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
        """The number of draws per epoch, over all processes."""
        return len(self.sampler) * self.sampler.world_size

    def set_epoch(self, epoch: int, skip: int = 0) -> None:
        """Set the sampler to `epoch` and skip its first `skip` batches without loading their images.

        Raises:
            ValueError: `epoch` is negative, or `skip` is not in [0, number of batches].
        """
        if not 0 <= skip <= len(self):
            raise ValueError(f"skip: expected a number of batches in [0, {len(self)}], got {skip}")
        self.sampler.set_epoch(epoch)
        self._skip = skip

    def __len__(self) -> int:
        return len(self.sampler) // self.batch_size if self.drop_last else -(-len(self.sampler) // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        first = self.start_draw + self.sampler.epoch * self.draws_per_epoch
        width = 2 if isinstance(self.sampler, DualSampler) else 1  # a dual stream is split over the processes by pairs
        turns = range(self.sampler.rank * width, self.draws_per_epoch, self.sampler.world_size * width)
        draws = (first + turn + i for turn in turns for i in range(width))
        numbered = zip(draws, self.sampler, strict=True)
        pairs = islice(numbered, self._skip * self.batch_size, None)
        while batch := list(islice(pairs, self.batch_size)):
            if self.drop_last and len(batch) < self.batch_size:
                return
            yield batch
