"""The identity of a run: its settings, its data and its program. A resumed run must have those it was started with, and
all processes of a run must have the same."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather, pad_across_processes

from ltfast.engine.checkpoint import CheckpointError
from ltfast.engine.settings import RunSettings
from ltfast.errors import InputError
from ltfast.version import release

SAME_COMMAND = "Start all of them with the same command and data"  # advice if processes differ
_SHOWN = 5  # at most this many differences, and processes of each


def same_folder(out: Path) -> str:
    """Advice if processes find different files in the run's folder."""
    return f"All processes need one folder --out {out}, on a file system that they share"


def run_identity(
    run: RunSettings, settings: Mapping[str, Any], facts: Mapping[str, Any], class_counts: Sequence[int]
) -> dict[str, Any]:
    """The values that must be equal in all processes of a run. The number of image-loading processes may differ.

    Args:
        run, settings, facts, class_counts: see `ltfast.engine.loop.train`.
    """
    execution = {name: value for name, value in vars(run).items() if name != "workers"}
    data = {"class_counts": list(class_counts), **facts.get("digests", {})}
    return {**execution, **settings, **data, "ltfast": release(), "torch": torch.__version__}


def check_same_settings(
    path: Path, saved: Mapping[str, Any], current: Mapping[str, Any], *, onward: str | None = None
) -> None:
    """Refuse to continue a run with other settings.

    Args:
        path: the checkpoint.
        saved, current: the settings in the checkpoint, and those of the command.
        onward: see `Stage`, if the run is finished.

    Raises:
        CheckpointError: a setting differs; the message names each difference.
    """
    differ = [
        f"{name} was {saved.get(name)!r} and is now {current.get(name)!r}"
        for name in sorted({*saved, *current})
        if saved.get(name) != current.get(name)
    ]
    if differ:
        raise CheckpointError(
            f"checkpoint {path} belongs to a run with other settings: {'; '.join(differ)}. "
            "Run with the settings it was started with, or choose another --out"
            + _further(path, saved, current, onward)
        )


def _further(path: Path, saved: Mapping[str, Any], current: Mapping[str, Any], onward: str | None) -> str:
    """How to train on, if the command asks for other epochs of a finished run."""
    if onward is None or saved.get("epochs") == current.get("epochs"):
        return ""
    options = onward.format(run=path.parent, epochs=current.get("epochs"))
    return f". The run is finished; to train on from its weights, start a new run: {options} --out NEW"


def changed_data(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """The parts of the data that have changed, in words.

    Args:
        saved, current: facts of the data: `digests`, the hash of each part by name, and `class_names`. A part is
            compared only if both have its hash.
    """
    before, now = saved.get("digests", {}), current.get("digests", {})
    parts = [name for name in before if before[name] != now.get(name, before[name])]
    old, new = saved.get("class_names", []), current.get("class_names", [])
    renamed = [
        f"class {i} was {a!r} and is now {b!r}" for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b
    ]
    detail = (renamed or [f"{len(old)} classes were known and {len(new)} are now"])[0]
    return [f"{name} ({detail})" if name == "class names" else name for name in parts]


def check_same_data(path: Path, saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Refuse to continue a run with other data.

    Args:
        path: the checkpoint.
        saved, current: see `changed_data`.

    Raises:
        CheckpointError: a part of the data differs; the message names each difference.
    """
    if changed := changed_data(saved, current):
        raise CheckpointError(
            f"checkpoint {path} belongs to a run with other data. What differs: {', '.join(changed)}. "
            "Run with the data it was started with, or choose another --out"
        )


def check_processes(own: Mapping[str, Any], accelerator: Accelerator, *, hint: str) -> None:
    """Check that values are equal in all processes, which must all call it. A single process checks nothing.

    Args:
        own: plain values of this process, by name. A value is compared among the processes that have its name.
        accelerator: connects the processes.
        hint: advice for the end of the message.

    Raises:
        InputError: a value differs. All processes raise it; the message names each difference and its processes.
    """
    if accelerator.num_processes == 1:
        return
    # text, not an object: nothing that another machine sends is unpickled
    text = torch.frombuffer(bytearray(json.dumps(own).encode()), dtype=torch.uint8).to(accelerator.device)
    rows = gather(pad_across_processes(text)[None]).cpu()
    known = [json.loads(row.numpy().tobytes().rstrip(b"\0")) for row in rows]
    differences = []
    for name in dict.fromkeys(name for facts in known for name in facts):
        holders: dict[str, list[int]] = {}
        for process, facts in enumerate(known):
            if name in facts:
                holders.setdefault(repr(facts[name]), []).append(process)
        if len(holders) > 1:
            values = [f"{_short(value)} in {_processes(numbers)}" for value, numbers in holders.items()]
            differences.append(f"{name}: {', '.join(values)}")
    if differences:
        more = f"; and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
        raise InputError(f"the processes of this run differ. {'; '.join(differences[:_SHOWN])}{more}. {hint}")


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."


def _processes(numbers: Sequence[int]) -> str:
    if len(numbers) == 1:
        return f"process {numbers[0]}"
    more = f" and {len(numbers) - _SHOWN} more" if len(numbers) > _SHOWN else ""
    return f"processes {', '.join(map(str, numbers[:_SHOWN]))}{more}"
