"""A full disk: files are redirected to /dev/full, where writing fails in the same way."""

import os
import signal
from pathlib import Path

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from faults.conftest import same_bits, tiny, tiny_npz
from ltfast import files
from ltfast.cli import main
from ltfast.engine import events
from ltfast.engine.checkpoint import CHECKPOINT, load_checkpoint
from ltfast.engine.events import Events
from ltfast.engine.loop import _Run
from ltfast.runs import prediction_files

FULL = "[Errno 28] No space left on device"


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """The arguments of a run with 2 epochs of 5 steps."""
    source = tiny_npz(tmp_path_factory.mktemp("data") / "d.npz", [12, 8])
    return [*tiny("ce", source, batch_size=4), "--epochs", "2", "--checkpoint-minutes", "0"]


@pytest.fixture(scope="module")
def whole(words, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    assert main([*words, "--out", str(out)]) == 0
    return out


@pytest.fixture
def fill(monkeypatch):
    """Make writing the file with this name fail once."""

    def fill(name):
        def open_full(path, mode):
            if not path.name.startswith(name):
                return open(path, mode)
            monkeypatch.delattr(files, "open")
            path.touch()
            return open("/dev/full", "wb")

        monkeypatch.setattr(files, "open", open_full, raising=False)

    return fill


def at_step(monkeypatch, number, act):
    """Call `act` after the step with this number."""
    left, whole_step = [number], _Run._step

    def step(*arguments):
        logged = whole_step(*arguments)
        left[0] -= 1
        if left[0] == 0:
            act()
        return logged

    monkeypatch.setattr(_Run, "_step", step)


def test_no_room_for_the_first_checkpoint(words, whole, tmp_path, capsys, fill):
    fill(CHECKPOINT)
    assert main([*words, "--out", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error == f"ltfast: error: cannot write {tmp_path}/{CHECKPOINT}: {FULL}; there is no earlier one\n"
    assert main([*words, "--out", str(tmp_path)]) == 0
    assert same_bits(tmp_path, whole)


def test_no_room_for_the_next_checkpoint(words, whole, tmp_path, capsys, monkeypatch, fill):
    """The previous checkpoint is kept, and the run resumes from it once there is room."""
    at_step(monkeypatch, 7, lambda: fill(CHECKPOINT))
    assert main([*words, "--out", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error == f"ltfast: error: cannot write {tmp_path}/{CHECKPOINT}: {FULL}; the one before it is whole\n"
    assert load_checkpoint(tmp_path)["position"] == {"stage": 0, "epoch": 1, "step": 1}
    assert main([*words, "--out", str(tmp_path)]) == 0
    assert "resuming train at epoch 2, step 1" in capsys.readouterr().out
    assert same_bits(tmp_path, whole)


@pytest.mark.parametrize("name", ["predictions.csv", "metrics.json", "per_class.png"])
def test_no_room_for_the_report(name, words, whole, tmp_path, capsys, fill):
    fill(name)
    assert main([*words, "--out", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error == f"ltfast: error: cannot write {tmp_path}/{name}: {FULL}; there is no earlier one\n"
    assert not (tmp_path / name).exists()
    assert (tmp_path / "metrics.json").exists() == (name == "per_class.png")  # the values are not lost
    assert main([*words, "--out", str(tmp_path)]) == 0  # nothing is trained again
    assert "train 2/2" not in capsys.readouterr().out
    assert (tmp_path / name).exists()
    assert same_bits(tmp_path, whole)


def test_no_room_for_the_weights_of_prompts(encoder, tmp_path, capsys, fill):
    source = tiny_npz(tmp_path / "d.npz", [6, 4])
    words = [*tiny("lpt", source, batch_size=4, encoder=encoder), "--out", str(tmp_path)]
    fill("weights.safetensors")
    assert main(words) == 1
    assert f"cannot write {tmp_path}/weights.safetensors: {FULL}" in capsys.readouterr().err
    assert load_checkpoint(tmp_path)["position"] == {"stage": 1, "epoch": 0, "step": 0}
    assert main(words) == 0
    assert (tmp_path / "weights.safetensors").stat().st_size > 1000


def test_no_room_for_the_result_of_eval(whole, tmp_path, capsys, fill):
    fill("e.json")
    assert main(["eval", "--checkpoint", str(whole), "--out", str(tmp_path / "e.json")]) == 1
    assert f"cannot write {tmp_path}/e.json: {FULL}" in capsys.readouterr().err


def test_no_room_for_predictions(whole, tmp_path, capsys, monkeypatch):
    for i in range(5):
        Image.new("L", (8, 8), i).save(tmp_path / f"{i}.png")
    out = tmp_path / "p.csv"
    words = ["predict", "--checkpoint", str(whole), str(tmp_path), "--batch-size", "2", "--out", str(out)]
    assert main(words) == 0
    complete = out.read_bytes()
    out.write_bytes(complete[:-20])

    def open_full(path, mode):
        monkeypatch.setattr(prediction_files, "open", open_until_it_is_written, raising=False)
        return open(path, mode)

    def open_until_it_is_written(path, mode):
        monkeypatch.delattr(prediction_files, "open")
        return open("/dev/full", mode)

    monkeypatch.setattr(prediction_files, "open", open_full, raising=False)
    assert main(words) == 1
    message = f"cannot write {out}: {FULL}; the same command continues after its last complete row"
    assert message in capsys.readouterr().err
    assert main(words) == 0
    assert out.read_bytes() == complete


def test_no_room_for_events_is_said_once_and_the_run_goes_on(words, whole, tmp_path, capsys, monkeypatch):
    def full(file, record):
        with open("/dev/full", "wb") as device:
            device.write(record)

    at_step(monkeypatch, 2, lambda: monkeypatch.setattr(events.RecordWriter, "write", full))
    assert main([*words, "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr()
    assert shown.out.count(f"TensorBoard's events cannot be written any more: {FULL}; the run goes on") == 1
    assert shown.err == ""
    assert same_bits(tmp_path, whole)


def test_events_are_in_the_file_at_once_and_purged_where_a_killed_run_continues(tmp_path):
    first = Events(tmp_path, purge_step=None, say=pytest.fail)
    for step in range(1, 6):
        first.add("loss", 0.5 * step, step)
    Events(tmp_path, purge_step=4, say=pytest.fail).add("loss", 10.0, 4)
    read = EventAccumulator(str(tmp_path))
    read.Reload()
    assert [(event.step, event.value) for event in read.Scalars("loss")] == [(1, 0.5), (2, 1.0), (3, 1.5), (4, 10.0)]


def test_files_have_the_system_s_limit(words, whole, tmp_path):
    """A real limit on file sizes, in a separate process."""
    import resource

    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
        os._exit(main([*words, "--out", str(tmp_path)]))
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 1
    assert not list(Path(tmp_path).glob("*.partial"))
    assert main([*words, "--out", str(tmp_path)]) == 0
    assert same_bits(tmp_path, whole)


def test_sigterm_at_a_step_leaves_a_checkpoint(words, whole, tmp_path, capsys, monkeypatch):
    at_step(monkeypatch, 7, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert main([*words, "--checkpoint-minutes", "60", "--out", str(tmp_path)]) == 130
    assert "stopped at epoch 2, step 2; the same command continues from there" in capsys.readouterr().out
    assert load_checkpoint(tmp_path)["position"] == {"stage": 0, "epoch": 1, "step": 2}
    assert main([*words, "--out", str(tmp_path)]) == 0
    assert same_bits(tmp_path, whole)
