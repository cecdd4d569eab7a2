"""Tests the checks between the processes of a run before they train."""

import dataclasses
import json
from pathlib import Path

import torch

from distributed.harness import run_processes
from ltfast.data import ArrayDataset, DataBundle
from ltfast.engine import RunSettings
from ltfast.engine.accelerator import make_accelerator
from ltfast.engine.identity import check_processes
from ltfast.engine.loop import train
from ltfast.errors import InputError
from ltfast.methods import METHODS, BuildContext, settings_of

NAMES = ["a", "b"]
EACH = {  # the different value of the second process
    "nothing": {},
    "workers": {"workers": 1},
    "seed": {"seed": 1},
    "precision": {"precision": "bf16"},
    "accumulate": {"accumulate": 2},
    "augment_on": {"augment_on": "device"},
    "checkpoint_minutes": {"checkpoint_minutes": 0.0},
    "batch_size": {"batch_size": 2},
    "images": {},
    "labels": {},
    "names": {},
}


def bundle_of(changed):
    images = torch.arange(8 * 64, dtype=torch.uint8).reshape(8, 8, 8).numpy()
    labels, names = torch.arange(8) % 2, NAMES
    if changed == "images":
        images = 255 - images
    elif changed == "labels":
        labels = labels.flip(0)
    elif changed == "names":
        names = ["a", "zebra"]
    data = ArrayDataset(images, labels, names)
    return DataBundle(data, data, (0.5,), (0.25,), image_size=8, channels=1)


def start(rank, folder):
    """For each case, the error that `train` raises in this process before its first step, or that it has begun."""
    said = {}
    for case, changes in EACH.items():
        changes = changes if rank else {}
        known = {field.name for field in dataclasses.fields(RunSettings)}
        run = RunSettings(**{name: value for name, value in changes.items() if name in known})
        values = {"batch_size": 4, "backbone": "digits_convnet", "epochs": 1}
        values |= {name: value for name, value in changes.items() if name not in known}
        bundle = bundle_of(case if rank else None)
        accelerator = make_accelerator("fp32")
        plan = METHODS["ce"].build(
            settings_of("ce", values), bundle, BuildContext(run, rank, accelerator.num_processes)
        )

        def begun():
            raise KeyboardInterrupt

        plan.stages[0].start = begun
        try:
            train(
                plan,
                run=run,
                settings=values,
                facts={"class_names": bundle.class_names, "digests": bundle.digests()},
                class_counts=bundle.class_counts,
                groups={},
                out=Path(folder) / case,
                accelerator=accelerator,
            )
        except KeyboardInterrupt:
            said[case] = "begun"
        except InputError as error:
            said[case] = str(error)
    return json.dumps(said)


def test_what_differs_is_named_in_all_processes(tmp_path):
    first, second = (json.loads(said) for said in run_processes(start, 2, str(tmp_path)))
    assert first == second
    assert first.pop("nothing") == first.pop("workers") == "begun"
    expected = {
        "seed": "seed: 0 in process 0, 1 in process 1",
        "precision": "precision: 'fp32' in process 0, 'bf16' in process 1",
        "accumulate": "accumulate: 1 in process 0, 2 in process 1",
        "augment_on": "augment_on: 'cpu' in process 0, 'device' in process 1",
        "checkpoint_minutes": "checkpoint_minutes: 10.0 in process 0, 0.0 in process 1",
        "batch_size": "batch_size: 4 in process 0, 2 in process 1",
    }
    for case, text in expected.items():
        hint = "Start all of them with the same command and data"
        assert first.pop(case) == f"the processes of this run differ. {text}. {hint}"
    parts = {"images": ("training images", "test images"), "labels": ("training labels", "test labels")}
    for case, names in {**parts, "names": ("class names",)}.items():
        said = first.pop(case)
        assert [part.split(":")[0] for part in said.split(". ")[1].split("; ")] == list(names)
    assert not first


def compare(rank):
    """The messages of `check_processes` for unusual values."""
    accelerator = make_accelerator("fp32")
    own = {"same": [1, 2.5, None, "ü"], "long": [0] * 100 + [rank], "only here": 1, "many": rank // 2}
    if rank:
        del own["only here"]
    try:
        check_processes(own, accelerator, hint="Do.")
    except InputError as error:
        return str(error)
    return ""


def test_long_values_and_many_processes_are_cut_short():
    said = run_processes(compare, 8)
    assert len(set(said)) == 1
    zeros = f"{str([0] * 100)[:77]}..."
    groups = [f"{number} in processes {2 * number}, {2 * number + 1}" for number in range(4)]
    assert said[0].startswith(f"the processes of this run differ. long: {zeros} in process 0, {zeros} in process 1, ")
    assert said[0].endswith(f"; many: {', '.join(groups)}. Do.")
    assert run_processes(compare, 1) == [""]
