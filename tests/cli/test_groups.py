"""`--groups`: what a run stores of it, and what `eval` and `report` make of that."""

import json
from pathlib import Path

import pytest

from ltfast.cli import main
from ltfast.engine.checkpoint import load_checkpoint

TRAIN = ["train", "--data", "folder:pets", "--epochs", "1", "--batch-size", "3", "--image-size", "8", "--out", "run"]


@pytest.fixture
def tail(pets):
    """Three classes of 6, 4 and 2 training images."""
    for name, left in (("dog", 4), ("emu", 2)):
        for path in sorted((pets / "train" / name).iterdir())[left:]:
            path.unlink()


def groups_in(file):
    return {name: tuple(group.values()) for name, group in json.loads(Path("run", file).read_text())["groups"].items()}


@pytest.mark.usefixtures("tail")
def test_given_borders(capsys):
    assert main([*TRAIN, "--groups", "5,3"]) == 0
    assert "many: 6 training images or more; few: fewer than 3" in capsys.readouterr().out
    assert groups_in("metrics.json") == {"many": (1, 6), "medium": (1, 3), "few": (1, 0)}
    assert load_checkpoint(Path("run"))["facts"]["group_minima"] == [6, 3]
    assert main(["eval", "--checkpoint", "run"]) == 0
    metrics, result = (json.loads(Path("run", name).read_text()) for name in ("metrics.json", "eval.json"))
    assert [result[name] for name in ("many", "medium", "few", "groups")] == [
        metrics[name] for name in ("many", "medium", "few", "groups")
    ]
    assert metrics["few"] == metrics["per_class"][2]
    assert "none" not in capsys.readouterr().out
    assert main(["report", "importance", "run"]) == 0
    assert all(json.loads(Path("importance.json").read_text())["run"]["importance"].values())
    assert main([*TRAIN, "--groups", "5,4"]) == 2
    assert "groups was [5, 3] and is now [5, 4]" in capsys.readouterr().err
    assert main([*TRAIN[:-1], "other"]) == 0
    assert main(["report", "run", "other"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "fewest training images of many and medium: run: 6, 3; other: 101, 20" in out
    assert "the rare classes" not in out  # the groups differ


@pytest.mark.usefixtures("tail")
def test_a_group_without_classes(capsys):
    assert main(TRAIN) == 0
    out = capsys.readouterr().out
    assert out.count(" none │") == 2
    assert main(["eval", "--checkpoint", "run"]) == 0
    assert capsys.readouterr().out.count(" none │") == 2
    assert main(["report", "importance", "run"]) == 0
    assert capsys.readouterr().out.count(" none │") == 2
    report = json.loads(Path("run/metrics.json").read_text())
    del report["groups"]  # as in an older run
    Path("run/metrics.json").write_text(json.dumps(report))
    assert main(["report", "run"]) == 0
    assert capsys.readouterr().out.count(" none │") == 2


@pytest.mark.slow
@pytest.mark.usefixtures("tail")
def test_auto_and_method_do(capsys):
    words = ["--method", "do", "--later-epochs", "1", "--prune-epochs", "1", "--prune", "0.3,0.3"]
    assert main([*TRAIN, *words, "--groups", "auto"]) == 0
    out = capsys.readouterr().out
    assert "chosen by auto: --groups 5,4\n" in out
    assert "--group-minima 6,4 " in out
    assert groups_in("metrics.json") == {"many": (1, 6), "medium": (1, 4), "few": (1, 0)}
    settings = load_checkpoint(Path("run"))["settings"]
    assert (settings["groups"], settings["group_minima"]) == ("auto", [6, 4])
    assert main(["eval", "--checkpoint", "run"]) == 0


def test_bad_borders(pets, capsys):
    for value, got in (("20,100", "(20, 100)"), ("5,0", "(5, 0)")):
        assert main([*TRAIN, "--groups", value]) == 2
        error = capsys.readouterr().err
        assert f"--groups: expected two falling numbers of images, at least 1, or auto, got {got}" in error
    assert main([*TRAIN, "--groups", "5"]) == 2
    assert "--groups: expected int,int or auto, got '5'" in capsys.readouterr().err
    Path("r.yaml").write_text("data: folder:pets\ngroups: [3, 9]\n")
    assert main(["train", "--config", "r.yaml", "--out", "run"]) == 2
    assert "--config r.yaml:2: groups: expected two falling" in capsys.readouterr().err
