"""Tests reading recipes, and errors that name the file and the line."""

import os
import re
import time

import pytest

from ltfast.cli import main
from ltfast.recipe import plain_value, read_recipe, recipe_names


def test_numbers_words_and_lists_are_read_with_their_lines(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes(
        b"\xef\xbb\xbf# a comment\nepochs: 30\nlr: 1e-3\nweight_decay: 5.0e-4\npretrained: true  # or not\n"
        b"imbalance: none\nmilestones: [1, 2]\nprune:\n  - .5\n  - 0.25\ndata: 'npz:010'\nroot: caf\xc3\xa9\n"
    )
    recipe = read_recipe(str(path))
    assert recipe.values == {
        **{"epochs": 30, "lr": 1e-3, "weight_decay": 5e-4, "pretrained": True, "imbalance": "none"},
        **{"milestones": [1, 2], "prune": [0.5, 0.25], "data": "npz:010", "root": "café"},
    }
    assert list(recipe.lines.values()) == [2, 3, 4, 5, 6, 7, 8, 11, 12]
    assert recipe.where("lr") == f"{path}:3"
    assert type(recipe.values["epochs"]) is int
    assert type(recipe.values["lr"]) is float


def test_recipes_of_the_package_are_plain():
    assert len(recipe_names()) == 32
    for name in recipe_names():
        assert read_recipe(name).values["method"] == name.split("/")[0]


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("3", 3),
        ("-3", -3),
        ("+3", 3),
        ("0", 0),
        ("1e5", 1e5),
        ("1.", 1.0),
        (".5", 0.5),
        ("2E-3", 2e-3),
        ("True", True),
        ("FALSE", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("tRue", "tRue"),
        ("nan", "nan"),
        ("a:1", "a:1"),
    ],
)
def test_plain_values(word, value):
    assert plain_value(word) == value
    assert type(plain_value(word)) is type(value)


WORDS = ("010", "00", "0x1f", "0b1", "1_000", "1:30", "1:30.5", ".inf", "-.INF", ".nan", "yes", "No", "on", "OFF")


