"""Restores a trained method from its checkpoint."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ltfast.data import ArrayDataset, DataBundle, FileDataset, ImageDataset, check_images, class_groups, load_test
from ltfast.data.class_names import with_classes
from ltfast.data.groups import MINIMA
from ltfast.data.sources import root_of
from ltfast.engine import Plan, Predictor, RunSettings, schema
from ltfast.engine.checkpoint import CheckpointError, check_content, check_position, load_checkpoint, load_weights
from ltfast.engine.identity import changed_data
from ltfast.engine.schema import anything, integer, like, list_of, one_of, record
from ltfast.errors import InputError, InputNotFoundError, InputTypeError, SettingError
from ltfast.methods import METHODS, settings_of
from ltfast.methods.context import BuildContext
from ltfast.methods.settings import unless_auto
from ltfast.ops.core.warn import warn_caller
from ltfast.runs.match_classes import match_classes

_FACTS = ("source", "root", "class_names", "class_counts", "mean", "std", "image_size", "channels")
_PARTS = ("test", "columns", "validation", "test_fraction", "folds", "fold", "seed")


@dataclass(frozen=True)
class Trained:
    """A restored run.

    Attributes:
        plan: the stages, on the CPU, and the test batches; without test images, there are none.
        predictor: the predictor of the run; for an unfinished run, the last stage that was trained.
        settings: the settings of the run.
        facts: the description of the training data from `facts_of`.
        image_size: height and width of the predictor's images in pixels.
        transforms: the transforms of a test image's views, from PIL images of the training data's format to tensors
            (channels, image_size, image_size); the first one is the evaluation transform.
        distribution: the class distribution that the scores follow, (C,) float64, not normalised; None if it is not
            known. See `BackboneSettings.score_distribution`.
        unfinished: a message with the state of an unfinished run and what is evaluated; None for a finished run.
    """

    plan: Plan
    predictor: Predictor
    settings: dict[str, Any]
    facts: dict[str, Any]
    image_size: int
    transforms: list[Callable[[Image.Image], Tensor]]
    distribution: Tensor | None
    unfinished: str | None


@dataclass(frozen=True)
class Tested(Trained):
    """A restored run with test images.

    Attributes:
        images: the test images, in the order of the plan's batches in one process.
        source: the source of the test images.
        left_out: one line about the files that were left out of the data; None without any.
    """

    images: ImageDataset
    source: str
    left_out: str | None


def facts_of(
    bundle: DataBundle,
    source: str,
    root: str | Path | None,
    parts: Mapping[str, Any] | None = None,
    minima: Sequence[int] = MINIMA,
    *,
    sizes: bool = True,
) -> dict[str, Any]:
    """A description of the training data in plain values, for `restore`.

    Args:
        bundle: the data.
        source, root: see `ltfast.data.load`.
        parts: those of its arguments `test`, `columns`, `validation`, `test_fraction`, `folds`, `fold` and `seed` that
            were given.
        minima: those of the groups of classes in reports, see `ltfast.data.class_groups`.
        sizes: see `ImageDataset.digests`.
    """
    parts = dict(parts or {})
    if "test" in parts:
        parts["test"] = _absolute(parts["test"])
    return {
        "source": _absolute_source(source),
        "root": _absolute(root_of(source, root)),
        "parts": parts,
        "class_names": bundle.class_names,
        "named": bundle.named,
        "class_counts": bundle.class_counts,
        "group_minima": list(minima),
        "mean": list(bundle.mean),
        "std": list(bundle.std),
        "image_size": bundle.image_size,
        "channels": bundle.channels,
        "digests": bundle.digests(sizes=sizes),
    }


def restore(checkpoint: Path, *, run: RunSettings, aggregate: str | None = None) -> Trained:
    """Restore the trained stages of a run from its checkpoint alone, without any images.

    Args:
        checkpoint: the checkpoint file, or the run's folder.
        run: settings of the execution; its seed is replaced by that of the run.
        aggregate: the weighting of the sub-models, for a method that has them; None means that of the run.

    Raises:
        InputNotFoundError: the checkpoint is missing.
        CheckpointError: the checkpoint cannot be read or used, or no trained stage gives class scores.
        InputError: the method does not support `aggregate`.
    """
    saved, settings, facts = _read(checkpoint)
    blank = _blank_images(facts)
    trained = _rebuild(checkpoint, saved, settings, facts, _bundle(facts, blank, blank), BuildContext(run), aggregate)
    return replace(trained, plan=replace(trained.plan, test=()))


def restore_with_test_images(
    checkpoint: Path,
    *,
    run: RunSettings,
    batch_size: int = 256,
    source: str | None = None,
    root: str | Path | None = None,
    columns: Mapping[str, str] | None = None,
    class_names: str | Path | None = None,
    aggregate: str | None = None,
    skip_broken: bool | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> Tested:
    """Restore the trained stages of a run, with test batches whose labels are those of the training set.

    The training images are not needed. Classes are matched by name if both the training set and the data have names,
    and by number if neither has. A warning is issued if the run's own test images have changed.

    Args:
        checkpoint, run, aggregate: see `restore`.
        batch_size: test images per batch.
        source: the source of the test images; None means that of the run.
        root: folder of the images, as for `ltfast.data.load`; None means that of the run.
        columns: names of columns, as for `ltfast.data.load`; None means those of the run if the source is its own.
        class_names: a text file with one class name per line, line k + 1 for label k, for the side (data or training
            set) whose classes are only numbered.
        skip_broken: whether to skip test images that cannot be decoded; None means the run's setting.
        rank, world_size: the rank of this process, and the number of processes.

    Raises:
        InputNotFoundError: the checkpoint or the test images are missing.
        CheckpointError: see `restore`.
        InputError: test images have classes that are not in the training set, the classes cannot be matched, the number
            of channels differs from the training, or the method does not support `aggregate`.
    """
    saved, settings, facts = _read(checkpoint)
    source = facts["source"] if source is None else source
    own = _absolute_source(source) == facts["source"]
    if root is None and (own or not source.startswith("csv:")):  # the paths in a table are relative to the table
        root = facts["root"]
    parts = {**(parts_of(facts) if own else {}), **({} if columns is None else {"columns": columns})}
    bundle = _load_data(checkpoint, source, root, parts, own=own)
    if settings.get("skip_broken", False) if skip_broken is None else skip_broken:
        bundle = check_images(bundle, skip_broken=True, splits=["test"])
    classes, labels = match_classes(
        bundle,
        source,
        facts["class_names"],
        facts.get("named", not facts["source"].startswith(("npz:", "list:"))),  # older checkpoints lack it
        own=own,
        class_names=None if class_names is None else Path(class_names).expanduser(),
    )
    facts = {**facts, "class_names": classes}
    test = with_classes(bundle.test, labels, classes)
    if own and rank == 0:
        _warn_of_changes(test, source, facts)
    if bundle.channels != facts["channels"]:
        raise InputError(
            f"expected {facts['channels']} channels, as in training, got {bundle.channels} in {source}", name="data"
        )

    # A placeholder with the training labels and test images: building a method does not load any of its images.
    train = with_classes(test, _training_labels(facts), classes)
    context = BuildContext(run, rank, world_size, batch_size)
    placed = replace(_bundle(facts, train, test), image_size=bundle.image_size)
    trained = _rebuild(checkpoint, saved, settings, facts, placed, context, aggregate)
    return Tested(**vars(trained), images=test, source=source, left_out=bundle.left_out)


def groups_of(facts: Mapping[str, Any]) -> dict[str, list[int]]:
    """The groups of a run's classes."""
    return class_groups(facts["class_counts"], facts.get("group_minima", MINIMA))  # older checkpoints lack it


