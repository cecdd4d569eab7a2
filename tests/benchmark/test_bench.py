"""Tests the clock, the limits of the machine, tables, pictures and the command `ltfast bench`."""

import json
import time
from dataclasses import replace

import pytest
import torch

from ltfast.benchmark import ceilings, clock, pictures, results, run
from ltfast.benchmark.cases import SHAPES, benches
from ltfast.benchmark.ceilings import Ceilings
from ltfast.cli import main
from ltfast.ops.core import backends
from ltfast.ops.core.bench import Case, Growth, Unavailable, Work, backward
from ltfast.ops.taylor import cases as taylor

CPU = torch.device("cpu")
LIMITS = Ceilings(bytes=1e9, flops={"float32": 1e11, "bfloat16": 2e11}, exps=1e9)


class FakeClock:
    """A clock that advances only when a step tells it to, so that the tests do not depend on the load of the
    machine."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now

    def pass_(self, milliseconds):
        self.now += milliseconds / 1e3

    def taking(self, milliseconds):
        return lambda: lambda inputs: self.pass_(milliseconds)


@pytest.fixture
def fake(monkeypatch):
    made = FakeClock()
    monkeypatch.setattr(clock, "time", made)
    return made


def absent():
    import no_such_package  # noqa: F401


def cannot():
    raise Unavailable("needs another planet")


def broken():
    return lambda inputs: inputs.no_such_method()


def taking(**implementations):
    return Case("agcl", "small", "2 x 3", torch.float32, Work(bytes=1e6), lambda: (torch.zeros(6),), implementations)


def test_quartiles_are_those_of_the_calls(fake):
    watch = clock.Stopwatch(fake.pass_, [2, 4, 6], CPU)
    watch.run(0, 9)
    timing = watch.timing()
    assert timing.rounds == 9  # each set is used three times
    assert (timing.first_ms, timing.q1_ms, timing.median_ms, timing.q3_ms) == pytest.approx((2, 2, 4, 6))
    watch.run(0.025, 1)
    assert len(watch.samples) == 9 + 7  # the last of the steps 2 4 6 2 4 6 2 ms starts after 24 ms
    with pytest.raises(ValueError, match="samples"):
        clock.Stopwatch(lambda pause: None, [0], CPU).timing()


def test_inputs_leave_the_cache():
    small = clock.cold_sets(lambda: {"x": [torch.zeros(2**20)]}, CPU)
    assert len(small) == 16 or sum(4 * 2**20 for _ in small) > 2 * clock.cache_bytes(CPU)
    assert len({id(entry["x"][0]) for entry in small}) == len(small)
    large = clock.cache_bytes(CPU)  # float32: four times the cache
    assert len(clock.cold_sets(lambda: torch.empty(large), CPU)) == 2


def test_peak_memory_is_what_a_call_holds_at_once():
    pieces = []

    def hold():
        block = torch.ones(8 * 2**20)  # 32 MiB
        del block
        pieces.append(torch.ones(4 * 2**20))

    assert clock.peak_memory(hold, CPU) == pytest.approx(32, abs=4)
    assert clock.peak_memory(lambda: None, CPU) < 1


def test_the_limit_is_the_longest_of_three():
    assert LIMITS.least_ms(Work(bytes=1e6, flops=1e7, exps=1e5), torch.float32) == (1.0, "memory")
    assert LIMITS.least_ms(Work(bytes=1e6, flops=4e8, exps=1e5), torch.bfloat16) == (2.0, "matrix")
    assert LIMITS.least_ms(Work(bytes=1e6, exps=5e6), torch.float32) == (5.0, "exp")


def test_a_row_for_each_that_runs_and_a_reason_for_each_that_does_not(fake):
    case = taking(ltfast=fake.taking(2), slow=fake.taking(6), absent=absent, cannot=cannot, broken=broken)
    rows, missing = run.run_case(case, CPU, LIMITS, seconds=0.02)
    ours, slow = rows
    assert (ours["implementation"], slow["implementation"]) == ("ltfast", "slow")
    assert ours["times_ltfast"] == 1
    assert slow["times_ltfast"] == pytest.approx(3)
    assert ours["share"] == pytest.approx(1 / ours["median_ms"])  # 1 MB at 1 GB/s takes one millisecond
    assert ours["rounds"] >= 4
    assert [(row["implementation"], row["reason"]) for row in missing] == [
        ("absent", "no_such_package is not installed"),
        ("cannot", "needs another planet"),
        ("broken", "AttributeError: 'tuple' object has no attribute 'no_such_method'"),
    ]
    assert [row["failed"] for row in missing] == [False, False, True]
    only, _ = run.run_case(case.with_peers([]), CPU, LIMITS, seconds=0.02)
    assert [row["implementation"] for row in only] == ["ltfast"]
    text = results.describe({"machine": {}, "ceilings": {"bytes": 1e9, "flops": {}, "exps": 1e9}, "missing": missing})
    assert "left out: cannot (needs another planet)" in text
    assert "failed: agcl 2 x 3 float32, broken (AttributeError" in text
    assert "left out: broken" not in text


def starved():
    raise torch.OutOfMemoryError("CUDA out of memory")


def starved_cpu():
    return lambda inputs: torch.empty(2**60)


def failing_later(fake, calls):
    """A step that fails after some calls."""
    left = iter(range(calls))

    def step(inputs):
        fake.pass_(1)
        next(left)

    return lambda: step


def test_a_failure_at_any_moment_ends_no_more_than_its_implementation(fake):
    case = taking(
        ltfast=fake.taking(1), starved=starved, cpu=starved_cpu, late=failing_later(fake, 3), copy=fake.taking(2)
    )
    rows, missing = run.run_case(case, CPU, LIMITS, seconds=0.02)
    assert [row["implementation"] for row in rows] == ["ltfast", "copy"]
    assert [(row["implementation"], row["reason"], row["failed"]) for row in missing] == [
        ("starved", "out of memory", False),  # the peer needs more than there is
        ("cpu", "out of memory", False),
        ("late", "StopIteration: ", True),
    ]


@pytest.mark.parametrize("make", ["ltfast", "late", "inputs"])
def test_without_ltfast_a_case_has_no_rows(fake, make):
    case = taking(ltfast=failing_later(fake, 3) if make == "late" else starved, copy=fake.taking(2))
    if make == "inputs":
        case = replace(case, inputs=starved)
    rows, missing = run.run_case(case, CPU, LIMITS, seconds=0.02)
    assert rows == []
    assert [(row["case"], row["implementation"], row["failed"]) for row in missing] == [(case.name, "ltfast", True)]


def test_growth_varies_one_dimension_at_a_time(fake):
    def case(a, b):
        return taking(ltfast=fake.taking(a * b))

    grown = run.run_growth(Growth("agcl", {"a": 1, "b": 2}, {"a": (1, 3), "b": (2, 4)}, case), CPU, seconds=0.01)
    times = {name: [point["median_ms"] for point in points] for name, points in grown["lines"].items()}
    assert times["a"] == pytest.approx([2, 6])
    assert times["b"] == pytest.approx([2, 4])


def test_backward_is_the_gradient_in_the_first_input():
    x = torch.tensor([3.0], requires_grad=True)
    step = backward(lambda: lambda x, y, factor: (factor * x * y).sum(), factor=5)()
    assert step((x, torch.tensor([2.0])))[0].item() == 10
    assert x.grad is None


def rows(case, milliseconds, spread=0.1):
    quartiles = {"q1_ms": milliseconds * (1 - spread), "q3_ms": milliseconds * (1 + spread)}
    return {"case": case, "implementation": "ltfast", "median_ms": milliseconds, "peak_mib": 1.0, **quartiles}


def test_slower_is_past_the_threshold_and_past_the_spread():
    def result(*rows):
        return {"machine": {}, "ceilings": {}, "rows": list(rows)}

    before = result(rows("a", 1.0), rows("b", 1.0), rows("c", 1.0), rows("gone", 1.0))
    after = result(rows("a", 1.15), rows("b", 1.5), rows("c", 1.5, spread=0.5), rows("new", 9.0))
    _, found = results.slower(before, after, 1.2)
    assert found == ["b"]  # a is within the threshold; the interquartile ranges of c overlap
    with pytest.raises(ValueError, match="in common"):
        results.slower(before, result(rows("new", 1.0)), 1.2)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The folder of a whole benchmark, with the machine's limits."""
    out = tmp_path_factory.mktemp("bench")
    words = ["bench", "--device", "cpu", "--ops", "agcl", "--shapes", "imagenet-lt", "--peers", "eager"]
    assert main([*words, "--seconds", "0.1", "--out", str(out)]) == 0
    return out


