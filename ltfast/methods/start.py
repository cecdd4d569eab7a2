"""Where training starts from: `--init`, the network of an earlier run, or `--weights`, a file."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from ltfast.errors import InputError
from ltfast.methods.context import BuildContext
from ltfast.methods.earlier_run import EarlierRun, read_run
from ltfast.methods.settings import BackboneSettings
from ltfast.methods.weights_file import read_weights
from ltfast.terminal import say

if TYPE_CHECKING:
    from ltfast.data import DataBundle


@dataclass(frozen=True)
class InitialWeights:
    """The weights with which the first stage of a run starts. Nothing is read before they are loaded.

    Attributes:
        settings: after `chosen`; one of their starts is given.
        bundle, context: see `ltfast.methods`.
        backbone: a timm model, whose own classifier is left unchanged.
        head: the classifier, which gets a run's weights if they fit and its classes are the same; None if it starts
            anew in any case.
        encoder: see `read_run`.
        mean_of_patches: whether the backbone is a vision transformer whose features are the mean of its patches, as in
            LiVT; a classifier for other features does not fit.
    """

    settings: BackboneSettings
    bundle: "DataBundle"
    context: BuildContext
    backbone: nn.Module
    head: nn.Module | None
    encoder: bool = False
    mean_of_patches: bool = False

    def __call__(self) -> None:
        """Load the weights, and print in the first process what they are."""
        loaded = self.load()
        if self.context.rank == 0:
            say(f"starting from {loaded}")

    def load(self) -> str:
        """Load the weights.

        Returns:
            What they are, in words.

        Raises:
            InputNotFoundError: there is no checkpoint or file.
            InputError: it cannot be read, or does not fit; the message says what does not.
        """
        return self._from_run() if self.settings.weights is None else self._from_file(self.settings.weights)

    def _from_file(self, file: str) -> str:
        from ltfast.models.load_backbone import load_backbone

        state = read_weights(Path(file))
        try:
            left_out = load_backbone(self.backbone, state)
        except ValueError as error:
            ours = any(name.startswith("0.") for name in state)
            hint = "; this is a checkpoint of ltfast, which --init takes" if ours else ""
            raise InputError(
                f"expected weights of {self.settings.backbone} by timm's names, got {file}: {error}{hint}",
                name="weights",
            ) from error
        used = len(state) - len(left_out)
        classifier = f" except those of its classifier ({', '.join(left_out)})" if left_out else ""
        return f"{file}: its {used} tensors{classifier}; the classifier is new"

    def _from_run(self) -> str:
        run = read_run(Path(str(self.settings.init)), encoder=self.encoder)
        self._load_backbone(run)
        if self.head is None:
            return f"{run}: its backbone"
        if why := self._why_new(run, self.head):
            return f"{run}: its backbone; the classifier is new, since {why}"
        self.head.load_state_dict(run.head)
        return f"{run}: its backbone and its classifier"

    def _load_backbone(self, run: EarlierRun) -> None:
        from ltfast.models.load_backbone import load_backbone

        here = self.bundle.channels
        if (there := run.facts.get("channels", here)) != here:
            expected = f"a run on images with {here} channel{'s' * (here > 1)}"
            raise InputError(f"expected {expected}, as here, got one with {there}: {run}", name="init")
        try:
            load_backbone(self.backbone, run.backbone)
        except ValueError as error:
            theirs = run.backbone_name()
            named = "another form of it" if theirs == self.settings.backbone else theirs
            raise InputError(
                f"expected a run with the backbone {self.settings.backbone}, as here, got {named} in {run}: {error}",
                name="init",
            ) from error

    def _why_new(self, run: EarlierRun, head: nn.Module) -> str:
        """The reason why the classifier starts anew; empty if it starts as the run's."""
        if not run.head:
            return run.no_head
        if (run.method == "livt") != self.mean_of_patches:
            return "the features of method livt are means of patches, and those of other methods are not"
        here, there = self.bundle.class_names, run.facts.get("class_names", [])
        if len(here) != len(there):
            return f"there are {len(here)} classes, and {len(there)} in that run"
        if differing := [(i, a, b) for i, (a, b) in enumerate(zip(here, there, strict=True)) if a != b]:
            number, a, b = differing[0]
            return f"the classes differ: class {number} is {a!r}, and {b!r} in that run"
        shapes = {name: value.shape for name, value in head.state_dict().items()}
        if shapes != {name: value.shape for name, value in run.head.items()}:
            return "one is a linear and the other a cosine classifier"
        return ""


def initial_weights(
    settings: BackboneSettings,
    bundle: "DataBundle",
    context: BuildContext,
    backbone: nn.Module,
    head: nn.Module | None,
    *,
    encoder: bool = False,
    mean_of_patches: bool = False,
) -> InitialWeights | None:
    """The weights with which the first stage starts; None if they are new, or timm's. See `InitialWeights`."""
    if settings.init is None and settings.weights is None:
        return None
    return InitialWeights(settings, bundle, context, backbone, head, encoder, mean_of_patches)
