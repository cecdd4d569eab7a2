"""Tests which files of a folder are the images of which class."""

import os
import socket

import numpy as np
import pytest
from PIL import Image, features
from torchvision.datasets.folder import find_classes, make_dataset

from ltfast.data import load
from ltfast.data.formats import extensions
from ltfast.errors import InputError


def image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4, 3), 90, dtype=np.uint8)).save(path)


@pytest.fixture
def pets(tmp_path):
    """Class cat has 3 training images, dog has 2; each has one test image."""
    root = tmp_path / "pets"
    for path in ("train/cat/0", "train/cat/1", "train/cat/2", "train/dog/0", "train/dog/1", "test/cat/0", "test/dog/0"):
        image(root / f"{path}.png")
    return root


def files(root):
    """The training images of each class, relative to the folder."""
    data = load(f"folder:{root}").train
    names = [data.class_names[label] for label in data.labels.tolist()]
    return [(name, os.path.relpath(path, root)) for name, path in zip(names, data.paths, strict=True)]


PETS = [("cat", f"train/cat/{i}.png") for i in range(3)] + [("dog", f"train/dog/{i}.png") for i in range(2)]


def test_the_order_is_torchvisions(pets):
    for name in ("cat/b/1.png", "cat/b-c/0.png", "cat/b/a/2.JPG", "dog/a.Png"):
        image(pets / "train" / name)
    samples = make_dataset(pets / "train", find_classes(pets / "train")[1], (".png", ".jpg"))
    data = load(f"folder:{pets}").train
    assert list(zip(data.paths, data.labels.tolist(), strict=True)) == samples
    assert len(samples) == 9


def test_every_format_that_is_read_is_taken(pets):
    added = ["a.gif", "b.jfif", "c.jpe", "d.tiff", "e.webp", "f.bmp", "g.PPM", "h.jp2", "i.tga"]
    added += ["j.avif"] if features.check("avif") else []
    for name in added:
        if name == "b.jfif":
            Image.new("RGB", (4, 4)).save(pets / "train" / "dog" / name, "JPEG")
        else:
            image(pets / "train" / "dog" / name)
    assert [path for name, path in files(pets) if name == "dog"] == [
        *("train/dog/0.png", "train/dog/1.png"),
        *(f"train/dog/{name}" for name in added),
    ]
    assert load(f"folder:{pets}").left_out is None
    data = load(f"folder:{pets}").train
    assert all(data.image(i).mode == "RGB" for i in range(len(data)))


def test_no_program_and_no_document_is_taken_for_an_image():
    assert extensions().isdisjoint({".eps", ".ps", ".pdf", ".wmf", ".emf", ".h5", ".mpg", ".psd"})


def test_what_is_left_out_is_counted(pets):
    for name in ("train/cat/notes.txt", "train/cat/a.heic", "train/dog/b.json", "test/dog/c.xml"):
        (pets / name).write_text("")
    for name in ("train/.DS_Store", "train/cat/.0.png"):
        (pets / name).write_text("")
    image(pets / "train" / ".ipynb_checkpoints" / "0.png")
    image(pets / "train" / "stray.png")
    assert files(pets) == PETS
    bundle = load(f"folder:{pets}")
    assert bundle.class_names == ["cat", "dog"]
    assert bundle.left_out == (
        f"left out of {pets}: 3 hidden ('train/.DS_Store', 'train/.ipynb_checkpoints', 'train/cat/.0.png'), "
        "1 next to the class folders ('train/stray.png'), "
        "4 not images ('train/cat/a.heic', 'train/cat/notes.txt', 'train/dog/b.json', ...)"
    )


