"""Samplers for long-tailed data: they choose the images of an epoch and their order.

Each sampler draws from its own generator, seeded by (seed, epoch): the global random state has no effect, and any epoch
can be drawn again. In distributed training, every process draws the same stream and takes every `world_size`-th
position, starting at its `rank`. The stream is first padded from its beginning to a multiple of `world_size`, so that
all processes get the same number of images and none is dropped.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Generator, Tensor
from torch.utils.data import Sampler

from ltfast.data.groups import class_groups
from ltfast.data.seeding import derive_seed
from ltfast.errors import InputError, SettingError
from ltfast.ops.core.class_counts import ClassCounts, inverse_effective_numbers, read_class_counts

SAMPLERS = ("instance", "class_balanced", "square_root", "effective_number", "group_preferred", "dual")


class EpochSampler(Sampler[int]):
    """A stream of image indices for each epoch, split over the processes.

    Iterating yields this process's part; `len()` is its length.

    Attributes:
        num_samples: the length of the stream before padding.
        epoch: the current epoch, from 0.
        rank, world_size: this process, and the number of processes.
    """

    def __init__(self, num_samples: int, *, seed: int, rank: int = 0, world_size: int = 1) -> None:
        """Create a sampler.

        Args:
            num_samples: the number of images per epoch over all processes, at least 1.
            seed: the seed, at least 0.
            rank: the rank of this process, in [0, world_size).
            world_size: the number of processes, at least 1.

        Raises:
            ValueError: an argument is out of its range.
        """
        if num_samples < 1:
            raise ValueError(f"num_samples: expected at least 1, got {num_samples}")
        if seed < 0:
            raise ValueError(f"seed: expected at least 0, got {seed}")
        if world_size < 1:
            raise ValueError(f"world_size: expected at least 1, got {world_size}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank: expected a value in [0, {world_size}), got {rank}")
        self.num_samples = num_samples
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch (from 0) that the next iteration draws.

        Raises:
            ValueError: `epoch` is negative.
        """
        if epoch < 0:
            raise ValueError(f"epoch: expected at least 0, got {epoch}")
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.num_samples // self.world_size)

    def __iter__(self) -> Iterator[int]:
        stream = self.draw(torch.Generator().manual_seed(derive_seed("epoch", self.seed, self.epoch)))
        share = torch.arange(self.rank, len(self) * self.world_size, self.world_size)
        return iter(stream[share % self.num_samples].tolist())

    @abstractmethod
    def draw(self, generator: Generator) -> Tensor:
        """Draw the stream of one epoch, (num_samples,) int64."""


