"""Pictures of names that are no words, and what a picture may cost: one line."""

import json
import warnings

import pytest
import toy
from matplotlib import font_manager, rcParams
from matplotlib.figure import Figure

from ltfast.engine import plot, report
from ltfast.picture import as_text, picture, short_name

NAMES = ["Ba$$in", "$x^{$", "a\tb\nc", "x" * 300, "\x07\x1b[31m", "שלום", "\udcff", r"\$1", "%s", "", "<b>&amp;"]
COUNTS = list(range(len(NAMES), 0, -1))
GROUPS = {"many": [0, 1], "medium": [2], "few": list(range(3, len(NAMES)))}
METRICS = {"top1": None, "many": 50.0, "medium": None, "few": 50.0, "class_counts": COUNTS,
           "per_class": [50.0] * len(NAMES)}  # fmt: skip
RUN = {"method": "ce", "importance": {"many": 1.0, "medium": None, "few": 2.0}}


def words(text):
    """What a text draws, in its own characters: no mathematics."""
    assert not text.get_usetex()
    return text.get_text(), text._preprocess_math(text.get_text())[1]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_names_are_text_whatever_they_are(suffix, tmp_path, capsys):
    pictures = {
        "per_class": lambda path: plot.plot_per_class(path, METRICS, NAMES, GROUPS),
        "choices": lambda path: plot.plot_choices(path, [[0.5, 0.5]] * len(NAMES), NAMES),
        "importance": lambda path: plot.plot_importance(path, {f"/run/{name}": RUN for name in NAMES}),
    }
    for name, draw in pictures.items():
        path = tmp_path / f"{name}.{suffix}"
        assert draw(path)
        assert path.stat().st_size > 5000
    assert capsys.readouterr().out == ""


def test_a_name_with_dollars_is_drawn_with_them():
    figure = plot.plot_per_class.__wrapped__(METRICS, NAMES, GROUPS)
    labels = [words(label) for label in figure.axes[0].get_xticklabels()]
    assert labels[0] == ("Ba$$in · 11", False)
    assert labels[1] == ("$x^{$ · 10", False)
    assert labels[2] == ("a b c · 9", False)
    assert labels[3] == (f"{'x' * 29}… · 8", False)
    assert labels[4] == ("\ufffd\ufffd[31m · 7", False)
    assert labels[7] == (r"\$1 · 4", False)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a", "a"),
        (" a\r\n\u2028 b ", "a b"),
        ("\u202eabc", "\ufffdabc"),
        ("ab" * 20, "ab" * 14 + "a…"),
        ("क\u200dष", "क\u200dष"),
    ],
)
def test_a_name_is_shown_on_one_short_line(name, expected):
    assert short_name(name) == expected


def test_characters_take_the_fonts_that_have_them(monkeypatch):
    assert as_text(["a"])["fontfamily"] == rcParams["font.family"]
    # a mathematical letter that DejaVu Sans lacks and STIX, which matplotlib brings along, has
    (dejavu,) = {font_manager.findfont("DejaVu Sans")}
    codes = [
        set(font_manager.get_font(font_manager.findfont(name)).get_charmap()) for name in ("DejaVu Sans", "STIXGeneral")
    ]
    assert "DejaVuSans" in dejavu
    character = chr(min(codes[1] - codes[0]))
    figure = Figure()
    text = figure.text(0, 0, character, **as_text([character]))
    assert len(text.get_fontfamily()) > 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns where no font has it
        figure.draw_without_rendering()


@pytest.mark.filterwarnings("error")
def test_characters_that_no_font_has_are_said_once(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("ltfast.picture._others", list)  # this machine's
    names = ["\U00012000\U0001f9ff", "\U00012000", *NAMES[2:]]
    assert plot.plot_per_class(tmp_path / "p.png", METRICS, names, GROUPS)
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert f"{tmp_path}/p.png: no installed font has " in said
    assert "U+12000, U+1F9FF" in said


def test_a_picture_that_cannot_be_drawn_costs_one_line(tmp_path, capsys, monkeypatch):
    @picture
    def broken():
        raise ValueError("no\nway")

    assert not broken(tmp_path / "p.png")
    assert not plot.plot_choices(tmp_path / "p.nothing", [[1.0]], ["a"])
    assert not list(tmp_path.iterdir())
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"{tmp_path}/p.png was not drawn: ValueError: no way"
    assert second.startswith(f"{tmp_path}/p.nothing was not drawn: ValueError: Format 'nothing' is not supported")


def test_a_run_keeps_its_numbers_without_a_picture_and_draws_it_later(tmp_path, capsys, monkeypatch):
    def broken(*arguments):
        raise RuntimeError("no fonts")

    with monkeypatch.context() as patch:
        patch.setattr(report, "plot_per_class", picture(broken))
        metrics = toy.toy_train(tmp_path)
    assert f"{tmp_path}/per_class.png was not drawn: RuntimeError: no fonts" in capsys.readouterr().out
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    assert not (tmp_path / "per_class.png").exists()
    toy.toy_train(tmp_path)
    assert "nothing to do" in capsys.readouterr().out
    assert (tmp_path / "per_class.png").read_bytes().startswith(b"\x89PNG")
