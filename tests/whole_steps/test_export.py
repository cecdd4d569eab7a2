"""Tests `torch.export` of the trained predictor of each method, and `ltfast export`."""

import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from PIL import Image

from ltfast.cli import main
from ltfast.data import eval_transform, load
from ltfast.engine.export import export_predictor, save_program
from ltfast.errors import InputError
from ltfast.methods.decoupled_optimisation import Aggregation
from ltfast.runs import export
from ltfast.runs.classifier import probabilities
from ltfast.runs.export import check_program, export_run, write_export
from ltfast.runs.restore import Trained, facts_of
from ltfast.runs.views import Views
from methods.conftest import tiny_bundle
from whole_steps.stages import make_plan

METHODS = {
    "ce": ("ce", {}),
    "ce agcl": ("ce", {"loss": "agcl"}),
    "ce fused": ("ce", {"loss": "agcl", "fused_classifier": "on"}),
    "proco": ("proco", {"classifier": "cosine"}),
    "dscl": ("dscl", {}),
    "livt": ("livt", {}),
    "lift": ("lift", {}),
    "lpt": ("lpt", {}),
    "do instance": ("do", {"aggregate": "instance"}),
    "do group": ("do", {"aggregate": "group"}),
    "do average": ("do", {"aggregate": "average"}),
}


def trained_predictor(name):
    """A predictor with the state after training: updated statistics, and the sub-models of all stages."""
    method, values = METHODS[name]
    plan = make_plan(method, **values)
    predictor = plan.predictor
    for module in predictor.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    if isinstance(predictor, Aggregation):
        models = predictor.network
        for stage in (2, 3):
            models.prune([weight.detach().abs() for weight in models.weights.values()], 0.5)
            models.begin(stage, plan.stages[0].fresh())
    predictor.eval()
    with torch.no_grad():
        predictor.adapt(batch[:-1] for batch in plan.test)
    return predictor


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_an_exported_model_is_the_eager_one(name):
    predictor = trained_predictor(name)
    assert predictor.views == (3 if name == "do instance" else 1)
    program = export_predictor(predictor, (1, 8, 8)).module()
    for images in (1, 7):
        views = [torch.randn(images, 1, 8, 8) for _ in range(predictor.views)]
        with torch.no_grad():
            expected = predictor.predict(*views)
            torch.testing.assert_close(program(*views), expected)
        assert expected.shape == (images, 3)


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["pt2", "onnx"])
@pytest.mark.parametrize("name", METHODS)
def test_a_program_from_pixels_predicts_as_the_run_does(name, ending, tmp_path, monkeypatch):
    """Also where the network's images are larger than the run's."""
    if ending == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    predictor, bundle = trained_predictor(name), tiny_bundle()
    size = 8 if name in ("lift", "livt", "lpt") else 12
    facts = facts_of(bundle, "digits", None)
    transforms = [eval_transform(bundle, size)] * predictor.views
    trained = Trained(make_plan("ce"), predictor, {}, facts, size, transforms, None, None)
    if name == "do instance":
        with pytest.raises(InputError, match="aggregate: expected average, since with instance the weights"):
            export_run(trained, None, raw=False)
        return
    exported = export_run(trained, None, raw=False)
    checks = []
    monkeypatch.setattr(export, "check_program", lambda *given: checks.append(given) or check_program(*given))
    assert "agrees with predict to " in write_export(tmp_path / f"model.{ending}", exported, trained)
    assert len(checks) == 1
    program = checks[0][2]
    image = np.random.default_rng(1).integers(0, 256, (31, 20), dtype=np.uint8)
    views = Views(trained)(Image.fromarray(image).convert("RGB"), 0)
    expected = probabilities(predictor, [view[None] for view in views]).float()
    found = program(torch.from_numpy(image)[None, None])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def run_alone(script, folder):
    """Runs in a separate process, whose output is JSON."""
    command = [sys.executable, "-c", textwrap.dedent(script)]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.slow
def test_an_exported_run_is_used_without_ltfast(tmp_path, capsys):
    run, model = str(tmp_path / "run"), tmp_path / "model.pt2"
    assert main(["train", "--config", "ce/digits", "--loss", "agcl", "--epochs", "1", "--out", run]) == 0
    assert main(["eval", "--checkpoint", run]) == 0
    assert main(["export", "--checkpoint", run, "--raw", "--out", str(model)]) == 0
    assert f"written to {model}: 1 x (1, 8, 8) -> 10 class scores" in capsys.readouterr().out
    bundle = load("digits")
    torch.save([bundle.test.images, torch.as_tensor(bundle.test.labels)], tmp_path / "test.pt")
    found = run_alone(
        """
        import json, sys
        import torch
        extra = {"ltfast.json": ""}
        program = torch.export.load("model.pt2", extra_files=extra).module()
        facts = json.loads(extra["ltfast.json"])
        images, labels = torch.load("test.pt", weights_only=False)
        mean, std = facts["mean"][0], facts["std"][0]
        scores = program((torch.as_tensor(images)[:, None].float() / 255 - mean) / std)
        right = scores.argmax(1) == labels
        print(json.dumps({
            "per_class": [100 * right[labels == c].double().mean().item() for c in range(10)],
            "modules": [name for name in sys.modules if name.split(".")[0] in ("ltfast", "timm")],
            "facts": facts,
        }))
        """,
        tmp_path,
    )
    assert found["modules"] == []
    assert found["facts"]["class_names"] == list(bundle.class_names)
    assert found["facts"]["views"] == 1
    expected = json.loads((tmp_path / "run" / "eval.json").read_text())["per_class"]
    assert found["per_class"] == pytest.approx(expected)


def test_a_program_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    program = export_predictor(trained_predictor("ce"), (1, 8, 8))
    path = tmp_path / "model.pt2"
    path.write_bytes(b"the one before")

    def fails(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch.export, "save", fails)
    with pytest.raises(OSError, match="No space left on device"):
        save_program(path, program, {})
    assert path.read_bytes() == b"the one before"


def test_bad_usage(tmp_path, capsys):
    assert main(["export", "--checkpoint", str(tmp_path / "nothing")]) == 2
    assert "checkpoint: there is no" in capsys.readouterr().err
    assert main(["export", "--checkpoint", str(tmp_path), "--out", str(tmp_path)]) == 2
    assert "--out: expected a file name" in capsys.readouterr().err
