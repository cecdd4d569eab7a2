"""A trained method from its checkpoint."""

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from ltfast.data import DataBundle, load
from ltfast.engine import Plan, Predictor, RunSettings, schema
from ltfast.engine.checkpoint import CheckpointError, check_content, check_position, load_checkpoint, load_weights
from ltfast.engine.schema import anything, integer, list_of, one_of, record
from ltfast.errors import InputError, InputNotFoundError
from ltfast.methods import METHODS, settings_of

_FACTS = ("source", "root", "class_names", "class_counts", "mean", "std", "image_size", "channels")


@dataclass(frozen=True)
class Trained:
    """What a checkpoint holds, ready to be evaluated.

    Attributes:
        plan: the stages, on the CPU, and the test batches.
        predictor: the run's; of a run that is not finished, the last stage that was trained.
        source: whose test images these are.
        settings: the run's.
        facts: what `facts_of` told of the training data.
        unfinished: where the run is, and what is evaluated, in words; None if it is finished.
    """

    plan: Plan
    predictor: Predictor
    source: str
    settings: dict[str, Any]
    facts: dict[str, Any]
    unfinished: str | None


def facts_of(bundle: DataBundle, source: str, root: str | Path) -> dict[str, Any]:
    """What `restore` needs to know of the training data, as plain values."""
    kind, _, name = source.partition(":")
    return {
        # the paths of a run hold in any folder
        "source": f"{kind}:{_absolute(name)}" if kind in ("npz", "folder", "list") else source,
        "root": _absolute(root),
        "class_names": bundle.class_names,
        "class_counts": bundle.class_counts,
        "mean": list(bundle.mean),
        "std": list(bundle.std),
        "image_size": bundle.image_size,
        "channels": bundle.channels,
    }


def restore(
    checkpoint: Path,
    *,
    run: RunSettings,
    batch_size: int = 256,
    source: str | None = None,
    root: str | Path | None = None,
    aggregate: str | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> Trained:
    """The trained stages of a run, and test batches.

    Args:
        checkpoint: the file, or the run's folder.
        run: how to evaluate; the seed is the training's.
        batch_size: test images a batch.
        source: the data whose test images to use; None means the run's own.
        root: folder of the images, as for `ltfast.data.load`; None means the run's own.
        aggregate: how a method with sub-models weights them; None means the run's own way.
        rank, world_size: this process, and how many there are.

    Raises:
        FileNotFoundError: there is no checkpoint, or no data.
        CheckpointError: the checkpoint cannot be read or used, or no stage of it that gives class scores is trained.
        ValueError: the data's classes or channels are not those of the training, or the method cannot `aggregate` so.
    """
    try:
        saved = load_checkpoint(checkpoint)
    except CheckpointError as error:
        raise CheckpointError(str(error).partition("; delete it")[0]) from error  # good advice to a training alone
    _check_content(checkpoint, saved)
    settings, facts = saved["settings"], saved["facts"]
    own = source is None
    source = facts["source"] if source is None else source
    try:
        bundle = load(source, root=facts["root"] if root is None else root)
    except (ValueError, TypeError, FileNotFoundError) as error:
        if not own:
            raise
        kind = InputNotFoundError if isinstance(error, FileNotFoundError) else CheckpointError
        raise kind(f"checkpoint {checkpoint}: facts.source: {error}") from error
    _check_classes(bundle.class_names, facts["class_names"], source)
    if bundle.channels != facts["channels"]:
        raise InputError(
            f"data: expected {facts['channels']} channels, as in the training, got {bundle.channels} in {source}"
        )

    # a stand-in with the training's labels and the test images: building a method never asks for an image of it
    counts = torch.tensor(facts["class_counts"])
    train = copy(bundle.test)
    train.labels = torch.repeat_interleave(torch.arange(len(counts)), counts)
    bundle = replace(bundle, train=train, mean=tuple(facts["mean"]), std=tuple(facts["std"]))

    method = settings["method"]
    names = {field.name for field in fields(METHODS[method].settings)}
    values = {name: value for name, value in settings.items() if name in names}
    if aggregate is not None:
        if "aggregate" not in names:
            raise InputError(f"aggregate: expected none, for method {method!r} has no sub-models, got {aggregate!r}")
        values["aggregate"] = aggregate
    whole = saved.get("whole", True)  # or without the pretrained backbone, which stayed as it was
    try:
        chosen = settings_of(method, values)
        size = facts["image_size"] if chosen.image_size is None else chosen.image_size
        plan = METHODS[method].build(
            replace(chosen, image_size=size, pretrained=chosen.pretrained and not whole),
            bundle,
            run=replace(run, seed=settings["seed"]),
            rank=rank,
            world_size=world_size,
            test_batch_size=batch_size,
        )
    except (ValueError, RuntimeError) as error:  # torch's word for a network that is too large is the second
        raise CheckpointError(f"checkpoint {checkpoint}: settings: {error}") from error
    check_position(checkpoint, saved["position"], plan)
    load_weights(checkpoint, plan, saved["model"])
    number, epoch, step = (saved["position"][name] for name in ("stage", "epoch", "step"))
    if number == len(plan.stages):
        return Trained(plan, plan.predictor, source, settings, facts, None)
    stage, current = plan.stages[number if epoch or step else number - 1], plan.stages[number]
    where = (
        f"the run is not finished, it is at stage {number + 1} of {len(plan.stages)} ({current.name}), "
        f"epoch {epoch + 1} of {current.optimisation.epochs}"
    )
    if not stage.evaluated:
        raise CheckpointError(f"checkpoint {checkpoint}: {where}, and its stage {stage.name} gives no class scores")
    return Trained(plan, stage, source, settings, facts, f"{where}; stage {stage.name} is evaluated as it is")


def _check_content(checkpoint: Path, saved: Mapping[str, Any]) -> None:
    """Refuse what `restore` could not use.

    Raises:
        CheckpointError: it is missing, or is no setting of the method; or the facts do not fit together.
    """
    settings, facts = saved["settings"], saved["facts"]
    check_content(checkpoint, record({"method": one_of(METHODS)}), settings, "settings")
    known = {**schema.settings(RunSettings), **schema.settings(METHODS[settings["method"]].settings)}
    check_content(checkpoint, record({"seed": known["seed"]}, known), settings, "settings")
    check_content(checkpoint, record(dict.fromkeys(_FACTS, anything)), facts, "facts")
    for name, length in (
        ("class_counts", len(facts["class_names"])),
        *((n, facts["channels"]) for n in ("mean", "std")),
    ):
        check_content(checkpoint, list_of(anything, length), facts[name], f"facts.{name}")
    check_content(checkpoint, integer(2, 10**9), sum(facts["class_counts"]), "facts.class_counts, their sum")


def _absolute(path: str | Path) -> str:
    return str(Path(path).expanduser().resolve())


def _check_classes(got: Sequence[str], expected: Sequence[str], source: str) -> None:
    if len(got) != len(expected):
        raise ValueError(f"data: expected {len(expected)} classes, as in the training, got {len(got)} in {source}")
    # arrays and lists number their classes: numbers are no names to compare with others
    if all(map(str.isdecimal, got)) != all(map(str.isdecimal, expected)):
        return
    for number, (name, trained) in enumerate(zip(got, expected, strict=True)):
        if name != trained:
            raise ValueError(
                f"data: expected the classes of the training, got {name!r} instead of {trained!r} "
                f"as class {number} in {source}"
            )
