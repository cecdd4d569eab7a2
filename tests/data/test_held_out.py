import numpy as np
import pytest
from PIL import Image

from ltfast.data import load, load_test
from ltfast.errors import InputError, InputNotFoundError


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """The same images as a folder, a list and an npz file; the test images have labels 0 and 2 of three classes."""
    monkeypatch.chdir(tmp_path)
    arrays = {}
    for part, labels in (("train", [0, 1, 2]), ("test", [0, 2, 2])):
        lines = []
        for i, label in enumerate(labels):
            path = tmp_path / "d" / part / "abc"[label] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), i).save(path)
            lines.append(f"d/{part}/{'abc'[label]}/{i}.png {label}\n")
        (tmp_path / f"{part}.txt").write_text("".join(lines))
        arrays |= {f"x_{part}": np.full((3, 8, 8), 7, np.uint8) + np.arange(3, dtype=np.uint8)[:, None, None]}
        arrays |= {f"y_{part}": np.array(labels)}
    np.savez("whole.npz", **arrays)
    np.savez("part.npz", **{name: arrays[name] for name in ("x_test", "y_test")})
    return {"folder": "folder:d", "list": "list:train.txt", "npz": "npz:whole.npz"}


@pytest.mark.parametrize("kind", ["folder", "list", "npz"])
def test_the_test_images_need_no_training_images(kind, sources, tmp_path):
    whole = load(sources[kind], root=".")
    (tmp_path / "d" / "train").rename(tmp_path / "moved")
    (tmp_path / "train.txt").unlink()
    bundle = load_test("npz:part.npz" if kind == "npz" else sources[kind], root=".")
    assert bundle.class_names == (["a", "c"] if kind == "folder" else ["0", "1", "2"])
    names, known = bundle.class_names, whole.class_names
    assert [names[label] for label in bundle.test.labels] == [known[label] for label in whole.test.labels]
    assert all(np.array_equal(bundle.test.image(i), whole.test.image(i)) for i in range(3))
    assert (bundle.image_size, bundle.channels, bundle.named) == (whole.image_size, whole.channels, whole.named)


def test_other_sources_are_loaded_whole():
    assert len(load_test("digits").test) == len(load("digits").test)


def test_without_test_images(sources, tmp_path):
    (tmp_path / "d" / "test").rename(tmp_path / "moved")
    with pytest.raises(InputNotFoundError, match=r"no folder d/val; expected test/ or val/ in d$"):
        load_test("folder:d")
    (tmp_path / "test.txt").unlink()
    with pytest.raises(InputNotFoundError, match=r"next to train\.txt: test\.txt or val\.txt"):
        load_test("list:train.txt")
    np.savez("part.npz", x_test=np.zeros((2, 8, 8), np.uint8), y_test=np.array([0, 2**40]))
    with pytest.raises(InputError, match=r"y_test\[1\]: expected a label below 1048576"):
        load_test("npz:part.npz")
    np.savez("part.npz", x_test=np.zeros((2, 8, 6), np.uint8), y_test=np.array([0, 1]))
    with pytest.raises(InputError, match=r"npz:part\.npz: expected square images, got 8 x 6"):
        load_test("npz:part.npz")
