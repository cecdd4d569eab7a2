"""The options of `--method lift`."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from ltfast.engine import check, option
from ltfast.methods.settings.backbone import unless_auto
from ltfast.methods.settings.classifier_loss import ClassifierLossSettings

if TYPE_CHECKING:
    from ltfast.data import DataBundle

HEADS = ("auto", "class_mean", "linear_probe", "text", "random")


@dataclass(frozen=True, kw_only=True)
class Settings(ClassifierLossSettings):
    """Options of `--method lift`.

    Raises:
        ValueError: a setting is out of its range.
    """

    epochs: int = option(10, "passes over the training images")
    batch_size: int = option(128, "images a batch and process")
    optimizer: str = option(
        "momentum", "any optimiser timm knows: momentum (SGD without Nesterov momentum), adamw, ..."
    )
    lr: float = option(0.01, "peak learning rate, as it is: not scaled by the batch size")
    weight_decay: float = option(5e-4, "weight decay, on adapters and classifier")
    backbone: str = option(
        "auto", "a vision transformer of timm's; auto: vit_digits up to 16 pixels, vit_tiny_cifar up to 64, "
        "vit_base_patch16_224 above"
    )  # fmt: skip
    init: str | None = option(
        None,
        "folder or checkpoint of a run: its vision transformer is the backbone; of a LiVT run, the encoder it has "
        "pre-trained",
    )
    loss: Literal[
        "logit_adjusted",
        "balanced_softmax",
        "cross_entropy",
        "balanced_bce",
        "focal",
        "class_balanced",
        "class_balanced_focal",
        "vs",
        "lade",
        "seesaw",
    ] = option("logit_adjusted", "training loss, of the cosines times --scale")
    augment: Literal[
        "none", "basic", "cifar", "cifar_autoaugment", "simclr", "resized_crop", "imagenet", "randaugment"
    ] = option("resized_crop", "augmentation of training images; resized_crop is a random resized crop and a flip")
    adapter: Literal[
        "none",
        "adaptformer",
        "lora",
        "lora_mlp",
        "adapter",
        "ssf",
        "bias",
        "layer_norm",
        "vpt_shallow",
        "vpt_deep",
        "full",
    ] = option(
        "adaptformer",
        "what adapts the transformer: modules in its blocks (adaptformer, lora, lora_mlp, adapter, ssf), prompts "
        "(vpt_shallow, vpt_deep), its own biases, LayerNorms or whole blocks (bias, layer_norm, full); with none the "
        "classifier alone is trained",
    )
    adapter_width: int | Literal["auto"] = option(
        "auto",
        "width of adaptformer, adapter, lora and lora_mlp; auto: the largest power of 2 up to classes / (2 x blocks)",
    )
    adapter_blocks: int | Literal["auto"] = option(
        "auto", "the last so many blocks are adapted, and those before are frozen; auto: all blocks"
    )
    scale: float | Literal["learned"] = option(25.0, "factor of the cosines; learned: trained too, from 25 on")
    head_init: Literal["auto", "class_mean", "linear_probe", "text", "random"] = option(
        "auto",
        "the classifier's weights at the start, from the features of the training images before the training: the mean "
        "of each class, or the weights of a logistic regression; text: from --class-text; random: new ones; auto: text "
        "with --class-text, class_mean without",
    )
    class_text: str | None = option(
        None,
        "start the classifier from texts: a .safetensors, .npy, .npz or .pt file with the embedding of each class, by "
        "its name or as rows; or names, which open_clip encodes with the text encoder of a CLIP backbone",
    )
    cache_gib: float = option(
        20.0,
        "with `--augment none`, GiB of disk that the outputs of the frozen blocks may take, which are then computed "
        "once for all epochs; 0 computes them in each epoch",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        width, blocks, scale = self.adapter_width, self.adapter_blocks, self.scale
        check(width == "auto" or width >= 1, "adapter_width", "at least 1, or auto", width)
        check(blocks == "auto" or blocks >= 1, "adapter_blocks", "at least 1, or auto", blocks)
        check(scale == "learned" or scale > 0, "scale", "a positive number, or learned", scale)
        check(self.head_init in HEADS, "head_init", f"one of {', '.join(HEADS)}", self.head_init)
        text, head = self.class_text is not None, self.head_init
        check(text or head != "text", "class_text", "a file of embeddings, or names, with --head-init text", "none")
        check(not text or head in ("auto", "text"), "class_text", f"none with --head-init {head}", self.class_text)
        # with --init the features are standardised, and a run's own backbone has no text encoder
        check(not text or self.init is None, "class_text", "none with --init", self.class_text)
        check(self.cache_gib >= 0, "cache_gib", "at least 0", self.cache_gib)

    def chosen(self, bundle: "DataBundle") -> "Settings":
        from ltfast.models import default_vit

        size = self.size_for(bundle)
        return replace(
            self,
            image_size=size,
            backbone=unless_auto(self.backbone, default_vit(size)),
            head_init=unless_auto(self.head_init, "class_mean" if self.class_text is None else "text"),
        )
