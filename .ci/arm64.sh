#!/usr/bin/env bash
# Builds csrc for arm64 with a cross-compiler, and runs the tests of the native ops in an arm64 Debian under qemu-user.
# Takes about 20 minutes on two cores. Needs root, and installs Debian packages. Arguments go to pytest.
#
#     .ci/arm64.sh [FOLDER] [PYTEST_ARGUMENT ...]
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(realpath -m "${1:-build/arm64}")
shift || true
root=$work/root python=${PYTHON:-.venv/bin/python}
mkdir -p "$work"

apt-get update
apt-get install -y --no-install-recommends cmake g++-aarch64-linux-gnu mmdebstrap ninja-build qemu-user-static
# the kernel then starts arm64 programs through qemu, also in the chroot
mountpoint -q /proc/sys/fs/binfmt_misc || mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc
[ -e /proc/sys/fs/binfmt_misc/qemu-aarch64 ] || echo ':qemu-aarch64:M::\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00:\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:/usr/bin/qemu-aarch64-static:F' > /proc/sys/fs/binfmt_misc/register

# Debian 12 has Python 3.11. Its packages are only unpacked: their installation would run under qemu, for half an hour.
# torch.compile needs g++ and the name of the user.
if [ ! -e "$root/etc/passwd" ]; then
  mmdebstrap --arch=arm64 --variant=extract --hook-dir=/usr/share/mmdebstrap/hooks/merged-usr \
    --include=coreutils,dash,g++,libpython3.11-dev,python3 bookworm "$root" http://deb.debian.org/debian
  mkdir -p "$root/proc" "$root/root"
  echo 'root:x:0:0::/root:/bin/sh' > "$root/etc/passwd"
fi
# PyTorch's wheels for arm64 contain CUDA from 2.10 on; 2.9.1 is the last small one. pip would choose the dependencies of
# this machine, with CUDA, so all that is needed is named.
[ -d "$root/opt/site" ] || "$python" -m pip install --target "$root/opt/site" --no-deps --only-binary=:all: \
  --python-version 3.11 --implementation cp --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 \
  --platform manylinux_2_17_aarch64 --platform manylinux2014_aarch64 torch==2.9.1 torchvision==0.24.1 numpy==2.3.5 \
  scipy==1.17.1 execnet filelock fsspec hypothesis iniconfig jinja2 markupsafe mpmath networkx packaging pillow pluggy \
  pygments pytest pytest-xdist setuptools sortedcontainers sympy typing-extensions

cmake -S csrc -B "$work/build" -G Ninja -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
  -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ -DCMAKE_CXX_FLAGS="-I$root/usr/include" \
  -DPython_EXECUTABLE="$(realpath -s "$python")" -DPython_INCLUDE_DIR="$root/usr/include/python3.11" \
  -DPYTHON_MODULE_EXTENSION=.cpython-311-aarch64-linux-gnu.so -DLTFAST_CUDA=off \
  -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)"
cmake --build "$work/build"

rm -rf "$root/src"
mkdir "$root/src"
git ls-files -z | xargs -0 cp --parents -t "$root/src"
cp "$work"/build/_native*.so "$root/src/ltfast"
for folder in proc dev; do mountpoint -q "$root/$folder" || mount --rbind --make-rslave "/$folder" "$root/$folder"; done
trap 'umount -R -l "$root/proc" "$root/dev"' EXIT
# Threads that wait would spin, and take the core from the one that qemu runs. Hypothesis' profile "ci" allows slow draws.
env -i PATH=/usr/sbin:/usr/bin PYTHONPATH=/src:/opt/site PYTHONDONTWRITEBYTECODE=1 HOME=/root OMP_WAIT_POLICY=passive \
  OMP_NUM_THREADS=1 chroot "$root" sh -c 'cd /src && exec python3 -u -m pytest tests/ops --numprocesses auto \
  --dist worksteal -m "not slow" -k "not reference and not triton" -p no:cacheprovider --hypothesis-profile ci "$@"' sh "$@"
