from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from ltfast import ops
from ltfast.losses.rows import rows_of
from ltfast.losses.watch import Watch
from ltfast.ops.agcl.settings import AgclSettings, check_settings
from ltfast.ops.core.checks import check_class_weight, check_label_smoothing, check_number
from ltfast.ops.core.class_counts import ClassCounts, parse_class_counts
from ltfast.ops.core.collectives import own_share

if TYPE_CHECKING:
    from ltfast.models import ClassParallelCosineClassifier, CosineClassifier

LABELS_ONLY = (
    "The terms of this loss are defined for one label. For mixed images, add the losses of both labels, each times its "
    "share: lam * loss(cosine, a) + (1 - lam) * loss(cosine, b)"
)


class AGCLLoss(nn.Module):
    """Asymmetric Gaussian-clouded logit loss for a cosine classifier.

    Dong et al., "LPT: Long-tailed Prompt Tuning for Image Classification", ICLR 2023. During training, random noise
    lowers each logit, more so for rarer classes, and confident negatives get a small weight; ``ltfast.ops.agcl`` gives
    the formula. In evaluation mode (``eval()``) the loss has no noise.

    The input must be cosines, such as the output of the classifier that ``head`` makes; the loss multiplies them by
    ``scale``. Values outside [-1, 1] cause a warning, once per loss object. They are checked on some calls on a CPU,
    and on a GPU only with ``LTFAST_CHECKS=1``.

    Args:
        class_counts: (C,), training images of each class, in the order of the labels.
        scale: factor that multiplies the cosines.
        margin: subtracted from the label's cosine ("official" only).
        noise_mul: width of the noise for the rarest class, in units of the cosine.
        gamma_pos, gamma_neg: focusing exponents of the label's term and of the other classes' terms.
        label_smoothing: s in [0, 1), in the weights 1 - s + s/C and s/C of the two terms ("official" only). Where the
            exponents are 0 it is that of ``nn.CrossEntropyLoss``.
        variant: "official" follows the authors' code. "paper" follows equations 6 to 8: both terms have weight 1, there
            is no margin, and the cloud widths log n_max - log n_c are not normalised to [0, 1].
        weight: (C,), floating-point, the weight of each class as in ``nn.CrossEntropyLoss``; None weights all classes
            alike.
        ignore_index: labels with this value are ignored: their loss is 0 for "none", and the mean excludes them.
        reduction: "mean", "sum" or "none". With weights, the mean divides by the sum of the weights of the labels.
        class_parallel: whether the classes are split over the processes of ``torch.distributed``, as in
            ``ltfast.models.ClassParallelCosineClassifier``. The cosines are then (W B, C_r), those of the global batch
            for this process's classes, the target is (B,), this process's labels, and there is no class weight. See
            ``ltfast.ops.class_parallel_agcl``.

    Shapes: cosine (B, C) or (B, C, d1, ...), any float dtype; target (B,) or (B, d1, ...), integer labels. The loss is
    a scalar, or has the shape of the labels for "none"; it is float32 (float64 for float64). The target can be no
    probabilities: the two terms are defined for one label.

    Raises:
        ValueError, TypeError: an argument is invalid; the message names it.

    Examples:
        >>> loss = AGCLLoss(class_counts=[500, 50, 5])(torch.rand(8, 3), torch.randint(3, (8,)))
    """

    class_noise: Tensor
    weight: Tensor | None

    def __init__(
        self,
        class_counts: ClassCounts,
        *,
        scale: float = 20.0,
        margin: float = 0.1,
        noise_mul: float = 0.5,
        gamma_pos: float = 0.0,
        gamma_neg: float = 4.0,
        label_smoothing: float = 0.1,
        variant: Literal["official", "paper"] = "official",
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: Literal["mean", "sum", "none"] = "mean",
        class_parallel: bool = False,
    ) -> None:
        super().__init__()
        counts = parse_class_counts(class_counts)
        if variant not in ("official", "paper"):
            raise ValueError(f"variant is {variant!r}: expected 'official' or 'paper'")
        check_label_smoothing(label_smoothing)
        check_number("noise_mul", noise_mul, at_least=0)
        check_class_weight(weight, len(counts))
        if class_parallel and weight is not None:
            raise ValueError("weight is not None: expected None with class_parallel=True")
        rarity = counts.max().log() - counts.log()
        if variant == "paper":
            margin, self.weight_pos, self.weight_neg = 0.0, 1.0, 1.0
        else:
            rarity = rarity / rarity.max().clamp(min=torch.finfo(rarity.dtype).tiny)
            self.weight_neg = label_smoothing / counts.numel()
            self.weight_pos = 1 - label_smoothing + self.weight_neg
        weights = self.weight_pos, self.weight_neg
        check_settings(AgclSettings(scale, margin, *weights, gamma_pos, gamma_neg, ignore_index, reduction))
        self.register_buffer("class_noise", (noise_mul * rarity).float(), persistent=False)
        self.register_buffer("weight", weight, persistent=False)
        self.noisy = bool(self.class_noise.any())
        self.scale, self.margin = scale, margin
        self.gamma_pos, self.gamma_neg = gamma_pos, gamma_neg
        self.ignore_index, self.reduction = ignore_index, reduction
        self.class_parallel = class_parallel
        self.watch = Watch()

    def head(self, width: int) -> "CosineClassifier | ClassParallelCosineClassifier":
        """A new cosine classifier for this loss, to replace the last layer of a network:

            criterion = AGCLLoss(class_counts)
            network.fc = criterion.head(network.fc.in_features)

        It maps features (B, width) to cosines. The class of the largest cosine is the prediction; the loss's
        probabilities are ``softmax(scale * cosines)``.

        Raises:
            ValueError: ``width`` is below 1.
        """
        from ltfast.models import ClassParallelCosineClassifier, CosineClassifier  # imports timm, which takes seconds

        classifier = ClassParallelCosineClassifier if self.class_parallel else CosineClassifier
        if width < 1:
            raise ValueError(f"width is {width}: expected at least 1")
        return classifier(width, len(self.class_noise))

    def clouds(self) -> Tensor | None:
        """The noise width of each class, (C,), or with ``class_parallel`` of each of this process's classes, (C_r,).
        None if there is no noise (in evaluation mode, or all widths are 0)."""
        if not self.noisy or not self.training:
            return None
        return own_share(self.class_noise) if self.class_parallel else self.class_noise

    def options(self) -> dict[str, Any]:
        """The keyword arguments of the op."""
        return {
            "scale": self.scale,
            "margin": self.margin,
            "weight_pos": self.weight_pos,
            "weight_neg": self.weight_neg,
            "gamma_pos": self.gamma_pos,
            "gamma_neg": self.gamma_neg,
            "ignore_index": self.ignore_index,
            "reduction": self.reduction,
        }

    def forward(self, cosine: Tensor, target: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        num_classes, clouds, options = len(self.class_noise), self.clouds(), self.options()
        if self.class_parallel:
            loss = ops.class_parallel_agcl(cosine, target, num_classes, clouds, generator=generator, **options)
        else:
            rows = rows_of(cosine, target, num_classes, names=("cosine", "target"), labels_only=LABELS_ONLY)
            loss = ops.agcl(rows.logits, rows.target, clouds, weight=self.weight, generator=generator, **options)
            loss = rows.in_shape(loss, self.reduction)
        if self.watch.due(cosine):
            self.watch.cosines(type(self).__name__, "cosine", cosine)
        return loss