@pytest.mark.parametrize("word", [*WORDS, "2020-01-01", "1e999", "9" * 5000, "=", "<<"])
def test_words_that_yaml_reads_as_something_else_are_refused_by_line(word, tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text(f"data: digits\nepochs: {word}\n")
    assert main(["train", "--out", "o", "--config", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"ltfast: error: --config {path}:2: expected epochs: decimal numbers, true, false, none")
    assert f"got {word[:50]}" in error
    assert len(error) < 400
    path.write_text(f"data: '{word}'\n")  # in quotes, it is a word
    assert read_recipe(str(path)).values == {"data": word}


@pytest.mark.parametrize("word", WORDS)
def test_the_command_line_refuses_them_too(word, capsys):
    assert main(["train", "--out", "o", "--epochs", word]) == 2
    assert f"--epochs: expected int, got {word}, which YAML 1.1 reads as " in capsys.readouterr().err
    assert main(["train", "--out", "o", f"--milestones=5,{word}"]) == 2
    assert f"--milestones: expected int,int,..., got {word}, which" in capsys.readouterr().err
    for words in (
        ["eval", "--checkpoint", "x", "--batch-size"],
        ["bench", "--seconds"],
        ["bench", "step", "--seconds"],
    ):
        assert main([*words, word]) == 2
        assert re.search(rf"{words[-1]}: expected (int|float), got {word}, which", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs: 1\n\nepochs: 2\n", ":3: expected one value for epochs, got another one; the first is in line 1"),
        ("epoch: 2\n", ":1: epoch: expected a setting of method ce; did you mean epochs?"),
        (
            "queue_size: 9\n",
            ":1: queue_size: expected a setting of method ce; it is an option of method dscl",
        ),
        ("data: digits\nimbalance: 1e6\n", ":2: imbalance: 1e+06 leaves class 4 without images"),
        ("loss: agc\n", ":1: loss: expected one of cross_entropy, .*, got 'agc'; did you mean agcl?"),
        ("method: dcsl\n", ":1: method: expected one of ce, .*, got 'dcsl'; did you mean dscl?"),
        ("data: digits\nout: run\n", ":2: out: expected a setting of method ce"),
        ("epochs: '2'\n", ":1: epochs: expected int, got '2'"),
        ("epochs: 2.0\n", ":1: epochs: expected int, got 2.0"),
        ("epochs: true\n", ":1: epochs: expected int, got True"),
        ("epochs:\nlr: 1\n", ":1: epochs: expected int, got None"),
        ("lr: nan\n", ":1: lr: expected float, got 'nan'"),
        ("milestones: [1, x]\n", ":1: milestones: expected int,int,..., got"),
        ("milestones: 3\n", ":1: milestones: expected int,int,..., got 3"),
        ("pretrained: 1\n", ":1: pretrained: expected bool, got 1"),
        ("loss: hinge\n", ":1: loss: expected one of cross_entropy, .*, got 'hinge'"),
        ("data: 5\n", ":1: data: expected str, got 5"),
        ("method: [ce]\n", ":1: method: expected one of ce, .*, got"),
        ("method: cee\n", ":1: method: expected one of ce, .*, got 'cee'"),
        ("data: digits\nlr: -1\n", ":2: lr: expected a positive number, got -1"),
        ("seed: 99999999999999999999\n", ":1: seed: expected an integer of at most 64 bits, got 9999"),
        ("data: digits\nbatch_size: 100000\n", ":2: batch_size: expected at most 1100, the images of an epoch"),
        ("a: &x 1\nb: *x\n", ":1: expected no anchors, got &x"),
        ("b: *x\n", ":1: expected no aliases, got *x"),
        ("<<: {a: 1}\n", ":1: expected the name of a setting, got a merge key (<<)"),
        ("a: !!python/name:os.system\n", ":1: expected no tags, got tag:yaml.org,2002:python/name:os.system"),
        ("a: {b: 1}\n", ":1: expected a: decimal numbers, .*, got names and values"),
        ("a: [[1]]\n", ":1: expected decimal numbers, .*, got a list or names and values inside another"),
        ("a: " + "[" * 20_000, ":1: expected decimal numbers, .*, got a list or names and values inside another"),
        ("{a: " * 5_000, ":1: expected decimal numbers, .*, got a list or names and values inside another"),
        ("? [1]\n: 2\n", ":1: expected the name of a setting before the colon"),
        ("- 1\n", ":1: expected names and values, one pair per line (epochs: 30)"),
        ("", ": expected names and values, one pair per line (epochs: 30), got an empty file"),
        ("# nothing\n", ": expected names and values, one pair per line (epochs: 30), got an empty file"),
        ("a: 1\n---\nb: 2\n", ":2: expected YAML: but found another document"),
        ("a: [1,\n", ":2: expected YAML: "),
        ('data: "\\e]0;pwned\\a"\n', r":1: expected data: text on one line, .*, got '\x1b]0;pwned\x07'"),
        ("data: |\n  a\n  b\n", r":1: expected data: text on one line, without control characters, got 'a\nb\n'"),
        ("# " + "x" * 70_000, ": expected a recipe of at most 65536 bytes, got more"),
        (b"\xff\xfee\x00", ":1: expected text in UTF-8, got the byte 0xff"),
        (b"data: x\nroot: \xe9\n", ":2: expected text in UTF-8, got the byte 0xe9"),
        (b"\x00\x01", ": expected YAML: unacceptable character #x0000"),
    ],
)
def test_what_is_no_recipe_is_refused_by_file_and_line(text, message, tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert main(["train", "--out", str(tmp_path / "run"), "--config", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    pattern = ".*".join(map(re.escape, f"ltfast: error: --config {path}{message}".split(".*")))
    assert re.match(pattern, error), error


def test_a_setting_on_the_command_line_is_not_blamed_on_the_recipe(tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text("data: digits\nlr: 0.1\n")
    for words in (["--lr", "-2"], ["--lr=-2"]):
        assert main(["train", "--out", "o", "--config", str(path), *words]) == 2
        assert capsys.readouterr().err == "ltfast: error: --lr: expected a positive number, got -2.0\n"


def test_nested_aliases_end_at_once(tmp_path, capsys):
    """A few hundred bytes that would expand to fill the memory."""
    path = tmp_path / "laughs.yaml"
    lines = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
    path.write_text("\n".join(lines))
    begun = time.monotonic()
    assert main(["train", "--out", "o", "--config", str(path)]) == 2
    assert time.monotonic() - begun < 5
    assert "laughs.yaml:1: expected no anchors, got &a0" in capsys.readouterr().err


def test_what_is_no_file_is_not_read(tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")  # reading it would wait for good
    other = "a device or pipe"
    for name, got in ((tmp_path, "a folder"), (tmp_path / "pipe", other), ("/dev/zero", other)):
        assert main(["train", "--out", "o", "--config", str(name)]) == 2
        assert f"--config {name}: expected a recipe file, got {got}" in capsys.readouterr().err
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in (tmp_path / "loop", "x\0y", "y" * 5000):
        assert main(["train", "--out", "o", "--config", str(name)]) == 2
        assert "--config" in capsys.readouterr().err
