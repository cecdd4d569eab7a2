"""The outcome of an evaluation: the class scores of the test images, and what follows for each image."""

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor
from torch.nn.functional import cross_entropy


@dataclass(frozen=True)
class Outcome:
    """The class scores of test images.

    Attributes:
        scores: (N, C) float32, on the CPU.
        labels: (N,) int64, in [0, C).
        score_scale: the factor of the scores in the softmax; see `Predictor`.
    """

    scores: Tensor
    labels: Tensor
    score_scale: float = 1.0

    @cached_property
    def predicted(self) -> Tensor:
        """The class with the highest score, (N,) int64; the first of equal ones."""
        return self.scores.argmax(1)

    @cached_property
    def hits(self) -> Tensor:
        """Whether the predicted class is the label, (N,) bool."""
        return self.predicted == self.labels

    @cached_property
    def finite(self) -> bool:
        """Whether all scores are finite, so that there are probabilities."""
        return bool(self.scores.isfinite().all())

    @cached_property
    def probabilities(self) -> Tensor:
        """The probability of each class, (N, C) float64, as `ltfast predict` gives them."""
        return (self.score_scale * self.scores.double()).softmax(1)

    @cached_property
    def confidence(self) -> Tensor:
        """The probability of the predicted class, (N,) float64."""
        return self._probability_of(self.predicted)

    @cached_property
    def label_probability(self) -> Tensor:
        """The probability of the label, (N,) float64."""
        return self._probability_of(self.labels)

    @cached_property
    def top5_hits(self) -> Tensor:
        """Whether the label is one of the five classes with the highest scores, (N,) bool. C is above 5."""
        return (self.scores.topk(5, dim=1).indices == self.labels[:, None]).any(1)

    @cached_property
    def negative_log_likelihood(self) -> Tensor:
        """That of each image, (N,) float64, in nats."""
        return cross_entropy(self.score_scale * self.scores.double(), self.labels, reduction="none")

    @cached_property
    def brier_score(self) -> Tensor:
        """That of each image, (N,) float64: the squared error of the probabilities, summed over the classes."""
        return self.probabilities.square().sum(1) - 2 * self.label_probability + 1

    def _probability_of(self, classes: Tensor) -> Tensor:
        return self.probabilities.gather(1, classes[:, None])[:, 0]
