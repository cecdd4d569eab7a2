import json
from pathlib import Path

from torch import Tensor, nn

from ltfast.losses.cross_entropy import shifted_cross_entropy
from ltfast.losses.device import follow
from ltfast.ops.core.class_counts import ClassCounts, parse_class_counts


class BalancedSoftmax(nn.Module):
    """Replaces ``BalancedSoftmax`` of BalancedMetaSoftmax's training script.

    Args:
        freq_path: a JSON file with the list of the training images of each class.

    Shapes: input (B, C), logits; label (B,), integer labels, of which -100 is ignored. See
    ``ltfast.losses.BalancedSoftmaxLoss`` for the other shapes.

    Raises:
        OSError: the file cannot be read.
        ValueError, TypeError: the file is no JSON, or an argument is invalid; the message names it.
    """

    sample_per_class: Tensor

    def __init__(self, freq_path: str | Path) -> None:
        super().__init__()
        text = Path(freq_path).read_text()
        try:
            counts = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"freq_path is {str(freq_path)!r}: expected a JSON list of counts, got {error}") from error
        counts = parse_class_counts(counts, name=f"freq_path {str(freq_path)!r}")
        self.register_buffer("sample_per_class", counts.float(), persistent=False)

    def forward(self, input: Tensor, label: Tensor, reduction: str = "mean") -> Tensor:
        follow(self, input)
        names = "input", "label"
        return shifted_cross_entropy(input, self.sample_per_class.log(), label, reduction=reduction, names=names)


def balanced_softmax_loss(labels: Tensor, logits: Tensor, sample_per_class: ClassCounts, reduction: str) -> Tensor:
    """Replaces ``balanced_softmax_loss`` of BalancedMetaSoftmax's training script: the balanced softmax cross-entropy.

    Args:
        labels: (B,), integer labels, of which -100 is ignored.
        logits: (B, C).
        sample_per_class: (C,), training images of each class. They are checked on the CPU in each call; the module
            ``BalancedSoftmax`` checks them once.
        reduction: "mean", "sum" or "none".

    Raises:
        ValueError, TypeError: an argument is invalid; the message names it.
    """
    counts = parse_class_counts(sample_per_class, name="sample_per_class")
    shift = counts.log().float().to(logits.device)
    return shifted_cross_entropy(logits, shift, labels, reduction=reduction, names=("logits", "labels"))


def create_loss(freq_path: str | Path) -> BalancedSoftmax:
    """Replaces ``create_loss`` of ``loss/BalancedSoftmaxLoss.py``, which the configuration files of BalancedMetaSoftmax
    name."""
    return BalancedSoftmax(freq_path)
