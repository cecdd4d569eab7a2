"""How csrc/ is built: an op is one file, and no processor runs code for another."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NEGATE = """
#include "../op.h"

struct NegateArguments {
  Dtype dtype;
  void* values;
  int64_t count;
};
LTFAST_KERNEL(NegateArguments);

#ifdef LTFAST_ISA

#include "../kernel.h"

namespace {
template <class T>
void negate(const NegateArguments& a) {
  T* values = static_cast<T*>(a.values);
  for (int64_t i = 0; i < a.count; ++i) store(values[i], -load(values[i]));
}
}  // namespace

void kernel(On<kIsa>, const NegateArguments& a) {
  by_dtype(a.dtype, [&](auto zero) { negate<decltype(zero)>(a); });
}

#else

#include "../binding.h"

namespace {
void negate(const std::string& dtype, uintptr_t values, int64_t count) {
  run(NegateArguments{parse_dtype(dtype), at(values), count});
}
LTFAST_DEFINE(negate);
}  // namespace

#endif
"""
CALL = """
import array, _native
for isa in _native.isas():
    _native.use_isa(isa)
    values = array.array("d", range(100))
    _native.negate("float64", values.buffer_info()[0], 100)
    assert list(values) == [-i for i in range(100)], isa
"""


def run(*command: object, **options: object) -> str:
    result = subprocess.run([str(word) for word in command], capture_output=True, text=True, **options)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.slow
@pytest.mark.skipif(not all(map(shutil.which, ("cmake", "ninja", "nm", "objdump"))), reason="no cmake or binutils")
def test_a_new_op_is_one_file(tmp_path):
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    for path in (tmp_path / "csrc/ops").iterdir():
        if path.name not in ("half_normal.cpp", "scale_rows.cpp", "taylor.cpp"):  # the others take minutes
            path.unlink()
    (tmp_path / "csrc/ops/negate.cpp").write_text(NEGATE)
    pybind11 = run(sys.executable, "-m", "pybind11", "--cmakedir").strip()
    build = tmp_path / "build"
    run(
        "cmake", "-S", tmp_path / "csrc", "-B", build, "-G", "Ninja", "-DLTFAST_CUDA=off",
        f"-Dpybind11_DIR={pybind11}", f"-DPython_EXECUTABLE={sys.executable}",
    )  # fmt: skip
    run("cmake", "--build", build)
    run(sys.executable, "-c", CALL, cwd=build)

    objects = list(build.glob("CMakeFiles/kernels_*.dir/**/*.o"))
    assert objects
    for path in objects:
        symbols = [line.split(maxsplit=2) for line in run("nm", "--defined-only", "--demangle", path).splitlines()]
        # Of a weak symbol the linker keeps one copy for all instruction sets. The exception is a pointer, not code.
        shared = [name for _, kind, name in symbols if kind not in "tTrRdb" and not name.startswith("DW.ref.")]
        assert shared == [], path
        assert all(name.startswith("kernel(On<") for _, kind, name in symbols if kind == "T"), path
        headers = run("objdump", "--section-headers", path)
        assert ".init_array" not in headers, path
