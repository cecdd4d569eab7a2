"""Data sets by name: `load("cifar10", imbalance=100)`."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_dataset
from torch import Tensor
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes, make_dataset

from ltfast.data.bundle import DataBundle
from ltfast.data.datasets import ArrayDataset, FileDataset, ImageDataset, ReaderDataset
from ltfast.data.long_tail import Profile, long_tail_indices
from ltfast.errors import InputError, InputNotFoundError, InputTypeError
from ltfast.network import hub_unreachable, reachable, seconds

SOURCES = """\
  digits         scikit-learn's handwritten digits, built in
  cifar10        downloaded by torchvision
  cifar100       downloaded by torchvision
  npz:FILE       arrays x_train, y_train, x_test, y_test
  folder:DIR     DIR/train and DIR/test or DIR/val, a folder a class
  list:FILE      a path and a label a line, as ImageNet_LT_train.txt; the images' folder is root
  torch/NAME     torchvision's, through timm: torch/fashion_mnist, torch/places365, torch/imagenet, ...
  hfds/NAME      Hugging Face's, through timm"""

# of CIFAR-10; LDAM, BCL and ProCo use them for CIFAR-100 too
CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR_STD = (0.2023, 0.1994, 0.2010)

DIGITS_TRAIN_PER_CLASS = 110

Splits = tuple[ImageDataset, ImageDataset]


def load(
    source: str, *, imbalance: float | None = None, profile: Profile = "exponential", root: str | Path = "data"
) -> DataBundle:
    """Load a data set, and cut its training images to a long tail.

    Args:
        source: one of

            - `digits`: scikit-learn's 1,797 grey 8 x 8 images; 110 a class for training, the other 697 for testing.
            - `cifar10`, `cifar100`: torchvision's, from the folder `root`, downloaded to it if they are not there.
            - `npz:FILE`: `x_train` and `x_test`, (N, H, H), (N, H, H, 1) or (N, H, H, 3) uint8; `y_train` and `y_test`,
              (N,) or (N, 1) integers. The classes are 0 to the largest training label.
            - `folder:DIR`: `DIR/train`, and `DIR/test` or, where there is none, `DIR/val`; a folder a class in each,
              the classes in the order of their names.
            - `list:FILE`: the lists of ImageNet-LT, Places-LT and iNaturalist, `path label` a line, paths relative to
              `root`. FILE's name has "train" in it; the test list is the file beside it with "test" instead or, where
              there is none, "val" (`ImageNet_LT_train.txt`, `ImageNet_LT_test.txt`).
            - `torch/NAME`, `hfds/NAME`: what `timm.data.create_dataset` names and has random access to, from the folder
              `root`. The training split is "train"; the test split is torchvision's own and, for `hfds/`, "validation"
              or, where there is none, "test".

        imbalance: the count of the largest class over that of the smallest, at least 1; None takes the data as they
            are. The test images are never cut.
        profile: the tail's form, "exponential" or "pareto"; see `ltfast.data.long_tail`.
        root: folder of the images or downloads; of use to `cifar10`, `cifar100`, `list:`, `torch/` and `hfds/`.

    Returns:
        The bundle. `mean` and `std` are CIFAR-10's for `cifar10` and `cifar100`, computed from the (cut) training
        images for other images in arrays, and ImageNet's for images in files, whose `image_size` is 224 and `channels`
        3 (grey files are decoded to RGB).

    Raises:
        ValueError: the source is unknown or malformed, there is one class alone, a class has no training images, or the
            long tail cannot be cut.
        TypeError: an array has the wrong dtype.
        FileNotFoundError: a file or folder is missing, or could not be downloaded.
        ModuleNotFoundError: `hfds/` without Hugging Face's package `datasets`.
    """
    train, test = _splits(source, Path(root).expanduser())
    _check_classes(source, train)
    if imbalance is not None:
        train = train.subset(long_tail_indices(train.labels, len(train.class_names), imbalance, profile))
    if not isinstance(train, ArrayDataset):
        return DataBundle(train, test, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, image_size=224, channels=3)
    height, width = train.images.shape[1:3]
    if height != width:
        raise InputError(f"{source}: expected square images, got {height} x {width}; pad them, or use folder:")
    mean, std = (CIFAR_MEAN, CIFAR_STD) if source in ("cifar10", "cifar100") else channel_statistics(train.images)
    return DataBundle(train, test, mean, std, image_size=height, channels=len(mean))


