"""Which group prompts the classes choose."""

from pathlib import Path

import torch

from ltfast.engine import RunSettings
from ltfast.errors import InputError
from ltfast.methods.lpt import GroupPromptStage
from ltfast.runs.restore import restore


@torch.no_grad()
def choices(
    checkpoint: Path, *, run: RunSettings, batch_size: int = 256, root: str | Path | None = None
) -> tuple[list[str], list[list[float]]]:
    """Which keys the test images of each class choose, in a trained run.

    Args:
        checkpoint: the file, or the run's folder.
        run: its workers load images.
        batch_size: test images a batch.
        root: folder of the images; None means the run's own.

    Returns:
        The names of the classes that have test images, those with the most training images first; and a row for each:
        the share of each key among its images' choices.

    Raises:
        InputNotFoundError, CheckpointError, InputError: see `restore`; or the run is another method's.
    """
    trained = restore(checkpoint, run=run, batch_size=batch_size, root=root)
    predictor = trained.predictor
    if not isinstance(predictor, GroupPromptStage):
        raise InputError(
            f"expected a finished run of method lpt, got {trained.settings['method']}'s", name="checkpoint"
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
