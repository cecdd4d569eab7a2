"""Fixtures and functions shared by the tests of faults."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from fixtures import fresh_accelerator, one_thread  # noqa: F401
from ltfast.cli import main
from ltfast.engine import timing
from ltfast.engine.checkpoint import load_checkpoint

METHODS = ("ce", "do", "dscl", "lift", "livt", "lpt", "proco")


@pytest.fixture(autouse=True)
def _command_line(monkeypatch):
    monkeypatch.setattr(timing, "time_losses", lambda *arguments: None)  # half of the time of a tiny run
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def encoder(tmp_path_factory):
    """A LiVT run on tiny images, from which LPT starts."""
    out = tmp_path_factory.mktemp("encoder")
    source = tiny_npz(out / "data.npz", [6, 4])
    assert main([*tiny("livt", source, batch_size=4), "--out", str(out / "run")]) == 0
    return out / "run"


def tiny_npz(path, counts, test=2, size=8):
    """A source of random greyscale images with the given class counts."""
    random = np.random.default_rng(0)
    parts = {"train": list(counts), "test": [test] * len(counts)}
    arrays = {}
    for part, numbers in parts.items():
        arrays[f"y_{part}"] = np.repeat(np.arange(len(numbers)), numbers)
        arrays[f"x_{part}"] = random.integers(0, 256, (sum(numbers), size, size), dtype=np.uint8)
    np.savez(path, **arrays)
    return f"npz:{path}"


def tiny_folder(path, per_class=(6, 3), size=12):
    """Random images in files, in classes a and b."""
    random = np.random.default_rng(0)
    for part, number in zip(("train", "test"), per_class, strict=True):
        for name in "ab":
            folder = path / part / name
            folder.mkdir(parents=True)
            for i in range(number):
                Image.fromarray(random.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return f"folder:{path}"


def tiny(method, source, *, batch_size, encoder=None):
    """The arguments of a run with one epoch per stage."""
    own = {
        "do": ["--prune-epochs", "1"],
        "dscl": ["--classifier-epochs", "1", "--patches", "2", "--feature-dim", "16"],
        "lift": ["--init", str(encoder)],
        "livt": [
            *("--pretrain-epochs", "1", "--pretrain-batch-size", str(batch_size), "--warmup-epochs", "0"),
            *("--decoder-dim", "16", "--decoder-depth", "1", "--decoder-heads", "2"),
        ],
        "lpt": ["--init", str(encoder)],
        "proco": ["--augment", "basic", "--contrast-augment", "basic", "--feature-dim", "16", "--hidden-dim", "16"],
    }
    words = ["train", "--method", method, "--data", source, "--batch-size", str(batch_size), "--epochs", "1"]
    return [*words, *own.get(method, [])]


def same_bits(first, second):
    """Whether two runs ended with the same weights and buffers, bit for bit, and the same accuracies."""
    one, two = (load_checkpoint(out)["model"] for out in (first, second))
    accuracies = [json.loads((out / "metrics.json").read_text())["per_class"] for out in (first, second)]
    weights = one.keys() == two.keys() and all(torch.equal(value, two[name]) for name, value in one.items())
    return weights and accuracies[0] == accuracies[1]