def channel_statistics(images: NDArray[np.uint8]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and standard deviation of each channel, pixel values in [0, 1].

    Args:
        images: (N, H, W) or (N, H, W, 3) uint8.

    Raises:
        ValueError: a channel is constant, so that it cannot be normalised.
    """
    levels = np.arange(256) / 255
    mean, std = [], []
    for channel in range(1 if images.ndim == 3 else images.shape[3]):
        pixels = images if images.ndim == 3 else images[..., channel]
        # from a histogram: exact, and no copy of the images in floating point
        share = np.bincount(pixels.ravel(), minlength=256) / pixels.size
        mean.append(float(share @ levels))
        std.append(float(np.sqrt(share @ (levels - mean[-1]) ** 2)))
        if np.count_nonzero(share) == 1:
            raise InputError(f"images: expected some variation, channel {channel} is {mean[-1] * 255:.0f} everywhere")
    return tuple(mean), tuple(std)


def _check_classes(source: str, train: ImageDataset) -> None:
    if len(train.class_names) < 2:
        raise InputError(f"{source}: expected at least 2 classes to tell apart, got one: {train.class_names[0]}")
    empty = [label for label, count in enumerate(train.class_counts) if count == 0]
    if empty:
        names = ", ".join(train.class_names[label] for label in empty[:5]) + (", ..." if len(empty) > 5 else "")
        hint = "; do its labels start at 1? They should start at 0" if empty[0] == 0 else ""
        raise InputError(
            f"{source}: expected training images of all {len(train.class_names)} classes, {len(empty)} have none: "
            f"{names}{hint}"
        )


def _splits(source: str, root: Path) -> Splits:
    kind, _, name = source.partition(":")
    if source == "digits":
        return _digits()
    if source in ("cifar10", "cifar100"):
        return _cifar(source, root)
    if kind == "npz" and name:
        return _npz(Path(name).expanduser())
    if kind == "folder" and name:
        return _folder(Path(name).expanduser())
    if kind == "list" and name:
        return _list(Path(name).expanduser(), root)
    if source.startswith("torch/"):
        return _timm_torch(source, root)
    if source.startswith("hfds/"):
        return _timm_hfds(source, root)
    if source.startswith(("hfids/", "tfds/", "wds/")):
        raise InputError(
            f"source: {source!r} is read in sequence, and random access is needed; expected one of\n{SOURCES}"
        )
    raise InputError(f"source: {source!r} is none of\n{SOURCES}")


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
    return whole.subset(torch.from_numpy(np.concatenate(train))), whole.subset(torch.from_numpy(np.concatenate(test)))


def _download(name: str, root: Path, dataset: Callable[[bool], Any], url: str | None = None) -> Any:
    """`dataset(False)` where the files are there, or `dataset(True)`, which downloads; a failure says what to do."""
    with suppress(OSError, RuntimeError):  # what torchvision raises for files that are not there
        return dataset(False)
    try:
        if url is not None and not reachable(url):
            raise OSError(f"{url} does not answer within {seconds():g} seconds")
        return dataset(True)
    except (OSError, RuntimeError) as error:
        raise InputNotFoundError(
            f"{name}: not in the folder {str(root)!r}, and could not be downloaded ({error}). Put its files there as "
            "torchvision does, give the folder that has them as root, or give the images as npz:FILE or folder:DIR"
        ) from error


def _cifar(name: str, root: Path) -> Splits:
    dataset = CIFAR10 if name == "cifar10" else CIFAR100

    def split(train: bool) -> ArrayDataset:
        data = _download(name, root, lambda download: dataset(str(root), train, download=download), dataset.url)
        return ArrayDataset(data.data, torch.tensor(data.targets), data.classes)

    return split(True), split(False)


def _npz(path: Path) -> Splits:
    arrays = _read_npz(path)
    shape = arrays["x_train"].shape[1:]
    if arrays["x_test"].shape[1:] != shape:
        raise InputError(
            f"{path}: x_test: expected images of shape {shape} as in x_train, got {arrays['x_test'].shape[1:]}"
        )
    if arrays["y_train"].size == 0:
        raise InputError(f"{path}: y_train: expected labels, got none")
    # the training labels say which classes there are
    names = [str(label) for label in range(int(arrays["y_train"].max()) + 1)]

    def split(part: str) -> ArrayDataset:
        labels = arrays[f"y_{part}"]
        if labels.ndim == 2 and labels.shape[1] == 1:
            labels = labels[:, 0]
        try:
            return ArrayDataset(arrays[f"x_{part}"], torch.from_numpy(labels.astype(np.int64)), names)
        except (TypeError, ValueError) as error:
            raise (InputTypeError if isinstance(error, TypeError) else InputError)(
                f"{path}: {part}: {error}"
            ) from error

    return split("train"), split("test")


def _read_npz(path: Path) -> dict[str, NDArray[Any]]:
    if not path.is_file():
        raise InputNotFoundError(f"npz: no file {path}")
    try:
        file = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, BadZipFile) as error:
        raise InputError(f"{path}: expected a .npz file, and it is none ({error})") from error
    if not isinstance(file, np.lib.npyio.NpzFile):
        raise InputError(f"{path}: expected a .npz file, got a single array")
    arrays: dict[str, NDArray[Any]] = {}
    with file:
        for name in ("x_train", "y_train", "x_test", "y_test"):
            if name not in file.files:
                raise InputError(f"{path}: expected the arrays x_train, y_train, x_test, y_test, got {file.files}")
            try:
                arrays[name] = file[name]
            except (ValueError, EOFError, OSError, BadZipFile) as error:
                raise InputError(f"{path}: {name} cannot be read ({error})") from error
            if name.startswith("y") and not np.issubdtype(arrays[name].dtype, np.integer):
                raise InputTypeError(f"{path}: {name}: expected integers, got {arrays[name].dtype}")
    return arrays


def _folder(path: Path) -> Splits:
    held_out = path / "test" if (path / "test").is_dir() else path / "val"
    for folder in (path, path / "train", held_out):
        if not folder.is_dir():
            raise InputNotFoundError(f"folder: no folder {folder}; expected train/ and test/ or val/ in {path}")
    names, classes = find_classes(path / "train")

    def split(folder: Path) -> FileDataset:
        unknown = set(find_classes(folder)[0]) - set(names)
        if unknown:
            raise InputError(f"{folder}: expected the classes of {path / 'train'}, got {sorted(unknown)[:5]} besides")
        samples = make_dataset(folder, classes, IMG_EXTENSIONS, allow_empty=True)
        if not samples:
            raise InputNotFoundError(f"{folder}: no images")
        return FileDataset([file for file, _ in samples], torch.tensor([label for _, label in samples]), names)

    return split(path / "train"), split(held_out)


def _list(path: Path, root: Path) -> Splits:
    if "train" not in path.name:
        raise InputError(f"list: expected a file with 'train' in its name (ImageNet_LT_train.txt), got {path}")
    if not path.is_file():
        raise InputNotFoundError(f"list: no file {path}")
    before, _, after = path.name.rpartition("train")
    candidates = [path.with_name(before + part + after) for part in ("test", "val")]
    held_out = next((file for file in candidates if file.is_file()), None)
    if held_out is None:
        raise InputNotFoundError(
            f"list: expected a test list beside {path}: {candidates[0].name} or {candidates[1].name}"
        )
    train_paths, train_labels = _read_list(path, root)
    test_paths, test_labels = _read_list(held_out, root)
    names = [str(label) for label in range(max(train_labels) + 1)]
    if max(test_labels) >= len(names):
        raise InputError(f"{held_out}: expected labels below {len(names)} as in {path}, got {max(test_labels)}")
    return (
        FileDataset(train_paths, torch.tensor(train_labels), names),
        FileDataset(test_paths, torch.tensor(test_labels), names),
    )


def _read_list(path: Path, root: Path) -> tuple[list[Path], list[int]]:
    paths, labels = [], []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        file, _, label = line.strip().rpartition(" ")
        if not file or not label.isdecimal():
            raise InputError(f"{path}:{number}: expected a path and a label of at least 0, got {line!r}")
        paths.append(root / file.strip())
        labels.append(int(label))
    if not paths:
        raise InputError(f"{path}: expected a path and a label a line, got an empty file")
    # one look tells a wrong root at once; a single missing image is named when it is opened
    if not paths[0].is_file():
        raise InputNotFoundError(f"{path}: no image {paths[0]}; is {str(root)!r} the images' folder (root)?")
    return paths, labels


def _timm_torch(name: str, root: Path) -> Splits:
    def split(part: str) -> ImageDataset:
        try:
            data = _download(
                name, root, lambda download: create_dataset(name, str(root), split=part, download=download)
            )
        except AssertionError as error:  # timm's word for a name it does not know
            raise InputError(f"source: {error}; expected one of\n{SOURCES}") from error
        if isinstance(getattr(data, "data", None), np.ndarray | Tensor):
            labels = torch.as_tensor(data.targets)
            return ArrayDataset(np.asarray(data.data), labels, _names(data.classes))
        if hasattr(data, "imgs"):
            paths, targets = zip(*data.imgs, strict=True)
            return FileDataset(paths, torch.tensor(targets), _names(data.classes))
        raise InputError(f"source: {name} has no list of its images and labels; give them as folder:DIR or list:FILE")

    return split("train"), split("validation")


def _names(classes: Sequence[str | tuple[str, ...]]) -> list[str]:
    """ImageNet's classes have several names each."""
    return [name if isinstance(name, str) else ", ".join(name) for name in classes]


def _timm_hfds(name: str, root: Path) -> Splits:
    hub_unreachable()  # asked now, for its libraries ask for minutes

    def split(part: str) -> ReaderDataset:
        try:
            reader = create_dataset(name, str(root), split=part).reader
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"source: {name} needs Hugging Face's package datasets (pip install datasets): {error}"
            ) from error
        labels = torch.tensor(reader.dataset[reader.label_key])
        return ReaderDataset(reader, torch.arange(len(labels)), labels, list(reader.class_to_idx))

    train = split("train")
    held_out = "validation" if "validation" in (train.reader.dataset.info.splits or ()) else "test"
    return train, split(held_out)
