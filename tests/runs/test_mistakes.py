import numpy as np
import pytest
import torch
from PIL import Image

from ltfast.data import FileDataset
from ltfast.evaluation.outcome import Outcome
from ltfast.evaluation.predictions import write_predictions
from ltfast.runs import mistakes


@pytest.fixture
def shown(monkeypatch):
    """The mistakes that are drawn."""
    found = []
    monkeypatch.setattr(mistakes, "plot_mistakes", lambda path, some: found.extend(some))
    return found


def test_the_most_confident_mistakes_are_shown_first(tmp_path, shown):
    labels, names = torch.arange(40) % 3, ["a", "b", "c"]
    for i in range(40):
        Image.new("L", (4, 4), i).save(tmp_path / f"{i}.png")
    outcome = Outcome(3 * torch.randn(40, 3), labels)
    wrong = torch.nonzero(~outcome.hits).flatten()
    order = wrong[outcome.confidence[wrong].argsort(descending=True, stable=True)][:24].tolist()
    (tmp_path / f"{order[0]}.png").unlink()
    (tmp_path / f"{order[1]}.png").write_bytes(b"no image")
    images = FileDataset([tmp_path / f"{i}.png" for i in range(40)], labels, names)
    write_predictions(tmp_path / "predictions.csv", outcome, names, images.image_name)
    mistakes.draw_mistakes(tmp_path, {"class_names": names}, images)
    assert [one.image for one in shown[:2]] == [None, None]
    assert [np.asarray(one.image)[0, 0, 0] for one in shown[2:]] == order[2:]
    assert [one.label for one in shown] == [names[labels[i]] for i in order]
    assert [one.predicted for one in shown] == [names[outcome.predicted[i]] for i in order]
    assert [one.probability for one in shown] == pytest.approx(outcome.confidence[order].tolist())


def test_a_run_of_an_older_version_has_no_mistakes(tmp_path, shown):
    images = FileDataset(["x.png"], torch.zeros(1, dtype=torch.int64), ["a"])
    mistakes.draw_mistakes(tmp_path, {"top1": 50.0}, images)
    mistakes.draw_mistakes(tmp_path, {"class_names": ["a"]}, images)
    assert shown == []
