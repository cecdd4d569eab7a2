import hashlib
import io
import pickle
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10, CIFAR100

from ltfast.data import (
    ArrayDataset,
    FileDataset,
    ReaderDataset,
    channel_statistics,
    load,
    long_tail_indices,
    pareto_counts,
    sources,
)
from ltfast.errors import InputError

RANDOM = np.random.RandomState(0)


def noise(*shape):
    return RANDOM.randint(0, 256, shape, dtype=np.uint8)


def save_image(path, size=(12, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(*size, 3)).save(path)


# digits


def test_digits():
    bundle = load("digits")
    assert (bundle.image_size, bundle.channels, bundle.num_classes) == (8, 1, 10)
    assert bundle.class_names == [str(i) for i in range(10)]
    assert bundle.class_counts == [110] * 10
    assert len(bundle.test) == 697
    assert min(bundle.test.class_counts) == 64
    pixels = bundle.train.images
    assert (pixels.min(), pixels.max()) == (0, 255)
    np.testing.assert_allclose([bundle.mean[0], bundle.std[0]], [(pixels / 255).mean(), (pixels / 255).std()])
    assert np.array_equal(load("digits").train.images, pixels)


def test_digits_train_and_test_are_all_of_them_once():
    from sklearn.datasets import load_digits

    bundle = load("digits")
    split = np.concatenate([bundle.train.images, bundle.test.images]).reshape(-1, 64)
    labels = np.concatenate([bundle.train.labels, bundle.test.labels])
    whole = np.round(load_digits().data * 255 / 16)

    def rows(images, targets):
        return sorted(map(tuple, np.column_stack([targets, images]).astype(int).tolist()))

    assert rows(split, labels) == rows(whole, load_digits().target)


@pytest.mark.parametrize("imbalance", [1, 10, 100])
def test_a_long_tail_cuts_train_and_leaves_test(imbalance):
    whole, cut = load("digits"), load("digits", imbalance=imbalance)
    kept = long_tail_indices(whole.train.labels, 10, imbalance)
    assert np.array_equal(cut.train.images, whole.train.images[kept])
    assert torch.equal(cut.train.labels, whole.train.labels[kept])
    assert (cut.class_counts[0], cut.class_counts[-1]) == (110, 110 // imbalance)
    assert np.array_equal(cut.test.images, whole.test.images)
    assert (cut.mean, cut.std) == channel_statistics(cut.train.images)


def test_pareto_profile():
    assert load("digits", imbalance=10, profile="pareto").class_counts == pareto_counts(110, 10, 10)


def test_step_profile():
    assert load("digits", imbalance=10, profile="step").class_counts == [110] * 5 + [11] * 5


def test_a_class_without_training_images_is_named(tmp_path):
    def with_labels(labels):
        return save(tmp_path, arrays(y_train=np.array(labels)))

    with pytest.raises(InputError, match=r"all 4 classes, but 1 have none: 0; do its labels start at 1\?") as caught:
        load(with_labels([1, 2, 3] * 4))
    assert str(caught.value).startswith(f"npz:{tmp_path}")
    with pytest.raises(InputError, match=r"all 4 classes, but 2 have none: 0, 2$"):  # not only label 0 is empty
        load(with_labels([1, 3] * 6))
    with pytest.raises(ValueError, match=r"all 12 classes, but 9 have none: 1, 2, 3, 4, 5, \.\.\.$"):
        load(with_labels([0, 10, 11] * 4), imbalance=2)
    bundle = load(save(tmp_path, arrays(y_test=np.zeros(6, dtype=int))))
    assert bundle.test.class_counts == [6, 0, 0]

    with pytest.raises(ValueError, match=r"all 3 classes, but 1 have none: 1$"):
        load(make_list(tmp_path, train="a b/0.png 0\na b/1.png 2\na b/2.png 2\n"), root=tmp_path / "images")


# cifar10 and cifar100: small files in the same format


@pytest.mark.parametrize(("source", "dataset"), [("cifar10", CIFAR10), ("cifar100", CIFAR100)])
def test_cifar(tmp_path, monkeypatch, source, dataset):
    names = [f"class {i}" for i in range(4)]
    label_key = "labels" if source == "cifar10" else "fine_labels"
    folder = tmp_path / dataset.base_folder
    folder.mkdir()
    parts = {}

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    for name in [file for file, _ in dataset.train_list + dataset.test_list]:
        parts[name] = {"data": noise(8, 3072), label_key: [i % 4 for i in range(8)]}
    sums = {name: write(name, content) for name, content in parts.items()}
    for attribute in ("train_list", "test_list"):
        monkeypatch.setattr(dataset, attribute, [[name, sums[name]] for name, _ in getattr(dataset, attribute)])
    meta = {**dataset.meta, "md5": write(dataset.meta["filename"], {dataset.meta["key"]: names})}
    monkeypatch.setattr(dataset, "meta", meta)

    bundle = load(source, root=tmp_path)
    train = [parts[name] for name, _ in dataset.train_list]
    assert bundle.class_names == names
    assert bundle.class_counts == [2 * len(train)] * 4
    assert (len(bundle.test), bundle.image_size, bundle.channels) == (8, 32, 3)
    assert (bundle.mean, bundle.std) == ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
    expected = train[0]["data"][5].reshape(3, 32, 32).transpose(1, 2, 0)
    np.testing.assert_array_equal(np.asarray(bundle.train.image(5)), expected)
    assert load(source, root=tmp_path, imbalance=2).class_counts[-1] == len(train)


@pytest.mark.parametrize(("source", "dataset"), [("cifar10", CIFAR10), ("cifar100", CIFAR100)])
def test_cifar_that_cannot_be_downloaded(tmp_path, monkeypatch, source, dataset):
    monkeypatch.setattr(dataset, "url", "http://127.0.0.1:9/cifar.tar.gz")
    with pytest.raises(FileNotFoundError, match=rf"{source}: not in the folder .*could not be downloaded.*npz:FILE"):
        load(source, root=tmp_path / "nothing")


# npz:FILE


def arrays(**changed):
    return {
        "x_train": noise(12, 6, 6, 3),
        "y_train": np.arange(12) % 3,
        "x_test": noise(6, 6, 6, 3),
        "y_test": np.arange(6) % 3,
        **changed,
    }


def save(tmp_path, content):
    np.savez(tmp_path / "data.npz", **{name: array for name, array in content.items() if array is not None})
    return f"npz:{tmp_path / 'data.npz'}"


@pytest.mark.parametrize(("shape", "channels"), [((6, 6), 1), ((6, 6, 1), 1), ((6, 6, 3), 3)])
@pytest.mark.parametrize("column", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_npz(tmp_path, shape, channels, column, dtype):
    content = arrays(x_train=noise(12, *shape), x_test=noise(6, *shape))
    for name in ("y_train", "y_test"):
        content[name] = content[name].astype(dtype)[:, None] if column else content[name].astype(dtype)
    bundle = load(save(tmp_path, content))
    assert (bundle.image_size, bundle.channels, bundle.class_counts) == (6, channels, [4, 4, 4])
    assert bundle.test.labels.tolist() == [0, 1, 2, 0, 1, 2]
    np.testing.assert_array_equal(np.asarray(bundle.test.image(1)), content["x_test"][1].squeeze())
    pixels = content["x_train"].reshape(-1, channels) / 255
    np.testing.assert_allclose(bundle.mean, pixels.mean(0))
    np.testing.assert_allclose(bundle.std, pixels.std(0))


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"y_test": None}, ValueError, r"expected the arrays x_train, y_train, x_test, y_test, got \['x_train'"),
        ({"x_train": noise(12, 6, 6, 3) / 255}, TypeError, "train: images: expected uint8 in 0..255, got float64"),
        ({"y_train": np.arange(12) / 3}, TypeError, "y_train: expected integers or strings, got float64"),
        ({"y_test": np.array(list("abcabc"))}, TypeError, "y_test: expected integers, got <U1"),
        (
            {"y_train": np.array(list("abc") * 4), "y_test": np.array(list("abcabd"))},
            ValueError,
            r"y_test\[5\]: expected a label of y_train \('a', 'b', 'c'\), got 'd'",
        ),
        ({"y_train": np.array(list("abc") * 4)}, TypeError, "y_test: expected strings, got int64"),
        ({"class_names": np.arange(3)}, TypeError, "class_names: expected strings, got int64"),
        (
            {"class_names": np.array(["a", "b", "a"])},
            ValueError,
            r"class_names: expected shape \(C,\) .* each name once",
        ),
        ({"class_names": np.array([["a", "b", "c"]])}, ValueError, r"class_names: expected shape \(C,\)"),
        (
            {"class_names": np.array(["a", "b"])},
            ValueError,
            r"y_train\[2\]: expected a label below 2, the length of class_names, got 2",
        ),
        (
            {"class_names": np.array(list("abcd"))},
            ValueError,
            "expected training images of all 4 classes, but 1 have none: d$",
        ),
        (
            {"class_names": np.array(["a", "b"]), "y_train": np.array(list("abc") * 4)},
            TypeError,
            "y_test: expected strings, got int64",
        ),
        ({"y_test": np.array([0, None] * 3)}, ValueError, "y_test cannot be read .*allow_pickle"),
        ({"y_train": np.arange(11) % 3}, ValueError, "train: images: expected as many .* 12 images and 11 labels"),
        ({"y_test": np.eye(6, dtype=int)}, ValueError, r"y_test: expected shape \(N,\) .* got \(6, 6\)"),
        ({"y_test": np.arange(6)}, ValueError, r"y_test\[5\]: expected a label below 3, as in y_train, got 5"),
        ({"y_train": np.arange(12) - 1}, ValueError, r"y_train\[0\]: expected a label of at least 0, got -1"),
        ({"y_train": np.arange(0)}, ValueError, r"y_train: expected shape \(N,\) with N at least 1, got \(0,\)"),
        ({"x_test": noise(6, 5, 5, 3)}, ValueError, r"x_test: .*\(6, 6, 3\) as in x_train, got \(5, 5, 3\)"),
        (
            {"x_train": noise(12, 3, 6, 6), "x_test": noise(6, 3, 6, 6)},
            ValueError,
            r"train: images: expected shape .* got \(12, 3, 6, 6\)",
        ),
        (
            {"x_train": noise(12, 5, 6), "x_test": noise(6, 5, 6)},
            ValueError,
            "expected square images, got 5 x 6; pad them, or use folder:",
        ),
        (
            {"x_train": np.full((12, 6, 6, 3), 7, dtype=np.uint8)},
            ValueError,
            "images: expected varying values, got 7 everywhere in channel 0",
        ),
    ],
)
def test_bad_npz(tmp_path, changed, error, message):
    with pytest.raises(error, match=message):
        load(save(tmp_path, arrays(**changed)))


