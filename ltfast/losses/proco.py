from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn import functional as F

from ltfast import ops
from ltfast.losses.sharded_state import ShardedState
from ltfast.losses.watch import Watch
from ltfast.ops.core.checks import check_integer, check_label_values, check_labels, check_matrix, check_positive
from ltfast.ops.core.class_counts import ClassCounts, parse_class_counts
from ltfast.ops.core.collectives import class_ranges, gather, gather_together, world_size

_LARGEST_KAPPA = 1e5
_START = 0.9  # the length of the mean of a class that was not seen yet


class ProCoLoss(ShardedState):
    """Features of length 1 -> probabilistic contrastive loss: every class a von Mises-Fisher distribution on the sphere
    of features.

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
        class_counts: (C,), training images of each class, in the order of the labels: their log-frequencies are added
            to the logits of the loss (logit adjustment), but not to those of ``logits``; None adds nothing.
        ignore_index: features of this label are left out, of the statistics and of the loss, whose mean is over the
            others.
        class_parallel: under ``torch.distributed``, each process has the statistics of its own share of the classes
            (``ltfast.ops.core.collectives.class_ranges``), for more classes than one device holds: memory C_r x D.
            The loss is as it would be otherwise; ``ltfast.ops.class_parallel_vmf_cross_entropy`` has more. ``logits``
            gives those of the joined batch for these classes. All processes must call each method equally often, with
            batches of one size, and ``collect()`` before ``state_dict()``, which is that of the whole loss.

    Shapes: features (B, D) of length 1, any float dtype; labels (B,), int64; the loss is float32 (float64 for float64).

    The statistics are buffers and stay float32. Under ``torch.distributed`` ``update`` adds up the batches of all
    processes, which must call it equally often.

    Warnings, each once for a loss object: features that are not of length 1; a loss in training mode with gradient
    before any ``update``; the largest kappa for every class. They are looked for now and then on a CPU, and under
    ``LTFAST_CHECKS=1`` on a GPU.

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
        class_counts: ClassCounts | None = None,
        ignore_index: int = -100,
        class_parallel: bool = False,
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
        check_integer("ignore_index", ignore_index)
        self.ignore_index = ignore_index
        self.num_classes, self.feature_dim, self.temperature = num_classes, feature_dim, temperature
        # a generator of its own: the same on every process, whatever their seeds
        generator = torch.Generator("cpu").manual_seed(0)
        start = torch.randn(num_classes, feature_dim, generator=generator, device="cpu", dtype=torch.float32)
        self.first = 0  # class
        if class_parallel:
            ranges = class_ranges(num_classes)
            own = self.share_out(num_classes, [slice(classes.start, classes.stop) for classes in ranges])
            self.first, start = own.start, start[own].clone()
            log_prior = None if log_prior is None else log_prior[own].clone()
        self.hold("start", _START * F.normalize(start), persistent=False)
        if log_prior is None:
            self.log_prior = None
        else:
            self.hold("log_prior", log_prior, persistent=False)
        # of this epoch, and of the one before or, where that saw nothing of a class, its start
        self.hold("sums", torch.zeros_like(start))
        self.hold("counts", start.new_zeros(len(start), dtype=torch.int64))
        self.hold("past_sums", self.start.clone())
        self.hold("past_counts", self.counts.clone())
        self.hold("directions", torch.empty_like(start))
        self.hold("kappa", start.new_empty(len(start)))
        self._estimate()
        self.feature_watch, self.statistics_watch = Watch(), Watch()
        self.updated = False

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
            labels: (N,), integers in [0, C), or ``ignore_index``.

        Raises:
            ValueError, TypeError: a bad argument, named.
        """
        self._check(features)
        check_labels(labels, features, "labels", classes=self.num_classes, ignore_index=self.ignore_index)
        kept = labels.long() != self.ignore_index
        labels = labels.where(kept, 0)
        # one more column holds 1 where a feature counts: its sums are the counts, and one collective adds up both
        counts = features.sum(dim=1, keepdim=True, dtype=torch.float32).isfinite() & kept[:, None]
        rows = torch.cat([features.where(counts, 0), counts.to(features.dtype)], dim=1)
        if self.processes > 1:
            rows, labels = gather_together(rows, labels.long())
            if labels.device.type == "cpu":  # in all processes alike: none is left waiting for another
                check_label_values(labels, self.num_classes, "labels")
            labels = labels - self.first
            here = (labels >= 0) & (labels < len(self.sums))
            rows, labels = rows.where(here[:, None], 0), labels.where(here, 0)
        both = ops.class_sums(rows, labels, len(self.sums))[0].float()
        if self.processes == 1 and world_size() > 1:
            distributed.all_reduce(both)
        self.sums += both[:, :-1]
        self.counts += both[:, -1].long()
        self._estimate()
        if not torch.compiler.is_compiling():
            self.updated = True

    def logits(self, features: Tensor) -> Tensor:
        """Expected contrastive logits, (B, C), float32 (float64 for float64), without the classes' log-frequencies.

        Raises:
            ValueError, TypeError: a bad argument, named.
        """
        self._check(features)
        directions, kappa = self._distributions(features)
        if self.processes > 1:
            features = gather(features)
        return ops.vmf_logits(features, directions, kappa, temperature=self.temperature)

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of the logits, with the classes' log-frequencies; ``update`` is called by you, before it.

        Raises:
            ValueError, TypeError: a bad argument, named.
        """
        self._check(features)
        directions, kappa = self._distributions(features)
        options: dict[str, Any] = {
            "log_prior": self.log_prior,
            "temperature": self.temperature,
            "ignore_index": self.ignore_index,
        }
        if self.processes > 1:
            return ops.class_parallel_vmf_cross_entropy(
                features, labels, directions, kappa, self.num_classes, **options
            )
        return ops.vmf_cross_entropy(features, labels, directions, kappa, **options)

    def extra_repr(self) -> str:
        return f"{self.num_classes}, {self.feature_dim}, temperature={self.temperature}"

    def _check(self, features: Tensor) -> None:
        self.check_processes()
        check_matrix(features, "features", f"(batch, {self.feature_dim})")
        if features.shape[1] != self.feature_dim:
            raise ValueError(f"features has shape {tuple(features.shape)}: expected (batch, {self.feature_dim})")
        if features.device != self.sums.device:
            raise ValueError(f"features is on {features.device}: expected it where the loss is, on {self.sums.device}")
        if self.feature_watch.due(features):
            self.feature_watch.lengths("ProCoLoss", features=features)

    def _distributions(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Directions and concentrations that stay as they are when ``update`` comes before the backward pass."""
        if features.requires_grad and torch.is_grad_enabled():
            if self.training and self.statistics_watch.due(self.kappa):
                self._look_at_statistics()
            return self.directions.clone(), self.kappa.clone()
        return self.directions, self.kappa

    def _look_at_statistics(self) -> None:
        seen = self.counts + self.past_counts
        if not self.updated and not seen.any():  # neither here nor in the run that a checkpoint is from
            self.statistics_watch.warn(
                "ProCoLoss: a loss is computed, and update() was never called, so that every class has a random "
                "direction; expected update(features, labels) before the loss of each batch"
            )
        elif seen.max() > 1 and (self.kappa >= _LARGEST_KAPPA).all():
            self.statistics_watch.warn(
                f"ProCoLoss: every class has the largest concentration, {_LARGEST_KAPPA:.0e}; expected features of "
                "length 1 that differ within a class. They are longer, or the network gives one feature for all images"
            )

    def _estimate(self) -> None:
        """Directions and concentrations from both epochs' sums."""
        if self.processes > 1:
            self.changed()
        # what a class started with counts for nothing once it is seen
        kept = (self.past_counts > 0) | (self.counts == 0)
        torch.addcmul(self.sums, self.past_sums, kept[:, None].float(), out=self.directions)
        lengths = torch.linalg.vector_norm(self.directions, dim=1)
        self.directions.div_(lengths.clamp(min=1e-12)[:, None])
        means = lengths / (self.past_counts + self.counts).clamp(min=1)
        kappa = self.feature_dim * means / (1 - means.square()).clamp(min=1e-12)
        self.kappa.copy_(kappa.clamp(max=_LARGEST_KAPPA))
