import pytest

from ltfast.engine.estimate import Estimate


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


def test_the_time_that_is_left_is_known_before_and_after_the_line():
    clock = Clock()
    estimate = Estimate(lambda line: None, clock)
    estimate.begin("train", 100)
    for _ in range(6):
        clock.now += 0.5
        estimate.step()
    assert estimate.seconds_left is None
    for _ in range(50):
        clock.now += 0.5
        estimate.step()
    assert estimate.seconds_left == 44 * 0.5


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
