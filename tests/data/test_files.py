"""Text and arrays in the user's files are read correctly, or raise an error that names file and line."""

import codecs
import io
import os
import zipfile
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from numpy.lib import format as npy
from PIL import Image

from ltfast.data import ArrayDataset, load, sources
from ltfast.data.class_names import read_class_names
from ltfast.data.files import read_lines
from ltfast.errors import InputError, InputNotFoundError, InputTypeError

# text files


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (b"", "utf-8"),
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (codecs.BOM_UTF32_LE, "utf-32-le"),
        (codecs.BOM_UTF32_BE, "utf-32-be"),
    ],
)
def test_lines_end_with_newlines_alone(tmp_path, end, mark, encoding):
    lines = ["caf\u00e9", "", "a\u2028b", "c\x0bd\x0c", "\x85e\x1c", " f\t"]
    for last in ("", end):
        (tmp_path / "a.txt").write_bytes(mark + (end.join(lines) + last).encode(encoding))
        assert read_lines("list", tmp_path / "a.txt") == lines


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "a.png 0\ncaf\xe9.png 1\n".encode("latin-1"),
            r"a\.txt:2: expected text in UTF-8, got the byte 0xe9 .*convert",
        ),
        (b"a\r\nb\rc\n\x80", r"a\.txt:4: expected text in UTF-8, got the byte 0x80"),
        ("a 0\nb 1\n".encode("utf-16-le"), r"a\.txt:1: expected text in UTF-8, got a null character; convert"),
        (codecs.BOM_UTF16_LE + "a\nb".encode("utf-16-le")[:-1], r"a\.txt:2: expected text in UTF-16-LE, got the byte"),
    ],
)
def test_other_encodings_are_refused_by_line(tmp_path, content, message):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_lines("list", tmp_path / "a.txt")


# paths that are not regular files


@pytest.mark.parametrize("source", ["npz:{}", "list:{}"])
def test_what_is_no_regular_file_is_refused(tmp_path, source):
    """The error is immediate: opening a FIFO would block forever."""
    os.mkfifo(tmp_path / "fifo_train")
    for name, what in (("fifo_train", "a FIFO"), ("folder_train", "a folder"), ("device_train", "a device")):
        path = tmp_path / name
        if name == "folder_train":
            path.mkdir()
        elif name == "device_train":
            path.symlink_to("/dev/zero")
        with pytest.raises(InputError, match=rf"expected a regular file, got {path}, which is {what}"):
            load(source.format(path))
        with pytest.raises(InputError, match=rf"class_names: expected a regular file, got {path}, which is {what}"):
            read_class_names(path)
    loop = tmp_path / "loop_train"
    loop.symlink_to(loop)
    with pytest.raises(InputError, match=r"cannot read .*loop_train"):
        load(source.format(loop))


def test_a_fifo_as_the_test_list_is_refused(tmp_path):
    (tmp_path / "a_train.txt").write_text("a.png 0\n")
    os.mkfifo(tmp_path / "a_test.txt")
    (tmp_path / "a.png").write_text("")
    with pytest.raises(InputError, match=r"a_test\.txt, which is a FIFO"):
        load(f"list:{tmp_path}/a_train.txt", root=tmp_path)


# lists


@pytest.fixture
def listed(tmp_path):
    """A `list:FILE` with two images per class."""

    def write(train, test="x.png 0\n", names=("x.png",)):
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (2, 2)).save(tmp_path / name, "PNG")
        for part, text in (("train", train), ("test", test)):
            content = text if isinstance(text, bytes) else text.encode()
            (tmp_path / f"{part}.txt").write_bytes(content)
        return load(f"list:{tmp_path}/train.txt", root=tmp_path)

    return write


def test_paths_with_unusual_characters(listed, tmp_path):
    names = ["a b/c  d.png", "e\u2028f.png", "g\x0bh.png", "i\x85j.png", "k 7.png", "caf\u00e9.png", "l\u00a0m.png"]
    text = "\n \t\n".join(f"{name}{gap}{i % 2}" for i, (name, gap) in enumerate(zip(names, " \t " * 3, strict=False)))
    for content in (text, codecs.BOM_UTF8 + text.encode(), codecs.BOM_UTF16_BE + text.encode("utf-16-be")):
        data = listed(content, names=["x.png", *names]).train
        assert data.paths == [str(tmp_path / name) for name in names]
        assert data.labels.tolist() == [0, 1, 0, 1, 0, 1, 0]
        assert all(data.image(i).size == (2, 2) for i in range(7))


def test_windows_paths_are_refused_by_line(listed):
    with pytest.raises(InputError, match=r"train\.txt:2: expected / as separator, got 'cat\\\\a b\.png'"):
        listed("x.png 0\ncat\\a b.png 1\n")
    # a file whose name contains a backslash is valid
    assert listed("x.png 0\na\\b.png 1\n", names=["x.png", "a\\b.png"]).class_counts == [1, 1]


