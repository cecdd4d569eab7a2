"""`make gpu-check` without a GPU: its parts in a dry run, and what happens when a part crashes, hangs or is stopped."""

import importlib
import itertools
import json
import math
import os
import pkgutil
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import triton.language as tl
from torch._subclasses.fake_tensor import FakeTensorMode

import gpu_check
import gpu_check_bench
import gpu_check_dry
import gpu_check_kernels
from gpu_check import ARCHIVE, PARTS, SUMMARY, TESTS, Check, Part
from ltfast import ops
from ltfast.benchmark import run
from ltfast.benchmark.cases import benches, models
from ltfast.ops.core.launch import Chip
from ltfast.ops.reduction import triton as reduction

ROOT = Path(__file__).parents[1]
CUDA = torch.device("cuda")
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="stands in for a GPU")


def unpacked(out):
    """The content of the archive: name -> text."""
    with tarfile.open(out / ARCHIVE) as tar:
        files = [member for member in tar if member.isfile()]
        return {member.name.removeprefix("gpu-check/"): tar.extractfile(member).read().decode() for member in files}


def json_lines(text):
    return [json.loads(line) for line in text.splitlines()]


def statuses(files):
    return {line["part"]: line["status"] for line in json_lines(files[SUMMARY])}


@pytest.mark.slow
def test_dry_run(tmp_path):
    command = [sys.executable, ROOT / "bench/gpu_check.py", tmp_path / "out", "--dry"]
    result = subprocess.run(command, capture_output=True, text=True)
    print(result.stdout, result.stderr)
    assert result.returncode == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == [ARCHIVE]
    files = unpacked(tmp_path / "out")
    found = statuses(files)
    assert list(found) == ["machine", *(part.name for part in PARTS)]
    assert set(found.values()) == {"passed"}
    lines = {name: json_lines(text) for name, text in files.items() if name.endswith(".jsonl")}
    parts = ("compile", "goals", "torch.compile", "rest", "longest", "tests")
    for name in (*(f"{part}/results.jsonl" for part in parts), "step/steps.jsonl"):
        assert lines[name]
        assert not [line for line in lines[name] if line.get("failed")]
    outcomes = {line["outcome"] for line in lines["tests/results.jsonl"]}
    assert outcomes == {"passed", "skipped"}
    assert "attention, flash: " in files["goals.log"]
    assert "ncu/ncu.csv" in files


@pytest.mark.slow
def test_the_environment_of_a_dry_run_has_no_other_packages(tmp_path):
    python = gpu_check_dry.bare_environment(tmp_path / "env")
    code = "import importlib.util as u, sys; print(*(x for x in sys.argv[1:] if u.find_spec(x)))"
    names = ["torch", "triton", "timm", "xdist", "mypy", "jsonargparse", "mkdocs", "importlinter", "pip"]
    found = subprocess.run([python, "-c", code, *names], capture_output=True, text=True, env={}, check=True)
    assert found.stdout.split() == names[:4]


FAULTY = (
    Part("hang", 2, "echo begun; sleep 1000 & wait"),
    Part("crash", 60, "kill -SEGV $$"),
    Part("lacking", 60, "true", needs=("torch", "no_such_package")),
    Part("expected", 60, "exit 9", exit_code=9),
    Part("good", 60, "echo fine; echo '{{}}' > {out}/results.jsonl"),
)


@pytest.fixture
def check(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check, "DRY_SECONDS", 1)
    (tmp_path / "folder").mkdir()
    return Check(tmp_path / "out", tmp_path / "folder", sys.executable, dict(os.environ), dry=True)


def test_a_crash_and_a_time_out_cost_nothing_else(tmp_path, monkeypatch, check):
    monkeypatch.setattr(Check, "probe", lambda self, parts: {"torch"})
    assert not check.run(FAULTY)
    files = unpacked(tmp_path / "out")
    assert statuses(files) == {
        "hang": "timed out",
        "crash": "failed",
        "lacking": "cannot run: needs no_such_package",
        "expected": "passed",
        "good": "passed",
    }
    assert files["hang.log"] == "begun\n"
    assert files["good/results.jsonl"] == "{}\n"


def test_time_that_is_left_goes_to_later_parts(monkeypatch, check):
    monkeypatch.setattr(Check, "probe", lambda self, parts: set())
    deadlines = []
    monkeypatch.setattr(Check, "wait", lambda self, process, deadline: deadlines.append(deadline - self.started))
    check.run((Part("one", 5, "true"), Part("two", 7, "true", needs=("no_such_package",)), Part("three", 9, "true")))
    assert deadlines == pytest.approx([5, 21])


def test_what_is_missing_is_said(capsys, check):
    assert check.probe(FAULTY) >= {"torch"}
    assert "missing: no_such_package, which lacking needs; carry its wheel" in capsys.readouterr().out


