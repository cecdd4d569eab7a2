"""The package installs without a compiler, with a message; its build does not import torch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

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