@pytest.mark.parametrize("label", ["3000000000", "2", "9" * 19, "9" * 5000, "007"])
def test_a_label_beyond_the_number_of_images_is_named_by_line(listed, label):
    """The error comes before a name is created for each class."""
    with pytest.raises(
        InputError, match=r"train\.txt:3: expected a label (below 2, the number of|of at most 18 digits)"
    ):
        listed(f"x.png 0\n\nx.png {label}\n")
    with pytest.raises(InputError, match=r"test\.txt:1: expected a label (below 2, as in|of at most 18 digits)"):
        listed("x.png 0\nx.png 1\n", test=f"x.png {label}\nx.png 0\n")


@pytest.mark.parametrize("line", ["x.png -1", "x.png \u0663", "x.png 1.0", "x.png,1", "1", "x.png one", "x.png\u00a01"])
def test_lines_without_path_or_label_are_refused(listed, line):
    with pytest.raises(InputError, match=r"train\.txt:2: expected a path and a label of at least 0, got "):
        listed(f"x.png 0\n{line}\n")


# npz


def arrays(**changed):
    """Two classes with the same number of images."""
    random = np.random.default_rng(0)
    return {
        "x_train": random.integers(0, 256, (4, 3, 3), dtype=np.uint8),
        "y_train": np.arange(4) % 2,
        "x_test": random.integers(0, 256, (2, 3, 3), dtype=np.uint8),
        "y_test": np.arange(2),
        **changed,
    }


@pytest.mark.parametrize(
    ("name", "labels", "message"),
    [
        (
            "y_train",
            np.array([0, 1, 3_000_000_000, 0]),
            r"y_train\[2\]: expected a label below 4, the number of training",
        ),
        ("y_train", np.array([0, 1, 2**64 - 1, 0], dtype=np.uint64), r"y_train\[2\]: .* got 18446744073709551615"),
        (
            "y_train",
            np.array([0, 1, 0, -(2**63)]),
            r"y_train\[3\]: expected a label of at least 0, got -9223372036854775808",
        ),
        ("y_train", np.array([0, 1, 0, 4]), r"y_train\[3\]: expected a label below 4"),
        (
            "y_test",
            np.array([2**64 - 1, 0], dtype=np.uint64),
            r"y_test\[0\]: expected a label below 2, as in y_train, got 18",
        ),
        ("y_test", np.array([0, -1], dtype=np.int8), r"y_test\[1\]: expected a label of at least 0, got -1"),
    ],
)
def test_labels_of_arrays_that_cannot_be_are_named(tmp_path, name, labels, message):
    np.savez(tmp_path / "d.npz", **arrays(**{name: labels}))
    with pytest.raises(InputError, match=message):
        load(f"npz:{tmp_path}/d.npz")


@pytest.mark.parametrize("dtype", [np.uint64, np.uint16, np.int8])
def test_labels_of_any_integers_are_taken(tmp_path, dtype):
    np.savez(tmp_path / "d.npz", **arrays(y_train=np.array([0, 1, 1, 1], dtype=dtype)))
    assert load(f"npz:{tmp_path}/d.npz").class_counts == [1, 3]