@pytest.mark.slow
def test_a_stop_of_the_whole_leaves_an_archive(tmp_path):
    """Also of the part that runs, whose processes end too."""
    code = f"""
import sys
sys.path.insert(0, {str(ROOT / "bench")!r})
import gpu_check, gpu_check_dry
from gpu_check import Part
gpu_check_dry.THERE = ("torch", "numpy")
hang = "sleep 1000 & echo $! > {tmp_path}/begun; wait"
parts = (Part("good", 60, "true"), Part("hang", 60, hang), Part("never", 9, "true"))
sys.exit(gpu_check.main(parts))
"""
    command = [sys.executable, "-c", code, tmp_path / "out", "--dry"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    started = time.monotonic()
    while not (tmp_path / "begun").exists() or not (tmp_path / "begun").read_text():
        assert process.poll() is None
        assert time.monotonic() - started < 200
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "some parts failed" in output
    files = unpacked(tmp_path / "out")
    assert statuses(files) == {"machine": "passed", "good": "passed", "hang": "stopped", "all": "stopped"}
    state = Path("/proc", (tmp_path / "begun").read_text().strip(), "stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"  # ended, and perhaps not yet collected


def test_the_limits_sum_up_to_less_than_nine_minutes():
    assert sum(part.seconds for part in PARTS) <= 525  # the rest is for wheels, and for the end of parts that time out
    assert len({part.name for part in PARTS}) == len(PARTS)


def test_every_gpu_test_is_in_a_folder_that_is_run():
    folders = re.findall(r"tests/\w+", TESTS)
    files = [path.relative_to(ROOT) for path in (ROOT / "tests").rglob("*.py") if "mark.gpu" in path.read_text()]
    assert len(files) > 5
    others = [path for path in files if not str(path).startswith(tuple(folders)) and path.name != "test_gpu_check.py"]
    assert others == []


@pytest.mark.parametrize(
    ("tool", "words"),
    [
        ("compute-sanitizer", ["--tool", "memcheck", "--error-exitcode", "9", "--kernel-name", "regex:_kernel"]),
        ("compute-sanitizer", ["--tool", "memchk", "--error-exitcode", "9"]),
        ("ncu", ["--clock-control", "none", "--log-file", "x.csv", "--kernel-name", "regex=_kernel"]),
        ("ncu", ["--set", "full"]),
    ],
)
def test_stand_ins_refuse_what_the_tools_do_not_know(tool, words):
    with pytest.raises(SystemExit) as refused:
        gpu_check_dry.run_tool(tool, [*words, "true"])
    assert refused.value.code == 2


@pytest.fixture(scope="module")
def launches():
    """What the program for the sanitizer launches on an H200: (module, kernel) -> the grid and arguments of each."""
    from triton.runtime.interpreter import InterpretedFunction

    found = defaultdict(list)

    def run(self, *args, grid, warmup, **options):
        size = tuple(grid(options) if callable(grid) else grid)
        arguments = dict(zip(self.arg_names, args, strict=False)) | options  # constants come by name
        found[self.fn.__module__, self.fn.__name__].append((size, arguments))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InterpretedFunction, "run", run)
        for module in gpu_modules():
            if hasattr(module, "chip_of"):
                patch.setattr(module, "chip_of", lambda device: Chip("nvidia", 132, "NVIDIA H200", 90))
            if hasattr(module, "_compute"):
                patch.setattr(module, "_compute", lambda queries: queries.dtype)  # as on a GPU
        gpu_check_kernels.kernels_of_functions(torch.device("cpu"), small=False)
        gpu_check_kernels.kernels_of_lists(torch.device("cpu"))
    return found


def gpu_modules():
    names = [module.name for module in pkgutil.walk_packages(ops.__path__, "ltfast.ops.")]
    return [importlib.import_module(name) for name in names if name.endswith(".triton")]


@no_gpu
def test_kernels_have_several_programs_under_the_sanitizer(launches):
    """Every kernel is launched, and with a grid of more than one program unless it is made for one."""
    from triton.runtime.interpreter import InterpretedFunction

    kernels = set()
    for module in gpu_modules():
        functions = [x.fn for x in vars(module).values() if isinstance(x, InterpretedFunction)]
        kernels |= {(function.__module__, function.__name__) for function in functions}
    kernels = {key for key in kernels if key[1].endswith("_kernel")}
    assert launches.keys() >= kernels
    alone = {name for (_, name), all_of in launches.items() if max(math.prod(grid) for grid, _ in all_of) == 1}
    assert alone <= {"_mean_weight_kernel", "_select_kernel"}


@no_gpu
def test_the_sanitizer_sees_the_queue_in_each_launch(launches):
    """Several row blocks, tiles and splits at each width; rows that are whole, and rows that are shared."""
    attend, gradient = (
        [(grid, SimpleNamespace(**arguments)) for grid, arguments in launches["ltfast.ops.queue_softmax.triton", name]]
        for name in ("_attend_kernel", "_key_gradient_kernel")
    )
    pairs = set(itertools.product((tl.float32, tl.bfloat16), (64, 128, 136, 256, 512)))
    for kernel in (attend, gradient):
        assert {(x.COMPUTE, x.width) for _, x in kernel} >= pairs
        assert {x.WIDE for _, x in kernel} == {x.VALID for _, x in kernel} == {True, False}
    assert {x.PEELED for _, x in attend} == {True, False}
    for (blocks, splits, parts), x in attend:
        assert blocks > 1
        assert splits > 1
        assert x.split_size > x.KEYS
        assert (parts > 1) == x.WIDE
    for (blocks, parts), x in gradient:
        assert blocks > 1
        assert x.rows > x.ROWS
        assert (parts > 1) == (x.width > x.COLUMNS)
    merges = [arguments for _, arguments in launches["ltfast.ops.queue_softmax.triton", "_merge_kernel"]]
    assert any(x["splits"] > x["PARTS"] for x in merges)


@no_gpu
def test_the_sanitizer_sees_every_reduction(launches):
    """Labels counted in the kernel and before, losses added in the kernel and after; rows read in one block or more."""
    rows = dict.fromkeys(("agcl", "balanced_bce", "cross_entropy"), "_row_kernel")
    kernels = {**rows, "vmf": "_cross_entropy_kernel"}
    seen = {op: [x for _, x in launches[f"ltfast.ops.{op}.triton", name]] for op, name in kernels.items()}
    count, load = reduction.COUNT.value, reduction.LOAD.value
    for calls in seen.values():
        assert {(x["SHARE"], x["ADD"]) for x in calls} >= {(count, True), (load, True), (load, False)}
    assert {x["ONE_BLOCK"] for x in seen["agcl"]} == {True, False}
    targets = {(x["SOFT"], x["SMOOTH"], x["WEIGHTED"], x["ONE_BLOCK"]) for x in seen["cross_entropy"]}
    kinds = [(False, False, False), (False, True, False), (True, False, True)]
    assert targets >= {(*kind, one_block) for kind in kinds for one_block in (True, False)}
    assert {(x["SOFT"], x["WEIGHTED"]) for x in seen["balanced_bce"]} >= {(False, False), (True, True)}
    assert {x["classes"] * x["WIDTH"] > x["BLOCK"] for x in seen["balanced_bce"]} == {True, False}
    assert {(x["FIRST"], x["LAST"]) for x in seen["vmf"]} == set(itertools.product((True, False), repeat=2))
    assert {x["WHOLE"] for x in seen["vmf"]} == {x["STEPS"] > 0 for x in seen["vmf"]} == {True, False}
    grids = [grid for grid, _ in launches["ltfast.ops.vmf.triton", "_cross_entropy_kernel"]]
    assert any(grid[0] < x["rows"] for grid, x in zip(grids, seen["vmf"], strict=True))  # programs with several rows


@no_gpu
def test_every_group_of_the_bench_has_its_cases(monkeypatch):
    known = {name: bench for name, bench in benches().items() if name not in models.BENCHES}  # those run a network
    monkeypatch.setattr(run, "benches", lambda: known)
    with FakeTensorMode(allow_non_fake_inputs=True):
        groups = {name: gpu_check_bench.chosen(name, CUDA) for name in ("goals", "torch.compile", "rest", "longest")}
    gpu_check_bench.every_case.cache_clear()
    names = [case.name for group in ("goals", "rest", "longest") for case in groups[group]]
    assert len(names) == len(set(names)) > 50
    assert {gpu_check_bench.QUEUE, *gpu_check_bench.LOSSES} <= {case.name for case in groups["goals"]}
    assert [case.name for case in groups["torch.compile"]] == list(gpu_check_bench.COMPILED)
    assert all(list(case.implementations) == ["ltfast", "torch.compile"] for case in groups["torch.compile"])
    queue = next(case for case in groups["goals"] if case.name == gpu_check_bench.QUEUE)
    assert {"attention, flash", "attention, cudnn, split"} <= set(queue.implementations)
    timed = {name for group in ("goals", "rest") for case in groups[group] for name in case.implementations}
    assert timed >= set(gpu_check_bench.PEERS)


BROKEN = """
import pytest, torch

@pytest.mark.parametrize("number", range(6))
def test_one(number):
    if number == 1:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    assert number != 3
"""


@pytest.mark.slow
def test_a_process_whose_gpu_has_failed_is_replaced(tmp_path):
    (tmp_path / "test_broken.py").write_text(BROKEN)
    environment = dict(os.environ, PYTHONPATH=str(ROOT / "bench"), GPU_CHECK_OUT=str(tmp_path))
    environment.pop("PYTEST_XDIST_WORKER", None)
    command = [sys.executable, "-m", "pytest", "-p", "gpu_check_tests", "-n", "1", "-c", os.devnull, tmp_path]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    print(result.stdout)
    lines = json_lines((tmp_path / "results.jsonl").read_text())
    passed = {line["test"][-2] for line in lines if line["outcome"] == "passed"}
    assert passed == set("0245")
    texts = [line["text"] for line in lines if line["outcome"] == "failed"]
    assert any("illegal memory access" in text for text in texts)
    assert "replacing crashed worker" in result.stdout
