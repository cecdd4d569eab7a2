"""Data sets by name: `load("cifar10", imbalance=100)`."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_dataset
from torch import Tensor
from torchvision.datasets import CIFAR10, CIFAR100

from ltfast.data.arrays import read_npz
from ltfast.data.bundle import DataBundle
from ltfast.data.class_names import check_length, read_class_names, with_classes
from ltfast.data.datasets import ArrayDataset, FileDataset, ImageDataset, ReaderDataset
from ltfast.data.folder import read_folder
from ltfast.data.labels import check_labels, numbered_classes
from ltfast.data.lists import read_lists
from ltfast.data.long_tail import Profile, long_tail_indices
from ltfast.data.partition import partition, take_fold
from ltfast.data.splits import Splits
from ltfast.data.table import read_table
from ltfast.errors import InputError, InputNotFoundError, InputTypeError, UserError
from ltfast.network import hub_unreachable, reachable, seconds

SOURCES = """\
  digits         scikit-learn's handwritten digits, built in
  cifar10        downloaded by torchvision
  cifar100       downloaded by torchvision
  npz:FILE       arrays x_train, y_train, x_test, y_test
  folder:DIR     DIR/train and DIR/test or DIR/val, with one folder per class; or these folders in DIR itself
  csv:FILE       a header with the columns path and label, and split and group where they are known
  list:FILE      one path and label per line, such as ImageNet_LT_train.txt; paths are relative to root
  torch/NAME     torchvision's data sets, through timm: torch/fashion_mnist, torch/places365, torch/imagenet, ...
  hfds/NAME      Hugging Face's data sets, through timm"""

# Statistics of CIFAR-10; LDAM, BCL and ProCo use them for CIFAR-100 too.
CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR_STD = (0.2023, 0.1994, 0.2010)

DIGITS_TRAIN_PER_CLASS = 110

Statistics = tuple[tuple[float, ...], tuple[float, ...]]


class PackageError(UserError, ModuleNotFoundError):
    """A package required by a source is not installed."""


