"""Tests what a whole bench does with its cases: their order, failures, interruptions, and a busy machine."""

import json
import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ltfast.benchmark import ceilings, goals, results, run
from ltfast.benchmark.cases import benches, models
from ltfast.benchmark.ceilings import Ceilings
from ltfast.cli import main
from ltfast.ops.core.bench import Case, Growth, Work

CPU = torch.device("cpu")
LIMITS = Ceilings(bytes=1e9, flops={"float32": 1e11}, exps=1e9, others=0.0)


@pytest.fixture(autouse=True)
def known_limits(monkeypatch):
    """Measuring them takes seconds."""
    monkeypatch.setattr(ceilings, "measure", lambda device: LIMITS)


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setattr(run, "busy_now", lambda: False)


def works():
    return lambda inputs: inputs.add(1)


def fails():
    raise ValueError("no")


def case(size="2 x 3", **implementations):
    work = Work(bytes=1e3)
    return Case(
        "agcl", "small", size, torch.float32, work, lambda: torch.zeros(6), implementations or {"ltfast": works}
    )


def lines(folder):
    return [json.loads(line) for line in (folder / results.LINES).read_text().splitlines()]


def test_a_failing_case_is_an_entry_and_the_next_is_measured(tmp_path):
    shown = []
    cases = [case("1", ltfast=works, eager=fails), case("2", ltfast=fails), case("3")]
    found = run.bench(CPU, cases, seconds=0.01, out=tmp_path, show=lambda *measured: shown.append(measured))
    assert [row["case"] for row in found["rows"]] == ["agcl 1 float32", "agcl 3 float32"]
    assert [(row["case"], row["implementation"], row["reason"]) for row in found["missing"]] == [
        ("agcl 1 float32", "eager", "ValueError: no"),
        ("agcl 2 float32", "ltfast", "ValueError: no"),
    ]
    assert [(len(rows), len(missing)) for rows, missing in shown] == [(1, 1), (0, 1), (1, 0)]
    assert results.read(tmp_path) == json.loads(json.dumps(found))
    about, limits, *entries = lines(tmp_path)
    assert about["machine"]["device"] == "cpu"
    assert limits["ceilings"]["bytes"] == 1e9
    assert [(entry["case"], entry["implementation"]) for entry in entries] == [
        ("agcl 1 float32", "ltfast"),
        ("agcl 1 float32", "eager"),
        ("agcl 2 float32", "ltfast"),
        ("agcl 3 float32", "ltfast"),
    ]


def test_an_interrupted_bench_keeps_what_it_measured(tmp_path):
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.bench(CPU, [case("1"), case("2", ltfast=interrupted)], seconds=0.01, out=tmp_path)
    assert [entry.get("case") for entry in lines(tmp_path)] == [None, None, "agcl 1 float32"]


def test_growth_that_fails_is_an_entry():
    def growth(make):
        return Growth("agcl", {"rows": 1}, {"rows": (1, 2)}, lambda rows: case(ltfast=make))

    growing = [growth(make) for make in (fails, works)]
    found = run.bench(CPU, [case()], growth=growing, seconds=0.01)
    assert [(row["case"], row["failed"]) for row in found["missing"]] == [("growth of agcl", True)]
    assert [growth["op"] for growth in found["growth"]] == ["agcl"]


def test_the_limits_are_measured_again_when_the_machine_is_quiet(monkeypatch):
    measured = iter(
        [
            Ceilings(1e8, {"float32": 1e11}, 1e8, others=0.5),
            Ceilings(1e9, {"float32": 1e10}, 1e9, others=0.0),
        ]
    )
    busy = iter([True, False])
    monkeypatch.setattr(run, "measure_limits", lambda device: next(measured))
    monkeypatch.setattr(run, "busy_now", lambda: next(busy))
    shown = []
    found = run.bench(
        CPU, [case("1"), case("2"), case("3")], seconds=0.01, show=lambda rows, _: shown.append(rows[0]["least_ms"])
    )
    assert shown == [1e-2, 1e-3, 1e-3]  # 1 kB at 0.1 GB/s, then at 1 GB/s
    assert found["ceilings"] == {"bytes": 1e9, "flops": {"float32": 1e11}, "exps": 1e9, "others": 0.0}
    assert [row["least_ms"] for row in found["rows"]] == [1e-3, 1e-3, 1e-3]


