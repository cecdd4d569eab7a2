"""Images of each class and part, and groups of images (patients, cameras, sites) that are in two parts."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from ltfast.data import ImageDataset, class_groups


def describe_classes(parts: Mapping[str, ImageDataset], minima: Sequence[int]) -> list[dict[str, Any]]:
    """A record for each class: its name, its images in each part, and its group (many, medium or few).

    Args:
        parts: the images of the parts by name, `training` among them.
        minima: see `ltfast.data.class_groups`.
    """
    counts = {part: images.class_counts for part, images in parts.items()}
    group = {c: name for name, classes in class_groups(counts["training"], minima).items() for c in classes}
    return [
        {"name": name, **{part: numbers[c] for part, numbers in counts.items()}, "group": group[c]}
        for c, name in enumerate(parts["training"].class_names)
    ]


def shared_groups(parts: Mapping[str, ImageDataset]) -> dict[str, list[str]]:
    """The groups that have images in two parts, by the names of the parts; empty for data without groups."""
    known = {part: {*map(str, images.groups)} for part, images in parts.items() if images.groups is not None}
    return {
        f"{one} and {other}": sorted(known[one] & known[other])
        for one, other in combinations(known, 2)
        if known[one] & known[other]
    }
