import io
import pickle
import re

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.readers.reader_image_folder import ReaderImageFolder
from torch._utils import ExceptionWrapper
from torch.utils.data import DataLoader

from ltfast.data import ArrayDataset, FileDataset, ImageDecodeError, ImageNotFoundError, ReaderDataset, SeededViews
from ltfast.data.datasets import _file_sizes

NAMES = ["cat", "dog", "eel"]
LABELS = torch.tensor([0, 1, 1, 0], dtype=torch.int32)


def jpeg(seed, mode="RGB"):
    pixels = np.random.RandomState(seed).randint(0, 256, (24, 30, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture
def files(tmp_path):
    """Four JPEG files: intact, greyscale, truncated, and not an image."""
    contents = [jpeg(0), jpeg(1, "L"), jpeg(2)[:-200], b"not an image"]
    (tmp_path / "class").mkdir()
    paths = [tmp_path / "class" / f"{i}.jpg" for i in range(4)]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    return paths


@pytest.mark.parametrize(("shape", "mode"), [((4, 5, 6), "L"), ((4, 5, 6, 1), "L"), ((4, 5, 6, 3), "RGB")])
def test_arrays(shape, mode):
    images = np.random.RandomState(0).randint(0, 256, shape, dtype=np.uint8)
    data = ArrayDataset(images, LABELS, NAMES)
    assert len(data) == 4
    assert data.labels.dtype == torch.int64
    assert data.class_names == NAMES
    assert data.class_counts == [2, 2, 0]
    image, label = data[2]
    assert (image.mode, image.size, label) == (mode, (6, 5), 1)
    np.testing.assert_array_equal(np.asarray(image), images[2].squeeze())

    part = data.subset(torch.tensor([3, 1, 1]))
    assert part.labels.tolist() == [0, 1, 1]
    assert part.class_counts == [1, 2, 0]
    np.testing.assert_array_equal(np.asarray(part.image(0)), images[3].squeeze())
    with pytest.raises(IndexError):
        data[4]


def test_files_are_decoded_to_rgb(files):
    data = FileDataset(files, LABELS, NAMES)
    for index in (0, 1):
        image, label = data[index]
        assert (image.mode, image.size, label) == ("RGB", (30, 24), index)
    np.testing.assert_array_equal(np.asarray(data.image(0)), np.asarray(Image.open(files[0])))
    assert len(np.unique(np.ptp(np.asarray(data.image(1)), axis=2))) == 1  # greyscale in three channels
    part = data.subset(torch.tensor([3, 0]))
    assert part.paths == [str(files[3]), str(files[0])]
    assert part.labels.tolist() == [0, 0]
    assert pickle.loads(pickle.dumps(part)).paths == part.paths  # workers may be spawned


@pytest.mark.parametrize("broken", [2, 3])
def test_a_file_that_cannot_be_decoded_is_named(files, broken):
    data = FileDataset(files, LABELS, NAMES)
    with pytest.raises(ImageDecodeError, match=rf"cannot decode image .*class/{broken}\.jpg: "):
        data[broken]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_names_the_file_in_one_line(files, workers):
    views = SeededViews(FileDataset(files, LABELS, NAMES), [np.asarray], seed=0)
    loader = DataLoader(views, sampler=[(0, 0), (1, 3)], batch_size=2, num_workers=workers)
    with pytest.raises(ImageDecodeError) as caught:
        next(iter(loader))
    assert re.fullmatch(rf"cannot decode image {re.escape(str(files[3]))}: expected an image in .*", str(caught.value))


@pytest.mark.parametrize("reader", [False, True])
def test_every_error_keeps_its_line_in_a_worker(files, reader):
    source = ReaderImageFolder(str(files[0].parent.parent))
    files[1].unlink()
    data = ReaderDataset(source, torch.arange(4), LABELS, NAMES) if reader else FileDataset(files, LABELS, NAMES)
    name = "class/%d.jpg (number %d)" if reader else f"{files[0].parent}/%d.jpg"
    for index, kind, begin in (
        (1, ImageNotFoundError, "no image file "),
        (3, ImageDecodeError, "cannot decode image "),
    ):
        with pytest.raises(kind) as here:
            data[index]
        try:
            data[index]
        except OSError:
            wrapped = pickle.loads(pickle.dumps(ExceptionWrapper(where="in DataLoader worker process 0")))
        with pytest.raises(kind) as there:
            wrapped.reraise()
        assert str(there.value) == str(here.value)
        assert str(here.value).startswith(begin + name.replace("%d", str(index)))
    assert issubclass(ImageNotFoundError, FileNotFoundError)


def test_errors_can_be_pickled():
    for error in (ImageDecodeError("cannot decode image a.jpg: b"), ImageNotFoundError("no image file a.jpg")):
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again)) == (type(error), str(error))


def test_a_folder_is_no_image(tmp_path):
    data = FileDataset([tmp_path], torch.tensor([0]), NAMES)
    with pytest.raises(ImageDecodeError, match=r"cannot decode image .*: .*directory"):
        data[0]


def test_sixteen_bits_are_refused_not_clipped(tmp_path):
    Image.fromarray(np.full((8, 8), 40_000, dtype=np.uint16)).save(tmp_path / "deep.png")
    data = FileDataset([tmp_path / "deep.png"], torch.tensor([0]), NAMES)
    with pytest.raises(ImageDecodeError, match=r"deep\.png: expected 8 bits per channel, got mode I;16"):
        data[0]


def test_a_missing_file_is_named(tmp_path):
    data = FileDataset([tmp_path / "gone.jpg"], torch.tensor([0]), NAMES)
    with pytest.raises(ImageNotFoundError, match=r"no image file .*gone\.jpg"):
        data[0]


