"""Many, medium and few: the class groups that long-tailed results are reported for."""

from collections.abc import Sequence


def class_groups(class_counts: Sequence[int]) -> dict[str, list[int]]:
    """Split the classes by their number of training images (Liu et al., "Large-Scale Long-Tailed Recognition in an
    Open World", CVPR 2019).

    Args:
        class_counts: the number of training images of each class, length C.

    Returns:
        `{"many": ..., "medium": ..., "few": ...}`: the classes with over 100, with 20 to 100 and with under 20 images.
        Each class is in exactly one group; a group may be empty.

    Raises:
        ValueError: a count is negative.
    """
    groups: dict[str, list[int]] = {"many": [], "medium": [], "few": []}
    for label, count in enumerate(class_counts):
        if count < 0:
            raise ValueError(f"class_counts: expected counts of at least 0, got {count} for class {label}")
        groups["many" if count > 100 else "medium" if count >= 20 else "few"].append(label)
    return groups
