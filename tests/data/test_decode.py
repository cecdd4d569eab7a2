"""Tests decoding image files: upright, for any content, and without blocking."""

import io
import os
import runpy
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, ExifTags, Image

from ltfast.data import FileDataset, ImageDecodeError, ImageNotFoundError, ReaderDataset, decode
from ltfast.errors import InputError, InputNotFoundError

# sides of the picture where row 0 and column 0 of the pixels are: Exif 2.32, tag 274
SIDES = {
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}
SAVED = {
    "JPEG": {"quality": 100, "subsampling": 0},
    "PNG": {},
    "WEBP": {"lossless": True},
    "TIFF": {},
}


def pixels(height=32, width=48):
    """Random 16 x 16 blocks, which JPEG barely changes."""
    blocks = np.random.default_rng(0).integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
    return blocks.repeat(16, 0).repeat(16, 1)


def encoded(array, kind, orientation=None, **options):
    exif = Image.Exif()
    if orientation is not None:
        exif[ExifTags.Base.Orientation] = orientation
        options["exif"] = exif
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **SAVED[kind], **options)
    return buffer.getvalue()


class Reader:
    """Like timm's readers: a file and a target for each position."""

    def __init__(self, content):
        self.content = content

    def __getitem__(self, position):
        return io.BytesIO(self.content), 0

    def filename(self, position):
        return f"image{position}"


def decoded(content, tmp_path, reader=False):
    if reader:
        return ReaderDataset(Reader(content), torch.tensor([0]), torch.tensor([0]), ["a"]).image(0)
    (tmp_path / "a.png").write_bytes(content)  # the extension does not matter
    return of(tmp_path / "a.png").image(0)


def of(path):
    return FileDataset([path], torch.tensor([0]), ["a"])


def seen(array, orientation):
    """The picture with the pixels `array`, given the sides where its first row and column are."""
    rows, columns = SIDES[orientation]
    if rows in ("left", "right"):
        array, rows, columns = array.transpose(1, 0, 2), columns, rows
    return array[:: -1 if rows == "bottom" else 1, :: -1 if columns == "right" else 1]


@pytest.mark.parametrize("reader", [False, True])
@pytest.mark.parametrize("kind", SAVED)
@pytest.mark.parametrize("orientation", SIDES)
def test_a_photograph_is_turned_as_a_person_sees_it(orientation, kind, reader, tmp_path):
    image = decoded(encoded(pixels(), kind, orientation), tmp_path, reader)
    assert image.mode == "RGB"
    atol = 3 if kind == "JPEG" else 0
    np.testing.assert_allclose(np.asarray(image, dtype=int), seen(pixels(), orientation), atol=atol)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1"])
def test_images_of_other_modes_are_turned_too(mode, tmp_path):
    content = io.BytesIO()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    picture = Image.fromarray(pixels()).convert(mode)
    picture.save(content, "PNG", exif=exif)
    image = decoded(content.getvalue(), tmp_path)
    np.testing.assert_array_equal(np.asarray(image), seen(np.asarray(picture.convert("RGB")), 6))


def block(*entries, end=b""):
    """An Exif block of little-endian entries: tag, type, count and four bytes."""
    directory = b"".join(struct.pack("<HHI", *entry[:3]) + entry[3] for entry in entries)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + directory + end


SHORT = struct.pack("<HH", 6, 0)


