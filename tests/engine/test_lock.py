"""The lock of a run's folder: what is in its place, and who has taken the folder."""

import os
import shutil

import pytest
import toy

from fixtures import undrawn_pictures  # noqa: F401
from ltfast.engine import timing
from ltfast.engine.lock import FolderError, locked
from ltfast.errors import UserError


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(timing, "time_losses", lambda *_: None)


@pytest.mark.parametrize("what", ["link", "dangling", "fifo", "folder"])
def test_what_is_no_file_in_the_place_of_the_lock_is_refused_and_stays(what, tmp_path):
    path, target = tmp_path / ".lock", tmp_path / "target"
    if what == "link":
        target.write_text("someone's")
    if what in ("link", "dangling"):
        path.symlink_to(target)
    elif what == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises(FolderError, match=rf"--out {tmp_path}: {path} is a link or another thing than a file; delete"):
        toy.toy_train(tmp_path)
    assert target.exists() == (what == "link")
    assert os.path.lexists(path)


def test_a_fifo_with_a_reader_is_refused_too(tmp_path):
    os.mkfifo(tmp_path / ".lock")
    reader = os.open(tmp_path / ".lock", os.O_RDONLY | os.O_NONBLOCK)
    try:
        with pytest.raises(FolderError, match="a link or another thing than a file"), locked(tmp_path):
            pass
    finally:
        os.close(reader)


def test_the_lock_leaves_what_took_its_place(tmp_path):
    with locked(tmp_path) as lock:
        lock.check()
        (tmp_path / ".lock").unlink()
        with pytest.raises(FolderError, match="deleted or replaced"):
            lock.check()
        (tmp_path / ".lock").write_text("another's")
        with pytest.raises(UserError, match="deleted or replaced"):
            lock.check()
    assert (tmp_path / ".lock").read_text() == "another's"


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("second", ["runs", "has finished", "has not begun"])
# within an epoch, at its end, at the end of all
@pytest.mark.parametrize("step", [7, pytest.param(20, marks=pytest.mark.slow), 60])
def test_a_run_whose_folder_was_deleted_stops_and_writes_nothing_more(step, second, tmp_path):
    out, steps, holders, before = tmp_path / "run", [], [], {}

    def on_step(stage):
        steps.append(stage.name)
        if len(steps) == step:
            shutil.rmtree(out)
            if second == "runs":
                holders.append(locked(out))
                holders[0].__enter__()
            elif second == "has finished":
                toy.toy_train(out, settings={**toy.SETTINGS, "epochs": 4})
            before.update(contents(tmp_path))

    with pytest.raises(FolderError, match=f"--out {out}: this folder, or the lock in it, was deleted or replaced"):
        toy.toy_train(out, toy.toy_plan(on_step=on_step), checkpoint_minutes=0)
    assert len(steps) == step
    assert contents(tmp_path) == before
    assert bool(before) == (second != "has not begun")
    for holder in holders:
        holder.__exit__(None, None, None)


@pytest.mark.parametrize("when", ["test", "report"])
def test_a_folder_deleted_after_the_last_checkpoint_gets_no_report(when, tmp_path, monkeypatch):
    out, plan = tmp_path / "run", toy.toy_plan(stages=1)

    def taken():
        shutil.rmtree(out)
        out.mkdir()
        (out / ".lock").touch()

    stage, epochs = plan.stages[0], []
    whole = stage.predict

    def predict(*views):
        if stage.epoch == 2 and not epochs:
            epochs.append(2)
            taken()
        return whole(*views)

    if when == "test":
        stage.predict = predict
    else:
        monkeypatch.setattr(timing, "time_losses", lambda *_: taken())
    with pytest.raises(FolderError, match="deleted or replaced"):
        toy.toy_train(out, plan)
    assert list(out.iterdir()) == [out / ".lock"]