def test_cases_with_a_goal_come_first():
    names = [case.name for case in run.select(CPU)]
    wanted = goals.cases(CPU) - {goals.EVERY_CASE}
    assert wanted <= set(names), "no case has the name of the goal"
    assert set(names[: len(wanted)]) == wanted
    assert len(names) == len(set(names))


def test_peers_of_some_cases():
    eager = run.select(CPU, ops=["agcl"], shapes=["small", "imagenet-lt"], peers=["eager"])
    assert all(list(case.implementations) == ["ltfast", "eager"] for case in eager)
    assert list(eager[0].with_peers(["copy"]).implementations) == ["ltfast"]
    with pytest.raises(ValueError, match=r"expected some of copy, eager, torch\.compile, got other"):
        run.select(CPU, ops=["agcl"], peers=["other"])


def test_the_exit_status_says_that_something_failed(monkeypatch, capsys):
    words = ["bench", "--device", "cpu", "--ops", "agcl", "--shapes", "small", "--seconds", "0.01"]
    monkeypatch.setattr(run, "select", lambda device, **words: [case("1", ltfast=works, eager=fails), case("2")])
    assert main(words) == 1
    text = capsys.readouterr().out
    assert "failed: agcl 1 float32, eager (ValueError: no)" in text
    assert "agcl 2 float32" in text
    monkeypatch.setattr(run, "select", lambda device, **words: [case()])
    assert main(words) == 0


def test_a_peer_may_have_a_comma_in_its_name(monkeypatch):
    asked = []
    monkeypatch.setattr(run, "select", lambda device, **words: asked.append(words["peers"]) or [case()])
    assert main(["bench", "--device", "cpu", "--ops", "agcl", "--peers", "eager,attention, flash,copy"]) == 0
    assert asked == [["eager", "attention, flash", "copy"]]


SCRIPT = """
import sys
sys.modules["jsonargparse"] = None  # an import of it fails
from pathlib import Path
import torch
from ltfast.benchmark import ceilings, run
from ltfast.benchmark.step import run_steps
try:
    import jsonargparse
except ImportError:
    pass
ceilings.measure = lambda device: ceilings.Ceilings(1e9, {"float32": 1e11}, 1e9)
cpu = torch.device("cpu")
cases = run.select(cpu, ops=["agcl"], shapes=["small"], peers=["eager", "copy"])
run.bench(cpu, cases, seconds=0.01, out=Path(sys.argv[1]))
assert not [name for name in sys.modules if name.startswith("ltfast.cli")]
"""


@pytest.mark.slow
def test_the_bench_needs_no_command_line(tmp_path):
    subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path)], check=True)
    rows = results.read(tmp_path)["rows"]
    assert [row["implementation"] for row in rows] == ["ltfast", "eager", "copy"]


def test_goals_of_a_gpu_are_of_cases_that_exist():
    device = torch.device("cuda")
    ops = [op for op in benches() if op not in models.BENCHES]  # which count on the meta device
    with FakeTensorMode(allow_non_fake_inputs=True):
        names = [case.name for case in run.select(device, ops=ops)]
    wanted = goals.cases(device) - {goals.EVERY_CASE}
    assert set(names[: len(wanted)]) == wanted


def test_the_longest_queue_is_a_selection_of_its_own():
    with FakeTensorMode():
        (only,) = run.select(torch.device("cuda"), ops=["queue_softmax"], shapes=["16-million"])
    assert only.name == "queue_softmax 4096 x 16777216 x 128, forward bfloat16"
    assert {"attention, flash, split", "attention, cudnn, split"} < set(only.implementations)