def load(
    source: str,
    *,
    imbalance: float | None = None,
    profile: Profile = "exponential",
    root: str | Path | None = None,
    class_names: str | Path | None = None,
    test: str | Path | None = None,
    columns: Mapping[str, str] | None = None,
    validation: float | None = None,
    test_fraction: float | None = None,
    folds: int | None = None,
    fold: int | None = None,
    seed: int = 0,
) -> DataBundle:
    """Load a data set, and optionally subsample its training images to a long tail, and take images for validation and
    testing from them.

    First, `test_fraction` or `fold` takes test images from the training images; then `imbalance` subsamples these; then
    `validation` takes validation images from those that are left, which therefore have the same long tail.

    Args:
        source: one of

            - `digits`: scikit-learn's 1,797 greyscale 8 x 8 images; 110 per class for training, the other 697 for
              testing.
            - `cifar10`, `cifar100`: torchvision's data sets, from the folder `root`; downloaded to it if missing.
            - `npz:FILE`: `x_train` and `x_test`, (N, H, H), (N, H, H, 1) or (N, H, H, 3) uint8; `y_train` and `y_test`,
              (N,) or (N, 1) integers or strings; and possibly `x_val`, `y_val`, and `class_names`, (C,) strings. See
              `ltfast.data.arrays.read_npz`.
            - `folder:DIR`: `DIR/train` and `DIR/test`, and possibly `DIR/val`, each with one folder per class.
              `DIR/val` has the validation images, or the test images if there is no `DIR/test`. With `test_fraction`,
              `DIR/train` alone, or the folders of the classes in `DIR`. The classes are sorted by name. See
              `ltfast.data.folder` for links and nested folders.
            - `csv:FILE`: a table with a header and one image per line; see `ltfast.data.table.read_table`.
            - `list:FILE`: lists such as those of ImageNet-LT, Places-LT and iNaturalist, with one `path label` per line
              and paths relative to `root`. The last space or tab separates the label. The encoding is UTF-8, unless a
              byte-order mark gives another. If FILE has "train" in its name, the test list is the file in the same
              folder with "test" (or else "val") instead (`ImageNet_LT_train.txt`, `ImageNet_LT_test.txt`); if both
              exist, "val" is the validation list.
            - `torch/NAME`, `hfds/NAME`: data sets of `timm.data.create_dataset` with random access, from the folder
              `root`. The training split is "train". The test split is torchvision's own; for `hfds/` it is
              "validation", or "test" if there is no "validation".

        imbalance: the ratio of the counts of the largest and the smallest class, at least 1; None keeps all images.
            The test images are never subsampled.
        profile: the shape of the long tail, "exponential", "pareto" or "step"; see `ltfast.data.long_tail`.
        root: folder of the images or downloads; used by `cifar10`, `cifar100`, `csv:`, `list:`, `torch/` and `hfds/`.
            None means the folder of the file for `csv:`, and the folder `data` for the others.
        class_names: a text file with one class name per line, line k + 1 for label k, for sources whose classes are
            only numbered: `npz:`, `csv:`, `list:`, and `hfds/` without names.
        test: the test list, for `list:`.
        columns: the names of the columns `path`, `label`, `split` and `group` in the table, where they differ; for
            `csv:`.
        validation: the share of the training images to use for validation, above 0 and below 1; see
            `ltfast.data.partition`. None uses the validation images of the source, if it has any.
        test_fraction: the share of the training images to use for testing, for a source without test images.
        folds, fold: for cross-validation, the number of folds of the training images, at least 2, and the number of the
            fold to use for testing, from 1; see `ltfast.data.partition.take_fold`. The test images of the source are
            not used. Both or neither, and not with `test_fraction`.
        seed: the seed by which images are taken for validation and testing.

    Returns:
        The bundle. For `cifar10` and `cifar100`, `mean` and `std` are those of CIFAR-10. For other images in arrays,
        they are computed from the (subsampled) training images. For images in files, they are those of ImageNet, and
        `image_size` is 224 and `channels` 3 (greyscale files are decoded to RGB).

    Raises:
        InputError: the source is unknown or malformed, there is only one class, a class has no training images, the
            images cannot be subsampled or split, the source already has the part to be taken, `class_names` does not
            match the classes, or the source does not use `test` or `columns`.
        InputTypeError: an array has the wrong dtype.
        InputNotFoundError: a file or folder is missing, or could not be downloaded.
        PackageError: `hfds/` needs Hugging Face's package `datasets`, which is not installed.
    """
    splits = read_parts(
        source,
        imbalance=imbalance,
        profile=profile,
        root=root,
        class_names=class_names,
        test=test,
        columns=columns,
        validation=validation,
        test_fraction=test_fraction,
        folds=folds,
        fold=fold,
        seed=seed,
        test_needed=test_fraction is None and folds is None,
    )
    assert splits.test is not None  # a source without test images is an error unless they are taken
    size, statistics = _size_and_statistics(source, splits.train)
    return DataBundle(
        splits.train,
        splits.test,
        *statistics,
        size,
        len(statistics[0]),
        named=splits.named,
        left_out=splits.left_out,
        validation=splits.validation,
        origins=splits.origins,
    )


def read_parts(
    source: str,
    *,
    imbalance: float | None = None,
    profile: Profile = "exponential",
    root: str | Path | None = None,
    class_names: str | Path | None = None,
    test: str | Path | None = None,
    columns: Mapping[str, str] | None = None,
    validation: float | None = None,
    test_fraction: float | None = None,
    folds: int | None = None,
    fold: int | None = None,
    seed: int = 0,
    test_needed: bool = False,
) -> Splits:
    """Read the parts of a data set. For the other arguments and the errors see `load`.

    Args:
        test_needed: whether the source must have test images.
    """
    check_options(source, test, columns)
    check_folds(folds, fold, test_fraction)
    splits = _splits(source, root_of(source, root), test, columns, test_needed=test_needed)
    if class_names is not None:
        splits = _named(splits, Path(class_names).expanduser(), source)
    _check_classes(source, splits)
    if test_fraction is not None:
        splits = _take("test", "test_fraction", test_fraction, splits, source, seed)
    if folds is not None and fold is not None:
        splits = _cross_validation(splits, folds, fold, seed)
    if imbalance is not None:
        train = splits.train
        kept = long_tail_indices(train.labels, len(train.class_names), imbalance, profile)
        splits = splits._replace(train=train.subset(kept))
    if validation is not None:
        splits = _take("validation", "validation", validation, splits, source, seed)
    return splits


