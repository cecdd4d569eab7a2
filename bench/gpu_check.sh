#!/usr/bin/env bash
# Runs everything that needs a GPU in less than nine minutes: builds csrc, and runs the GPU tests, compute-sanitizer on
# small shapes, and the benchmark. Results go to the output folder. It uses the given Python without installing
# anything or accessing the network: torch, pybind11, cmake, ninja and the dependencies of `pip install 'ltfast[test]'`
# must be installed.
#
#     bash bench/gpu_check.sh python3 OUT
set -uo pipefail
cd "$(dirname "$0")/.."
python=${1:?python}
out=$(realpath -m "${2:?output folder}")
mkdir -p "$out"
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}

"$python" - <<'END' || exit 2
import sys, torch
if not torch.cuda.is_available():
    sys.exit("gpu-check: PyTorch finds no CUDA device; run it on a machine with a GPU")
print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}")
END

failed=0
stage() {  # stage NAME SECONDS COMMAND...
  local name=$1 seconds=$2 started=$SECONDS
  shift 2
  timeout --signal=INT --kill-after=10 "$seconds" "$@" >"$out/$name.log" 2>&1
  local code=$?
  echo "$name: exit $code after $((SECONDS - started)) s" | tee -a "$out/summary.txt"
  tail -n 5 "$out/$name.log"
  [ $code -eq 0 ] || failed=1
}

build() {
  cmake -S csrc -B build/gpu -G Ninja -DPython_EXECUTABLE="$(command -v "$python")" \
    -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" && cmake --build build/gpu && cp build/gpu/_native*.so ltfast/
}
export -f build
export python

: >"$out/summary.txt"
stage build 100 bash -c build
stage tests 140 "$python" -m pytest tests/ops -m gpu -x --junitxml="$out/tests.xml"
small='gpu and float32 and ((test_loss_and_gradient or test_labels) and (101 or 9001) or test_results_and_gradients or test_values_and_gradients or test_update_of_all_dtypes or test_threshold) or gpu and test_masks_copy_bits'
for tool in memcheck racecheck; do
  stage "$tool" 60 compute-sanitizer --tool "$tool" --error-exitcode 9 --kernel-name regex:_kernel \
    "$python" -m pytest tests/ops -m gpu -k "$small"
done
stage bench 150 "$python" -m ltfast bench --device cuda --seconds 0.1 --out "$out"
stage steps 40 "$python" -m ltfast bench step --device cuda --out "$out"
cat "$out/summary.txt"
exit $failed
