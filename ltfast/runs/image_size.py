"""The image size of a run whose images are files and whose `--image-size` is "auto"."""

from dataclasses import replace
from pathlib import Path

import timm

from ltfast.data import ArrayDataset, DataBundle, fitting_size
from ltfast.data.image_sizes import LARGEST
from ltfast.engine.checkpoint import check_content, load_description
from ltfast.engine.schema import integer, record
from ltfast.errors import UserError
from ltfast.methods.settings import BackboneSettings


def with_image_size(bundle: DataBundle, settings: BackboneSettings, checkpoint: Path) -> tuple[DataBundle, str]:
    """Choose the image size of a run, unless its settings give one.

    The size of image files follows the files, by `ltfast.data.fitting_size`. A run that starts from another run has its
    size. With weights from timm or from a file, or a backbone that is made for one size, it follows the backbone. A run
    that continues keeps its size, and no file is read.

    Args:
        bundle: the data.
        settings: the settings of the method.
        checkpoint: the checkpoint file of the run, which may be missing.

    Returns:
        The data with this size, and the reason, in words that follow the size; empty without any.

    Raises:
        CheckpointError: the checkpoint cannot be read.
    """
    if settings.image_size != "auto" or isinstance(bundle.train, ArrayDataset):
        return bundle, ""
    if checkpoint.exists():
        _, facts = load_description(checkpoint)
        check_content(checkpoint, record({"image_size": integer(1, 2**16)}), facts, "facts")
        return replace(bundle, image_size=facts["image_size"]), ", as the run began"
    if settings.init is not None and (size := _size_of(Path(settings.init).expanduser())):
        return replace(bundle, image_size=size), f", as in the run {settings.init}"
    if settings.pretrained or settings.weights is not None:
        return replace(bundle, image_size=LARGEST), f", since trained weights are mostly made for {LARGEST} pixels"
    if own := _own_size(settings.backbone):
        size = min(own, LARGEST)
        return replace(bundle, image_size=size), f", since {settings.backbone} is made for images of {own} pixels"
    found = fitting_size(bundle.train)
    if found is None:
        return bundle, ""
    why = f", since half of the images have a short side of at most {found.median} pixels"
    return replace(bundle, image_size=found.size), why


def _size_of(run: Path) -> int | None:
    """The image size of another run; None if it cannot be read, which is an error where its weights are loaded."""
    try:
        settings, facts = load_description(run)
    except (UserError, OSError):
        return None
    given = settings.get("image_size")
    size = given if isinstance(given, int) else facts.get("image_size")
    return size if isinstance(size, int) and size >= 1 else None


def _own_size(backbone: str) -> int | None:
    """The height and width in pixels for which a backbone is made; None if it takes any size, or is chosen by auto."""
    if backbone == "auto" or not timm.is_model(backbone.split(".")[0]):
        return None
    config = timm.get_pretrained_cfg(backbone, allow_unregistered=True)
    return config.input_size[-1] if config is not None and config.fixed_input_size else None
