"""No code from untrusted checkpoints, data or recipes is run, and their links are not written to."""

import ast
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from faults.conftest import tiny, tiny_npz
from ltfast.benchmark import pictures
from ltfast.cli import main
from ltfast.engine import events
from ltfast.engine.export import save_program
from ltfast.engine.plot import plot_choices
from ltfast.files import remove_partial_files, replace_file

ROOT = Path(__file__).parents[2]
FORBIDDEN = {
    *(f"{module}.{name}" for module in ("pickle", "marshal", "dill", "cloudpickle") for name in ("load", "loads")),
    *("pickle.Unpickler", "joblib.load", "shelve.open", "torch.hub.load", "os.system", "os.popen"),
    *("yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "eval", "exec"),
}


def offences(source):
    """The lines of a program that would unpickle or execute their input, with the functions that they call."""
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


@pytest.mark.parametrize(("folder", "may"), [("ltfast", ()), ("bench", ()), ("tests", ("exec",))])  # docs' examples
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
    """Creates a folder when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def refused(words, tmp_path, capsys):
    """The message of a command for an untrusted file, which must not have been executed."""
    assert main([str(word) for word in words]) == 2
    assert not (tmp_path / "mine").exists()
    return capsys.readouterr().err


@pytest.fixture
def trap(tmp_path):
    """Acts when it is unpickled."""
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


@pytest.fixture(scope="module")
def lpt_run(encoder, tmp_path_factory):
    """A finished run that writes all files that runs can write."""
    out = tmp_path_factory.mktemp("lpt")
    source = tiny_npz(out / "data.npz", [6, 4])
    words = [*tiny("lpt", source, batch_size=4, encoder=encoder), "--out", str(out / "run")]
    assert main(words) == 0
    return words, out / "run"


@pytest.fixture
def planted(tmp_path):
    """Replaces the named files of a folder, and the temporary names used while writing them, with links to files of the
    user that must not change."""
    victims = []

    def plant(folder, *names):
        for name in names:
            for link in (folder / name, folder / f"{name}.partial"):
                victim = tmp_path / f"victim{len(victims)}"
                victim.write_text("the user's")
                link.unlink(missing_ok=True)
                link.symlink_to(victim)
                victims.append(victim)

    yield plant
    assert victims
    assert all(victim.read_text() == "the user's" for victim in victims)


def written(folder, *names):
    assert all(not (folder / name).is_symlink() and (folder / name).stat().st_size > 100 for name in names)
    left = [path for path in folder.glob("*.partial") if not path.is_symlink()]
    assert not left


def test_a_run_writes_through_no_link(lpt_run, planted, tmp_path):
    words, _ = lpt_run
    names = ("metrics.json", "predictions.csv", "per_class.png", "weights.safetensors")
    planted(tmp_path, *names)
    (tmp_path / "checkpoint.pt.partial").symlink_to(tmp_path / "victim0")
    assert main([*words[:-1], str(tmp_path)]) == 0
    written(tmp_path, *names, "checkpoint.pt")


@pytest.mark.parametrize(
    ("command", "names"),
    [
        (["eval", "--checkpoint", "RUN"], ["eval.json", "eval_predictions.csv"]),
        (["report", "importance", "RUN", "--out", "RUN/i.png"], ["i.png", "i.json"]),
        (["report", "prompts", "RUN", "--out", "RUN/p.svg"], ["p.svg", "p.json"]),
    ],
    ids=["eval", "importance", "prompts"],
)
def test_a_command_writes_through_no_link(command, names, lpt_run, planted):
    _, run = lpt_run
    planted(run, *names)
    assert main([word.replace("RUN", str(run)) for word in command]) == 0
    written(run, *names)


def test_an_exported_program_is_written_through_no_link(planted, tmp_path):
    planted(tmp_path, "model.pt2")
    program = torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),))
    save_program(tmp_path / "model.pt2", program, {"class_names": ["a", "b"]})
    written(tmp_path, "model.pt2")


def test_a_bench_s_pictures_are_written_through_no_link(planted, tmp_path):
    machine = dict.fromkeys(("machine", "threads", "torch", "commit"), "x")
    work = {"bytes": 1.0, "flops": 1.0, "exps": 0.0, "median_ms": 1.0, "least_ms": 1.0, "times_ltfast": 1.0}
    rows = [
        {"case": "a", "op": "a", "dtype": "float32", "implementation": name, **work} for name in ("ltfast", "eager")
    ]
    ceilings = {"flops": {"float32": 1e12}, "bytes": 1e11, "exps": 1e10}
    results = {"machine": machine, "rows": rows, "ceilings": ceilings}
    planted(tmp_path, "speedups.png", "roofline.png")
    assert pictures.speedups(tmp_path / "speedups.png", results)
    assert pictures.roofline(tmp_path / "roofline.png", results)
    written(tmp_path, "speedups.png", "roofline.png")


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_events_are_written_through_no_link(when, planted, tmp_path, monkeypatch):
    monkeypatch.setattr(events.time, "time", lambda: 1.0)
    monkeypatch.setattr(events.time, "monotonic_ns", lambda: 2)
    said = []
    name = events.Events(tmp_path / "none", purge_step=None, say=said.append).path.name
    said.clear()
    if when == "before":
        planted(tmp_path, name)
    writer = events.Events(tmp_path, purge_step=None, say=said.append)
    if when == "meanwhile":
        planted(tmp_path, name)
    writer.add("loss", 1.0, 1)
    assert len(said) == 1
    assert "TensorBoard's events cannot be written any more" in said[0]


def test_a_new_file_can_be_read_as_the_umask_says_and_a_device_is_no_file(tmp_path):
    before = os.umask(0o027)
    try:
        replace_file(tmp_path / "f", lambda file: file.write(b"x"))
    finally:
        os.umask(before)
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o640
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(OSError, match=f"cannot write {tmp_path}/{name}: it is not a regular file"):
            replace_file(tmp_path / name, lambda file: file.write(b"x"))
    assert {path.name for path in tmp_path.iterdir()} == {"f", "pipe", "folder"}


def test_what_killed_runs_left_is_removed_and_no_more(lpt_run, tmp_path):
    words, _ = lpt_run
    digits = "0123456789abcdef"
    own = [f"checkpoint.pt.{digits}.partial", f"metrics.json.{digits}.partial"]
    others = [f"eval.json.{digits}.partial", "checkpoint.pt.partial", f"checkpoint.pt.{digits}.partial.txt"]
    for name in (*own, *others):
        (tmp_path / name).write_text("half")
    (tmp_path / f"weights.safetensors.{digits}.partial").symlink_to(tmp_path / others[0])
    (tmp_path / f"per_class.png.{digits}.partial").mkdir()
    remove_partial_files(tmp_path, ("checkpoint.pt", "metrics.json", "weights.safetensors", "per_class.png"))
    assert {path.name for path in tmp_path.iterdir()} == {
        *others,
        f"weights.safetensors.{digits}.partial",
        f"per_class.png.{digits}.partial",
    }
    (tmp_path / own[0]).write_text("half")
    assert main([*words[:-1], str(tmp_path)]) == 0
    assert not (tmp_path / own[0]).exists()


def test_a_writer_that_fails_in_whatever_way_leaves_nothing(tmp_path):
    def fail(file):
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replace_file(tmp_path / "f", fail)
    with pytest.raises(
        OSError, match=r"cannot write .*f: \[Errno 2\] No such file or directory; there is no earlier one$"
    ):
        replace_file(tmp_path / "nowhere" / "f", fail)
    assert not plot_choices(tmp_path / "f.nothing", [[1.0]], ["a"])
    assert not list(tmp_path.iterdir())