@pytest.mark.parametrize("column", [False, True])
def test_npz_with_words_as_labels(tmp_path, column):
    words = {"y_train": np.array(["bee", "ant", "cow"] * 4), "y_test": np.array(["cow", "bee", "ant"] * 2)}
    content = {name: labels[:, None] if column else labels for name, labels in words.items()}
    bundle = load(save(tmp_path, arrays(**content)))
    assert (bundle.class_names, bundle.named, bundle.class_counts) == (["ant", "bee", "cow"], True, [4, 4, 4])
    assert bundle.train.labels[:3].tolist() == [1, 0, 2]
    assert bundle.test.labels.tolist() == [2, 1, 0] * 2


def test_npz_with_validation_images(tmp_path):
    whole = arrays()
    part = {"x_val": whole["x_test"][::2], "y_val": whole["y_test"][::2]}
    bundle = load(save(tmp_path, arrays(**part)))
    assert np.array_equal(bundle.validation.images, part["x_val"])
    assert bundle.validation.labels.tolist() == part["y_val"].tolist()
    for wrong, message in (
        ({"x_val": part["x_val"]}, "expected the arrays x_train, y_train, x_test, y_test, x_val, y_val, got"),
        ({**part, "x_val": part["x_val"][:, 1:]}, r"x_val: expected images of shape .* as in x_train, got"),
        ({**part, "y_val": part["y_val"] + 3}, r"y_val\[\d\]: expected a label below 3, as in y_train, got"),
    ):
        with pytest.raises(InputError, match=message):
            load(save(tmp_path, arrays(**wrong)))


