"""A run of each method with 2 and 4 processes equals the run of one process with the global batch."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from distributed.harness import run_processes
from ltfast.data import ArrayDataset, DataBundle, class_groups
from ltfast.data.transforms import NormalizedTensor
from ltfast.engine import RunSettings, report
from ltfast.engine.accelerator import make_accelerator
from ltfast.engine.loop import train
from ltfast.engine.seeding import seed_everything
from ltfast.methods import METHODS, BuildContext, decoupled_optimisation, settings_of

COUNTS = [12, 7, 5]  # 24 images in full batches of 8
GROUP_MINIMA = (10, 6)
JOINED = 8
# not a multiple of 4 processes, or fewer
TEST_IMAGES = {"ce": 5, "proco": 3, "dscl": 5, "do": 5, "livt": 3, "lift": 3, "lpt": 5}
RUNS = {  # in this order: lift and lpt use the encoder that livt has pre-trained
    "ce": {"epochs": 1, "loss": "balanced_bce", "sampler": "class_balanced"},
    "proco": {"epochs": 2, "lr": 0.01, "augment": "basic", "contrast_augment": "basic",
              "feature_dim": 16, "hidden_dim": 32},
    "dscl": {"epochs": 1, "lr": 0.03, "feature_dim": 16, "queue_size": 16, "patches": 2, "key_momentum": 0.9,
             "classifier_epochs": 1},
    "do": {"epochs": 1, "prune_epochs": 1, "group_minima": GROUP_MINIMA, "aggregate": "group"},
    "livt": {"epochs": 1, "warmup_epochs": 0, "optimizer": "adamw", "lr": 1e-3, "drop_path": 0.0,
             "mixup": 0.0, "cutmix": 0.0,
             "pretrain_epochs": 1, "decoder_dim": 32, "decoder_depth": 1, "decoder_heads": 2},
    "lift": {"epochs": 2, "adapter": "adaptformer", "adapter_width": 2, "adapter_blocks": 2, "augment": "none"},
    "lpt": {"epochs": 1, "prompt_length": 2, "group_length": 2, "pool_size": 4, "group_blocks": 2},
}  # fmt: skip


def bundle_of(test_images):
    """Three kinds of noise that are similar enough for a network to make errors."""
    generator = np.random.default_rng(0)

    def images(labels):
        pixels = generator.integers(0, 150, (len(labels), 8, 8)) + 30 * labels.numpy()[:, None, None]
        return ArrayDataset(pixels.astype(np.uint8), labels, ["a", "b", "c"])

    train_labels = torch.arange(3).repeat_interleave(torch.tensor(COUNTS))
    test = images(torch.arange(test_images) % 3)
    return DataBundle(images(train_labels), test, (0.5,), (0.25,), image_size=8, channels=1)


def without_randomness(plan):
    """Removes what each process draws for itself: A-GCL has no noise, and a mask becomes a function of the image."""
    for module in nn.ModuleList(plan.stages).modules():
        if hasattr(module, "noisy"):
            module.noisy = False
        if hasattr(module, "mask_token"):
            module.draw = lambda images, masked=module.masked: (
                (order := images.unfold(2, 2, 2).unfold(3, 2, 2).sum((1, 4, 5)).flatten(1).argsort(1))[:, masked:],
                order[:, :masked],
            )


def recorded(stage, record):
    """Record the stage's losses, and the gradients of its first and last step."""
    forward, after_backward = stage.forward, stage.after_backward
    losses, gradients = record.setdefault(stage.name, ([], []))

    def watched_forward(batch):
        loss, logged = forward(batch)
        losses.append(loss.detach())
        return loss, logged

    def watched_after_backward():
        of_step = {name: p.grad.clone() for name, p in stage.named_parameters() if p.grad is not None}
        gradients[1:] = [of_step]  # keep the first
        after_backward()

    stage.forward, stage.after_backward = watched_forward, watched_after_backward
    stage.losses = list  # with one process, they would be timed, which updates BatchNorm's statistics by one step


