import pytest

from ltfast.engine.estimate import Estimate, in_words


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def made(steps, each, *, epoch=10**9, first=60.0):
    """What a stage of so many steps says: `each` seconds a step, of `epoch` steps with a minute between epochs."""
    said, clock = [], Clock()
    estimate = Estimate(lambda line: said.append((step + 1, line)), clock)
    estimate.begin("train", steps)
    for step in range(steps):
        if step % epoch == 0:
            clock.now += first
            estimate.pause()
        clock.now += each
        estimate.step()
    return said


def test_one_line_after_the_first_seconds():
    ((step, line),) = made(1000, 0.5)
    assert step == 16  # the time of the first step is not known, five warm up, and ten are measured
    assert (
        line
        == "train: about 8 min for the 984 steps that are left, at 0.5 s a step, without evaluations and checkpoints"
    )


def test_fast_steps_are_measured_for_five_seconds():
    ((step, line),) = made(100_000, 0.01)
    assert 500 <= step <= 510
    assert "about 17 min for the 99,49" in line


def test_what_lies_between_epochs_does_not_count():
    ((step, line),) = made(1000, 0.5, epoch=4)
    assert step == 20
    assert ", at 0.5 s a step, " in line


@pytest.mark.parametrize(("steps", "each"), [(15, 1.0), (100, 0.01), (520, 0.01), (20, 0.6)])
def test_nothing_is_said_where_little_is_left(steps, each):
    assert made(steps, each) == []


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(40.4, "40 s"), (90, "2 min"), (3600, "60 min"), (12_000, "3 h 20 min"), (200_000, "2 d 7 h")],
)
def test_durations_in_words(seconds, words):
    assert in_words(seconds) == words
