"""Tests terminal output: names with control characters, and streams that are closed, full or ASCII."""

import ast
import io
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ltfast import cli
from ltfast.cli import main
from ltfast.terminal import Output, say, shown

ROOT = Path(__file__).parent.parent.parent
EVIL = "\x1b]0;pwned\x07\x9b31m\u202egnp\nx\x7f"  # a title, a colour, reversed text, a line break
SHOWN = r"\x1b]0;pwned\x07\x9b31m\u202egnp\nx\x7f"
ACTED_ON = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def test_shown():
    assert shown(EVIL) == SHOWN
    assert shown("\u2066\u2069\ud800\u2028\u200f") == r"\u2066\u2069\ud800\u2028\u200f"
    assert shown("Ünï ©ødé 漢字 👩‍👧 [red] :x: \\x1b") == "Ünï ©ødé 漢字 👩‍👧 [red] :x: \\x1b"
    every = "".join(map(chr, range(sys.maxunicode + 1)))
    assert not ACTED_ON.search(shown(every).replace("\n", "?"))
    assert "\n" not in shown(every)


@pytest.fixture
def evil_data(tmp_path, monkeypatch):
    """A folder whose name, class names and file names contain control characters, and a list of its files."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    for part in ("train", "test"):
        for name in ("cat", EVIL):
            folder = Path(EVIL, part, name)
            folder.mkdir(parents=True)
            for i in range(6):
                Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / f"{i}{EVIL}.png")
    return EVIL


TRAIN = ["train", "--epochs", "1", "--batch-size", "4", "--image-size", "8"]


@pytest.mark.slow
def test_names_are_shown_and_not_sent(evil_data, capsys):
    """Tests each command that shows a name, in its output and in its errors."""
    run = f"run{EVIL}"
    data = f"folder:{evil_data}"
    assert main([*TRAIN, "--data", data, "--out", run]) == 0
    assert main([*TRAIN, "--data", data, "--out", run]) == 0  # nothing to do
    assert main(["eval", "--checkpoint", run]) == 0
    assert main(["calibrate", "--checkpoint", run, "--data", data, "--class-recall", "1"]) == 0
    assert main(["report", run]) == 0
    assert main(["report", "importance", run, "--out", f"{EVIL}.png", "--images", "8"]) == 0
    assert main(["export", "--checkpoint", run, "--out", f"{EVIL}.pt2"]) == 0
    assert main(["predict", "--checkpoint", run, evil_data, "--out", f"{EVIL}.csv"]) == 0
    said = capsys.readouterr()
    assert not ACTED_ON.search(said.out + said.err)
    assert said.out.count(SHOWN) >= 8
    assert f"written to run{SHOWN}: metrics.json" in said.out
    assert f"run{SHOWN} holds a finished run" in said.out


@pytest.mark.parametrize(
    "words",
    [
        [*TRAIN, "--data", "folder:nowhere" + EVIL, "--out", "o"],
        [*TRAIN, "--data", EVIL, "--out", "o"],
        [*TRAIN, "--data", f"folder:{EVIL}", "--out", "o", "--imbalance", "1e6"],
        [*TRAIN, "--data", f"folder:{EVIL}", "--out", "o", "--backbone", EVIL],
        [*TRAIN, "--data", f"folder:{EVIL}", "--out", "o", "--loss", EVIL],
        [*TRAIN, "--data", f"folder:{EVIL}", "--out", "o", "--config", EVIL],
        [*TRAIN, "--data", "list:train.txt", "--out", "o"],
        ["eval", "--checkpoint", EVIL],
        ["eval", "--checkpoint", "evil.pt"],
        ["report", EVIL],
        ["report", "importance", EVIL],
        ["report", "prompts", EVIL],
        ["export", "--checkpoint", EVIL],
        ["calibrate", "--checkpoint", EVIL],
        ["predict", "--checkpoint", EVIL, EVIL],
        ["predict", "--checkpoint", EVIL, f"no{EVIL}"],
        ["bench", "--compare", EVIL, EVIL],
        ["bench", "--ops", EVIL],
        [EVIL],
        ["info", EVIL],
        ["train", "--out", "o", EVIL],
    ],
)
def test_errors_show_names_and_do_not_send_them(words, evil_data, capsys):
    Path("train.txt").write_text(f"{EVIL.replace(chr(10), '')} 0\n")
    Path("test.txt").write_text("x 0\n")
    Path("evil.pt").write_text(EVIL)
    assert main(words) == 2
    error = capsys.readouterr().err
    assert not ACTED_ON.search(error)
    assert error.count("\n") == 1


def test_tracebacks_and_warnings_show_names_and_do_not_send_them(capsys, monkeypatch):
    def fail(argv):
        # pytest captures warnings before they are shown
        for place in (str(ROOT / "ltfast" / "cli" / "info.py"), "/elsewhere.py"):
            sys.stderr.write(warnings.formatwarning(f"careful: {EVIL}", UserWarning, place, 7))
        raise RuntimeError(EVIL)

    monkeypatch.setitem(cli.COMMANDS, "info", fail)
    assert main(["info"]) == 1
    error = capsys.readouterr().err
    assert not ACTED_ON.search(error)
    assert error.startswith("ltfast: warning: careful: \\x1b]0;pwned")
    assert "\nltfast: warning: /elsewhere.py:7: UserWarning: careful: \\x1b]0;pwned" in error
    assert "\nRuntimeError: \\x1b]0;pwned" in error


def test_all_that_is_printed_goes_through_shown():
    """`print` and `Accelerator.print` would not escape names."""
    for path in (ROOT / "ltfast").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or path.name in ("terminal.py", "__main__.py"):
                continue
            name = ast.unparse(node.func)
            assert name != "print", f"{path}:{node.lineno}: say(...) of ltfast.terminal"
            assert not name.endswith("accelerator.print"), f"{path}:{node.lineno}: say(...) in the main process"


class Full(io.StringIO):
    def write(self, text):
        raise OSError(28, "No space left on device")


def test_an_output_that_cannot_be_written_loses_text_and_says_why(capsys, monkeypatch):
    output = Output(Full())
    assert output.write("abc") == 3
    output.write("d")
    output.flush()
    assert output.error.errno == 28
    # the files of a command are written; only printing fails
    monkeypatch.setitem(cli.COMMANDS, "train", lambda argv: say("text") or 0)
    monkeypatch.setitem(cli.COMMANDS, "info", lambda argv: say("text") or 0)
    for command, status in (("train", 0), ("info", 1)):
        monkeypatch.setattr(sys, "stdout", Full())
        assert main([command]) == status
        assert capsys.readouterr().err == (
            "ltfast: standard output cannot be written: [Errno 28] No space left on device; output files are written\n"
        )


# the tests below start the program in a process


def environment(**more):
    paths = {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]), "OMP_NUM_THREADS": "1"}
    return {**os.environ, **paths, **more}


def start(words, **options):
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": environment(), "text": True, **options}
    return subprocess.Popen([sys.executable, "-m", "ltfast", *words], **options)


def test_a_reader_that_leaves_is_no_error():
    with start(["info"]) as process:
        process.stdout.close()
        assert process.wait(900) == 0
        assert process.stderr.read() == ""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_standard_output_is_one_line(tmp_path):
    """Python itself would fail again when it flushes the remaining output. The rule of each command is tested above."""
    with open("/dev/full", "w") as full, start(["info"], stdout=full) as process:
        assert process.wait(900) == 1
        error = process.stderr.read()
    assert error.startswith("ltfast: standard output cannot be written: [Errno 28]")
    assert error.count("\n") == 1


@pytest.mark.slow
def test_a_run_without_docstrings_on_an_ascii_terminal_beside_nvcc(tmp_path):
    """Tests `python -OO`, names that are not ASCII, and a machine with nvcc but without GPU, about which PyTorch would
    log a message."""
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text("#!/bin/sh\n")
    nvcc.chmod(0o755)
    images, labels = np.random.default_rng(0).integers(0, 256, (12, 8, 8), dtype=np.uint8), np.arange(12) % 2
    np.savez(tmp_path / "ü.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    more = {"PYTHONOPTIMIZE": "2", "PYTHONIOENCODING": "ascii", "CUDA_VISIBLE_DEVICES": "", "CUDA_HOME": ""}
    path = f"{nvcc.parent}{os.pathsep}{os.environ['PATH']}"
    words = ["train", "--data", "npz:ü.npz", "--out", "run ü", "--epochs", "1", "--batch-size", "4"]
    with start(words, cwd=tmp_path, env=environment(**more, PATH=path)) as process:
        out, error = process.communicate(timeout=900)
    assert (process.returncode, error) == (0, "")
    assert r"ce on npz:\xfc.npz: 12 training images" in out
    assert r"written to run \xfc: metrics.json" in out
    assert (tmp_path / "run ü" / "metrics.json").exists()


def test_help_without_docstrings():
    script = (
        "import sys\n"
        "from ltfast.cli import COMMANDS, main\n"
        "for words in [[], *([name] for name in COMMANDS), ['report', 'importance'], ['report', 'prompts'],\n"
        "              ['bench', 'step']]:\n"
        "    try:\n"
        "        main([*words, '--help'])\n"
        "    except SystemExit as stop:\n"
        "        assert stop.code == 0\n"
    )
    command = [sys.executable, "-OO", "-c", script]
    result = subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment())
    assert (result.returncode, result.stderr) == (0, "")
    assert "None" not in re.sub(r"default: None", "", result.stdout)
    assert result.stdout.count("usage: ltfast") == len(cli.COMMANDS) + 4
    for text in ("Train a method on a data set", "train     train a method", "Show versions, devices"):
        assert text in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("module", ["ltfast.cli", "yaml", "torch", "timm.models", "accelerate"])
def test_an_interrupt_while_something_is_imported_is_a_line(module, tmp_path):
    """Tests the first seconds of a run: the signal comes when this module is imported."""
    script = (
        "import os, runpy, signal, sys\n"
        "class Interrupting:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {module!r}:\n"
        "            sys.meta_path.remove(self)\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupting())\n"
        "runpy.run_module('ltfast', run_name='__main__')\n"
    )
    command = [sys.executable, "-c", script, "train", "--out", str(tmp_path / "run")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment())
    assert (result.returncode, result.stderr) == (130, "ltfast: interrupted\n")


COMMANDS = (
    "train",
    "train --method dscl",
    "eval",
    "calibrate",
    "predict",
    "export",
    "report",
    "report importance",
    "report prompts",
    "bench",
    "bench step",
    "info",
)


def test_nothing_slow_is_imported_for_help():
    """Each command runs in a fork of a process that has imported the command line alone."""
    commands = [[], ["--help"], ["--version"], *([*command.split(), "--help"] for command in COMMANDS)]
    script = (
        "import os, sys\n"
        "from ltfast.cli import main\n"
        f"for words in {commands}:\n"
        "    if os.fork() == 0:\n"
        "        try:\n"
        "            sys.exit(main(words) if words else 0)\n"
        "        finally:\n"
        "            slow = {'torch', 'numpy', 'timm', 'matplotlib', 'rich'}\n"
        "            print(sorted(slow & set(sys.modules)), file=sys.stderr)\n"
        "    print(words, os.wait()[1], file=sys.stderr)\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment())
    assert result.stderr == "".join(f"[]\n{words} 0\n" for words in commands)
    assert result.returncode == 0


def test_the_backend_is_there_when_it_is_asked_for():
    import ltfast

    with ltfast.backend("reference"):
        assert torch.tensor(1) == 1
    with pytest.raises(AttributeError, match="nosuch"):
        ltfast.nosuch  # noqa: B018


@pytest.mark.slow
def test_off_a_terminal_progress_is_lines(pets, capsys, monkeypatch):
    from ltfast import progress
    from ltfast.engine import estimate

    monkeypatch.setattr(progress, "SECONDS", 0)
    monkeypatch.setattr(estimate, "_WARM_UP", 0)  # the time left is known from the second step on
    words = ["--data", "folder:pets", "--epochs", "2", "--batch-size", "6", "--image-size", "8"]
    assert main(["train", *words, "--out", "run"]) == 0
    out = capsys.readouterr().out
    lines = re.findall(r"^train ./2, step ./3, loss \d+\.\d{4}(?:, \d+ s left)?$", out, re.MULTILINE)
    assert [line[:19] for line in lines] == [f"train {e}/2, step {s}/3" for e in (1, 2) for s in (1, 2)]
    assert ["left" in line for line in lines] == [False, True, True, True]
    assert main(["predict", "--checkpoint", "run", "pets", "--batch-size", "9"]) == 0
    assert "predicting 9/24" in capsys.readouterr().out
    words[words.index("2")], words[words.index("6")] = "1", "4"
    words += ["--method", "livt", "--backbone", "vit_digits", "--pretrain-epochs", "1", "--pretrain-batch-size", "6"]
    words += ["--warmup-epochs", "0"]
    assert main(["train", *words, "--out", "other"]) == 0
    lines = re.findall(r"^.* s left of .*$", capsys.readouterr().out, re.MULTILINE)
    assert re.fullmatch(r"pretrain 1/1, step 2/3, loss \d+\.\d{4}, \d+ s left of pretrain", lines[0])
