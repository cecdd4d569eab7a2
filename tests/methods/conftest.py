"""What the tests of the methods share."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image

from fixtures import own_cache, undrawn_pictures  # noqa: F401
from ltfast.data import ArrayDataset, DataBundle, load
from ltfast.engine.checkpoint import load_checkpoint


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


def check_killed_runs(whole, arguments, kills, resumed, out):
    """`ltfast train ARGUMENTS`, killed after so many steps time and again, resumes in the stages named and ends with
    the bits and the accuracies of the run that was left alone."""
    script = Path(__file__).parents[1] / "cli" / "killed_train.py"
    steps = [str(step) for step in (*kills, 0)]
    command = [sys.executable, str(script), *steps, "--", *arguments, "--checkpoint-minutes", "0", "--out", str(out)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=400)
    lines = result.stdout.splitlines()
    children = [line for line in lines if line.startswith("child")]
    assert children == ["child -9"] * len(kills) + ["child 0"], result.stderr
    assert [line.split()[1] for line in lines if line.startswith("resuming")] == resumed
    alone, stopped = load_checkpoint(whole)["model"], load_checkpoint(out)["model"]
    assert alone.keys() == stopped.keys()
    assert all(torch.equal(value, stopped[name]) for name, value in alone.items())
    first, second = (json.loads((folder / "metrics.json").read_text())["per_class"] for folder in (whole, out))
    assert first == second