def test_what_is_no_regular_file_is_left_out(pets, tmp_path):
    os.mkfifo(pets / "train" / "cat" / "e.png")
    (pets / "train" / "cat" / "f.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        before = os.getcwd()
        os.chdir(pets / "train" / "dog")  # the path of a socket must be short
        try:
            server.bind("s.png")
        finally:
            os.chdir(before)
        assert files(pets) == PETS
        assert "3 FIFOs, sockets or devices ('train/cat/e.png', 'train/cat/f.png', " in load(f"folder:{pets}").left_out


def test_links_to_files_and_to_the_whole_are_followed(pets, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    (pets / "train").rename(elsewhere)
    (pets / "train").symlink_to(elsewhere)
    image(tmp_path / "pool" / "9.png")
    (elsewhere / "dog" / "z.png").symlink_to(tmp_path / "pool" / "9.png")
    (tmp_path / "link").symlink_to(pets)
    assert files(tmp_path / "link") == [*PETS, ("dog", "train/dog/z.png")]


def test_an_image_behind_a_broken_link_is_missed_by_name(pets):
    (pets / "train" / "dog" / "z.png").symlink_to("gone.png")
    data = load(f"folder:{pets}").train
    with pytest.raises(FileNotFoundError, match=r"train/dog/z\.png"):
        data.image(5)


@pytest.mark.parametrize(
    ("link", "target", "message"),
    [
        ("train/cat/up", "..", r"train/cat/up and \S+/train are the same folder"),
        ("train/cat/self", ".", r"train/cat/self and \S+/train/cat are the same folder"),
        ("train/cat/root", "../..", r"train/cat/root and \S+/pets are the same folder"),
        ("train/kitty", "cat", r"train/kitty and \S+/train/cat are the same folder"),
        ("train/ant", "cat", r"train/cat and \S+/train/ant are the same folder"),
        ("test/emu", "../train/cat", r"test/emu and \S+/train/cat are the same folder"),
        (
            "train/cat/above",
            "../../..",
            r"train/cat/above: expected no link to a folder outside \S+pets, got one to ",
        ),
        (
            "train/emu",
            "/usr/share",
            r"train/emu: expected no link to a folder outside \S+pets, got one to /usr/share",
        ),
        ("val", "train", r"val and \S+/train are the same folder"),
        ("valid", "train", None),  # is not used
    ],
)
def test_links_that_lead_up_out_or_to_the_same_folder_again_are_refused(pets, link, target, message):
    (pets / link).symlink_to(target)
    if message is None:
        assert files(pets) == PETS
    else:
        with pytest.raises(InputError, match=message):
            load(f"folder:{pets}")


def test_a_link_to_a_folder_that_nothing_else_leads_to_is_followed(pets):
    image(pets / "more" / "9.png")
    (pets / "train" / "dog" / "more").symlink_to("../../more")
    assert files(pets) == [*PETS, ("dog", "train/dog/more/9.png")]


@pytest.mark.parametrize(("held_out", "target"), [("test", "train"), ("val", "train")])
def test_test_images_that_are_the_training_images_are_refused(pets, held_out, target):
    for path in sorted((pets / "test").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (pets / "test").rmdir()
    (pets / held_out).symlink_to(target)
    with pytest.raises(InputError, match=rf"{held_out} and \S+/train are the same folder"):
        load(f"folder:{pets}")


def test_images_below_the_class_folder(pets):
    """There may be one folder in between, as in Tiny ImageNet, or subfolders next to images."""
    image(pets / "train" / "emu" / "images" / "0.png")
    image(pets / "train" / "fox" / "0.png")
    image(pets / "train" / "fox" / "2021" / "1.png")
    image(pets / "train" / "fox" / "2022" / "2.png")
    assert files(pets) == [
        *PETS,
        ("emu", "train/emu/images/0.png"),
        *(("fox", f"train/fox/{name}.png") for name in ("0", "2021/1", "2022/2")),
    ]


@pytest.mark.parametrize("between", ["", "images/"])
def test_groups_of_classes_are_not_taken_for_classes(pets, between):
    for name in ("ant", "bee"):
        image(pets / "train" / "insects" / between / name / "0.png")
    folder = f"train/insects/{between}".rstrip("/")
    with pytest.raises(InputError, match=rf"{folder}: expected the .* of one class, got only folders .*\(ant, bee\)"):
        load(f"folder:{pets}")


def test_class_folders_without_images_are_named_with_what_they_hold(pets):
    (pets / "train" / "ant").mkdir()
    notes = pets / "train" / "notes"
    notes.mkdir()
    for i in range(4):
        (notes / f"{i}.txt").write_text("")
    with pytest.raises(InputError) as caught:
        load(f"folder:{pets}")
    assert str(caught.value).startswith(
        f"folder:{pets}: expected training images of all 4 classes, but 2 have none: ant (it is empty), "
        "notes (it contains '0.txt', '1.txt', '2.txt', ...); images are files of the formats AVIF, BMP, "
    )
    assert "start at 1" not in str(caught.value)


def test_images_without_class_folders_are_refused(tmp_path):
    for part in ("train", "test"):
        image(tmp_path / part / "0.png")
    with pytest.raises(InputError, match="train: expected a folder for each class, got none"):
        load(f"folder:{tmp_path}")


def test_a_folder_that_cannot_be_read_is_named(pets, monkeypatch):
    scandir = os.scandir

    def forbidden(path):
        if str(path).endswith("train/cat"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", forbidden)
    with pytest.raises(InputError, match=r"cannot read the folder .*train/cat: Permission denied$"):
        load(f"folder:{pets}")


def test_a_class_whose_name_is_no_text_is_refused(pets):
    try:
        os.mkdir(os.fsencode(pets / "train") + b"/caf\xe9")
    except OSError:
        pytest.skip("this file system takes names in UTF-8 alone")
    with pytest.raises(InputError, match=r"expected class names in UTF-8, got 'caf\\udce9'"):
        load(f"folder:{pets}")


def test_a_deep_folder(pets):
    deep = pets / "train" / "dog" / "/".join("d" * 300)
    image(deep / "9.png")
    assert files(pets)[-1] == ("dog", os.path.relpath(deep / "9.png", pets))


def test_torch_image_folder_is_the_same_walk(pets):
    (pets / "test").rename(pets / "validation")
    (pets / "train" / "cat" / "up").symlink_to("..")
    with pytest.raises(InputError, match="are the same folder"):
        load("torch/image_folder", root=pets)