def in_arrays(facts: Mapping[str, Any]) -> bool:
    """Whether the training images were in arrays, and not in files."""
    kind = facts["source"].partition(":")[0]
    # only arrays have a digest of their pixels; older checkpoints have no digests
    return "training images" in facts.get("digests", ()) or kind in ("digits", "cifar10", "cifar100", "npz")


def _read(checkpoint: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The content of a checkpoint, and in it the settings and the facts."""
    try:
        saved = load_checkpoint(checkpoint)
    except CheckpointError as error:
        raise CheckpointError(str(error).partition("; delete it")[0]) from error  # that advice applies only to training
    return saved, *_checked_content(checkpoint, saved)


def _blank_images(facts: Mapping[str, Any]) -> ImageDataset:
    """A data set of the format and the labels of the training set, without its images."""
    labels, names, size = _training_labels(facts), facts["class_names"], facts["image_size"]
    if not in_arrays(facts):
        return FileDataset([""] * len(labels), labels, names)
    shape = (len(labels), size, size, *([3] if facts["channels"] == 3 else []))
    return ArrayDataset(np.broadcast_to(np.zeros(1, np.uint8), shape), labels, names)  # one byte of memory


def _training_labels(facts: Mapping[str, Any]) -> Tensor:
    counts = torch.tensor(facts["class_counts"])
    return torch.repeat_interleave(torch.arange(len(counts)), counts)


def _bundle(facts: Mapping[str, Any], train: ImageDataset, test: ImageDataset) -> DataBundle:
    """A bundle with the properties of the training data."""
    mean, std = tuple(facts["mean"]), tuple(facts["std"])
    return DataBundle(train, test, mean, std, facts["image_size"], facts["channels"])


def parts_of(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments with which `ltfast.data.load` divides a run's data into the same parts as for its training."""
    parts = facts.get("parts", {})  # older checkpoints lack it
    return {name: parts[name] for name in _PARTS if name in parts}


def _load_data(
    checkpoint: Path, source: str, root: str | Path | None, parts: Mapping[str, Any], *, own: bool
) -> DataBundle:
    """The test images of a source; an error about the run's own source is an error about its checkpoint."""
    # test images are taken before the long tail and the validation images, which do not matter here
    options = {name: value for name, value in parts.items() if name != "validation"}
    try:
        return load_test(source, root=root, **options)
    except (InputError, InputTypeError, InputNotFoundError) as error:
        if not own:
            raise
        kind = InputNotFoundError if isinstance(error, InputNotFoundError) else CheckpointError
        raise kind(f"checkpoint {checkpoint}: facts.source: {error}") from error


def _warn_of_changes(test: ImageDataset, source: str, facts: Mapping[str, Any]) -> None:
    """Warn if the run's own test images have changed."""
    digests = {f"test {name}": value for name, value in test.digests().items()}
    if changed := changed_data(facts, {"digests": digests}):
        warn_caller(
            f"{source} has changed since the run was evaluated on it, so accuracies may differ from the run's. "
            f"What differs: {', '.join(changed)}"
        )


def _rebuild(
    checkpoint: Path,
    saved: Mapping[str, Any],
    settings: Mapping[str, Any],
    facts: Mapping[str, Any],
    bundle: DataBundle,
    context: BuildContext,
    aggregate: str | None,
) -> Trained:
    """The run with its trained weights.

    Args:
        checkpoint, saved, settings, facts: from `_read`.
        bundle: has the training labels, and the test images of the plan.
        context, aggregate: see `restore`.
    """
    method = settings["method"]
    names = {field.name for field in fields(METHODS[method].settings)}
    values = {name: value for name, value in settings.items() if name in names}
    if aggregate is not None:
        if "aggregate" not in names:
            raise SettingError("aggregate", f"none, since method {method!r} has no sub-models", aggregate)
        values["aggregate"] = aggregate
    whole = saved.get("whole", True)  # False: without the pretrained backbone, which was frozen
    try:
        chosen = settings_of(method, values)
        size = unless_auto(chosen.image_size, facts["image_size"])
        chosen = replace(chosen, image_size=size, pretrained=chosen.pretrained and not whole)
        context = replace(context, run=replace(context.run, seed=settings["seed"]))
        plan = METHODS[method].build(chosen, bundle, context)
    except (ValueError, RuntimeError) as error:  # torch raises RuntimeError for a network that is too large
        raise CheckpointError(f"checkpoint {checkpoint}: settings: {error}") from error
    check_position(checkpoint, saved["position"], plan)
    load_weights(checkpoint, plan, saved["model"])
    predictor, unfinished = _last_predictor(checkpoint, plan, saved)
    transforms = plan.test.dataset.transforms  # type: ignore[attr-defined]  # from `evaluation_batches`
    distribution = chosen.score_distribution(facts["class_counts"])
    return Trained(plan, predictor, dict(settings), dict(facts), size, transforms, distribution, unfinished)


def _last_predictor(checkpoint: Path, plan: Plan, saved: Mapping[str, Any]) -> tuple[Predictor, str | None]:
    """The predictor of a run, and for an unfinished run a message with its state."""
    number, epoch, step = (saved["position"][name] for name in ("stage", "epoch", "step"))
    if number == len(plan.stages):
        return plan.predictor, None
    stage, current = plan.stages[number if epoch or step else number - 1], plan.stages[number]
    where = (
        f"the run is not finished: it is at stage {number + 1} of {len(plan.stages)} ({current.name}), "
        f"epoch {epoch + 1} of {current.optimisation.epochs}"
    )
    if not stage.evaluated:
        raise CheckpointError(f"checkpoint {checkpoint}: {where}, and its stage {stage.name} gives no class scores")
    best, average = saved.get("selection", {}).get("weights"), saved.get("average")
    state = "in its current state"
    for place, weights, what in (("selection.weights", best, "best epoch so far"), ("average", average, "average")):
        if weights is not None and stage is current:
            own = {name: value for name, value in stage.state_dict().items() if name in weights}
            check_content(checkpoint, like(own), weights, place)
            stage.load_state_dict({name: weights[name] for name in own}, strict=False)
            state = f"with the weights of its {what}"
            break
    return stage, f"{where}; stage {stage.name} is evaluated {state}"


def _checked_content(checkpoint: Path, saved: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Check the settings and facts of a checkpoint, and return them.

    Raises:
        CheckpointError: a setting or fact is missing or invalid, or the facts are inconsistent.
    """
    settings, facts = dict(saved["settings"]), dict(saved["facts"])
    check_content(checkpoint, record({"method": one_of(METHODS)}), settings, "settings")
    for field in fields(METHODS[settings["method"]].settings):
        if field.default == "auto" and settings.get(field.name, "auto") is None:
            settings[field.name] = "auto"  # older checkpoints have None there
    known = {**schema.settings_schema(RunSettings), **schema.settings_schema(METHODS[settings["method"]].settings)}
    check_content(checkpoint, record({"seed": known["seed"]}, known), settings, "settings")
    check_content(checkpoint, record(dict.fromkeys(_FACTS, anything)), facts, "facts")
    for name, length in (
        ("class_counts", len(facts["class_names"])),
        *((n, facts["channels"]) for n in ("mean", "std")),
    ):
        check_content(checkpoint, list_of(anything, length), facts[name], f"facts.{name}")
    check_content(checkpoint, integer(2, 10**9), sum(facts["class_counts"]), "facts.class_counts, their sum")
    return settings, facts


def _absolute(path: str | Path) -> str:
    return str(Path(path).expanduser().resolve())


def _absolute_source(source: str) -> str:
    """The source with an absolute path, so that it does not depend on the current folder."""
    kind, _, name = source.partition(":")
    return f"{kind}:{_absolute(name)}" if kind in ("npz", "folder", "csv", "list") else source