@pytest.mark.parametrize(
    ("exif", "orientation"),
    [
        (b"", 1),
        (b"Exif\0\0", 1),
        (b"Exif\0\0garbage, and no directory", 1),
        (b"Exif\0\0II*\0\xff\xff\xff\x7f", 1),
        (block((274, 3, 1, SHORT))[:-3], 1),
        (block((274, 3, 1, struct.pack("<HH", 0, 0))), 1),
        (block((274, 3, 1, struct.pack("<HH", 9, 0))), 1),
        (block((274, 3, 100, SHORT)), 1),  # a value at an offset outside the block
        (block((274, 2, 2, b"6\0\0\0")), 1),  # text
        # the orientation is valid, the others have types that Pillow cannot write
        (block((274, 3, 1, SHORT), (0x11A, 2, 2, b"1\0\0\0")), 6),
        (block((274, 3, 1, SHORT), (0x8769, 1, 4, b"1234")), 6),
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_damaged_exif_block_fails_no_image(exif, orientation, kind, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = decoded(encoded(pixels(), kind, exif=exif), tmp_path)
    expected = seen(pixels(), orientation)
    assert image.size == expected.shape[1::-1]
    np.testing.assert_allclose(np.asarray(image, dtype=int), expected, atol=3)


def test_no_program_is_run_for_a_file(tmp_path, monkeypatch):
    """Pillow runs Ghostscript, `gs`, for an EPS file, whatever its extension."""
    gs = tmp_path / "bin" / "gs"
    gs.parent.mkdir()
    gs.write_text(f"#!/bin/sh\ntouch {tmp_path}/proof\n")
    gs.chmod(0o755)
    monkeypatch.setenv("PATH", str(gs.parent), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # makes Pillow search for it again
    path = tmp_path / "a.png"
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n%%EOF\n")
    with pytest.raises(OSError, match="cannot identify image file"):  # the picture that this gs draws
        Image.open(path).load()
    assert (tmp_path / "proof").exists()  # shows that it would run
    (tmp_path / "proof").unlink()

    for look in (of(path).image, of(path).check_header):
        with pytest.raises(ImageDecodeError, match=r"image .*a\.png: expected an image in one of"):
            look(0)
    assert not (tmp_path / "proof").exists()


def special(kind, path):
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "nowhere":
        path.symlink_to(path.parent / "gone")
    elif kind == "pipe behind a link":
        os.mkfifo(path.parent / "pipe")
        path.symlink_to(path.parent / "pipe")
    else:
        path.symlink_to(kind)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("pipe", "expected a regular file, got a directory, a pipe or a device"),
        ("pipe behind a link", "expected a regular file, got a directory, a pipe or a device"),
        ("/dev/zero", "expected a regular file, got a directory, a pipe or a device"),
        ("/dev/tty", "expected a regular file, got a directory, a pipe or a device|No such device"),
        ("folder", "expected a regular file, got a directory"),
        ("loop", "Too many levels of symbolic links"),
        ("nowhere", "no image file"),
    ],
)
def test_what_is_no_regular_file_is_named_and_not_waited_for(kind, message, tmp_path):
    path = tmp_path / "e.png"
    special(kind, path)
    for look in (of(path).image, of(path).check_header):
        with pytest.raises((ImageDecodeError, ImageNotFoundError), match=message) as caught:
            look(0)
        assert str(path) in str(caught.value)
        assert isinstance(caught.value, ImageNotFoundError) == (kind == "nowhere")


def test_no_descriptor_is_left_open(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "text.png").write_text("text")
    before = os.listdir("/proc/self/fd")
    for name in ("pipe.png", "text.png"):
        for look in (of(tmp_path / name).image, of(tmp_path / name).check_header):
            with pytest.raises(ImageDecodeError):
                look(0)
    assert os.listdir("/proc/self/fd") == before


def png(width, height, *chunks):
    """A PNG of black pixels with 1 bit each, with these chunks before the pixels."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    rows = zlib.compressobj(9)
    line = bytes(1 + (width + 7) // 8)
    body = b"".join(rows.compress(line) for _ in range(min(height, 4))) + rows.flush()
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)),
        *chunks,
        (b"IDAT", body),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*pair) for pair in chunks)


def test_one_limit_holds_and_nothing_is_warned_of(tmp_path):
    """The limit is 178,956,970 pixels; Pillow alone would warn above half of that."""
    (tmp_path / "large.png").write_bytes(png(12_000, 14_000))
    (tmp_path / "huge.png").write_bytes(png(60_000, 3_000))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Image.open(tmp_path / "large.png").close()
        assert [warning.category for warning in caught] == [Image.DecompressionBombWarning]
        module = runpy.run_path(decode.__file__)  # imported as in a worker process
        module["check_header"](lambda: module["open_regular"](tmp_path / "large.png"), str)
        assert len(caught) == 1
    for look in (of(tmp_path / "huge.png").image, of(tmp_path / "huge.png").check_header):
        with pytest.raises(ImageDecodeError, match=r"huge\.png: .*180000000 pixels.* exceeds limit of 178956970"):
            look(0)


def tiff(tile):
    """A greyscale TIFF of 8 x 8 pixels in one square tile of zeros."""
    data = zlib.compress(bytes(min(tile, 512) ** 2))
    tags = {256: 8, 257: 8, 258: 8, 259: 8, 262: 1, 277: 1, 322: tile, 323: tile, 324: 8, 325: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


def test_the_tiles_of_a_small_image_are_small_too(tmp_path):
    """Pillow allocates the whole tile: 1.5 GiB for one of 40,000 x 40,000 pixels."""
    assert decoded(tiff(512), tmp_path).size == (8, 8)
    (tmp_path / "a.tif").write_bytes(tiff(40_000))
    for look in (of(tmp_path / "a.tif").image, of(tmp_path / "a.tif").check_header):
        with pytest.raises(
            ImageDecodeError, match=r"a\.tif: expected tiles of at most 178956970 pixels, got 1600000000"
        ):
            look(0)


@pytest.mark.parametrize("name", [b"zTXt", b"iTXt", b"iCCP"])
def test_text_and_profiles_do_not_fill_the_memory(name, tmp_path):
    """The chunk has 4 MiB of zeros in 4 KiB; Pillow accepts 1 MiB."""
    zeros = zlib.compress(bytes(2**22), 9)
    content = {b"zTXt": b"a\0\0", b"iTXt": b"a\0\1\0\0\0", b"iCCP": b"a\0\0"}[name] + zeros
    (tmp_path / "a.png").write_bytes(png(8, 8, (name, content)))
    for look in (of(tmp_path / "a.png").image, of(tmp_path / "a.png").check_header):
        with pytest.raises(ImageDecodeError, match=r"a\.png: Decompressed data too large"):
            look(0)


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "PNG", "MPO"])
def test_of_several_pictures_the_first_is_taken(kind, tmp_path):
    pictures = [Image.new("RGB", (16, 16), (200 - 40 * i, 40 * i, 0)) for i in range(4)]
    options = {"lossless": True} if kind == "WEBP" else {"quality": 100} if kind == "MPO" else {}
    pictures[0].save(tmp_path / "a.png", kind, save_all=True, append_images=pictures[1:], **options)
    with Image.open(tmp_path / "a.png") as image:
        assert image.n_frames == 4
    np.testing.assert_allclose(np.asarray(of(tmp_path / "a.png").image(0), dtype=int), np.asarray(pictures[0]), atol=3)


def test_errors_of_files_are_the_users():
    assert issubclass(ImageDecodeError, InputError)
    assert issubclass(ImageDecodeError, OSError)
    assert issubclass(ImageNotFoundError, InputNotFoundError)