def test_npz_with_class_names(tmp_path):
    names = np.array(["cow", "ant", "bee"])
    bundle = load(save(tmp_path, arrays(class_names=names)))
    assert (bundle.class_names, bundle.named) == (["cow", "ant", "bee"], True)
    assert bundle.test.labels.tolist() == [0, 1, 2] * 2
    words = {"y_train": names[np.arange(12) % 3], "y_test": names[np.arange(6) % 3]}
    bundle = load(save(tmp_path, arrays(class_names=names, **words)))
    assert bundle.class_names == ["cow", "ant", "bee"]
    assert bundle.test.labels.tolist() == [0, 1, 2] * 2
    words["y_test"] = np.array(["dog"] * 6)
    with pytest.raises(InputError, match=r"y_test\[0\]: expected a name in class_names \('cow', .*\), got 'dog'"):
        load(save(tmp_path, arrays(class_names=names, **words)))


def test_no_npz(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"source: no file .*gone\.npz"):
        load(f"npz:{tmp_path}/gone.npz")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(ValueError, match=r"text\.npz: expected a \.npz file, but it cannot be read as one"):
        load(f"npz:{tmp_path}/text.npz")
    whole = (tmp_path / "data.npz", save(tmp_path, arrays()))[0].read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[:-100])
    with pytest.raises(ValueError, match=r"cut\.npz: expected a \.npz file, but it cannot be read as one"):
        load(f"npz:{tmp_path}/cut.npz")
    with open(tmp_path / "single.npz", "wb") as file:
        np.save(file, noise(3))
    with pytest.raises(ValueError, match=r"single\.npz: expected a \.npz file, but it cannot be read as one"):
        load(f"npz:{tmp_path}/single.npz")


