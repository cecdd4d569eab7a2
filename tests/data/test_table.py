"""`csv:FILE`: a table with a header and one image per line."""

import numpy as np
import pytest
from PIL import Image

from ltfast.data import FileDataset, load
from ltfast.errors import InputError

HEADER = "path,label,split,group"
ROWS = (
    "a b/0.png,emu,train,rome",
    "a b/1.png,cat,train,rome",
    "a b/2.png,cat,test,oslo",
    "a b/3.png,cat,val,bern",
    "a b/3.png,emu,test,oslo",
)
TABLE = "\n".join((HEADER, *ROWS, ""))


@pytest.fixture
def table(tmp_path):
    """Writes a table next to four images, and returns its source."""
    for i in range(4):
        path = tmp_path / "a b" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((6, 5, 3), 60 * i, np.uint8)).save(path)

    def write(content, name="t.csv"):
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return f"csv:{tmp_path / name}"

    return write


def parts(bundle):
    """The file names and class names of the images of each part."""
    return {
        name: [(path[-5:], images.class_names[label]) for path, label in zip(images.paths, images.labels, strict=True)]
        for name, images in (("train", bundle.train), ("val", bundle.validation), ("test", bundle.test))
        if images is not None
    }


EXPECTED = {
    "train": [("0.png", "emu"), ("1.png", "cat")],
    "val": [("3.png", "cat")],
    "test": [("2.png", "cat"), ("3.png", "emu")],
}


def test_a_table(table):
    bundle = load(table(TABLE))
    assert isinstance(bundle.train, FileDataset)
    assert (bundle.class_names, bundle.named) == (["cat", "emu"], True)
    assert parts(bundle) == EXPECTED
    assert bundle.train.groups.tolist() == ["rome", "rome"]
    assert bundle.test.groups.tolist() == ["oslo", "oslo"]
    assert bundle.origins == {"test": "split test", "validation": "split val"}
    assert np.asarray(bundle.train.image(1))[0, 0, 0] == 60


@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_delimiters_encodings_and_line_ends(table, delimiter, encoding, end):
    content = TABLE.replace("cat", "Kätzchen").replace(",", delimiter).replace("\n", end)
    bundle = load(table(content.encode(encoding)))
    assert bundle.class_names == ["Kätzchen", "emu"]
    assert len(bundle.train) == 2


def test_quotes_blanks_other_columns_and_empty_lines(table):
    lines = [
        '\n"note"; "path"; label ',
        '"a; b,c"; "a b/0.png"; "emu; big"',
        ";;",
        "",
        '"two\nlines";a b/1.png; cat',
        '"a ""quote""";"a b/2.png";cat',
    ]
    bundle = load(table("\n".join(lines)), test_fraction=0.5)
    assert bundle.class_names == ["cat", "emu; big"]
    assert sorted(path[-5:] for path in bundle.train.paths + bundle.test.paths) == ["0.png", "1.png", "2.png"]


def test_other_names_of_columns(table):
    content = TABLE.replace(HEADER, "file name;species;part;camera;label".replace(";", ",")).replace("\n", ",0\n")
    content = content.replace("label,0", "label")
    columns = {"path": "file name", "label": "species", "split": "part", "group": "camera"}
    bundle = load(table(content), columns=columns)
    assert parts(bundle) == EXPECTED
    assert bundle.train.groups.tolist() == ["rome", "rome"]
    assert bundle.origins["test"] == "part test"


def test_numbers_are_numbered_classes(table, tmp_path):
    content = TABLE.replace("emu", "1").replace("cat", "0")
    bundle = load(table(content))
    assert (bundle.class_names, bundle.named) == (["0", "1"], False)
    assert bundle.train.labels.tolist() == [1, 0]
    (tmp_path / "names.txt").write_text("cow\nant\n")
    assert load(table(content), class_names=tmp_path / "names.txt").class_names == ["cow", "ant"]
    words = load(table(content.replace(",1,", ",01,")))  # a number has no leading zero
    assert (words.class_names, words.named) == (["0", "01"], True)
    with pytest.raises(InputError, match=r"t\.csv:4: column label: expected a label below 2, as in the"):
        load(table(content.replace("2.png,0", "2.png,2")))
    with pytest.raises(InputError, match=r"expected training images of all 2 .* none: 0; do its labels"):
        load(table(content.replace("1.png,0", "1.png,1")))


@pytest.mark.parametrize("word", ["val", "valid", "validation", "VAL"])
def test_words_for_validation(table, word):
    content = TABLE.replace("val", word)
    assert parts(load(table(content))) == EXPECTED
    alone = content.replace(",test,", ",train,")
    bundle = load(table(alone))
    assert bundle.validation is None
    assert parts(bundle)["test"] == EXPECTED["val"]
    assert bundle.origins == {"test": f"split {word}"}


