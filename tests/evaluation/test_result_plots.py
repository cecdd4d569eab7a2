import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from ltfast.evaluation import result_plots
from ltfast.evaluation.predictions import Predictions
from ltfast.evaluation.result_plots import Mistake

ODD = ("$x^{$", "<script>", "a\nb", "日本", "x" * 60)


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are drawn, which are not written."""
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, content, **_: figures.append(figure) or content.write(b"x"))
    return figures


def records(count):
    return [
        {
            "name": ODD[c] if c < len(ODD) else f"class {c}",
            "group": ("many", "medium", "few")[3 * c // count],
            "training_images": 2000 - 2 * c,
            "recall": None if c == 1 else 100.0 / (c + 1),
            "precision": None if c == 2 else 50.0,
        }
        for c in range(count)
    ]


def predictions(classes, images=300):
    random = np.random.default_rng()
    labels = random.integers(classes, size=images)
    labels[labels == 1] = 0
    confidence = random.random(images)
    predicted = np.where(random.random(images) < confidence, labels, random.integers(classes, size=images))
    return Predictions([str(i) for i in range(images)], labels, predicted, confidence, confidence)


@pytest.mark.parametrize("classes", [5, 30, 100, 1000])
def test_a_confusion_matrix_has_the_shares_of_each_row(classes, drawn, tmp_path):
    found, rows = predictions(classes), records(classes)[::-1]  # sorted by their training images in the picture
    assert result_plots.plot_confusion(tmp_path / "c.png", found, rows)
    axes = drawn[0].axes[0]
    matrix = np.ma.filled(axes.images[0].get_array(), np.nan)
    width = 10 if classes == 1000 else 1
    assert matrix.shape == (classes // width,) * 2
    blocks = (classes - 1 - found.labels) // width, (classes - 1 - found.predicted) // width
    block = blocks[0][0]
    own = blocks[0] == block
    expected = np.zeros(len(matrix))
    for label in np.unique(found.labels[own]):
        same = found.labels == label
        expected += np.bincount(blocks[1][same], minlength=len(matrix)) / same.sum()
    np.testing.assert_allclose(matrix[block], 100 * expected / len(np.unique(found.labels[own])))
    names = [text.get_text() for text in axes.get_xticklabels()]
    assert len(names) == (classes if classes <= 30 else 3)
    assert "<script>" in names or classes > 30
    assert bool(axes.texts) == (classes == 5)


def test_a_reliability_diagram_has_the_accuracy_of_each_bin(drawn, tmp_path):
    found = predictions(5)
    assert result_plots.plot_reliability(tmp_path / "r.png", found, 12.34)
    axes = drawn[0].axes[0]
    assert "expected calibration error 12.3 %" in axes.get_title(loc="left")
    hits = found.labels == found.predicted
    for bar in axes.patches:
        low, high = (round(15 * (bar.get_x() + bar.get_width() / 2) / 100 + move) / 15 for move in (-0.5, 0.5))
        inside = (found.confidence >= low) & (found.confidence < high)
        assert bar.get_height() == pytest.approx(100 * hits[inside].mean())
    assert not result_plots.plot_reliability(tmp_path / "none.png", found, None)


@pytest.mark.parametrize("classes", [2, 3, 1000])
def test_recall_and_precision_are_drawn_by_training_images(classes, drawn, tmp_path):
    assert result_plots.plot_by_frequency(tmp_path / "f.png", records(classes))
    recall, precision = drawn[0].axes
    assert len(recall.collections[0].get_offsets()) == classes - 1
    assert len(precision.collections[0].get_offsets()) == classes - (classes > 2)
    assert recall.get_xscale() == "log"
    assert np.isfinite(recall.lines[0].get_xydata()).all()


def test_no_class_has_a_rate(tmp_path):
    rows = [{**row, "recall": None, "precision": None} for row in records(3)]
    assert not result_plots.plot_by_frequency(tmp_path / "f.png", rows)


@pytest.mark.parametrize("count", [1, 6, 24])
def test_mistakes_are_shown_with_both_classes_and_the_probability(count, drawn, tmp_path):
    modes = ("L", "RGB", "P", "RGBA")
    mistakes = [Mistake(Image.new(modes[i % 4], (9, 5 + i)) if i else None, ODD[i % 5], "b", 0.9) for i in range(count)]
    assert result_plots.plot_mistakes(tmp_path / "m.png", mistakes)
    words = [text.get_text() for text in drawn[0].texts]
    assert words[:3] == ["b", "predicted, 90.0 %", "is $x^{$"]
    assert len(words) == 3 * count
    assert sum(bool(axes.images) for axes in drawn[0].axes) == count - 1
    assert not result_plots.plot_mistakes(tmp_path / "none.png", [])


def test_pictures_are_written(tmp_path):
    """As they are, with names in any script and with mathematics in them."""
    assert result_plots.plot_confusion(tmp_path / "c.png", predictions(5), records(5))
    assert result_plots.plot_mistakes(tmp_path / "m.png", [Mistake(Image.new("L", (8, 8)), *ODD[:2], 1.0)])
    assert all(Image.open(tmp_path / name).width > 500 for name in ("c.png", "m.png"))
