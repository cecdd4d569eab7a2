"""`ltfast info`."""

from collections.abc import Sequence

import ltfast
from ltfast.cli.parser import command_parser
from ltfast.terminal import say

ABOUT = "show versions, devices and the backend of each op on this machine"


def info(argv: Sequence[str]) -> int:
    command_parser("info", ABOUT).parse(argv)

    import platform

    import torch

    from ltfast import ops
    from ltfast.ops.core.backends import choice, describe

    say(f"ltfast {ltfast.__version__}")
    say(f"Python {platform.python_version()} on {platform.platform()}")
    for name in ("torch", "torchvision", "timm", "accelerate", "triton"):
        say(f"{name} {_version(name)}")
    say(f"CPU: {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        say(f"GPU {index}: {device.name}, {device.total_memory / 2**30:.0f} GiB")
        say(f"GPU {index}: {_launches(device.name)}")
    if not torch.cuda.is_available():
        say("GPU: none available to torch")
    for row in describe():
        say(f"backend {row['name']}: {row['status']}{f' ({detail})' if (detail := row['detail']) else ''}")
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    for op in ops.__all__:
        say(f"op {op}: " + ", ".join(f"{choice(torch.device(device))} on {device}" for device in devices))
    return 0


def _launches(chip: str) -> str:
    """Where the launch settings of a GPU's kernels are from."""
    from importlib.util import find_spec

    if find_spec("triton") is None:
        return "no Triton, so no kernels that have launch settings"

    from ltfast.ops.core import tuned

    found = len(tuned.found_on(chip))
    if found == 0:
        path = tuned.user_file(chip) or "the file of its option --out"
        return f"launch settings by rule; `ltfast tune` finds better ones and writes {path}"
    return f"{found} launch settings from {', '.join(map(str, tuned.files(chip)))}; the others by rule"


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
