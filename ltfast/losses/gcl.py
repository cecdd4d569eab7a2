from typing import Literal

from torch import Tensor

from ltfast.losses.agcl import AGCLLoss
from ltfast.ops.core.class_counts import ClassCounts


class GCLLoss(AGCLLoss):
    """Gaussian clouded logit loss for a cosine classifier: ``cross_entropy(scale * (x - w |e| - m [c = y]), y)``.

    Li et al., "Long-tailed Visual Recognition via Gaussian Clouded Logit Adjustment", CVPR 2022, as in the authors'
    code. During training, random noise e lowers each cosine, more so for rarer classes: the width w_c is
    ``noise_mul * (log n_max - log n_c) / (log n_max - log n_min)``, and e has the standard deviation 1/3 and is
    clipped to [-1, 1]. In evaluation mode (``eval()``) the loss has no noise. It is ``AGCLLoss`` without the term of
    the other classes, and computed by the same fused op.

    The input must be cosines, such as the output of ``ltfast.models.CosineClassifier``; the loss multiplies them by
    ``scale``. Values outside [-1, 1] cause a warning, once per loss object. They are checked on some calls on a CPU,
    and on a GPU only with ``LTFAST_CHECKS=1``.

    Args:
        class_counts: (C,), training images of each class, in the order of the labels.
        scale: factor that multiplies the cosines.
        margin: subtracted from the label's cosine; the authors train with 0.
        noise_mul: width of the noise for the rarest class, in units of the cosine.
        weight: (C,), floating-point, the weight of each class as in ``nn.CrossEntropyLoss``; None weights all classes
            alike.
        label_smoothing: in [0, 1), as in ``nn.CrossEntropyLoss``.
        ignore_index: labels with this value are ignored: their loss is 0 for "none", and the mean excludes them.
        reduction: "mean", "sum" or "none". With weights, the mean divides by the sum of the weights of the labels.

    Shapes: cosine (B, C) or (B, C, d1, ...), any float dtype; target (B,) or (B, d1, ...), integer labels. The loss is
    a scalar, or has the shape of the labels for "none"; it is float32 (float64 for float64).

    Raises:
        ValueError, TypeError: an argument is invalid; the message names it.

    Examples:
        >>> loss = GCLLoss(class_counts=[500, 50, 5])(torch.rand(8, 3), torch.randint(3, (8,)))
    """

    def __init__(
        self,
        class_counts: ClassCounts,
        *,
        scale: float = 30.0,
        margin: float = 0.0,
        noise_mul: float = 0.5,
        weight: Tensor | None = None,
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
        reduction: Literal["mean", "sum", "none"] = "mean",
    ) -> None:
        super().__init__(
            class_counts,
            scale=scale,
            margin=margin,
            noise_mul=noise_mul,
            gamma_pos=0.0,
            gamma_neg=0.0,
            label_smoothing=label_smoothing,
            weight=weight,
            ignore_index=ignore_index,
            reduction=reduction,
        )
