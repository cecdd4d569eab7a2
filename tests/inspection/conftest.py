import numpy as np
import pytest
from PIL import Image

from fixtures import fresh_accelerator, one_thread, undrawn_pictures  # noqa: F401


def smooth(random, size=(40, 40)):
    """An image with coarse structure, of which a resized copy has the same perceptual hash or nearly so."""
    return Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """The folder `photos` in the current folder, with each kind of finding."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    root = tmp_path / "photos"
    for part, counts in (("train", (24, 8, 4)), ("test", (3, 3, 3))):
        for name, count in zip(("cat", "dog", "emu"), counts, strict=True):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                smooth(random).save(root / part / name / f"{i}.png")
    cat = Image.open(root / "train/cat/0.png")
    cat.save(root / "test/cat/equal.bmp")  # another file of the same pixels
    cat.save(root / "train/dog/equal.png")
    Image.open(root / "train/cat/1.png").resize((90, 80)).save(root / "test/emu/similar.png")
    Image.open(root / "train/cat/2.png").save(root / "train/cat/copy.png")
    for name in ("grey", "black"):
        Image.new("L", (28, 50), 128 if name == "grey" else 0).save(root / "train/emu" / f"{name}.png")
    (root / "train/dog/broken.png").write_bytes(b"no image")
    (root / "train/dog/notes.txt").write_text("no image either")
    return root
