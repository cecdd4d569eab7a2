"""The trained network of an earlier run, of any method, from which another run starts (`--init`)."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ltfast.engine.checkpoint import CheckpointError, load_checkpoint
from ltfast.errors import InputError, InputNotFoundError

ENCODER = "0.autoencoder.encoder."  # the encoder before fine-tuning, in the checkpoint of a LiVT run
_ADAPTING = {"lift": "adapters", "lpt": "prompts"}  # methods that freeze a backbone, and what they add to it
# where the checkpoints of the other methods have the network; their stages share it
_NETWORKS = {
    "ce": "0.network.",
    "do": "0.network.network.",
    "dscl": "1.network.",
    "lift": "0.network.transformer.",
    "lpt": "0.network.transformer.",
    "proco": "0.network.",
}


@dataclass(frozen=True)
class EarlierRun:
    """The network of a run.

    Attributes:
        path: the checkpoint file, or the run's folder.
        method: the run's method.
        backbone: the backbone's weights by timm's names, without a classifier.
        head: the weights of the trained classifier, by name; empty if there is none.
        no_head: the reason why there is no classifier.
        settings, facts: those in the checkpoint.
        unfinished: the position of an unfinished run, in words.
    """

    path: Path
    method: str
    backbone: dict[str, Tensor]
    head: dict[str, Tensor] = field(default_factory=dict)
    no_head: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    unfinished: str = ""

    def backbone_name(self) -> str:
        """The setting `backbone` of the run; the name that was chosen if it is "auto"."""
        from ltfast.models import default_backbone, default_vit

        name, size = self.settings.get("backbone", "auto"), self.settings.get("image_size", "auto")
        if name not in ("auto", None):
            return str(name)
        size = self.facts.get("image_size") if size in ("auto", None) else size
        default = default_vit if self.method in ("lift", "livt", "lpt") else default_backbone
        return "another one" if size is None else default(size)

    def __str__(self) -> str:
        return f"{self.path} (method {self.method}{self.unfinished})"


def read_run(path: Path, *, encoder: bool = False) -> EarlierRun:
    """Read the network of a run from its checkpoint.

    Args:
        path: the checkpoint file, or the run's folder.
        encoder: whether to take the encoder that a LiVT run has pre-trained, before its fine-tuning, if it has one.

    Raises:
        InputNotFoundError: there is no checkpoint.
        InputError: the checkpoint cannot be read, or has no backbone.
    """
    try:
        saved = load_checkpoint(path.expanduser())
    except FileNotFoundError as error:
        raise InputNotFoundError(f"expected a run's folder or checkpoint, got {str(path)!r}", name="init") from error
    except CheckpointError as error:
        # "delete it" is advice for training only
        raise InputError(str(error).partition("; delete it")[0], name="init") from error
    settings, method, position = saved["settings"], saved["settings"].get("method"), saved["position"]
    unfinished = ""
    if position["epoch"] or position["step"]:
        unfinished = (
            f", unfinished: stage {position['stage'] + 1}, epoch {position['epoch'] + 1}, step {position['step']}"
        )
    known = {"settings": settings, "facts": saved["facts"], "unfinished": unfinished}
    if method in _ADAPTING and not saved.get("whole", True):
        if settings.get("init") is not None:
            started = read_run(Path(settings["init"]), encoder=True)
            trained = _below(saved["model"], f"{_NETWORKS[method]}backbone.")
            return replace(started, backbone={**started.backbone, **trained})
        problem = f"expected a run with a backbone of its own; that of {path} is timm's, which --pretrained gives"
        raise InputError(problem, name="init")
    backbone, head, no_head = _livt(saved, encoder=encoder) if method == "livt" else _shared(saved, method)
    if not backbone:
        raise InputError(f"expected a run's checkpoint with a backbone, got {path} of method {method!r}", name="init")
    return EarlierRun(path, str(method), backbone, head, no_head, **known)


_Parts = tuple[dict[str, Tensor], dict[str, Tensor], str]


def _shared(saved: Mapping[str, Any], method: str | None) -> _Parts:
    """The backbone and the head of a method whose stages share them, and why there is no head."""
    prefix = _NETWORKS.get(str(method), " ")
    backbone = _below(saved["model"], f"{prefix}backbone.")
    if method in _ADAPTING:
        return backbone, {}, f"that of the run is for its {_ADAPTING[method]}"
    if method == "dscl" and not _begun(saved["position"], 1):
        return backbone, {}, "that run has not trained one yet"
    return backbone, _below(saved["model"], f"{prefix}head."), ""


def _livt(saved: Mapping[str, Any], *, encoder: bool) -> _Parts:
    """The backbone and the head of a LiVT run, and why there is no head."""
    pretrained = _below(saved["model"], ENCODER)
    stage = 1 if pretrained else 0
    if pretrained and (encoder or not _begun(saved["position"], stage)):
        return pretrained, {}, "the encoder is taken as it was before the fine-tuning"
    network = _below(saved["model"], f"{stage}.network.")
    head = _below(network, "head.")
    return {name: value for name, value in network.items() if not name.startswith("head.")}, head, ""


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _begun(position: Mapping[str, int], stage: int) -> bool:
    """Whether a stage has been trained, at least in part."""
    return position["stage"] > stage or (position["stage"] == stage and bool(position["epoch"] or position["step"]))
