"""`ltfast export`: programs from the pixels of images to probabilities."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ltfast.cli import main
from ltfast.runs import load

ROOT = Path(__file__).parents[2]
SIZES = [(8, 8), (8, 13), (40, 19), (100, 30), (7, 200), (90, 9), (1, 1), (3, 5)]  # height, width


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A calibrated run on files, and image files of several sizes."""
    folder = tmp_path_factory.mktemp("export")
    random = np.random.default_rng(0)
    for part, count in (("train", 6), ("val", 2), ("test", 1)):
        for name in ("cat", "dög", "emu"):
            (folder / "pets" / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / "pets" / part / name / f"{i}.png")
    run = str(folder / "run")
    words = ["--image-size", "8", "--epochs", "1", "--batch-size", "6"]
    assert main(["train", "--data", f"folder:{folder}/pets", *words, "--out", run]) == 0
    assert main(["calibrate", "--checkpoint", run, "--method", "vector"]) == 0
    for height, width in SIZES:
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{height}x{width}.png")
    return folder


def printed(script, model, images):
    """What an example prints, in a process that cannot import ltfast."""
    command = [sys.executable, "-I", str(ROOT / "examples" / script), model, *images]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, encoding="utf-8")
    assert result.returncode == 0, result.stderr
    return [line.split(",") for line in result.stdout.splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["pt2", "onnx"])
def test_a_program_classifies_files_as_predict_does(ending, trained, tmp_path, capsys, monkeypatch):
    if ending == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    monkeypatch.setenv("PYTHONIOENCODING", "utf-8")
    model = str(tmp_path / f"model.{ending}")
    assert main(["export", "--checkpoint", str(trained / "run"), "--out", model]) == 0
    out = capsys.readouterr().out
    assert f"written to {model}: uint8 images (B, 3, H, W) -> probabilities (B, 3)" in out
    assert "agrees with predict to " in out
    assert ("opset 18" in out) == (ending == "onnx")
    assert "calibrated by vector scaling, from 6 images" in out
    files = [str(trained / f"{height}x{width}.png") for height, width in SIZES]
    classifier = load(trained / "run", "cpu")
    expected = classifier.predict(files)
    if ending == "pt2":
        extra = {"ltfast.json": ""}
        program = torch.export.load(model, extra_files=extra).module()
        facts = json.loads(extra["ltfast.json"])
    else:
        import onnx

        from ltfast.runs.onnx_files import onnx_session

        proto = onnx.load(model)
        onnx.checker.check_model(proto, full_check=True)
        names = [axis.dim_param or axis.dim_value for axis in proto.graph.input[0].type.tensor_type.shape.dim]
        assert names == ["batch", 3, "height", "width"]
        assert str(ROOT) not in Path(model).read_bytes().decode("latin1")
        metadata = {one.key: one.value for one in proto.metadata_props}
        assert json.loads(metadata["class_names"]) == ["cat", "dög", "emu"]
        facts, program = json.loads(metadata["ltfast.json"]), onnx_session(Path(model).read_bytes())
    assert (facts["class_names"], facts["image_shape"], facts["views"]) == (["cat", "dög", "emu"], [3, 8, 8], 1)
    assert (facts["output"], facts["calibration"]) == ("probabilities", "vector")
    assert (len(facts["mean"]), len(facts["std"])) == (3, 3)
    for file, one in zip(files, expected, strict=True):
        pixels = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)
        found = program(torch.stack([pixels, pixels.flip(0), pixels]))
        torch.testing.assert_close(found[[0, 2]], one.expand(2, -1), atol=1e-5, rtol=0)
    rows = printed(f"classify_{ending}.py", model, files)
    assert [row[0] for row in rows] == files
    assert [row[1] for row in rows] == [facts["class_names"][c] for c in expected.argmax(1)]
    assert [float(row[2]) for row in rows] == pytest.approx(expected.max(1).values.tolist(), abs=1e-5)


def test_onnx_needs_its_packages(trained, tmp_path, capsys, monkeypatch):
    from ltfast.runs import onnx_files

    find = onnx_files.find_spec
    monkeypatch.setattr(onnx_files, "find_spec", lambda name: None if name == "onnxscript" else find(name))
    assert main(["export", "--checkpoint", str(trained / "run"), "--out", str(tmp_path / "m.onnx")]) == 2
    error = capsys.readouterr().err
    assert "--out: a .onnx file needs the package onnxscript (pip install 'ltfast[onnx]'); .pt2 needs none" in error
    monkeypatch.setattr(onnx_files, "find_spec", lambda name: None)
    assert onnx_files.onnx_session(b"") is None


def test_a_program_that_disagrees_is_not_written(trained, tmp_path, monkeypatch):
    from ltfast.engine import RunSettings
    from ltfast.runs import export
    from ltfast.runs.restore import restore

    one = restore(trained / "run", run=RunSettings())
    exported = export.export_run(one, None, raw=True)
    monkeypatch.setattr(export, "probabilities", lambda predictor, views: torch.full((len(views), 3), 0.4).double())
    with pytest.raises(RuntimeError, match=r"probabilities differ by .* from those of predict"):
        export.write_export(tmp_path / "m.pt2", exported, one)
    assert not (tmp_path / "m.pt2").exists()


def test_bad_usage(trained, tmp_path, capsys):
    run = str(trained / "run")
    for out, message in (
        (str(tmp_path / "model.pth"), "--out: expected a file name that ends with .pt2 or .onnx, got"),
        (str(tmp_path / "no" / "model.pt2"), "--out: expected a writable folder"),
    ):
        assert main(["export", "--checkpoint", run, "--out", out]) == 2
        assert message in capsys.readouterr().err