# folder:DIR


def make_folder(root, held_out="test", test_classes=("ant", "bee")):
    for name, number in (("ant", 4), ("bee", 4)):
        for i in range(number):
            save_image(root / "train" / name / f"{i}.png")
    for name in test_classes:
        for i in range(2):
            save_image(root / held_out / name / f"{i}.png")
    return f"folder:{root}"


@pytest.mark.parametrize("held_out", ["test", "val"])
def test_folder(tmp_path, held_out):
    bundle = load(make_folder(tmp_path, held_out), imbalance=2)
    assert bundle.class_names == ["ant", "bee"]
    assert bundle.class_counts == [4, 2]
    assert bundle.test.class_counts == [2, 2]
    assert (bundle.image_size, bundle.channels) == (224, 3)
    assert (bundle.mean, bundle.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    image, label = bundle.test[3]
    assert (image.mode, image.size, label) == ("RGB", (10, 12), 1)


def test_folder_takes_test_before_val(tmp_path):
    make_folder(tmp_path, "val", ("ant",))
    bundle = load(make_folder(tmp_path, "test"))
    assert bundle.test.class_counts == [2, 2]
    assert bundle.validation.class_counts == [2, 0]
    assert all("/val/" in path for path in bundle.validation.paths)
    assert bundle.origins == {"test": "test/", "validation": "val/"}


@pytest.mark.parametrize("held_out", ["test", "val"])
def test_folder_with_one_other_part_has_no_validation_images(tmp_path, held_out):
    bundle = load(make_folder(tmp_path, held_out))
    assert bundle.validation is None
    assert bundle.origins == {"test": f"{held_out}/"}
    assert not any("validation" in name for name in bundle.digests())


def test_the_validation_images_of_a_folder_have_its_classes(tmp_path):
    make_folder(tmp_path, "val", ("cow",))
    with pytest.raises(InputError, match=r"val: expected the classes of .*train, got further classes \['cow'\]"):
        load(make_folder(tmp_path))
    for path in (tmp_path / "val" / "cow").iterdir():
        path.unlink()
    (tmp_path / "val" / "cow").rename(tmp_path / "val" / "ant")
    with pytest.raises(FileNotFoundError, match="val: expected validation images, got none"):
        load(f"folder:{tmp_path}")


def flat_folder(root):
    for name, number in (("ant", 10), ("bee", 5)):
        for i in range(number):
            save_image(root / name / "photos" / f"{i}.png")
    (root / "notes.txt").write_text("")
    return f"folder:{root}"


def test_a_flat_folder_is_split(tmp_path):
    source = flat_folder(tmp_path)
    bundle = load(source, test_fraction=0.2, validation=0.25)
    assert bundle.class_names == ["ant", "bee"]
    assert (bundle.class_counts, bundle.validation.class_counts) == ([6, 3], [2, 1])
    assert bundle.test.class_counts == [2, 1]
    assert bundle.left_out == f"left out of {tmp_path}: 1 not images ('notes.txt')"
    assert bundle.origins == {"test": "0.2 of the training images", "validation": "0.25 of the training images"}
    with pytest.raises(
        FileNotFoundError, match=r"no folder .*/train; .* with --test-fraction, .* one folder per class"
    ):
        load(source)
    with pytest.raises(FileNotFoundError, match=r"no folder .*gone"):
        load(f"{source}/gone", test_fraction=0.2)
    (tmp_path / "test").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no folder .*/train; expected train/ and test/ or val/"):
        load(source, test_fraction=0.2)


def test_a_folder_with_training_images_alone_is_split(tmp_path):
    flat_folder(tmp_path / "train")
    bundle = load(f"folder:{tmp_path}", test_fraction=0.2)
    assert (bundle.class_counts, bundle.test.class_counts, bundle.validation) == ([8, 4], [2, 1], None)
    with pytest.raises(FileNotFoundError, match=r"no folder .*/val; expected train/"):
        load(f"folder:{tmp_path}")


def test_parts_that_a_source_has_are_not_taken(tmp_path):
    make_folder(tmp_path, "val")
    source = make_folder(tmp_path)
    with pytest.raises(InputError, match=r"^test_fraction: expected none, since folder:.* has test images, got 0.2"):
        load(source, test_fraction=0.2)
    with pytest.raises(InputError, match=r"^validation: expected none, since folder:.* has validation images, got 0.2"):
        load(source, validation=0.2)


def test_validation_images_are_taken_from_the_long_tail():
    whole, cut = load("digits", imbalance=10), load("digits", imbalance=10, validation=0.2)
    counts = [a + b for a, b in zip(cut.class_counts, cut.validation.class_counts, strict=True)]
    assert counts == whole.class_counts
    assert all(abs(b - 0.2 * n) < 1 for b, n in zip(cut.validation.class_counts, counts, strict=True))
    together = np.concatenate([cut.train.images, cut.validation.images]).reshape(len(whole.train), -1)
    assert sorted(map(tuple, together)) == sorted(map(tuple, whole.train.images.reshape(len(together), -1)))
    assert np.array_equal(cut.test.images, whole.test.images)
    assert (cut.mean, cut.std) == channel_statistics(cut.train.images)
    assert {name for name in cut.digests() if name.startswith("validation")} == {
        "validation labels",
        "validation images",
    }
    again, other = (load("digits", imbalance=10, validation=0.2, seed=seed) for seed in (0, 1))
    assert again.digests() == cut.digests()
    assert other.digests()["validation images"] != cut.digests()["validation images"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"validation": 0.0}, "validation: expected a number above 0 and below 1, got 0.0"),
        ({"validation": 1.0}, "validation: expected a number above 0 and below 1, got 1.0"),
        ({"validation": 1e-4}, "validation: cannot take 0.0001 of 1100 images, since every class keeps at least one"),
        ({"test_fraction": 0.1}, "test_fraction: expected none, since digits has test images, got 0.1"),
        ({"validation": 0.1, "seed": -1}, r"seed: expected an integer from 0 to 2\*\*32 - 1, got -1"),
        ({"test": "x.txt"}, "test: expected none, since only list: has a test list, got x.txt"),
        ({"columns": {"path": "x"}}, "columns: expected none, since only csv: has columns, got {'path': 'x'}"),
    ],
)
def test_bad_parts(arguments, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        load("digits", **arguments)


def test_folder_may_lack_test_images_of_a_class(tmp_path):
    assert load(make_folder(tmp_path, test_classes=("bee",))).test.class_counts == [0, 2]


def test_bad_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"folder: no folder .*gone"):
        load(f"folder:{tmp_path}/gone")
    source = make_folder(tmp_path / "a", "validation")
    with pytest.raises(FileNotFoundError, match=r"no folder .*val; expected train/ and test/ or val/ in"):
        load(source)
    source = make_folder(tmp_path / "b", "test", ("ant", "cow"))
    with pytest.raises(ValueError, match=r"expected the classes of .*train, got further classes \['cow'\]"):
        load(source)
    source = make_folder(tmp_path / "c")
    (tmp_path / "c" / "train" / "empty").mkdir()
    with pytest.raises(
        ValueError, match=r"folder:.*/c: expected training images of all 3 .*, but 1 have none: empty \(it is empty\)"
    ):
        load(source)
    source = make_folder(tmp_path / "d", test_classes=())
    (tmp_path / "d" / "test" / "ant").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="test: expected test images, got none"):
        load(source)


