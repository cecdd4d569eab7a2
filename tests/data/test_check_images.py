"""Images that cannot be decoded raise an error that names them before a run begins, or are skipped."""

import os
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.readers.reader_image_folder import ReaderImageFolder
from torch import distributed

from ltfast.data import (
    ArrayDataset,
    DataBundle,
    FileDataset,
    ImageDecodeError,
    ImageNotFoundError,
    ReaderDataset,
    check_images,
)
from ltfast.errors import InputError

NAMES = ["ant", "bee"]
LABELS = torch.arange(12) % 2


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-200])


def no_image(path):
    path.write_text("no image")


def deep(path):
    Image.fromarray(np.full((8, 8), 40_000, dtype=np.uint16)).save(path)


def huge(path):
    """A file whose header claims 20,000 x 20,000 pixels."""
    content = path.read_bytes()
    header = b"IHDR" + struct.pack(">II", 20_000, 20_000) + content[24:29]
    path.write_bytes(content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:])


def pipe(path):
    path.unlink()
    os.mkfifo(path)


def missing(path):
    path.unlink()


@pytest.fixture
def paths(tmp_path):
    random = np.random.default_rng(0)
    paths = [tmp_path / NAMES[i % 2] / f"{i}.png" for i in range(12)]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    return paths


def bundle_of(train, test=None):
    return DataBundle(train, test or train, (0.5,) * 3, (0.2,) * 3, image_size=16, channels=3)


@pytest.fixture
def bundle(paths):
    return bundle_of(FileDataset(paths, LABELS, NAMES), FileDataset(paths[:4], LABELS[:4], NAMES))


@pytest.fixture
def with_validation(bundle):
    return replace(bundle, validation=bundle.train.subset(torch.arange(5)))


@pytest.mark.parametrize("skip_broken", [False, True])
def test_good_images_stay_as_they_are(with_validation, skip_broken, capsys):
    bundle = with_validation
    checked = check_images(bundle, skip_broken=skip_broken)
    assert checked.train is bundle.train
    assert checked.test is bundle.test
    assert checked.validation is bundle.validation
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        (no_image, ImageDecodeError, "expected an image in one of the formats"),
        (deep, ImageDecodeError, "expected 8 bits per channel, got mode I;16"),
        (huge, ImageDecodeError, "400000000 pixels"),
        (pipe, ImageDecodeError, "expected a regular file"),
        (missing, ImageNotFoundError, "no image file"),
    ],
)
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_wrong_header_is_refused_and_nothing_decoded(
    fault, error, message, split, with_validation, paths, monkeypatch
):
    bundle = with_validation
    fault(paths[3])
    monkeypatch.setattr(FileDataset, "image", None)
    with pytest.raises(error, match=message) as caught:
        check_images(bundle, splits=[split])
    assert str(paths[3]) in str(caught.value)
    number = {"train": "12 training", "validation": "5 validation", "test": "4 test"}[split]
    assert f"(1 of {number} images; --skip-broken leaves out what cannot be decoded)" in str(caught.value)
    if split == "train":
        assert check_images(bundle_of(bundle.train.subset(torch.tensor([2, 4]))), splits=["test"])


def test_many_wrong_headers_are_counted_and_the_first_named(bundle, paths):
    for path in paths[4:11]:
        no_image(path)
    with pytest.raises(ImageDecodeError) as caught:
        check_images(bundle)
    shown = [str(path) in str(caught.value) for path in paths]
    assert shown == [4 <= i < 9 for i in range(12)]
    assert "; ... (7 of 12 training images; " in str(caught.value)


@pytest.mark.parametrize("fault", [cut_off, no_image, deep, pipe, missing])
def test_what_cannot_be_decoded_is_left_out_by_name(fault, bundle, paths, capsys):
    for i in (2, 7):
        fault(paths[i])
    checked = check_images(bundle, skip_broken=True)
    left = [i for i in range(12) if i not in (2, 7)]
    assert checked.train.paths == [str(paths[i]) for i in left]
    assert checked.train.labels.tolist() == [i % 2 for i in left]
    assert checked.train.class_names == NAMES
    assert checked.test.paths == [str(paths[i]) for i in (0, 1, 3)]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "left out 2 of 12 training images:"
    assert lines[3] == "left out 1 of 4 test images:"
    assert [str(path) in line for path, line in zip([paths[2], paths[7]], lines[1:3], strict=True)] == [True, True]
    assert len(lines) == 5


