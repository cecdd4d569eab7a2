"""The group prompts that the classes choose."""

from pathlib import Path

import torch

from ltfast.engine import RunSettings
from ltfast.errors import InputError
from ltfast.methods.lpt import GroupPromptStage
from ltfast.runs.restore import restore_with_test_images


@torch.no_grad()
def choices(
    checkpoint: Path, *, run: RunSettings, batch_size: int = 256, root: str | Path | None = None
) -> tuple[list[str], list[list[float]]]:
    """Count the prompt keys that the test images of each class choose in a trained run.

    Args:
        checkpoint: the checkpoint file, or the run's folder.
        run: settings of the execution; its workers load the images.
        batch_size: test images per batch.
        root: folder of the images; None means that of the run.

    Returns:
        The names of the classes that have test images, sorted by decreasing number of training images, and one row per
        class with the fraction of each key among the choices of its images.

    Raises:
        InputNotFoundError, CheckpointError, InputError: see `restore_with_test_images`. An InputError also means
            that the run is not a finished run of method lpt.
    """
    trained = restore_with_test_images(checkpoint, run=run, batch_size=batch_size, root=root)
    predictor = trained.predictor
    if not isinstance(predictor, GroupPromptStage):
        raise InputError(
            f"expected a finished run of method lpt, got one of {trained.settings['method']}", name="checkpoint"
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = predictor.to(device).eval().network
    counts = trained.facts["class_counts"]
    chosen = torch.zeros(len(counts), len(network.pool.keys))
    for images, labels in trained.plan.test:
        _, indices, _ = network.grouped(images.to(device))
        chosen.index_put_((labels[:, None].expand_as(indices), indices.cpu()), torch.tensor(1.0), accumulate=True)
    order = [c for c in sorted(range(len(counts)), key=lambda c: -counts[c]) if chosen[c].any()]
    names = trained.facts["class_names"]
    return [names[c] for c in order], (chosen / chosen.sum(1, keepdim=True).clamp(min=1))[order].tolist()