# list:FILE


def make_list(root, held_out="test", train=None, test=None):
    for i in range(3):
        save_image(root / "images" / "a b" / f"{i}.png")
    name = {"train": "Bees_LT_train.txt", held_out: f"Bees_LT_{held_out}.txt"}
    (root / name["train"]).write_text(train or "a b/0.png 0\n\na b/1.png 1\na b/2.png 0\n")
    (root / name[held_out]).write_text(test or "a b/1.png 1\n")
    return f"list:{root}/Bees_LT_train.txt"


@pytest.mark.parametrize("held_out", ["test", "val"])
def test_list(tmp_path, held_out):
    bundle = load(make_list(tmp_path, held_out), root=tmp_path / "images")
    assert isinstance(bundle.train, FileDataset)
    assert bundle.class_names == ["0", "1"]
    assert bundle.class_counts == [2, 1]
    assert bundle.train.paths == [str(tmp_path / "images" / "a b" / f"{i}.png") for i in range(3)]
    assert bundle.test.labels.tolist() == [1]
    assert bundle.train[2][0].size == (10, 12)
    assert (bundle.image_size, bundle.channels) == (224, 3)


def test_list_takes_test_before_val(tmp_path):
    make_list(tmp_path, "val", test="a b/0.png 0\n")
    assert load(make_list(tmp_path, "test"), root=tmp_path / "images").test.labels.tolist() == [1]


