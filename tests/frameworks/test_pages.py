"""The scripts of docs/frameworks run as they are written, with the commands below them, and learn."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ltfast.losses
from frameworks.cases import CASES
from frameworks.trainers import CELLS, TRAINERS

PAGES = Path(__file__).parent.parent.parent / "docs/frameworks"
SCRIPT = re.compile(r'^```python title="(\w+\.py)"\n(.*?)^```\n\n```sh\n(.*?)^```', re.MULTILINE | re.DOTALL)


RUNS = [  # page, script and command
    (page.stem, name, command)
    for page in sorted(PAGES.glob("*.md"))
    for name, _, commands in SCRIPT.findall(page.read_text())
    for command in commands.splitlines()
]


@pytest.mark.slow
@pytest.mark.parametrize(("page", "name", "command"), RUNS)
def test_script(page, name, command, tmp_path):
    (tmp_path / name).write_text(dict(match[:2] for match in SCRIPT.findall((PAGES / f"{page}.md").read_text()))[name])
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    # a free port, since tests run side by side
    command = re.sub("^torchrun", "python -m torch.distributed.run --standalone", command)
    result = subprocess.run(command.split(), cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    found = re.findall(r"balanced accuracy ([\d.]+) %", result.stdout)
    assert len(found) == 1, result.stdout
    assert float(found[0]) > 50  # chance is 10


def test_no_script_is_left_out():
    """Each block with the title of a script is followed by its commands."""
    titles = {(page.stem, name) for page in PAGES.glob("*.md") for name in re.findall(r'"(\w+\.py)"', page.read_text())}
    assert {(page, name) for page, name, _ in RUNS} == titles
    assert {page for page, *_ in RUNS} == {"accelerate", "hugging_face", "lightning", "mmpretrain", "pytorch"}


def test_the_table_of_losses_and_trainers():
    """Its cells are those of test_table.py, and its rows all losses."""
    text = (PAGES / "index.md").read_text().split("## Which loss works where")[1].split("\n## ")[0]
    head, _, *rows = re.findall(r"^\|(.*)\|$", text, re.MULTILINE)
    assert tuple(cell.strip() for cell in head.split("|")[1:]) == tuple(TRAINERS)
    cells = {}
    for row in rows:
        name, *marks = (cell.strip() for cell in row.split("|"))
        cells |= {(trainer, name.strip("`")): mark for trainer, mark in zip(TRAINERS, marks, strict=True)}
    assert {cell: mark for cell, mark in cells.items() if mark} == CELLS
    assert {loss for _, loss in cells} == set(CASES)
    others = {"MemoryQueue", "effective_number_weights"}
    assert set(CASES) == set(ltfast.losses.__all__) - others
