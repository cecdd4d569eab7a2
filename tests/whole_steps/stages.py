"""All stages of all methods, on a few images."""

import numpy as np
import torch

from ltfast.engine import RunSettings
from ltfast.methods import METHODS, BuildContext, settings_of
from methods.conftest import tiny_bundle

SETTINGS = {
    "ce": {"batch_size": 5},
    "proco": {"batch_size": 5, "feature_dim": 16, "hidden_dim": 24, "augment": "basic", "contrast_augment": "basic"},
    "dscl": {
        "batch_size": 5,
        "feature_dim": 16,
        "queue_size": 12,
        "augment": "basic",
        "patches": 2,
        "patch_size": 8,
        "patch_scale": (0.3, 1.0),
        "classifier_batch_size": 6,
        "classifier_augment": "basic",
    },
    "livt": {
        "batch_size": 4,
        "warmup_epochs": 0,
        "pretrain_batch_size": 5,
        "decoder_dim": 16,
        "decoder_depth": 1,
        "decoder_heads": 2,
    },
    "lift": {"batch_size": 4, "adapter_width": 2},
    "lpt": {"batch_size": 4, "prompt_length": 3, "group_length": 2, "pool_size": 5},
    "do": {"batch_size": 5, "group_minima": (10, 4), "prune": (0.3, 0.3), "prune_epochs": 2},
}
STAGES = {
    "ce": ("ce", "train", {}),
    "ce agcl": ("ce", "train", {"loss": "agcl"}),
    "proco": ("proco", "train", {}),
    "dscl contrast": ("dscl", "contrast", {}),
    "dscl classifier": ("dscl", "classifier", {}),
    "livt pretrain": ("livt", "pretrain", {}),
    "livt finetune": ("livt", "finetune", {}),
    "lift": ("lift", "adapt", {}),
    "lift frozen": ("lift", "adapt", {"augment": "none", "adapter": "lora", "adapter_blocks": 1, "scale": "learned"}),
    "lpt shared": ("lpt", "shared", {}),
    "lpt group": ("lpt", "group", {}),
    "do many": ("do", "many", {}),
    "do pruned": ("do", "many_pruned", {}),
    "do few": ("do", "few", {}),
    "ce fused": ("ce", "train", {"fused_classifier": "on", "loss": "logit_adjusted"}),
    "proco fused": ("proco", "train", {"fused_classifier": "on", "classifier": "cosine"}),
    "livt fused": ("livt", "finetune", {"fused_classifier": "on"}),
    "lift fused": ("lift", "adapt", {"fused_classifier": "on"}),
    "lpt fused": ("lpt", "group", {"fused_classifier": "on"}),
}


def make_plan(method, fused_classifier="auto", **values):
    """The plan of a tiny run; it is the same each time."""
    torch.manual_seed(0)
    settings = settings_of(method, {"epochs": 2, "lr": 0.01, **SETTINGS[method], **values})
    run = RunSettings(seed=3, fused_classifier=fused_classifier)
    return METHODS[method].build(settings, tiny_bundle(), BuildContext(run))


def make_stage(name):
    """One of `STAGES`, ready for training."""
    method, stage_name, values = STAGES[name]
    (stage,) = (stage for stage in make_plan(method, **values).stages if stage.name == stage_name)
    for parameter in stage.parameters():
        parameter.requires_grad_(False)
    for parameter in stage.trained():
        parameter.requires_grad_(True)
    return stage.train()


def first_batches(stage, number):
    """The first batches of the stage's first epochs."""
    batches = []
    for epoch in range(number):
        batches += stage.batches.epoch(epoch, 0)
    return batches[:number]


def seed(number):
    torch.manual_seed(number)
    np.random.seed(number)