def test_the_val_list_beside_a_test_list_is_for_validation(tmp_path):
    make_list(tmp_path, "val", test="a b/0.png 0\na b/1.png 1\n")
    bundle = load(make_list(tmp_path, "test"), root=tmp_path / "images")
    assert bundle.validation.labels.tolist() == [0, 1]
    assert bundle.origins == {"test": "Bees_LT_test.txt", "validation": "Bees_LT_val.txt"}


def test_a_list_of_any_name(tmp_path):
    source = make_list(tmp_path)
    for old, new in (("train", "bees.tsv"), ("test", "other")):
        text = (tmp_path / f"Bees_LT_{old}.txt").read_text().replace(".png ", ".png\t")
        (tmp_path / new).write_text(text)
    images = tmp_path / "images"
    named, own = (
        load(f"list:{tmp_path}/bees.tsv", root=images, test=tmp_path / "other"),
        load(source, root=images),
    )
    assert (named.train.paths, named.test.paths) == (own.train.paths, own.test.paths)
    assert torch.equal(named.train.labels, own.train.labels)
    assert named.origins == {"test": "other"}
    # a list that is named comes before the one in the same folder
    (tmp_path / "other").write_text("a b/0.png 0\n")
    assert load(source, root=images, test=tmp_path / "other").test.labels.tolist() == [0]
    with pytest.raises(FileNotFoundError, match=r"expected a test list for .*bees\.tsv; give a list with --test, or"):
        load(f"list:{tmp_path}/bees.tsv", root=images)
    with pytest.raises(FileNotFoundError, match=r"^test: no file .*gone"):
        load(f"list:{tmp_path}/bees.tsv", root=images, test=tmp_path / "gone")
    (tmp_path / "bees.tsv").write_text("".join(f"a b/{i % 3}.png {i % 2}\n" for i in range(10)))
    bundle = load(f"list:{tmp_path}/bees.tsv", root=images, test_fraction=0.2)
    assert (bundle.class_counts, bundle.test.class_counts) == ([4, 4], [1, 1])


