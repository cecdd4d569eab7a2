"""Nothing that comes from a stranger is run: no checkpoint, no data, no recipe."""

import ast
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from faults.conftest import tiny, tiny_npz
from ltfast.cli import main

ROOT = Path(__file__).parents[2]
FORBIDDEN = {
    *(f"{module}.{name}" for module in ("pickle", "marshal", "dill", "cloudpickle") for name in ("load", "loads")),
    *("pickle.Unpickler", "joblib.load", "shelve.open", "torch.hub.load", "os.system", "os.popen"),
    *("yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "eval", "exec"),
}


def offences(source):
    """The lines of a program that would unpickle or run what they are given, and what they call."""
    tree = ast.parse(source)
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        first, _, rest = ast.unparse(node.func).partition(".")
        called = f"{names.get(first, first)}.{rest}" if rest else names.get(first, first)
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        its_own = called == "pickle.loads" and ast.unparse(node.args[0]).startswith("pickle.dumps(")
        if (
            (called in FORBIDDEN and not its_own)
            or (called == "torch.load" and given.get("weights_only") != "True")
            or (called == "numpy.load" and given.get("allow_pickle", "False") != "False")
            or given.get("shell", "False") != "False"
            or given.get("trust_remote_code", "False") != "False"
        ):
            yield node.lineno, called


@pytest.mark.parametrize(("folder", "may"), [("ltfast", ()), ("bench", ()), ("tests", ("exec",))])  # of docs' examples
def test_no_source_unpickles_or_runs_what_it_reads(folder, may):
    paths = sorted((ROOT / folder).rglob("*.py"))
    assert len(paths) > 5
    found = [(path, line, name) for path in paths for line, name in offences(path.read_text()) if name not in may]
    assert not found


@pytest.mark.parametrize(
    "source",
    [
        "import pickle\npickle.load(file)",
        "from pickle import loads as read\nread(data)",
        "import torch\ntorch.load(path)",
        "import torch\ntorch.load(path, weights_only=False)",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "import yaml\nyaml.load(text, Loader=yaml.Loader)",
        "import subprocess\nsubprocess.run(line, shell=True)",
        "eval(text)",
    ],
)
def test_what_is_looked_for_is_found(source):
    assert [line for line, _ in offences(source)] == [source.count("\n") + 1]


class Mine:
    """Pickled, it makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def refused(words, tmp_path, capsys):
    """What a command says that is given something of a stranger's, which then has not been run."""
    assert main([str(word) for word in words]) == 2
    assert not (tmp_path / "mine").exists()
    return capsys.readouterr().err


@pytest.fixture
def trap(tmp_path):
    """Works where it is unpickled."""
    mine = Mine(tmp_path / "proof")
    pickle.loads(pickle.dumps(mine))
    assert (tmp_path / "proof").is_dir()
    return Mine(tmp_path / "mine")


@pytest.mark.parametrize("command", ["eval", "train", "init", "importance"])
def test_a_checkpoint_with_code_is_refused(command, trap, tmp_path, capsys):
    path = tmp_path / "run" / "checkpoint.pt"
    path.parent.mkdir()
    torch.save({"format": 2, "settings": {}, "model": {}, "facts": trap}, path)
    source = tiny_npz(tmp_path / "d.npz", [4, 4])
    words = {
        "eval": ["eval", "--checkpoint", path],
        "train": [*tiny("ce", source, batch_size=2), "--out", path.parent],
        "init": [*tiny("lpt", source, batch_size=2, encoder=path), "--out", tmp_path / "other"],
        "importance": ["report", "importance", path, "--out", tmp_path / "i.png"],
    }
    assert f"checkpoint {path} is truncated, damaged or no checkpoint" in refused(words[command], tmp_path, capsys)


def test_a_bare_pickle_is_refused(trap, tmp_path, capsys):
    (tmp_path / "checkpoint.pt").write_bytes(pickle.dumps(trap))
    assert "is truncated, damaged or no checkpoint" in refused(["eval", "--checkpoint", tmp_path], tmp_path, capsys)


@pytest.mark.parametrize("name", ["x_train", "y_test"])
def test_arrays_of_objects_are_refused(name, trap, tmp_path, capsys):
    source = tiny_npz(tmp_path / "d.npz", [4, 4])
    with np.load(tmp_path / "d.npz") as file:
        arrays = dict(file)
    np.savez(tmp_path / "d.npz", **arrays | {name: np.array([trap] * 8, dtype=object)})
    error = refused(["train", "--data", source, "--out", tmp_path / "run"], tmp_path, capsys)
    assert f"{name} cannot be read (Object arrays cannot be loaded when allow_pickle=False)" in error


@pytest.mark.parametrize(
    "line",
    [
        "lr: !!python/object/apply:os.mkdir [MINE]",
        "backbone: !!python/object/new:os.mkdir [MINE]",
        "backbone: {class_path: os.mkdir, init_args: {path: MINE}}",
        "lr: {class_path: os.mkdir, init_args: {path: MINE}}",
        "data: {class_path: os.mkdir, init_args: {path: MINE}}",
    ],
)
def test_a_recipe_runs_no_code(line, tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"method: ce\ndata: digits\n{line.replace('MINE', str(tmp_path / 'mine'))}\n")
    error = refused(["train", "--config", path, "--out", tmp_path / "run"], tmp_path, capsys)
    assert error.startswith(f"ltfast: error: --config {path}:3: expected ")
    assert error.count("\n") == 1


@pytest.mark.parametrize("flag", ["--lr", "--backbone", "--milestones"])
def test_an_option_runs_no_code(flag, tmp_path, capsys):
    words = f"{flag}=!!python/object/apply:os.mkdir [{tmp_path / 'mine'}]"
    refused(["train", words, "--out", tmp_path / "run"], tmp_path, capsys)
