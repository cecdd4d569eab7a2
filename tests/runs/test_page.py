import json
import os
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import one_hot

from browser import looked_at
from ltfast.cli import main
from ltfast.cli.command import command_of
from ltfast.data import class_groups
from ltfast.engine.metrics import accuracies
from ltfast.engine.report import write_report
from ltfast.evaluation.measures import measures
from ltfast.evaluation.outcome import Outcome
from ltfast.evaluation.predictions import write_predictions

NAMES = ("<script>document.title = 'run'</script>", '"><img src=x onerror=alert(1)>', "Rhabarber" * 12, "{{ 7 * 7 }}")


def finished(folder, classes, images):
    """A finished run with random predictions, and its metrics."""
    folder.mkdir()
    counts = [500, 400, 300, 200, 90, 50, *range(19, 1, -1), *[1] * classes][:classes]
    names = [*NAMES, *(f"class {c}" for c in range(len(NAMES), classes))]
    labels = torch.randint(classes, (images,))
    outcome = Outcome(torch.randn(images, classes) + 3 * one_hot(labels, classes), labels)
    groups = class_groups(counts)
    parts = (labels[outcome.hits], outcome.predicted[~outcome.hits], labels)
    found = [torch.bincount(one, minlength=classes).tolist() for one in parts]
    metrics = {
        **accuracies(*found, groups),
        **measures(outcome, names, counts, groups),
        "train_seconds": 1.0,
        "loss_ms": None,
        "class_counts": counts,
        "groups": {
            "many": {"classes": 4, "minimum": 101},
            "medium": {"classes": 2, "minimum": 20},
            "few": {"classes": classes - 6, "minimum": 0},
        },
        "settings": {"method": "ce", "data": f"folder:{'long/' * 30}", "lr": 0.5, "processes": 1},
    }
    write_predictions(folder / "predictions.csv", outcome, names, str)
    write_report(folder, metrics, names, groups)
    Image.fromarray(np.zeros((40, 1400, 3), np.uint8)).save(folder / "mistakes.png")
    return metrics


@pytest.mark.parametrize(("classes", "images"), [(6, 40), pytest.param(300, 900, marks=pytest.mark.slow)])
def test_a_browser_shows_the_whole_page(classes, images, tmp_path, capsys):
    run = tmp_path / "run & <b>"
    metrics = finished(run, classes, images)
    assert main(["report", str(run)]) == 0
    assert f"report with pictures and tables: {run}/report.html" in capsys.readouterr().out
    both, console = looked_at(run / "report.html", tmp_path, widths=(400, 1200))
    assert console == []
    assert [page["width"] for page in both] == [400, 1200]
    for page in both:
        assert page["overflow"] == 0
        assert len(page["images"]) == 5
        assert all(width > 0 for width in page["images"])
        assert page["scripts"] == 0
        shown = page["text"].splitlines()
        assert shown[0] == "run & <b>"
        assert any(line.startswith(f"top-1 accuracy (%)\t{metrics['top1']:.1f}\t") for line in shown)
        assert ("few\t0\tno classes\t-" in page["text"]) == (classes == 6)
        assert page["title"] == "run & <b> - ltfast report"
        for name in NAMES:
            assert name in page["all"]
    (dark,), _ = looked_at(run / "report.html", tmp_path, widths=(1200,), dark=True)
    assert dark["background"] != both[1]["background"]


def test_the_page_needs_nothing_else(tmp_path):
    finished(tmp_path / "run", 6, 40)
    assert main(["report", str(tmp_path / "run")]) == 0
    text = (tmp_path / "run" / "report.html").read_text()
    assert "<script" not in text
    assert "http:" not in text
    assert "https:" not in text
    sources = re.findall(r'(?:src|href)="([^"]{0,20})', text)
    assert len(sources) == 6
    assert all(source.startswith("data:") for source in sources)


def test_a_run_without_predictions_or_of_an_older_version_or_in_a_closed_folder(tmp_path, capsys):
    run = tmp_path / "run"
    metrics = finished(run, 6, 40)
    (run / "predictions.csv").unlink()
    assert main(["report", str(run)]) == 0
    text = (run / "report.html").read_text()
    assert "There is no predictions.csv, from which" in text
    assert text.count("<img ") == 3
    (run / "report.html").unlink()
    (run / "metrics.json").write_text(json.dumps({name: value for name, value in metrics.items() if name != "classes"}))
    capsys.readouterr()
    assert main(["report", str(run)]) == 0
    assert "was evaluated by an older version, so there is no report.html" in capsys.readouterr().out
    assert not (run / "report.html").exists()


def test_a_folder_that_is_not_writable_has_its_table_alone(tmp_path, capsys, monkeypatch):
    finished(tmp_path / "run", 6, 40)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert main(["report", str(tmp_path / "run")]) == 0
    assert "run is not writable, so there is no report.html" in capsys.readouterr().out


def test_several_runs_are_compared_without_a_page(tmp_path, capsys):
    for name in "ab":
        finished(tmp_path / name, 6, 40)
    assert main(["report", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert not list(tmp_path.rglob("report.html"))


def test_the_command_repeats_the_run(tmp_path, monkeypatch, capsys):
    """A run of other settings would be refused, and the same settings have nothing to do."""
    monkeypatch.chdir(tmp_path)
    words = ["train", "--data", "digits", "--epochs", "1", "--milestones", "1,2", "--imbalance", "100", "--skip-broken"]
    assert main([*words, "--loss", "agcl", "--out", "a run"]) == 0
    metrics = json.loads(Path("a run/metrics.json").read_text())
    command = command_of(metrics, Path("a run"))
    assert "--imbalance 100.0 --skip-broken --epochs 1" in command
    capsys.readouterr()
    assert main(shlex.split(command)[1:]) == 0
    assert "nothing to do" in capsys.readouterr().out
    metrics["settings"] |= {"processes": 2, "data": "list:x/train.txt"}
    assert command_of(metrics, Path("b")).startswith("torchrun --nproc-per-node 2 -m ltfast train --method ce ")
    assert f"--root {tmp_path}/data" in command_of(metrics, Path("b"))
