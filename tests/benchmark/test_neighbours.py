"""Tests that other processes on the cores are noticed, with a stand-in for the system's counters."""

from types import SimpleNamespace
from typing import NamedTuple

import psutil
import pytest
import torch

from ltfast.benchmark import ceilings, neighbours, results
from ltfast.benchmark.ceilings import Ceilings


class Core(NamedTuple):
    user: float
    system: float
    idle: float
    iowait: float
    guest: float  # part of user


class FakeSystem:
    """Two cores of this process and one that it may not use."""

    def __init__(self):
        self.ours = self.child = self.others = self.wall = 0.0

    def cpu_times(self, percpu):
        assert percpu
        busy = self.ours + self.child + self.others
        idle = 2 * self.wall - busy
        first = Core(busy / 2, 0, idle, 0, busy / 2)
        return [first, Core(self.wall, 0, 0, 0, 0), Core(0, busy / 2, 0, 0, 0)]

    def process(self):
        child = SimpleNamespace(cpu_times=lambda: SimpleNamespace(user=0, system=self.child))
        return SimpleNamespace(
            cpu_affinity=lambda: [0, 2],
            cpu_times=lambda: SimpleNamespace(user=self.ours, system=0),
            children=lambda recursive: [child],
        )


@pytest.fixture
def system(monkeypatch):
    fake = FakeSystem()
    monkeypatch.setattr(psutil, "cpu_times", fake.cpu_times)
    monkeypatch.setattr(psutil, "Process", fake.process)
    return fake


@pytest.mark.parametrize(("others", "share", "busy"), [(0.0, 0.0, False), (0.1, 0.05, False), (1.0, 0.5, True)])
def test_the_share_of_others(system, others, share, busy):
    with neighbours.neighbours() as found:
        system.wall += 1
        system.ours += 0.7
        system.child += 0.2
        system.others += others
    assert found.share == pytest.approx(share)
    assert neighbours.is_much(found.share) == busy


def test_too_short_an_interval_says_nothing(system):
    with neighbours.neighbours() as found:
        system.wall += 0.01
        system.others += 0.02
    assert found.share is None
    assert not neighbours.is_much(found.share)


def test_a_system_that_does_not_tell(monkeypatch):
    def denied(percpu):
        raise psutil.AccessDenied

    monkeypatch.setattr(psutil, "cpu_times", denied)
    with neighbours.neighbours() as found:
        pass
    assert found.share is None


def test_this_system_tells():
    before = neighbours._times()
    x = torch.rand(300, 300)
    for _ in range(50):
        x = (x @ x).clamp(max=1)
    after = neighbours._times()
    assert all(b >= a for a, b in zip(before, after, strict=True))
    assert after[0] > 0 or not psutil.LINUX


def row(share, others=0.0, implementation="ltfast"):
    return {
        **dict.fromkeys(("op", "size", "dtype"), "x"),
        **dict.fromkeys(("median_ms", "q1_ms", "q3_ms", "times_ltfast", "peak_mib", "first_ms"), 1.0),
        **{"implementation": implementation, "share": share, "limit": "exp", "others": others, "host_ms": None},
    }


def text(rows):
    from rich.console import Console

    console = Console(width=120)
    with console.capture() as capture:
        console.print(results.table(rows))
    return capture.get()


def test_the_table_says_that_the_machine_was_busy():
    assert "not alone" not in text([row(0.5)])
    assert "not alone: other processes used 50 % of the cores" in text([row(0.5, others=0.5)])


def test_a_share_far_above_the_limit_is_no_number():
    assert "109% exp" in text([row(1.09)])
    assert results.of_limit(row(11.89)) == "above: the limit was measured under other conditions"
    assert "1189" not in text([row(11.89)])
    assert "*) above: the limit was measured under other conditions" in text([row(0.5), row(11.89)])
    assert results.of_limit(row(11.89, implementation="copy")) == ""


def test_limits_of_a_busy_machine_say_so():
    limits = {"bytes": 1e9, "flops": {}, "exps": 1e9, "others": 0.5}
    assert "not alone" in results.describe({"machine": {}, "ceilings": limits, "missing": []})
    assert Ceilings(1, {}, 1, others=0.5).disturbed
    assert not Ceilings(1, {}, 1, others=None).disturbed


def test_limits_are_the_best_of_two_measurements():
    before = Ceilings(1.0, {"float32": 3.0}, 5.0, others=0.5)
    again = Ceilings(2.0, {"float32": 1.0}, 6.0, others=0.0)
    assert before.best(again) == Ceilings(2.0, {"float32": 3.0}, 6.0, others=0.0)


@pytest.mark.parametrize(("ms", "calls"), [(1.0, 20), (0.01, 64), (15.0, 1), (200.0, 1)])
def test_a_limit_is_measured_with_many_calls_in_a_round(monkeypatch, ms, calls):
    """The waits for a GPU cost as little as the clock of one call."""
    clock = SimpleNamespace(now=0.0, reads=0)

    def perf_counter():
        clock.reads += 1
        return clock.now

    def call():
        clock.now += ms / 1e3

    monkeypatch.setattr(ceilings, "time", SimpleNamespace(perf_counter=perf_counter))
    assert ceilings._seconds(call, torch.device("cpu")) == pytest.approx(ms / 1e3)
    rounds = 2 if ms > 100 else 5
    assert clock.now == pytest.approx((2 + rounds * calls) * ms / 1e3)
