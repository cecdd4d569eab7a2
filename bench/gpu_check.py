"""Everything that needs a GPU, in under nine minutes: `make gpu-check OUT=DIR [WHEELS=DIR]`.

    python bench/gpu_check.py OUT [--wheels DIR] [--dry]

Runs the parts below in turn with this Python, each in a process of its own until its deadline, without a network. Time
that a part does not use is left to those after it. What each part writes is in OUT/gpu-check.tar.gz, which is written
again twice a minute: `summary.jsonl` has a line for each part, NAME.log what it printed, and NAME/ its results.

A part needs modules and programs. What is missing is said at the start, and the part then fails as "cannot run". Wheels
in a folder are installed from there for this run alone. `--dry` needs no GPU and no packages but those that a machine
with PyTorch and the usual packages has: tiny sizes, Triton's interpreter, and stand-ins for NVIDIA's tools.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from gpu_check_dry import bare_environment

ROOT = Path(__file__).parents[1]
STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
ARCHIVE, SUMMARY = "gpu-check.tar.gz", "summary.jsonl"
ARCHIVE_SECONDS, GRACE_SECONDS = 30, 5
DRY_SECONDS = 10  # of a dry run, for each second of a part: its machine has two cores, and others use them


@dataclass(frozen=True)
class Part:
    """A command, in the words of a shell.

    Attributes:
        command: with {python}, {device} (cuda, or cpu if dry), {build} (a folder), {out} (its folder) and {name}.
        seconds: the time that it adds to the deadline.
        needs: modules and programs.
        dry: the command of a dry run, if it is another one.
        exit_code: of success.
    """

    name: str
    seconds: int
    command: str
    needs: tuple[str, ...] = ()
    dry: str | None = None
    exit_code: int = 0


BENCH = "{python} bench/gpu_check_bench.py {name} {device} {out}"
BENCH_NEEDS = ("psutil", "rich", "timm", "accelerate", "torchvision", "matplotlib")
CONFIGURE = (
    "cmake -S csrc -B {build} -G Ninja -DPython_EXECUTABLE={python} -DLTFAST_CUDA=on "
    "-Dpybind11_DIR=$({python} -m pybind11 --cmakedir)"
)
TESTS = (
    "{python} -m pytest tests/ops tests/losses tests/faults tests/benchmark tests/data "
    "tests/frameworks/test_compute_loss.py -p gpu_check_tests -p no:cacheprovider"
)
TEST_NEEDS = ("pytest", "xdist", "hypothesis", "mpmath", "scipy", "timm", "accelerate", "torchmetrics", "rich")
KERNELS = "{python} bench/gpu_check_kernels.py {device}"
# the filter has the spelling of compute-sanitizer, which ignores that of the profiler and then checks every kernel
SANITIZER = (
    "PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool {tool} --error-exitcode 9 --report-api-errors no "
    "--kernel-name regex=_kernel " + KERNELS
)
NCU = (
    "ncu --clock-control none --set full --profile-from-start off --kernel-name regex:^_.*_kernel --csv "
    "--log-file {out}/ncu.csv {python} bench/gpu_check_bench.py profile {device} {out}"
)

# an op at a time, since each file is written at the end
TUNE = (
    "bad=0; for op in queue_softmax agcl balanced_bce vmf_cross_entropy cross_entropy; do "
    "{python} -m ltfast tune --ops $op --out {out}/$op.json || bad=1; done; exit $bad"
)

PARTS = (
    Part(
        "build", 70, f"{CONFIGURE} && cmake --build {{build}} && cp {{build}}/_native*.so ltfast/",
        ("cmake", "ninja", "nvcc", "pybind11"), dry=f"{CONFIGURE.replace('=on', '=off')} && ninja -C {{build}} -n",
    ),
    Part("info", 10, "{python} -m ltfast info"),
    Part("compile", 35, BENCH, BENCH_NEEDS),
    Part("goals", 45, BENCH, BENCH_NEEDS),
    Part("torch.compile", 40, BENCH, BENCH_NEEDS),
    Part("rest", 50, BENCH, BENCH_NEEDS),
    Part("longest", 15, BENCH, BENCH_NEEDS),
    # each process compiles what its tests need, and the others find it in the cache
    Part(
        "tests", 110, TESTS + " -m gpu -n 12 --dist worksteal", TEST_NEEDS,
        dry=TESTS + " -n 1 -m 'gpu or slow' -k 'gpu or test_opcheck and balanced and triton-interpreter'",
    ),
    Part("memcheck-finds", 15, SANITIZER.replace("{tool}", "memcheck") + " --past-the-end", ("compute-sanitizer",),
         exit_code=9),
    Part("memcheck", 20, SANITIZER.replace("{tool}", "memcheck"), ("compute-sanitizer",)),
    Part("racecheck", 20, SANITIZER.replace("{tool}", "racecheck"), ("compute-sanitizer",)),
    Part("ncu", 25, NCU, (*BENCH_NEEDS, "ncu")),
    Part("tune", 40, TUNE, BENCH_NEEDS, dry="{python} -m ltfast tune --help"),
    Part("step", 30, BENCH, BENCH_NEEDS),
)  # fmt: skip

# small wheels without which something is left out, and not worth a failure
PEERS = {"liger_kernel": "liger-kernel (0.9 MB)", "cut_cross_entropy": "cut-cross-entropy (0.02 MB)"}
PROBE = """
import importlib.util as util, json, sys, torch
gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
def there(name):
    try:
        return util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False
