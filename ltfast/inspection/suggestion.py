"""Suggests how to start training on a data set."""

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ltfast.data.image_sizes import size_for_sides
from ltfast.models import default_backbone

_LONG_TAIL = 3  # ratio of the largest to the smallest class from which a balanced loss pays
_STEPS = 20_000  # optimiser steps
_FEW = 50  # images from which no validation images are taken


@dataclass(frozen=True)
class Suggestion:
    """Settings, with the reasons, and the command that trains with them.

    Attributes:
        image_size: height and width in pixels.
        backbone: the network.
        loss: of method `ce`.
        reasons: sentences.
        command: the command line.
    """

    image_size: int
    backbone: str
    loss: str
    reasons: list[str]
    command: str


def suggest(
    source: str,
    options: Mapping[str, str],
    *,
    counts: Sequence[int],
    sides: Sequence[int],
    grey: bool,
    in_files: bool,
    missing: Sequence[str],
    broken: bool,
) -> Suggestion:
    """Suggest how to start training: method `ce`, whose loss corrects for the long tail, with the image size and the
    network of `auto`. Batch size and learning rate are those of the recipe `ce/cifar10-lt`, in proportion.

    Args:
        source: see `ltfast.data.load`.
        options: the options of the data on the command line, with their values.
        counts: training images of each class, length C.
        sides: the short sides of the training images, at least one.
        grey: whether all images are grey.
        in_files: whether the images are in files.
        missing: the parts that the data lacks, of `test` and `validation`.
        broken: whether an image cannot be decoded.
    """
    size, median = size_for_sides(sides)
    if not in_files:
        size = median
    backbone = default_backbone(size)
    ratio, images = max(counts) / min(counts), sum(counts)
    loss = "logit_adjusted" if ratio >= _LONG_TAIL else "cross_entropy"
    half = f"half of the images have a short side of at most {median} pixels"
    largest = f"{ratio:.3g} times the images of" if ratio > 1 else "as many images as"
    reasons = [
        f"--image-size {size} and --backbone {backbone}, since {half if in_files else 'the images have this size'}",
        f"--loss {loss}, since the largest class has {largest} the smallest",
    ]
    batch = next(batch for least, batch in ((20_000, 128), (2000, 64), (0, 32)) if images >= least)
    epochs = min(max(10 * round(_STEPS * batch / images / 10), 30), 200)
    augment = "basic" if grey or size <= 16 else "cifar" if size <= 64 else "imagenet"
    if augment == "basic":
        reasons.append(f"--augment basic, which does not flip, since the images are {'grey' if grey else 'small'}")
    settings: dict[str, str] = {"data": source, **options}
    if "test" in missing:
        settings["test-fraction"] = "0.2"
    if "validation" in missing and images >= _FEW:
        settings["validation"] = "0.1"
    settings |= {
        "method": "ce",
        "loss": loss,
        "augment": augment,
        "batch-size": str(batch),
        "lr": f"{0.1 * batch / 128:g}",
        "epochs": str(epochs),
    }
    if in_files:
        settings["workers"] = str(min(os.cpu_count() or 1, 8))
    words = [word for name, value in settings.items() for word in (f"--{name}", value)]
    words += ["--skip-broken"] if broken else []
    if size > 64 and images < 100_000:
        reasons.append("--pretrained starts from timm's weights, which helps where there are few photographs")
    if size > 64:
        reasons.append(
            "--method lift --backbone vit_base_patch16_clip_quickgelu_224.openai --pretrained, instead of ce and its "
            "settings, adapts a large pretrained transformer in few epochs, and is often more accurate"
        )
    return Suggestion(size, backbone, loss, reasons, shlex.join(["ltfast", "train", *words, "--out", "runs/first"]))
