"""What the frozen part of a network computes from the images of a data set, which need not be computed in each epoch.

The outputs are computed in blocks of images, in the order of the data set. They therefore have the same bits for any
number of processes, and when an interrupted run continues.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from accelerate.utils import reduce, send_to_device, wait_for_everyone
from numpy.typing import NDArray
from torch import Tensor, nn

from ltfast.data import ImageDataset, NumberedBatches, SeededViews
from ltfast.engine import Batches, RunSettings
from ltfast.errors import SettingError
from ltfast.files import replace_file
from ltfast.methods.context import BuildContext
from ltfast.methods.loader import Loader
from ltfast.terminal import say
from ltfast.version import release

BLOCK = 128  # images
GIB = 2**30
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}

Transform = Callable[[Any], Tensor]


def all_features(
    network: nn.Module, images: ImageDataset, transform: Transform, width: int, *, context: BuildContext
) -> Tensor:
    """The features of all images, which the processes compute together.

    Args:
        network: maps images to features; it is put into evaluation mode.
        images, transform: the images, and a transform that draws no random numbers.
        width: width D of the features.
        context: has the processes, the precision and the workers.

    Returns:
        (N, D), on the network's device, in every process.
    """
    weight = next(network.parameters())
    features = weight.new_zeros(len(images), width)
    own = range(context.rank, -(-len(images) // BLOCK), context.world_size)
    network.eval()
    for number, rows in _computed(network, images, transform, own, weight.device, context.run):
        features[number * BLOCK : number * BLOCK + len(rows)] = rows
    result: Tensor = reduce(features, "sum")
    return result


class FrozenImages:
    """The outputs of a network's frozen part for the images of a data set, in a folder of the user's cache.

    A block of images is a file, which is complete or absent. The folder's name is a hash of all that the outputs
    depend on: the frozen weights, the images, their transform, the precision, and the versions of the libraries.

    Args:
        compute: the frozen part, from images (B, channels, H, W) to outputs (B, ...) without gradient.
        weights: gives the tensors that it depends on, by name.
        images: the images.
        transform: draws no random numbers.
        facts: what the transform depends on, and what the outputs are, as plain values.
        shape: of the output for an image.
        cache: the folder of the user's cache, which need not exist.
        context: has the processes, the precision and the workers.
    """

    def __init__(
        self,
        compute: Callable[[Tensor], Tensor],
        weights: Callable[[], Mapping[str, Tensor]],
        images: ImageDataset,
        transform: Transform,
        facts: Mapping[str, Any],
        shape: Sequence[int],
        cache: Path,
        context: BuildContext,
    ) -> None:
        self.compute, self.weights = compute, weights
        self.images, self.transform, self.facts = images, transform, dict(facts)
        self.shape, self.cache, self.context = tuple(shape), cache, context
        self._files: list[NDArray[Any]] = []

    def of(self, images: ImageDataset) -> "FrozenImages":
        """The same for other images of the same format."""
        return FrozenImages(
            self.compute, self.weights, images, self.transform, self.facts, self.shape, self.cache, self.context
        )

    @property
    def filled(self) -> bool:
        """Whether all outputs are there."""
        return len(self._files) > 0

    @property
    def nbytes(self) -> int:
        """The size of all outputs in bytes."""
        return bytes_of(self.images, self.shape)

    def fill(self) -> None:
        """Compute the outputs that are not there yet. All processes must call it.

        Raises:
            SettingError: the disk has too little space.
            OSError: a file cannot be written.
        """
        if self.filled:
            return
        folder, rank, first = self._folder(), self.context.rank, self.context.rank == 0
        missing = self._missing(folder)
        if missing:
            self._make(folder)
        wait_for_everyone()  # before any process writes a file that another one has not looked for yet
        if missing and first:
            size = f"{self.nbytes / 2**20:,.1f} MiB"
            say(f"computing the outputs of the frozen blocks once, for all epochs: {size} in {folder}")
        self._write(folder, missing[rank :: self.context.world_size])
        wait_for_everyone()
        self._write(folder, self._missing(folder))  # those of other machines, whose folder is another one
        self._files = [np.load(self._file(folder, number), mmap_mode="r") for number in self._blocks()]

    def rows(self, numbers: Sequence[int]) -> Tensor:
        """The outputs (B, ...) for the images with these numbers, on the CPU."""
        return torch.from_numpy(np.stack([self._files[number // BLOCK][number % BLOCK] for number in numbers]))

    def _blocks(self) -> range:
        return range(-(-len(self.images) // BLOCK))

    def _folder(self) -> Path:
        weights = hashlib.sha256()
        for name, value in self.weights().items():
            weights.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
            weights.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        versions = {"ltfast": release(), "torch": torch.__version__, "timm": timm.__version__}
        facts = {
            **self.facts,
            **versions,
            "weights": weights.hexdigest(),
            "images": self.images.digests(),
            "precision": self.context.run.precision,
            "device": self._device().type,
        }
        return self.cache / hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    def _device(self) -> torch.device:
        return next(iter(self.weights().values())).device

    def _make(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if free < self.nbytes:
            raise SettingError(
                "cache_gib",
                f"less than {free / GIB:.3g}, the free space of {folder} in GiB (0 keeps no outputs)",
                round(self.nbytes / GIB, 3),
            )

    @staticmethod
    def _file(folder: Path, number: int) -> Path:
        return folder / f"{number:06}.npy"

    def _missing(self, folder: Path) -> list[int]:
        """The blocks without a whole file."""

        def whole(number: int) -> bool:
            try:
                rows = np.load(self._file(folder, number), mmap_mode="r")
            except (OSError, ValueError, EOFError):
                return False
            return rows.shape == (min(BLOCK, len(self.images) - number * BLOCK), *self.shape)

        return [number for number in self._blocks() if not whole(number)]

    def _write(self, folder: Path, blocks: Sequence[int]) -> None:
        run = self.context.run
        for number, rows in _computed(self.compute, self.images, self.transform, blocks, self._device(), run):
            replace_file(self._file(folder, number), partial(np.save, arr=rows.numpy()))


def bytes_of(images: ImageDataset, shape: Sequence[int]) -> int:
    """The size in bytes of float32 outputs of this shape for all images."""
    return len(images) * int(np.prod(shape)) * 4


class FrozenBatches(Batches):
    """Training batches `(outputs, labels)` of the frozen part, of the images that other batches would have.

    Args:
        frozen: the outputs for the training images.
        batches: the numbers of the images.
    """

    def __init__(self, frozen: FrozenImages, batches: NumberedBatches) -> None:
        self.frozen, self.batches = frozen, batches

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, epoch: int, skip: int) -> Iterator[list[Tensor]]:
        """The batches of epoch `epoch` without the first `skip`."""
        self.frozen.fill()
        self.batches.set_epoch(epoch, skip=skip)
        return (_batch(self.frozen, [index for _, index in keys]) for keys in self.batches)

    def close(self) -> None:
        """There are no processes to end."""


class FrozenShare:
    """This process's share of the images of an evaluation, in batches `(outputs, labels)` of the frozen part while a
    run trains on such batches, and otherwise `(images, labels)`.

    Args:
        frozen: the outputs for these images.
        images: the batches of images.
        training: the outputs for the training images; they are there if the run trains on them.
    """

    def __init__(self, frozen: FrozenImages, images: Loader, training: FrozenImages) -> None:
        self.frozen, self.images, self.training = frozen, images, training

    @property
    def dataset(self) -> Any:
        """Has the transforms of the images."""
        return self.images.dataset

    def __iter__(self) -> Iterator[Sequence[Tensor]]:
        if not self.training.filled:
            yield from self.images
            return
        self.frozen.fill()
        context = self.frozen.context
        own = range(context.rank, len(self.frozen.images), context.world_size)
        for start in range(0, len(own), context.test_batch_size):
            yield _batch(self.frozen, own[start : start + context.test_batch_size])


def _batch(frozen: FrozenImages, numbers: Sequence[int]) -> list[Tensor]:
    return [frozen.rows(numbers), frozen.images.labels[torch.as_tensor(numbers)]]


def _computed(
    compute: Callable[[Tensor], Tensor],
    images: ImageDataset,
    transform: Transform,
    blocks: Iterable[int],
    device: torch.device,
    run: RunSettings,
) -> Iterator[tuple[int, Tensor]]:
    """The numbers of blocks, and their outputs on the CPU; half precision is converted to float32."""
    blocks = list(blocks)
    keys = [[(i, i) for i in range(number * BLOCK, min((number + 1) * BLOCK, len(images)))] for number in blocks]
    loader = Loader(SeededViews(images, [transform], seed=0), batch_sampler=keys, num_workers=run.workers)
    half = _DTYPES.get(run.precision)
    for number, (batch, _) in zip(blocks, loader, strict=True):
        with torch.no_grad(), torch.autocast(device.type, half, enabled=half is not None):
            rows = compute(send_to_device(batch, device)).cpu()
        yield number, rows.float() if rows.dtype.itemsize == 2 else rows