def test_readers(files):
    reader = ReaderImageFolder(str(files[0].parent.parent))
    data = ReaderDataset(reader, torch.arange(4), LABELS, NAMES)
    np.testing.assert_array_equal(np.asarray(data[0][0]), np.asarray(Image.open(files[0])))
    part = data.subset(torch.tensor([2, 1]))
    assert part.labels.tolist() == [1, 1]
    assert part[1][0].size == (30, 24)
    with pytest.raises(ImageDecodeError, match=r"cannot decode image class/2\.jpg \(number 2\): "):
        part[0]


def grey(*shape):
    return np.zeros(shape, dtype=np.uint8)


@pytest.mark.parametrize(
    ("images", "labels", "error", "message"),
    [
        (grey(4, 5, 6), LABELS.float(), TypeError, "labels: expected an integer dtype, got torch.float32"),
        (grey(4, 5, 6), LABELS[None], ValueError, r"labels: expected shape \(N,\) .* got \(1, 4\)"),
        (grey(0, 5, 6), LABELS[:0], ValueError, r"labels: expected shape \(N,\) with N at least 1, got \(0,\)"),
        (grey(4, 5, 6), LABELS + 2, ValueError, r"labels: expected values in \[0, 3\), got 2 to 3"),
        (grey(4, 5, 6), LABELS - 1, ValueError, r"labels: expected values in \[0, 3\), got -1 to 0"),
        (grey(4, 5, 6) / 255, LABELS, TypeError, r"images: expected uint8 in 0..255, got float64"),
        (grey(4, 3, 5, 6), LABELS, ValueError, r"images: expected shape .* got \(4, 3, 5, 6\)"),
        (grey(4, 5), LABELS, ValueError, r"images: expected shape .* got \(4, 5\)"),
        (grey(4, 0, 6), LABELS, ValueError, r"images: expected shape .* got \(4, 0, 6\)"),
        (grey(3, 5, 6), LABELS, ValueError, "images: expected as many as labels, got 3 images and 4 labels"),
    ],
)
def test_bad_arrays(images, labels, error, message):
    with pytest.raises(error, match=message):
        ArrayDataset(images, labels, NAMES)


def test_bad_paths():
    with pytest.raises(ValueError, match="paths: expected as many as labels, got 1 paths and 4 labels"):
        FileDataset(["a.jpg"], LABELS, NAMES)


def test_digests_of_arrays_are_of_their_content():
    random = np.random.RandomState(0)
    images = random.randint(0, 256, (4, 5, 6, 3), dtype=np.uint8)
    data = ArrayDataset(images, LABELS, NAMES)
    strided = np.asfortranarray(images)
    assert data.digests() == ArrayDataset(strided, LABELS.long(), ["other", "names", "here"]).digests()
    assert data.digests() == data.digests(sizes=False)
    for pixel in [(0, 0, 0, 0), (3, 4, 5, 2)]:
        changed = images.copy()
        changed[pixel] ^= 1
        assert changes(data, ArrayDataset(changed, LABELS, NAMES)) == ["images"]
    assert changes(data, ArrayDataset(images.reshape(4, 6, 5, 3), LABELS, NAMES)) == ["images"]
    assert changes(data, ArrayDataset(images, LABELS.roll(1), NAMES)) == ["labels"]
    assert changes(data, data.subset(torch.tensor([1, 0, 2, 3]))) == ["labels", "images"]


def test_digests_of_files_are_of_names_below_their_folder_and_sizes(files, tmp_path):
    before = FileDataset(files, LABELS, NAMES).digests()
    names_only = FileDataset(files, LABELS, NAMES).digests(sizes=False)
    assert set(names_only) == {"labels", "file names"}
    assert {**names_only, "file sizes": before["file sizes"]} == before
    moved = tmp_path / "elsewhere" / "deeper"
    moved.parent.mkdir()
    files[0].parent.rename(moved)
    files = [moved / path.name for path in files]

    def differ():
        now = FileDataset(files, LABELS, NAMES).digests()
        assert now.keys() == before.keys()
        return [name for name in now if now[name] != before[name]]

    assert differ() == []
    content = files[1].read_bytes()
    files[1].write_bytes(content[:-1])
    assert differ() == ["file sizes"]
    files[1].unlink()  # opening the file reports it
    assert differ() == ["file sizes"]
    files[1].write_bytes(content)
    assert differ() == []
    files[1] = files[1].rename(moved / "renamed.jpg")
    assert differ() == ["file names"]
    one, another = (FileDataset([file], LABELS[:1], NAMES).digests() for file in files[:2])
    assert one["file names"] != another["file names"]  # a single file has a name too


def test_digests_of_a_reader_are_of_its_labels(files):
    reader = ReaderImageFolder(str(files[0].parent.parent))
    first, second = (
        ReaderDataset(reader, torch.arange(4), labels, NAMES).digests() for labels in (LABELS, LABELS.roll(1))
    )
    assert set(first) == {"labels"}
    assert first != second


def test_many_files_have_their_sizes_in_order(tmp_path):
    """There are more files than one thread processes at once."""
    paths = [tmp_path / str(number) for number in range(2500)]
    for number, path in enumerate(paths):
        path.write_bytes(b"x" * (number % 7))
    sizes = _file_sizes([str(path) for path in [*paths, tmp_path / "none"]])
    assert sizes.tolist() == [*(number % 7 for number in range(2500)), -1]


def changes(before, after):
    """The parts with different digests."""
    one, two = before.digests(), after.digests()
    assert one.keys() == two.keys()
    return [name for name in one if one[name] != two[name]]
