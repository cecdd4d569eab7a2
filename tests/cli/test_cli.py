import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import ltfast
from ltfast import cli
from ltfast.cli import main
from ltfast.engine.checkpoint import load_checkpoint
from ltfast.errors import InputError, SettingError
from ltfast.methods import METHODS

TINY = ["train", "--data", "digits", "--imbalance", "20", "--epochs", "2", "--loss", "agcl"]
PETS = ["train", "--epochs", "1", "--batch-size", "8", "--image-size", "8"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run with two epochs."""
    out = tmp_path_factory.mktemp("run")
    assert main([*TINY, "--out", str(out)]) == 0
    return out


def test_a_run_leaves_what_it_promises(run):
    metrics = json.loads((run / "metrics.json").read_text())
    assert {"top1", "many", "medium", "few", "per_class", "train_seconds", "loss_ms"} <= metrics.keys()
    assert metrics["class_counts"][0] == 110
    assert metrics["class_counts"][-1] == 5
    settings = metrics["settings"]
    assert (settings["loss"], settings["epochs"], settings["imbalance"], settings["seed"]) == ("agcl", 2, 20, 0)
    assert (run / "per_class.png").exists()
    assert list(run.glob("events.out.tfevents.*"))


@pytest.mark.slow
def test_killed_in_mid_epoch_ends_with_the_same_bits(run, tmp_path):
    script = Path(__file__).parent / "killed_train.py"
    arguments = [*TINY, "--checkpoint-minutes", "0", "--out", str(tmp_path)]
    command = [sys.executable, str(script), "3", "4", "0", "--", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert [line for line in result.stdout.splitlines() if line.startswith("child")] == [
        "child -9",
        "child -9",
        "child 0",
    ], result.stderr
    assert "resuming train at epoch 2" in result.stdout
    whole, resumed = load_checkpoint(run)["model"], load_checkpoint(tmp_path)["model"]
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert (
        json.loads((tmp_path / "metrics.json").read_text())["per_class"]
        == (json.loads((run / "metrics.json").read_text())["per_class"])
    )


def test_same_command_again_does_nothing(run, capsys):
    before = (run / "checkpoint.pt").stat().st_mtime_ns
    assert main([*TINY, "--out", str(run)]) == 0
    shown = capsys.readouterr().out
    assert "nothing to do" in shown
    assert "\nplan: train: 2 epochs (--epochs), 10 steps of 64 images; trains 65,824 parameters (all)" in shown
    assert (run / "checkpoint.pt").stat().st_mtime_ns == before


def test_more_epochs_are_refused(run, capsys):
    words = [word if word != "2" else "3" for word in TINY]
    assert main([*words, "--out", str(run)]) == 2
    error = capsys.readouterr().err
    assert "epochs was 2 and is now 3" in error
    assert f"to train on from its weights, start a new run: --init {run} --epochs 3 --out NEW\n" in error


def test_a_finished_run_is_trained_on_by_a_new_one(run, tmp_path, capsys):
    assert main([*TINY, "--init", str(run), "--epochs", "1", "--lr", "1e-9", "--out", str(tmp_path)]) == 0
    assert f"starting from {run} (method ce): its backbone and its classifier\n" in capsys.readouterr().out
    before, after = (load_checkpoint(folder)["model"] for folder in (run, tmp_path))
    assert all(torch.allclose(value, before[name], atol=1e-6) for name, value in after.items() if "weight" in name)
    assert main([*TINY, "--lr", "0.2", "--out", str(run)]) == 2
    assert "to train on" not in capsys.readouterr().err


def test_eval_gives_the_runs_metrics(run, tmp_path, capsys):
    out = tmp_path / "eval.json"
    assert main(["eval", "--checkpoint", str(run), "--out", str(out)]) == 0
    metrics = json.loads((run / "metrics.json").read_text())
    result = json.loads(out.read_text())
    assert all(result[key] == metrics[key] for key in ("top1", "many", "medium", "few", "per_class"))
    assert f"{metrics['top1']:.1f}" in capsys.readouterr().out


def test_eval_on_other_data_normalises_and_groups_as_in_training(run, tmp_path, capsys):
    """The digits' own test images from a file, with another training set that must not matter."""
    from ltfast.data import load

    test = load("digits").test
    images, labels = test.images, test.labels.numpy()
    few = np.concatenate([np.flatnonzero(labels == c)[:1] for c in range(10)])
    np.savez(tmp_path / "d.npz", x_train=images[few] // 3, y_train=labels[few], x_test=images, y_test=labels)
    out = tmp_path / "eval.json"
    assert main(["eval", "--checkpoint", str(run), "--data", f"npz:{tmp_path}/d.npz", "--out", str(out)]) == 0
    metrics, result = json.loads((run / "metrics.json").read_text()), json.loads(out.read_text())
    assert all(result[key] == metrics[key] for key in ("top1", "many", "medium", "few", "per_class"))

    keep = labels < 9  # the names of the digits are their numbers
    np.savez(tmp_path / "d.npz", x_train=images[keep], y_train=labels[keep], x_test=images[keep], y_test=labels[keep])
    assert main(["eval", "--checkpoint", str(run), "--data", f"npz:{tmp_path}/d.npz", "--out", str(out)]) == 0
    assert json.loads(out.read_text())["per_class"] == [*metrics["per_class"][:9], None]


def test_eval_finds_the_runs_data_from_any_folder(pets, monkeypatch, tmp_path):
    for part in ("train", "test"):
        paths = sorted((pets / part).rglob("*.png"))
        lines = [f"{path.relative_to(pets)} {('cat', 'dog', 'emu').index(path.parent.name)}\n" for path in paths]
        Path(f"{part}.txt").write_text("".join(lines))
    assert main([*PETS, "--data", "list:train.txt", "--root", "pets", "--out", "run"]) == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["eval", "--checkpoint", "../run"]) == 0
    assert json.loads(Path("../run/eval.json").read_text())["data"] == f"list:{tmp_path}/train.txt"


def test_eval_takes_batch_size_workers_and_precision(run, tmp_path, monkeypatch):
    from accelerate.state import AcceleratorState

    from ltfast.engine import metrics

    AcceleratorState._reset_state(reset_partial_state=True)  # the run may have been trained in fp32 in this test
    seen = []
    evaluate = metrics.evaluate
    monkeypatch.setattr(metrics, "evaluate", lambda *args: seen.append(args) or evaluate(*args))
    words = ["--batch-size", "100", "--workers", "1", "--precision", "bf16", "--out", str(tmp_path / "e.json")]
    assert main(["eval", "--checkpoint", str(run), *words]) == 0
    (_, test, _, _, accelerator, _) = seen[0]
    assert (test.batch_size, test.num_workers, accelerator.mixed_precision) == (100, 1, "bf16")
    assert main(["eval", "--checkpoint", str(run), "--batch-size", "0"]) == 2


def test_eval_of_an_unfinished_run_says_so(run, tmp_path, monkeypatch, capsys):
    from ltfast.methods.supervised_stage import SupervisedStage

    saved = torch.load(run / "checkpoint.pt", weights_only=True)
    saved["position"] = {"stage": 0, "epoch": 1, "step": 3}
    torch.save(saved, tmp_path / "checkpoint.pt")
    assert main(["eval", "--checkpoint", str(tmp_path)]) == 0
    assert "the run is not finished: it is at stage 1 of 1 (train), epoch 2 of 2" in capsys.readouterr().out
    monkeypatch.setattr(SupervisedStage, "evaluated", False)
    assert main(["eval", "--checkpoint", str(tmp_path)]) == 2
    assert "and its stage train gives no class scores" in capsys.readouterr().err
    assert main(["eval", "--checkpoint", str(run), "--out", str(tmp_path / "e.json")]) == 0  # the last stage does


def test_eval_looks_at_out_before_it_evaluates(run, tmp_path, monkeypatch, capsys):
    from ltfast.engine import metrics

    monkeypatch.setattr(metrics, "evaluate", lambda *args: pytest.fail("evaluated"))
    (tmp_path / "file").touch()
    for out in ("missing/e.json", "file/e.json"):
        assert main(["eval", "--checkpoint", str(run), "--out", str(tmp_path / out)]) == 2
        folder = (tmp_path / out).parent
        assert f"--out: expected a writable folder, got {folder}" in capsys.readouterr().err
    assert main(["eval", "--checkpoint", str(run), "--out", str(tmp_path)]) == 2
    assert "--out: expected a file name" in capsys.readouterr().err


def test_eval_does_not_tell_to_delete_what_it_cannot_read(tmp_path, capsys):
    (tmp_path / "thesis.doc").write_text("years of work")
    assert main(["eval", "--checkpoint", str(tmp_path / "thesis.doc")]) == 2
    error = capsys.readouterr().err
    assert "no checkpoint" in error
    assert "delete" not in error


def test_names_are_shown_as_they_are(pets, capsys):
    """rich interprets [x] as markup and :x: as an emoji."""
    pets.rename(":x:")
    assert main([*PETS, "--data", "folder::x:", "--out", "[red]:x:"]) == 0
    assert main(["eval", "--checkpoint", "[red]:x:"]) == 0
    assert main(["report", "[red]:x:"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("folder::x:: 18 training images") == 1
    assert shown.count("written to [red]:x:") == 2
    assert shown.count("│ [red]:x: │") == 3
    assert "[red]:x:/per_class.png" in shown


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_broken_image_is_named_in_one_line(pets, workers, capsys):
    path = pets / "train" / "dog" / "3.png"
    path.write_bytes(path.read_bytes()[:100])  # truncated after its header
    assert main([*PETS, "--data", "folder:pets", "--out", "run", "--workers", workers]) == 2
    error = capsys.readouterr().err
    assert error.startswith("ltfast: error: cannot decode image pets/train/dog/3.png")
    assert error.count("\n") == 1


def test_report_shows_runs_side_by_side(run, capsys, tmp_path):
    shutil.copy(run / "metrics.json", tmp_path)
    assert main(["report", str(run), str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    metrics = json.loads((run / "metrics.json").read_text())
    assert shown.count(f"{metrics['medium']:.1f}") >= 2
    assert all(word in shown for word in ("many", "medium", "few", "all", "loss"))


def test_report_says_and_draws_what_a_run_gains_over_the_first(run, capsys, tmp_path):
    metrics = json.loads((run / "metrics.json").read_text())
    for name, few in (("plain", 40.0), ("better", 60.0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.json").write_text(json.dumps(metrics | {"few": few}))
    runs, picture = [str(tmp_path / "plain"), str(tmp_path / "better")], tmp_path / "c.png"
    assert main(["report", *runs, "--picture", str(picture)]) == 0
    shown = capsys.readouterr().out
    assert "better recognises 60.0 % of the test images of the rare classes" in shown
    assert "plain 40.0 %: 20.0 percentage points more." in shown
    assert picture.read_bytes().startswith(b"\x89PNG")

    (tmp_path / "plain" / "metrics.json").write_text(json.dumps(metrics | {"class_counts": [1] * 10}))
    assert main(["report", *runs, "--picture", str(picture)]) == 2
    assert "--picture: expected runs with equal class counts, got different ones in " in capsys.readouterr().err
    assert main(["report", *runs, "--picture", str(tmp_path / "missing" / "c.png")]) == 2
    assert "--picture: " in capsys.readouterr().err
    assert main(["report", *runs, "--picture", "c.gif"]) == 2
    assert "--picture: expected the name of a .png, .pdf or .svg file, got 'c.gif'" in capsys.readouterr().err


def settings_after(monkeypatch, words):
    """The settings of a command line, without training."""
    seen = []
    monkeypatch.setattr(cli.train, "_train", lambda method, settings, run, args, out: seen.append(args) or 0)
    status = main(["train", "--out", "unused", *words])
    assert status == 0
    return seen[0]


def test_bare_train_is_the_digits_recipe(monkeypatch):
    args = settings_after(monkeypatch, [])
    assert (args["data"], args["imbalance"], args["loss"]) == ("digits", 50.0, "cross_entropy")
    assert settings_after(monkeypatch, ["--data", "digits"])["imbalance"] is None  # all images


def test_recipes_by_name_path_and_override(monkeypatch, tmp_path):
    args = settings_after(monkeypatch, ["--config", "ce/cifar10-lt"])
    assert (args["data"], args["epochs"], list(args["milestones"])) == ("cifar10", 200, [160, 180])
    # the command line overrides the recipe, wherever --config is
    for words in (["--lr", "0.5", "--config", "ce/cifar10-lt"], ["--config=ce/cifar10-lt", "--lr=0.5"]):
        args = settings_after(monkeypatch, words)
        assert (args["lr"], args["epochs"]) == (0.5, 200)
    assert settings_after(monkeypatch, ["--config", "ce/imagenet-lt"])["imbalance"] is None
    assert [settings_after(monkeypatch, ["--config", f"{name}/digits"])["method"] for name in METHODS] == [*METHODS]
    assert settings_after(monkeypatch, ["--method", "do"])["method"] == "do"
    assert settings_after(monkeypatch, ["--config", "ce/digits", "--imbalance", "none"])["imbalance"] is None
    path = tmp_path / "mine.yaml"
    path.write_text("data: digits\nepochs: 7\npretrained: true\n")
    args = settings_after(monkeypatch, ["--config", str(path)])
    assert (args["epochs"], args["pretrained"]) == (7, True)
    assert settings_after(monkeypatch, ["--config", str(path), "--no-pretrained"])["pretrained"] is False


def test_milestones_with_commas(monkeypatch):
    for words in (["--milestones", "10,20"], ["--milestones=10,20"], ["--milestones", "[10, 20]"]):
        assert list(settings_after(monkeypatch, words)["milestones"]) == [10, 20]
    assert list(settings_after(monkeypatch, ["--milestones", "10"])["milestones"]) == [10]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nonsense"], "'nonsense' is not a command; expected one of data, train, eval, .*info$"),
        (["trian"], "'trian' is not a command; .*; did you mean train\\?$"),
        (["--verison"], "--verison: there is no such option; did you mean --version\\?$"),
        (["bench", "stp"], "ltfast bench does not accept 'stp'; did you mean step\\?$"),
        (["report", "importnce", "run"], "'importnce' is not a run or a report; did you mean importance\\?$"),
        (["train"], "required: --out"),
        (["eval"], "required: --checkpoint"),
        (["report"], "required: runs"),
        (["train", "--out", "o", "--lr", "fast"], "--lr: expected float, got 'fast'"),
        (["train", "--out", "o", "--lr", "-1"], "--lr: expected a positive number, got -1.0"),
        (["train", "--out", "o", "--lr", "-1e-3"], "--lr: expected a positive number, got -0.001"),
        (["train", "--out", "o", "--loss", "hinge"], "--loss: expected one of cross_entropy, .*agcl.*, got 'hinge'"),
        (["train", "--out", "o", "--profile", "p"], "--profile: expected one of exponential, pareto, step, got 'p'"),
        (["train", "--out", "o", "--imbalance", "x"], "--imbalance: expected float or none, got 'x'"),
        (["train", "--out", "o", "--milestones", "1,x"], "--milestones: expected int,int,..., got"),
        (["train", "--out", "o", "--image-size", "0"], "--image-size: expected at least 1 pixel, or auto, got 0"),
        (["train", "--out", "o", "--epochs", "2", "--warmup-epochs", "5"], "--warmup-epochs: .*--epochs"),
        (["train", "--out", "o", "--los", "agcl"], "--los: there is no such option; did you mean --loss\\?$"),
        (["train", "--ot=run"], "--ot: there is no such option; did you mean --out\\?$"),
        (["train", "--out", "o", "--zzz"], "--zzz: there is no such option; see `ltfast train --help`"),
        (["train", "--out", "o", "agcl"], "ltfast train does not accept 'agcl'; see `ltfast train --help`"),
        (["train", "--out", "o", "--lr"], "--lr: expected one argument$"),
        (["train", "--out", "o", "--loss", "agc"], "--loss: expected .*, got 'agc'; did you mean agcl\\?$"),
        (["train", "--out", "o", "--image-size", "aut"], "--image-size: .*, got 'aut'; did you mean auto\\?$"),
        (["train", "--out", "o", "--method", "dcsl"], "--method: expected .*, got 'dcsl'; did you mean dscl\\?$"),
        (["train", "--out", "o", "--queue-size", "9"], "--queue-size is an option of method dscl, not of ce$"),
        (
            ["train", "--out", "o", "--feature-dim=9"],
            "--feature-dim is an option of methods dscl and proco, not",
        ),
        (
            ["train", "--out", "o", "--method", "do", "--queue-sise", "9"],
            "--queue-sise: .*; did you mean --queue-size, which is an option of method dscl, not of do\\?$",
        ),
        (["eval", "--checkpoint", "x", "--aggregate", "grp"], "--aggregate: .*, got 'grp'; did you mean group\\?$"),
        (["bench", "--shapes", "smal"], "--shapes: .*, got 'smal'; did you mean small\\?$"),
        (
            ["train", "--out", "o", "--method", "no"],
            "--method: expected one of ce, do, dscl, lift, livt, lpt, proco, got 'no'",
        ),
        (["train", "--out", "o", "--config", "nope"], "--config nope: there is no such file or recipe; .*ce/digits"),
        (["train", "--out", "o", "--config", "BAD"], "--config bad.yaml:1: nosuch: expected a setting of method ce"),
        (["train", "--out", "o", "--config", "WRONG"], "--config wrong.yaml:1: epochs: expected int, got 'many'"),
        (["train", "--out", "o", "--data", "nope"], "--data: 'nope'"),
        (["train", "--out", "o", "--data", "npz:/nope.npz"], "/nope.npz"),
        (["train", "--out", "o", "--imbalance", "0.5"], "--imbalance: expected .* got 0.5"),
        (["train", "--out", "o", "--backbone", "resnet_99"], "backbone 'resnet_99'"),
        (["train", "--out", "o", "--batch-size", "100000"], "--batch-size: expected at most"),
        (["train", "--out", "o", "--optimizer", "adamww"], "--optimizer: expected .*adamw.* got 'adamww'$"),
        (["train", "--out", "o", "--config", "ce/digts"], "--config ce/digts: .*; did you mean ce/digits\\?$"),
        (["train", "--out", "o", "--no-norm-pixels"], "--no-norm-pixels is an option of method livt, not of ce$"),
        (["train", "--out", "o", "--data", "cifar1O"], "--data: 'cifar1O' is unknown; .*; did you mean cifar10\\?$"),
        (["train", "--out", "o", "--optimizer", "nosuch"], "--optimizer: expected .* got 'nosuch'"),
        (["train", "--out", ""], "--out: expected the name of a folder, got ''"),
        (["train", "--out", "wrong.yaml"], "--out: expected a writable folder, got wrong.yaml"),
        (["train", "--out", "wrong.yaml/run/1"], "--out: expected a writable folder, got wrong.yaml"),
        (["eval", "--checkpoint", "/nope"], "--checkpoint: there is no /nope"),
        (["report", "/nope"], "there is no /nope/metrics.json"),
        (["info", "--nope"], "--nope"),
    ],
)
def test_bad_usage_is_one_line_and_status_2(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("bad.yaml").write_text("nosuch: 1\n")
    Path("wrong.yaml").write_text("epochs: many\n")
    words = [{"BAD": "bad.yaml", "WRONG": "wrong.yaml"}.get(word, word) for word in words]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("ltfast: error: ")
    assert error.count("\n") == 1
    assert re.search(message, error), error


def test_verbose_shows_the_traceback(capsys):
    assert main(["report", "/nope", "-v"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "eval", "report"])
def test_interrupted(command, capsys, monkeypatch, tmp_path):
    def interrupt(argv):
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.COMMANDS, command, interrupt)
    words = [command, "--out", str(tmp_path)]
    for argv in ([command], [command, "--out"], words):
        assert main(argv) == 130
        assert capsys.readouterr().err == "ltfast: interrupted\n"  # there is no checkpoint to continue from
    (tmp_path / "checkpoint.pt").touch()
    assert main(words) == 130
    assert ("continues from the last checkpoint" in capsys.readouterr().err) == (command == "train")


@pytest.fixture
def sigint():
    """Python's handler. A shell without job control starts background jobs with the signal ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("sigint")
def test_an_interrupt_that_a_library_turns_into_another_error(capsys, monkeypatch):
    def interrupt(argv):
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            raise ImportError("a library's own words") from None

    monkeypatch.setitem(cli.COMMANDS, "info", interrupt)
    assert main(["info"]) == 130
    assert capsys.readouterr().err == "ltfast: interrupted\n"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (InputError("data: no good"), 2, "ltfast: error: data: no good"),
        (InputError("no good", name="class_names"), 2, "ltfast: error: --class-names: no good"),
        (InputError("no good", name="source"), 2, "ltfast: error: --data: no good"),
        (SettingError("batch_size", "at least 1", 0), 2, "ltfast: error: --batch-size: expected at least 1, got 0"),
        (PermissionError(13, "Permission denied", "run"), 1, r"ltfast: error: \[Errno 13\] Permission denied: 'run'"),
        (torch.OutOfMemoryError("GPU 0 is full"), 1, "ltfast: error: out of memory; a lower --batch-size .*"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 1, "ltfast: error: out of memory.*"),
    ],
)
def test_errors_of_users_and_machines_are_a_line(error, status, message, capsys, monkeypatch):
    def fail(argv):
        raise error

    monkeypatch.setitem(cli.COMMANDS, "info", fail)
    assert main(["info"]) == status
    assert re.fullmatch(message + "\n", capsys.readouterr().err)


@pytest.mark.parametrize("error", [ValueError("a\x1b[31mb"), TypeError("x"), KeyError("x"), FileNotFoundError("x")])
def test_a_fault_of_the_program_is_shown_with_its_traceback_and_status_1(error, capsys, monkeypatch):
    def fail(argv):
        raise error

    monkeypatch.setitem(cli.COMMANDS, "info", fail)
    assert main(["info"]) == 1
    shown = capsys.readouterr().err
    if isinstance(error, FileNotFoundError):  # a failure of the machine, not of the program
        assert shown == "ltfast: error: x\n"
        return
    assert shown.startswith("Traceback")
    assert "in fail" in shown
    last = shown.splitlines()[-1]
    assert last.startswith(f"ltfast: error: {type(error).__name__}: ")
    assert "this is a bug in ltfast" in last
    assert "\x1b" not in shown


def test_a_batch_of_one_image_is_refused_where_batch_norm_needs_two(tmp_path, capsys):
    images, labels = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8), np.arange(6) % 2
    np.savez(tmp_path / "d.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    words = ["--data", f"npz:{tmp_path}/d.npz", "--out", str(tmp_path / "run"), "--batch-size", "1", "--epochs", "1"]
    for method in ("ce", "do", "dscl"):
        assert main(["train", "--method", method, "--backbone", "resnet18", *words]) == 2
        error = capsys.readouterr().err
        assert "--batch-size: expected at least 2: with one image, the BatchNorm backbone.layer4.0.bn1 gets" in error
    assert not (tmp_path / "run").exists()
    # eight pixels per image are enough values
    small = images[:, ::4, ::4, 0]
    np.savez(tmp_path / "d.npz", x_train=small, y_train=labels, x_test=small, y_test=labels)
    assert main(["train", *words]) == 0


def test_settings_say_what_auto_has_chosen(pets, capsys):
    assert main([*PETS, "--data", "folder:pets", "--out", "run"]) == 0
    assert "chosen by auto: --backbone digits_convnet\n" in capsys.readouterr().out  # the image size is given
    saved = load_checkpoint(Path("run"))
    assert (saved["settings"]["backbone"], saved["settings"]["image_size"]) == ("auto", 8)


def test_a_run_from_before_auto_had_a_name_is_evaluated(run, tmp_path, capsys):
    saved = torch.load(run / "checkpoint.pt", weights_only=True)
    assert (saved["settings"]["backbone"], saved["settings"]["image_size"]) == ("auto", "auto")
    saved["settings"] |= {"backbone": None, "image_size": None}
    torch.save(saved, tmp_path / "checkpoint.pt")
    assert main(["eval", "--checkpoint", str(tmp_path)]) == 0
    metrics, result = (json.loads((f / n).read_text()) for f, n in ((run, "metrics.json"), (tmp_path, "eval.json")))
    assert result["per_class"] == metrics["per_class"]
    assert main(["report", "importance", str(tmp_path), "--out", str(tmp_path / "i.png"), "--images", "20"]) == 0


def test_none_is_none_and_auto_is_auto(monkeypatch, capsys):
    dscl = ["--method", "dscl", "--data", "digits"]
    assert settings_after(monkeypatch, [*dscl, "--classifier-augment", "none"])["classifier_augment"] == "none"
    assert settings_after(monkeypatch, [*dscl, "--classifier-augment", "auto"])["classifier_augment"] == "auto"
    args = settings_after(monkeypatch, ["--data", "digits", "--clip-norm", "none", "--image-size", "auto"])
    assert (args["clip_norm"], args["image_size"], args["imbalance"]) == (None, "auto", None)
    args = settings_after(monkeypatch, ["--method", "do", "--data", "digits", "--order", "2,1,0", "--prune", "auto"])
    assert (tuple(args["order"]), args["prune"]) == ((2, 1, 0), "auto")
    assert main(["train", "--out", "o", *dscl, "--augment", "none"]) == 2
    assert "--augment: expected one of auto, basic, cifar, dscl, got 'none'" in capsys.readouterr().err
    assert main(["train", "--out", "o", "--image-size", "none"]) == 2
    assert "--image-size: expected int or auto, got 'none'" in capsys.readouterr().err


@pytest.mark.parametrize("method", METHODS)
def test_each_default_of_a_method_is_a_value_or_auto_or_none(method):
    """`None` is "none", which the help describes. The value of "auto" is chosen, and the help says how."""
    for field in dataclasses.fields(METHODS[method].settings):
        if field.default is None:
            assert field.name in ("init", "weights", "class_weights", "class_text", "defer_reweighting"), field.name
        if field.default == "auto":
            assert "auto: " in field.metadata["help"], field.name
        assert "none: " not in field.metadata["help"], field.name


@pytest.mark.parametrize("method", METHODS)
def test_chosen_leaves_auto_to_what_is_known_later_alone(method):
    from ltfast.data import load

    chosen = METHODS[method].settings().chosen(load("digits"))
    left = {field.name for field in dataclasses.fields(chosen) if getattr(chosen, field.name) == "auto"}
    left.discard("label_smoothing")  # chosen by the loss
    later = {"do": {"prune"}, "dscl": {"classifier_lr"}, "lpt": {"group_blocks"}}
    later["lift"] = {"adapter_width", "adapter_blocks"}
    assert left == later.get(method, set())
    assert chosen.backbone == ("vit_digits" if method in ("lift", "livt", "lpt") else "digits_convnet")
    assert chosen.chosen(load("digits")) == chosen


def test_missing_extra_is_named(capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, "ltfast.recipe")
    monkeypatch.setitem(sys.modules, "yaml", None)
    assert main(["train", "--out", "x"]) == 2
    assert "pip install 'ltfast[train]'" in capsys.readouterr().err


def test_info(capsys):
    assert main(["info"]) == 0
    shown = capsys.readouterr().out
    assert f"torch {torch.__version__.split('+')[0]}" in shown
    assert "CPU: " in shown
    assert "backend reference: available" in shown
    assert "op agcl: native on cpu" in shown
    with ltfast.backend("reference"):
        assert main(["info"]) == 0
    assert "op balanced_bce: reference on cpu" in capsys.readouterr().out


def test_help_names_everything(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")  # one option per line
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert all(command in shown for command in ("train", "eval", "report", "info"))
    assert "`ltfast train --method M --help`" in shown
    with pytest.raises(SystemExit) as stop:
        main(["train", "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert all(f"--{name}" in shown for name in ("method", "data", "imbalance", "config", "out", "loss", "batch-size"))
    # the default of the option, not that of the recipe that is used without --config
    assert re.search(r"--imbalance IMBALANCE\s+subsample .*default: none\)", shown)
    assert "`ltfast train --method M --help` shows those of method M" in shown
    with pytest.raises(SystemExit):
        main(["train", "--method", "dscl", "--help"])
    assert "--queue-size" in capsys.readouterr().out


@pytest.mark.slow
def test_module_runs_as_a_program():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "ltfast.cli", "report", "/nope"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment)
    assert result.returncode == 2
    assert "/nope/metrics.json" in result.stderr