def _take(
    part: Literal["test", "validation"], name: str, fraction: float, splits: Splits, source: str, seed: int
) -> Splits:
    """Take the images of a part from the training images; `name` is the setting with their share."""
    if getattr(splits, part) is not None:
        raise InputError(f"expected none, since {source} has {part} images, got {fraction:g}", name=name)
    train = splits.train
    left, taken = partition(train.labels, fraction, groups=train.groups, seed=seed, name=name)
    origin = f"{fraction:g} of the training images{'' if train.groups is None else ', whole groups'}"
    changed: dict[str, Any] = {"train": train.subset(left), part: train.subset(taken)}
    return splits._replace(**changed, origins={**splits.origins, part: origin})


def _cross_validation(splits: Splits, folds: int, fold: int, seed: int) -> Splits:
    """Take a fold of the training images for testing, and drop the test images of the source."""
    train = splits.train
    left, taken = take_fold(train.labels, folds, fold, groups=train.groups, seed=seed)
    whole = "" if train.groups is None else ", whole groups"
    unused = "" if splits.test is None else f"; the {len(splits.test)} test images of the source are not used"
    origin = f"fold {fold} of {folds} of the training images{whole}{unused}"
    return splits._replace(
        train=train.subset(left), test=train.subset(taken), origins={**splits.origins, "test": origin}
    )


def check_folds(folds: int | None, fold: int | None, test_fraction: float | None) -> None:
    """Check that the arguments of a cross-validation go together; see `load`."""
    if folds is None and fold is not None:
        raise InputError(f"expected none without the number of folds, got {fold}", name="fold")
    if folds is not None and fold is None:
        raise InputError(f"expected a number from 1 to {folds}, the number of folds, got none", name="fold")
    if folds is not None and test_fraction is not None:
        raise InputError(
            f"expected none with folds, which test all images, got {test_fraction:g}", name="test_fraction"
        )


def check_options(source: str, test: str | Path | None, columns: Mapping[str, str] | None) -> None:
    """Check that a source uses the options that are given; see `load`."""
    if test is not None and not source.startswith("list:"):
        raise InputError(f"expected none, since only list: has a test list, got {test}", name="test")
    if columns is not None and not source.startswith("csv:"):
        raise InputError(f"expected none, since only csv: has columns, got {dict(columns)}", name="columns")


def root_of(source: str, root: str | Path | None) -> Path:
    """The folder of the images or downloads of a source; `root` unless it is None. See `load`."""
    if root is not None:
        return Path(root).expanduser()
    kind, _, name = source.partition(":")
    return Path(name).expanduser().parent if kind == "csv" else Path("data")