@pytest.mark.parametrize("dtype", [torch.uint64, torch.int64])
def test_array_datasets_refuse_labels_that_are_no_classes(dtype):
    images = np.zeros((2, 3, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match=r"labels: expected values in \[0, 2\), got 1 to 3000000000"):
        ArrayDataset(images, torch.tensor([1, 3_000_000_000]).to(dtype), ["a", "b"])
    assert ArrayDataset(images, torch.tensor([1, 0]).to(dtype), ["a", "b"]).labels.dtype == torch.int64


def forged(path, name, header, body=b"", size=None):
    """An archive in which one array's file is written by hand; `size` is the size that the archive claims for it."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for other, array in arrays().items():
            file = io.BytesIO()
            if other == name:
                npy.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": header})
                file.write(body)
            else:
                npy.write_array(file, array)
            archive.writestr(f"{other}.npy", file.getvalue())
        if size is not None:
            archive.getinfo(f"{name}.npy").file_size = size


@pytest.mark.parametrize("shape", [(10**6, 1000, 1000), (2**40, 2**40), (-1, 3, 3), (5, 3, 3), (3, 3, 3)])
def test_a_header_that_claims_another_size_is_refused_before_it_is_allocated(tmp_path, shape, monkeypatch):
    forged(tmp_path / "d.npz", "x_train", shape, bytes(36))
    monkeypatch.setattr(npy, "read_array", lambda *args, **kwargs: pytest.fail("read"))
    with pytest.raises(InputError, match=r"d\.npz: x_train cannot be read \(its header claims .* but it has 36\)"):
        load(f"npz:{tmp_path}/d.npz")


def test_arrays_that_do_not_fit_into_memory_are_refused(tmp_path, monkeypatch):
    """Tests the size that the archive claims, and a real archive of zeros that expands to it."""
    forged(tmp_path / "lie.npz", "x_train", (4, 3, 3), bytes(36), size=2**32 - 2)
    zeros = 9 * 2**20
    forged(tmp_path / "bomb.npz", "x_test", (zeros // 9, 3, 3), bytes(zeros // 9 * 9))
    assert (tmp_path / "bomb.npz").stat().st_size < zeros / 100
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2**22))
    for name in ("lie", "bomb"):
        with pytest.raises(InputError, match=rf"{name}\.npz: its arrays: .* bytes do not fit into memory"):
            load(f"npz:{tmp_path}/{name}.npz")
    monkeypatch.undo()
    with pytest.raises(InputError, match=r"x_train cannot be read"):
        load(f"npz:{tmp_path}/lie.npz")


@pytest.mark.parametrize("header", [b"{'descr': '|u1', 'fortran_order': False, 'shape': " + b"(" * 5000, b"\xff" * 50])
def test_forged_headers_are_refused(tmp_path, header):
    content = npy.magic(1, 0) + len(header).to_bytes(2, "little") + header
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        for name in arrays():
            archive.writestr(f"{name}.npy", content)
    with pytest.raises(InputError, match=r"d\.npz: x_train cannot be read"):
        load(f"npz:{tmp_path}/d.npz")


# Hugging Face's data sets


@pytest.mark.parametrize(
    ("train", "test", "names", "message"),
    [
        (
            [0, 1, 2],
            [0],
            {"ant": 0, "bee": 1},
            "train: image 2: expected a label below 2, the number of classes, got 2",
        ),
        ([0, 1], [0, -1], {"ant": 0, "bee": 1}, "test: image 1: expected a label of at least 0, got -1"),
        ([0, 1, 2**40], [0], {}, "train: image 2: expected a label below 3, the number of training images"),
        ([0, 1], [2], {}, "test: image 0: expected a label below 2"),
        ([0, None], [0], {}, "train: expected integer labels of shape .* got object"),
        (["ant", "bee"], [0], {}, "train: expected integer labels of shape .* got <U3"),
        ([0, 2**70], [0], {}, "train: expected integer labels of shape .* got object"),
    ],
)
def test_labels_of_readers(monkeypatch, train, test, names, message):
    def create_dataset(name, root, split):
        labels = {"train": train, "test": test}[split]
        dataset = SimpleNamespace(info=SimpleNamespace(splits=None), __getitem__=None)
        dataset = type("Dataset", (), {"info": dataset.info, "__getitem__": lambda self, key: labels})()
        return SimpleNamespace(reader=SimpleNamespace(dataset=dataset, label_key="label", class_to_idx=names))

    monkeypatch.setattr(sources, "create_dataset", create_dataset)
    with pytest.raises((InputError, InputTypeError), match=f"hfds/x: {message}"):
        load("hfds/x")


# class names


def test_class_names_are_read(tmp_path):
    (tmp_path / "names.txt").write_bytes(codecs.BOM_UTF8 + " red fox\r\ncaf\u00e9\t\r\n0".encode())
    assert read_class_names(tmp_path / "names.txt") == ["red fox", "caf\u00e9", "0"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ant\n\nbee\n", r"names\.txt:2: expected the name of class 1, got an empty line"),
        ("ant\nbee\n\n", r"names\.txt:3: expected the name of class 2, got an empty line"),
        ("ant\nbee\nant\n", r"names\.txt:3: expected each name once, got 'ant' as in line 1"),
        ("ant\n", r"names\.txt:2: expected the name of class 1, since npz:\S+ has 2 classes, got the end of the file"),
        ("ant\nbee\ncat\ndog\n", r"names\.txt:3: expected no more names, since npz:\S+ has 2 classes, got 'cat'"),
        ("", r"names\.txt: expected one class name per line, got an empty file"),
        (None, r"class_names: no file \S+names\.txt"),
    ],
)
def test_class_names_that_do_not_fit_are_refused(tmp_path, text, message):
    np.savez(tmp_path / "d.npz", **arrays())
    if text is not None:
        (tmp_path / "names.txt").write_text(text)
    with pytest.raises((InputError, InputNotFoundError), match=message):
        load(f"npz:{tmp_path}/d.npz", class_names=tmp_path / "names.txt")


def test_numbered_classes_get_names(tmp_path, listed):
    listed("x.png 0\nx.png 1\n")
    np.savez(tmp_path / "d.npz", **arrays())
    (tmp_path / "names.txt").write_text("wasp\nbee\n")
    for source in (f"npz:{tmp_path}/d.npz", f"list:{tmp_path}/train.txt"):
        bundle = load(source, root=tmp_path)
        assert (bundle.class_names, bundle.named) == (["0", "1"], False)
        named = load(source, root=tmp_path, class_names=tmp_path / "names.txt")
        assert (named.class_names, named.test.class_names, named.named) == (["wasp", "bee"], ["wasp", "bee"], True)
        assert named.test.labels.tolist() == bundle.test.labels.tolist()


def test_classes_that_have_names_take_no_others(tmp_path):
    (tmp_path / "names.txt").write_text("a\nb\n")
    assert load("digits").named
    with pytest.raises(
        InputError, match=r"class_names: expected none, since the classes of digits have names, got \S+names"
    ):
        load("digits", class_names=tmp_path / "names.txt")
