"""The images that a run was trained with."""

from pathlib import Path
from typing import Literal, get_args

from ltfast.data import DataBundle, check_images, load
from ltfast.data.long_tail import Profile
from ltfast.engine.checkpoint import CheckpointError, check_content
from ltfast.engine.identity import changed_data
from ltfast.engine.schema import number, one_of, optional, record
from ltfast.runs.restore import Trained, parts_of

_WORDS = {"train": "training", "validation": "validation"}  # the attributes of a bundle, and the words of its digests


def load_own(
    checkpoint: Path, trained: Trained, part: Literal["train", "validation"], *, root: str | Path | None = None
) -> DataBundle:
    """Load the data of a run, divided and normalised as for its training.

    Args:
        checkpoint: the checkpoint file, or the run's folder; for messages.
        trained: the run.
        part: the images that are used. Broken ones are left out if the run skipped broken images.
        root: folder of the images; None means that of the run.

    Raises:
        InputNotFoundError, InputError, InputTypeError, PackageError: see `ltfast.data.load`.
        CheckpointError: the images of the part are not those of the training.
    """
    settings, facts = trained.settings, trained.facts
    cut = {"imbalance": optional(number(1)), "profile": one_of(get_args(Profile))}
    check_content(checkpoint, record(cut), settings, "settings")
    bundle = load(
        facts["source"],
        imbalance=settings["imbalance"],
        profile=settings["profile"],
        root=facts["root"] if root is None else root,
        **parts_of(facts),
    )
    if settings.get("skip_broken", False):
        bundle = check_images(bundle, skip_broken=True, splits=[part])
    others = tuple(f"{word} " for word in (*_WORDS.values(), "test") if word != _WORDS[part])
    ignored = others if bundle.named else (*others, "class names")  # maybe named since
    now = {"digests": bundle.digests(), "class_names": bundle.class_names}
    changed = [name for name in changed_data(facts, now) if not name.startswith(ignored)]
    if changed or (part == "train" and bundle.class_counts != facts["class_counts"]):
        raise CheckpointError(
            f"data: the {_WORDS[part]} images of {facts['source']} have changed since {checkpoint} was trained. "
            f"What differs: {', '.join(changed or ['the images of each class'])}"
        )
    return bundle.with_statistics(facts["mean"], facts["std"])