def train_all(rank, processes, folder, names, fused):
    """Train methods in float64. For each, return the losses, gradients, weights and accuracies of this process."""
    report.plot_per_class = lambda *_: None  # this takes as long as the training
    decoupled_optimisation.CANDIDATES = (0.0, 0.3, 0.6, 0.9)
    to_float32 = NormalizedTensor.__call__
    NormalizedTensor.__call__ = lambda self, image: to_float32(self, image).double()
    accelerator = make_accelerator("fp32")
    run = RunSettings(sync_batchnorm=True, fused_classifier=fused)
    results = {}
    for method in names:
        values = dict(RUNS[method])
        if method in ("lift", "lpt"):
            values["init"] = f"{folder}/livt"
        share = JOINED // processes
        values["batch_size"] = share
        if method == "livt":
            values["pretrain_batch_size"] = share
        bundle = bundle_of(TEST_IMAGES[method])
        seed_everything(run.seed)
        settings = settings_of(method, values)
        torch.set_default_dtype(torch.float64)
        plan = METHODS[method].build(settings, bundle, BuildContext(run, rank, processes, 2))
        torch.set_default_dtype(torch.float32)
        without_randomness(plan)
        record = {}
        for stage in plan.stages:
            recorded(stage, record)
        metrics = train(
            plan,
            run=run,
            settings={"method": method, **json.loads(json.dumps(values))},
            facts={"class_names": bundle.class_names},
            class_counts=COUNTS,
            groups=class_groups(COUNTS, GROUP_MINIMA),
            out=Path(folder) / method,
            accelerator=accelerator,
        )
        state = nn.ModuleList(plan.stages).state_dict()
        digest = hashlib.sha256(b"".join(value.numpy().tobytes() for value in state.values())).hexdigest()
        if rank > 0:  # they are compared with those of the first process
            state = {}
            record = {name: (losses, []) for name, (losses, _) in record.items()}
        accuracies = metrics and {name: metrics[name] for name in ("top1", "many", "medium", "few", "per_class")}
        results[method] = (record, state, accuracies, digest)
    return results


def check(actual, expected, name):
    """The tolerance is relative to the largest value: ProCo's statistics are float32 and summed in another order. Its
    kappa, D R / (1 - R^2), loses another digit if R is close to 1."""
    tolerance = 1e-5 if name.endswith("kappa") else 1e-6
    largest = max(1.0, *(float(value.abs().max()) for value in expected if value.numel()))
    for one, other in zip(actual, expected, strict=True):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        error = float((one.double() - other.double()).abs().max()) if one.numel() else 0.0
        assert error <= tolerance * largest, name


def sorted_queue(state):
    """The keys sorted by class and first value, since those of each process are contiguous."""
    keys, labels = (state[f"0.contrast.losses.queue.{name}"] for name in ("keys", "labels"))
    order = np.lexsort((keys[:, 0].numpy(), labels.numpy()))
    return {**state, "0.contrast.losses.queue.keys": keys[order], "0.contrast.losses.queue.labels": labels[order]}


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "fused"), [(2, "off"), (4, "off"), (2, "on")])
def test_processes_train_as_one_with_the_joined_batch(processes, fused, tmp_path):
    (alone,) = run_processes(train_all, 1, 1, str(tmp_path / "alone"), list(RUNS), "off")
    together = run_processes(
        train_all, processes, processes, str(tmp_path / "together"), list(RUNS), fused, timeout=240
    )
    for method, (record, state, accuracies, _) in alone.items():
        parts = [results[method] for results in together]
        for stage, (losses, gradients) in record.items():
            means = torch.stack([torch.stack(part[0][stage][0]) for part in parts]).mean(0)
            check([means], [torch.stack(losses)], f"{method}: losses of {stage}")
            for step, (of_parts, of_one) in enumerate(zip(parts[0][0][stage][1], gradients, strict=True)):
                assert of_parts.keys() == of_one.keys()
                check(of_parts.values(), of_one.values(), f"{method}: gradients of {stage}, {step}")
        assert len({part[3] for part in parts}) == 1, method  # bit-identical everywhere
        joined = parts[0][1]
        if method == "dscl":
            joined, state = sorted_queue(joined), sorted_queue(state)
        for name, value in state.items():
            check([joined[name]], [value], f"{method}: {name}")
        assert parts[0][2] == accuracies, method
        assert [part[2] for part in parts[1:]] == [None] * (processes - 1)
