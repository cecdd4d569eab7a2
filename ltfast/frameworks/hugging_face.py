"""Losses for Hugging Face's ``Trainer``. Nothing here imports ``transformers``."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ltfast.losses import ProCoLoss, SeesawLoss
from ltfast.losses.device import follow


def compute_loss(criterion: nn.Module) -> Callable[..., Tensor]:
    """Turn a loss over logits into the argument ``compute_loss_func`` of Hugging Face's ``Trainer``.

        trainer = Trainer(model, args, ..., compute_loss_func=compute_loss(LogitAdjustedLoss(class_counts)))

    With gradient accumulation, the loss of each small batch is its sum over the labels, divided by the number of labels
    of the whole step, which the ``Trainer`` counts. The gradients then equal those of one large batch.

    The mean is over the labels, not over their class weights as in ``nn.CrossEntropyLoss``, since the ``Trainer`` does
    not know the sum of the weights of a step. Scale the weights so that their mean over the training images is 1;
    otherwise they change the learning rate too.

    The ``Trainer`` neither moves the criterion to a device nor changes its mode, since it is not part of the model. The
    returned function moves the criterion's buffers to the device of the logits, and sets training mode where gradients
    are enabled, otherwise evaluation mode.

    Args:
        criterion: a loss with the signature ``criterion(logits, labels)``, reduction "mean" and, if it has one, an
            ``ignore_index`` of -100, which the ``Trainer`` does not count. ``SeesawLoss``, and losses of features, have
            a state that belongs into the checkpoint: let the model hold them, and return their value as "loss".

    Returns:
        A function of the model's outputs, the labels and ``num_items_in_batch``. The outputs are a tensor of logits, a
        mapping (``ModelOutput``, ``dict``) with the key "logits", or a tuple or list whose first element are the
        logits. The shapes and dtypes of logits and labels are those of the criterion.

    Raises:
        TypeError: the criterion is not a module with a ``reduction``, or has a state; or the outputs hold no logits.
        ValueError: the reduction is not "mean", the ``ignore_index`` is not -100, or there are no labels.
    """
    if not isinstance(criterion, nn.Module) or not hasattr(criterion, "reduction"):
        raise TypeError(
            f"criterion is {criterion!r}: expected a module with a reduction, such as LogitAdjustedLoss or "
            "nn.CrossEntropyLoss. Let the model compute other losses, and return them as 'loss'"
        )
    if isinstance(criterion, (ProCoLoss, SeesawLoss)):
        raise TypeError(
            f"criterion is a {type(criterion).__name__}: expected a loss without a state, which the Trainer would not "
            "save. Let the model hold this loss, and return its value as 'loss'"
        )
    if criterion.reduction != "mean":
        raise ValueError(f"criterion has reduction={criterion.reduction!r}: expected 'mean'")
    if getattr(criterion, "ignore_index", -100) != -100:
        raise ValueError(
            f"criterion has ignore_index={criterion.ignore_index}: expected -100, since the Trainer counts the labels "
            "that are not -100"
        )

    def loss(outputs: Any, labels: Tensor | None, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        logits = _logits(outputs)
        if labels is None:
            raise ValueError("labels is None: expected a batch with the key 'labels'")
        follow(criterion, logits)
        criterion.train(torch.is_grad_enabled())
        if num_items_in_batch is None:
            return criterion(logits, labels)
        # the Trainer counts the entries of soft labels
        entries = logits.shape[1] if labels.is_floating_point() and labels.shape == logits.shape else 1
        setattr(criterion, "reduction", "sum")  # noqa: B010
        try:
            return criterion(logits, labels) * entries / num_items_in_batch
        finally:
            setattr(criterion, "reduction", "mean")  # noqa: B010

    return loss


def _logits(outputs: Any) -> Tensor:
    logits = outputs
    if isinstance(outputs, Mapping):
        if "logits" not in outputs:
            raise TypeError(f"the model's outputs have the keys {list(outputs)}: expected the key 'logits'")
        logits = outputs["logits"]
    elif isinstance(outputs, (tuple, list)) and outputs:
        logits = outputs[0]
    if not isinstance(logits, Tensor):
        raise TypeError(
            f"the model's logits are of type {type(logits).__name__}: expected a tensor, a mapping with the key "
            "'logits', or a tuple that begins with the logits"
        )
    return logits
