"""Trains a classifier with ProCo's contrastive branch in a plain loop: python proco_loop.py FOLDER [EPOCHS]

FOLDER/train and FOLDER/test have a folder of images for each class; digits_folder.py writes an example.
"""

import sys
from collections import Counter

import timm
import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from ltfast.losses import LogitAdjustedLoss, ProCoBranch

SIZE = 32  # pixels
PIXELS = v2.Compose([v2.Resize((SIZE, SIZE)), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
VIEW = v2.Compose([PIXELS, v2.RandomCrop(SIZE, padding=4)])


def train(backbone, classifier, branch, criterion, batches, *, epochs, lr):
    """Train the networks. Returns the loss of each step."""
    networks = nn.ModuleList([backbone, classifier, branch])
    optimizer = torch.optim.SGD(networks.parameters(), lr=lr, momentum=0.9)
    losses = []
    for _ in range(epochs):
        networks.train()
        branch.start_epoch()
        for views, labels in batches:
            features, rows = backbone(torch.cat(views)), len(labels)
            loss = criterion(classifier(features[:rows]), labels) + branch(features, labels, skip=rows)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


@torch.no_grad()
def accuracy(network, batches):
    network.eval()
    return torch.cat([network(images).argmax(1) == labels for images, labels in batches]).float().mean().item()


def main(folder, epochs=10):
    images = ImageFolder(f"{folder}/train", lambda image: (VIEW(image), VIEW(image), VIEW(image)))
    batches = DataLoader(images, batch_size=32, shuffle=True, drop_last=True)
    test = DataLoader(ImageFolder(f"{folder}/test", PIXELS), batch_size=256)
    counts, num_classes = Counter(images.targets), len(images.classes)
    backbone = timm.create_model("resnet10t", num_classes=0)
    classifier = nn.Linear(backbone.num_features, num_classes)
    branch = ProCoBranch(backbone.num_features, num_classes, counts)
    train(backbone, classifier, branch, LogitAdjustedLoss(counts), batches, epochs=epochs, lr=0.05)
    network = nn.Sequential(backbone, classifier)
    print(f"test accuracy {accuracy(network, test):.1%}")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
