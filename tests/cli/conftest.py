import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Results depend on the number of threads; the child processes of these tests have one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _fresh_accelerator():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def pets(tmp_path, monkeypatch):
    """The folder `pets` of tiny images in the current folder, with three classes of six training and two test
    images."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    for part, count in (("train", 6), ("test", 2)):
        for name in ("cat", "dog", "emu"):
            folder = tmp_path / "pets" / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "pets"
