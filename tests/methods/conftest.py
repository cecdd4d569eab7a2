"""What the tests of the methods share."""

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image

from ltfast.data import ArrayDataset, DataBundle, load


def tiny_bundle(counts=(12, 6, 2), size=8, channels=1):
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    shape = (len(labels), size, size, channels)[: 3 if channels == 1 else 4]
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    data = ArrayDataset(images, labels, [str(number) for number in range(len(counts))])
    return DataBundle(data, data, (0.5,) * channels, (0.25,) * channels, image_size=size, channels=channels)


@pytest.fixture
def like_recipe(tmp_path):
    """A tiny data set of the form and image size of a recipe's."""

    def make(recipe):
        if not recipe["data"].startswith("list:"):
            return tiny_bundle((6, 2), *((8, 1) if recipe["data"] == "digits" else (32, 3)))
        random = np.random.default_rng(0)
        for part in ("train", "test"):
            lines = []
            for number in range(4):
                name = f"{part}_{number}.png"
                Image.fromarray(random.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(tmp_path / name)
                lines.append(f"{name} {number % 2}")
            (tmp_path / f"lists_{part}.txt").write_text("\n".join(lines))
        return load(f"list:{tmp_path}/lists_train.txt", root=tmp_path)

    return make


@pytest.fixture
def _command_line():
    """As tests/cli: bits depend on the number of threads, and each command makes an accelerator of its own."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.set_num_threads(threads)