class InstanceSampler(EpochSampler):
    """Instance-balanced sampling without replacement: a permutation of the images, and more if the stream is longer."""

    def __init__(
        self, num_images: int, *, seed: int, rank: int = 0, world_size: int = 1, num_samples: int | None = None
    ) -> None:
        """Create a sampler.

        Args:
            num_images: N, at least 1.
            seed, rank, world_size: see `EpochSampler`.
            num_samples: the length of the stream; None means N.

        Raises:
            ValueError: an argument is out of its range.
        """
        if num_images < 1:
            raise ValueError(f"num_images: expected at least 1, got {num_images}")
        super().__init__(
            num_images if num_samples is None else num_samples, seed=seed, rank=rank, world_size=world_size
        )
        self.num_images = num_images

    def draw(self, generator: Generator) -> Tensor:
        rounds = -(-self.num_samples // self.num_images)
        permutations = [torch.randperm(self.num_images, generator=generator) for _ in range(rounds)]
        return torch.cat(permutations)[: self.num_samples]


class ClassSampler(EpochSampler):
    """Samples a class with the given probabilities and then an image of the class uniformly, both with replacement.

    Unlike `torch.multinomial`, which is limited to 2^24 images, sampling in two steps has no limit.

    Attributes:
        class_probabilities: (C,) float64, sums to 1.
    """

    def __init__(
        self,
        labels: Tensor,
        class_probabilities: Tensor,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        num_samples: int | None = None,
    ) -> None:
        """Create a sampler.

        Args:
            labels: (N,) int64, in [0, C).
            class_probabilities: (C,), at least 0; need not sum to 1.
            seed, rank, world_size: see `EpochSampler`.
            num_samples: the length of the stream; None means N.

        Raises:
            ValueError: an argument is out of its range, or a class without images has a probability above 0.
        """
        super().__init__(
            len(labels) if num_samples is None else num_samples, seed=seed, rank=rank, world_size=world_size
        )
        weights = class_probabilities.to(torch.float64)
        if weights.ndim != 1 or not (weights.isfinite().all() and (weights >= 0).all() and weights.sum() > 0):
            raise ValueError(
                f"class_probabilities: expected shape (C,), finite, at least 0, not all 0, got {class_probabilities}"
            )
        self.class_probabilities = weights / weights.sum()
        self._counts = _class_counts(labels, len(weights))
        without_images = (self._counts == 0) & (weights > 0)
        if without_images.any():
            missing = without_images.nonzero().flatten().tolist()
            raise ValueError(f"class_probabilities: expected 0 for the classes without images, {missing}")
        self._members = torch.argsort(labels, stable=True)  # image indices sorted by class
        self._starts = self._counts.cumsum(0) - self._counts

    def draw(self, generator: Generator) -> Tensor:
        edges = self.class_probabilities.cumsum(0)
        edges = edges / edges[-1]  # the last edge is exactly 1, so every draw is below it
        draws = torch.rand(2, self.num_samples, dtype=torch.float64, generator=generator)
        classes = torch.searchsorted(edges, draws[0], right=True)
        counts = self._counts[classes]
        within = torch.minimum((draws[1] * counts).long(), counts - 1)
        return self._members[self._starts[classes] + within]


class DualSampler(Sampler[int]):
    """Two interleaved streams: `batch[0::2]` is from the first, `batch[1::2]` from the second.

    The batch size must be even; half of each batch comes from each stream.
    Source: Dong et al., "LPT: Long-tailed Prompt Tuning for Image Classification", ICLR 2023, dual sampling.
    """

    def __init__(self, first: EpochSampler, second: EpochSampler) -> None:
        """Create a sampler from two others.

        Args:
            first, second: samplers with the same length, rank and world size.

        Raises:
            ValueError: a length, rank or world size differs.
        """
        for name in ("num_samples", "rank", "world_size"):
            if getattr(first, name) != getattr(second, name):
                raise ValueError(
                    f"second: expected the first's {name}, {getattr(first, name)}, got {getattr(second, name)}"
                )
        self.first = first
        self.second = second
        self.rank = first.rank
        self.world_size = first.world_size

    @property
    def epoch(self) -> int:
        """The current epoch, from 0."""
        return self.first.epoch

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of both samplers; see `EpochSampler.set_epoch`."""
        self.first.set_epoch(epoch)
        self.second.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    def __iter__(self) -> Iterator[int]:
        return chain.from_iterable(zip(self.first, self.second, strict=True))


def class_balanced_probabilities(class_counts: ClassCounts) -> Tensor:
    """Class probabilities of class-balanced sampling: uniform over the classes that have images.

    Args:
        class_counts: length C, at least 0; see `ltfast.ops.core.class_counts.read_class_counts`.

    Returns:
        (C,) float64, sums to 1.

    Raises:
        ValueError: there are no images.
    """
    return _normalised((_counts(class_counts) > 0).to(torch.float64))


def square_root_probabilities(class_counts: ClassCounts) -> Tensor:
    """Class probabilities of square-root sampling: `p_c ~ sqrt(n_c)` (Mahajan et al., "Exploring the Limits of Weakly
    Supervised Pretraining", ECCV 2018).

    For arguments, return value and errors see `class_balanced_probabilities`.
    """
    return _normalised(_counts(class_counts).sqrt())


def effective_number_probabilities(class_counts: ClassCounts, beta: float = 0.9999) -> Tensor:
    """Class probabilities if each image is weighted by the inverse effective number of its class:
    `p_c ~ n_c (1 - beta) / (1 - beta^n_c)`.

    `beta = 0` gives instance-balanced sampling, `beta -> 1` class-balanced sampling.
    Source: Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", CVPR 2019; used as a sampler in the
    code of LDAM.

    Args:
        class_counts: length C, at least 0; see `ltfast.ops.core.class_counts.read_class_counts`.
        beta: in [0, 1).

    Returns:
        (C,) float64, sums to 1.

    Raises:
        ValueError: there are no images, or beta is out of its range.
    """
    if not 0 <= beta < 1:
        raise SettingError("beta", "a value in [0, 1)", beta)
    counts = _counts(class_counts)
    return _normalised(torch.where(counts > 0, counts * inverse_effective_numbers(counts, beta), 0.0))


def group_preferred_probabilities(
    class_counts: ClassCounts, stage: int, rho: float = 0.8, preferred: Sequence[int] | None = None
) -> Tensor:
    """Class probabilities of a stage of decoupled optimisation, which prefers one class group.

    Stage 1 samples the long-tailed distribution itself, `p_c ~ n_c`. Stage 2 samples an image of a preferred class with
    probability rho and another image with 1 - rho, uniformly within each kind. Stage 3 samples the reversed long-tailed
    distribution, `p_c ~ 1 / n_c`.
    Source: Cong et al., "Decoupled Optimisation for Long-Tailed Visual Recognition", AAAI 2024.

    Args:
        class_counts: length C, at least 0; see `ltfast.ops.core.class_counts.read_class_counts`.
        stage: 1, 2 or 3.
        rho: in [0, 1]; used in stage 2 only.
        preferred: the preferred classes of stage 2; None means the medium classes of `class_groups`.

    Returns:
        (C,) float64, sums to 1.

    Raises:
        ValueError: there are no images, stage or rho is out of its range, or stage 2 has no images of preferred classes
            or no others.
    """
    counts = _counts(class_counts)
    if stage not in (1, 2, 3):
        raise InputError(f"stage: expected 1, 2 or 3, got {stage}")
    if not 0 <= rho <= 1:
        raise SettingError("rho", "a value in [0, 1]", rho)
    if stage == 1:
        return _normalised(counts)
    if stage == 3:
        return _normalised(torch.where(counts > 0, 1 / counts, 0.0))
    if outside := [c for c in preferred or () if not 0 <= c < len(counts)]:
        raise InputError(f"preferred: expected classes in [0, {len(counts)}), got {outside[0]}")
    chosen = torch.zeros(len(counts), dtype=torch.bool)
    chosen[class_groups(class_counts)["medium"] if preferred is None else list(preferred)] = True
    shares = torch.where(chosen, rho * _share(counts, chosen), (1 - rho) * _share(counts, ~chosen))
    return _normalised(shares)


def make_sampler(
    name: str,
    labels: Tensor,
    *,
    num_classes: int,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    num_samples: int | None = None,
    **options: Any,
) -> EpochSampler | DualSampler:
    """Create a sampler by name.

    Args:
        name: "instance" (a permutation), "class_balanced", "square_root", "effective_number" (option `beta`),
            "group_preferred" (options `stage`, required, `rho` and `preferred`; stage 1 is the same as "instance") or
            "dual" (an interleaved class-balanced and instance-balanced stream, see `DualSampler`).
        labels: (N,) int64, in [0, C).
        num_classes: C.
        seed: the seed, at least 0.
        rank: the rank of this process, in [0, world_size).
        world_size: the number of processes.
        num_samples: the number of images per epoch over all processes, for "dual" in each stream; None means N.
        options: the options of the sampler, see `name`.

    Raises:
        ValueError: the name is unknown or an argument is out of its range.
        TypeError: an option is unknown, or a required option is missing.
    """
    shared: dict[str, Any] = {"rank": rank, "world_size": world_size, "num_samples": num_samples}
    counts = _class_counts(labels, num_classes).tolist()
    if name == "instance":
        return InstanceSampler(len(labels), seed=seed, **shared, **options)
    if name == "class_balanced":
        return ClassSampler(labels, class_balanced_probabilities(counts, **options), seed=seed, **shared)
    if name == "square_root":
        return ClassSampler(labels, square_root_probabilities(counts, **options), seed=seed, **shared)
    if name == "effective_number":
        return ClassSampler(labels, effective_number_probabilities(counts, **options), seed=seed, **shared)
    if name == "group_preferred":
        probabilities = group_preferred_probabilities(counts, **options)
        if options["stage"] == 1:
            return InstanceSampler(len(labels), seed=seed, **shared)
        return ClassSampler(labels, probabilities, seed=seed, **shared)
    if name == "dual":
        probabilities = class_balanced_probabilities(counts, **options)
        return DualSampler(
            ClassSampler(labels, probabilities, seed=derive_seed("first of dual", seed), **shared),
            InstanceSampler(len(labels), seed=derive_seed("second of dual", seed), **shared),
        )
    raise InputError(f"name: expected one of {', '.join(SAMPLERS)}, got {name!r}")


def _class_counts(labels: Tensor, num_classes: int) -> Tensor:
    if labels.ndim != 1 or len(labels) == 0:
        raise ValueError(f"labels: expected shape (N,) with N at least 1, got {tuple(labels.shape)}")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise ValueError(f"labels: expected values in [0, {num_classes}), got {low} to {high}")
    return torch.bincount(labels, minlength=num_classes)


def _counts(class_counts: ClassCounts) -> Tensor:
    counts = read_class_counts(class_counts)
    if not counts.isfinite().all() or (counts < 0).any() or not counts.sum() > 0:
        raise ValueError(f"class_counts: expected counts of at least 0, not all 0, got {counts.tolist()}")
    return counts


def _normalised(weights: Tensor) -> Tensor:
    return weights / weights.sum()


def _share(counts: Tensor, chosen: Tensor) -> Tensor:
    total = counts[chosen].sum()
    if total == 0:
        raise InputError("class_counts: stage 2 expects images of preferred and of other classes, got only one kind")
    return counts / total
