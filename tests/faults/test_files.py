"""Files that are edited or broken are not used: each raises a one-line error with its name and the location of the
problem."""

import copy
import json
import os
import random
import secrets
import signal

import pytest
import torch

from faults.conftest import tiny, tiny_npz
from ltfast.benchmark import results
from ltfast.cli import main
from ltfast.engine.checkpoint import load_checkpoint
from ltfast.engine.loop import _Run
from ltfast.engine.report import read_metrics

BAD = [None, "text", [], [[]], {}, -1, 2.5, float("nan"), float("inf"), 2**62, 10**400, True, torch.zeros(2, 3)]


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """The arguments of a run with 2 epochs of 5 steps."""
    source = tiny_npz(tmp_path_factory.mktemp("data") / "d.npz", [12, 8])
    return [*tiny("ce", source, batch_size=4), "--epochs", "2", "--optimizer", "adamw"]


@pytest.fixture(scope="module")
def finished(words, tmp_path_factory):
    out = tmp_path_factory.mktemp("finished")
    assert main([*words, "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def stopped(words, tmp_path_factory):
    """A run that was stopped at epoch 2, step 2."""
    out, whole, left = tmp_path_factory.mktemp("stopped"), _Run._step, [7]

    def step(*arguments):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGINT)
        return whole(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Run, "_step", step)
        assert main([*words, "--out", str(out)]) == 130
    return out


@pytest.fixture
def runs(words, finished, stopped):
    return words, finished, stopped


def places(value, path=()):
    """The paths of all values in nested data, but of only a few tensors."""
    if path:
        yield path
    if isinstance(value, dict | list | tuple):
        inside = list(value.items() if isinstance(value, dict) else enumerate(value))
        if path[:1] == ("model",) or path == ("optimizer", "state"):
            inside = inside[:2]
        for name, item in inside:
            yield from places(item, (*path, name))


def changed(value, path, new):
    """Nested data with another value at one path."""
    if not path:
        return new
    inside = dict(enumerate(value)) if isinstance(value, list | tuple) else dict(value)
    inside[path[0]] = changed(inside[path[0]], path[1:], new)
    return list(inside.values()) if isinstance(value, list | tuple) else inside


def without(value, path):
    if len(path) == 1:
        inside = dict(enumerate(value)) if isinstance(value, list | tuple) else dict(value)
        del inside[path[0]]
        return list(inside.values()) if isinstance(value, list | tuple) else inside
    return changed(value, path[:1], without(value[path[0]], path[1:]))


def refused(command, capsys):
    """The error of a command as one line, or None if it succeeds; anything else is a failure. (A weight decay of 1e18
    is a number, and fails like any value that is too large.)"""
    capsys.readouterr()
    status = main([str(word) for word in command])
    error = capsys.readouterr().err
    assert (status == 2) == error.startswith("ltfast: error: ") or (status == 1 and "is not finite" in error), error
    assert error.count("\n") == (status > 0)
    return error or None


@pytest.mark.parametrize("command", ["eval", "continue"])
def test_a_checkpoint_with_any_value_changed_is_refused_by_name_or_used(command, runs, tmp_path, capsys):
    """Some values are as valid as the original: a class name, a learning rate."""
    words, finished, stopped = runs
    state = load_checkpoint(finished if command == "eval" else stopped)
    path = tmp_path / "checkpoint.pt"
    commands = {"eval": ["eval", "--checkpoint", path], "continue": [*words, "--out", tmp_path]}
    seed = secrets.token_hex(4)
    draw, found = random.Random(seed), 0
    everything = list(places(state))
    number = int(os.environ.get("LTFAST_TEST_PLACES", "25"))
    for place in draw.sample(everything, min(number, len(everything))):
        new = draw.choice(BAD)
        torch.save(without(state, place) if draw.random() < 0.2 else changed(state, place, new), path)
        try:
            error = refused(commands[command], capsys)
        except BaseException as failure:
            raise AssertionError(f"{seed}: {place} = {new!r}") from failure
        assert error is None or f"checkpoint {path}" in error, (seed, place, new, error)
        found += error is not None
    assert found > 0


NAN = float("nan")


@pytest.mark.parametrize(
    ("place", "new", "message"),
    [
        (("format",), 1, "was not written by this version of ltfast"),
        (("settings",), {}, "settings: expected the name method, got []"),
        (("settings",), "s", "settings: expected names and values, got 's'"),
        (("settings", "method"), "x", "settings.method: expected one of ce, do, dscl, lift, livt, lpt, proco, got 'x'"),
        (("settings", "epochs"), "x", "settings.epochs: expected an integer of at least -"),
        (("settings", "milestones"), ["x"], "settings.milestones[0]: expected an integer"),
        (("settings", "seed"), -1, "seed: expected an integer from 0 to 2**63 - 1, got -1"),
        (("settings", "backbone"), "nonet", "settings: "),
        (("facts", "source"), "nowhere", "facts.source: "),
        (("facts", "mean"), [NAN], "facts.mean[0]: expected a finite number, got nan"),
        (("facts", "std"), [0.0], "facts.std[0]: expected a finite number above 0, got 0.0"),
        (("facts", "std"), [1.0, 1.0, 1.0], "facts.std: expected a list of 1, got [1.0, 1.0, 1.0]"),
        (("facts", "class_counts"), [12, 0], "facts.class_counts[1]: expected an integer from 1 to 1000000000, got 0"),
        (("facts", "class_counts"), [12], "facts.class_counts: expected a list of 2, got [12]"),
        (("position", "stage"), 99, "position.stage: expected an integer from 0 to 1, got 99"),
        (("position", "epoch"), 1, "position.epoch: expected an integer from 0 to 0, got 1"),
        (("position", "step"), None, "position.step: expected an integer of at least 0, got None"),
        (("model",), {}, "does not fit this version's model"),
        (("model", 0), NAN, "expected finite numbers, got nan"),
        (("model", 0), float("-inf"), "expected finite numbers, got -inf"),
        (("model", 0), torch.float64, "torch.float32, got torch.float64"),
        (("model", 0), "shape", "does not fit this version's model"),
        (("model", 0), "view", "expected a dense tensor of an ordinary dtype"),
        (("model", 0), "meta", "expected a dense tensor of an ordinary dtype"),
        (("model", 0), "sparse", "expected a dense tensor of an ordinary dtype"),
    ],
)
def test_what_no_run_writes_is_refused_with_its_place(place, new, message, finished, tmp_path, capsys):
    state = copy.deepcopy(load_checkpoint(finished))
    if place == ("model", 0):
        name, value = next(iter(state["model"].items()))
        changes = {
            "shape": value[:1],
            "view": torch.zeros(1).expand(2**40),
            "meta": value.to("meta"),
            "sparse": value.to_sparse(),
        }
        state["model"][name] = (
            changes[new] if new in changes else value.to(new) if isinstance(new, torch.dtype) else value.fill_(new)
        )
    else:
        state = changed(state, place, new)
    torch.save(state, tmp_path / "checkpoint.pt")
    for command in (
        ["eval", "--checkpoint", tmp_path],
        ["report", "importance", tmp_path, "--out", tmp_path / "i.png"],
    ):
        error = refused(command, capsys)
        assert error is not None
        assert f"checkpoint {tmp_path}" in error
        assert message in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pt"]


@pytest.mark.parametrize("part", ["weight", "statistics"])
@pytest.mark.parametrize("command", ["eval", "export", "importance", "rerun", "continue", "init"])
def test_weights_that_are_no_numbers_are_refused_by_every_command(
    command, part, words, finished, stopped, encoder, tmp_path, capsys
):
    state = copy.deepcopy(load_checkpoint({"continue": stopped, "init": encoder}.get(command, finished)))
    names = [name for name in state["model"] if (".running_var" in name) == (part == "statistics")]
    if not names:
        pytest.skip("a vision transformer has no statistics")
    state["model"][names[-2]].view(-1)[0] = NAN
    path = tmp_path / "checkpoint.pt"
    torch.save(state, path)
    source = words[words.index("--data") + 1]
    commands = {
        "eval": ["eval", "--checkpoint", path],
        "export": ["export", "--checkpoint", path, "--out", tmp_path / "model.pt2"],
        "importance": ["report", "importance", path, "--out", tmp_path / "i.png"],
        "rerun": [*words, "--out", tmp_path],
        "continue": [*words, "--out", tmp_path],
        "init": [*tiny("lpt", source, batch_size=4, encoder=path), "--out", tmp_path / "lpt"],
    }
    error = refused(commands[command], capsys)
    assert f"checkpoint {path}: model.{names[-2]}: expected finite numbers, got nan" in error
    assert [path for path in tmp_path.rglob("*") if not path.name.startswith(("events", "lpt"))] == [path]


@pytest.mark.parametrize(
    ("place", "new", "message"),
    [
        (("position", "epoch"), 2, "position.epoch: expected an integer from 0 to 1, got 2"),
        (("position", "step"), 5, "position.step: expected an integer from 0 to 4, got 5"),
        (("optimizer",), None, "optimizer: expected a state inside of a stage"),
        (
            ("optimizer", "state", 0, "exp_avg"),
            torch.zeros(3),
            "optimizer.state.0.exp_avg: expected a tensor of shape (",
        ),
        (("optimizer", "state", 0, "exp_avg"), None, "optimizer.state.0.exp_avg: expected a tensor of shape ("),
        (
            ("optimizer", "state", 0),
            {"step": torch.tensor(1.0)},
            "optimizer.state.0: expected the name exp_avg, got ['step']",
        ),
        (("optimizer", "state"), {99: {}}, "optimizer.state: expected one of 0, 1, "),
        (("optimizer", "param_groups"), [], "optimizer.param_groups: expected a list of 1, got []"),
        (("optimizer", "param_groups", 0, "params"), [0], "optimizer.param_groups[0].params: expected one of "),
        (
            ("optimizer", "param_groups", 0, "weight_decay"),
            "x",
            "weight_decay: expected a finite number from 0",
        ),
        (("loss_sum",), NAN, "loss_sum: expected a finite number, got nan"),
        (("settings", "lr"), 3.0, "lr was 3.0 and is now"),
    ],
)
def test_a_run_does_not_continue_from_what_no_run_writes(place, new, message, words, stopped, tmp_path, capsys):
    torch.save(changed(load_checkpoint(stopped), place, new), tmp_path / "checkpoint.pt")
    error = refused([*words, "--out", tmp_path], capsys)
    assert f"checkpoint {tmp_path}/checkpoint.pt" in error
    assert message in error
    assert not (tmp_path / "metrics.json").exists()


@pytest.mark.parametrize("command", ["eval", "train", "init"])
@pytest.mark.parametrize("what", ["link to nothing", "folder", "pipe"])
def test_what_is_no_file_is_no_missing_checkpoint(what, command, words, tmp_path, capsys):
    path = tmp_path / "run" / "checkpoint.pt"
    path.parent.mkdir()
    make = {
        "link to nothing": lambda: path.symlink_to(tmp_path / "nothing"),
        "folder": path.mkdir,
        "pipe": lambda: os.mkfifo(path),
    }
    make[what]()
    source = words[words.index("--data") + 1]
    commands = {
        "eval": ["eval", "--checkpoint", path.parent],
        "train": [*words, "--out", path.parent],
        "init": [*tiny("lpt", source, batch_size=4, encoder=path.parent), "--out", tmp_path / "lpt"],
    }
    assert f"checkpoint {path} is not a file: it is a broken link, a folder or a device" in refused(
        commands[command], capsys
    )


METRICS = {
    **dict.fromkeys(("top1", "many", "medium", "few"), 50.0),
    "per_class": [100.0, None],
    "train_seconds": 1.5,
    "loss_ms": None,
    "class_counts": [12, 8],
    "settings": {"method": "ce", "lr": 0.1, "milestones": [160, 180]},
}
ROW = {
    "case": "a",
    "op": "a",
    "dtype": "float32",
    "implementation": "ltfast",
    "median_ms": 1.0,
    "q1_ms": 0.9,
    "q3_ms": 1.1,
}
RESULTS = {"machine": {"machine": "m"}, "ceilings": {"bytes": 1e9}, "rows": [ROW], "missing": [], "growth": []}
JSON = {
    "report": ("metrics.json", METRICS, lambda path: ["report", path], "is no metrics file"),
    "compare": (
        "results.json",
        RESULTS,
        lambda path: ["bench", "--compare", path, path],
        "is no result of ltfast bench",
    ),
}


@pytest.mark.parametrize("command", JSON)
def test_a_json_file_with_any_value_changed_is_refused_by_name_or_used(command, tmp_path, capsys):
    name, content, words, message = JSON[command]
    path, found = tmp_path / name, 0
    assert path.write_text(json.dumps(content))
    assert refused(words(tmp_path), capsys) is None
    contents = [changed(content, place, new) for place in places(content) for new in BAD[:-1]]
    contents += [without(content, place) for place in places(content)]
    for broken in contents:
        path.write_text(json.dumps(broken))
        error = refused(words(tmp_path), capsys)
        assert error is None or f"{path} {message}" in error, (broken, error)
        found += error is not None
    assert found > len(contents) // 2


@pytest.mark.parametrize("command", JSON)
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Expecting value"),
        ("[]", "expected names and values, got []"),
        ("[" * 100_000, "it is nested too deeply"),
        ('{"top1": 1, "top1": 2}', "it has 'top1' twice"),
        ('{"top1": NaN}', "expected finite numbers, got NaN"),
        ('{"top1": -Infinity}', "expected finite numbers, got -Infinity"),
        (f'{{"top1": {"9" * 5000}}}', "4300"),
        ("\udcff\udc80", ""),
        ("\x00\x00", ""),
    ],
)
def test_what_is_no_json_is_refused_by_name(command, text, message, tmp_path, capsys):
    name, _, words, what = JSON[command]
    (tmp_path / name).write_bytes(text.encode(errors="surrogateescape"))
    error = refused(words(tmp_path), capsys)
    assert f"{tmp_path}/{name} {what}: " in error
    assert message in error


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"top1": "x"}, "top1: expected a finite number from 0 to 100, got 'x'"),
        ({"few": 101}, "few: expected a finite number from 0 to 100, got 101"),
        ({"per_class": [1, -1]}, r"per_class\[1\]: expected a finite number from 0 to 100, got -1"),
        ({"class_counts": [True]}, r"class_counts\[0\]: expected an integer of at least 0, got True"),
        ({"train_seconds": "f"}, "train_seconds: expected a finite number from 0, got 'f'"),
        ({"settings": [1]}, r"settings: expected names and values, got \[1\]"),
    ],
)
def test_a_place_in_metrics_is_named(change, message, tmp_path):
    (tmp_path / "metrics.json").write_text(json.dumps({**METRICS, **change}))
    with pytest.raises(ValueError, match=f"run: {tmp_path}/metrics.json is no metrics file: {message}$"):
        read_metrics(tmp_path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"median_ms": 0}, r"rows\[1\].median_ms: expected a finite number above 0, got 0"),
        ({"case": 1}, r"rows\[1\].case: expected text, got 1"),
        ({"case": "b", "implementation": "eager"}, "rows: expected one of ltfast for b, got eager"),
    ],
)
def test_a_place_in_results_is_named(row, message, tmp_path):
    (tmp_path / "r.json").write_text(json.dumps({**RESULTS, "rows": [ROW, {**ROW, **row}]}))
    with pytest.raises(ValueError, match=f"compare: {tmp_path}/r.json is no result of ltfast bench: {message}$"):
        results.read(tmp_path / "r.json")