print(json.dumps({"gpu": gpu, "torch": torch.__version__, "cuda": torch.version.cuda,
                  "python": sys.version.split()[0], "modules": [name for name in sys.argv[1:] if there(name)]}))
"""


class Stopped(BaseException):
    """The whole was told to stop."""


class Check:
    """A run of the parts.

    Args:
        out: the folder of the archive.
        folder: for everything else, which is deleted afterwards.
        python: the interpreter of the parts.
        environment: their environment variables.
        dry: see the module.
    """

    def __init__(self, out: Path, folder: Path, python: str, environment: dict[str, str], *, dry: bool) -> None:
        self.out, self.folder, self.python, self.environment, self.dry = out, folder, python, environment, dry
        self.results = folder / "results"
        self.results.mkdir()
        self.started = self.archived = time.monotonic()

    def probe(self, parts: tuple[Part, ...]) -> set[str]:
        """Says what is missing. Returns the names that are there."""
        names = {*(name for part in parts for name in part.needs), *PEERS}
        command = [self.python, "-c", PROBE, *sorted(names)]
        found = subprocess.run(command, env=self.environment, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        if found.returncode != 0:
            sys.exit(f"gpu-check: {self.python} cannot import torch: give a Python that has it (make PYTHON=...)")
        facts = json.loads(found.stdout)
        if facts["gpu"] is None and not self.dry:
            sys.exit("gpu-check: PyTorch finds no CUDA device: run it on a machine with a GPU, or with DRY=1")
        path = self.environment["PATH"]
        there = {*facts.pop("modules"), *(name for name in names if shutil.which(name, path=path))}
        self.say({"part": "machine", "status": "passed", **facts})
        for name in sorted({name for part in parts for name in part.needs} - there):
            users = ", ".join(part.name for part in parts if name in part.needs)
            print(f"missing: {name}, which {users} needs; carry its wheel (WHEELS=DIR) or install it", flush=True)
        for name in PEERS.keys() - there:
            print(f"left out: the peer of {PEERS[name]}, whose wheel is missing", flush=True)
        return there

    def run(self, parts: tuple[Part, ...]) -> bool:
        """Runs the parts. Returns whether all succeeded."""
        deadline, good = 0, True
        try:
            there = self.probe(parts)
            for part in parts:
                deadline += part.seconds * (DRY_SECONDS if self.dry else 1)
                missing = [name for name in part.needs if name not in there]
                if missing:
                    self.say({"part": part.name, "status": f"cannot run: needs {', '.join(missing)}"})
                    good = False
                else:
                    good &= self.run_part(part, self.started + deadline)
                self.archive()
        except Stopped:
            self.say({"part": "all", "status": "stopped"})
            good = False
        self.archive()
        return good

    def run_part(self, part: Part, deadline: float) -> bool:
        """Runs a part and ends all processes that it started."""
        out = self.results / part.name
        out.mkdir()
        command = part.dry if self.dry and part.dry is not None else part.command
        device = "cpu" if self.dry else "cuda"
        words = command.format(python=self.python, device=device, build=self.folder / "build", out=out, name=part.name)
        environment = self.environment | {"GPU_CHECK_OUT": str(out)}
        started, status, code = time.monotonic(), "stopped", None
        with (self.results / f"{part.name}.log").open("w") as log:
            process = subprocess.Popen(
                ["bash", "-c", words], cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
            try:
                code = self.wait(process, deadline)
                status = "timed out" if code is None else "passed" if code == part.exit_code else "failed"
            finally:
                self.end(process)
                seconds = round(time.monotonic() - started, 1)
                self.say({"part": part.name, "status": status, "exit": code, "seconds": seconds})
        if status != "passed":
            lines = (self.results / f"{part.name}.log").read_text(errors="replace").splitlines()
            print(*(f"    {line[:160]}" for line in lines[-6:]), sep="\n", flush=True)
        return status == "passed"

    def wait(self, process: subprocess.Popen[bytes], deadline: float) -> int | None:
        """The exit code, or None at the deadline."""
        while time.monotonic() < deadline:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(min(ARCHIVE_SECONDS, max(deadline - time.monotonic(), 0.01)))
            if time.monotonic() - self.archived > ARCHIVE_SECONDS:
                self.archive()
        return None

    def end(self, process: subprocess.Popen[bytes]) -> None:
        """Ends the process and its children: by an interrupt, so that it can write what it has, then by force."""
        for number in (signal.SIGINT, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_SECONDS)

    def say(self, line: dict[str, object]) -> None:
        print(", ".join(f"{key} {value}" for key, value in line.items()), flush=True)
        with (self.results / SUMMARY).open("a") as file:
            print(json.dumps(line), file=file)

    def archive(self) -> None:
        """Writes the archive anew; at each moment there is a whole one."""
        partial = self.folder / ARCHIVE
        with tarfile.open(partial, "w:gz") as tar:
            tar.add(self.results, "gpu-check")
        self.out.mkdir(parents=True, exist_ok=True)
        shutil.copy(partial, self.out / f"{ARCHIVE}.partial")
        os.replace(self.out / f"{ARCHIVE}.partial", self.out / ARCHIVE)
        self.archived = time.monotonic()


def install(wheels: Path, target: Path) -> None:
    files = sorted(wheels.glob("*.whl"))
    if not files:
        sys.exit(f"gpu-check: there is no wheel in {wheels}: give the folder that has them (WHEELS=DIR)")
    options = ["--quiet", "--no-index", "--no-deps", "--no-compile", "--target", target]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, *files], check=True)


def stop(number: int, frame: FrameType | None) -> None:
    for each in STOPS:
        signal.signal(each, signal.SIG_IGN)
    raise Stopped


def main(parts: tuple[Part, ...] = PARTS) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="the folder of the archive")
    parser.add_argument("--wheels", type=Path, help="a folder of wheels to use beside the packages of this Python")
    parser.add_argument("--dry", action="store_true", help="try every part without a GPU")
    args = parser.parse_args()
    for number in STOPS:
        signal.signal(number, stop)
    with tempfile.TemporaryDirectory(prefix="gpu-check-", ignore_cleanup_errors=True) as name:
        folder, python = Path(name), sys.executable
        paths = [str(ROOT), str(ROOT / "bench")]
        # a test that runs this file may itself be in a process of pytest-xdist
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        environment["TRITON_CACHE_DIR"] = str(folder / "triton")
        if args.wheels is not None:
            install(args.wheels, folder / "wheels")
            paths.append(str(folder / "wheels"))
        if args.dry:
            python = bare_environment(folder / "env")
            environment |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
        elif "PYTHONPATH" in environment:
            paths.append(environment["PYTHONPATH"])
        environment["PYTHONPATH"] = os.pathsep.join(paths)
        environment["PATH"] = os.pathsep.join([str(Path(python).parent), environment["PATH"]])
        good = Check(args.out.resolve(), folder, python, environment, dry=args.dry).run(parts)
    print(f"gpu-check: {'all parts passed' if good else 'some parts failed'}; results in {args.out / ARCHIVE}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
