"""The page "In your own training loop": its scripts are those of examples/ and run; its table counts its lines."""

import copy
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import ltfast.losses
import ltfast.models
from ltfast.ops import patch_roi_pool

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/loops.md").read_text()
TITLES = {"agcl": "A-GCL", "proco": "ProCo", "dscl": "DSCL"}


def blocks(text):
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(("name", "title"), TITLES.items())
def test_the_page_has_the_scripts(name, title):
    script = (ROOT / f"examples/{name}_loop.py").read_text()
    assert script in PAGE
    text = PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]
    assert blocks(text) == [script]


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A long-tailed folder, as the page makes it, but smaller."""
    folder = tmp_path_factory.mktemp("digits")
    spec = importlib.util.spec_from_file_location("digits_folder", ROOT / "examples/digits_folder.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.write_digits(folder, largest=12, smallest=3, test=3)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", TITLES)
def test_the_scripts_run(name, digits):
    command = [sys.executable, str(ROOT / f"examples/{name}_loop.py"), str(digits), "2"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert re.fullmatch(r"test accuracy \d+\.\d%\n", result.stdout)


def test_the_folder_has_a_long_tail(digits):
    counts = [[len(list(path.iterdir())) for path in sorted(digits.glob(f"{part}/*"))] for part in ("train", "test")]
    assert counts[0][0] == 12
    assert counts[0][-1] == 3
    assert counts[0] == sorted(counts[0], reverse=True)
    assert counts[1] == [3] * 10


def names():
    """What the versions without and with a helper use."""
    images, labels = [torch.randn(6, 1, 8, 8) for _ in range(3)], torch.arange(6) % 3
    boxes = torch.tensor([0.0, 1.0, 5.0, 6.0]).repeat(6, 2, 1)
    patches = torch.randn(6, 2, 1, 8, 8)
    encoder, _ = ltfast.models.make_backbone("digits_convnet", in_chans=1, image_size=8)
    network = nn.Sequential()
    network.add_module("encoder", encoder)
    network.add_module("fc", nn.Linear(64, 3))
    return {
        **{name: getattr(ltfast.losses, name) for name in ltfast.losses.__all__},
        **{name: getattr(ltfast.models, name) for name in ("CosineClassifier", "ProjectionHead", "feature_map")},
        **{"torch": torch, "nn": nn, "copy": copy, "patch_roi_pool": patch_roi_pool, "network": network},
        **{"encoder": encoder, "backbone": encoder, "width": 64, "classifier": nn.Linear(64, 3), "num_classes": 3},
        **{"class_counts": [50, 20, 5], "criterion": nn.CrossEntropyLoss(), "epochs": 2, "images": images[0]},
        "labels": labels,
        "proco batches": [(images, labels)] * 2,
        "dscl batches": [((images[0], images[1], patches, boxes), labels)] * 3,
    }


@pytest.mark.parametrize(("name", "title"), TITLES.items())
def test_both_versions_are_the_same_and_their_lines_are_counted(name, title):
    without, with_helper = blocks(PAGE.split(f"\n### {title}, line by line\n")[1].split("\n#")[0])
    seed, losses = torch.seed(), []
    for code in (without, with_helper):
        torch.manual_seed(seed)
        used = names()
        used["batches"] = used.get(f"{name} batches")
        exec(code, used)
        losses.append(used["loss"])
    torch.testing.assert_close(*losses)
    counts = [len([line for line in code.splitlines() if line.strip()]) for code in (without, with_helper)]
    named = {"agcl": "criterion", "proco": "branch", "dscl": "contrast"}[name]
    assert sum(named in line for line in with_helper.splitlines()) <= 4  # lines that the helper needs
    assert re.search(rf"^\| {title} \| `[\w.]+` \| {counts[0]} \| {counts[1]} \|$", PAGE, re.MULTILINE)