def test_bad_lists(tmp_path):
    images = tmp_path / "images"
    with pytest.raises(FileNotFoundError, match=r"source: no file .*gone_train\.txt"):
        load(f"list:{tmp_path}/gone_train.txt")
    with pytest.raises(FileNotFoundError, match=r"source: no file .*list\.txt"):
        load(f"list:{tmp_path}/list.txt")
    for line in ("a b/0.png", "a b/0.png -1", "a b/0.png 1.5", "7"):
        source = make_list(tmp_path, train=f"a b/1.png 0\n{line}\n")
        with pytest.raises(ValueError, match=r"Bees_LT_train\.txt:2: expected a path and a label"):
            load(source, root=images)
    with pytest.raises(ValueError, match=r"Bees_LT_train\.txt: .* got an empty file"):
        load(make_list(tmp_path, train="\n"), root=images)
    with pytest.raises(ValueError, match=r"Bees_LT_test\.txt:1: expected a label below 2, as in .*, got 5"):
        load(make_list(tmp_path, test="a b/0.png 5\n"), root=images)
    with pytest.raises(FileNotFoundError, match=r"no image .*elsewhere/a b/0\.png; is .* the folder of the images"):
        load(make_list(tmp_path), root=tmp_path / "elsewhere")
    source = make_list(tmp_path / "alone", "other")
    with pytest.raises(FileNotFoundError, match=r"next to .*: Bees_LT_test\.txt or Bees_LT_val\.txt"):
        load(source, root=tmp_path / "alone" / "images")


# timm's data sets


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    path.write_bytes(header + array.tobytes())


def test_torch_fashion_mnist(tmp_path):
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    labels = (np.arange(40) % 10).astype(np.uint8)
    images = {"train": noise(40, 28, 28), "t10k": noise(40, 28, 28)}
    for part in images:
        write_idx(raw / f"{part}-images-idx3-ubyte", images[part])
        write_idx(raw / f"{part}-labels-idx1-ubyte", labels)
    bundle = load("torch/fashion_mnist", root=tmp_path, imbalance=4)
    assert isinstance(bundle.train, ArrayDataset)
    assert (bundle.image_size, bundle.channels) == (28, 1)
    assert bundle.class_names[9] == "Ankle boot"
    assert (bundle.class_counts[0], bundle.class_counts[-1]) == (4, 1)
    np.testing.assert_array_equal(np.asarray(bundle.test.image(3)), images["t10k"][3])
    assert (bundle.mean, bundle.std) == channel_statistics(bundle.train.images)