@pytest.mark.slow
def test_bench_writes_results_and_pictures(measured):
    content = results.read(measured)
    assert content["machine"]["device"] == "cpu"
    names = [(row["case"], row["implementation"]) for row in content["rows"]]
    assert names == [
        (f"agcl 256 x 1000 {dtype}", who) for dtype in ("float32", "bfloat16") for who in ("ltfast", "eager")
    ]
    assert content["rows"][1]["times_ltfast"] > 1
    assert {line for grown in content["growth"] for line in grown["lines"]} == {"rows", "classes"}
    for name in ("speedups", "roofline", "growth"):
        assert (measured / f"{name}.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
def test_the_machines_limits_are_plausible(measured):
    limits = results.read(measured)["ceilings"]
    assert 1e9 < limits["bytes"] < 1e12
    assert 1e9 < limits["flops"]["float32"] < 1e13
    assert 1e7 < limits["exps"] < 1e11


@pytest.mark.slow
def test_compare_catches_a_kernel_that_became_slower(measured, tmp_path, monkeypatch, capsys):
    """A pause is added to the caller of the kernel, longer than those of a busy machine."""
    monkeypatch.setattr(ceilings, "measure", lambda device: LIMITS)  # takes half a minute, and does not matter here
    assert main(["bench", "--compare", str(measured), str(measured)]) == 0
    assert "slower: nothing" in capsys.readouterr().out
    kernels = backends.native()

    class Slowed:
        def __getattr__(self, name):
            if name == "agcl":
                time.sleep(0.05)
            return getattr(kernels, name)

    monkeypatch.setattr(backends, "native", Slowed)
    words = ["bench", "--device", "cpu", "--ops", "agcl", "--shapes", "imagenet-lt", "--peers", "none"]
    assert main([*words, "--seconds", "0.1", "--out", str(tmp_path)]) == 0
    assert main(["bench", "--compare", str(measured), str(tmp_path / "results.json")]) == 1
    assert "slower: agcl 256 x 1000 float32, agcl 256 x 1000 bfloat16" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ops", "agcl,softmax"], "--ops: expected some of agcl"),
        (["--shapes", "huge"], "--shapes: expected some of small"),
        (["--ops", "agcl", "--peers", "eagr"], "--peers: expected some of copy, eager, torch.compile, got eagr"),
        (
            ["--ops", "taylor_importance_", "--shapes", "small"],
            "--shapes: expected one that taylor_importance_ has, got small",
        ),
        (["--seconds", "0"], "seconds: expected a positive number, got 0.0"),
        (["--compare", "a.json", "b.json"], "there is no a.json"),
        (["step", "--methods", "dino"], "--methods: expected some of"),
    ],
)
def test_bad_words_are_named(words, message, capsys):
    assert main(["bench", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_file_that_is_no_result_is_refused(tmp_path, capsys):
    (tmp_path / "results.json").write_text(json.dumps({"rows": []}))
    assert main(["bench", "--compare", str(tmp_path), str(tmp_path)]) == 2
    assert "is no result of ltfast bench" in capsys.readouterr().err


def test_every_op_has_cases():
    from ltfast import ops

    # part of vmf_cross_entropy; the others equal the ops of one process plus communication
    timed = {
        "vmf_logits",
        "class_parallel_agcl",
        "class_parallel_linear_agcl",
        "class_parallel_linear_balanced_bce",
        "class_parallel_linear_cross_entropy",
        "class_parallel_vmf_cross_entropy",
    }
    assert set(ops.__all__) - timed <= set(benches())


def test_cases_and_growth_are_of_their_op_and_have_names_of_their_own():
    names = []
    for op, bench in benches().items():
        for case in bench.cases(CPU):
            names.append(case.name)
            assert case.op == op
            assert case.shape in SHAPES
            assert next(iter(case.implementations)) == "ltfast"
            assert case.work.bytes > 0
            assert case.work.flops > 0 or case.work.exps > 0 or op in ("class_sums", *taylor.CASES.in_place)
        for growth in [] if bench.growth is None else bench.growth(CPU):
            assert growth.op == op
            assert set(growth.ranges) == set(growth.base)
            for dimension, sizes in growth.ranges.items():
                assert growth.base[dimension] in sizes
                assert list(sizes) == sorted(sizes)
                small, large = (growth.case(**{**growth.base, dimension: size}).work for size in (sizes[0], sizes[-1]))
                assert large.bytes > small.bytes
            tiny = growth.case(**{dimension: sizes[0] for dimension, sizes in growth.ranges.items()})
            assert tiny.op == growth.op
            tiny.implementations["ltfast"]()(tiny.inputs())
    assert len(set(names)) == len(names)


@pytest.mark.slow
def test_pictures_of_ops_without_growth(tmp_path, measured):
    content = results.read(measured)
    pictures.growth(tmp_path / "growth.png", {**content, "growth": content["growth"][:0]})
    assert not (tmp_path / "growth.png").exists()
