"""Trains a cosine classifier with the A-GCL loss in a plain loop: python agcl_loop.py FOLDER [EPOCHS]

FOLDER/train and FOLDER/test have a folder of images for each class; digits_folder.py writes an example.
"""

import sys
from collections import Counter

import timm
import torch
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from ltfast.losses import AGCLLoss

SIZE = 32  # pixels
PIXELS = v2.Compose([v2.Resize((SIZE, SIZE)), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])


def train(network, criterion, batches, *, epochs, lr):
    """Train the network. Returns the loss of each step."""
    optimizer = torch.optim.SGD(network.parameters(), lr=lr, momentum=0.9)
    losses = []
    for _ in range(epochs):
        network.train()
        for images, labels in batches:
            loss = criterion(network(images), labels)
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
    images = ImageFolder(f"{folder}/train", v2.Compose([PIXELS, v2.RandomCrop(SIZE, padding=4)]))
    batches = DataLoader(images, batch_size=32, shuffle=True, drop_last=True)
    test = DataLoader(ImageFolder(f"{folder}/test", PIXELS), batch_size=256)
    network = timm.create_model("resnet10t")
    criterion = AGCLLoss(Counter(images.targets))
    network.fc = criterion.head(network.num_features)
    train(network, criterion, batches, epochs=epochs, lr=0.05)
    print(f"test accuracy {accuracy(network, test):.1%}")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
