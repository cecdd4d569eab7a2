import numpy as np
import pytest
from PIL import Image

from fixtures import fresh_accelerator, one_thread, undrawn_pictures  # noqa: F401


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
