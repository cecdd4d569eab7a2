"""Typed settings: dataclasses whose fields have their own help text."""

import math
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from ltfast.errors import SettingError

METRICS = ("balanced_accuracy", "top1", "macro_f1", "many", "medium", "few")
DEFAULT_METRIC = METRICS[0]


def option(default: Any, help: str) -> Any:
    """A dataclass field with a default and the line that `--help` shows for it."""
    return field(default=default, metadata={"help": help})


def check(condition: bool, name: str, expected: str, got: object) -> None:
    """Raise a SettingError that names the setting unless the condition holds."""
    if not condition:
        raise SettingError(name, expected, got)


def check_finite(settings: Any) -> None:
    """Raise a SettingError if a number of a dataclass is infinite, not a number, or no 64-bit integer."""
    for setting in fields(settings):
        value = getattr(settings, setting.name)
        for number in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(number, float):
                check(math.isfinite(number), setting.name, "a finite number", value)
            elif isinstance(number, int):
                check(-(2**63) <= number < 2**63, setting.name, "an integer of at most 64 bits", value)


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Settings for the execution of a run, common to all methods.

    Raises:
        ValueError: a setting is out of its range.
    """

    seed: int = option(0, "seed of everything random: same seed, same machine, same weights")
    deterministic: bool = option(
        False, "torch's deterministic algorithms alone: same bits from run to run on a GPU too, where it is slower"
    )
    precision: Literal["fp32", "bf16", "fp16"] = option("fp32", "arithmetic of the model; fp16 needs a GPU")
    accumulate: int = option(1, "batches an optimiser step: their gradients are averaged, each image counts the same")
    clip_norm: float | None = option(None, "largest gradient norm; none leaves gradients as they are")
    sync_batchnorm: bool = option(False, "under several processes, BatchNorm's statistics are of all their batches")
    workers: int = option(0, "processes that decode and augment images; 0 does it in the training process")
    augment_on: Literal["cpu", "device"] = option(
        "cpu",
        "where training images are augmented: on the CPU; or in batches on the training device, as far as possible. "
        "Both give the same views up to rounding",
    )
    fused_classifier: Literal["auto", "on", "off"] = option(
        "auto",
        "compute classifier and loss in one, without the class scores of a batch; auto: from 2**24 scores on (images "
        "times classes of a call of the loss)",
    )
    compile: bool = option(False, "compile each stage's forward and backward pass whole, by torch.compile")
    keep: Literal["last", "best"] = option(
        "last",
        "which weights a stage ends with: those of its last epoch, or of the epoch with the best --metric on the "
        "validation images",
    )
    metric: Literal["balanced_accuracy", "top1", "macro_f1", "many", "medium", "few"] = option(
        DEFAULT_METRIC, "what --keep best and --patience compare, on the validation images"
    )
    patience: int | None = option(
        None, "end a stage after so many epochs without a better --metric; none: every stage has all its epochs"
    )
    ema: float | None = option(
        None,
        "decay of a moving average of the weights a step, such as 0.999: evaluated and kept are the averaged weights; "
        "none: the weights themselves",
    )
    checkpoint_minutes: float = option(10.0, "minutes between checkpoints inside an epoch (each epoch ends with one)")

    def __post_init__(self) -> None:
        check_finite(self)
        check(0 <= self.seed < 2**63, "seed", "an integer from 0 to 2**63 - 1", self.seed)
        check(self.precision in ("fp32", "bf16", "fp16"), "precision", "fp32, bf16 or fp16", self.precision)
        fused = self.fused_classifier
        check(fused in ("auto", "on", "off"), "fused_classifier", "auto, on or off", fused)
        check(self.accumulate >= 1, "accumulate", "at least 1", self.accumulate)
        clip = self.clip_norm  # JSON has no infinity
        check(clip is None or 0 < clip < math.inf, "clip_norm", "a positive finite number or none", clip)
        check(self.workers >= 0, "workers", "at least 0", self.workers)
        check(self.augment_on in ("cpu", "device"), "augment_on", "cpu or device", self.augment_on)
        check(self.keep in ("last", "best"), "keep", "last or best", self.keep)
        check(self.metric in METRICS, "metric", f"one of {', '.join(METRICS)}", self.metric)
        check(self.patience is None or self.patience >= 1, "patience", "at least 1 epoch, or none", self.patience)
        check(self.ema is None or 0 < self.ema < 1, "ema", "a number above 0 and below 1, or none", self.ema)
        check(self.checkpoint_minutes >= 0, "checkpoint_minutes", "at least 0", self.checkpoint_minutes)
