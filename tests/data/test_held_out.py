import numpy as np
import pytest
from PIL import Image

from ltfast.data import load, load_test
from ltfast.errors import InputError, InputNotFoundError


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """The same images as a folder, a table, a list and an npz file; the test images have labels 0 and 2 of three
    classes."""
    monkeypatch.chdir(tmp_path)
    arrays, table = {}, ["path,label,split"]
    for part, labels in (("train", [0, 1, 2]), ("test", [0, 2, 2])):
        lines = []
        for i, label in enumerate(labels):
            path = tmp_path / "d" / part / "abc"[label] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), i).save(path)
            lines.append(f"d/{part}/{'abc'[label]}/{i}.png {label}\n")
            table.append(f"d/{part}/{'abc'[label]}/{i}.png,{'abc'[label]},{part}")
        (tmp_path / f"{part}.txt").write_text("".join(lines))
        arrays |= {f"x_{part}": np.full((3, 8, 8), 7, np.uint8) + np.arange(3, dtype=np.uint8)[:, None, None]}
        arrays |= {f"y_{part}": np.array(labels)}
    (tmp_path / "table.csv").write_text("\n".join(table))
    np.savez("whole.npz", **arrays)
    np.savez("part.npz", **{name: arrays[name] for name in ("x_test", "y_test")})
    words = {name: np.array(list("abc"))[array] for name, array in arrays.items() if name.startswith("y")}
    np.savez("words.npz", **{**arrays, **words})
    return {
        "folder": "folder:d",
        "csv": "csv:table.csv",
        "words": "npz:words.npz",
        "list": "list:train.txt",
        "npz": "npz:whole.npz",
    }


@pytest.mark.parametrize("kind", ["folder", "csv", "list", "npz", "words"])
def test_the_test_images_need_no_training_images(kind, sources, tmp_path):
    whole = load(sources[kind], root=".")
    (tmp_path / "d" / "train").rename(tmp_path / "moved")
    (tmp_path / "train.txt").unlink()
    bundle = load_test("npz:part.npz" if kind == "npz" else sources[kind], root=".")
    assert bundle.class_names == (["0", "1", "2"] if kind in ("list", "npz") else ["a", "c"])
    names, known = bundle.class_names, whole.class_names
    assert [names[label] for label in bundle.test.labels] == [known[label] for label in whole.test.labels]
    assert all(np.array_equal(bundle.test.image(i), whole.test.image(i)) for i in range(3))
    assert (bundle.image_size, bundle.channels, bundle.named) == (whole.image_size, whole.channels, whole.named)


def test_a_source_that_is_a_test_set_by_itself(sources, tmp_path):
    """A table without a column split, a table of test images alone, and a list without "train" in its name."""
    whole = load("csv:table.csv")
    header, *rows = (tmp_path / "table.csv").read_text().split("\n")
    (tmp_path / "plain.csv").write_text("\n".join(row.rpartition(",")[0] for row in [header, *rows[3:]]))
    (tmp_path / "marked.csv").write_text("\n".join([header, *rows[3:]]))
    for name in ("plain", "marked"):
        bundle = load_test(f"csv:{name}.csv")
        assert bundle.class_names == ["a", "c"]
        assert bundle.test.paths == whole.test.paths
    (tmp_path / "test.txt").rename(tmp_path / "night.txt")
    for options in ({"source": "list:night.txt"}, {"source": "list:train.txt", "test": "night.txt"}):
        assert load_test(**options, root=".").test.labels.tolist() == [0, 2, 2]
    (tmp_path / "table.csv").write_text("\n".join([header, *rows[:3]]))
    with pytest.raises(InputNotFoundError, match=r"table\.csv: column split: expected test images, got none"):
        load_test("csv:table.csv")


def test_a_share_of_the_training_images(sources, tmp_path):
    (tmp_path / "flat.csv").write_text("path,label\n" + "".join(f"d/train/a/0.png,{i % 2}\n" for i in range(20)))
    options = {"source": "csv:flat.csv", "test_fraction": 0.3, "seed": 1}
    assert load_test(**options).digests() == load(**options).digests()


def test_other_sources_are_loaded_whole():
    assert len(load_test("digits").test) == len(load("digits").test)


def test_without_test_images(sources, tmp_path):
    (tmp_path / "d" / "test").rename(tmp_path / "moved")
    with pytest.raises(InputNotFoundError, match=r"no folder d/val; expected test/ or val/ in d$"):
        load_test("folder:d")
    (tmp_path / "test.txt").unlink()
    with pytest.raises(InputNotFoundError, match=r"next to train\.txt: test\.txt or val\.txt;"):
        load_test("list:train.txt")
    np.savez("part.npz", x_test=np.zeros((2, 8, 8), np.uint8), y_test=np.array([0, 2**40]))
    with pytest.raises(InputError, match=r"y_test\[1\]: expected a label below 1048576"):
        load_test("npz:part.npz")
    np.savez("part.npz", x_test=np.zeros((2, 8, 6), np.uint8), y_test=np.array([0, 1]))
    with pytest.raises(InputError, match=r"npz:part\.npz: expected square images, got 8 x 6"):
        load_test("npz:part.npz")
