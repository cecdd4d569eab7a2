"""Trains an encoder with DSCL, then a classifier on its features, in plain loops: python dscl_loop.py FOLDER [EPOCHS]

FOLDER/train and FOLDER/test have a folder of images for each class; digits_folder.py writes an example.
"""

import sys

import timm
import torch
from sklearn.linear_model import LogisticRegression
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from ltfast.losses import QueueContrast

SIZE, PATCH = 32, 16  # pixels
PIXELS = v2.Compose([v2.Resize((SIZE, SIZE)), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
VIEW = v2.Compose([PIXELS, v2.RandomCrop(SIZE, padding=4)])


def views(image):
    """Two views of an image, and two patches of the first one with their boxes."""
    query, key, crop = VIEW(image), VIEW(image), v2.functional.resized_crop
    places = [v2.RandomResizedCrop.get_params(query, [0.2, 0.8], [1, 1]) for _ in range(2)]
    patches = torch.stack([crop(query, *place, [PATCH, PATCH], antialias=True) for place in places])
    return query, key, patches, torch.tensor([[x, y, x + w, y + h] for y, x, h, w in places], dtype=torch.float32)


def train(contrast, batches, *, epochs, lr):
    """Train the encoder. Returns the loss of each step."""
    optimizer = torch.optim.SGD(contrast.parameters(), lr=lr, momentum=0.9)
    losses = []
    for _ in range(epochs):
        contrast.train()
        for (query, key, patches, boxes), labels in batches:
            loss = contrast(query, key, labels, patches, boxes)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            contrast.after_step()
            losses.append(loss.item())
    return losses


@torch.no_grad()
def encoded(encoder, folder):
    """The features (N, D) and labels (N,) of the images in a folder."""
    encoder.eval()
    features, labels = zip(*((encoder(x), y) for x, y in DataLoader(ImageFolder(folder, PIXELS), 256)), strict=True)
    return torch.cat(features).numpy(), torch.cat(labels).numpy()


def main(folder, epochs=10):
    images = ImageFolder(f"{folder}/train", views)
    batches = DataLoader(images, batch_size=32, shuffle=True, drop_last=True)
    encoder = timm.create_model("resnet10t", num_classes=0)
    contrast = QueueContrast(encoder, encoder.num_features, len(images.classes), queue_size=len(images), momentum=0.99)
    train(contrast, batches, epochs=epochs, lr=0.03)
    classifier = LogisticRegression(class_weight="balanced", max_iter=1000)
    classifier.fit(*encoded(encoder, f"{folder}/train"))
    print(f"test accuracy {classifier.score(*encoded(encoder, f'{folder}/test')):.1%}")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
