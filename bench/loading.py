"""Measures what the host does for each training image with `--augment-on cpu` and `--augment-on device`, and prints the
table of docs/scaling.md.

    python bench/loading.py        # three minutes, on scikit-learn's photographs

Each figure is the median CPU time of one thread to load a batch of 16 images as a data-loading process does: read,
decode, augment, collate. Both settings are measured in turn, on the same draws. The device's part is measured on one
CPU thread too, and its operators per batch are counted. The spread is half the quartiles' distance, relative to the
median, the largest of a row.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images
from torch import Tensor
from torch.utils.data import default_collate

from ltfast.benchmark.run import machine
from ltfast.data import (
    ArrayDataset,
    DataBundle,
    FileDataset,
    PatchViews,
    SeededViews,
    device_views,
    train_transform,
)
from scaling_counts import Launches

BATCH, SECONDS = 16, 6.0  # images; seconds for each row
STATISTICS = {1: ((0.3,), (0.37,)), 3: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))}
PATCHES = {32: 16, 224: 64}  # their size, as in the recipes of DSCL
ROWS = {  # images, views -> recipes
    ("digits, 8 px", "basic"): "ce, do, livt: digits",
    ("array, 32 px", "cifar"): "ce, do, livt, lpt: cifar",
    ("array, 32 px", "cifar_autoaugment, 2 simclr"): "proco: cifar",
    ("array, 32 px", "dscl, 5 patches"): "dscl: cifar",
    ("JPEG, 640 x 427 px", "imagenet"): "ce, do, lpt: imagenet-lt",
    ("JPEG, 640 x 427 px", "mae"): "livt: imagenet-lt, first stage",
    ("JPEG, 640 x 427 px", "randaugment"): "livt: imagenet-lt, second stage",
    ("JPEG, 640 x 427 px", "randaugment, 2 simclr"): "proco: imagenet-lt",
    ("JPEG, 640 x 427 px", "dscl, 5 patches"): "dscl: imagenet-lt",
    ("JPEG, 384 x 256 px", "imagenet"): "the same, resized in advance",
    ("JPEG, 384 x 256 px", "randaugment, 2 simclr"): "the same",
    ("JPEG, 384 x 256 px", "dscl, 5 patches"): "the same",
}


def bundles(folder: Path) -> dict[str, DataBundle]:
    """The data by name: digits, crops of two photographs as an array, and the photographs in two sizes as files."""
    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    random = np.random.default_rng(0)
    crops = []
    for index in range(256):
        x, y, side = random.integers(0, 200), random.integers(0, 200), random.integers(100, 220)
        crops.append(np.array(photographs[index % 2].resize((32, 32), box=(x, y, x + side, y + side))))

    def bundle(data: Any, size: int, channels: int) -> DataBundle:
        return DataBundle(data, data, *STATISTICS[channels], size, channels)

    def array(images: Any) -> ArrayDataset:
        return ArrayDataset(images, torch.arange(len(images)) % 2, ["a", "b"])

    def files(name: str, resized: Callable[[Image.Image], Image.Image]) -> FileDataset:
        paths = [folder / f"{name}_{number}.jpg" for number in range(2)]
        for photograph, path in zip(photographs, paths, strict=True):
            resized(photograph).save(path, quality=90)
        return FileDataset(paths, torch.arange(2), ["a", "b"])

    return {
        "digits, 8 px": bundle(array((load_digits().images * 15.9).astype(np.uint8)), 8, 1),
        "array, 32 px": bundle(array(np.stack(crops)), 32, 3),
        "JPEG, 640 x 427 px": bundle(files("large", lambda photograph: photograph), 224, 3),
        "JPEG, 384 x 256 px": bundle(files("small", lambda photograph: photograph.resize((384, 256))), 224, 3),
    }


def transforms(bundle: DataBundle, views: str) -> list[Any]:
    if views == "dscl, 5 patches":
        size = bundle.image_size
        return [PatchViews(bundle, "dscl", size, patches=5, patch_size=PATCHES[size], scale=(0.05, 0.6))]
    first, _, others = views.partition(", 2 ")
    return [train_transform(bundle, policy) for policy in [first, *[others] * 2] if policy]  # type: ignore[arg-type]


def nbytes(parts: Sequence[Any]) -> int:
    return sum(part.nbytes if isinstance(part, Tensor) else nbytes(part) for part in parts)


def loaded(views: Any, keys: list[tuple[int, int]]) -> Any:
    """A batch, as a DataLoader makes it."""
    items = views.__getitems__(keys) if hasattr(views, "__getitems__") else [views[key] for key in keys]
    return default_collate(items)


def measure(bundle: DataBundle, views: str) -> tuple[dict[str, list[float]], dict[str, int], int]:
    """CPU times in ms per image, bytes per image that go to the device, and operators that the device launches."""
    steps = transforms(bundle, views)
    cpu = SeededViews(bundle.train, steps, seed=0)
    host, device = device_views(bundle.train, steps, seed=0)
    times: dict[str, list[float]] = {"cpu": [], "host": [], "device": []}
    sizes = {}
    end, draw = time.monotonic() + SECONDS, 0
    while time.monotonic() < end or len(times["cpu"]) < 5:
        keys = [(draw + i, (draw + i) % len(bundle.train)) for i in range(BATCH)]
        draw += BATCH
        moments = [time.process_time()]
        batch = loaded(cpu, keys)
        moments.append(time.process_time())
        *parts, _ = unfinished = loaded(host, keys)
        moments.append(time.process_time())
        device(parts)
        moments.append(time.process_time())
        for name, before, after in zip(times, moments, moments[1:], strict=False):
            times[name].append(1e3 * (after - before) / BATCH)
        sizes = {"cpu": nbytes(batch) // BATCH, "host": nbytes(unfinished) // BATCH}
    with Launches() as launches:
        device(parts)
    return {name: values[1:] for name, values in times.items()}, sizes, launches.number


def spread(values: list[float]) -> float:
    low, middle, high = statistics.quantiles(values, n=4)
    return (high - low) / 2 / middle


def main() -> None:
    torch.set_num_threads(1)
    print("| images | views | recipes | `cpu` | `device`: host | its device, on a CPU | operators | kB sent | spread |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for (images, views), recipes in ROWS.items():
            times, sizes, launches = measure(bundles(Path(folder))[images], views)
            cpu, host, device = (f"{statistics.median(values):.3g} ms" for values in times.values())
            kilobytes = ", ".join(f"{size / 1e3:,.{0 if size > 1e4 else 2}f}" for size in sizes.values())
            noise = f"{100 * max(map(spread, times.values())):.0f} %"
            cells = [images, views, recipes, cpu, host, device, str(launches), kilobytes, noise]
            print(f"| {' | '.join(cells)} |", flush=True)
    print(f"\n{machine(torch.device('cpu'))['machine']}, {time.strftime('%-d %B %Y')}, torch {torch.__version__}")


if __name__ == "__main__":
    main()