def test_of_many_the_first_are_shown(bundle, paths, capsys):
    for path in paths[4:11]:
        cut_off(path)
    assert len(check_images(bundle, skip_broken=True).train) == 5
    lines = capsys.readouterr().out.splitlines()
    assert [str(path) in line for path, line in zip(paths[4:9], lines[1:6], strict=True)] == [True] * 5
    assert lines[6:] == ["  and 2 more"]


def test_a_cut_off_file_has_a_good_header(bundle, paths):
    cut_off(paths[0])
    assert check_images(bundle).train is bundle.train


def test_a_class_without_images_is_refused_by_name(bundle, paths):
    for path in paths[1::2]:
        cut_off(path)
    with pytest.raises(
        InputError, match=r"expected training images of all 2 classes; for 1 of them, no image .*: bee \(cannot"
    ) as e:
        check_images(bundle, skip_broken=True)
    assert str(paths[1]) in str(e.value)
    test = check_images(bundle, skip_broken=True, splits=["test"]).test
    assert test.class_counts == [2, 0]  # equivalent to a class without test images
    for path in paths[::2]:
        cut_off(path)
    with pytest.raises(InputError, match="for 2 of them, no image can be decoded: ant, bee "):
        check_images(bundle, skip_broken=True)
    with pytest.raises(InputError, match=r"none of the 4 test images can be decoded: cannot decode image .*0\.png"):
        check_images(bundle, skip_broken=True, splits=["test"])


def test_validation_images_are_left_out_too(with_validation, paths, capsys):
    cut_off(paths[4])
    checked = check_images(with_validation, skip_broken=True, splits=["validation"])
    assert [path[-5:] for path in checked.validation.paths] == [f"{i}.png" for i in range(4)]
    assert checked.train is with_validation.train
    assert "left out 1 of 5 validation images:" in capsys.readouterr().out
    for path in paths[:4]:
        cut_off(path)
    with pytest.raises(InputError, match=r"none of the 5 validation images can be decoded: cannot .*0\.png"):
        check_images(with_validation, skip_broken=True, splits=["validation"])


def test_arrays_are_not_looked_at_and_readers_only_to_skip(paths, monkeypatch):
    arrays = ArrayDataset(np.zeros((12, 8, 8), dtype=np.uint8), LABELS, NAMES)
    monkeypatch.setattr(ArrayDataset, "image", None)
    assert check_images(bundle_of(arrays), skip_broken=True).train is arrays
    cut_off(paths[0])
    reader = ReaderImageFolder(str(paths[0].parent.parent))
    data = ReaderDataset(reader, torch.arange(12), torch.arange(12) // 6, NAMES)
    assert check_images(bundle_of(data)).train is data
    assert check_images(bundle_of(data), skip_broken=True).train.positions.tolist() == list(range(1, 12))


def test_processes_share_the_files(bundle, paths, monkeypatch, capsys):
    for path in (paths[4], paths[7]):
        cut_off(path)
    alone = check_images(bundle, skip_broken=True, splits=["train"]).train.paths
    assert len(capsys.readouterr().out.splitlines()) == 3
    decoded, sent = [], {}
    image = FileDataset.image
    monkeypatch.setattr(FileDataset, "image", lambda self, index: decoded.append(index) or image(self, index))
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 3)

    def gather(shares, share):
        sent[len(sent)] = share
        shares[:] = [sent.get(rank, {}) for rank in range(3)]

    monkeypatch.setattr(distributed, "all_gather_object", gather)
    for rank in range(3):
        monkeypatch.setattr(distributed, "get_rank", lambda rank=rank: rank)
        together = check_images(bundle, skip_broken=True, splits=["train"]).train.paths
    assert together == alone
    assert sorted(decoded) == list(range(12))  # each image once
    assert [list(share) for share in sent.values()] == [[], [4, 7], []]
    assert capsys.readouterr().out == ""  # 4 and 7 belong to the second process, and the first one prints
