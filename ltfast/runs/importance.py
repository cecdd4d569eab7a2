"""The importance of a trained network's parameters to class groups: figure 1 (b) and the table of weights of Cong et
al., AAAI 2024."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ltfast.engine import RunSettings
from ltfast.engine.parameter_importance import parameter_importance
from ltfast.methods.batches import class_batches
from ltfast.methods.context import BuildContext
from ltfast.methods.decoupled_optimisation import Aggregation
from ltfast.runs.own_data import load_own
from ltfast.runs.restore import groups_of, restore_with_test_images


def measure(
    checkpoint: Path,
    *,
    run: RunSettings,
    images: int,
    batch_size: int,
    per_class: bool = False,
    root: str | Path | None = None,
) -> dict[str, Any]:
    """Measure the importance of a trained run's parameters to each class group.

    The importance is `parameter_importance`, averaged over the parameters and summed over batches of all training
    images of the group. The loss is the cross-entropy of the run's predictions; only parameters on which the loss
    depends count. The batches are summed, as in training, so that the importance grows with the number of images. (The
    mean over batches measures something else: it is larger for groups that are learned less well.)

    Args:
        checkpoint: the checkpoint file, or the run's folder.
        run: settings of the execution; its workers load the images.
        images: maximum number of training images per group or class, from which the sum is estimated.
        batch_size: images per batch.
        per_class: whether to measure each class too.
        root: folder of the images; None means that of the run.

    Returns:
        `method`; `importance`, a number for each group, None for a group without images; `per_class`, a number for each
        class name, or None; `weights`, the mean weights of the sub-models for the test images of each group, or None.

    Raises:
        InputNotFoundError, CheckpointError, InputError: see `restore_with_test_images`. A CheckpointError also means
            that the training images have changed.
    """
    trained = restore_with_test_images(checkpoint, run=run, batch_size=batch_size, root=root)
    facts = trained.facts
    bundle = load_own(checkpoint, trained, "train", root=root)
    names = facts["class_names"]
    size = trained.image_size
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    predictor = trained.predictor.to(device).eval()
    parameters = list(predictor.parameters())
    counts = bundle.class_counts
    groups = groups_of(facts)
    aggregation = predictor if isinstance(predictor, Aggregation) else None
    with torch.no_grad():
        predictor.adapt([view.to(device) for view in batch[:-1]] for batch in trained.plan.test)

    def scores(view: Tensor) -> Tensor:
        return predictor.predict(*[view] * (1 if aggregation is None else 3))

    def importance(classes: Sequence[int]) -> float | None:
        if not classes:
            return None
        batches = class_batches(bundle, classes, size, most=images, batch_size=batch_size, context=BuildContext(run))
        values = [value for value in parameter_importance(scores, parameters, batches) if value.any()]
        total = float(sum(value.sum(dtype=torch.float64) for value in values))
        return total / sum(value.numel() for value in values) * sum(counts[c] for c in classes) / batch_size

    classes = [c for c, count in enumerate(counts) if count]
    return {
        "method": trained.settings["method"],
        "importance": {group: importance(members) for group, members in groups.items()},
        "per_class": {names[c]: importance([c]) for c in classes} if per_class else None,
        "weights": None if aggregation is None else _weights(aggregation, trained.plan.test, groups, device),
    }


@torch.no_grad()
def _weights(
    predictor: Aggregation, test: Iterable[Sequence[Tensor]], groups: dict[str, list[int]], device: torch.device
) -> dict[str, list[float] | None]:
    """The mean weights of the sub-models over the test images of each group."""
    weights, labels = [], []
    for *views, label in test:
        weights.append(predictor.weights(*(view.to(device) for view in views)).cpu())
        labels.append(label)
    all_weights, all_labels = torch.cat(weights), torch.cat(labels)
    members = {
        group: torch.isin(all_labels, torch.tensor(classes, dtype=torch.int64)) for group, classes in groups.items()
    }
    return {group: all_weights[mask].mean(0).tolist() if mask.any() else None for group, mask in members.items()}