def test_torch_image_folder(tmp_path):
    make_folder(tmp_path, "validation")
    bundle = load("torch/image_folder", root=tmp_path)
    assert isinstance(bundle.train, FileDataset)
    assert bundle.class_names == ["ant", "bee"]
    assert (bundle.class_counts, bundle.test.class_counts) == ([4, 4], [2, 2])
    (tmp_path / "validation").rename(tmp_path / "unused")
    bundle = load("torch/image_folder", root=tmp_path, test_fraction=0.25)
    assert (bundle.class_counts, bundle.test.class_counts) == ([3, 3], [1, 1])


class FakeReader:
    """Has the interface of timm's ReaderHfds."""

    label_key = "label"

    def __init__(self, number):
        self.class_to_idx = {"ant": 0, "bee": 1}
        self.pixels = noise(number, 6, 5, 3)
        self.labels = [i % 2 for i in range(number)]
        self.dataset = self

    def __getitem__(self, key):
        if key == "label":
            return self.labels
        file = io.BytesIO()
        Image.fromarray(self.pixels[key]).save(file, "PNG")
        return io.BytesIO(file.getvalue()), self.labels[key]


@pytest.mark.parametrize("held_out", ["validation", "test"])
def test_hfds(tmp_path, monkeypatch, held_out):
    readers = {"train": FakeReader(8), held_out: FakeReader(4)}
    for reader in readers.values():
        reader.info = SimpleNamespace(splits=dict.fromkeys(readers))

    def create_dataset(name, root, split):
        assert (name, root) == ("hfds/someone/bees", str(tmp_path))
        return SimpleNamespace(reader=readers[split])

    monkeypatch.setattr(sources, "create_dataset", create_dataset)
    bundle = load("hfds/someone/bees", imbalance=2, root=tmp_path)
    assert isinstance(bundle.train, ReaderDataset)
    assert (bundle.class_names, bundle.class_counts, bundle.test.class_counts) == (["ant", "bee"], [4, 2], [2, 2])
    assert (bundle.image_size, bundle.channels) == (224, 3)
    image, label = bundle.train[4]
    assert label == 1
    np.testing.assert_array_equal(np.asarray(image), readers["train"].pixels[bundle.train.positions[4]])
    np.testing.assert_array_equal(np.asarray(bundle.test.image(3)), readers[held_out].pixels[3])


def test_hfds_without_its_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)  # simulates a missing package
    monkeypatch.delitem(sys.modules, "timm.data.readers.reader_hfds", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r"source: hfds/mnist needs .* \(pip install datasets\)"):
        load("hfds/mnist", root=tmp_path)


@pytest.mark.parametrize("source", ["hfids/mnist", "tfds/mnist", "wds/mnist"])
def test_sources_that_are_read_in_sequence(source):
    with pytest.raises(ValueError, match=rf"source: '{source}' has no random access, which is required"):
        load(source)


@pytest.mark.parametrize(
    "source",
    ["cifar11", "CIFAR10", "", "npz:", "folder:", "csv:", "list:", "zip:a.zip", "wds/x", "tfds/mnist", "torch/nope"],
)
def test_unknown_source_lists_the_sources(source, tmp_path):
    with pytest.raises(ValueError, match="source: ") as caught:
        load(source, root=tmp_path)
    for kind in (
        "digits",
        "cifar10",
        "cifar100",
        "npz:FILE",
        "folder:DIR",
        "csv:FILE",
        "list:FILE",
        "torch/NAME",
        "hfds/NAME",
    ):
        assert f"\n  {kind} " in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"imbalance": 0.5}, "imbalance: expected a finite number of at least 1, got 0.5"),
        ({"imbalance": 500}, "imbalance: 500 leaves class 7 without images"),
        ({"imbalance": 10, "profile": "steps"}, "profile: expected 'exponential', 'pareto' or 'step', got 'steps'"),
    ],
)
def test_bad_long_tails(arguments, message):
    with pytest.raises(ValueError, match=message):
        load("digits", **arguments)
