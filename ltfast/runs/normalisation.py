"""The mean and the standard deviation with which a run normalises its images."""

from collections.abc import Sequence
from pathlib import Path

import timm

from ltfast.data import DataBundle
from ltfast.engine.checkpoint import load_description
from ltfast.errors import SettingError
from ltfast.methods.settings import BackboneSettings


def with_normalisation(
    bundle: DataBundle,
    settings: BackboneSettings,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    checkpoint: Path,
) -> tuple[DataBundle, str]:
    """Choose the normalisation of a run: the mean and std of the options; with `--pretrained`, those with which timm's
    weights were trained; otherwise those of the data. A run that continues keeps its own.

    Args:
        bundle: the data.
        settings: the settings of the method.
        mean, std: the options; None without any.
        checkpoint: the checkpoint file of the run, which may be missing.

    Returns:
        The data with these values, and what was chosen for the user to see, in words; empty if nothing was.

    Raises:
        SettingError: only one of `mean` and `std` is given, or they do not fit the data.
        CheckpointError: the checkpoint cannot be read.
    """
    if mean is not None and std is not None:
        return bundle.with_statistics(mean, std), ""
    if mean is not None or std is not None:
        missing, given = ("mean", "std") if mean is None else ("std", "mean")
        raise SettingError(missing, f"a value for each channel, with --{given}", None)
    if not settings.pretrained:
        return bundle, ""
    config = timm.get_pretrained_cfg(settings.chosen(bundle).backbone, allow_unregistered=True)
    if config is None:
        return bundle, ""
    if checkpoint.exists():
        _, facts = load_description(checkpoint)
        mean, std = tuple(facts.get("mean", bundle.mean)), tuple(facts.get("std", bundle.std))
        return bundle.with_statistics(mean, std), ""
    mean, std = config.mean, config.std
    if bundle.channels != len(mean):  # timm adds up the weights of the channels for greyscale images
        mean, std = ((sum(values) / len(values),) * bundle.channels for values in (mean, std))
    chosen = bundle.with_statistics(mean, std)
    if (chosen.mean, chosen.std) == (bundle.mean, bundle.std):
        return chosen, ""
    mean_words, std_words = (",".join(f"{value:.4g}" for value in values) for values in (mean, std))
    return chosen, f"--mean {mean_words} --std {std_words}"
