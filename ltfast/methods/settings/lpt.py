"""The options of `--method lpt`."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from ltfast.engine import Optimisation, check, option
from ltfast.methods.settings.backbone import BackboneSettings, unless_auto

if TYPE_CHECKING:
    from ltfast.data import DataBundle


@dataclass(frozen=True, kw_only=True)
class Settings(BackboneSettings):
    """Options of `--method lpt`. Options without a prefix belong to the first phase, and to the second one unless it
    has its own.

    Raises:
        ValueError: a setting is out of its range.
    """

    backbone: str = option(
        "auto", "a vision transformer of timm's; auto: vit_digits up to 16 pixels, vit_tiny_cifar up to 64, "
        "vit_base_patch16_224 above"
    )  # fmt: skip
    lr: float = option(0.02, "peak learning rate, as it is: the paper's is 0.002 to 0.02 for a batch of 256")
    weight_decay: float = option(1e-4, "weight decay, on prompts, keys and classifier")
    augment: Literal["none", "basic", "cifar", "cifar_autoaugment", "simclr", "imagenet", "randaugment"] = option(
        "basic", "augmentation of training images; basic is a shifted crop, cifar flips too"
    )
    sampler: Literal["instance", "class_balanced", "square_root", "effective_number"] = option(
        "class_balanced", "which images the first phase draws: each once, or by class"
    )
    init: str | None = option(
        None,
        "folder or checkpoint of a run: its vision transformer is the backbone; of a LiVT run, the encoder it has "
        "pre-trained",
    )
    prompt_length: int = option(10, "shared prompts of each block")
    group_epochs: int | Literal["auto"] = option(
        "auto", "epochs of the second phase, of twice the images; auto: --epochs"
    )
    group_lr: float | Literal["auto"] = option("auto", "its learning rate; auto: --lr")
    group_length: int = option(10, "group prompts of a block and key")
    group_blocks: int | Literal["auto"] = option(
        "auto", "the last so many blocks have group prompts; auto: half of them"
    )
    pool_size: int = option(20, "keys in the pool of group prompts")
    matches: int = option(2, "keys that an image chooses; it gets the mean of their prompts")
    eta: float = option(0.5, "weight of the half that is sampled as the data are, at first; it falls to 0")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("prompt_length", "group_length", "pool_size"):
            check(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        check(1 <= self.matches <= self.pool_size, "matches", f"1 to {self.pool_size}, the pool's size", self.matches)
        check(
            self.batch_size % 2 == 0, "batch_size", "an even number: half of a batch is class-balanced", self.batch_size
        )
        epochs, blocks = self.group_epochs, self.group_blocks
        check(epochs == "auto" or epochs >= 1, "group_epochs", "at least 1, or auto", epochs)
        check(blocks == "auto" or blocks >= 1, "group_blocks", "at least 1, or auto", blocks)
        check(self.group_lr == "auto" or self.group_lr > 0, "group_lr", "a positive number, or auto", self.group_lr)
        check(self.eta >= 0, "eta", "at least 0", self.eta)

    def loss_takes(self) -> tuple[str, Collection[str]]:
        return "agcl", ("label_smoothing",)

    def chosen(self, bundle: "DataBundle") -> "Settings":
        from ltfast.models import default_vit

        size = self.size_for(bundle)
        return replace(
            self,
            image_size=size,
            backbone=unless_auto(self.backbone, default_vit(size)),
            group_epochs=unless_auto(self.group_epochs, self.epochs),
            group_lr=unless_auto(self.group_lr, self.lr),
        )

    def of_group_phase(self) -> Optimisation:
        """The optimisation of the second phase."""
        first = Optimisation(**{name: getattr(self, name) for name in Optimisation.__dataclass_fields__})
        epochs = unless_auto(self.group_epochs, self.epochs)
        return replace(
            first,
            epochs=epochs,
            lr=unless_auto(self.group_lr, self.lr),
            warmup_epochs=min(self.warmup_epochs, epochs),
        )
