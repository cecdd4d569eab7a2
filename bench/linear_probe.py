"""Linear probing of an encoder pre-trained with LiVT, as a baseline for prompt tuning: trains a classifier on frozen
features, and prints the best result over several learning rates on the test images.

python bench/linear_probe.py --init RUN --data digits --imbalance 50
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

from ltfast.data import class_groups, load, train_transform
from ltfast.engine import RunSettings
from ltfast.engine.metrics import accuracies
from ltfast.losses import AGCLLoss
from ltfast.methods.batches import evaluation_batches, train_batches
from ltfast.methods.context import BuildContext
from ltfast.methods.earlier_run import read_run
from ltfast.models import CosineClassifier, default_vit, make_backbone
from ltfast.models.load_backbone import load_backbone

RATES = (0.003, 0.03, 0.3, 3.0)


def probe(
    features: list[tuple[Tensor, Tensor]], test: tuple[Tensor, Tensor], head: nn.Module, loss: nn.Module, lr: float
) -> tuple[list[int], list[int]]:
    """The numbers of test images that are rightly and wrongly predicted as each class, after training on batches of
    features by SGD with a cosine schedule."""
    optimizer = torch.optim.SGD(head.parameters(), lr, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(features))
    for batch, labels in features:
        optimizer.zero_grad()
        loss(head(batch), labels).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        predicted, classes = head(test[0]).argmax(1), int(test[1].max()) + 1
    right = predicted == test[1]
    correct, wrong = (predicted[part].bincount(minlength=classes).tolist() for part in (right, ~right))
    return correct, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--init", type=Path, required=True, help="folder of a LiVT run")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--imbalance", type=float, default=50)
    parser.add_argument("--augment", default="none")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=60, help="passes over the training images")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    bundle = load(args.data, imbalance=args.imbalance)
    counts, size = bundle.class_counts, bundle.image_size
    context = BuildContext(RunSettings(seed=args.seed))
    encoder, width = make_backbone(default_vit(size), in_chans=bundle.channels, image_size=size)
    encoder.reset_classifier(0, "avg")
    load_backbone(encoder, read_run(args.init, encoder=True).backbone)
    encoder.eval()

    @torch.no_grad()
    def encode(images: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return encoder(images).float()

    shown = [(encode(images), labels) for images, labels in evaluation_batches(bundle, size, context=context)]
    test = (torch.cat([x for x, _ in shown]), torch.cat([y for _, y in shown]))
    total = test[1].bincount(minlength=bundle.num_classes).tolist()
    for sampler in ("instance", "class_balanced"):
        transform = train_transform(bundle, args.augment, size)
        batches = train_batches(bundle, [transform], batch_size=args.batch_size, context=context, sampler=sampler)
        features = [(encode(x), y) for epoch in range(args.epochs) for x, y in batches.epoch(epoch, 0)]
        seen = torch.cat([x for x, _ in features])
        for kind, mean, std in (
            ("as they are", torch.zeros(width), torch.ones(width)),
            ("standardised", seen.mean(0), seen.std(0)),
        ):
            scaled = [((x - mean) / std, y) for x, y in features]
            unseen = ((test[0] - mean) / std, test[1])
            for name in ("linear, cross-entropy", "cosine, A-GCL"):
                best = {"top1": -1.0, "lr": 0.0}
                for lr in RATES:
                    torch.manual_seed(args.seed)
                    cosine = name.startswith("cosine")
                    head = (CosineClassifier if cosine else nn.Linear)(width, bundle.num_classes)
                    loss = AGCLLoss(counts, gamma_neg=4.0) if cosine else nn.CrossEntropyLoss()
                    result = accuracies(*probe(scaled, unseen, head, loss, lr), total, class_groups(counts))
                    best = max(best, {**result, "lr": lr}, key=lambda row: row["top1"])
                groups = "  ".join(
                    f"{key} {value:.1f}" for key in ("many", "medium", "few") if (value := best[key]) is not None
                )
                print(f"{sampler:15} features {kind:13} {name:22} lr {best['lr']:<5} all {best['top1']:.1f}  {groups}")


if __name__ == "__main__":
    main()
