import io

import pytest
import torch
from rich.console import Console

from ltfast import progress
from ltfast.data import DataBundle, ReaderDataset, check_images
from ltfast.progress import Progress, in_words


@pytest.fixture
def clock(monkeypatch):
    """A time in seconds that the test sets."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def off_a_terminal():
    return Console(file=io.StringIO(), force_terminal=False, width=80)


def test_a_line_every_half_minute(clock):
    console = off_a_terminal()
    with Progress(console) as bars:
        task = bars.add_task("predicting", total=5000)
        bars.update(task, completed=1000)  # an interrupted command continues
        for _ in range(40):
            clock[0] += 10
            bars.advance(task, 20)
    lines = console.file.getvalue().splitlines()
    assert len(lines) == 13
    assert lines[0] == "predicting 1,060/5,000, 33 min left"
    assert lines[-1] == "predicting 1,780/5,000, 27 min left"


def test_notes_and_the_end(clock):
    console = off_a_terminal()
    with Progress(console, lambda: "loss 0.5") as bars:
        task = bars.add_task("[train] 1/2", total=2)
        clock[0] = 31
        bars.advance(task)
        clock[0] = 62
        bars.advance(task)  # finished: the command has a line of its own for that
    assert console.file.getvalue() == "[train] 1/2, loss 0.5\n"


def test_the_check_of_images_has_lines(monkeypatch, capsys):
    monkeypatch.setattr(progress, "SECONDS", 0)
    images = ReaderDataset(None, torch.arange(3), torch.tensor([0, 1, 1]), ["a", "b"])
    monkeypatch.setattr(ReaderDataset, "image", lambda self, index: None)
    data = DataBundle(images, images, (0.0,), (1.0,), 8, 1)
    check_images(data, skip_broken=True, splits=["train"])
    lines = capsys.readouterr().out.splitlines()
    assert [line[:28] for line in lines] == [f"checking training images {i}/3" for i in (1, 2)]


def test_a_terminal_has_bars(monkeypatch):
    monkeypatch.setattr(progress, "SECONDS", 0)
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    with Progress(console) as bars:
        bars.advance(bars.add_task("predicting", total=3))
        assert not bars.disable
    assert "\n".join(console.file.getvalue().splitlines()).count("left") == 0


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        *((0, "0 s"), (40.4, "40 s"), (59.6, "60 s"), (90, "2 min"), (700, "12 min"), (3600, "60 min")),
        *((12_000, "3 h 20 min"), (200_000, "2 d 7 h")),
    ],
)
def test_durations(seconds, words):
    assert in_words(seconds) == words
