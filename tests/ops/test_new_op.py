"""A new op is its folder and a line in each of two lists. Everything that iterates over the list of ops then has it.

The test adds ``squared_error``, which lies beside this file, to a copy of the package.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import ltfast
from ltfast.ops.core import backends
from ops.conftest import NO_TRITON

HERE = Path(__file__).parent
EDITS = {  # file -> the text to be replaced, and what replaces it
    "ops/__init__.py": [
        ("\n__all__ = [", "from ltfast.ops.squared_error import squared_error\n\n__all__ = [\n    'squared_error',"),
    ],
    "ops/catalog.py": [
        ("\nOPS = (", "from ltfast.ops.squared_error.cases import CASES as SQUARED_ERROR\n\nOPS = (SQUARED_ERROR, "),
    ],
}
TESTS = ["test_every_op.py", "test_autocast.py", "test_backends.py", "test_transforms.py"]
# the copy must hide the installed package, wherever its finder looks
RUN = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "Scikit" not in type(finder).__name__]
sys.path[:0] = [{copy!r}, {tests!r}]
import ltfast
assert ltfast.__file__.startswith({copy!r}), ltfast.__file__
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the package with the op in it."""
    folder = tmp_path_factory.mktemp("copy")
    package = folder / "ltfast"
    shutil.copytree(Path(ltfast.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__", "_native*"))
    shutil.copy(backends.native().__file__, package)
    shutil.copytree(HERE / "squared_error", package / "ops" / "squared_error")
    for name, edits in EDITS.items():
        text = (package / name).read_text()
        for old, new in edits:
            assert text.count(old) == 1
            text = text.replace(old, new)
        (package / name).write_text(text)
    return folder


def python(copy: Path, script: str, **variables: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | variables
    start = RUN.format(copy=str(copy), tests=str(HERE.parent))
    result = subprocess.run(
        [sys.executable, "-c", start + script], capture_output=True, text=True, env=environment, cwd=HERE.parents[1]
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.slow
def test_the_tests_of_every_op_have_it(copy):
    words = ["-p", "no:cacheprovider", "-p", "no:xdist", "-k", "squared_error or the_list", "--confcutdir", str(HERE)]
    interpreter = {} if NO_TRITON else {"TRITON_INTERPRET": "1"}
    files = [str(HERE / name) for name in TESTS]
    out = python(copy, f"import pytest; sys.exit(pytest.main({[*words, *files]!r}))", **interpreter)
    passed = int(out.rpartition(" passed")[0].split()[-1])
    assert passed > 20


@pytest.mark.slow
@pytest.mark.skipif(NO_TRITON is not None, reason=str(NO_TRITON))
def test_it_is_compiled_ahead_of_time(copy):
    script = f"""
sys.path.insert(0, {str(HERE.parents[1] / "bench")!r})
import count_kernels
from ltfast.ops.catalog import OPS
count_kernels.OPS = [op for op in OPS if "squared_error" in op.examples]
count_kernels.main("sm_90")
"""
    lines = python(copy, script).splitlines()
    assert len([line for line in lines if '"kernel": "squared_error' in line]) == 4


@pytest.mark.slow
def test_the_benchmark_times_it(copy):
    script = "from ltfast.cli import main; sys.exit(main(['bench', '--ops', 'squared_error', '--seconds', '0.01']))"
    assert "squared_error 32 x 10" in python(copy, script)