def test_paths_are_relative_to_the_table_or_to_root(table, tmp_path, monkeypatch):
    source = table(TABLE)
    monkeypatch.chdir(tmp_path)
    assert load("csv:t.csv").train.paths == ["./a b/0.png", "./a b/1.png"]
    (tmp_path / "tables").mkdir()
    (tmp_path / "t.csv").rename(tmp_path / "tables" / "t.csv")
    source = f"csv:{tmp_path}/tables/t.csv"
    assert parts(load(source, root=tmp_path)) == EXPECTED
    with pytest.raises(FileNotFoundError, match=r"t\.csv:2: column path: no image .*/tables/a b/0\.png; is"):
        load(source)
    absolute = TABLE.replace("a b/", f"{tmp_path}/a b/")
    assert parts(load(table(absolute, "tables/t.csv"))) == EXPECTED


def test_a_table_without_a_split_is_split_in_whole_groups(table):
    rows = [f"a b/{i % 4}.png,{'cat' if i % 3 else 'emu'},{i // 4}" for i in range(80)]
    source = table("\n".join(("path,label,group", *rows)))
    bundle = load(source, test_fraction=0.25, validation=0.2)
    own = [set(images.groups.tolist()) for images in (bundle.train, bundle.validation, bundle.test)]
    assert [len(groups) for groups in own] == [12, 3, 5]
    assert len(set.union(*own)) == 20
    assert bundle.origins["test"] == "0.25 of the training images, whole groups"
    with pytest.raises(FileNotFoundError, match=r"t\.csv: expected test images, marked test in a column split;"):
        load(source)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"t\.csv: expected a header with the columns path, label, got an empty file"),
        ("\n\n", r"t\.csv: expected a header with the columns path, label, got an empty file"),
        (HEADER, r"t\.csv: expected one image per line, got a header alone"),
        (
            TABLE.replace("path", "filename"),
            r"t\.csv:1: expected a column path, got the columns 'filename', 'label', 'split', 'group'; "
            "--columns path=NAME names it",
        ),
        (
            TABLE.replace("label", "labels"),
            r"t\.csv:1: expected a column label, .*; did you mean --columns label=l",
        ),
        (TABLE.replace("group", "path"), r"t\.csv:1: expected one column path, got 2"),
        (TABLE.replace("test", "tset"), r"t\.csv:4: column split: expected train, val or test, got 'tset'"),
        (TABLE.replace("train", "test"), r"t\.csv: column split: expected training images, got none"),
        (
            TABLE.replace("3.png,emu", "3.png,dog"),
            r"t\.csv:6: column label: expected a class of the training images \('cat', 'emu'\), got 'dog'",
        ),
        (TABLE.replace("1.png,cat", "1.png,"), r"t\.csv:3: column label: expected a value, got none"),
        (TABLE.replace("1.png,cat,train,rome", "1.png"), r"t\.csv:3: column label: expected a value, got none"),
        (TABLE.replace(",bern", ","), r"t\.csv:5: column group: expected a value, got none"),
        (TABLE.replace("2.png", "2,5.png"), r"t\.csv:4: expected 4 values, one per column of the header, got 5; put"),
        (TABLE.replace("a b/2", '"a b/2'), r"t\.csv:4: expected values between ',', got unexpected end of data"),
        (TABLE.replace("0.png", "9.png"), r"t\.csv:2: column path: no image .*a b/9\.png; is .* the folder of the"),
        (TABLE.replace("a b/1", "a b\\1"), r"t\.csv:3: column path: expected / as separator, got 'a b\\\\1\.png'"),
        (TABLE.replace("1.png,cat", "1.png,emu"), r"expected at least 2 classes, got one: emu|column label"),
        (b"path,label\n\xff,0\n", r"t\.csv:2: expected text in UTF-8, got the byte 0xff"),
    ],
)
def test_bad_tables(table, content, message):
    with pytest.raises((InputError, FileNotFoundError), match=message) as caught:
        load(table(content))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"paths": "x"}, "columns: expected names for some of path, label, split, group, got one for 'paths'"),
        ({"group": "camera"}, r"t\.csv:1: expected a column camera, got the columns 'path', .*; --columns group=NAME"),
    ],
)
def test_bad_columns(table, columns, message):
    with pytest.raises(InputError, match=message):
        load(table(TABLE), columns=columns)


def test_no_table(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"source: no file .*gone\.csv"):
        load(f"csv:{tmp_path}/gone.csv")


def test_parts_of_the_table_are_not_taken(table):
    with pytest.raises(InputError, match=r"validation: expected none, since csv:.* has validation images, got 0.1"):
        load(table(TABLE), validation=0.1)
    with pytest.raises(InputError, match=r"test_fraction: expected none, since csv:.* has test images, got 0.1"):
        load(table(TABLE), test_fraction=0.1)
