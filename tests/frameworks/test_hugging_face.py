"""``compute_loss`` in Hugging Face's ``Trainer``, with a model of ``transformers``."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from distributed.harness import run_processes
from frameworks.cases import BATCH, CLASSES, COUNTS, random_images
from frameworks.trainers import constant_rate
from ltfast.frameworks import compute_loss
from ltfast.losses import AGCLLoss, BalancedBCELoss, LogitAdjustedLoss

pytestmark = pytest.mark.slow


def network():
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, num_channels=1, num_labels=CLASSES, **sizes))


class Images(Dataset):
    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"pixel_values": self.images[index], "labels": self.labels[index]}


def trainer_of(model, criterion, data, folder, *, batch=BATCH, steps=1):
    from transformers import Trainer, TrainingArguments

    args = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=2,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=steps,
        max_grad_norm=0,
        train_sampling_strategy="sequential",
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    loss = compute_loss(criterion)
    optimizers = constant_rate(model)
    return Trainer(model, args, train_dataset=data, eval_dataset=data, optimizers=optimizers, compute_loss_func=loss)


def ignored(labels):
    """With more ignored labels in the first half of each batch than in the second."""
    return torch.where(torch.arange(len(labels)) % BATCH < 3, -100, labels)


def soft(labels):
    return torch.nn.functional.one_hot(labels, CLASSES).float().lerp(torch.full((CLASSES,), 1 / CLASSES), 0.3)


@pytest.mark.parametrize("targets", [lambda labels: labels, ignored, soft])
@pytest.mark.parametrize("criterion", [
    LogitAdjustedLoss(COUNTS, label_smoothing=0.1),
    LogitAdjustedLoss(COUNTS, weight=torch.tensor([0.4, 0.8, 1.0, 1.5, 2.0])),
    BalancedBCELoss(COUNTS),
    nn.CrossEntropyLoss(),
], ids=["smoothed", "weighted", "BalancedBCELoss", "nn.CrossEntropyLoss"])  # fmt: skip
def test_accumulated_gradients_are_those_of_one_batch(criterion, targets, tmp_path):
    images, labels = random_images()[:]
    data, whole = Images(images, targets(labels)), network()
    parts, before = deepcopy(whole), deepcopy(whole.state_dict())
    trainer_of(whole, criterion, data, tmp_path).train()
    trainer_of(parts, criterion, data, tmp_path, batch=BATCH // 2, steps=2).train()
    assert not torch.equal(whole.classifier.weight, before["classifier.weight"])
    torch.testing.assert_close(parts.state_dict(), whole.state_dict(), rtol=1e-4, atol=1e-6)


def two_batches(rank: int, seed: int, folder: str, batch: int, steps: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    images, labels = random_images()[:]
    model = network()
    trainer = trainer_of(
        model, LogitAdjustedLoss(COUNTS), Images(images, ignored(labels)), folder, batch=batch, steps=steps
    )
    trainer.train()
    return model.state_dict()


@pytest.mark.parametrize(("batch", "steps"), [(BATCH // 2, 1), (BATCH // 4, 2)])
def test_two_processes_are_as_one_with_their_batches(batch, steps, tmp_path):
    """The order of the small batches differs, but not the images of a step."""
    seed = torch.seed() % 2**31
    first, second = run_processes(two_batches, 2, seed, str(tmp_path), batch, steps, timeout=300)
    expected = two_batches(0, seed, str(tmp_path), BATCH, 1)
    torch.testing.assert_close(first, expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(second, first, rtol=0, atol=0)


def test_evaluation_has_no_noise(tmp_path):
    criterion, model = AGCLLoss(COUNTS), network()
    model.classifier = criterion.head(16)
    images, labels = random_images()[:]
    trainer = trainer_of(model, criterion, Images(images, labels), tmp_path)
    trainer.train()
    with torch.no_grad():
        expected = deepcopy(criterion).eval()(model(images).logits, labels)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected.item(), rel=1e-5)
