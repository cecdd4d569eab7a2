from torch import Tensor, nn

from ltfast import ops
from ltfast.losses import AGCLLoss
from ltfast.losses.device import follow
from ltfast.ops.core.checks import check_class_vector, check_classes
from ltfast.ops.core.class_counts import ClassCounts, parse_class_counts
from ltfast.ops.core.tensors import reduce


class AGCL(nn.Module):
    """Replaces ``AGCL`` of LPT's training script: ``ltfast.losses.AGCLLoss`` with the authors' argument names.

    Unlike the authors' code, it adds no noise in evaluation mode.

    Args:
        cls_num_list: (C,), training images of each class.
        m, s, noise_mul, gamma_pos, gamma_neg: margin, scale, width of the noise, focusing exponents.
        train_cls: whether to compute a focal cross-entropy of the noisy logits with exponent ``gamma`` and class
            weights ``weight`` (C,), instead of the asymmetric loss. Otherwise ``gamma`` and ``weight`` have no effect,
            as in the authors' code.

    Shapes: cosine (B, C); target (B,), integer labels, of which -100 is ignored; the loss is a scalar.

    Raises:
        ValueError, TypeError: an argument is invalid; the message names it.
    """

    def __init__(
        self,
        cls_num_list: ClassCounts,
        m: float = 0.5,
        weight: Tensor | None = None,
        s: float = 30,
        train_cls: bool = False,
        noise_mul: float = 1.0,
        gamma: float = 0.0,
        gamma_pos: float = 0.0,
        gamma_neg: float = 4.0,
    ) -> None:
        super().__init__()
        self.loss = AGCLLoss(
            parse_class_counts(cls_num_list, name="cls_num_list"),
            scale=s,
            margin=m,
            noise_mul=noise_mul,
            gamma_pos=gamma_pos,
            gamma_neg=gamma_neg,
        )
        self.train_cls = train_cls
        self.gamma = gamma
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, cosine: Tensor, target: Tensor) -> Tensor:
        follow(self, cosine)
        if not self.train_cls:
            return self.loss(cosine, target)
        check_classes(cosine, len(self.loss.class_noise), "cosine")
        loss = ops.agcl(
            cosine,
            target,
            self.loss.clouds(),
            scale=self.loss.scale,
            margin=self.loss.margin,
            weight_neg=0.0,
            reduction="none",
        )
        counted = target.long() != self.loss.ignore_index
        if isinstance(self.weight, Tensor):
            check_class_vector(self.weight, cosine, "weight", differentiable=True)
            loss = loss * self.weight[target.long().where(counted, 0)]
        if self.loss.watch.due(cosine):
            self.loss.watch.cosines("AGCL", "cosine", cosine)
        return reduce((1 - (-loss.detach()).exp()) ** self.gamma * loss, "mean", counted)