def _size_and_statistics(source: str, train: ImageDataset) -> tuple[int, Statistics]:
    if not isinstance(train, ArrayDataset):
        return 224, (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    height, width = train.images.shape[1:3]
    if height != width:
        raise InputError(f"{source}: expected square images, got {height} x {width}; pad them, or use folder:")
    if source in ("cifar10", "cifar100"):
        return height, (CIFAR_MEAN, CIFAR_STD)
    return height, channel_statistics(train.images)


def channel_statistics(images: NDArray[np.uint8]) -> Statistics:
    """The mean and standard deviation of each channel, for pixel values in [0, 1].

    Args:
        images: (N, H, W) or (N, H, W, 3) uint8.

    Raises:
        InputError: a channel is constant and cannot be normalised.
    """
    levels = np.arange(256) / 255
    mean, std = [], []
    for channel in range(1 if images.ndim == 3 else images.shape[3]):
        pixels = images if images.ndim == 3 else images[..., channel]
        # a histogram gives exact results without a floating-point copy of the images
        share = np.bincount(pixels.ravel(), minlength=256) / pixels.size
        mean.append(float(share @ levels))
        std.append(float(np.sqrt(share @ (levels - mean[-1]) ** 2)))
        if np.count_nonzero(share) == 1:
            value = f"{mean[-1] * 255:.0f}"
            raise InputError(f"images: expected varying values, got {value} everywhere in channel {channel}")
    return tuple(mean), tuple(std)


def _named(splits: Splits, path: Path, source: str) -> Splits:
    if splits.named:
        raise InputError(f"expected none, since the classes of {source} have names, got {path}", name="class_names")
    names = read_class_names(path)
    check_length(path, names, len(splits.train.class_names), source)
    parts: dict[str, Any] = {"train": splits.train, "test": splits.test, "validation": splits.validation}
    named = {part: images and with_classes(images, images.labels, names) for part, images in parts.items()}
    return splits._replace(**named, named=True)


def _check_classes(source: str, splits: Splits) -> None:
    train = splits.train
    if len(train.class_names) < 2:
        raise InputError(f"{source}: expected at least 2 classes, got one: {train.class_names[0]}")
    empty = [label for label, count in enumerate(train.class_counts) if count == 0]
    if empty:
        names = ", ".join(train.class_names[label] for label in empty[:5]) + (", ..." if len(empty) > 5 else "")
        numbered = source.startswith(("npz:", "csv:", "list:"))
        hint = "; do its labels start at 1? They should start at 0" if numbered and empty == [0] else ""
        raise InputError(
            f"{source}: expected training images of all {len(train.class_names)} classes, but {len(empty)} have none: "
            f"{names}{hint}"
        )


def _splits(
    source: str, root: Path, test: str | Path | None, columns: Mapping[str, str] | None, *, test_needed: bool
) -> Splits:
    kind, _, name = source.partition(":")
    if source == "digits":
        return _digits()
    if source in ("cifar10", "cifar100"):
        return _cifar(source, root)
    if kind == "npz" and name:
        return read_npz(Path(name).expanduser())
    if kind == "folder" and name:
        return read_folder(Path(name).expanduser(), test_needed=test_needed)
    if kind == "csv" and name:
        return read_table(Path(name).expanduser(), root, columns, test_needed=test_needed)
    if kind == "list" and name:
        given = None if test is None else Path(test).expanduser()
        return read_lists(Path(name).expanduser(), root, given, test_needed=test_needed)
    if source.startswith("torch/"):
        return _timm_torch(source, root, test_needed=test_needed)
    if source.startswith("hfds/"):
        return _timm_hfds(source, root)
    if source.startswith(("hfids/", "tfds/", "wds/")):
        raise InputError(
            f"{source!r} has no random access, which is required; expected one of\n{SOURCES}", name="source"
        )
    near = get_close_matches(source, ("digits", "cifar10", "cifar100"), n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise InputError(f"{source!r} is unknown; expected one of\n{SOURCES}{hint}", name="source")


def _digits() -> Splits:
    data = load_digits()
    images = np.round(data.images * (255 / 16)).astype(np.uint8)
    random = np.random.RandomState(0)
    train, test = [], []
    for label in range(10):
        (members,) = np.nonzero(data.target == label)
        random.shuffle(members)
        train.append(members[:DIGITS_TRAIN_PER_CLASS])
        test.append(members[DIGITS_TRAIN_PER_CLASS:])
    whole = ArrayDataset(images, torch.from_numpy(data.target), [str(digit) for digit in range(10)])
    return Splits(
        whole.subset(torch.from_numpy(np.concatenate(train))), whole.subset(torch.from_numpy(np.concatenate(test)))
    )


def _download(name: str, root: Path, dataset: Callable[[bool], Any], url: str | None = None) -> Any:
    """Return `dataset(False)` if the files exist, otherwise `dataset(True)`, which downloads them."""
    with suppress(OSError, RuntimeError):  # torchvision raises these for missing files
        return dataset(False)
    try:
        if url is not None and not reachable(url):
            raise OSError(f"{url} does not answer within {seconds():g} seconds")
        return dataset(True)
    except (OSError, RuntimeError) as error:
        raise InputNotFoundError(
            f"{name}: not in the folder {str(root)!r}, and could not be downloaded ({error}). Put its files there as "
            "torchvision does, set root to the folder with the files, or load the images with npz:FILE or folder:DIR"
        ) from error


def _cifar(name: str, root: Path) -> Splits:
    dataset = CIFAR10 if name == "cifar10" else CIFAR100

    def split(train: bool) -> ArrayDataset:
        data = _download(name, root, lambda download: dataset(str(root), train, download=download), dataset.url)
        return ArrayDataset(data.data, torch.tensor(data.targets), data.classes)

    return Splits(split(True), split(False))


def _timm_torch(name: str, root: Path, *, test_needed: bool) -> Splits:
    if name in ("torch/image_folder", "torch/folder"):  # read as folder:, but with timm's names of the parts
        held_out = ("val", "valid", "eval", "evaluation", "validation")
        return read_folder(root, ("train", "training"), held_out, (), test_needed=test_needed)

    def split(part: str) -> ImageDataset:
        try:
            data = _download(
                name, root, lambda download: create_dataset(name, str(root), split=part, download=download)
            )
        except AssertionError as error:  # timm raises this for an unknown name
            raise InputError(f"{error}; expected one of\n{SOURCES}", name="source") from error
        if isinstance(getattr(data, "data", None), np.ndarray | Tensor):
            names = _names(data.classes)
            return ArrayDataset(np.asarray(data.data), _labels(data.targets, names, f"{name}: {part}"), names)
        if hasattr(data, "imgs"):
            names = _names(data.classes)
            paths, targets = zip(*data.imgs, strict=True)
            return FileDataset(paths, _labels(targets, names, f"{name}: {part}"), names)
        raise InputError(
            f"{name} does not list its images and labels; load them with folder:DIR or list:FILE", name="source"
        )

    return Splits(split("train"), split("validation"))


def _names(classes: Sequence[str | tuple[str, ...]]) -> list[str]:
    """The class names as strings: each class of ImageNet has several names, which are joined."""
    return [name if isinstance(name, str) else ", ".join(name) for name in classes]


def _timm_hfds(name: str, root: Path) -> Splits:
    hub_unreachable()  # if it is, switches the libraries to offline mode; they would retry for minutes

    def reader_of(part: str) -> Any:
        try:
            return create_dataset(name, str(root), split=part).reader
        except ModuleNotFoundError as error:
            raise PackageError(
                f"{name} needs Hugging Face's package datasets (pip install datasets): {error}", name="source"
            ) from error
        except (OSError, ValueError, KeyError) as error:  # no such data set, part or column; no network
            raise InputError(f"{name}: {part}: {error}", name="source") from error

    train = reader_of("train")
    held_out = "validation" if "validation" in (train.dataset.info.splits or ()) else "test"
    test = reader_of(held_out)
    train_labels, test_labels = (
        _integers(reader.dataset[reader.label_key], f"{name}: {part}")
        for reader, part in ((train, "train"), (test, held_out))
    )
    # the label column may lack class names
    named = sorted(train.class_to_idx, key=train.class_to_idx.__getitem__)
    names = named or numbered_classes(train_labels, lambda position: f"{name}: train: image {position}")

    def split(reader: Any, labels: NDArray[np.integer[Any]], part: str) -> ReaderDataset:
        return ReaderDataset(reader, torch.arange(len(labels)), _labels(labels, names, f"{name}: {part}"), names)

    return Splits(split(train, train_labels, "train"), split(test, test_labels, held_out), named=bool(named))


def _labels(values: Any, names: Sequence[str], where: str) -> Tensor:
    """The labels as a tensor, (N,) int64, in [0, C)."""
    labels = _integers(values, where)
    check_labels(labels, len(names), "the number of classes", lambda position: f"{where}: image {position}")
    return torch.from_numpy(labels.astype(np.int64))


def _integers(values: Any, where: str) -> NDArray[np.integer[Any]]:
    """The labels as an integer array, (N,), N at least 1."""
    labels = np.asarray(values[:])
    if labels.ndim != 1 or len(labels) == 0 or not np.issubdtype(labels.dtype, np.integer):
        raise InputTypeError(f"{where}: expected integer labels of shape (N,), got {labels.dtype} {labels.shape}")
    return labels
