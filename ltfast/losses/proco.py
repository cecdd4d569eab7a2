from collections.abc import Sequence

import torch
from torch import Tensor, distributed
from torch.nn import functional as F

from ltfast import ops
from ltfast.losses.class_counts import parse_class_counts
from ltfast.losses.distributed import world_size
from ltfast.losses.fixed_dtype import FixedDtype
from ltfast.ops.checks import check_matrix, check_positive

_LARGEST_KAPPA = 1e5
_START = 0.9  # the length of the mean of a class that was not seen yet


class ProCoLoss(FixedDtype):
    """Probabilistic contrastive loss: every class a von Mises-Fisher distribution on the sphere of features.

    Du et al., "Probabilistic Contrastive Learning for Long-Tailed Visual Recognition", TPAMI 2024. The direction of the
    mean of a class's features is the distribution's, and its length R gives the concentration
    kappa = D R / (1 - R^2), at most 1e5. A feature's logit for a class is then the expectation of a contrastive loss
    over all features that the class could have; the formula is in ``ltfast.ops.vmf``. In a script:

        for epoch in range(epochs):
            proco.start_epoch()
            for images, labels in batches:
                features = F.normalize(head(backbone(images)))
                proco.update(features, labels)  # with two views: of both, before the loss of either
                loss = proco(features, labels)

    The means are over the features of this epoch so far and of the epoch before. (The authors' two estimators: the one
    in use, and a second that began with this epoch and takes its place at the next.) A class of which neither has seen
    anything has a random direction and R = 0.9. These directions depend on C and D alone, so that they are the same on
    every process and after a restart.

    Args:
        num_classes: C, at least 1.
        feature_dim: D, at least 2.
        temperature: tau, over 0.
        class_counts: (C,), training images of each class: their log-frequencies are added to the logits of the loss
            (logit adjustment), but not to those of ``logits``; None adds nothing.

    Shapes: features (B, D) of length 1, any float dtype; labels (B,), int64; the loss is float32 (float64 for float64).

    The statistics are buffers and stay float32. Under ``torch.distributed`` ``update`` adds up the batches of all
    processes, which must call it equally often.

    Raises:
        ValueError: an argument is out of its range.
    """

    sums: Tensor
    counts: Tensor
    past_sums: Tensor
    past_counts: Tensor
    directions: Tensor
    kappa: Tensor
    start: Tensor
    log_prior: Tensor | None

    def __init__(
        self,
        num_classes: int,
        feature_dim: int,
        *,
        temperature: float = 0.1,
        class_counts: Sequence[int] | Tensor | None = None,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes is {num_classes}: expected at least 1")
        if feature_dim < 2:
            raise ValueError(f"feature_dim is {feature_dim}: expected at least 2")
        check_positive("temperature", temperature)
        log_prior = None
        if class_counts is not None:
            counts = parse_class_counts(class_counts)
            if len(counts) != num_classes:
                raise ValueError(f"class_counts has {len(counts)} classes: expected {num_classes}")
            log_prior = (counts / counts.sum()).log().float()
        self.num_classes, self.feature_dim, self.temperature = num_classes, feature_dim, temperature
        # a generator of its own: the same on every process, whatever their seeds
        generator = torch.Generator("cpu").manual_seed(0)
        start = torch.randn(num_classes, feature_dim, generator=generator, device="cpu", dtype=torch.float32)
        self.register_buffer("start", _START * F.normalize(start), persistent=False)
        self.register_buffer("log_prior", log_prior, persistent=False)
        # of this epoch, and of the one before or, where that saw nothing of a class, its start
        self.register_buffer("sums", torch.zeros_like(start))
        self.register_buffer("counts", start.new_zeros(num_classes, dtype=torch.int64))
        self.register_buffer("past_sums", self.start.clone())
        self.register_buffer("past_counts", self.counts.clone())
        self.register_buffer("directions", torch.empty_like(start))
        self.register_buffer("kappa", start.new_empty(num_classes))
        self._estimate()

    @torch.no_grad()
    def start_epoch(self) -> None:
        """Begin an epoch: forget all but the features of the epoch that ends."""
        self.past_sums.copy_(torch.where(self.counts[:, None] > 0, self.sums, self.start))
        self.past_counts.copy_(self.counts)
        self.sums.zero_()
        self.counts.zero_()
        self._estimate()

    @torch.no_grad()
    def update(self, features: Tensor, labels: Tensor) -> None:
        """Add a batch to the statistics; a call of the loss does not.

        A feature that is not finite is left out: an overflow in one step of half-precision training would otherwise
        make every loss NaN until the end of the next epoch.

        Args:
            features: (N, D) of length 1, any float dtype.
            labels: (N,), integers in [0, C).

        Raises:
            ValueError, TypeError: a bad argument, named.
        """
        self._check(features)
        # one more column holds 1 where a feature counts: its sums are the counts, and one collective adds up both
        finite = features.sum(dim=1, keepdim=True, dtype=torch.float32).isfinite()
        rows = torch.cat([features.where(finite, 0), finite.to(features.dtype)], dim=1)
        both = ops.class_sums(rows, labels, self.num_classes)[0].float()
        if world_size() > 1:
            distributed.all_reduce(both)
        self.sums += both[:, :-1]
        self.counts += both[:, -1].long()
        self._estimate()

    def logits(self, features: Tensor) -> Tensor:
        """Expected contrastive logits, (B, C), float32 (float64 for float64), without the classes' log-frequencies.

        Raises:
            ValueError, TypeError: a bad argument, named.
        """
        self._check(features)
        return ops.vmf_logits(features, *self._distributions(features), temperature=self.temperature)

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of the logits, with the classes' log-frequencies; ``update`` is called by you, before it.

        Raises:
            ValueError, TypeError: a bad argument, named.
        """
        self._check(features)
        directions, kappa = self._distributions(features)
        return ops.vmf_cross_entropy(
            features, labels, directions, kappa, log_prior=self.log_prior, temperature=self.temperature
        )

    def extra_repr(self) -> str:
        return f"{self.num_classes}, {self.feature_dim}, temperature={self.temperature}"

    def _check(self, features: Tensor) -> None:
        check_matrix(features, "features", f"(batch, {self.feature_dim})")
        if features.shape[1] != self.feature_dim:
            raise ValueError(f"features has shape {tuple(features.shape)}: expected (batch, {self.feature_dim})")
        if features.device != self.sums.device:
            raise ValueError(f"features is on {features.device}: expected it where the loss is, on {self.sums.device}")

    def _distributions(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Directions and concentrations that stay as they are when ``update`` comes before the backward pass."""
        if features.requires_grad and torch.is_grad_enabled():
            return self.directions.clone(), self.kappa.clone()
        return self.directions, self.kappa

    def _estimate(self) -> None:
        """Directions and concentrations from both epochs' sums."""
        # what a class started with counts for nothing once it is seen
        kept = (self.past_counts > 0) | (self.counts == 0)
        torch.addcmul(self.sums, self.past_sums, kept[:, None].float(), out=self.directions)
        lengths = torch.linalg.vector_norm(self.directions, dim=1)
        self.directions.div_(lengths.clamp(min=1e-12)[:, None])
        means = lengths / (self.past_counts + self.counts).clamp(min=1)
        kappa = self.feature_dim * means / (1 - means.square()).clamp(min=1e-12)
        self.kappa.copy_(kappa.clamp(max=_LARGEST_KAPPA))
