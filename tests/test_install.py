"""The package installs without a compiler, with a message; its build does not import torch; `make wheel` makes a wheel
that needs no compiler; git tags give the version."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from ltfast.engine import RunSettings
from ltfast.engine.identity import run_identity
from ltfast.ops.core import backends, tuned

ROOT = Path(__file__).parents[1]


def install(target: Path, build: Path, *, succeeds: bool = True, **environment: str) -> str:
    command = [
        sys.executable, "-m", "pip", "install", "-v", "--no-build-isolation", "--no-deps", "--no-index",
        "--config-settings", f"build-dir={build}", "--target", str(target), str(ROOT),
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    assert (result.returncode == 0) == succeeds, result.stdout + result.stderr
    return result.stdout + result.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"LTFAST_NATIVE": "off"}, None),
        ({"CXX": "/nonexistent/c++", "CC": "/nonexistent/cc"}, "ltfast was installed WITHOUT its C++ kernels"),
    ],
    ids=["off", "no compiler"],
)
def test_installs_without_native_kernels(tmp_path, environment, message):
    log = install(tmp_path / "site", tmp_path / "build", **environment)
    assert message is None or message in log
    assert list(tmp_path.glob("site/ltfast/_native*")) == []
    assert (tmp_path / "site/ltfast/recipes/ce/digits.yaml").is_file()
    assert (tmp_path / "site/ltfast/py.typed").is_file()


def test_cuda_kernels_that_are_insisted_on(tmp_path):
    environment = {"LTFAST_CUDA": "on", "CUDACXX": "/nonexistent/nvcc"}
    log = install(tmp_path / "site", tmp_path / "build", succeeds=False, **environment)
    assert "LTFAST_CUDA is on, and there is no nvcc of CUDA 12.1 or later" in log
    assert not (tmp_path / "site").exists()


def test_csrc_does_not_see_pytorch():
    sources = [path for path in (ROOT / "csrc").rglob("*") if path.is_file()]
    assert sources
    for path in sources:
        includes = [line for line in path.read_text().splitlines() if line.startswith(("#include", "find_package"))]
        assert not any("torch" in line.lower() or "aten" in line.lower() for line in includes), path


def version_of(source: Path) -> str:
    """The version of an sdist made there."""
    out = source.with_name(f"sdist-{len(list(source.parent.iterdir()))}")
    command = [sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", out, source]
    subprocess.run(command, capture_output=True, check=True)
    [sdist] = out.iterdir()
    return sdist.name.removeprefix("ltfast-").removesuffix(".tar.gz")


@pytest.mark.slow
def test_version_from_git_tags(tmp_path):
    source, shallow = tmp_path / "source", tmp_path / "shallow"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    assert version_of(source) == "0.1.dev0"

    def git(*words: str) -> None:
        name = ["-c", "user.name=Test", "-c", "user.email=test@example.org"]
        subprocess.run(["git", "-C", source, *name, *words], check=True, capture_output=True)

    git("init", "--quiet")
    git("add", "--all")
    git("commit", "--message", "one")
    assert re.fullmatch(r"0\.1\.dev1\+g[0-9a-f]+", version_of(source))
    subprocess.run(["git", "clone", "--quiet", "--depth=1", f"file://{source}", shallow], check=True)
    assert version_of(shallow) == version_of(source)
    git("tag", "v0.2.0")
    assert version_of(source) == "0.2.0"
    git("commit", "--allow-empty", "--message", "two")
    assert re.fullmatch(r"0\.2\.1\.dev1\+g[0-9a-f]+", version_of(source))


def test_version_of_what_is_not_installed(monkeypatch):
    import ltfast

    assert ltfast.__version__ == importlib.metadata.version("ltfast")

    def version(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert ltfast.__version__ == "unknown (not installed)"


@pytest.mark.parametrize("version", ["0.2.0", "0.2.0.dev3+gabc1234", "0.2.0.dev4+gabc1235.d20260101"])
def test_the_release_is_the_same_at_each_commit(version, monkeypatch):
    """Otherwise no run could be continued, and no launch setting be used, after an update to another commit."""
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    assert run_identity(RunSettings(), {}, {}, [])["ltfast"] == "0.2.0"
    assert tuned.versions()["ltfast"] == "0.2.0"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="`make wheel` makes a manylinux wheel")
def test_wheel_without_a_compiler(tmp_path):
    prefix, folder, environment = Path(sys.prefix), tmp_path / "wheels", tmp_path / "environment"
    make = ["make", "-C", ROOT, f"--old-file={prefix}/.installed", f"VENV={prefix}", f"DIST={folder}", "wheel"]
    result = subprocess.run(make, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    [sdist], [wheel] = folder.glob("*.tar.gz"), folder.glob("*.whl")
    assert "manylinux" in wheel.name

    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"PKG-INFO", "csrc/CMakeLists.txt", "csrc/cuda/taylor.cu", "ltfast/__init__.py"} <= names
    assert not any(name.startswith(("tests/", "bench/", ".ci/")) for name in names)
    assert not any("_native" in name and name.endswith(".so") for name in names)
    with zipfile.ZipFile(wheel) as archive:
        libraries = [name for name in archive.namelist() if ".so" in name]
    assert libraries == [name for name in libraries if name.startswith("ltfast/_native.")], "libraries of others"
    assert len(libraries) == 1

    # PyTorch and the other packages are those of this environment, without this ltfast
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    python = environment / "bin/python"
    subprocess.run([python, "-m", "pip", "install", "--no-deps", "--no-index", wheel], check=True)
    [site] = environment.glob("lib/python*/site-packages")
    (site / "zz_packages.pth").write_text(f"{importlib.metadata.distribution('torch').locate_file('')}\n")

    def run(*command: str | Path) -> str:
        result = subprocess.run(
            command,
            capture_output=True,
            text=True,
            cwd="/",
            env={"PATH": str(environment / "bin"), "HOME": str(tmp_path)},
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    shown = run(python, "-I", ROOT / ".ci/check_wheel.py")
    assert "compilers: none" in shown
    native = next(row for row in backends.describe() if row["name"] == "native")
    assert f"{native['detail'].partition(';')[0]};" in shown, "the instruction sets differ from those of this build"
    version = sdist.name.removeprefix("ltfast-").removesuffix(".tar.gz")
    assert f"-{version}-" in wheel.name
    shown = run(environment / "bin/ltfast", "info")
    assert f"ltfast {version}\n" in shown
    assert "backend native: available" in shown
