"""The numbers in the README and in docs/benchmarks.md are those of bench/results/."""

import json
import re
from pathlib import Path

import pytest

from ltfast.benchmark.results import by_case, digits, largest

ROOT = Path(__file__).parent.parent.parent
README, PAGE = (ROOT / name for name in ("README.md", "docs/benchmarks.md"))
PEERS = ("eager", "torch.compile")


def saved(folder):
    return json.loads((ROOT / f"bench/results/{folder}/results.json").read_text())


def cells(line):
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def measured(row):
    return f"{digits(row['median_ms'])} ms, {digits(row['peak_mib'])} MiB"


def test_the_rows_of_the_readme():
    block = re.search("<!-- bench -->(.*?)<!-- end of bench -->", README.read_text(), re.DOTALL)[1]
    rows = [cells(line) for line in block.splitlines() if line.startswith("| `")]
    assert len(rows) == 4
    cases = largest(saved("cpu"))
    for step, ours, *others in rows:
        case = cases[re.match(r"`(\w+)`", step)[1]]
        assert step.endswith(case["ltfast"]["size"])
        assert ours == measured(case["ltfast"])
        peers = [f"{measured(case[peer])} ({digits(case[peer]['times_ltfast'])}x)" for peer in PEERS]
        assert others == peers


def test_the_speed_that_the_readme_opens_with():
    case = by_case(saved("cpu"))["balanced_bce 1024 x 8142 float32"]
    text = " ".join(README.read_text().split())
    eager, compiled = (digits(case[peer]["times_ltfast"]) for peer in PEERS)
    said = f"take {digits(case['ltfast']['median_ms'])} ms for 1024 images and 8142 classes, where plain PyTorch takes"
    assert f"{said} {eager} times and `torch.compile` {compiled} times as long" in text


def test_the_accuracy_that_the_readme_opens_with():
    table = (ROOT / "docs/methods.md").read_text()
    before, after = (
        cells(re.search(rf"^\| `--config ce/digits --loss {loss}` .*$", table, re.MULTILINE)[0])[3]
        for loss in ("cross_entropy", "balanced_bce")
    )
    assert f"{before} % with cross-entropy to {after} %" in " ".join(README.read_text().split())


@pytest.mark.parametrize("folder", ["cpu", "cpu_large"])
def test_the_long_tables(folder):
    tables = PAGE.read_text().split("## All cases: ")[1:]
    rows = [cells(line) for line in tables[folder == "cpu_large"].splitlines() if line.startswith("| ")][2:]
    assert len(rows) == len(saved(folder)["rows"])
    for row, result in zip(rows, saved(folder)["rows"], strict=True):
        assert row[:3] == [result["case"], result["implementation"], digits(result["median_ms"])]
        assert row[4] == digits(result["times_ltfast"])
        assert row[6] == ("" if result["peak_mib"] is None else digits(result["peak_mib"]))
