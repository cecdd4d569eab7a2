from collections.abc import Callable, Sequence

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from ltfast import ops
from ltfast.losses.class_counts import parse_class_counts
from ltfast.ops.checks import check_matrix

_LARGEST_KAPPA = 1e5
_START = 0.9  # the length of the mean of a class that was not seen yet


class ProCoLoss(nn.Module):
    """Probabilistic contrastive loss: every class a von Mises-Fisher distribution on the sphere of features.

    Du et al., "Probabilistic Contrastive Learning for Long-Tailed Visual Recognition", TPAMI 2024. The features of a
    class are summed up over all batches; their mean gives the distribution's direction, and its length R the
    concentration kappa = D R / (1 - R^2), at most 1e5. A feature's logit for a class is then the expectation of a
    contrastive loss over all features that the class could have; the formula is in ``ltfast.ops.vmf``. In a script:

        for epoch in range(epochs):
            proco.start_epoch()
            for images, labels in batches:
                features = F.normalize(head(backbone(images)))
                proco.update(features, labels)
                loss = proco(features, labels)

    There are two estimators, as in the authors' code: the one in use has seen the epoch before and this one, the other
    only this one; at the start of an epoch the other takes its place and a new one begins.

    Args:
        num_classes: C, at least 1.
        feature_dim: D, at least 2.
        temperature: tau, over 0.
        class_counts: (C,), training images of each class: their log-frequencies are added to the logits of the loss
            (logit adjustment), but not to those of ``logits``; None adds nothing.

    Shapes: features (B, D) of length 1, any float dtype; labels (B,), int64; the loss is float32 (float64 for float64).

    The statistics are buffers, float32. Under ``torch.distributed`` ``update`` adds up the batches of all processes.

    Raises:
        ValueError: an argument is out of its range.
    """

    sums: Tensor
    counts: Tensor
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
        if not 0 < temperature < float("inf"):
            raise ValueError(f"temperature is {temperature}: expected a number over 0")
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
        # of the estimator in use and of the one that began with this epoch
        self.register_buffer("sums", self.start.repeat(2, 1, 1))
        self.register_buffer("counts", start.new_zeros(2, num_classes, dtype=torch.int64))
        self.register_buffer("directions", torch.empty_like(start))
        self.register_buffer("kappa", start.new_empty(num_classes))
        self._estimate()

    @torch.no_grad()
    def start_epoch(self) -> None:
        """Begin an epoch: the estimator that began with the last one is used from now on, and a new one begins."""
        self.sums[0] = self.sums[1]
        self.counts[0] = self.counts[1]
        self.sums[1] = self.start
        self.counts[1] = 0
        self._estimate()

    @torch.no_grad()
    def update(self, features: Tensor, labels: Tensor) -> None:
        """Add a batch to the statistics: with more views than one, the features of all of them.

        Args:
            features: (N, D) of length 1, any float dtype.
            labels: (N,), integers in [0, C).

        Raises:
            ValueError, TypeError: a bad argument, named.
        """
        self._check(features)
        # A feature that is not finite would stay in the means for two epochs: it is left out. One more column holds 1
        # where a feature counts, so that the class sums are the sums and the counts, and one collective adds up both.
        finite = features.isfinite().all(dim=1, keepdim=True)
        rows = torch.cat([features.where(finite, 0), finite.to(features.dtype)], dim=1)
        both = ops.class_sums(rows, labels, self.num_classes)[0].float()
        if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
            distributed.all_reduce(both)
        sums, counts = both[:, :-1], both[:, -1].long()
        # what a class started with counts for nothing once it is seen
        kept = (self.counts > 0) | (counts == 0)
        torch.addcmul(sums, self.sums, kept[:, :, None].float(), out=self.sums)
        self.counts += counts
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

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ProCoLoss":
        """Move, but stay float32 under ``model.half()``: sums in half precision stop growing."""

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move, recurse)

    def _estimate(self) -> None:
        """Directions and concentrations from the sums of the estimator in use."""
        lengths = torch.linalg.vector_norm(self.sums[0], dim=1)
        torch.div(self.sums[0], lengths.clamp(min=1e-12)[:, None], out=self.directions)
        means = lengths / self.counts[0].clamp(min=1)  # a class that was not seen has its start for a sum
        kappa = self.feature_dim * means / (1 - means**2)
        self.kappa.copy_(torch.where(means < 1, kappa, _LARGEST_KAPPA).clamp(max=_LARGEST_KAPPA))
