"""The class groups for which long-tailed results are reported: many, medium and few."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from ltfast.errors import SettingError
from ltfast.ops.core.class_counts import ClassCounts, read_class_counts

NAMES = ("many", "medium", "few")
MINIMA = (101, 20)  # many: more than 100 images; few: fewer than 20; medium: the rest


def class_groups(class_counts: ClassCounts, minima: Sequence[int] = MINIMA) -> dict[str, list[int]]:
    """Split the classes by their number of training images (Liu et al., "Large-Scale Long-Tailed Recognition in an
    Open World", CVPR 2019).

    Args:
        class_counts: the number of training images of each class, length C; see
            `ltfast.ops.core.class_counts.read_class_counts`.
        minima: the minimum number of images per class in each group except the last, in decreasing order.

    Returns:
        The classes in each group. By default, the groups are `"many"` (more than 100 images), `"medium"` (20 to 100)
        and `"few"` (fewer than 20). If there are not three groups, their names are `"group0"`, `"group1"`, ... Each
        class is in exactly one group; a group may be empty.

    Raises:
        ValueError: a count is negative.
    """
    names = list(NAMES) if len(minima) == 2 else [f"group{i}" for i in range(len(minima) + 1)]
    groups: dict[str, list[int]] = {name: [] for name in names}
    for label, count in enumerate(read_class_counts(class_counts).tolist()):
        if not count >= 0:
            raise ValueError(f"class_counts: expected counts of at least 0, got {count:g} for class {label}")
        groups[names[sum(count < minimum for minimum in minima)]].append(label)
    return groups


def group_minima(class_counts: Sequence[int], groups: Sequence[int] | Literal["auto"]) -> tuple[int, int]:
    """The minima of `class_groups` for three groups.

    Args:
        class_counts: the number of training images of each class, length C.
        groups: the borders a and b: the classes with more than a images are many, those with fewer than b few. Or
            "auto": a third of the classes is in each group, as nearly as possible if classes with equally many images
            are in the same group. If all classes have equally many, all are many.

    Raises:
        SettingError: the borders are not two numbers a >= b >= 1.
    """
    if groups != "auto":
        check_borders(groups)
        return groups[0] + 1, groups[1]
    ordered = sorted(class_counts, reverse=True)
    cuts = [i for i, (above, below) in enumerate(pairwise(ordered), 1) if above > below] or [len(ordered)]
    first, second = (min(cuts, key=lambda cut: abs(cut - share * len(ordered) / 3)) for share in (1, 2))
    return ordered[first - 1], ordered[second - 1]


def check_borders(groups: Sequence[int] | Literal["auto"]) -> None:
    """Check the argument `groups` of `group_minima`.

    Raises:
        SettingError: the borders are not two numbers a >= b >= 1.
    """
    if groups != "auto" and not (len(groups) == 2 and groups[0] >= groups[1] >= 1):
        raise SettingError("groups", "two falling numbers of images, at least 1, or auto", groups)
