"""The command that repeats a run."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ltfast.cli.errors import flag
from ltfast.cli.options import DATA, as_word, options_of

_WITHOUT_ROOT = ("digits", "npz", "folder")  # data that are nowhere else


def command_of(metrics: Mapping[str, Any], out: Path) -> str:
    """The command with which a run of these `metrics.json` is trained, with the options that are not the default."""
    from ltfast.engine import RunSettings
    from ltfast.methods import METHODS

    settings = metrics["settings"]
    method = METHODS.get(settings.get("method", ""))
    options = [*DATA, *options_of(RunSettings), *([] if method is None else options_of(method.settings))]
    words = ["ltfast", "train"]
    if (processes := settings.get("processes", 1)) > 1:
        words = ["torchrun", "--nproc-per-node", str(processes), "-m", "ltfast", "train"]
    words += ["--method", str(settings.get("method"))]
    for option in options:
        value = settings.get(option.name, option.default)
        if option.name == "root" and str(settings.get("data")).partition(":")[0] not in _WITHOUT_ROOT:
            value = metrics.get("root")
        elif option.name in ("class_names", "class_weights") and isinstance(value, list):
            value = "FILE"  # the run has its content
        elif isinstance(value, list):
            value = tuple(value)
        if option.name != "data" and value == option.default:
            continue
        if option.type is bool:
            words.append(flag(option.name) if value else flag(f"no_{option.name}"))
        else:
            words += [flag(option.name), as_word(value)]
    return shlex.join([*words, "--out", str(out)])
